"""Frontiers of speculative cascades on two pairs of models: docs/speculative.md.

    python -m benchmarks.speculation_frontier runs/demo
    python -m benchmarks.speculation_frontier runs/smollm2_pair --pair=smollm2
    python -m benchmarks.speculation_frontier runs/smollm2_long --pair=smollm2_timed
    python -m benchmarks.speculation_frontier runs/smollm2_long --pair=smollm2_whole
    python -m benchmarks.speculation_frontier runs/tanaka/0 --pair=tanaka

The folder is that of `python -m launch.demo`, of `benchmarks.smollm2_drafter` or of
`benchmarks.distillspec_pairs`. Runs `python -m cascades.speculate`, which resumes, and writes the
numbers of its frontier.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.speculation_sweep import NAMES, REPEATED
from cascades.inference import points
from cascades.predictions import shards
from cascades.target_distributions import RULES

Alphas = Mapping[str, Sequence[float] | None]
Settings = Mapping[str, object]

USUAL = dict.fromkeys((
  'lossless', 'lossy', 'lossy_normalized', 'ensemble', 'chow', 'diff', 'opt', 'bild', 'token_v1',
  'token_v3', 'typical',
))  # fmt: skip
QUESTIONS = 32
WHOLE = 256  # tokens, within which nearly all answers of SmolLM2 end


def _two_alphas(names: Sequence[str]) -> Alphas:
  """The second and the fourth of the usual alphas, of rules with an alpha."""
  pairs = {name: RULES[name].alphas and points.usual_alphas(name)[1::2] for name in names}
  return {name: alphas and list(alphas) for name, alphas in pairs.items()}


def _first_questions(folder: pathlib.Path) -> pathlib.Path:
  lines = (folder / 'questions.jsonl').read_text().splitlines(keepends=True)
  path = folder / 'first_questions.jsonl'
  path.write_text(''.join(lines[:QUESTIONS]))
  return path


def _large_answers(folder: pathlib.Path) -> pathlib.Path:
  """Training questions with the large model's answers, whose tokens a shortlist counts."""
  (table,) = shards.read(folder / 'answers' / 'train')
  path = folder / 'answered.jsonl'
  rows = map(json.loads, (folder / 'train.jsonl').read_text().splitlines())
  pairs = zip(rows, table.predictions, strict=True)
  lines = (json.dumps(row | {'targets': answer}) + '\n' for row, answer in pairs)
  path.write_text(''.join(lines))
  return path


def _smollm2(folder: pathlib.Path) -> Settings:
  return {
    'SMALL_CHECKPOINT_PATH': folder / 'small',
    'TASK': '@local.local_jsonl()',
    'local.local_jsonl.name': repr('questions'),
    'local.local_jsonl.splits': {'test': str(_first_questions(folder))},
    'local.local_jsonl.metrics': ('rougeL',),
    'PROMPTS': '@chats.chat',
    'TASK_FEATURE_LENGTHS': {'inputs': 128, 'targets': 32},
    'BATCH_SIZE': QUESTIONS,
    'LATENCY_BATCHES': (),
  }


def _smollm2_timed(folder: pathlib.Path) -> Settings:
  settings = _smollm2(folder)
  splits = {'test': str(_first_questions(folder)), 'train': str(_large_answers(folder))}
  return settings | {
    'local.local_jsonl.splits': splits, 'SHORTLIST': 1024,
    'LATENCY_BATCHES': (1,), 'LATENCY_ROWS': 4, 'LATENCY_TURNS': 7,
  }  # fmt: skip


def _smollm2_whole(folder: pathlib.Path) -> Settings:
  return _smollm2(folder) | {'TASK_FEATURE_LENGTHS': {'inputs': 128, 'targets': WHOLE}}


def _smollm2_whole_sweeps() -> Iterator[Settings]:
  rules = {
    'lossless': None,
    'opt': [-0.1, 0.0, 0.3, 0.5],
    'bild': [0.7],
    'typical': [0.3],
    'token_v2': [0.1],
    'token_v3': [0.3],
  }
  yield {'TEMPERATURES': (0.0, 1.0), 'GAMMAS': (3,), 'RULES': rules, 'TOKEN_CASCADES': {}}


def _tanaka(folder: pathlib.Path) -> Settings:
  path = folder.parent / 'data' / 'tanaka' / 'validation.jsonl'
  return {
    'SMALL_CHECKPOINT_PATH': folder / 'xent',
    'TASK': '@local.local_jsonl()',
    'local.local_jsonl.name': repr('tanaka'),
    'local.local_jsonl.splits': {'validation': str(path)},
    'local.local_jsonl.metrics': ('bleu_char',),
    'TASK_FEATURE_LENGTHS': {'inputs': 24, 'targets': 24},
    'BATCH_SIZE': 250,
  }


