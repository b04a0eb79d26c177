"""Learned deferral: a predictor of what deferring gains, from the small model's answer.

Minimizing E[(1 - r)(1 - Q_S) + r (1 - Q_L + k)] defers where E[Q_L | x] - E[Q_S | x] > k, so the
score to learn is the gap of qualities, not the confidence of the small model. Post-Hoc rules are of
Gupta et al. 2024, https://arxiv.org/abs/2404.10136; EdgeInference is of Kag et al. 2023, as Wang et
al. 2024, https://arxiv.org/abs/2406.00060, adapted it to language models.

    table of the fit split, Q_S, Q_L --fit--> Fitted --decider--> score of other tables

`METHODS` are the usual combinations of features, predictor and target. A fitted decider stores
digests of the rows that it was fitted on, and refuses a table that holds any of them.

Unlike the original, the perceptron has no batch normalization: scikit-learn has none.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, UInt64

from cascades import deferral, score_calibration
from cascades.answer_features import MOST_TOKENS, feature, matrix
from cascades.deferral import DECIDERS
from cascades.predictors import FAMILIES, Link, Options
from cascades.types import POOLED, Decider, Predictions

Target: TypeAlias = Literal['gap', 'win', 'wrong']
Calibration: TypeAlias = Literal['isotonic', 'temperature']
Values = Float[np.ndarray, 'N']

LEAST_ROWS = 20
CALIBRATION_SHARE = 5  # one row in five calibrates, the others fit


class FitError(ValueError):
  """Rows that nothing can be learned from."""


class LeakError(ValueError):
  """Rows that a decider was fitted on, and is asked to score."""


def gap(small: Values, large: Values) -> Values:
  """Target T2, what deferring gains: d = Q_L - Q_S."""
  return np.asarray(large, float) - small


def win(small: Values, large: Values) -> Values:
  """Target T1, 1 where the large answer is better: z = 1[Q_L > Q_S]. It ignores harm."""
  return (np.asarray(large) > small).astype(float)


def wrong(small: Values, large: Values) -> Values:
  """Target T3 with its sign turned, 1 where the small answer is bad: 1[Q_S < 1/2]."""
  del large
  return (np.asarray(small) < 0.5).astype(float)


TARGETS: Mapping[str, Callable[[Values, Values], Values]] = MappingProxyType(
  {'gap': gap, 'win': win, 'wrong': wrong}
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A way to learn a decider.

  Attributes:
    features: Names of features: see `answer_features.feature`.
    family: Predictor, a name in `predictors.FAMILIES`; None takes the one feature as it is.
    target: 'gap' (T2), 'win' (T1) or 'wrong' (T3).
    calibration: Map of the prediction to the expected target, 'isotonic' or 'temperature', fitted
      on a fifth of the rows that is left out of the rest; None for no map.
    seeds: Number of predictors of different seeds whose predictions are averaged.
    options: Options of the predictor.
  """

  features: Sequence[str]
  family: str | None = 'mlp'
  target: Target = 'gap'
  calibration: Calibration | None = None
  seeds: int = 5
  options: Options = dataclasses.field(default_factory=Options)

  def __post_init__(self) -> None:
    for name in self.features:
      feature(name)
    for name, value, names in (
      ('family', self.family, (None, *FAMILIES)),
      ('target', self.target, get_args(Target)),
      ('calibration', self.calibration, (None, *get_args(Calibration))),
    ):
      if value not in names:
        raise ValueError(f'{name} is {value!r:.80}; expected one of {", ".join(map(repr, names))}.')
    if self.family == 'guarded_knn' and self.target != 'gap':
      raise ValueError(f"A guarded_knn predicts gaps: choose target 'gap', not {self.target!r}.")
    if self.seeds < 1 or not self.features:
      raise ValueError('A recipe has one or more features and one or more seeds.')
    if self.family is None and [*self.features][1:] + [
      f for f in self.features if f not in DECIDERS
    ]:
      raise ValueError(
        f'Without a family, a recipe has one feature, of {", ".join(DECIDERS)}; found '
        f'{", ".join(self.features)}.'
      )
    if self.calibration == 'temperature' and self.link != 'logistic':
      raise ValueError(
        "A temperature divides log-odds, and target 'gap' has none: choose target 'win' or "
        "'wrong', or calibration 'isotonic'."
      )

  @property
  def link(self) -> Link:
    """Scale of the predictions: log-odds, or that of the target."""
    return 'identity' if self.target == 'gap' else 'logistic'

  @property
  def reads(self) -> tuple[str, ...]:
    """Names of what the features are computed from."""
    return tuple(dict.fromkeys(name for f in self.features for name in feature(f).reads))


