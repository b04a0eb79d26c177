"""Rules of each decider of `deciders`, chosen on fit rows and applied to report rows.

A decider gives `Choices`: models and thresholds, each with its mean cost and quality on the fit
rows. Its policy are those on their upper concave hull.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from benchmarks.outcome_tables import RULES, DataSet, Table
from cascades import curve_metrics, frontier, guarantees, routing, score_calibration
from cascades.predictors import FAMILIES, Options

FOLDS, NEIGHBORS, COLUMNS, LAMBDAS = 5, 20, 1 << 16, 33
OPTIONS = Options(hidden=(32,), epochs=100, patience=10)


class Policy(NamedTuple):
  """Costs and qualities of the report rows under M rules, the cheapest on the fit rows first.

  Attributes:
    cost: Cost of each row, [M, N].
    quality: Quality of each row, [M, N].
  """

  cost: np.ndarray
  quality: np.ndarray


class Choices(NamedTuple):
  """Rules of one kind.

  Attributes:
    cost: Mean cost on the fit rows, [M].
    quality: Mean quality on the fit rows, [M].
    apply: Policy of rules given by index.
  """

  cost: np.ndarray
  quality: np.ndarray
  apply: Callable[[np.ndarray], Policy]


Scores = tuple[np.ndarray, np.ndarray]  # of the fit and of the report rows
PairScore = Callable[[DataSet, int, int], Scores]
Embed = Callable[[DataSet], tuple[np.ndarray, np.ndarray]]  # unit rows of fit and report prompts


def policy(choices: Sequence[Choices]) -> Policy:
  """Rules on the upper concave hull of all choices on the fit rows."""
  sizes = [len(group.cost) for group in choices]
  cost = np.concatenate([group.cost for group in choices])
  corners = curve_metrics.hull_points(cost, np.concatenate([group.quality for group in choices]))
  group = np.repeat(np.arange(len(sizes)), sizes)[corners]
  index = corners - (np.cumsum(sizes) - sizes)[group]
  rules = [choices[g].apply(np.array([i])) for g, i in zip(group, index, strict=True)]
  return Policy(*(np.concatenate(arrays) for arrays in zip(*rules, strict=True)))


def singles(data: DataSet) -> Choices:
  """Every single model."""
  return Choices(
    data.fit.cost.mean(axis=1),
    data.fit.quality.mean(axis=1),
    lambda index: Policy(data.report.cost[index], data.report.quality[index]),
  )


def pairs(data: DataSet, score: PairScore) -> list[Choices]:
  """Every pair of models and threshold; the answer that is thrown away is charged."""
  return [_pair(data, *pair, score) for pair in combinations(range(len(data.models)), 2)]


def _pair(data: DataSet, small: int, large: int, score: PairScore) -> Choices:
  on_fit, on_report = score(data, small, large)
  walk = guarantees.path(on_fit)
  own = data.fit.cost[small] + data.fit.deciding[small]
  rows = len(data.fit.ids)
  cost = guarantees.total(walk, own, own + data.fit.cost[large]) / rows
  quality = guarantees.total(walk, data.fit.quality[small], data.fit.quality[large]) / rows

  def apply(index: np.ndarray) -> Policy:
    report = data.report
    deferred = on_report >= walk.threshold[index, None]
    paid = report.cost[small] + report.deciding[small]
    return Policy(
      paid + deferred * report.cost[large],
      np.where(deferred, report.quality[large], report.quality[small]),
    )

  return Choices(cost, quality, apply)


def folds(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Indices of training and held-out rows of each fold."""
  fold = np.random.default_rng(0).permutation(rows) % FOLDS
  for number in range(FOLDS):
    yield np.flatnonzero(fold != number), np.flatnonzero(fold == number)


def crossed(
  fit: Callable[[np.ndarray], Callable[[Table], np.ndarray]], data: DataSet, axis: int = 0
) -> Scores:
  """Predictions out of fold on the fit rows, and those of a fit on all of them on report rows.

  Args:
    fit: Gives a predictor fitted on the fit rows of these indices.
    data: The data set.
    axis: Axis of the rows in predictions.
  """
  rows = np.arange(len(data.fit.ids))
  predicted = [(rest, fit(training)(data.fit.select(rest))) for training, rest in folds(len(rows))]
  order = np.argsort(np.concatenate([rest for rest, _ in predicted]))
  on_fit = np.take(np.concatenate([values for _, values in predicted], axis=axis), order, axis=axis)
  return on_fit, fit(rows)(data.report)


def own_signal(name: str) -> PairScore:
  """Score that is a signal as it is."""
  return lambda data, small, _: tuple(
    table.signals[name][small][:, 0] for table in (data.fit, data.report)
  )


