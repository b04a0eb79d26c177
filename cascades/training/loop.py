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
  refuse: Callable[[int, Sums], None],
  asked_to_stop: Callable[[int], bool],
  profile: Callable[[int], AbstractContextManager[None]],
) -> list[Values]:
  """Steps `start + 1` to `total`, or to where it is asked to stop; the values of every report.

  `report` gets the step, its values and the target tokens since the last report, the first time
  right after the first step, without values. `refuse` gets each step since the last report whose
  update was not applied, before anything is saved. A run that is asked to stop saves first.
  """
  history: list[Values] = []
  sums: list[Sums] = []
  reported = start
  for number in range(start + 1, total + 1):
    with profile(number):
      state, step_sums = step(state, next(batches))
    sums.append(step_sums)
    due = every.due(number, total)
    if number == start + 1:
      jax.block_until_ready(step_sums)
      report(number, {}, float(step_sums['tokens']))
      reported = number
    stopping = number < total and asked_to_stop(number)
    if stopping:  # without a validation: there may be seconds left
      due = Every(True, False, True)
    if not due.log:
      continue
    fetched = jax.device_get(sums)
    values = _values(fetched)
    for refused, step_sums in enumerate(fetched, number - len(sums) + 1):
      if not step_sums['applied']:
        refuse(refused, step_sums)
    if due.validate:
      values |= validate(state)
    history.append(values)
    unreported = fetched[len(fetched) - (number - reported) :]
    report(number, values, float(sum(s['tokens'] for s in unreported)))
    reported = number
    if due.save:
      save(number, state, values)
    if stopping:
      break
    sums = []
  return history


def _values(sums: Sequence[Sums]) -> Values:
  """Of the steps that were applied; how many were not, if any."""
  applied = [step_sums for step_sums in sums if step_sums['applied']]
  values = means(applied) | {'grad_norm': float(applied[-1]['grad_norm'])} if applied else {}
  skipped = len(sums) - len(applied)
  return values | ({'skipped': float(skipped)} if skipped else {})


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