def _of_a_score(name: str, **changes: Any) -> Recipe:
  return Recipe((name,), **{'family': None, 'target': 'wrong', 'seeds': 1, **changes})


_STRONG = Options(penalty=1e-3)

METHODS: Mapping[str, Recipe] = MappingProxyType({
  'post_hoc_quantile': Recipe(('quantiles',)),
  'post_hoc_embed_1': Recipe(
    ('quantiles', 'embeddings/answer'), options=Options(learning_rate=1e-4)
  ),
  'post_hoc_embed_1_2': Recipe(
    ('quantiles', 'embeddings/answer', 'embeddings/next_first_layer'),
    options=Options(learning_rate=1e-4),
  ),
  'edge_inference': Recipe(('token probabilities',), target='win', options=Options(hidden=(128,))),
  'boosted_trees': Recipe(('quantiles', 'length'), family='trees'),
  'logistic': _of_a_score('average', family='linear'),
  'logistic_confidence': _of_a_score('confidence', family='linear'),
  'isotonic': _of_a_score('average', calibration='isotonic'),
  'isotonic_confidence': _of_a_score('confidence', calibration='isotonic'),
  'temperature': _of_a_score('average', calibration='temperature'),
  'guarded_knn': Recipe(('embeddings/prompt',), family='guarded_knn', seeds=1),
  'guarded_knn_words': Recipe(('prompt words',), family='guarded_knn', seeds=1),
  'linear_router': Recipe(('embeddings/prompt',), family='linear', seeds=1, options=_STRONG),
  'linear_router_words': Recipe(('prompt words',), family='linear', seeds=1, options=_STRONG),
  'temperature_confidence': _of_a_score('confidence', calibration='temperature'),
})  # fmt: skip


class Fitted(NamedTuple):
  """A learned decider: settings that are JSON, and arrays.

  Attributes:
    name: Name in reports.
    recipe: How it was fitted.
    width: Columns of features by position.
    rows: Number of rows that it was fitted on.
    flops: FLOPs of reading the features of one query.
    arrays: `mean` and `scale` of the features; `SEED/NAME` of each predictor; `knots` or
      `temperature` of the calibration; digests `fit_ids` and `fit_inputs` of the rows.
  """

  name: str
  recipe: Recipe
  width: int
  rows: int
  flops: float
  arrays: Mapping[str, np.ndarray]

  def decider(self) -> Decider:
    """Decider of other tables: the highest predicted target defers first.

    Its score raises `LeakError` for a table with a row that this was fitted on, and ValueError for
    one that lacks what it reads.
    """
    return deferral.decider(self.name, self._score, self.recipe.reads, flops=self._flops())

  def _score(self, table: Predictions) -> Values:
    self._refuse_own_rows(table)
    usable = _usable(table, self.recipe)
    score = np.full(len(usable), deferral.NO_TOKENS)
    features = matrix(self.recipe.features, table, self.width)
    score[usable] = self.predict(features[usable])
    return score

  def standardized(self, table: Predictions) -> Float[np.ndarray, 'N F']:
    """Features of another table, as predictors read them."""
    self._refuse_own_rows(table)
    features = matrix(self.recipe.features, table, self.width)
    return (features - self.arrays['mean']) / self.arrays['scale']

  def _refuse_own_rows(self, table: Predictions) -> None:
    ids, inputs = digests(table)
    for digest, stored, what in (
      (ids, self.arrays['fit_ids'], 'id'),
      (inputs, self.arrays['fit_inputs'], 'input'),
    ):
      seen = np.isin(digest, stored)
      if seen.any():
        example = table.ids[int(seen.argmax())]
        raise LeakError(
          f'{self.name!r} was fitted on {int(seen.sum())} of the {len(seen)} rows of task '
          f'{table.task!r}, split {table.split!r}, such as the {what} of {example!r}: fit on '
          'another split, or leave these rows out of the report.'
        )

  def predict(self, features: Float[np.ndarray, 'N F']) -> Values:
    """Predicted target of raw features: log-odds of targets 0 and 1 unless isotonic.

    Equal rows get equal predictions to the bit, whatever rows are beside them.
    """
    distinct, inverse = _distinct_rows((features - self.arrays['mean']) / self.arrays['scale'])
    values = self.average(distinct)
    if self.recipe.calibration == 'isotonic':
      values = score_calibration.apply_isotonic(self.arrays['knots'], values)
    elif self.recipe.calibration == 'temperature':
      values = values / self.arrays['temperature'][0]
    return values[inverse]

  def average(self, standardized: Float[np.ndarray, 'N F']) -> Values:
    """Mean of the predictors of all seeds, before calibration."""
    if self.recipe.family is None:
      return standardized[:, 0]
    predict = FAMILIES[self.recipe.family].predict
    return np.mean([predict(arrays, standardized) for arrays in self._seeds()], axis=0)

  def _seeds(self) -> list[dict[str, np.ndarray]]:
    seeds: dict[str, dict[str, np.ndarray]] = {}
    for name, array in self.arrays.items():
      seed, _, own = name.partition('/')
      if own:
        seeds.setdefault(seed, {})[own] = array
    return list(seeds.values())

  def _flops(self) -> float:
    if self.recipe.family is None:
      return self.flops
    return self.flops + sum(map(FAMILIES[self.recipe.family].flops, self._seeds()))


