"""Time of scoring by MaxSim and LITE, and of encoding beside sentence-transformers.

    python -m benchmarks.lite_speed
    python -m benchmarks.lite_speed --encode --data=../shared/data \\
      --output=benchmarks/results/lite_encode.json

The first scores 1,000 candidates of 180 tokens by 32. The second needs sentence-transformers, with
torch: both encode the same documents of SciFact in turns, here to token vectors, there to one each.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from flax import nnx

from benchmarks import bars, lite_runs
from benchmarks.bars import Measured
from cascades.inference import encoders
from cascades.inference.ranker import Ranker
from cascades.interop.pretrained import open_encoder
from cascades.models import bert
from cascades.models.rankers import Encoded, RankerConfig
from cascades.predictions import judgments
from cascades.training import ranker

CANDIDATES = 1_000
TOKENS, QUERY_TOKENS = 180, 32
REPEATS = 15
BLOCK = 25
MOST_RATIO = 2.0


def milliseconds(config: RankerConfig) -> float:
  """Median time of scoring `CANDIDATES` documents in memory, all at once or in blocks.

  The faster of the two is taken, for every scorer.
  """
  random = np.random.default_rng(0)
  module = config.build(jax.random.key(0))
  graph, params = nnx.split(module)
  encoded = []
  for length, leading in zip(config.lengths, ((), (CANDIDATES,)), strict=True):
    vectors = random.standard_normal((*leading, length, config.vector_width), np.float32)
    encoded.append(Encoded(jax.device_put(vectors), np.ones((*leading, length), bool)))
  query, documents = encoded

  def at_once(params: object, query: Encoded, documents: Encoded) -> jax.Array:
    return nnx.merge(graph, params).score(Encoded(query.vectors[None], query.mask[None]), documents)

  def in_blocks(params: object, query: Encoded, documents: Encoded) -> jax.Array:
    blocks = Encoded(*(leaf.reshape(-1, BLOCK, *leaf.shape[1:]) for leaf in documents))
    return jax.lax.map(lambda block: at_once(params, query, block), blocks)

  return min(_median(jax.jit(f), params, query, documents) for f in (at_once, in_blocks))


def _median(function: Callable[..., jax.Array], *inputs: object) -> float:
  jax.block_until_ready(function(*inputs))
  spent = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(function(*inputs))
    spent.append(time.perf_counter() - began)
  return 1000 * float(np.median(spent))


def _config(scorer: str, width: int, **sizes: int) -> RankerConfig:
  encoder = bert.BertConfig(vocab_size=8, emb_dim=width, num_heads=4, num_layers=1, mlp_dim=8)
  return RankerConfig(
    encoder, scorer, query_tokens=QUERY_TOKENS, document_tokens=TOKENS, pooling='linear', **sizes
  )


def scoring() -> Iterator[Measured]:
  """Times at both widths."""
  for width in (384, 128):
    where = f'width {width}, {CANDIDATES} x {TOKENS} x {QUERY_TOKENS}'
    base = milliseconds(_config('max_sim', width))
    yield Measured(f'MaxSim, {where}', base, 'ms')
    own = milliseconds(_config('lite', width))
    yield Measured(f'LITE, {where}', own, 'ms')
    yield Measured(f'LITE over MaxSim, width {width}', own / base, 'x', at_most=MOST_RATIO)
    fewer = milliseconds(_config('lite', width, stored_tokens=TOKENS // 4))
    yield Measured(f'LITE /4 over MaxSim, width {width}', fewer / base, 'x')
    paper = milliseconds(_config('lite', width, query_mlp=360, document_mlp=2400))
    yield Measured(f'LITE in the sizes of the paper over MaxSim, width {width}', paper / base, 'x')


def encoding(data: pathlib.Path, count: int, blocks: int) -> Iterator[Measured]:
  """Documents per second of both, over all blocks but the first."""
  import torch
  from sentence_transformers import SentenceTransformer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  folder = lite_runs.encoder_folder()
  peer = SentenceTransformer(str(folder), device='cpu')
  peer.max_seq_length = TOKENS
  pretrained = open_encoder(folder)
  config = RankerConfig(pretrained.config, 'max_sim', document_tokens=TOKENS, normalize=False)
  graph, _ = jax.eval_shape(lambda: nnx.split(config.build(jax.random.key(0))))
  weights = nnx.to_pure_dict(nnx.state(encoders.load(pretrained)))
  model = Ranker(config, graph, ranker.init(config, 0, weights), pretrained.vocabulary)
  path = data / 'ranking_scifact' / 'passages.jsonl.gz'
  texts = [*judgments.texts(path, 'DOCUMENTS').values()]
  texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:count]]
  size = len(texts) // blocks
  both = {
    'cascades': model.encode_documents,
    'sentence-transformers': lambda own: peer.encode(own, show_progress_bar=False),
  }
  seconds = dict.fromkeys(both, 0.0)
  for number in range(blocks + 1):
    start = max(number - 1, 0) * size
    for name, encode in sorted(both.items(), reverse=bool(number % 2)):
      began = time.perf_counter()
      encode(texts[start : start + size])
      seconds[name] += (time.perf_counter() - began) * bool(number)
  for name, spent in seconds.items():
    yield Measured(f'{name}, {size * blocks} documents', size * blocks / spent, 'documents/s')
  ratio = seconds['sentence-transformers'] / seconds['cascades']
  yield Measured('cascades over sentence-transformers', ratio, 'x', at_least=1.0)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--encode', action='store_true')
  parser.add_argument('--data', type=pathlib.Path, default=lite_runs.DATA)
  parser.add_argument('--count', type=int, default=400)
  parser.add_argument('--blocks', type=int, default=4)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'lite_speed.json')
  options = parser.parse_args()
  bars.use_cores(options.cores)
  rows = encoding(options.data, options.count, options.blocks) if options.encode else scoring()
  settings = {n: value for n, value in vars(options).items() if n != 'data'}
  bars.report('speed of LITE', rows, options.output, settings)


if __name__ == '__main__':
  main()
