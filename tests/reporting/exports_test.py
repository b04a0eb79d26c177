import json

import numpy as np
import pytest

from cascades import comparison, pooling
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
