"""Thresholds that keep promises on unseen rows: fixed-sequence testing along the deferral curve.

A promise bounds a mean loss of the cascade in the population that the calibration rows were drawn
from: its error rate, its errors in excess of the large model's, its deferral rate. The promise is
broken with probability `delta` at most, over the draw of the calibration rows, for every number of
rows and every population. Rows must be independent draws from it (or exchangeable with later ones).

Method: Learn then Test (Angelopoulos et al. 2021, https://arxiv.org/abs/2110.01052) on the ordered
path of all thresholds. The walk starts where the promise is kept most easily, deferring everything
for a promise of quality and nothing for one of cost, and ends at the first threshold whose test
(`risk_tests`) does not reject "the promise is broken" at level delta. No correction for the number
of thresholds is needed, since an error must first happen at one fixed threshold of the population:
the first of the path that breaks the promise. For the same reason the path may visit every score of
the calibration rows, and needs no grid and no rows of its own.

Six answers of which the small model has the two most confident right and the large model all:
promised is an error rate of 60 %, broken with a probability of 10 % at most.

>>> score = np.array([6., 5., 4., 3., 2., 1.])
>>> wrong = np.array([1., 1., 1., 1., 0., 0.])
>>> promise = Risk('errors', wrong, np.zeros(6), level=0.6, delta=0.1)
>>> walk = path(score)
>>> mean_loss(walk, promise).round(2)
array([0.67, 0.5 , 0.33, 0.17, 0.  , 0.  , 0.  ])
>>> certified(walk, promise)
array([False, False, False,  True,  True,  True,  True])
>>> choose(walk, [promise], quality=1 - mean_loss(walk, promise))
3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from cascades import risk_tests
from cascades.curves import reachable

Test: TypeAlias = Literal['binomial', 'trinomial', 'betting', 'Hoeffding-Bentkus']

T = TypeVar('T')  # a rule

MOST_BETS = (
  20_000  # rows up to which graded losses are tested by betting, whose time is their square
)
POWER = 0.8  # probability of success with the rows that `rows_needed` asks for
_BLOCK = 1 << 22  # losses that are tested at a time


class Risk(NamedTuple):
  """A promise that a mean loss is at most `level`, broken with probability `delta` at most.

  Attributes:
    name: Name in messages.
    small: Loss of each row that the small model answers, in [0, 1]; differences in [-1, 1].
    large: Loss of each row that the large model answers; 0 for differences from the large model.
    level: Largest mean loss.
    delta: Largest probability that a threshold is certified that breaks the promise.
    falls: True if deferral lowers the loss, so that the walk starts from deferring everything.
  """

  name: str
  small: Float[np.ndarray, 'N']
  large: Float[np.ndarray, 'N']
  level: float
  delta: float
  falls: bool = True

  def select(self, rows: Int[np.ndarray, 'n']) -> Risk:
    """The same promise on other rows."""
    return self._replace(small=self.small[rows], large=self.large[rows])


class Walk(NamedTuple):
  """All reachable points of a deferral curve, from no deferral (threshold inf) to all rows.

  Attributes:
    order: Rows from the first that defers to the last.
    deferred: Number of rows that defer at each point.
    threshold: Rows defer whose score is at least this.
  """

  order: Int[np.ndarray, 'N']
  deferred: Int[np.ndarray, 'M']
  threshold: Float[np.ndarray, 'M']

  @property
  def rate(self) -> Float[np.ndarray, 'M']:
    """Deferral rate at each point."""
    return self.deferred / len(self.order)

  def point(self, threshold: float) -> int:
    """Point of a threshold that may come from other rows."""
    return int(np.searchsorted(-self.threshold, -threshold, side='right')) - 1


def path(score: Float[np.ndarray, 'N']) -> Walk:
  """Walk of the thresholds of a deferral score.

  Raises:
    ValueError: if there is no row, or a score is not finite.
  """
  order, deferred = reachable(score)
  return Walk(order, np.append(0, deferred), np.append(np.inf, score[order[deferred - 1]]))


def total(
  walk: Walk, small: Float[np.ndarray, 'N'], large: Float[np.ndarray, 'N']
) -> Float[np.ndarray, 'M']:
  """Sum over the rows at each point: `large` where they defer, else `small`."""
  return small.sum() + np.append(0, np.cumsum((large - small)[walk.order]))[walk.deferred]


def mean_loss(walk: Walk, risk: Risk) -> Float[np.ndarray, 'M']:
  """Mean loss of the calibration rows at each point."""
  return total(walk, risk.small, risk.large) / len(walk.order)


def certified(walk: Walk, risk: Risk) -> Bool[np.ndarray, 'M']:
  """Points that keep the promise: all of them together err with probability `delta` at most.

  Args:
    walk: Walk of the calibration rows.
    risk: The promise, on the same rows.
  """
  test = test_of(risk)
  if test == 'binomial':
    limit = risk_tests.binomial_limit(len(walk.order), risk.level, risk.delta)
    return until_failure(np.rint(total(walk, risk.small, risk.large)) <= limit, risk.falls)
  if test == 'trinomial':
    worse, better = (
      np.rint(total(walk, (risk.small == sign).astype(float), risk.large)).astype(int)
      for sign in (1, -1)
    )
    limits = risk_tests.paired_limits(len(walk.order), risk.level, risk.delta)
    return until_failure(worse <= limits[worse + better], risk.falls)
  return _graded(walk, _in_unit_interval(risk), test)


def mean_certified(losses: Float[np.ndarray, 'N'], level: float, delta: float) -> bool:
  """True if rows show that a mean is at most `level`, wrongly with probability `delta` at most.

  Args:
    losses: Losses in [-1, 1] at a threshold that other rows gave.
    level: Largest mean.
    delta: Largest probability of an error.
  """
  if losses.min() < 0 or level < 0:
    losses, level = (1 + losses) / 2, (1 + level) / 2
  risk = Risk('mean', losses, losses, level, delta)
  return bool(certified(path(np.zeros(len(losses))), risk)[-1])


def mean_refuted(losses: Float[np.ndarray, 'N'], level: float, delta: float) -> bool:
  """True if rows show that a mean is above `level`, wrongly with probability `delta` at most."""
  low = -1.0 if losses.min() < 0 or level < 0 else 0.0
  return mean_certified((1 - losses) / (1 - low), (1 - level) / (1 - low), delta)


def test_of(risk: Risk) -> Test:
  """Name of the test of a promise, the most powerful that is exact for its losses."""
  losses = np.concatenate([risk.small, risk.large])
  if np.isin(losses, (0, 1)).all():
    return 'binomial'
  if np.isin(losses, (-1, 0, 1)).all() and not risk.large.any():
    return 'trinomial'
  return 'betting' if len(risk.small) <= MOST_BETS else 'Hoeffding-Bentkus'


def _in_unit_interval(risk: Risk) -> Risk:
  """The same promise for losses in [0, 1]."""
  if min(risk.small.min(), risk.large.min()) >= 0:
    return risk
  return risk._replace(
    small=(1 + risk.small) / 2, large=(1 + risk.large) / 2, level=(1 + risk.level) / 2
  )


def until_failure(passes: Bool[np.ndarray, 'M'], falls: bool) -> Bool[np.ndarray, 'M']:
  """Points before the first that fails, in the direction of the walk."""
  ordered = passes[::-1] if falls else passes
  ordered = np.logical_and.accumulate(ordered)
  return ordered[::-1] if falls else ordered


def _graded(walk: Walk, risk: Risk, test: Test) -> Bool[np.ndarray, 'M']:
  """`certified` for losses in [0, 1]."""
  rows = len(walk.order)
  if not 0 < risk.level < 1:
    return np.full(len(walk.deferred), risk.level >= 1)
  if test == 'Hoeffding-Bentkus':
    means = mean_loss(walk, risk)
    passes = risk_tests.hoeffding_bentkus(means, rows, risk.level) <= risk.delta
    return until_failure(passes, risk.falls)
  shuffled = np.random.default_rng(0).permutation(rows)  # tables may be sorted by their content
  position = np.empty(rows, int)
  position[walk.order] = np.arange(rows)
  position, small, large = position[shuffled], risk.small[shuffled], risk.large[shuffled]
  points = np.arange(len(walk.deferred))[:: -1 if risk.falls else 1]
  passes = np.zeros(len(points), bool)
  for start in range(0, len(points), max(1, _BLOCK // rows)):
    block = points[start : start + max(1, _BLOCK // rows)]
    losses = np.where(position < walk.deferred[block, None], large, small)
    passes[block] = risk_tests.betting(losses, risk.level, risk.delta) <= risk.delta
    if not passes[block].all():
      break
  return until_failure(passes, risk.falls)


def choose(
  walk: Walk, risks: Sequence[Risk], quality: Float[np.ndarray, 'M'], *, plug_in: bool = False
) -> int | None:
  """Point that is certified for every promise: of lowest deferral rate, or of best quality.

  Each promise is broken with its own `delta` at most, and any of them with the sum of the deltas.
  Choosing among certified points costs nothing, since all are certified together.

  Args:
    walk: Walk of the calibration rows.
    risks: Promises on these rows.
    quality: Quality at each point. It decides where no promise calls for deferral.
    plug_in: Take the observed means for the truth, as a control: such thresholds break promises.

  Returns:
    Index of the point, or None if there is none.
  """
  allowed = np.ones(len(walk.deferred), bool)
  for risk in risks:
    observed = mean_loss(walk, risk) <= risk.level + risk_tests.ROUNDING
    allowed &= observed if plug_in else certified(walk, risk)
  if not allowed.any():
    return None
  if any(risk.falls for risk in risks):
    return int(np.argmax(allowed))
  return int(np.argmax(np.where(allowed, quality, -np.inf)))


def rows_needed(walk: Walk, risks: Sequence[Risk]) -> float:
  """Number of rows with which a threshold would be certified, with probability `POWER`.

  A normal approximation at the observed means, for planning:

      n = (z_delta s_0 + z_power s_1)^2 / (level - mean)^2

  with s_1 the observed standard deviation, and s_0 that of a 0/1 loss at the level; betting costs
  sqrt(2 log(1/delta)) in the place of z_delta.

  Returns:
    The number; inf if no number of rows suffices, since no point keeps all promises on the rows.
  """
  needed = np.zeros(len(walk.deferred))
  for risk in risks:
    mean = mean_loss(walk, risk)
    spread = total(walk, risk.small**2, risk.large**2) / len(walk.order) - mean**2
    exact = np.isin(np.concatenate([risk.small, risk.large]), (-1, 0, 1)).all()
    quantile = stats.norm.isf(risk.delta) if exact else np.sqrt(-2 * np.log(risk.delta))
    null = np.maximum(spread, risk.level * (1 - risk.level)) if exact else spread
    margin = np.maximum(risk.level - mean, 0)
    deviations = quantile * np.sqrt(null) + stats.norm.ppf(POWER) * np.sqrt(np.maximum(spread, 0))
    rows = np.full(len(mean), np.inf)
    np.divide(deviations**2, margin**2, out=rows, where=margin > risk_tests.ROUNDING)
    # The walk passes every point before.
    walked = np.maximum.accumulate(rows[::-1])[::-1] if risk.falls else np.maximum.accumulate(rows)
    needed = np.maximum(needed, walked)
  return float(np.ceil(needed.min()))


class Simulation(NamedTuple):
  """Repeated calibrations on draws from a table that stands for the population.

  Attributes:
    fulfilled: True where a promise is kept on the whole table, or nothing was promised.
    held_out: The same on the rows that were not drawn; their own noise breaks it more often.
    rate: Deferral rate on the whole table; 1 for a refusal, after which everything defers.
    refused: True where no threshold was certified.
  """

  fulfilled: Bool[np.ndarray, 'R K']
  held_out: Bool[np.ndarray, 'R K']
  rate: Float[np.ndarray, 'R']
  refused: Bool[np.ndarray, 'R']


class RuleLosses(NamedTuple):
  """A rule on some rows: the losses of K promises, and which rows are deferred."""

  losses: Float[np.ndarray, 'K n']
  deferred: Bool[np.ndarray, 'n']


def simulate(
  choose_rule: Callable[[Int[np.ndarray, 'n']], T | None],
  apply: Callable[[T, Int[np.ndarray, 'n']], RuleLosses],
  levels: Sequence[float],
  *,
  population: int,
  rows: int,
  draws: int,
  seed: int,
) -> Simulation:
  """Calibrates on random draws from a table and looks whether the promises are kept on it.

  Rows are drawn with replacement, so that they are independent draws from a population, the table,
  whose means are known: a valid procedure keeps each promise in a share 1 - delta of the draws.

  Args:
    choose_rule: Rule that is certified on rows of these numbers; None if there is none.
    apply: The promises under a rule on rows of these numbers.
    levels: Largest mean loss of each promise.
    population: Number of rows of the table.
    rows: Rows of each draw.
    draws: Number of draws R.
    seed: Seed of the draws.
  """
  generator, limits = np.random.default_rng(seed), np.array(levels) + risk_tests.ROUNDING
  everything = np.arange(population)
  fulfilled, held_out = np.ones((draws, len(limits)), bool), np.ones((draws, len(limits)), bool)
  rate, refused = np.ones(draws), np.zeros(draws, bool)
  for i in range(draws):
    drawn = generator.integers(population, size=rows)
    rule = choose_rule(drawn)
    if rule is None:
      refused[i] = True
      continue
    losses, deferred = apply(rule, everything)
    fulfilled[i], rate[i] = losses.mean(axis=1) <= limits, deferred.mean()
    rest = np.delete(everything, drawn)
    held_out[i] = losses[:, rest].mean(axis=1) <= limits if len(rest) else fulfilled[i]
  return Simulation(fulfilled, held_out, rate, refused)


def simulate_thresholds(
  score: Float[np.ndarray, 'N'],
  risks: Sequence[Risk],
  quality: tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']],
  *,
  rows: int,
  draws: int,
  seed: int,
  plug_in: bool = False,
) -> Simulation:
  """`simulate` of the thresholds of one score.

  Args:
    score: Deferral score of each row.
    risks: Promises on all rows.
    quality: Quality of each row, answered by the small and by the large model.
    rows: Rows of each draw.
    draws: Number of draws R.
    seed: Seed of the draws.
    plug_in: As in `choose`.
  """

  def choose_threshold(drawn: Int[np.ndarray, 'n']) -> float | None:
    walk = path(score[drawn])
    observed = total(walk, quality[0][drawn], quality[1][drawn])
    point = choose(walk, [risk.select(drawn) for risk in risks], observed, plug_in=plug_in)
    return None if point is None else float(walk.threshold[point])

  def apply(threshold: float, at: Int[np.ndarray, 'n']) -> RuleLosses:
    deferred = score[at] >= threshold
    return RuleLosses(
      np.stack([np.where(deferred, risk.large[at], risk.small[at]) for risk in risks]), deferred
    )

  levels = [risk.level for risk in risks]
  return simulate(
    choose_threshold, apply, levels, population=len(score), rows=rows, draws=draws, seed=seed
  )
