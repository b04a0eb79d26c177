"""Small model aided training, measured: language models of bytes that learn from a smaller one.

    taskset -c 1 nice python -m benchmarks.salt
    python -m benchmarks.salt --time
    python -m benchmarks.salt --summarize

The protocol is in docs/distillation.md. Runs real `train` commands into a directory, and skips what
is finished. Every arm trains the same model from the same initial weights on the same order of rows
in each seed; differences are paired over seeds, with Student's interval. The last validation loss
is of all validation tokens, also by thirds of the teacher's loss. FLOPs are those of
`costs.training_step`, teacher forwards and the scoring of rows included; a longer run without a
teacher gives what the same FLOPs reach alone. Seconds are those of a step without a teacher, of one
with a teacher, and of a scored batch of rows. `--time` measures them by turns and adds them to the
results of earlier runs, whose own seconds are those of a machine that other work shares.
`--summarize` computes the rows of earlier results and draws their figure.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import bars, salt_figure
from benchmarks.bars import Measured
from benchmarks.cat_seeds import over_seeds
from benchmarks.salt_figure import LABELS
from cascades import costs

STEPS, DISTILL_STEPS, LONGER = 400, 120, 450
BATCH, LENGTH = 8, 128
TOKENS = BATCH * LENGTH
TEACHER_STEPS, EARLY = 1200, 200
TRAIN_BYTES, VALIDATION_BYTES = 800_000, 260_000
SELECTED_ROWS = 0.2
SLICES = ('easy', 'medium', 'hard')
ENTRIES = 384  # of the vocabulary of bytes, in multiples of 128
BASELINE = 'BASELINE'
MODEL = {'emb_dim': 64, 'num_layers': 3, 'num_heads': 4, 'num_kv_heads': 4, 'head_dim': 16,
         'mlp_dim': 176}  # fmt: skip
TEACHER = {'emb_dim': 24, 'num_layers': 2, 'num_heads': 2, 'num_kv_heads': 2, 'head_dim': 12,
           'mlp_dim': 64}  # fmt: skip


TIMED_TURNS = 60


class Arm(NamedTuple):
  """Numbers in which the command of an arm differs.

  Fields: `steps` of the run, `distill` of them with a teacher, `selected` of them on selected rows.
  """

  steps: int = STEPS
  distill: int = 0
  selected: int = 0


ARMS = {
  BASELINE: Arm(),
  'RKD': Arm(distill=STEPS),
  'SALT': Arm(distill=DISTILL_STEPS),
  'SALT_DS': Arm(distill=DISTILL_STEPS, selected=DISTILL_STEPS),
  'SELECTION': Arm(selected=DISTILL_STEPS),
  'LONGER': Arm(steps=LONGER),
}


def write_data(
  source: pathlib.Path, directory: pathlib.Path, train_bytes: int = TRAIN_BYTES
) -> None:
  """Documents in a random order, as files in C4's format: the first ones are validation."""
  with gzip.open(source, 'rt', encoding='utf-8') as file:
    documents = [json.loads(line)['text'] for line in file]
  random.Random(0).shuffle(documents)
  directory.mkdir(parents=True, exist_ok=True)
  rest = iter(documents)
  for split, size in (('validation', VALIDATION_BYTES), ('train', train_bytes)):
    lines: list[str] = []
    while sum(map(len, lines)) < size:
      lines.append(json.dumps({'text': next(rest)}) + '\n')
    (directory / f'c4-{split}.00000-of-00001.json').write_text(''.join(lines))


def command(program: str, recipe: str, **settings: Any) -> None:
  bindings = [f'--gin.{name.replace("__", ".")}={value}' for name, value in settings.items()]
  subprocess.run(
    [sys.executable, '-m', f'cascades.{program}', f'--gin_file={recipe}', *bindings], check=True
  )


def train(root: pathlib.Path, name: str, sizes: Mapping[str, int], arm: Arm, seed: int) -> None:
  """Trains a run unless it is finished."""
  if (root / name / f'checkpoint_{arm.steps}').exists():
    return
  teacher = {'TEACHER_CHECKPOINT_PATH': root / 'teacher'} if arm.distill else {}
  chosen = (
    {'SELECTED': root / 'scores', 'SELECTED_ROWS': SELECTED_ROWS, 'SELECTED_STEPS': arm.selected}
    if arm.selected
    else {}
  )
  command(
    'train', 'recipes/salt_lm.gin', DATA_DIR=root / 'data', RECORDS_DIR=root / 'records',
    MODEL_DIR=root / name, SEED=seed, TRAIN_STEPS=arm.steps, DISTILL_STEPS=arm.distill,
    BATCH_SIZE=BATCH, VALIDATE_EVERY=50, VALIDATION_ROWS=256, LOG_EVERY=50, SAVE_EVERY=200,
    KEEP=10, **teacher, **chosen, **{f'decoder__Config__{k}': v for k, v in sizes.items()},
  )  # fmt: skip


