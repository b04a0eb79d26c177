"""Divergences from a teacher cache compared with those from all logits, and with plain top-32.

    python -m benchmarks.cached_divergences --large=runs/smollm2 --text=docs/running.md

The large model reads the text; students are the same model without some of its layers, from near to
far. Of the forward KL of each student, the error of its value and of its gradient to the logits (L1
norm, mean over tokens): of caches, over their choices and all others as one, and of the two common
ways to train on the 32 largest probabilities alone: as they are (truncated), and scaled to add up
to 1 (renormalized), 192 bytes with ids of 4 bytes and bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import divergences, teachers
from cascades.inference import trained_model
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.teachers import Logits
from cascades.training.answer_format import AnswerFormat
from cascades.types import Batch

LENGTH = 256
MOST_BYTES = 114
CACHES = {
  'top 18, float16': AnswerFormat(18, 'float16'),
  'top 36, uint8': AnswerFormat(36, 'uint8', short_ids=True),
}


class Plain(NamedTuple):
  """The first choices alone: what is missing of P adds nothing."""

  ids: jax.Array
  logprobs: jax.Array

  def divergence(self, small: jax.Array) -> jax.Array:
    of_ids = jnp.take_along_axis(jax.nn.log_softmax(small), self.ids, axis=-1)
    return jnp.sum(jnp.exp(self.logprobs) * (self.logprobs - of_ids), axis=-1)


def student_logits(large: trained_model.TrainedModel, batch: Batch, dropped: list[int]) -> Any:
  """Logits [n, V] of the model without some of its layers."""
  config = configs.from_description(dict(large.described['model']))
  layers = config.num_layers  # type: ignore[attr-defined]
  rest = np.array([layer for layer in range(layers) if layer not in dropped])
  graph, _ = abstract_model(dataclasses.replace(config, num_layers=len(rest)))  # type: ignore[type-var]
  params = {**large.params, 'blocks': jax.tree.map(lambda x: x[rest], large.params['blocks'])}

  @jax.jit
  def logits(params: Any, batch: Batch) -> jax.Array:
    model = nnx.merge(graph, params)
    return model.readout(model.hidden(batch))

  return logits(params, batch).reshape(-1, large.vocab_size)


@jax.jit
def errors(small: jax.Array, large: jax.Array, teacher: Any) -> tuple[jax.Array, jax.Array]:
  """Mean error of the value and of the gradient, over tokens."""
  unused = jnp.zeros(len(small), int)
  exact = lambda x: divergences.forward_kl(x, (Logits(large),), unused)
  if isinstance(teacher, Plain):
    approximate = teacher.divergence
  else:
    approximate = lambda x: divergences.forward_kl(x, (teacher,), unused)
  value = jnp.abs(exact(small) - approximate(small))
  slopes = [jax.grad(lambda x: f(x).sum())(small) for f in (exact, approximate)]  # noqa: B023
  return value.mean(), jnp.abs(slopes[0] - slopes[1]).sum(-1).mean()


def in_chunks(small: jax.Array, large: jax.Array, teacher: Any) -> np.ndarray:
  """`errors`, of a few tokens at a time."""
  cut = [slice(begin, begin + LENGTH) for begin in range(0, len(small), LENGTH)]
  each = [errors(*jax.tree.map(lambda x: x[rows], (small, large, teacher))) for rows in cut]  # noqa: B023
  return np.mean(each, axis=0)


def answers(large: jax.Array) -> dict[str, Any]:
  """Outputs of the large model as each way keeps them, after a trip through its records."""
  top = teachers.to_top_k(large, k=32, dtype='bfloat16')
  logprobs = top.top_logprobs.astype(jnp.float32)
  caches = {name: form.unpack(form.pack(form.reduce(large))) for name, form in CACHES.items()}
  return {
    'plain top 32, truncated': Plain(top.ids, logprobs),
    'plain top 32, renormalized': Plain(top.ids, jax.nn.log_softmax(logprobs)),
    **jax.tree.map(jnp.asarray, caches),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--large', required=True, help='run directory of a decoder')
  parser.add_argument('--text', nargs='+', required=True)
  parser.add_argument('--tokens', type=int, default=512)
  parser.add_argument('--output', default=bars.RESULTS / 'cached_divergences.json')
  options = parser.parse_args()
  measured = [
    Measured(f'{name}: bytes', form.record.itemsize, 'B/token', at_most=MOST_BYTES + 1)
    for name, form in CACHES.items()
  ]
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    model = trained_model.load(trained_model.Checkpoint(options.large), rules=partitioning.RULES)
    text = '\n\n'.join(pathlib.Path(path).read_text() for path in options.text)
    ids = np.array(model.vocabulary.encode(text))[: options.tokens]
    if len(ids) < LENGTH:
      parser.error(f'a row is {LENGTH} tokens, and {len(ids)} of the text are to be read.')
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
    inputs = np.pad(rows, ((0, 0), (1, 0)))[:, :-1]
    batch = Batch(inputs, rows, np.ones(rows.shape, np.float32))
    large = student_logits(model, batch, [])
    teachers_of = answers(large)
    middle = [3, 9, 12, 15, 18, 21, 24, 27]
    for count in (1, 2, 4, 8):
      small = student_logits(model, batch, sorted(middle[-count:] if count > 1 else [14]))
      kl = divergences.forward_kl(small, (Logits(large),), jnp.zeros(len(small), int)).mean()
      by_way = {name: in_chunks(small, large, teacher) for name, teacher in teachers_of.items()}
      plain = by_way['plain top 32, truncated'][1], by_way['plain top 32, renormalized'][1]
      for name, (value, gradient) in by_way.items():
        bar = float(min(plain)) if name == 'top 36, uint8' else None
        student = f'{count} layers less (KL {kl:.2f}), {name}'
        measured += [
          Measured(f'{student}: value', float(value), 'nats'),
          Measured(f'{student}: gradient', float(gradient), '', at_most=bar),
        ]
  title = 'Errors of the forward KL from a teacher cache'
  bars.report(title, measured, options.output, vars(options))


if __name__ == '__main__':
  main()
