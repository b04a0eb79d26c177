"""Change of a language model when its weights are stored in fewer bits.

    python -m benchmarks.quantization --checkpoint=runs/smollm2 --text=passages.txt

Bytes of the weights, and the difference to float32 weights on the text: the share of positions with
the same top-1 token, and the change of the log-probability of the actual token. Activations are
float32 throughout, so that only the weights differ.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from benchmarks import bars
from benchmarks.bars import Measured
from cascades.checkpoints import store
from cascades.models import configs
from cascades.models.abstract import DTYPES, abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.types import Batch, ModelConfig

MOST_BYTES = {'float32': 1.001, 'bfloat16': 0.501, 'int8': 0.27}  # of float32's


class Answers(NamedTuple):
  """Outputs of a model on a text, and the bytes of its weights."""

  size: int
  logprobs: Float[np.ndarray, 'N']
  choices: Int[np.ndarray, 'N']


def answers(path: str, config: ModelConfig, dtype: str, rows: Int[np.ndarray, 'B T']) -> Answers:
  """Run the model of a run directory, with weights in `dtype`, on one row after another."""
  graph, like = abstract_model(config, dtype=dtype)
  params = store.restore_params(path, like)

  @jax.jit
  def read(params: nnx.State, row: Array) -> tuple[Array, Array]:
    model = nnx.merge(graph, params)
    logits = model.readout(model.hidden(Batch(row[:, :-1], row[:, 1:], None)))
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), row[:, 1:, None], -1)
    return logprobs.ravel(), logits.argmax(-1).ravel()

  outputs = [jax.device_get(read(params, row[None])) for row in rows]
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  logprobs, choices = map(np.concatenate, zip(*outputs, strict=True))
  return Answers(size, logprobs.astype(np.float64), choices)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--checkpoint', required=True, help='a run directory')
  parser.add_argument('--text', required=True, type=pathlib.Path)
  parser.add_argument('--lines', type=int, default=200)
  parser.add_argument('--length', type=int, default=257, help='tokens of a row')
  parser.add_argument('--output', default=bars.RESULTS / 'quantization.json')
  options = parser.parse_args()

  described = store.read_description(options.checkpoint)['model']
  config = configs.from_description(described | {'dtype': 'float32'})
  passage = '\n'.join(options.text.read_text().split('\n')[: options.lines])
  tokens = vocabularies.load(options.checkpoint).encode(passage)
  count = len(tokens) // options.length * options.length
  rows = np.asarray(tokens[:count], np.int32).reshape(-1, options.length)

  measured: list[Measured] = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    read = functools.partial(answers, options.checkpoint, config, rows=rows)
    exact = read('float32')
    for dtype in DTYPES:
      output = exact if dtype == 'float32' else read(dtype)
      share, moved = output.size / exact.size, output.logprobs - exact.logprobs
      measured += [
        Measured(f'{dtype}: weights', output.size / 2**20, 'MiB'),
        Measured(f'{dtype}: of float32', share, '', at_most=MOST_BYTES[dtype]),
        Measured(f'{dtype}: same top-1 token', 100 * np.mean(output.choices == exact.choices), '%'),
        Measured(f'{dtype}: mean |change of logprob|', np.abs(moved).mean(), 'nats'),
        Measured(f'{dtype}: mean logprob', output.logprobs.mean(), 'nats'),
      ]
  settings = {'checkpoint': options.checkpoint, 'text': options.text.name, 'tokens': count}
  bars.report('weights in fewer bits', measured, options.output, settings)


if __name__ == '__main__':
  main()
