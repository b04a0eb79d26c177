import json

import numpy as np
import pytest

from cascades.bootstrap import Estimate
from cascades.evaluation import comparison, pooling
from cascades.evaluation.grouped import Shares
from cascades.reporting import exports
from tests import synthetic_tables


def test_json_holds_every_curve_exactly_with_null_for_no_deferral():
  compared = synthetic_tables.compared()
  data = json.loads(json.dumps(exports.as_json(compared), allow_nan=False))
  assert len(data['cascades']) == len(compared.cascades)
  for one, cascade in zip(data['cascades'], compared.cascades, strict=True):
    assert (one['model'], one['score'], one['task']) == cascade[:3]
    assert one['curve']['threshold'][0] is None
    assert one['curve']['threshold'][1:] == cascade.curve.threshold[1:].tolist()
    for name in ('deferral_rate', 'quality', 'cost'):
      assert one['curve'][name] == getattr(cascade.curve, name).tolist()
    parts = np.add(one['curve']['kept'], one['curve']['deferred'])
    np.testing.assert_allclose(parts, one['curve']['quality'])
    assert one['band']['low'] == cascade.low.tolist()
  assert data['metric'] == {'name': 'accuracy', 'scale': 1.0, 'higher_is_better': True}
  assert data['tasks'] == {'a': 70, 'b': 40}
  assert len(data['band_rates']) == len(data['cascades'][0]['band']['high'])


def test_long_curves_are_thinned_between_their_ends():
  compared = synthetic_tables.compared()
  one = exports.as_json(compared, points=5)['cascades'][0]
  assert one['reachable_points'] == len(compared.cascades[0].kept) > 5
  assert len(one['curve']['quality']) == 5
  assert (one['curve']['deferral_rate'][0], one['curve']['deferral_rate'][-1]) == (0, 1)


def test_what_is_not_finite_becomes_null():
  compared = synthetic_tables.compared(costs=(1.0,), qualities=(0.5, 2.0))
  text = json.dumps(exports.as_json(compared), allow_nan=False)
  estimates = json.loads(text)['cascades'][0]['estimates']
  found = {(one['quantity'], one['at']): one['value'] for one in estimates}
  assert found['cost at quality', 2.0] is None
  assert found['quality at cost', 1.0] is None
  assert found['area', None] == pytest.approx(compared.cascades[0].estimates[comparison.AREA].value)


def test_a_metric_without_limit_has_no_scale():
  compared = synthetic_tables.compared('edit_distance')
  metric = json.loads(json.dumps(exports.as_json(compared), allow_nan=False))['metric']
  assert metric == {'name': 'edit_distance', 'scale': None, 'higher_is_better': False}


def test_questions_are_in_the_json_and_the_records():
  estimates = [Estimate(value, value - 0.1, value + 0.1) for value in (0.25, 0.5, 0.4, 0.025)]
  shares = Shares(953, *estimates)
  compared = synthetic_tables.compared()._replace(questions={'a': {'cat': shares}})
  (told,) = json.loads(json.dumps(exports.as_json(compared)))['questions']['a'].values()
  assert told['questions'] == 953
  found = {one['quantity']: (one['value'], one['low'], one['high']) for one in told['estimates']}
  names = ('small alone', 'large alone', 'area', 'area above chord')
  assert found == {name: tuple(one) for name, one in zip(names, estimates, strict=True)}
  records = [one for one in exports.records(compared) if one['quantity'].startswith('questions')]
  assert [one['quantity'] for one in records] == [f'questions, {name}' for name in names]
  assert {(one['model'], one['score'], one['task']) for one in records} == {('cat', 'average', 'a')}


def test_there_is_one_record_for_each_number_with_an_interval():
  other = {'bleu': {'xent': synthetic_tables.compared().at('xent').estimates[comparison.SMALL]}}
  compared = synthetic_tables.compared()._replace(others=other)
  records = list(exports.records(compared))
  assert len(records) == 1 + sum(len(one.estimates) for one in compared.cascades) + sum(
    len(pair.differences) for pair in compared.versus
  )
  assert {tuple(record) for record in records} == {
    ('model', 'baseline', 'score', 'task', 'quantity', 'at', 'value', 'low', 'high', 'p')
  }
  differences = [record for record in records if record['baseline']]
  assert all(0 < record['p'] <= 1 for record in differences)
  assert all(record['p'] is None for record in records if not record['baseline'])
  assert {record['task'] for record in differences} == {pooling.POOLED}
  assert records[-1]['quantity'] == 'bleu alone'
