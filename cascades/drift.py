"""Alarms that a policy's assumptions no longer hold, valid however often one looks.

Each monitor is a bettor whose wealth does not grow on average while its hypothesis holds, so that
it ever exceeds 1/alpha with probability alpha at most (Ville's inequality). Two hypotheses:

    scores   rows of the stream and of the calibration are exchangeable. The rows of the stream
             then fall into the gaps between the sorted scores of the calibration like the balls of
             Polya's urn, P(bin) = (gaps + rows there before) / (all gaps + all rows before), which
             is exact for any number of rows. It is the martingale of conformal p-values (Vovk et
             al. 2003, https://arxiv.org/abs/1904.06579) in constant memory.
    bounds   the mean of something observed is at most a level: the loss of the answers, the
             deferral rate, or 1 minus it. Bets are on means above the level (Waudby-Smith and
             Ramdas 2024, https://arxiv.org/abs/2010.09686). Rows without observation are skipped.

A change may come at any row t: a share t^-0.1 - (t+1)^-0.1 of the money enters at row t, and bets
follow the most recent rows. State is small, and updates are pure: they take a state and give one.
All arrays may have leading axes, for several streams at once.

Scores of 99 calibration rows, then a stream that is one standard deviation higher:

>>> generator = np.random.default_rng(0)
>>> monitor = Monitor(*reference(generator.normal(size=99), seed=0), np.array([]), np.array([0.05]))
>>> state = start(monitor)
>>> for score in generator.normal(size=200):
...   state = update(monitor, state, score, uniform=generator.random())
>>> alarms(monitor, state)
array([False])
>>> while not alarms(monitor, state).any():
...   state = update(monitor, state, generator.normal() + 1, uniform=generator.random())
>>> int(state.rows) - 200
40
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BINS = 10
MEMORY = np.array([40.0, 250.0])  # rows that bets on scores remember
BOUND_MEMORY = 150.0  # observations that bets on means remember
PRIOR = 10.0  # observations at the level that they start from


class Monitor(NamedTuple):
  """Calibration that a stream is compared with, and levels that it must not exceed.

  Attributes:
    edges: Scores between the bins, each the score of a calibration row.
    ties: Uniform random number of that row, which orders equal scores.
    gaps: Gaps between calibration rows in each bin; they sum to the number of rows plus 1.
    levels: Largest mean of each quantity that is observed, in (0, 1).
    alphas: Largest probability of a false alarm about the scores, then about each quantity.
  """

  edges: Float[np.ndarray, '*S B-1']
  ties: Float[np.ndarray, '*S B-1']
  gaps: Int[np.ndarray, '*S B']
  levels: Float[np.ndarray, '*S K']
  alphas: Float[np.ndarray, 'K+1']


class State(NamedTuple):
  """Memory of a stream.

  Attributes:
    rows: Number of rows.
    counts: Rows in each bin.
    recent: The same, forgotten over each of MEMORY.
    observed: Number of observations of each quantity.
    moments: Forgotten sums of (1, x, x^2) of each quantity.
    invested: Wealth of the money that has entered, of the scores and of each quantity.
    peak: Highest wealth so far, the money that has not entered included.
  """

  rows: Int[np.ndarray, '*S']
  counts: Float[np.ndarray, '*S B']
  recent: Float[np.ndarray, '*S 2 B']
  observed: Float[np.ndarray, '*S K']
  moments: Float[np.ndarray, '*S K 3']
  invested: Float[np.ndarray, '*S K+1']
  peak: Float[np.ndarray, '*S K+1']


def reference(
  score: Float[np.ndarray, 'N'], *, seed: int, bins: int = BINS
) -> tuple[Float[np.ndarray, 'B-1'], Float[np.ndarray, 'B-1'], Int[np.ndarray, 'B']]:
  """Edges, ties and gaps of a `Monitor`, from the scores of the calibration rows.

  Args:
    score: Scores of the rows, two or more.
    seed: Seed of the numbers that order equal scores.
    bins: Number of bins, at most one for two rows.
  """
  ties = np.random.default_rng(seed).random(len(score))
  order = np.lexsort((ties, score))
  bins = max(2, min(bins, len(score) // 2))
  ranks = np.rint(np.arange(1, bins) * (len(score) + 1) / bins).astype(int)  # from 1
  at = order[np.clip(ranks, 1, len(score)) - 1]
  return score[at], ties[at], np.diff(np.concatenate([[0], ranks, [len(score) + 1]]))


def start(monitor: Monitor) -> State:
  """State before the first row."""
  streams, bins = monitor.gaps.shape[:-1], monitor.gaps.shape[-1]
  quantities = monitor.levels.shape[-1]
  level = np.broadcast_to(monitor.levels, (*streams, quantities))
  return State(
    rows=np.zeros(streams, int),
    counts=np.zeros((*streams, bins)),
    recent=np.zeros((*streams, len(MEMORY), bins)),
    observed=np.zeros((*streams, quantities)),
    moments=PRIOR * np.stack([np.ones_like(level), level, level], axis=-1),
    invested=np.zeros((*streams, quantities + 1)),
    peak=np.ones((*streams, quantities + 1)),
  )


def update(
  monitor: Monitor,
  state: State,
  score: Float[np.ndarray, '*S'] | float,
  observed: Float[np.ndarray, '*S K'] | None = None,
  *,
  uniform: Float[np.ndarray, '*S'] | float,
) -> State:
  """State after one more row.

  Args:
    monitor: Calibration and levels.
    state: State before the row.
    score: Deferral score of the row.
    observed: Quantities of the row, in [0, 1]; nan where one is not observed. None if none is.
    uniform: Random number in [0, 1), drawn anew for each row. It orders equal scores.
  """
  if observed is None:
    observed = np.full(state.observed.shape, np.nan)
  seen = ~np.isnan(observed)
  factors = np.concatenate(
    [
      _score_factor(monitor, state, hit := _bin(monitor, score, uniform))[..., None],
      _bound_factors(monitor, state, np.where(seen, observed, monitor.levels)),
    ],
    axis=-1,
  )
  times = np.concatenate([state.rows[..., None], state.observed], axis=-1) + 1
  bets = np.concatenate([np.ones_like(seen[..., :1], shape=(*seen.shape[:-1], 1)), seen], axis=-1)
  entering, outside = times**-0.1 - (times + 1) ** -0.1, (times + 1) ** -0.1
  invested = np.where(bets, (state.invested + entering) * factors, state.invested)
  wealth = np.where(bets, invested + outside, 0)
  forget = np.where(seen, 1 - 1 / BOUND_MEMORY, 1)[..., None]
  x = np.where(seen, observed, 0)
  added = np.stack([seen, x, x**2], axis=-1)
  return State(
    rows=state.rows + 1,
    counts=state.counts + hit,
    recent=state.recent * (1 - 1 / MEMORY[:, None]) + hit[..., None, :],
    observed=state.observed + seen,
    moments=state.moments * forget + added,
    invested=invested,
    peak=np.maximum(state.peak, wealth),
  )


def alarms(monitor: Monitor, state: State) -> Bool[np.ndarray, '*S K+1']:
  """True for each hypothesis that the stream has refuted, at any row until now."""
  return state.peak >= 1 / monitor.alphas


def _bin(monitor: Monitor, score: object, uniform: object) -> Float[np.ndarray, '*S B']:
  """1 in the bin of a score, 0 elsewhere."""
  score, uniform = np.asarray(score)[..., None], np.asarray(uniform)[..., None]
  above = (score > monitor.edges) | ((score == monitor.edges) & (uniform > monitor.ties))
  index = above.sum(axis=-1, keepdims=True)
  return (np.arange(monitor.gaps.shape[-1]) == index).astype(float)


def _score_factor(
  monitor: Monitor, state: State, hit: Float[np.ndarray, '*S B']
) -> Float[np.ndarray, '*S']:
  """Growth of the wealth that bets on the bins as recent rows have fallen into them."""
  expected = monitor.gaps + state.counts
  expected = expected / expected.sum(axis=-1, keepdims=True)
  # Recent rows, and a number of rows as expected that keeps early bets close to 1.
  bets = state.recent + 0.5 * MEMORY[:, None] * expected[..., None, :]
  bets = bets / bets.sum(axis=-1, keepdims=True)
  ratios = (bets / expected[..., None, :]).mean(axis=-2)
  return (ratios * hit).sum(axis=-1)


def _bound_factors(
  monitor: Monitor, state: State, observed: Float[np.ndarray, '*S K']
) -> Float[np.ndarray, '*S K']:
  """Growth of the wealth that bets on means above their levels."""
  weight, first, second = np.moveaxis(state.moments, -1, 0)
  excess = np.maximum(first / weight - monitor.levels, 0)
  spread = np.maximum(second / weight - (first / weight) ** 2, 1e-4)
  bets = np.minimum(excess / (spread + excess**2), 0.5 / monitor.levels)
  return 1 + bets * (observed - monitor.levels)