def select(root: pathlib.Path) -> None:
  command(
    'select', 'runs/select.gin', CHECKPOINT_PATH=root / 'teacher', WHICH=EARLY,
    SELECTED=root / 'scores', TASK='@c4.causal_lm()', c4__causal_lm__sources='@sources.Sources()',
    c4__causal_lm__length=LENGTH, TASK_FEATURE_LENGTHS={'inputs': 1, 'targets': LENGTH},
    DATA_DIR=root / 'data', RECORDS_DIR=root / 'records',
  )  # fmt: skip


def losses(run: pathlib.Path, root: pathlib.Path) -> np.ndarray:
  """Loss of every validation token of a run; kept in a file."""
  path = run / 'validation_losses.npz'
  if path.exists():
    return np.load(path)['losses']
  from cascades.data.corpus import Data
  from cascades.inference import answers, trained_model
  from cascades.runtime import partitioning
  from cascades.tasks import c4, sources

  devices = partitioning.Devices(mesh=partitioning.make_mesh)
  with devices.use():
    model = trained_model.load(trained_model.Checkpoint(str(run)), rules=devices.rules)
    task = c4.causal_lm(sources.Sources(data_dir=str(root / 'data')), length=LENGTH)
    lengths = {'inputs': 1, 'targets': LENGTH}
    data = Data(task=task, lengths=lengths, batch_size=64, records_dir=str(root / 'records'))
    corpus, scorer = data.corpus(model.vocabulary, model.architecture), answers.Scorer(model)
    split = corpus.open('validation')
    rows = [
      -scorer.score(batch).logprobs[np.asarray(batch.weights) > 0]
      for batch in corpus.ordered(split, range(len(split)), batch_size=64)
    ]
  scored = np.concatenate(rows).astype(np.float32)
  np.savez(path, losses=scored)
  return scored


