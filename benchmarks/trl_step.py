"""A distillation step compared with that of TRL's DistillationTrainer on given answers.

    pip install -c constraints.txt '.[reference]'
    python -m benchmarks.trl_step

Same shapes, same batch, float32, AdamW, a vocabulary of 49,152. TRL's step is what its trainer does
behind sampling: hidden states of both models, its chunked divergence and its gradient, and the
update. Each side runs in a process of its own, so that the peak of memory is its own; they take
turns, and ratios are of medians. Memory is that of the whole process, and what is above the process
behind a step of tiny models, which has the imports, the runtime and most of the compiler. JAX is
imported on TRL's side for this benchmark alone, and what that takes is not counted there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks import bars, training_step
from benchmarks.bars import Measured
from benchmarks.training_step import Step
from cascades import losses
from cascades.runtime import partitioning
from cascades.types import Batch

VOCABULARY = 49_152
TINY = {'vocab_size': 128, 'emb_dim': 8, 'num_layers': 1, 'num_heads': 1, 'num_kv_heads': 1,
        'head_dim': 8, 'mlp_dim': 16}  # fmt: skip
DIVERGENCES = {'fkl': (losses.distillspec_fkl, 0.0), 'jsd': (losses.distillspec_jsd, 0.5)}
SIDES = ('cascades', 'trl')


def models() -> list[Any]:
  """Configurations of the small and of the large model."""
  return [
    dataclasses.replace(config, vocab_size=VOCABULARY) for config in training_step.MODELS['llama']
  ]


def trl_step(small: Any, large: Any, rows: Batch, beta: float) -> Step:
  """One update by TRL's divergence."""
  import torch
  from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  student, teacher = training_step.twin(small).train(), training_step.twin(large).eval()
  optimizer = torch.optim.AdamW(student.parameters(), 1e-3, weight_decay=0.0)
  inputs = torch.tensor(np.asarray(rows.inputs)).long()
  counted = torch.tensor(np.asarray(rows.weights) > 0)

  def step() -> None:
    optimizer.zero_grad()
    with torch.no_grad():
      taught = teacher.model(input_ids=inputs).last_hidden_state[counted]
    own = student.model(input_ids=inputs).last_hidden_state[counted]
    by_token, _ = ChunkedDivergenceFunction.apply(
      own, student.lm_head.weight, None, taught, teacher.lm_head.weight, None, beta
    )
    by_token.mean().backward()
    optimizer.step()

  return step


def step_of(name: str, divergence: str, small: Any, large: Any) -> Step:
  """A step of one side."""
  loss, beta = DIVERGENCES[divergence]
  rows = training_step.batch('decoder_only')
  tokens = (rows.inputs % small.vocab_size, rows.targets % small.vocab_size)
  rows = rows._replace(inputs=tokens[0], targets=tokens[1])
  if name == 'trl':
    return trl_step(small, large, rows, beta)
  return training_step.ours(small, large, loss, itertools.repeat(rows))


def resident() -> int:
  """Bytes of this process in memory."""
  memory = bars.memory()
  return memory['private'] + memory['mapped']


def side(name: str, divergence: str) -> None:
  """Print the memory of a tiny step, then for each input line the seconds and peak of a step."""
  foreign = resident() if name == 'trl' else 0
  small, large = models()
  tiny = [dataclasses.replace(config, **TINY) for config in (small, large)]
  step_of(name, divergence, *tiny)()
  print(json.dumps(resident() - foreign), flush=True)
  step = step_of(name, divergence, small, large)
  for _ in range(3):
    step()
  print('ready', flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, bars.memory()['peak'] - foreign]), flush=True)


def measured(turns: int) -> Iterator[Measured]:
  """Ratios of each divergence."""
  for divergence in DIVERGENCES:
    processes = {
      name: subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.trl_step', '--side', name, '--divergence', divergence],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
      )
      for name in SIDES
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in SIDES}
    peaks = dict.fromkeys(SIDES, 0.0)
    empty: dict[str, float] = {}
    for name, process in processes.items():
      assert process.stdout is not None
      empty[name] = float(process.stdout.readline() or 'nan')
      if process.stdout.readline().strip() != 'ready':
        raise SystemExit('a side did not start: see its message above.')
    for _ in range(turns):
      for name, process in processes.items():
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write('\n')
        process.stdin.flush()
        seconds, peaks[name] = json.loads(process.stdout.readline())
        times[name].append(seconds)
    for process in processes.values():
      process.communicate()
    medians = {name: float(np.median(values)) for name, values in times.items()}
    note = ', '.join(f'{name} {1e3 * medians[name]:.0f} ms' for name in SIDES)
    yield Measured(
      f'{divergence}: TRL / cascades, seconds of a step', medians['trl'] / medians['cascades'], '',
      at_least=1.2, note=note,
    )  # fmt: skip
    above = {name: peaks[name] - empty[name] for name in SIDES}
    for what, amounts, bar in (
      ('peak of memory', peaks, 0.6),
      ('the peak above a tiny step', above, None),
    ):
      note = ', '.join(f'{name} {amounts[name] / 2**20:.0f} MiB' for name in SIDES)
      ratio = amounts['cascades'] / amounts['trl']
      yield Measured(f'{divergence}: cascades / TRL, {what}', ratio, '', at_most=bar, note=note)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--turns', type=int, default=9)
  parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
  parser.add_argument('--divergence', choices=list(DIVERGENCES), help=argparse.SUPPRESS)
  parser.add_argument('--output', default=bars.RESULTS / 'trl_step.json')
  options = parser.parse_args()
  if options.side:
    jax.config.update('jax_platforms', 'cpu')
    with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
      side(options.side, options.divergence)
    return
  settings = {
    'turns': options.turns, 'vocabulary': VOCABULARY, 'rows': training_step.ROWS,
    'tokens': training_step.SOURCE + training_step.TARGET, 'counted': training_step.TARGET,
  }  # fmt: skip
  bars.report('Distillation step and TRL', measured(options.turns), options.output, settings)


if __name__ == '__main__':
  main()