def _smollm2_timed_sweeps() -> Iterator[Settings]:
  rules = {
    'lossless': None,
    'chow': [0.3],
    'opt': [-0.1, 0.3],
    'token_v3': [0.3, 0.7],
    'typical': [0.3],
  }
  yield {'TEMPERATURES': (0.0,), 'GAMMAS': (3,), 'RULES': rules, 'TOKEN_CASCADES': {}}


def _smollm2_sweeps() -> Iterator[Settings]:
  greedy, cascades = [name for name in NAMES if name not in REPEATED], _two_alphas(('chow',))
  few = {'lossless': None, 'opt': [-0.1]}
  for temperatures, rules, gammas, sequential in (
    ((0.0,), _two_alphas(greedy), (5,), cascades),
    ((1.0,), _two_alphas(NAMES), (5,), cascades),
    ((0.5,), few, (5,), {}),
    ((0.0, 1.0), few, (1, 3, 7), {}),
  ):
    yield {
      'TEMPERATURES': temperatures, 'GAMMAS': gammas, 'RULES': rules, 'TOKEN_CASCADES': sequential,
    }  # fmt: skip


class Pair(NamedTuple):
  """Models, rows and points of a frontier.

  Attributes:
    settings: Function from the folder of the models to settings of the program.
    split: Split that is answered.
    sweeps: Settings of its runs, which add points to one folder.
  """

  settings: Callable[[pathlib.Path], Settings]
  split: str
  sweeps: Callable[[], Iterator[Settings]]


PAIRS = {
  'demo': Pair(
    lambda folder: {
      'SMALL_CHECKPOINT_PATH': folder / 'xent',
      'MIXTURE_OR_TASK_NAME': 'cmudict_g2p',
      'TASK_FEATURE_LENGTHS': {'inputs': 24, 'targets': 24},
      'BATCH_SIZE': 512,
    },
    'validation',
    lambda: iter([{'TEMPERATURES': (0.0, 1.0), 'RULES': USUAL}]),
  ),
  'smollm2': Pair(_smollm2, 'test', _smollm2_sweeps),
  'smollm2_timed': Pair(_smollm2_timed, 'test', _smollm2_timed_sweeps),
  'smollm2_whole': Pair(_smollm2_whole, 'test', _smollm2_whole_sweeps),
  'tanaka': Pair(
    _tanaka, 'validation', lambda: iter([{'TEMPERATURES': (0.0, 1.0), 'RULES': USUAL}])
  ),
}


def run(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Numbers of the frontier of a pair, after the points that are missing."""
  pair, output = PAIRS[name], folder / f'speculation_{name}'
  settings = {
    'LARGE_CHECKPOINT_PATH': folder / 'large',
    'SPECULATE_OUTPUT_DIR': output,
    'SPLITS': pair.split,
    **pair.settings(folder),
  }
  for sweep in pair.sweeps():
    bindings = [f'--gin.{name}={value}' for name, value in {**settings, **sweep}.items()]
    words = ['-m', 'cascades.speculate', '--gin_file=runs/speculate.gin', *bindings]
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
      raise SystemExit(done.returncode)  # it has said why
  report = output if pair.split == 'test' else output / pair.split
  numbers: dict[str, Any] = json.loads((report / 'frontier.json').read_text())
  return numbers


def rows(frontier: Mapping[str, Any]) -> Iterator[Measured]:
  """Quality and costs of each point."""
  metric = frontier['metric']
  for point in frontier['points']:
    difference, name = point['difference'], point['name']
    note = f'{difference["value"]:+.4f} ({difference["low"]:+.4f} to {difference["high"]:+.4f})'
    yield Measured(f'{name}: {metric}', point['quality'], '', note=note)
    for size, seconds in point['seconds'].items():
      modeled = point['modeled'].get(size)
      note = '' if modeled is None else f'modeled {modeled:.2f}'
      yield Measured(f'{name}: relative seconds, batch {size}', seconds, '', note=note)
    yield Measured(f'{name}: large calls', point['large_calls'], '')
    if point['rejection_rate'] is not None:
      yield Measured(f'{name}: rejection rate', point['rejection_rate'], '')
    note = f'{point["length_low"]:.4f} to {point["length_high"]:.4f}, {point["tokens"]:.1f} tokens'
    yield Measured(f'{name}: relative length', point['length'], '', note=note)
    yield Measured(f'{name}: FLOPs', point['flops'], '')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--pair', choices=PAIRS, default='demo')
  parser.add_argument('--output', default=bars.RESULTS / 'speculation_frontier.json')
  options = parser.parse_args()
  frontier = run(options.pair, options.folder.absolute())
  split = PAIRS[options.pair].split
  settings = {'pair': options.pair, 'split': split, 'rows': frontier['rows']}
  details = {'methods': frontier['methods'], 'sequence': frontier['sequence']}
  bars.report(
    f'Speculation on the pair {options.pair}', list(rows(frontier)), options.output,
    settings, details,
  )  # fmt: skip


if __name__ == '__main__':
  main()
