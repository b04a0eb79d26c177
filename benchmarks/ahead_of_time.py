"""Seconds until a training step can run: from the compilation cache, and from a stored executable.

    python -m benchmarks.ahead_of_time

A start with a full cache traces and lowers the step, and reads its executable. A stored executable
(`jax.experimental.serialize_executable`) would save the first two. Each sample is a process of its
own; the ways take turns. Steps: CAT of the demo's pair, and fine-tuning of SmolLM2's 135 M.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from statistics import median

from benchmarks import bars
from benchmarks.bars import Measured
from cascades.models import decoder, t5
from cascades.types import ModelConfig

SMOLLM2 = decoder.DecoderConfig(
  49_152, emb_dim=576, num_heads=9, num_kv_heads=3, num_layers=30, head_dim=64, mlp_dim=1536
)
NANO = t5.T5Config(
  101, emb_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, mlp_dim=64
)
MINI = t5.T5Config(
  101, emb_dim=128, num_heads=4, num_encoder_layers=2, num_decoder_layers=2, mlp_dim=512
)
PAIRS: Mapping[str, tuple[ModelConfig, ModelConfig | None]] = {
  'CAT, T5 nano beside T5 mini': (NANO, MINI),
  'fine-tuning, 135 M': (SMOLLM2, None),
}
WAYS = ('cache', 'executable')
PARTS = ('trace and lower', 'executable from the cache', 'stored executable')


def child(pair: str, way: str, directory: pathlib.Path) -> dict[str, float]:
  """Seconds of each part, in a process that has done nothing before."""
  from jax.experimental import serialize_executable

  from benchmarks import compiling
  from cascades import losses
  from cascades.runtime import partitioning

  small, large = PAIRS[pair]
  stored = directory / f'{list(PAIRS).index(pair)}.executable'
  with partitioning.use(partitioning.make_mesh()):
    loss = losses.cat_xent if large else losses.xent
    cell = compiling.cell(loss, rows=8, length=64, small=small, large=large, large_dtype='float32')
    start = time.perf_counter()
    lowered = cell.step.lower(*cell.arguments)
    seconds = {PARTS[0]: time.perf_counter() - start}
    if way == 'executable' and stored.exists():
      payload = stored.read_bytes()
      trees = lowered.in_tree, lowered.out_tree
      start = time.perf_counter()
      serialize_executable.deserialize_and_load(payload, *trees)
      return {PARTS[2]: time.perf_counter() - start}
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds[PARTS[1]] = time.perf_counter() - start
    if way == 'executable':
      stored.write_bytes(serialize_executable.serialize(compiled)[0])
    return seconds


def sample(pair: str, way: str, directory: pathlib.Path) -> dict[str, float]:
  command = [sys.executable, '-m', 'benchmarks.ahead_of_time', '--child', pair, way, str(directory)]
  cache = {
    'JAX_COMPILATION_CACHE_DIR': str(directory / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PLATFORMS': 'cpu',
  }
  done = subprocess.run(
    command, env=os.environ | cache, stdout=subprocess.PIPE, text=True, check=True
  )
  return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(repeats: int) -> Iterator[Measured]:
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    for pair in PAIRS:
      for way in WAYS:  # fills the cache, and stores the executable
        sample(pair, way, directory)
      runs = [sample(pair, way, directory) for _ in range(repeats) for way in WAYS]
      times = {part: [run[part] for run in runs if part in run] for part in PARTS}
      for part, seconds in times.items():
        yield Measured(f'{pair}: {part}', median(seconds), 's')
      cached = median(times[PARTS[0]]) + median(times[PARTS[1]])
      yield Measured(f'{pair}: saved by a stored executable', cached - median(times[PARTS[2]]), 's')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--child', nargs=3, metavar=('PAIR', 'WAY', 'DIRECTORY'))
  parser.add_argument('--output', default=bars.RESULTS / 'ahead_of_time.json')
  options = parser.parse_args()
  if options.child:
    pair, way, directory = options.child
    print(json.dumps(child(pair, way, pathlib.Path(directory))))
    return
  bars.report(
    'until a step can run', measure(options.repeats), options.output, {'repeats': options.repeats}
  )


if __name__ == '__main__':
  main()
