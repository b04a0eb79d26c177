"""A memory of more than a million entries: exact search beside the index of faiss.

    python -m benchmarks.memory_scale --runs_dir runs/resmem

A decoder of `resmem` memorizes bytes of `pretrain_en` by the real command, once searched exactly,
INDEX_ABOVE=None, and once by the default, faiss above a million entries. Needs faiss-cpu.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from benchmarks import bars, resmem_tokens, salt
from benchmarks.bars import Measured

WIDTH, ROWS, TRAIN_BYTES = 48, 9_000, 1_700_000
WAYS = {'exact': None, 'index': 1_000_000}


def lookups(root: pathlib.Path, data: pathlib.Path, rows: int, way: str) -> dict[str, Any]:
  """What `memorize` has written about the search of a memory."""
  model = resmem_tokens.train(root, 'LM', WIDTH, 0)
  memory = root / 'large_memory'
  resmem_tokens.command(
    'memorize', 'runs/memorize.gin', CHECKPOINT_PATH=model, MEMORY=memory, ROWS=rows,
    TASK='@c4.causal_lm()', c4__causal_lm__sources='@sources.Sources()',
    c4__causal_lm__length=resmem_tokens.LENGTH, DATA_DIR=data, RECORDS_DIR=root / 'large_records',
    TASK_FEATURE_LENGTHS={'inputs': 1, 'targets': resmem_tokens.LENGTH},
    QUERIES=resmem_tokens.QUERIES, INDEX_ABOVE=WAYS[way],
  )  # fmt: skip
  described: dict[str, Any] = json.loads((memory / 'lookups.json').read_text())
  return described


def measured(root: pathlib.Path, data: pathlib.Path, rows: int) -> Iterator[Measured]:
  for way in WAYS:
    own = lookups(root, data, rows, way)
    chosen = ', '.join(f'{name} {value:.3g}' for name, value in own['errors'].items())
    k = own['chosen']['resmem']['k']
    yield Measured(f'{way}: entries', own['entries'], '', note=f'log loss: {chosen}')
    if own['index']:
      yield Measured(f'{way}: recall of {k} neighbors', own['index']['recall'], '')
    yield Measured(f'{way}: a lookup of {k} neighbors', own['milliseconds_per_token'], 'ms a token')
    yield Measured(f'{way}: memory', own['bytes'] / 2**20, 'MiB')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--runs_dir', type=pathlib.Path, default=pathlib.Path('runs/resmem'))
  parser.add_argument('--data', type=pathlib.Path, default=resmem_tokens.DATA)
  parser.add_argument('--rows', type=int, default=ROWS)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'memory_scale.json')
  options = parser.parse_args()
  root = options.runs_dir.resolve()
  data = root / 'large_data'
  if not data.exists():
    salt.write_data(options.data / 'pretrain_en' / 'docs.jsonl.gz', data, TRAIN_BYTES)
  rows = measured(root, data, options.rows)
  settings = {'rows': options.rows, 'width': WIDTH}
  bars.report('memory of many entries', rows, options.output, settings)


if __name__ == '__main__':
  main()
