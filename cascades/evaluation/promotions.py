"""Looks at audited rows: whether a new threshold is promoted, or the one before restored.

Rows arrive in order, and each is drawn once for one of two sides. A candidate is calibrated on the
rows to fit, the most recent ones of a window, and compared with the policy in force on those that
are held back. After a promotion all rows that come later compare the promoted policy with the one
before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from cascades import promotion
from cascades.evaluation import calibration
from cascades.evaluation.calibration import Demands, Judged, NotCertifiedError
from cascades.evaluation.policy import Threshold
from cascades.promotion import PromiseLosses, Verdict
from cascades.runtime import ranges

LookDecision: TypeAlias = Literal['unchanged', 'promoted', 'rolled back']

SENTENCES = {
  'repairs': 'the policy in force breaks its promise of {names} on the rows; the {other} keeps it',
  'better': 'the {other} gains {gain:.3f} ({low:.3f} to {high:.3f})',
  'both break': 'the policy in force breaks its promise of {names}, and so does the {other}',
  'promise at risk': 'the {other} may not keep its promise of {names}',
  'no gain': 'the gain of the {other}, {gain:.3f} ({low:.3f} to {high:.3f}), may be too small',
}


@dataclasses.dataclass(frozen=True)
class Caution:
  """Care with which policies are replaced.

  Attributes:
    every: Audited rows between looks.
    window: Most recent rows that a candidate is calibrated and compared on, and rows after a
      promotion in which it may be rolled back.
    held_back: Share of the rows that compare policies.
    alpha: Probability of a wrong replacement of a policy by a candidate, over all looks; and
      the same of a wrong return to the one before.
    least_gain: Gain that is worth a change: a share of the queries that need no large model, or of
      the quality.
  """

  every: int = 200
  window: int = 4000
  held_back: float = 0.5
  alpha: float = 0.05
  least_gain: float = 0.01

  def __post_init__(self) -> None:
    ranges.check({'EVERY': self.every, 'WINDOW': self.window}, least=1, integer=True)
    for name, value in {
      'HELD_BACK': self.held_back, 'ALPHA': self.alpha, 'LEAST_GAIN': self.least_gain
    }.items():  # fmt: skip
      if not 0 < value < 1:
        raise ValueError(f'{name}={value} must lie between 0 and 1.')
    if self.window < self.every:
      raise ValueError(f'WINDOW={self.window} must hold the rows of a look, EVERY={self.every}.')


class Reign(NamedTuple):
  """Time of a policy in force.

  Attributes:
    threshold: Its threshold.
    before: Threshold of the policy before, while it may be restored; None if it may not.
    since: Number of the first row of the reign.
    start: Number of the first row that candidates may learn from.
    looks: Looks at candidates and at the policy before, so far.
  """

  threshold: float
  before: float | None = None
  since: int = 0
  start: int = 0
  looks: int = 0


class Look(NamedTuple):
  """Result of a look: the decision and why, the reign after it, and what was compared."""

  decision: LookDecision
  why: str
  reign: Reign
  entry: Threshold | None = None  # of the candidate
  verdict: Verdict | None = None  # about the candidate
  watch: Verdict | None = None  # about the policy before


def is_held_back(id: str, share: float) -> bool:
  """True for the ids that compare policies, the same at every time."""
  digest = hashlib.blake2b(id.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < share * 2**64


def look(
  reign: Reign,
  rows: Judged,
  number: Int[np.ndarray, 'N'],
  held_back: Bool[np.ndarray, 'N'],
  *,
  count: int,
  demands: Demands,
  caution: Caution,
) -> Look:
  """Looks at the rows that have come, the only change of a reign.

  Args:
    reign: The policy in force.
    rows: Audited rows.
    number: Numbers of the rows, in the order of their arrival from 0.
    held_back: True for rows that compare policies.
    count: Number of rows that have arrived, also of those without a label.
    demands: Promises of every policy.
    caution: Care with which policies are replaced.
  """
  looks = reign.looks + 1
  alpha = promotion.level(caution.alpha, looks)
  watch = None
  reign = reign._replace(looks=looks)
  if reign.before is not None and count - reign.since > caution.window:
    reign = reign._replace(before=None)
  if reign.before is not None and (later := number >= reign.since).any():
    watch = _compare(select(rows, later), demands, looks, reign.threshold, reign.before, alpha,
                     caution, certify=True)  # fmt: skip
    if watch.replaces:
      restored = Reign(reign.before, since=count, start=reign.since)
      return Look('rolled back', _sentence(watch, 'policy before'), restored, watch=watch)
  recent = (number >= reign.start) & (number >= count - caution.window)
  fitting, comparing = select(rows, recent & ~held_back), select(rows, recent & held_back)
  if min(len(fitting.score), len(comparing.score)) < 2:
    return Look('unchanged', 'too few rows have labels', reign, watch=watch)
  entry = None
  try:
    entry = calibration.calibrate(fitting, _spent(demands, looks))
  except NotCertifiedError as error:
    alone = _compare(comparing, demands, looks, reign.threshold, reign.threshold, alpha, caution)
    broken = alone.choice == 'both break'
    alarm = f'the policy in force breaks its promise of {", ".join(alone.names)}; '
    return Look('unchanged', (alarm if broken else '') + str(error), reign, None, alone, watch)
  verdict = _compare(comparing, demands, looks, reign.threshold, entry.value, alpha, caution)
  why = _sentence(verdict, 'candidate')
  if not verdict.replaces:
    return Look('unchanged', why, reign, entry, verdict, watch)
  promoted = Reign(entry.value, before=reign.threshold, since=count, start=reign.start)
  return Look('promoted', why, promoted, entry, verdict, watch)


def look_at_checkpoint(
  reign: Reign,
  current: Judged,
  other: Judged,
  calibrating: Bool[np.ndarray, 'N'],
  *,
  count: int,
  demands: Demands,
  caution: Caution,
) -> Look:
  """Looks at another small model on rows that neither it nor the policy in force has learned from.

  Its threshold is calibrated on some of the rows, and both cascades are compared on the others. A
  cascade of another small model is not watched: its scores say nothing about the one before.

  Args:
    reign: The policy in force.
    current: Rows of the small model in force.
    other: The same rows of the other one.
    calibrating: True for rows that calibrate its threshold.
    count: Number of audited rows.
    demands: Promises of every policy.
    caution: Care with which policies are replaced.
  """
  reign = reign._replace(looks=reign.looks + 1)
  alpha = promotion.level(caution.alpha, reign.looks)
  try:
    entry = calibration.calibrate(select(other, calibrating), _spent(demands, reign.looks))
  except NotCertifiedError as error:
    return Look('unchanged', str(error), reign)
  verdict = _compare(
    select(current, ~calibrating), demands, reign.looks, reign.threshold, entry.value, alpha,
    caution, rival=select(other, ~calibrating),
  )  # fmt: skip
  why = _sentence(verdict, 'other checkpoint')
  if not verdict.replaces:
    return Look('unchanged', why, reign, entry, verdict)
  return Look('promoted', why, Reign(entry.value, since=count, start=count), entry, verdict)


def select(rows: Judged, chosen: Bool[np.ndarray, 'N']) -> Judged:
  """Some of the rows."""
  columns = ('score', 'small', 'large', 'small_cost', 'large_cost')
  return rows._replace(**{name: getattr(rows, name)[chosen] for name in columns})


def _spent(demands: Demands, looks: int) -> Demands:
  """Demands whose candidates break a promise with its delta at most, over all looks together."""
  return dataclasses.replace(
    demands,
    delta=promotion.level(demands.delta, looks),
    deltas={name: promotion.level(delta, looks) for name, delta in demands.deltas.items()},
  )


def _compare(
  rows: Judged, demands: Demands, looks: int, current: float, other: float, alpha: float,
  caution: Caution, *, certify: bool = False, rival: Judged | None = None,
) -> Verdict:  # fmt: skip
  """Verdict about another threshold on rows that chose neither; of a rival model, on its rows.

  The gain is a share of queries that need no large model where a quality is promised, as candidates
  defer as little as they may; else one of the quality.
  """
  rival = rows if rival is None else rival
  deferred, otherwise = rows.score >= current, rival.score >= other
  promises = calibration.risks(rows, _spent(demands, looks))
  if any(promise.falls for promise in promises):
    gains = deferred.astype(float) - otherwise
  else:
    small, large = rows.loss(rows.small), rows.loss(rows.large)
    gains = np.where(deferred, large, small)
    gains = gains - np.where(otherwise, large, rival.loss(rival.small))
  losses = [
    PromiseLosses(
      promise.name,
      np.where(deferred, promise.large, promise.small),
      np.where(otherwise, promise.large, own.small),
      promise.level,
      promise.delta,
    )
    for promise, own in zip(promises, calibration.risks(rival, _spent(demands, looks)), strict=True)
  ]
  return promotion.decide(
    gains, losses, alpha=alpha, least_gain=caution.least_gain, certify=certify
  )


def _sentence(verdict: Verdict, other: str) -> str:
  names = ', '.join(verdict.names)
  return SENTENCES[verdict.choice].format(
    names=names, other=other, gain=verdict.gain, low=verdict.low, high=verdict.high
  )
