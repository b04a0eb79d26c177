"""Predictors as arrays predict what scikit-learn's objects predict."""

import numpy as np
import pytest
from sklearn import ensemble, linear_model, neural_network

from cascades import predictors
from cascades.predictors import FAMILIES, Options

FAST = Options(hidden=(8, 8), epochs=5, trees=12, depth=3, validation=0.0)


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  features = rng.normal(size=(120, 4))
  gap = np.sign(features[:, 0] + 0.5 * rng.normal(size=120)) * (features[:, 1] > -1)
  return features, gap


def target_of(gap, link):
  return (gap > 0).astype(float) if link == 'logistic' else gap


@pytest.mark.parametrize('link', ['identity', 'logistic'])
def test_predictions_equal_those_of_scikit_learn(rows, link, monkeypatch):
  """scikit-learn's models are kept as they are fitted, and asked."""
  models = []

  def keep(module, name):
    original = getattr(module, name)

    def build(*args, **kwargs):
      models.append(original(*args, **kwargs))
      return models[-1]

    monkeypatch.setattr(module, name, build)

  for module, names in [
    (linear_model, ('LogisticRegression', 'Ridge')),
    (neural_network, ('MLPClassifier', 'MLPRegressor')),
    (ensemble, ('GradientBoostingClassifier', 'GradientBoostingRegressor')),
  ]:
    for name in names:
      keep(module, name)
  features, gap = rows
  for name in ('linear', 'mlp', 'trees'):
    family = FAMILIES[name]
    arrays = family.fit(features, target_of(gap, link), gap, link=link, seed=3, options=FAST)
    predicted = family.predict(arrays, features)
    if link == 'logistic':
      predicted, expected = 1 / (1 + np.exp(-predicted)), models[-1].predict_proba(features)[:, 1]
    else:
      expected = models[-1].predict(features)
    np.testing.assert_allclose(predicted, expected, atol=1e-9, err_msg=name)
    assert family.flops(arrays) > 0
  assert len(models) == 3


@pytest.mark.parametrize('name', FAMILIES)
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(rows, name):
  features, gap = rows
  options = Options(hidden=(8,), epochs=3, trees=5)
  fit = lambda seed: FAMILIES[name].fit(
    features, gap, gap, link='identity', seed=seed, options=options
  )
  first, again, other = fit(0), fit(0), fit(1)
  for key, array in first.items():
    np.testing.assert_array_equal(array, again[key])
  differs = any(a.shape != other[key].shape or (a != other[key]).any() for key, a in first.items())
  assert differs == FAMILIES[name].seeded


def test_the_epoch_is_chosen_by_the_area_of_the_rows_that_are_left_out(rows, monkeypatch):
  """An area that falls after the third epoch ends training, with the third epoch's weights."""
  features, gap = rows
  areas, seen = iter([0.1, 0.2, 0.3, 0.2, 0.1, 0.0]), []
  predict = predictors.predict_mlp

  def remembered(arrays, features):
    seen.append(arrays)
    return predict(arrays, features)

  monkeypatch.setattr(predictors, 'predict_mlp', remembered)
  monkeypatch.setattr(predictors, '_area', lambda *_: next(areas))
  options = Options(hidden=(8,), epochs=50, patience=2)
  arrays = predictors.fit_mlp(features, gap, gap, link='identity', seed=0, options=options)
  assert len(seen) == 5
  assert arrays is seen[2]


def test_trees_predict_in_blocks_to_the_same_bits(rows, monkeypatch):
  features, gap = rows
  arrays = predictors.fit_trees(features, gap, gap, link='identity', seed=0, options=FAST)
  expected = predictors.predict_trees(arrays, features)
  monkeypatch.setattr(predictors, 'MOST_CELLS', 100)
  np.testing.assert_array_equal(predictors.predict_trees(arrays, features), expected)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [({'epochs': 0}, 'epochs is 0'), ({'penalty': -1.0}, 'penalty is -1'), ({'subsample': 2}, '2')],
)
def test_options_out_of_range_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    Options(**changes)
