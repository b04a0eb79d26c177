"""Divergences from a teacher cache compared with those from all logits, and with plain top-32.

    python -m benchmarks.cached_divergences --large=runs/smollm2 --text=docs/running.md
    python -m benchmarks.cached_divergences --large=runs/demo/large --students runs/demo/xent

A decoder reads the text; its students are the same model without some of its layers, from near to
far. Models of the demo read validation words. `--students` are trained ones. Of the forward KL of
each student, the errors of its value and of its gradient to the logits: of each token (mean over
tokens, L1 norm of gradients), and of all tokens together, as a share of the exact value and of the
L1 norm of the exact gradient. Of caches, over their choices and all others as one or with samples
of those, and of the two common ways to train on the 32 largest probabilities alone: as they are
(truncated), and scaled to add up to 1 (renormalized), 192 bytes with ids of 4 bytes and bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import divergences, teachers
from cascades.data.corpus import Data
from cascades.inference import trained_model
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tasks import catalog
from cascades.teachers import Logits
from cascades.training.answer_format import AnswerFormat
from cascades.types import Batch

LENGTH = 256
MOST_BYTES = 114
CHOICES, SAMPLED = 'top 36, uint8', 'top 28 and 8 samples, uint8'
# By value: what samples are for. By gradient of a token: sampled ones are right on average only.
BARRED = {'value': SAMPLED, 'value of all': SAMPLED, 'gradient': CHOICES}
WORDS = 256  # of the demo's task
MIDDLE = (3, 9, 12, 15, 18, 21, 24, 27)  # layers that students lack
CACHES = {
  'top 18, float16': AnswerFormat(18, 'float16'),
  CHOICES: AnswerFormat(36, 'uint8', short_ids=True),
  SAMPLED: AnswerFormat(28, 'uint8', short_ids=True, samples=8),
}


class Plain(NamedTuple):
  """The first choices alone: what is missing of P adds nothing."""

  ids: jax.Array
  logprobs: jax.Array

  def divergence(self, small: jax.Array) -> jax.Array:
    of_ids = jnp.take_along_axis(jax.nn.log_softmax(small), self.ids, axis=-1)
    return jnp.sum(jnp.exp(self.logprobs) * (self.logprobs - of_ids), axis=-1)


def logits_of(model: trained_model.TrainedModel, batch: Batch) -> jax.Array:
  """Logits [n, V] of a model before the counted tokens."""

  @jax.jit
  def logits(params: Any) -> jax.Array:
    merged = nnx.merge(model.graph, params)
    return merged.readout(merged.hidden(batch))

  return logits(model.params)[np.asarray(batch.weights) > 0]


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
def errors(small: jax.Array, large: jax.Array, teacher: Any) -> dict[str, jax.Array]:
  """Errors of the value and of the gradient of each token, and sums over tokens."""
  unused = jnp.zeros(len(small), int)
  exact = lambda x: divergences.forward_kl(x, (Logits(large),), unused)
  if isinstance(teacher, Plain):
    approximate = teacher.divergence
  else:
    approximate = lambda x: divergences.forward_kl(x, (teacher,), unused)
  values = [f(small) for f in (exact, approximate)]
  slopes = [jax.grad(lambda x: f(x).sum())(small) for f in (exact, approximate)]  # noqa: B023
  return {
    'value': jnp.abs(values[1] - values[0]).sum(),
    'gradient': jnp.abs(slopes[1] - slopes[0]).sum(),
    'of values': jnp.stack([v.sum() for v in values]),
    'of gradients': jnp.stack([s.sum(0) for s in slopes]),
  }


def in_chunks(small: jax.Array, large: jax.Array, teacher: Any) -> dict[str, float]:
  """Mean errors over tokens, and relative ones of all together, a few tokens at a time."""
  cut = [slice(begin, begin + LENGTH) for begin in range(0, len(small), LENGTH)]
  each = [errors(*jax.tree.map(lambda x: x[rows], (small, large, teacher))) for rows in cut]  # noqa: B023
  sums = {name: np.sum([one[name] for one in each], axis=0) for name in each[0]}
  relative = lambda sum_: np.abs(sum_[1] - sum_[0]).sum() / np.abs(sum_[0]).sum()
  return {
    'value': sums['value'] / len(small),
    'gradient': sums['gradient'] / len(small),
    'value of all': relative(sums['of values']),
    'gradient of all': relative(sums['of gradients']),
  }


def answers(large: jax.Array) -> dict[str, Any]:
  """Outputs of the large model as each way keeps them, after a trip through its records."""
  offsets = jax.random.uniform(jax.random.key(0), (len(large),))
  top = teachers.to_top_k(large, k=32, dtype='bfloat16')
  logprobs = top.top_logprobs.astype(jnp.float32)
  caches = {
    name: form.unpack(form.pack(form.reduce(large, offsets))) for name, form in CACHES.items()
  }
  return {
    'plain top 32, truncated': Plain(top.ids, logprobs),
    'plain top 32, renormalized': Plain(top.ids, jax.nn.log_softmax(logprobs)),
    **jax.tree.map(jnp.asarray, caches),
  }


def text_batch(model: trained_model.TrainedModel, paths: Sequence[str], tokens: int) -> Batch:
  """Rows of LENGTH tokens of texts."""
  text = '\n\n'.join(pathlib.Path(path).read_text() for path in paths)
  ids = np.array(model.vocabulary.encode(text))[:tokens]
  if len(ids) < LENGTH:
    raise SystemExit(f'a row is {LENGTH} tokens, and {len(ids)} of the text are to be read.')
  rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)
  return Batch(np.pad(rows, ((0, 0), (1, 0)))[:, :-1], rows, np.ones(rows.shape, np.float32))


def word_batch(model: trained_model.TrainedModel) -> Batch:
  """Validation words of the demo's task, at equal distances, and their answers."""
  lengths = {'inputs': 24, 'targets': 24}
  data = Data(task=catalog.get('cmudict_g2p'), lengths=lengths, batch_size=WORDS)
  corpus = data.corpus(model.vocabulary, model.architecture)
  (batch,) = corpus.evaluation(corpus.open('validation'), batch_size=WORDS, rows=WORDS)
  return batch


