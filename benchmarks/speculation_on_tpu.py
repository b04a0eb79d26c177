"""Memory of speculative decoding on TPUs: its program compiled, without the hardware.

    python -m benchmarks.speculation_on_tpu

Models of the shapes of SmolLM2 135M with a drafter of two of its layers, and of Gemma 3 1B and
270M, in bfloat16, decode `--tokens` tokens for each prompt with five drafts a block, by the
lossless rule or by `token_v3`. Programs are compiled by `libtpu` for one chip, and for four over
which rows or matrices are split; nothing is run. On one chip, memory is what the program of both
models needs beside that of the large model alone and the small model, in tables of gamma + 1
distributions a row; on four it is all that the program needs on each.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.compiling import mesh
from benchmarks.speculative import Pair, beside, jitted_pair, memory
from benchmarks.speculative_rules import BLOCK, PROMPT
from cascades.inference.trained_model import TrainedModel
from cascades.models import decoder
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.types import Prompt

SMOLLM2 = decoder.DecoderConfig(
  vocab_size=49152, emb_dim=576, num_heads=9, num_kv_heads=3, num_layers=30, head_dim=64,
  mlp_dim=1536, dtype='bfloat16',
)  # fmt: skip
GEMMA = decoder.DecoderConfig(
  vocab_size=262_144, emb_dim=1152, num_heads=4, num_kv_heads=1, num_layers=26, head_dim=256,
  mlp_dim=6912, dtype='bfloat16',
)  # fmt: skip


class Shapes(NamedTuple):
  """Configurations of a small and a large model."""

  small: decoder.DecoderConfig
  large: decoder.DecoderConfig


PAIRS: Mapping[str, Shapes] = {
  'SmolLM2': Shapes(dataclasses.replace(SMOLLM2, num_layers=2), SMOLLM2),
  'Gemma 3': Shapes(
    dataclasses.replace(GEMMA, emb_dim=640, num_layers=18, mlp_dim=2048),
    GEMMA,
  ),
}
MESHES: Mapping[str, tuple[str, Mapping[str, int]]] = {
  'one v5e': ('v5e:1x1', {}),
  'four v5e, rows split': ('v5e:2x2', {'data': 4}),
  'four v5e, matrices split': ('v5e:2x2', {'tensor': 4}),
}
RULES = ('lossless', 'token_v3')


def abstract_prompts(rows: int) -> Prompt:
  """Shapes of prompts that are split over the active mesh."""
  sharding = NamedSharding(partitioning.active_mesh(), PartitionSpec(partitioning.BATCH))
  shape = functools.partial(jax.ShapeDtypeStruct, dtype=np.int32, sharding=sharding)
  return Prompt(shape((rows, PROMPT)), shape((rows,)))


def model(config: decoder.DecoderConfig) -> TrainedModel:
  """A model without parameters, on the active mesh."""
  graph, params = abstract_model(config, dtype='bfloat16')
  vocabulary = vocabularies.bytes_vocabulary()
  return TrainedModel(graph, params, config.vocab_size, vocabulary, config.architecture, {})


def rows(options: argparse.Namespace) -> Iterator[Measured]:
  """Memory of each pair's program on one chip, beside the models, and on each of four."""
  for where, (topology, axes) in MESHES.items():
    with partitioning.use(mesh(topology, **axes)):
      for (name, shapes), size in itertools.product(PAIRS.items(), options.rows):
        if size % partitioning.row_shards():
          continue
        small, large = map(model, shapes)
        prompt = abstract_prompts(size)
        for rule in RULES:
          what = f'{name}, {where}, {size} rows, {rule}'
          start = time.perf_counter()
          if not axes:
            tables = beside(Pair(small, large, [prompt], options.tokens), BLOCK, rule)
            measured = Measured(f'{what}: tables beside both models', tables, '', at_most=2.0)
          else:
            program = jitted_pair(small, large, options.tokens, BLOCK, rule=rule)
            used = memory(program, small.params, large.params, prompt)
            measured = Measured(f'{what}: memory of a chip', used / 1e9, 'GB')
          yield measured._replace(note=f'compiled in {time.perf_counter() - start:.0f} s')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--rows', type=int, nargs='+', default=[1, 8])
  parser.add_argument('--tokens', type=int, default=64)
  parser.add_argument('--output', default=bars.RESULTS / 'speculation_on_tpu.json')
  options = parser.parse_args()
  settings = {'rows': options.rows, 'tokens': options.tokens, 'gamma': BLOCK}
  bars.report('Speculative decoding on TPUs', rows(options), options.output, settings)


if __name__ == '__main__':
  main()
