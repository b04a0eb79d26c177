"""Learned deciders on disk: the same scores after reading, and damage is named."""

import json

import numpy as np
import pytest

from cascades import learned_deferral
from cascades.evaluation import fitted
from cascades.learned_deferral import Recipe
from cascades.predictors import Options
from tests import synthetic_tables

OPTIONS = Options(hidden=(4, 4), epochs=2, trees=4)
RECIPES = {
  'mlp': Recipe(('quantiles',), seeds=2, options=OPTIONS),
  'trees': Recipe(('quantiles', 'length'), 'trees', 'win', 'temperature', options=OPTIONS),
  'linear': Recipe(('average',), 'linear', 'wrong'),
  'isotonic': Recipe(['average'], None, 'wrong', 'isotonic'),
  'edges': Recipe(('token probabilities',), 'linear', 'win'),
}


def fit(name):
  table = synthetic_tables.table('a', size=80)
  quality = table.statistics['accuracy'][:, 0]
  return learned_deferral.fit(name, RECIPES[name], table, quality, np.ones(80), flops=3.0)


@pytest.mark.parametrize('name', RECIPES)
def test_a_decider_that_is_read_scores_to_the_same_bits(tmp_path, name):
  decider = fit(name)
  again = fitted.read(fitted.write(tmp_path, decider))
  other = synthetic_tables.table('b', size=30)._replace(inputs=[f'other {i}' for i in range(30)])
  np.testing.assert_array_equal(again.decider().score(other), decider.decider().score(other))
  assert again.decider().flops == decider.decider().flops
  assert again.decider().reads == decider.decider().reads
  with pytest.raises(learned_deferral.LeakError):  # the fit rows are remembered
    again.decider().score(synthetic_tables.table('a', size=80))


def test_the_files_are_the_same_each_time_and_readable(tmp_path):
  paths = [fitted.write(tmp_path / folder, fit('trees')) for folder in 'ab']
  for suffix in ('.json', '.npz'):
    first, second = (path.with_suffix(suffix).read_bytes() for path in paths)
    assert first == second
  settings = json.loads(paths[0].read_text())
  assert settings['recipe']['features'] == ['quantiles', 'length']
  with np.load(paths[0].with_suffix('.npz'), allow_pickle=False) as arrays:
    assert {'mean', 'fit_ids', '0/feature', 'temperature'} <= set(arrays.files)


@pytest.mark.parametrize('suffix', ['.json', '.npz'])
def test_files_that_are_missing_or_cut_are_named(tmp_path, suffix):
  path = fitted.write(tmp_path, fit('linear'))
  file = path.with_suffix(suffix)
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(ValueError, match=rf'linear\{suffix} is (not a learned|damaged)'):
    fitted.read(path)
  file.unlink()
  with pytest.raises(FileNotFoundError, match=rf'linear\{suffix} does not exist'):
    fitted.read(path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'version': 2}, 'version: expected 1 of the format, found 2'),
    ({'rows': 0}, 'rows'),
    ({'recipe': {'features': ['quantiles'], 'family': 'forest', 'options': {}}}, 'forest'),
    ({'recipe': {'surprise': 1, 'options': {}}}, 'surprise'),
    ({'arrays': {}}, 'other names or shapes'),
  ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, change, message):
  path = fitted.write(tmp_path, fit('linear'))
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    fitted.read(path)


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('0/left', 0, 'names nodes that are no children'),
    ('mean', np.nan, 'finite numbers'),
    ('0/roots', 10**6, 'does not hold what'),
  ],
)
def test_arrays_that_predict_nothing_are_refused(tmp_path, name, value, message):
  decider = fit('trees')
  arrays = dict(decider.arrays)
  arrays[name] = np.full_like(arrays[name], value)
  path = fitted.write(tmp_path, decider._replace(arrays=arrays))
  with pytest.raises(ValueError, match=message):
    fitted.read(path)
