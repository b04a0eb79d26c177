"""Routers of what other systems wrote: sources of answers become tables, and these a router."""

import csv

import numpy as np
import pytest

from cascades import route
from cascades.evaluation import routers
from cascades.evaluation.model_answers import ModelAnswers
from cascades.predictions import imported
from cascades.predictions.imported import Source
from cascades.route import RouteOptions
from tests.predictions import imported_test

RIGHT = {'small': [1, 1, 0, 0, 1], 'large': [1, 1, 1, 1, 0]}  # on five questions


def fitted(folder):
  """Router of one cluster from the tables of a folder."""
  answers = ModelAnswers(
    tables={model: str(folder / model) for model in RIGHT}, split='test',
    costs={'small': 1, 'large': 3},
  )  # fmt: skip
  options = RouteOptions(clusters=1, strength=0.0)
  route.route('fit', str(folder / 'router.json'), answers, options)
  return routers.read(folder / 'router.json')


def check(router):
  losses = dict(zip(router.pool.names, router.arrays['losses'].T.tolist(), strict=True))
  assert losses == {model: [1 - right for right in own] for model, own in RIGHT.items()}
  np.testing.assert_allclose(router.pool.psi[:, 0], [0.4, 0.2], rtol=1e-6)
  vectors = router.embed(['Who wrote it?'])
  chosen = [router.pool.names[router.rule(price)(vectors)[0]] for price in (0.0, 0.2)]
  assert chosen == ['large', 'small']


@imported_test.needs_formats
@pytest.mark.parametrize('name', imported_test.NAMES)
def test_a_router_is_fitted_on_answers_that_other_systems_wrote(name, tmp_path):
  metric = None if name.startswith('lm_eval') else 'exact_match'
  for model, suffix in (('small', ''), ('large', '.large')):
    imported_test.written(
      imported_test.source(f'{name}{suffix}'), tmp_path / model / 'test', metric=metric
    )
  check(fitted(tmp_path))


def test_a_router_is_fitted_on_columns_of_a_csv(tmp_path):
  for model, right in RIGHT.items():
    path = tmp_path / f'{model}.csv'
    with open(path, 'w') as file:
      table = csv.writer(file)
      table.writerow(['qid', 'question', 'gold', 'said'])
      table.writerows(
        [f'q{i}', f'Question {i}?', 'yes', 'yes' if ok else 'no'] for i, ok in enumerate(right)
      )
    given = Source(
      'columns', str(path), columns='id=qid,inputs=question,targets=gold,prediction=said'
    )
    options = imported_test.JUDGED
    imported.write(given, tmp_path / model / 'test', **options)
  check(fitted(tmp_path))


def test_graded_qualities_are_losses_as_they_are(tmp_path):
  (tmp_path / 'graded.csv').write_text('id,a,b\np0,0.25,0.5\np1,1,0.75\np2,,0.1\n')
  (tmp_path / 'prompts.csv').write_text('id,prompt\np0,one\np1,two\np2,three\n')
  answers = ModelAnswers(
    str(tmp_path / 'graded.csv'), str(tmp_path / 'prompts.csv'), {'a': 2, 'b': 1}
  )
  options = RouteOptions(clusters=1, strength=0.0)
  route.route('fit', str(tmp_path / 'router.json'), answers, options)
  router = routers.read(tmp_path / 'router.json')
  expected = [0.75 / 2, (0.5 + 0.25 + 0.9) / 3]  # what `a` has not answered is left out
  np.testing.assert_allclose(router.pool.psi[:, 0], expected, rtol=1e-6)
