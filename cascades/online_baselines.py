"""Policies beside an online cascade: ensembles, static thresholds, bandits, and regret.

All read tables of one stream. Level i of N answers query t, `right[t, i]` says if its answer is
correct, and `confidence[t, i]` is the highest probability of small model i < N - 1; the last level
is the expert. Nie et al. 2024 (ensembles), Li et al. 2010 (LinUCB), Agrawal and Goyal 2013
(Thompson sampling).

Axes: T queries, N levels, K features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from cascades import online
from cascades.online import LevelChoice, OnlineSettings, OnlineState

GRID = 21  # thresholds that are tried at each level before the last small one


def ensemble_accuracy(shares: Float[np.ndarray, 'N'], accuracies: Float[np.ndarray, 'N']) -> float:
  """Accuracy sum_i a_i Acc_i of levels that are used at random, as the authors compute it.

  Args:
    shares: Share a of the queries that each level answers; they sum to 1.
    accuracies: Accuracy of each level on all queries; of the expert, on those that it answered.
  """
  return float(np.dot(shares, accuracies))


def ensemble_choice(
  settings: OnlineSettings,
  state: OnlineState,
  deferring: Callable[[int], float],
  uniforms: Sequence[float],
  *,
  shares: Sequence[float],
) -> LevelChoice:
  """Choose a level at random behind the warm-up; small models learn as in the cascade.

  Takes the place of `online.decide`. Gates are not read.

  Args:
    settings: Settings of the cascade.
    state: State before the query; its share of the expert, if there is a budget, scales `shares`.
    deferring: Ignored.
    uniforms: The first decides.
    shares: Share of each level, the expert last.
  """
  del deferring
  if online.warming_up(settings, state):
    return LevelChoice(settings.small, 'warm-up')
  weights = np.asarray(shares, float)
  if state.share is not None:
    small = weights[:-1].sum()
    even = np.full(settings.small, 1 / settings.small)
    weights = np.append((weights[:-1] / small if small else even) * (1 - state.share), state.share)
  level = int(np.searchsorted(np.cumsum(weights), uniforms[0] * weights.sum(), side='right'))
  level = min(level, settings.small)
  return LevelChoice(level, 'gate' if level == settings.small else 'answer')


def static_levels(
  confidence: Float[np.ndarray, 'T M'], thresholds: Sequence[float]
) -> Int[np.ndarray, 'T']:
  """Level that answers each query: the first that is as sure as its threshold, else the expert."""
  sure = np.column_stack([confidence >= np.asarray(thresholds), np.ones(len(confidence), bool)])
  return sure.argmax(1)


class StaticPolicy(NamedTuple):
  """Thresholds of the confidence of the small models, and the level that answers each query."""

  thresholds: tuple[float, ...]
  levels: Int[np.ndarray, 'T']


def best_static(
  confidence: Float[np.ndarray, 'T M'], right: Bool[np.ndarray, 'T N'], calls: int
) -> StaticPolicy:
  """Static thresholds that are right most often with at most `calls` calls of the expert.

  In hindsight: it sees what is right. Exact for one small model, where all thresholds are tried;
  before the last of several, GRID quantiles of the confidence are.

  Args:
    confidence: Confidence of each small model.
    right: Correct answers of each level.
    calls: Most calls of the expert.
  """
  small = confidence.shape[1]
  best: tuple[int, tuple[float, ...]] | None = None
  quantiles = [
    np.unique(np.append(np.quantile(confidence[:, i], np.linspace(0, 1, GRID)), np.inf))
    for i in range(small - 1)
  ]
  for upper in itertools.product(*quantiles):
    levels = static_levels(confidence[:, : small - 1], upper)
    left = np.flatnonzero(levels == small - 1)
    base = int(right[np.arange(len(right)), levels][levels < small - 1].sum())
    order = left[np.argsort(confidence[left, -1], kind='stable')]
    sorted_confidence = confidence[order, -1]
    gain = np.cumsum(right[order, small].astype(int) - right[order, small - 1])
    total = base + int(right[order, small - 1].sum()) + np.append(0, gain)
    ends = np.append(sorted_confidence[1:] > sorted_confidence[:-1], True)[: len(order)]
    possible = np.append(True, ends) & (np.arange(len(total)) <= calls)
    at = int(np.where(possible, total, -1).argmax())
    if best is None or total[at] > best[0]:
      last = float(sorted_confidence[at]) if at < len(order) else np.inf
      best = int(total[at]), (*map(float, upper), last)
  assert best is not None
  return StaticPolicy(best[1], static_levels(confidence, best[1]))


def regret(right: Bool[np.ndarray, 'T'], policy: Bool[np.ndarray, 'T']) -> Float[np.ndarray, 'T']:
  """Correct answers of a policy less those of the cascade, up to each query."""
  return np.cumsum(policy.astype(float) - right.astype(float))


class Hindsight(NamedTuple):
  """The best static thresholds of a stream, which of their answers are right, and the regret."""

  policy: StaticPolicy
  right: Bool[np.ndarray, 'T']
  regret: Float[np.ndarray, 'T']


def in_hindsight(
  confidence: Float[np.ndarray, 'T M'],
  right: Bool[np.ndarray, 'T N'],
  answered: Bool[np.ndarray, 'T'],
  calls: int,
) -> Hindsight:
  """Regret of a cascade against the best static thresholds of as many calls.

  Args:
    confidence: Confidence of each small model.
    right: Correct answers of each level.
    answered: Correct answers of the cascade.
    calls: Its calls of the expert.
  """
  policy = best_static(confidence, right, calls)
  best = right[np.arange(len(right)), policy.levels]
  return Hindsight(policy, best, regret(answered, best))


class BanditState(NamedTuple):
  """Ridge regressions of the reward of each level, and the price of the expert.

  Attributes:
    gram: Matrix I + sum x x' of each level.
    moment: Vector sum r x of each level.
    price: Taken off the score of the expert; it moves to keep the share of calls.
  """

  gram: Float[np.ndarray, 'N K K']
  moment: Float[np.ndarray, 'N K']
  price: float = 0.0


# Scores of the levels, from their estimates, the widths sqrt(x' A^-1 x), and a source of noise.
BanditScore: TypeAlias = Callable[
  [Float[np.ndarray, 'N'], Float[np.ndarray, 'N'], np.random.Generator], Float[np.ndarray, 'N']
]


def linucb(
  mean: Float[np.ndarray, 'N'], width: Float[np.ndarray, 'N'], rng: np.random.Generator,
  *, alpha: float = 0.5,
) -> Float[np.ndarray, 'N']:  # fmt: skip
  """Optimistic score mean + alpha width."""
  del rng
  return mean + alpha * width


def thompson(
  mean: Float[np.ndarray, 'N'], width: Float[np.ndarray, 'N'], rng: np.random.Generator,
  *, scale: float = 0.5,
) -> Float[np.ndarray, 'N']:  # fmt: skip
  """Score x' theta of a draw theta ~ N(A^-1 b, scale^2 A^-1), which is N(mean, scale^2 width^2)."""
  return mean + scale * width * rng.standard_normal(len(mean))


