"""Time and memory of comparing large tables.

    python -m benchmarks.evaluate_scale
    python -m benchmarks.evaluate_scale --rows 10000 100000 --command_rows 0

Compares four small models beside a large one under ten scores with 1,000 resamples, once for each
number of rows, each in a process of its own on two cores. Tables are made in memory: answers are
right or wrong at random, and all scores distinct. `--command_rows` then writes such tables to disk
and times `python -m cascades.evaluate` on them, under the rules of the paper; 0 leaves this out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent import futures

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import deferral
from cascades.evaluation.compare import compare
from cascades.evaluation.comparison import Settings
from cascades.predictions import rows, shards
from cascades.types import Predictions, Score

SKILLS = {'a': 0.4, 'b': 0.45, 'c': 0.5, 'd': 0.55}
LARGE_SKILL = 0.7
TOKENS = 8
SECONDS, GIBIBYTES, SLOPE = 600, 8, 1.1


def manifest(count: int, size: float) -> dict[str, object]:
  return {
    'version': 1, 'task': 'scale', 'split': 'test', 'mode': 'predict', 'rows': count, 'shards': 4,
    'model': {}, 'parameters': int(size), 'flops_per_token': 2 * size, 'checkpoint': str(size),
    'step': 1, 'vocabulary': 'none', 'decoding': {'sampler': 'greedy'}, 'precision': 'float32',
    'metrics': ['accuracy'], 'config': '',
  }  # fmt: skip


def tables(count: int) -> tuple[dict[str, list[Predictions]], list[Predictions]]:
  """Tables of the small models and of the large one; rows share difficulty, not luck."""
  generator = np.random.default_rng(0)
  difficulty = generator.normal(size=count)
  texts = [f'row {i}' for i in range(count)]
  targets, answers = [('yes',)] * count, ('no', 'yes')

  def table(skill: float, size: float) -> Predictions:
    right = generator.normal(size=count) * 0.5 + difficulty < np.quantile(difficulty, skill)
    logprobs = -generator.exponential(np.exp(difficulty)[:, None], size=(count, TOKENS))
    return Predictions(
      task='scale', split='test', ids=texts, inputs=texts, targets=targets,
      predictions=[answers[x] for x in right.tolist()], token_logprobs=logprobs.ravel(),
      lengths=np.full(count, TOKENS),
      statistics={'accuracy': np.stack([right, np.ones(count)], axis=1)},
      manifest=manifest(count, size),
    )  # fmt: skip

  small = {name: [table(skill, 1000)] for name, skill in SKILLS.items()}
  return small, [table(LARGE_SKILL, 8000)]


def position(index: int) -> Score:
  """Minus the log-probability of one token."""
  return lambda table: -table.token_logprobs.reshape(-1, TOKENS)[:, index]


def scores() -> Mapping[str, Score]:
  """Rules of the paper, and single tokens until there are ten."""
  by_name = {name: deferral.as_score(rule) for name, rule in deferral.PAPER.items()}
  return by_name | {f'token {i}': position(i) for i in range(1, 11 - len(by_name))}


def measure(count: int, resamples: int) -> tuple[float, float]:
  """Seconds of a comparison in this process, and its peak of memory in GiB."""
  small, large = tables(count)
  started = time.perf_counter()
  compare(small, large, scores=scores(), settings=Settings(resamples=resamples))
  seconds = time.perf_counter() - started
  return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write(directory: pathlib.Path, table: Predictions) -> None:
  """Writes a table as inference does."""
  logprobs, statistics = table.logprobs, table.statistics['accuracy'].tolist()
  count, number = table.manifest['shards'], len(table.ids)
  for index in range(count):
    records = (
      rows.build(
        id=table.ids[i], inputs=table.inputs[i], targets=list(table.targets[i]),
        answer=table.predictions[i], tokens=[7] * TOKENS, logprobs=logprobs[i],
        statistics={'accuracy': statistics[i]},
      )
      for i in shards.shard_rows(number, index, count)
    )  # fmt: skip
    shards.write_shard(directory, table.task, 'predict', index, count, records)
  shards.write_manifest(directory, table.manifest)


def measure_command(count: int, resamples: int) -> tuple[float, float]:
  """Seconds of the command on tables on disk, and its peak of memory in GiB."""
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    small, large = tables(count)
    for name, own in {**small, 'large': large}.items():
      write(root / name / 'test', own[0])
    command = [
      sys.executable, '-m', 'cascades.evaluate', '--gin_file=runs/evaluate.gin',
      f'--gin.SMALL={ {name: str(root / name) for name in small} }',
      f'--gin.LARGE={str(root / "large")!r}', f'--gin.EVAL_OUTPUT_DIR={str(root / "report")!r}',
      f'--gin.RESAMPLES={resamples}',
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
  return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, nargs='+', default=[10_000, 100_000, 1_000_000])
  parser.add_argument('--command_rows', type=int, default=200_000)
  parser.add_argument('--resamples', type=int, default=1000)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', default=bars.RESULTS / 'evaluate_scale.json')
  options = parser.parse_args()
  bars.use_cores(options.cores)
  spawn = multiprocessing.get_context('spawn')
  measured, seconds = [], []
  for count in options.rows:
    with futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
      duration, peak = pool.submit(measure, count, options.resamples).result()
    print(f'{count:,} rows: {duration:.1f} s, {peak:.2f} GiB', flush=True)
    seconds.append(duration)
    measured += [
      Measured(f'comparison, {count:,} rows', duration, 's', at_most=SECONDS),
      Measured(f'peak memory, {count:,} rows', peak, 'GiB', at_most=GIBIBYTES),
    ]
  if len(seconds) > 1:
    slope = np.polyfit(np.log(options.rows), np.log(seconds), 1)[0]
    measured.append(Measured('slope of log time over log rows', float(slope), '', at_most=SLOPE))
  if count := options.command_rows:
    with futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
      duration, peak = pool.submit(measure_command, count, options.resamples).result()
    measured += [
      Measured(f'the command, {count:,} rows on disk', duration, 's', at_most=SECONDS),
      Measured(f'its peak memory, {count:,} rows', peak, 'GiB', at_most=GIBIBYTES),
    ]
  bars.report('comparison of large tables', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
