import json
import subprocess
import sys

import numpy as np
import pytest

from cascades import curves, deferral
from cascades.evaluation import compare, pooling, quantities, seeds
from cascades.evaluation.comparison import Settings
from cascades.evaluation.quantities import RATES
from cascades.evaluation.tables import Tables
from cascades.reporting import exports
from tests import synthetic_tables

SCORES = {
  name: deferral.as_score(rule)
  for name, rule in deferral.PAPER.items()
  if name in ('average', 'sum')
}
RECIPES = {'cat': ('cat, seed 1', 'cat, seed 2', 'cat, seed 3')}


def compared(*, recipes=RECIPES, same=False, **settings):
  small, large = synthetic_tables.small_and_large()
  cats = {
    name: [
      synthetic_tables.table(task, size=size, skill=0.4, seed=1 if same else seed)
      for task, size in synthetic_tables.SIZES.items()
    ]
    for seed, name in enumerate(RECIPES['cat'], start=1)
  }
  return compare.compare(
    {'xent': small['xent'], **cats},
    large,
    scores=SCORES,
    settings=Settings(**{'resamples': 200, **settings}),
    recipes=recipes,
  )


def test_recipes_are_compared_by_the_means_of_their_seeds():
  comparison = compared()
  assert comparison.recipes == RECIPES
  assert [(pair.model, pair.baseline) for pair in comparison.differences] == [('cat', 'xent')] * 2
  assert {(c.model, c.score, c.task) for c in comparison.averages} == {
    ('cat', score, pooling.POOLED) for score in SCORES
  }
  average, pair = comparison.averages[0], comparison.differences[0]
  own = [comparison.at(name) for name in RECIPES['cat']]
  for quantity in (quantities.SMALL, quantities.AREA, quantities.ABOVE_CHORD):
    expected = np.mean([cascade.estimates[quantity].value for cascade in own])
    assert average.estimates[quantity].value == pytest.approx(expected)
    baseline = comparison.at('xent').estimates[quantity].value
    assert pair.estimates[quantity].value == pytest.approx(expected - baseline)
  read = [np.interp(RATES, c.curve.deferral_rate, c.curve.quality) for c in own]
  mean = np.interp(RATES, average.curve.deferral_rate, average.curve.quality)
  np.testing.assert_allclose(mean, np.mean(read, axis=0))
  assert average.estimates[quantities.AREA].value == pytest.approx(curves.area(average.curve))
  np.testing.assert_allclose(
    average.small_contribution + average.large_contribution, average.curve.quality
  )
  assert not pair.mcnemar


def test_equal_seeds_are_as_one_model():
  comparison = compared(same=True)
  single, average = comparison.at('cat, seed 1'), comparison.averages[0]
  for quantity, estimate in single.estimates.items():
    assert average.estimates[quantity] == pytest.approx(estimate, nan_ok=True), quantity
  np.testing.assert_allclose(average.low, single.low)
  np.testing.assert_allclose(average.simultaneous, single.simultaneous)


def test_without_recipes_every_model_stands_for_itself_to_the_last_bit():
  comparison, alone = compared(), compared(recipes={})
  assert not alone.recipes
  assert not alone.averages
  assert len(alone.differences) == 12
  for first, second in zip(comparison.cascades, alone.cascades, strict=True):
    assert first.estimates == second.estimates
    np.testing.assert_array_equal(first.simultaneous, second.simultaneous)


def test_averages_are_exported_beside_single_seeds():
  comparison = compared(resamples=20)
  data = exports.as_json(comparison)
  assert data['recipes'] == {'cat': list(RECIPES['cat'])}
  assert data['averages'][0]['curve']['threshold'][1] is None
  assert {'cat', 'cat, seed 1'} <= {record['model'] for record in exports.records(comparison)}


@pytest.mark.parametrize(
  'recipes',
  [{'cat': ('cat, seed 1', 'other')}, {'xent': ('cat, seed 1',)},
   {'a': ('cat, seed 1',), 'b': ('cat, seed 1',)}],
)  # fmt: skip
def test_recipes_of_other_models_are_refused(recipes):
  with pytest.raises(ValueError, match='training seeds'):
    seeds.members(['xent', *RECIPES['cat']], recipes)


@pytest.mark.slow
def test_the_command_takes_the_seeds_of_a_recipe(tmp_path):
  for name, skill, seed in (('one', 0.3, 1), ('two', 0.3, 2), ('x', 0.1, 4), ('large', 1.5, 3)):
    rows = synthetic_tables.records('a', skill=skill, seed=seed)
    synthetic_tables.write(tmp_path / name / 'test', 'a', rows)
  subprocess.run(
    [sys.executable, '-m', 'cascades.evaluate', '--gin_file=runs/evaluate.gin',
     "--gin.SMALL={'cat': ['one', 'two'], 'x': 'x'}", '--gin.LARGE=large',
     '--gin.EVAL_OUTPUT_DIR=report', '--gin.RESAMPLES=20'],
    check=True, cwd=tmp_path,
  )  # fmt: skip
  data = json.loads((tmp_path / 'report' / 'curves.json').read_text())
  assert data['recipes'] == {'cat': ['cat, seed 1', 'cat, seed 2']}
  assert {(pair['model'], pair['baseline']) for pair in data['differences']} == {('x', 'cat')}


def test_several_directories_of_one_name_are_seeds_and_few_of_them_are_warned_of(tmp_path, caplog):
  for name, skill, seed in (('one', 0.3, 1), ('two', 0.3, 2), ('large', 1.5, 3)):
    rows = synthetic_tables.records('a', skill=skill, seed=seed)
    synthetic_tables.write(tmp_path / name / 'test', 'a', rows)
  directories = [str(tmp_path / name) for name in ('one', 'two')]
  tables = Tables({'cat': directories}, str(tmp_path / 'large'))
  small, _ = tables.read()
  assert [*small] == ['cat, seed 1', 'cat, seed 2'] == [*tables.recipes['cat']]
  assert 'cat has 2 training seeds' in caplog.text
  assert [*Tables({'cat': directories[:1]}, str(tmp_path / 'large')).read()[0]] == ['cat']
  with pytest.raises(ValueError, match="SMALL has no directory for 'cat'"):
    Tables({'cat': []}, str(tmp_path / 'large')).read()