def bandit_start(levels: int, features: int) -> BanditState:
  """State before the first reward."""
  return BanditState(np.stack([np.eye(features)] * levels), np.zeros((levels, features)))


def bandit_estimates(
  state: BanditState, context: Float[np.ndarray, 'K']
) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """Expected reward x' A^-1 b of each level, and its width sqrt(x' A^-1 x)."""
  solved = np.linalg.solve(state.gram, np.broadcast_to(context[:, None], (*state.moment.shape, 1)))
  solved = solved[..., 0]
  return (solved * state.moment).sum(-1), np.sqrt(solved @ context)


def bandit_learn(
  state: BanditState, level: int, context: Float[np.ndarray, 'K'], reward: float
) -> BanditState:
  """State after the reward of the level that answered; the others show none."""
  gram, moment = state.gram.copy(), state.moment.copy()
  gram[level] += np.outer(context, context)
  moment[level] += reward * context
  return state._replace(gram=gram, moment=moment)


def bandit_levels(
  contexts: Float[np.ndarray, 'T K'],
  right: Bool[np.ndarray, 'T N'],
  share: float,
  *,
  score: BanditScore,
  gain: float = 0.1,
  seed: int = 0,
) -> Int[np.ndarray, 'T']:
  """Level that a contextual bandit chooses for each query of a stream; no small model learns.

  Its reward is whether the chosen level is right by the gold label, as if users said so, which an
  online cascade is never told. The price of the expert keeps the calls by the law of
  `online.keep_share`: scores of a level lie near [0, 1], and so does the price.

  Args:
    contexts: Features of the queries.
    right: Correct answers of each level.
    share: Share of the queries that the expert answers.
    score: `linucb` or `thompson`.
    gain: Step of the price.
    seed: Seed of Thompson's draws.
  """
  rng = np.random.default_rng(seed)
  expert = right.shape[1] - 1
  state = bandit_start(expert + 1, contexts.shape[1])
  chosen = np.zeros(len(contexts), int)
  for t, context in enumerate(contexts):
    scores = score(*bandit_estimates(state, context), rng)
    scores[expert] -= state.price
    chosen[t] = level = int(scores.argmax())
    state = bandit_learn(state, level, context, float(right[t, level]))
    state = state._replace(price=state.price + gain * ((level == expert) - share))
  return chosen


def bandit_contexts(
  probabilities: Float[np.ndarray, 'T M Y'],
) -> Float[np.ndarray, 'T K']:
  """Features of a bandit: 1, and of each small model its two highest probabilities and entropy."""
  ordered = np.sort(probabilities, -1)[..., ::-1][..., :2]
  logs = np.log(np.maximum(probabilities, online.LEAST))
  entropy = -(probabilities * logs).sum(-1) / np.log(probabilities.shape[-1])
  flat = ordered.reshape(len(probabilities), -1)
  return np.column_stack([np.ones(len(probabilities)), flat, entropy])
