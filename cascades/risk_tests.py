"""Tests of "the mean loss is at most a level" that hold for every number of rows.

The null hypothesis is that the mean loss of the population exceeds the level, so a small p-value is
evidence that the promise is kept. Rows are independent draws from the population. No normal
approximation and no bootstrap: each test errs with at most the probability that it is given.

    losses                             test
    0 or 1                             binomial, exact
    -1, 0 or 1, differences of those   trinomial, exact for the worst share of ties
    any in [0, 1]                      betting, which adapts to the variance, or Hoeffding-Bentkus

Of 100 answers 4 are wrong. That the error rate is below 10 % has the p-value P(Bin(100, 0.1) <= 4).

>>> round(float(binomial(np.array(4), 100, 0.1)), 4)
0.0237
>>> binomial_limit(100, 0.1, 0.05)
4
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

ROUNDING = 1e-9  # of sums and tails: a rejection rate above its limit by less is not above it
_COARSE, _DEPTH = 64, 6  # intervals of the share of discordant rows, and how often they are halved


def binomial(failures: Int[np.ndarray, '*M'], rows: int, level: float) -> Float[np.ndarray, '*M']:
  """P-value of an error rate above `level`: P(Bin(rows, level) <= failures).

  Args:
    failures: Number of rows with loss 1.
    rows: Number of rows.
    level: Largest error rate that is promised.
  """
  return stats.binom.cdf(failures, rows, np.clip(level, 0, 1))


def binomial_limit(rows: int, level: float, delta: float) -> int:
  """Largest number of failures that `binomial` rejects at `delta`; -1 if it never does.

  Args:
    rows: Number of rows.
    level: Largest error rate that is promised.
    delta: Largest probability of rejecting wrongly.
  """
  if level >= 1:  # every error rate keeps the promise
    return rows
  candidates = np.arange(-1, rows + 1)
  return int(candidates[binomial(candidates, rows, level) <= delta][-1])


def binomial_interval(successes: int, rows: int, delta: float) -> tuple[float, float]:
  """Two-sided interval of a share that misses it with at most `delta`: Clopper and Pearson 1934."""
  failures = rows - successes
  low = special.betaincinv(successes, failures + 1, delta / 2) if successes else 0.0
  high = special.betaincinv(successes + 1, failures, 1 - delta / 2) if failures else 1.0
  return float(low), float(high)


def paired(worse: int, better: int, rows: int, margin: float) -> float:
  """P-value of a mean difference of two 0/1 losses above `margin`, exact and unconditional.

      p = max_w P(Z <= z),    P(worse) = w + margin, P(better) = w

  with Z the score statistic of Tango 1998 (Statistics in Medicine 17:891), the maximum over the
  unknown w as in Sidik 2003 (Statistics in Medicine 22:265). It is what McNemar's test is for a
  margin of 0.

  Args:
    worse: Rows where the cascade is wrong and the large model right.
    better: Rows where the cascade is right and the large model wrong.
    rows: Number of rows.
    margin: Largest mean difference that is promised, above 0.
  """
  z = _score(np.array(worse), np.array(worse + better), rows, margin)
  limits = _limits(rows, margin, float(z) + ROUNDING)
  shares = margin + (1 - margin) * np.linspace(0, 1, 2001) ** 2
  return float(_rejection(limits, rows, (shares + margin) / 2, (shares - margin) / 2).max())


@lru_cache(maxsize=64)
def paired_limits(rows: int, margin: float, delta: float) -> Int[np.ndarray, 'rows+1']:
  """Largest number of worse rows that the test of `paired` rejects at `delta`.

  The limit depends on the number of discordant rows (worse or better). The rejection rate is
  bounded over all shares of discordant rows, not on a grid: it falls with P(worse) and rises with
  P(better), so the ends of an interval of shares bound it inside.

  Args:
    rows: Number of rows.
    margin: Largest mean difference that is promised, above 0.
    delta: Largest probability of rejecting wrongly.

  Returns:
    The limit for 0, 1, .. `rows` discordant rows; -1 where the test never rejects.
  """
  high = float(stats.norm.ppf(min(delta, 0.5)))  # of the critical value: rejects too often
  low = high - 1.6  # fixed sample sizes of a few dozen rows may need more, and then reject never
  if not _level_is_at_most(_limits(rows, margin, low), rows, margin, delta):
    low -= 50
  for _ in range(9):
    middle = (low + high) / 2
    if _level_is_at_most(_limits(rows, margin, middle), rows, margin, delta):
      low = middle
    else:
      high = middle
  return _limits(rows, margin, low)


def _score(
  worse: Int[np.ndarray, '*M'], discordant: Int[np.ndarray, '*M'], rows: int, margin: float
) -> Float[np.ndarray, '*M']:
  """Difference minus margin, in standard errors where the true difference is the margin."""
  better = discordant - worse
  linear = discordant * (1 - margin) - 2 * margin * (better + rows - discordant)
  root = np.sqrt(linear**2 + 8.0 * rows * better * margin * (1 - margin))
  share = 2 * (linear + root) / (4 * rows) + margin  # of discordant rows, most likely at the margin
  variance = rows * np.maximum(share - margin**2, ROUNDING)
  return (worse - better - rows * margin) / np.sqrt(variance)


def _limits(rows: int, margin: float, critical: float) -> Int[np.ndarray, 'rows+1']:
  """Largest number of worse rows whose score is at most `critical`, by bisection."""
  discordant = np.arange(rows + 1)
  low, high = np.full(rows + 1, -1), discordant + 1
  while (high - low > 1).any():
    middle = np.clip((low + high) // 2, 0, discordant)
    passes = _score(middle, discordant, rows, margin) <= critical
    low, high = np.where(passes & (high - low > 1), middle, low), np.where(passes, high, middle)
    high = np.maximum(high, low + 1)
  # A row that turns from worse to equal, or from equal to better, never undoes a rejection.
  forward = np.minimum.accumulate(low - discordant) + discordant
  return np.minimum.accumulate(np.minimum(low, forward)[::-1])[::-1]


def _rejection(
  limits: Int[np.ndarray, 'rows+1'],
  rows: int,
  worse: Float[np.ndarray, 'P'],
  better: Float[np.ndarray, 'P'],
) -> Float[np.ndarray, 'P']:
  """Probability that a sample is rejected, for P probabilities of worse and of better rows."""
  share = np.minimum(worse + better, 1)
  reach = int(6 * np.sqrt(rows * (share * (1 - share)).max())) + 20
  discordant = np.rint(rows * share).astype(int)[:, None] + np.arange(-reach, reach + 1)
  inside = (discordant >= 0) & (discordant <= rows)
  discordant = np.clip(discordant, 0, rows)
  log_weight = special.gammaln(rows + 1) + special.xlog1py(rows - discordant, -share[:, None])
  log_weight -= special.gammaln(discordant + 1) + special.gammaln(rows - discordant + 1)
  weight = np.exp(log_weight + special.xlogy(discordant, share[:, None])) * inside
  needed = (weight > 1e-12) & (limits[discordant] >= 0)
  fraction = np.broadcast_to((worse / np.maximum(worse + better, ROUNDING))[:, None], weight.shape)
  total, limit = discordant[needed], limits[discordant[needed]]
  tail = np.zeros(weight.shape)
  tail[needed] = np.where(limit >= total, 1, special.bdtr(limit, total, fraction[needed]))
  return (weight * tail).sum(axis=1)


def _level_is_at_most(
  limits: Int[np.ndarray, 'rows+1'], rows: int, margin: float, delta: float
) -> bool:
  """True if no share of discordant rows lets the test reject wrongly more often than `delta`."""
  edges = margin + (1 - margin) * np.linspace(0, 1, _COARSE + 1) ** 2
  low, high = edges[:-1], edges[1:]
  for _ in range(_DEPTH):
    bound = _rejection(limits, rows, (low + margin) / 2, (high - margin) / 2)
    open_ = bound > delta - ROUNDING
    if not open_.any():
      return True
    low, high = low[open_], high[open_]
    middle = (low + high) / 2
    if (_rejection(limits, rows, (middle + margin) / 2, (middle - margin) / 2) > delta).any():
      return False
    low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
  return False


def hoeffding_bentkus(
  mean: Float[np.ndarray, '*M'] | float, rows: int, level: Float[np.ndarray, '*M'] | float
) -> Float[np.ndarray, '*M']:
  """P-value of a mean loss above `level`, for losses in [0, 1]: Bates et al. 2021, theorem 4.

      p = min(exp(-n KL(min(mean, level), level)), e P(Bin(n, level) <= ceil(n mean)))

  https://arxiv.org/abs/2101.02703

  Args:
    mean: Mean loss of the rows.
    rows: Number of rows n.
    level: Largest mean loss that is promised, in (0, 1).
  """
  mean = np.clip(mean, 0, 1)
  below = np.minimum(mean, level)
  with np.errstate(divide='ignore', invalid='ignore'):
    divergence = np.where(below > 0, below * np.log(below / level), 0)
    divergence += np.where(below < 1, (1 - below) * np.log((1 - below) / (1 - level)), 0)
  bentkus = np.e * stats.binom.cdf(np.ceil(rows * mean - ROUNDING), rows, level)
  return np.minimum(1, np.minimum(np.exp(-rows * divergence), bentkus))


def mean_interval(mean: float, rows: int, delta: float) -> tuple[float, float]:
  """Two-sided interval of a mean of losses in [0, 1], by inverting `hoeffding_bentkus`."""
  levels = np.linspace(0, 1, 4001)[1:-1]
  above = hoeffding_bentkus(mean, rows, levels) > delta / 2
  below = hoeffding_bentkus(1 - mean, rows, levels) > delta / 2
  high = levels[above & (levels >= mean)].max(initial=mean)
  low = 1 - levels[below & (levels >= 1 - mean)].max(initial=1 - mean)
  step = 1 / 4000  # to the next level, which is certainly outside
  return max(0.0, float(low) - step), min(1.0, float(high) + step)


def betting(losses: Float[np.ndarray, 'M n'], level: float, delta: float) -> Float[np.ndarray, 'M']:
  """P-value of a mean loss above `level`, for losses in [0, 1]: the best wealth of a bettor.

  He bets on losses below the level. If their mean is above it his wealth K does not grow on
  average, and exceeds 1/p with probability p at most:

      K_t = prod_{i <= t} (1 + b_i (level - loss_i)),    p = 1 / max_t K_t

  with b_i = sqrt(2 log(1/delta) / (n v)), at most 3/4 of what could ruin him, and v the variance of
  the losses before i. Waudby-Smith and Ramdas 2024, https://arxiv.org/abs/2010.09686, section 4.

  Args:
    losses: Losses of the n rows, in an order that does not depend on them, for M thresholds.
    level: Largest mean loss that is promised, in (0, 1).
    delta: The p-value that the bets aim at; others are valid too.
  """
  rows = losses.shape[-1]
  seen = np.arange(1, rows + 1)
  mean = (0.5 + np.cumsum(losses, axis=-1)) / (seen + 1)
  variance = (0.25 + np.cumsum((losses - mean) ** 2, axis=-1)) / (seen + 1)
  before = np.concatenate([np.full((*losses.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
  bets = np.minimum(np.sqrt(2 * np.log(1 / delta) / (rows * before)), 0.75 / (1 - level))
  wealth = np.cumsum(np.log1p(bets * (level - losses)), axis=-1)
  return np.exp(-np.maximum(wealth.max(axis=-1), 0))
