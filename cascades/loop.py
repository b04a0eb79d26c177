"""The loop of a training run: steps, and every so often a log line, a validation, a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import jax

from cascades.types import Batch

Values: TypeAlias = dict[str, float]
Sums: TypeAlias = Mapping[str, Any]

AGREEMENT = ('both', 'only_small', 'only_large', 'neither')


class Every(NamedTuple):
  """After how many steps the loop does what, 0 for never. The last step does all of it."""

  log: int
  validate: int
  save: int

  def due(self, step: int, total: int) -> Every:
    log, validate, save = (n > 0 and (step % n == 0 or step == total) for n in self)
    # A checkpoint is judged by a validation of its own, and neither goes unreported.
    validate |= save and self.validate > 0
    return Every(log or validate or save, validate, save)


def run(
  state: Any,
  step: Callable[[Any, Batch], tuple[Any, Sums]],
  batches: Iterator[Batch],
  *,
  start: int,
  total: int,
  every: Every,
  report: Callable[[int, Values, float], None],
  validate: Callable[[Any], Values],
  save: Callable[[int, Any, Values], None],
  profile: Callable[[int], AbstractContextManager[None]],
) -> list[Values]:
  """Steps `start + 1` to `total`; returns the values of every report.

  `report` gets the step, its values and the target tokens since the last report, the first time
  right after the first step, without values. Raises FloatingPointError, before anything is saved,
  if a loss or a gradient since the last report is not finite.
  """
  history: list[Values] = []
  sums: list[Sums] = []
  for number in range(start + 1, total + 1):
    with profile(number):
      state, step_sums = step(state, next(batches))
    sums.append(step_sums)
    due = every.due(number, total)
    if number == start + 1:
      jax.block_until_ready(step_sums)
      report(number, {}, 0.0)
    if not due.log:
      continue
    fetched = jax.device_get(sums)
    _check_finite(number - len(sums), fetched)
    values = means(fetched) | {'grad_norm': float(fetched[-1]['grad_norm'])}
    if due.validate:
      values |= validate(state)
    history.append(values)
    report(number, values, float(sum(s['tokens'] for s in fetched)))
    if due.save:
      save(number, state, values)
    sums = []
  return history


def means(sums: Sequence[Sums]) -> Values:
  """Loss and accuracy per valid token and, with a large model, the shares of agreement."""
  total = {name: math.fsum(float(s[name]) for s in sums) for name in sums[0]}
  shares = {name: total[name] / total['tokens'] for name in AGREEMENT if name in total}
  correct = total['correct'] if 'correct' in total else total['both'] + total['only_small']
  return {
    'loss': total['loss'] / total['tokens'],
    'accuracy': correct / total['tokens'],
    **shares,
  }


def _check_finite(before: int, sums: Sequence[Sums]) -> None:
  for number, step_sums in enumerate(sums, before + 1):
    for name in ('loss', 'grad_norm'):
      if not math.isfinite(step_sums[name]):
        raise FloatingPointError(
          f'{name} of step {number} is {step_sums[name]}. Nothing of it was '
          'saved: the last checkpoint is good. Lower the learning rate, warm it up, or clip the '
          'gradient (clip_norm).'
        )
