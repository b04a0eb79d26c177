"""Quality of a language model without some of its layers or channels, before any training.

    python -m benchmarks.pruning --checkpoint=runs/smollm2 --text=passages.txt

Bits per byte of the text (lower is better), for several choices of `python -m cascades.prune` of
about equal size. Channels are chosen by their effect on the loss of the first rows of the text, and
by the norms of their weights for comparison; the quality is measured on the rows that follow.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import decoding
from cascades.checkpoints import store
from cascades.models import configs, pruning
from cascades.models.abstract import abstract_model
from cascades.models.pruning import LayerChoice
from cascades.prune import token_loss
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.training import train_step
from cascades.types import Batch, Params, Vocabulary


def choices(num: int) -> dict[str, LayerChoice]:
  """Selections among `num` layers."""
  ends = lambda head, tail: functools.partial(pruning.ends, head=head, tail=tail)
  most, half = num - num // 6, num // 2
  splits = [
    *((most, 0), (most - 2, 2), (half, most - half)),
    *((half, 0), (half - 2, 2), (half // 2 + 1, half - half // 2 - 1)),
  ]
  return {
    'everything': ends(num, 0),
    **{f'first {head} layers, last {tail}': ends(head, tail) for head, tail in splits},
    'every second layer': functools.partial(pruning.every, step=2),
  }


def norms(params: Params, stacks: Iterable[str]) -> pruning.Importance:
  """||wo_f|| prod_i ||wi_i_f|| of every channel f, from the weights alone."""

  def of_layers(mlp: Params) -> Array:
    kernels = {name: projection['kernel'] for name, projection in mlp.items()}
    wo = kernels.pop('wo')
    into = [jnp.linalg.norm(kernel, axis=1) for kernel in kernels.values()]
    return jnp.linalg.norm(wo, axis=2) * math.prod(into)

  return {stack: of_layers(params[stack]['mlp']) for stack in stacks}


def rows(vocabulary: Vocabulary, text: str, length: int, count: int) -> Batch:
  """Tokens of the text in `count` rows; every token but the first of a row is predicted."""
  tokens = np.array(vocabulary.encode(text), np.int32)
  if len(tokens) < count * length:
    raise ValueError(f'the text has {len(tokens)} tokens, and {count * length} are needed.')
  tokens = tokens[: count * length].reshape(count, length)
  return Batch(tokens[:, :-1], tokens[:, 1:], np.ones(tokens[:, 1:].shape, np.float32))


def bits_per_byte(
  config: configs.LanguageModelConfig, params: Params, batch: Batch, vocabulary: Vocabulary
) -> float:
  graph, _ = abstract_model(config)

  @jax.jit
  def score(params: Params, batch: Batch) -> jax.Array:
    return decoding.score(nnx.merge(graph, params), batch)[0].sum()

  size = sum(len(vocabulary.decode(row.tolist()).encode()) for row in np.asarray(batch.targets))
  return -float(score(params, batch)) / np.log(2) / size


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--checkpoint', required=True, help='a run directory')
  parser.add_argument('--text', required=True, type=pathlib.Path)
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--length', type=int, default=257)
  parser.add_argument('--output', default=bars.RESULTS / 'pruning.json')
  options = parser.parse_args()
  directory, step = store.locate(options.checkpoint)
  large = configs.from_description(store.read_description(directory)['model'])
  vocabulary = vocabularies.load(directory)
  both = rows(vocabulary, options.text.read_text(), options.length, 2 * options.rows)
  seen, test = (
    jax.tree.map(lambda x, p=p: x[p], both) for p in np.arange(2 * options.rows).reshape(2, -1)
  )
  measured = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(large)
    params = store.restore_params(directory, abstract, which=step)
    everything = pruning.select_layers(large, lambda num: range(num))

    def measure(name: str, remaining: Mapping[str, Sequence[int]], *width: Any) -> None:
      small = pruning.pruned_config(large, remaining, *width[:1])
      bits = bits_per_byte(small, pruning.prune(params, remaining, *width), test, vocabulary)
      size = f'{configs.count_parameters(small):,} parameters'
      measured.append(Measured(name, bits, 'bits/byte', note=size))

    for name, layers in choices(max(map(len, everything.values()))).items():
      measure(name, pruning.select_layers(large, layers))
    single = (jax.tree.map(lambda x, i=i: x[i : i + 1], seen) for i in range(options.rows))
    loss = token_loss(train_step.ModelDef(graph, large.vocab_size))
    by_loss = pruning.channel_importance(loss, params, single, everything)
    for share in (0.75, 0.5):
      mlp_dim = int(share * large.mlp_dim)
      measure(f'{share} of the channels, by their loss', everything, mlp_dim, by_loss)
      measure(
        f'{share} of the channels, by their norms', everything, mlp_dim, norms(params, everything)
      )
  bars.report('pruning', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