def fit(
  name: str,
  recipe: Recipe,
  table: Predictions,
  small: Values,
  large: Values,
  *,
  flops: float = 0.0,
) -> Fitted:
  """Fits a decider. The same arguments give the same bits.

  Args:
    name: Name in reports.
    recipe: Features, predictor and target.
    table: The small model's answers, of one task or pooled; rows without tokens are left out where
      tokens are read.
    small: Quality of each of its answers, from 0 to 1.
    large: Quality of the large model's answers to the same rows.
    flops: FLOPs of reading the features of one query, such as the large model's first layer.

  Raises:
    FitError: There are too few rows, or all have the same target.
    ValueError: The table lacks what the recipe reads.
  """
  if absent := deferral.missing(recipe.reads, table):
    raise ValueError(
      f'{name!r} learns from {", ".join(absent)}, which rows of task {table.task!r} do not have: '
      f'store it with the table, or leave {name!r} out.'
    )
  usable = _usable(table, recipe)
  target = TARGETS[recipe.target](small, large)[usable]
  if len(target) < LEAST_ROWS or np.ptp(target) == 0:
    raise FitError(
      f'{name!r} cannot learn from {len(target)} rows of task {table.task!r}, split '
      f'{table.split!r}, whose targets ({recipe.target}) have {len(np.unique(target))} different '
      f'values: it needs {LEAST_ROWS} rows or more, and two values or more.'
    )
  longest = int(table.lengths.max(initial=1)) if 'token probabilities' in recipe.features else 0
  width = min(longest, MOST_TOKENS)
  features = matrix(recipe.features, table, width)[usable]
  ids, inputs = digests(table)
  mean, scale = _standards(recipe, features)
  arrays = {'mean': mean, 'scale': scale, 'fit_ids': ids, 'fit_inputs': inputs}
  fitted = Fitted(name, recipe, width, int(usable.sum()), flops, arrays)
  standardized = (features - mean) / scale
  rest, calibration = _calibration_rows(recipe, ids[usable], target)
  gaps = gap(small, large)[usable]
  arrays |= _predictors(recipe, standardized[rest], target[rest], gaps[rest])
  if recipe.calibration is not None:
    values = fitted.average(standardized[calibration])
    arrays |= _CALIBRATIONS[recipe.calibration](values, target[calibration])
  return fitted._replace(arrays=MappingProxyType(arrays))


