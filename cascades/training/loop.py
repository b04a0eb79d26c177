"""The loop of a training run: steps, and at intervals a log line, a validation, a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args

import jax

from cascades.data.answer_sources import AnswerSource
from cascades.types import Batch

State = TypeVar('State')
Values: TypeAlias = dict[str, float]
Sums: TypeAlias = Mapping[str, Any]
# From the state before an update, and the update's number, counted from 1.
Batches: TypeAlias = Callable[[State, int], Batch]

# Lines besides those of the interval: how a run goes is seen soon, however slow the machine.
STEPS_TO_LINE = 10
SECONDS_TO_LINE = 60.0
STEPS_PER_FETCH = 100

AGREEMENT = ('both', 'only_small', 'only_large', 'neither')
SOURCES = get_args(AnswerSource)


class Intervals(NamedTuple):
  """Intervals in steps. The last step logs and saves in any case.

  Attributes:
    log: steps between two log lines; 0 for none but the last.
    validate: steps between two validations; 0 for none, otherwise the last step validates too.
    save: steps between two checkpoints; 0 for none but the last.
  """

  log: int
  validate: int
  save: int

  def due(self, step: int, total: int) -> Due:
    """Selects what `run` does after `step` of `total` steps."""
    log, validate, save = (step == total or (n > 0 and step % n == 0) for n in self)
    # A checkpoint is judged by a validation of its own, and neither goes unreported.
    validate = self.validate > 0 and (validate or save)
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
  window = _Window(on_rejected)
  line_at = math.inf
  for number in range(start + 1, total + 1):
    with profile(number):
      state, step_sums = step(state, batches(state, number))
    window.add(number, step_sums)
    due = intervals.due(number, total)
    if number == start + 1:
      jax.block_until_ready(step_sums)
      report(number, {}, window.take_tokens())
      if jax.process_count() == 1:  # several would not agree on the time
        line_at = time.monotonic() + SECONDS_TO_LINE
    stopping = number < total and asked_to_stop(number)
    if stopping:  # without a validation: there may be seconds left
      due = Due(True, False, True)
    is_late = time.monotonic() >= line_at
    is_early = is_late or (number == STEPS_TO_LINE < intervals.log)
    if not due.log and not (is_early and intervals.log):
      continue
    line_at = math.inf if is_late else line_at
    # An early line leaves the others as they are, so that a run that resumes logs the same.
    values = window.take_values() if due.log else window.values()
    if due.validate:
      values |= validate(state)
    history.append(values)
    report(number, values, window.take_tokens())
    if due.save:
      save(number, state, values)
    if stopping:
      break
  return history


class _Window:
  """Sums of the steps since the last due line. They are fetched in time, so that few are held."""

  def __init__(self, on_rejected: Callable[[int, Sums], None]):
    self._on_rejected = on_rejected
    self._pending: list[tuple[int, Sums]] = []
    self._applied: list[Sums] = []
    self._grad_norm = math.nan  # of the last step that was applied
    self._skipped = 0
    self._tokens = 0.0

  def add(self, number: int, sums: Sums) -> None:
    """Takes the sums of a step."""
    self._pending.append((number, sums))
    if len(self._pending) >= STEPS_PER_FETCH:
      self._fetch()

  def take_tokens(self) -> float:
    """Target tokens since the last call."""
    self._fetch()
    tokens, self._tokens = self._tokens, 0.0
    return tokens

  def values(self) -> Values:
    """Means over the steps that were applied, and the number of those that were not, if any."""
    self._fetch()
    values = means(self._applied) | {'grad_norm': self._grad_norm} if self._applied else {}
    return values | ({'skipped': float(self._skipped)} if self._skipped else {})

  def take_values(self) -> Values:
    """The same; the next ones are of later steps."""
    values = self.values()
    self._applied, self._skipped = [], 0
    return values

  def _fetch(self) -> None:
    numbers, pending = [number for number, _ in self._pending], [sums for _, sums in self._pending]
    self._pending = []
    for number, sums in zip(numbers, jax.device_get(pending), strict=True):
      self._tokens += float(sums['tokens'])
      if sums['applied']:
        self._applied.append(sums)
        self._grad_norm = float(sums['grad_norm'])
      else:
        self._skipped += 1
        self._on_rejected(number, sums)
    if len(self._applied) > STEPS_PER_FETCH:
      self._applied = [_total(self._applied)]


def _total(sums: Sequence[Sums]) -> Values:
  names = [name for name in sums[0] if all(name in s for s in sums)]  # teachers may have left
  return {name: math.fsum(float(s[name]) for s in sums) for name in names}


def means(sums: Sequence[Sums]) -> Values:
  """Mean loss, accuracy per valid token, and the share of rows whose tokens are all right.

  With a large model also the shares of tokens that both, one, or neither predicts. With several
  sources of answers also the share of steps of each, and the mean age of samples in steps.
  """
  total = _total(sums)
  shares = {name: total[name] / total['tokens'] for name in AGREEMENT if name in total}
  correct = total['correct'] if 'correct' in total else total['both'] + total['only_small']
  steps = sum(total.get(name, 0.0) for name in SOURCES)
  sources = {f'data/{name}': total[name] / steps for name in SOURCES if steps}
  if total.get('on_policy'):
    sources['data/sample_age'] = total['sample_age'] / total['on_policy']
  rows = {'row_accuracy': total['rows_right'] / total['rows']} if total.get('rows') else {}
  return {
    'loss': total['loss'] / total.get('weight', total['tokens']),
    'accuracy': correct / total['tokens'],
    **rows,
    **shares,
    **sources,
  }


def large_means(sums: Sequence[Sums]) -> Values:
  """Accuracy of the large model per valid token and per row; empty without a large model."""
  total = _total(sums)
  if 'both' not in total or not total.get('rows'):
    return {}
  return {
    'large_accuracy': (total['both'] + total['only_large']) / total['tokens'],
    'large_row_accuracy': total['rows_right_large'] / total['rows'],
  }
