"""The loop of a training run: steps, and at intervals a log line, a validation, a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax

from cascades.types import Batch

State = TypeVar('State')
Values: TypeAlias = dict[str, float]
Sums: TypeAlias = Mapping[str, Any]
# From the state before an update, and the update's number, counted from 1.
Batches: TypeAlias = Callable[[State, int], Batch]

AGREEMENT = ('both', 'only_small', 'only_large', 'neither')


class Intervals(NamedTuple):
  """Intervals in steps, 0 for never. The last step logs, validates and saves in any case.

  Attributes:
    log: steps between two log lines.
    validate: steps between two validations.
    save: steps between two checkpoints.
  """

  log: int
  validate: int
  save: int

  def due(self, step: int, total: int) -> Due:
    """Selects what `run` does after `step` of `total` steps."""
    log, validate, save = (n > 0 and (step % n == 0 or step == total) for n in self)
    # A checkpoint is judged by a validation of its own, and neither goes unreported.
    validate |= save and self.validate > 0
    return Due(log or validate or save, validate, save)


class Due(NamedTuple):
  """Actions that are due after a step."""

  log: bool
  validate: bool
  save: bool


def run(
  state: State,
  step: Callable[[State, Batch], tuple[State, Sums]],
  batches: Batches[State],
  *,
  start: int,
  total: int,
  intervals: Intervals,
  report: Callable[[int, Values, float], None],
  validate: Callable[[State], Values],
  save: Callable[[int, State, Values], None],
  on_rejected: Callable[[int, Sums], None],
  asked_to_stop: Callable[[int], bool],
  profile: Callable[[int], AbstractContextManager[None]],
) -> list[Values]:
  """Runs the steps `start + 1` to `total`, fewer if it is asked to stop.

  Args:
    state: the state after step `start`; `step` may donate it.
    step: maps the state and a batch to the next state and the sums of the batch.
    batches: gives each step's batch. An iterator that does not depend on the state is passed as
      `lambda state, step: next(iterator)`.
    start: the steps that were taken before.
    total: the last step.
    intervals: of log lines, validations and checkpoints.
    report: called with the step, its values, and the target tokens since the last report; the
      first time right after the first step, without values.
    validate: maps a state to values, which are reported with the step's.
    save: called with the step, its state and its values.
    on_rejected: called with each step since the last report whose update was not applied, and its
      sums, before anything is saved.
    asked_to_stop: whether to save and return after this step.
    profile: a context for each step.

  Returns:
    The values of every report.
  """
  history: list[Values] = []
  sums: list[Sums] = []
  reported = start
  for number in range(start + 1, total + 1):
    with profile(number):
      state, step_sums = step(state, batches(state, number))
    sums.append(step_sums)
    due = intervals.due(number, total)
    if number == start + 1:
      jax.block_until_ready(step_sums)
      report(number, {}, float(step_sums['tokens']))
      reported = number
    stopping = number < total and asked_to_stop(number)
    if stopping:  # without a validation: there may be seconds left
      due = Due(True, False, True)
    if not due.log:
      continue
    fetched = jax.device_get(sums)
    values = _applied_values(fetched)
    for rejected, step_sums in enumerate(fetched, number - len(sums) + 1):
      if not step_sums['applied']:
        on_rejected(rejected, step_sums)
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


def _applied_values(sums: Sequence[Sums]) -> Values:
  """Means over the steps that were applied, and the number of those that were not, if any."""
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