def compared(
  student: str, small: jax.Array, large: jax.Array, answered: Mapping[str, Any]
) -> Iterator[Measured]:
  """Errors of each way for a student; the bar is the smaller error of the first choices alone."""
  kl = divergences.forward_kl(small, (Logits(large),), jnp.zeros(len(small), int)).mean()
  by_way = {name: in_chunks(small, large, teacher) for name, teacher in answered.items()}
  plain = [own for name, own in by_way.items() if name.startswith('plain')]
  for name, own in by_way.items():
    for error, value in own.items():
      bar = min(each[error] for each in plain) if BARRED.get(error) == name else None
      unit = 'nats' if error == 'value' else ''
      what = f'{student} (KL {kl:.2f}), {name}: {error}'
      yield Measured(what, float(value), unit, at_most=bar)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--large', required=True, help='run directory of a decoder')
  parser.add_argument('--students', nargs='+', type=pathlib.Path, help='run directories')
  parser.add_argument('--text', nargs='+', help='that a decoder reads')
  parser.add_argument('--tokens', type=int, default=512)
  parser.add_argument('--output', default=bars.RESULTS / 'cached_divergences.json')
  options = parser.parse_args()
  load = lambda path: trained_model.load(trained_model.Checkpoint(path), rules=partitioning.RULES)
  measured = [
    Measured(f'{name}: bytes', form.record.itemsize, 'B/token', at_most=MOST_BYTES + 1)
    for name, form in CACHES.items()
  ]
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    model = load(options.large)
    if model.architecture == 'decoder_only':
      batch = text_batch(model, options.text or (), options.tokens)
    else:
      batch = word_batch(model)
    large = logits_of(model, batch)
    answered = answers(large)
    for path in options.students or ():
      small = logits_of(load(str(path)), batch)
      measured += compared(path.name, small, large, answered)
    for count in () if options.students else (1, 2, 4, 8):
      dropped = sorted(MIDDLE[-count:] if count > 1 else [14])
      small = student_logits(model, batch, dropped)
      measured += compared(f'{count} layers less', small, large, answered)
  title = 'Errors of the forward KL from a teacher cache'
  bars.report(title, measured, options.output, vars(options))


if __name__ == '__main__':
  main()