def _predictors(
  recipe: Recipe, features: Float[np.ndarray, 'N F'], target: Values, gaps: Values
) -> dict[str, np.ndarray]:
  """Arrays of the predictors of all seeds, by SEED/NAME."""
  import threadpoolctl

  if recipe.family is None:
    return {}
  family = FAMILIES[recipe.family]
  arrays: dict[str, np.ndarray] = {}
  # On several threads such small products take 10 times as long, and round differently.
  with threadpoolctl.threadpool_limits(1):
    for seed in range(recipe.seeds if family.seeded else 1):
      predictor = family.fit(
        features, target, gaps, link=recipe.link, seed=seed, options=recipe.options
      )
      arrays |= {f'{seed}/{name}': array for name, array in predictor.items()}
  return arrays


_CALIBRATIONS: Mapping[str, Callable[[Values, Values], dict[str, np.ndarray]]] = MappingProxyType({
  'isotonic': lambda values, target: {
    'knots': score_calibration.fit_isotonic(values, target)
  },
  'temperature': lambda values, target: {
    'temperature': np.array([score_calibration.fit_temperature(values, target)])
  },
})  # fmt: skip


def _standards(recipe: Recipe, features: Float[np.ndarray, 'N F']) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of each feature, 1 for a constant; 0 and 1 of a single score."""
  if recipe.family is None:
    return np.zeros(1), np.ones(1)
  constant = np.ptp(features, axis=0) == 0
  mean = np.where(constant, features[0], features.mean(axis=0))
  return mean, np.where(constant, 1.0, features.std(axis=0))


def unshared(table: Predictions, *others: Predictions) -> list[int]:
  """Rows of a table that share neither id nor input with any other, for example to fit on.

  Questions repeat across the splits of real data.
  """
  own = digests(table)
  shared = [np.isin(a, b) for other in others for a, b in zip(own, digests(other), strict=True)]
  return np.flatnonzero(~np.any(shared, axis=0)).tolist()


def digests(table: Predictions) -> tuple[UInt64[np.ndarray, 'N'], UInt64[np.ndarray, 'N']]:
  """64-bit digests of each row: of its split, task and id, and of its input."""
  task = '' if table.task == POOLED else f'{table.task}/'
  ids = (f'{table.split}\0{task}{name}' for name in table.ids)
  return _digests(ids), _digests(table.inputs)


def _digests(texts: Iterable[str]) -> UInt64[np.ndarray, 'N']:
  encoded = (text.encode('utf-8', 'surrogatepass') for text in texts)
  joined = b''.join(hashlib.blake2b(text, digest_size=8).digest() for text in encoded)
  return np.frombuffer(joined, '<u8')


def _usable(table: Predictions, recipe: Recipe) -> np.ndarray:
  """True for rows that have the tokens that a recipe reads."""
  reads_tokens = {'token_logprobs', 'alternatives', 'two alternatives'} & set(recipe.reads)
  return (table.lengths > 0) if reads_tokens else np.ones(len(table.ids), bool)


def _calibration_rows(
  recipe: Recipe, digest: UInt64[np.ndarray, 'N'], target: Values
) -> tuple[np.ndarray, np.ndarray]:
  """Masks of the rows that fit the predictor, and of those that calibrate it."""
  every = np.ones(len(digest), bool)
  if recipe.calibration is None or recipe.family is None:
    return every, every
  chosen = digest % CALIBRATION_SHARE == 0  # by id, so that the order of rows plays no role
  if not chosen.any() or len(np.unique(target[~chosen])) < 2:
    raise FitError(
      f'{len(target)} rows are too few to calibrate on a fifth of them and to fit on the others: '
      'give more rows, or leave the calibration out.'
    )
  return ~chosen, chosen


def _distinct_rows(features: Float[np.ndarray, 'N F']) -> tuple[np.ndarray, np.ndarray]:
  """Distinct rows, and the index of each row among them.

  Matrix products round rows of one block differently from those of its rest.
  """
  rows = np.ascontiguousarray(features + 0.0)  # -0 becomes 0
  _, first, inverse = np.unique(
    rows.view(f'V{rows.itemsize * rows.shape[1]}')[:, 0], return_index=True, return_inverse=True
  )
  return rows[first], inverse