def at_random(data: DataSet, small: int, large: int) -> Scores:
  """Random score: a control."""
  generator = np.random.default_rng((small, large))
  return generator.random(len(data.fit.ids)), generator.random(len(data.report.ids))


def learned(signal: str, family: str, target: str = 'gap', seeds: int = 1) -> PairScore:
  """Score predicted from a signal, by one of `predictors.FAMILIES` or 'isotonic'."""

  def score(data: DataSet, small: int, large: int) -> Scores:
    features = data.fit.signals[signal][small]
    gap = data.fit.quality[large] - data.fit.quality[small]
    goal = gap if target == 'gap' else (data.fit.quality[small] < 0.5).astype(float)

    def fit(rows: np.ndarray) -> Callable[[Table], np.ndarray]:
      if np.ptp(goal[rows]) == 0:
        return lambda table: np.full(len(table.ids), goal[rows[0]])
      if family == 'isotonic':
        knots = score_calibration.fit_isotonic(features[rows, 0], goal[rows])
        return lambda table: score_calibration.apply_isotonic(
          knots, table.signals[signal][small][:, 0]
        )
      mean, scale = features[rows].mean(axis=0), features[rows].std(axis=0)
      scale = np.where(scale > 0, scale, 1.0)
      link = 'identity' if target == 'gap' else 'logistic'
      arrays = [
        FAMILIES[family].fit(
          (features[rows] - mean) / scale, goal[rows], gap[rows], link=link, seed=seed,
          options=OPTIONS,
        )
        for seed in range(seeds)
      ]  # fmt: skip
      return lambda table: np.mean([
        FAMILIES[family].predict(each, (table.signals[signal][small] - mean) / scale)
        for each in arrays
      ], axis=0)  # fmt: skip

    return crossed(fit, data)

  return score