def by_slice(scored: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
  """Mean loss of all tokens, and of thirds of them by the teacher's loss."""
  thirds = np.array_split(np.argsort(teacher, kind='stable'), len(SLICES))
  means = {name: float(scored[third].mean()) for name, third in zip(SLICES, thirds, strict=True)}
  return {'all': float(scored.mean()), **means}


def parameters(run: pathlib.Path) -> int:
  line = (run / 'model-info.txt').read_text().partition('\n')[0]
  return int(line.split()[1].replace(',', ''))


def flops(arm: Arm, steps: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
  """FLOPs of an arm after numbers of steps; the rows are scored before the first one."""
  plain = costs.training_step(TOKENS, parameters=sizes['model'])
  aided = costs.training_step(TOKENS, parameters=sizes['model'], teacher=sizes['teacher'])
  curve = plain * costs.aided_training(steps, distill_steps=arm.distill, kappa=aided / plain)
  return curve + bool(arm.selected) * costs.flops_per_token(sizes['teacher']) * sizes['pool tokens']


def seconds(arm: Arm, steps: np.ndarray, timed: Mapping[str, float], batches: float) -> np.ndarray:
  """Seconds of an arm after numbers of steps, from those of a step and of a scored batch."""
  kappa = timed['aided'] / timed['plain']
  curve = timed['plain'] * costs.aided_training(steps, distill_steps=arm.distill, kappa=kappa)
  return curve + bool(arm.selected) * timed['scores'] * batches


def timed_steps(turns: int = TIMED_TURNS) -> dict[str, float]:
  """Median seconds of a step without and with a teacher, and of a scored batch, by turns."""
  import jax

  from benchmarks import training_step
  from cascades import losses
  from cascades.models import decoder
  from cascades.runtime import partitioning
  from cascades.types import Batch

  model, teacher = (decoder.DecoderConfig(ENTRIES, **sizes) for sizes in (MODEL, TEACHER))
  tokens = np.random.default_rng(0).integers(3, 256, (BATCH, LENGTH)).astype(np.int32)
  rows = Batch(np.roll(tokens, 1, 1), tokens, np.ones(tokens.shape, np.float32))
  loss = functools.partial(losses.salt, omega=losses.hard_switch(0.5, steps=STEPS))
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    steps = {
      'plain': training_step.ours(model, None, loss, itertools.repeat(rows)),
      'aided': training_step.ours(model, teacher, loss, itertools.repeat(rows)),
      'scores': training_step.forward(teacher, rows),
    }
    times = training_step.by_turns(steps, turns)
  return {name: float(np.median(values)) / 1e3 for name, values in times.items()}


def curves(run: pathlib.Path) -> dict[str, list[float]]:
  """Validation losses of a run by step, and steps per second of the lines without a validation."""
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  validated = [line for line in lines if 'validation/loss' in line]
  return {
    'steps': [line['step'] for line in validated],
    'losses': [line['validation/loss'] for line in validated],
    'seconds_per_step': [
      1 / line['steps_per_second'] for line in lines if 'steps_per_second' in line
    ],
  }


def measure(root: pathlib.Path, seeds: Sequence[int]) -> dict[str, Any]:
  """Numbers of all runs, by arm and seed."""
  teacher = losses(root / 'teacher', root)
  manifest = json.loads((root / 'scores' / 'c4_causal_lm' / 'train' / 'manifest.json').read_text())
  sizes = {
    'model': parameters(root / f'{BASELINE}-{seeds[0]}'),
    'teacher': parameters(root / 'teacher'),
    'pool tokens': manifest['rows'] * LENGTH,
    'pool rows': manifest['rows'],
    'validation tokens': len(teacher),
  }
  runs: dict[str, Any] = {}
  for name, arm in ARMS.items():
    directories = [root / f'{name}-{seed}' for seed in seeds]
    curve = [curves(run) for run in directories]
    steps = np.array(curve[0]['steps'])
    runs[name] = {
      'last': [by_slice(losses(run, root), teacher) for run in directories],
      'steps': steps.tolist(),
      'flops': flops(arm, steps, sizes).tolist(),
      'curves': [own['losses'] for own in curve],
      'seconds_per_step': [float(np.median(own['seconds_per_step'])) for own in curve],
    }
  return {'sizes': sizes, 'teacher': by_slice(teacher, teacher), 'arms': runs}


def at_equal(cost: str, runs: Mapping[str, Any], name: str) -> list[float]:
  """An arm's last loss minus that which BASELINE reaches with the arm's FLOPs or seconds, by seed.

  BASELINE's loss between its own cost and that of the longer run is interpolated; both have
  schedules of their own length. Beyond that of the longer run, its loss counts.
  """
  ends = [runs[arm][cost][-1] for arm in (BASELINE, 'LONGER')]
  values = []
  for seed in range(len(runs[name]['last'])):
    reached = [runs[arm]['last'][seed]['all'] for arm in (BASELINE, 'LONGER')]
    alone = np.interp(runs[name][cost][-1], ends, reached)
    values.append(float(runs[name]['last'][seed]['all'] - alone))
  return values


def step_of(level: float, steps: Sequence[int], curve: Sequence[float]) -> float | None:
  """The step, interpolated, at which a curve falls to a level first; None if it never does."""
  reached = [number for number, loss in enumerate(curve) if loss <= level]
  if not reached:
    return None
  ends = slice(max(reached[0] - 1, 0), reached[0] + 1)
  return float(np.interp(-level, -np.array(curve[ends]), steps[ends]))


def with_interval(what: str, values: Sequence[float], unit: str = 'nats') -> Measured:
  interval = over_seeds(values)
  note = f'{interval["low"]:+.4f} .. {interval["high"]:+.4f} over seeds'
  return Measured(what, interval['mean'], unit, note=note)


def differences(run: Mapping[str, Any], other: Mapping[str, Any], tokens: str) -> list[float]:
  """Last losses of a run minus those of another one, by seed."""
  return [a[tokens] - b[tokens] for a, b in zip(run['last'], other['last'], strict=True)]


def against_baseline(name: str, runs: Mapping[str, Any]) -> list[Measured]:
  """Rows of an arm."""
  run, plain = runs[name], runs[BASELINE]
  own_costs = [cost for cost in ('flops', 'seconds') if cost in plain]
  pairs = list(zip(run['curves'], plain['curves'], strict=True))
  rows = [
    with_interval(f'{name} - {BASELINE}: {tokens}', differences(run, plain, tokens))
    for tokens in ('all', *SLICES)
  ]
  for cost in own_costs if name != 'LONGER' else ():
    equal = at_equal(cost, runs, name)
    rows.append(with_interval(f'{name} - {BASELINE}: at equal {LABELS[cost]}', equal))
  for step in (100, 200):
    at = [run['steps'].index(step), plain['steps'].index(step)]
    early = [own[at[0]] - other[at[1]] for own, other in pairs]
    rows.append(with_interval(f'{name} - {BASELINE}: after {step} steps', early))
  parity = [step_of(other[-1], run['steps'], own) for own, other in pairs]
  reached = [step for step in parity if step is not None]
  if len(reached) == len(parity):
    rows.append(with_interval(f"{name}: first step at {BASELINE}'s last loss", reached, 'steps'))
  for cost in own_costs:
    ratio = run[cost][-1] / plain[cost][-1]
    rows.append(Measured(f'{name}: {LABELS[cost]} over {BASELINE}', ratio, 'x'))
  return rows


def summarize(measured: Mapping[str, Any]) -> list[Measured]:
  runs = measured['arms']
  rows = [
    with_interval(f'{name}: validation loss', [last['all'] for last in run['last']])
    for name, run in runs.items()
  ]
  for name in runs:
    rows += against_baseline(name, runs) if name != BASELINE else []
  for name in ('RKD', 'SALT_DS') if 'SALT' in runs else ():
    rows.append(with_interval(f'{name} - SALT: all', differences(runs[name], runs['SALT'], 'all')))
  if 'timed' in measured:
    ratio = measured['timed']['aided'] / measured['timed']['plain']
    rows.append(Measured('seconds of a step with a teacher over one without', ratio, 'x'))
  return rows


def with_seconds(measured: Mapping[str, Any], timed: Mapping[str, float]) -> dict[str, Any]:
  """The numbers of all runs with the seconds of their steps."""
  batches = measured['sizes']['pool tokens'] / TOKENS
  arms = {
    name: {**run, 'seconds': seconds(ARMS[name], np.array(run['steps']), timed, batches).tolist()}
    for name, run in measured['arms'].items()
  }
  return {**measured, 'arms': arms, 'timed': dict(timed)}


def earlier(path: pathlib.Path) -> dict[str, Any]:
  """Results of earlier runs."""
  if not path.exists():
    raise SystemExit(
      f'{path} does not exist: run the benchmark first, without --time and --summarize.'
    )
  results: dict[str, Any] = json.loads(path.read_text())
  return results


def add_seconds(path: pathlib.Path, figure: pathlib.Path) -> None:
  """Measure seconds, and write results of earlier runs with them."""
  results = earlier(path)
  measured = with_seconds(results['details'], timed_steps())
  salt_figure.draw(measured['arms'], figure)
  settings = {'commit of the runs': results['commit'], **results['settings']}
  bars.report(results['title'], summarize(measured), path, settings, measured)


def summarize_again(path: pathlib.Path, figure: pathlib.Path) -> None:
  """Write the rows and the figure of earlier results."""
  results = earlier(path)
  measured = results['details']
  salt_figure.draw(measured['arms'], figure)
  where = {**results['machine'], 'commit': results['commit']}
  bars.report(
    results['title'], summarize(measured), path, results['settings'], measured, where=where
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--data', type=pathlib.Path, default='../shared/data/pretrain_en/docs.jsonl.gz'
  )
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--directory', type=pathlib.Path, default='runs/salt')
  parser.add_argument('--figure', type=pathlib.Path, default='docs/salt.png')
  parser.add_argument('--time', action='store_true', help='add seconds to results, train nothing')
  parser.add_argument('--summarize', action='store_true', help='write rows and figure of results')
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'salt.json')
  options = parser.parse_args()
  if options.time:
    return add_seconds(options.output, options.figure)
  if options.summarize:
    return summarize_again(options.output, options.figure)
  root = options.directory.resolve()
  os.environ.setdefault('XLA_FLAGS', '--xla_cpu_multi_thread_eigen=false')
  if not (root / 'data').exists():
    write_data(options.data, root / 'data')
  train(root, 'teacher', TEACHER, Arm(steps=TEACHER_STEPS), seed=100)
  select(root)
  seeds = range(options.seeds)
  for seed in seeds:
    for name, arm in ARMS.items():
      train(root, f'{name}-{seed}', MODEL, arm, seed)
  measured = measure(root, seeds)
  salt_figure.draw(measured['arms'], options.figure)
  settings = {'steps': STEPS, 'distill_steps': DISTILL_STEPS, 'teacher_steps': TEACHER_STEPS}
  settings |= {'seeds': list(seeds), 'batch': BATCH, 'length': LENGTH}
  bars.report('small model aided training', summarize(measured), options.output, settings, measured)


if __name__ == '__main__':
  main()
