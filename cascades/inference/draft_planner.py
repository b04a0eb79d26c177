"""Numbers of drafts of least expected time, from measured steps and the answers so far."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascades import speculative
from cascades.inference.speculation import DraftPlan, Speculation
from cascades.types import Generation

BINS = 100  # estimates of the acceptance that a plan distinguishes, besides 0
PRIOR = 16.0  # drafts that earlier answers weigh in a row's estimate
START = 0.8  # acceptance before the first answer
MEMORY = 0.9  # share of the earlier counts that stays after each batch
SAVING = 0.05  # share of the time that drafts must save, more than the measured steps are off by
TRIALS = 3  # batches with drafts, and without, that are timed before their times decide
RECENT = 9  # timed batches of either whose median counts
RETRY = 256  # batches until one is tried the other way, with or without drafts


class StepCosts(NamedTuple):
  """Measured seconds of the steps of two models, for batches of one size.

  Attributes:
    small: Seconds of the small model over one token.
    large: Seconds of the large model over 1, 2, ... gamma + 1 tokens.
  """

  small: float
  large: Sequence[float]


class DraftPlanner:
  """Numbers of drafts of least expected time, from measured steps and counts of earlier batches.

  Where a rule can do without drafts, batches with and without them are timed too, by turns at
  first, and drafts that take longer than none are not planned, whatever the steps promise.

  Attributes:
    blocks: Most drafts of the programs that batches run by: few numbers, since each is compiled.
    promised: Number of drafts by the measured steps alone; while it is 0, no batch's time counts.
    drafts: Number of drafts at this estimate; 0 where they were timed and took longer than none.
    timed: True when both ways were timed often enough to decide.
  """

  def __init__(self, costs: StepCosts, *, lossless: bool) -> None:
    """Computes the best number of drafts at each acceptance.

    Args:
      costs: Seconds of the steps; as many as the largest number of drafts needs.
      lossless: True if the rule is, so that the large model can do without the small one, and the
        small one need not read its last draft.
    """
    seconds = np.asarray(costs.large) / costs.large[0]
    most, least = len(seconds) - 1, 0 if lossless else 1  # other rules need both models
    self.lengths = np.array([
      speculative.best_gamma(
        estimate, costs.small / costs.large[0], most=most, least=least, large=seconds.tolist(),
        last_draft=float(not lossless), least_saving=SAVING,
      )
      for estimate in np.linspace(0, 1, BINS + 1)
    ], np.int32)  # fmt: skip
    self.blocks = sorted({least, most, *(1 << power for power in range(most.bit_length()))})
    self.lossless = lossless
    self.accepted, self.rejected = START * PRIOR, (1 - START) * PRIOR
    self.paces = {drafted: collections.deque[float](maxlen=RECENT) for drafted in (True, False)}
    self.batches = 0  # since the last that was tried the other way
    self._settle()

  @property
  def acceptance(self) -> float:
    """Estimate of the share of drafts that are accepted."""
    return self.accepted / (self.accepted + self.rejected)

  @property
  def times_alone(self) -> bool:
    """True if a batch without drafts is to be timed, which takes long beside a short answer.

    Where drafts were found not to pay, only the last batches before the next trial are.
    """
    if not self.promised:
      return False
    return self.drafts > 0 or not self.timed or self.batches >= RETRY - RECENT

  def _settle(self) -> None:
    """Decide by counts and times, once they have changed: for each batch it would take long."""
    self.promised = self.drafts = int(self.lengths[round(self.acceptance * BINS)])
    self.timed = min(map(len, self.paces.values())) >= TRIALS
    if self.timed:
      drafted, alone = map(statistics.median, (self.paces[True], self.paces[False]))
      self.drafts = 0 if drafted > alone else self.promised

  def next_drafts(self) -> int:
    """Number of drafts of the next batch, which now and then is a trial of the other way."""
    if not self.lossless:
      return self.drafts
    self.batches = (self.batches + 1) % RETRY
    if self.batches and not self.promised:
      return 0
    drafts = self.drafts
    if self.promised and not self.timed:
      other = len(self.paces[True]) > len(self.paces[False])
    else:
      other = not self.batches
    if not other:
      return drafts
    return 0 if drafts else max(self.promised, min(1, self.blocks[-1]))

  def plan(self, drafts: int) -> DraftPlan:
    """Plan of a batch, in which earlier answers weigh as PRIOR drafts of the row.

    A batch that drafts on trial has `drafts` at any estimate.
    """
    lengths = self.lengths if self.drafts else np.full_like(self.lengths, drafts)
    prior = PRIOR * np.array([self.acceptance, 1 - self.acceptance], np.float32)
    return DraftPlan(lengths, *prior)  # of NumPy, which a program takes sooner than JAX's

  def update(self, answers: Speculation | Generation, seconds: float | None) -> None:
    """Count the drafts of a batch, and its seconds by the tokens of the longest answer.

    Args:
      answers: Those of the batch; without counts if the large model answered alone.
      seconds: Time that it took; None for a batch whose time says nothing.
    """
    drafted = isinstance(answers, Speculation)
    if isinstance(answers, Speculation):
      self.accepted = MEMORY * self.accepted + float(np.sum(answers.counts.accepted))
      self.rejected = MEMORY * self.rejected + float(np.sum(answers.counts.rejected))
      answers = answers.answer
    longest = int(np.max(np.sum(answers.mask, 1)))
    if seconds is not None and longest:
      self.paces[drafted].append(seconds / longest)
    self._settle()