def words(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
  """Hashed TF-IDF of fit and report prompts, rows have length 1."""
  from sklearn.feature_extraction import text

  hashed = text.HashingVectorizer(n_features=COLUMNS, ngram_range=(1, 2), norm=None)
  weights = text.TfidfTransformer().fit(counts := hashed.transform(data.fit.prompts))
  return weights.transform(counts), weights.transform(hashed.transform(data.report.prompts))


def neighbors(embedded: np.ndarray, fitted: np.ndarray, *, own: bool) -> np.ndarray:
  """Indices [N, k] of the nearest fit rows by cosine, without the row itself if it is its `own`."""
  nearest = []
  for start in range(0, embedded.shape[0], 1000):
    similar = (embedded[start : start + 1000] @ fitted.T).toarray()
    if own:
      similar[np.arange(len(similar)), start + np.arange(len(similar))] = -np.inf
    nearest.append(np.argsort(-similar, axis=1, kind='stable')[:, :NEIGHBORS])
  return np.concatenate(nearest)


def lambdas(data: DataSet) -> np.ndarray:
  """Prices of a unit of cost, 0 first."""
  spread = [np.ptp(values.mean(axis=1)) for values in (data.fit.quality, data.fit.cost)]
  ratio = max(spread[0], 1e-3) / spread[1]
  return np.append(0.0, ratio * np.logspace(-3, 3, LAMBDAS - 1))


def chosen(data: DataSet, choice: Sequence[Scores]) -> Choices:
  """Rules of routers, from the model that each rule chooses for each fit and report row."""

  def picked(table: Table, choices: np.ndarray) -> Policy:
    rows = np.arange(len(table.ids))
    return Policy(table.cost[choices, rows], table.quality[choices, rows])

  on_fit = picked(data.fit, np.array([fit for fit, _ in choice]))
  on_report = np.array([report for _, report in choice])
  return Choices(
    on_fit.cost.mean(axis=1),
    on_fit.quality.mean(axis=1),
    lambda index: picked(data.report, on_report[index]),
  )


def nearest_neighbors(data: DataSet, *, guarded: bool, embed: Embed = words) -> Choices:
  """Router by the qualities of the nearest fit prompts: see docs/deciding.md."""
  fitted, reported = embed(data)
  near = neighbors(fitted, fitted, own=True), neighbors(reported, fitted, own=False)
  cost, mean = data.fit.cost.mean(axis=1), data.fit.quality.mean(axis=1)

  def choose(rows: np.ndarray, price: float) -> np.ndarray:
    quality = data.fit.quality[:, rows].transpose(1, 2, 0)  # [N, k, K]
    if guarded:
      return routing.guarded_choice(quality, mean, cost, price=price)
    return np.argmax(quality.mean(axis=1) - price * cost, axis=1)

  return chosen(data, [tuple(choose(rows, price) for rows in near) for price in lambdas(data)])


def predicted_quality(data: DataSet, embed: Embed = words) -> Scores:
  """Ridge regressions of each model's quality on the prompt, [K, N], out of fold on fit rows."""
  from sklearn import linear_model

  embedded = embed(data)

  def fit(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    model = linear_model.Ridge(alpha=1.0, solver='sparse_cg')
    model.fit(embedded[0][rows], data.fit.quality[:, rows].T)
    return lambda prompts: model.predict(prompts).T

  on_fit = np.empty(data.fit.quality.shape)
  for training, rest in folds(len(data.fit.ids)):
    on_fit[:, rest] = fit(training)(embedded[0][rest])
  return on_fit, fit(np.arange(len(data.fit.ids)))(embedded[1])


def linear_router(data: DataSet, *, embed: Embed = words) -> Choices:
  """Router by the predicted quality of each model."""
  predicted = predicted_quality(data, embed)
  cost = data.fit.cost.mean(axis=1)[:, None]
  return chosen(data, [
    tuple((values - price * cost).argmax(axis=0) for values in predicted)
    for price in lambdas(data)
  ])  # fmt: skip


def chain(data: DataSet, *, longest: int | None) -> Choices:
  """Chains of models up to a length, with thresholds on the logistic confidence."""
  models = len(data.models)
  scores = [learned('confidence', 'linear', 'wrong')(data, i, i) for i in range(models - 1)]
  fit, report = (
    frontier.Outcomes(np.array(score), table.quality, table.cost, table.deciding)
    for score, table in zip(zip(*scores, strict=True), (data.fit, data.report), strict=True)
  )
  points = frontier.fit(fit, frontier.chains(models, longest=longest))
  rows = np.arange(len(data.report.ids))

  def apply(index: np.ndarray) -> Policy:
    costs, qualities = [], []
    for rule in (points[i].rule for i in index):
      answers = frontier.answering(report.scores, rule, len(rows))
      paid = np.cumsum(report.added(rule.models), axis=0)
      costs.append(paid[np.searchsorted(rule.models, answers), rows])
      qualities.append(report.quality[answers, rows])
    return Policy(np.array(costs), np.array(qualities))

  return Choices(
    np.array([point.cost for point in points]), np.array([p.quality for p in points]), apply
  )


def union(data: DataSet, cascade: str) -> list[Choices]:
  """Rules of the routers, and of a cascade."""
  return [
    nearest_neighbors(data, guarded=True),
    linear_router(data),
    *pairs(data, PAIR_SCORES[cascade]),
  ]


PAIR_SCORES: Mapping[str, PairScore] = {
  'random': at_random,
  'confidence': own_signal('confidence'),
  'logistic confidence': learned('confidence', 'linear', 'wrong'),
  'isotonic confidence': learned('confidence', 'isotonic', 'wrong'),
  'linear gap': learned('answer', 'linear'),
  'trees gap': learned('answer', 'trees'),
  'perceptron gap': learned('answer', 'mlp', seeds=3),
  **{name: own_signal(name) for name in RULES},
  'quantile perceptron': learned('quantiles', 'mlp', seeds=3),
  'quantile trees': learned('quantiles', 'trees'),
}
NEEDS = {name: signal for signal, names in {
  'confidence': ('confidence', 'logistic confidence', 'isotonic confidence'),
  'answer': ('linear gap', 'trees gap', 'perceptron gap'),
  'quantiles': ('quantile perceptron', 'quantile trees'),
}.items() for name in names} | {name: name for name in RULES}  # fmt: skip
CONTROLS = ('singles', 'random', 'oracle')
CHAINS = ('pairs', 'chains')  # of any two, and of any number of models


def deciders(data: DataSet) -> dict[str, Callable[[], list[Choices]]]:
  """Choices of each decider for which the data set has the signals, controls first."""
  signals = data.fit.signals

  def of_pairs(name: str) -> Callable[[], list[Choices]]:
    return lambda: pairs(data, PAIR_SCORES[name])

  by_name: dict[str, Callable[[], list[Choices]]] = {
    'singles': list,
    'kNN': lambda: [nearest_neighbors(data, guarded=False)],
    'guarded kNN': lambda: [nearest_neighbors(data, guarded=True)],
    'linear router': lambda: [linear_router(data)],
  }
  if signals:
    names = ['random', *(name for name, signal in NEEDS.items() if signal in signals)]
    by_name |= {name: of_pairs(name) for name in names}
    cascade = 'quantile trees' if 'quantiles' in signals else 'linear gap'
    by_name['router and cascade'] = lambda: union(data, cascade)
  if 'confidence' in signals:
    by_name['pairs'] = lambda: [chain(data, longest=2)]
    by_name['chains'] = lambda: [chain(data, longest=None)]
  return by_name
