import csv
import io
import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cascades.bootstrap import Estimate
from cascades.evaluation import pooling, quantities
from cascades.evaluation.grouped import GroupAccuracy
from cascades.reporting import escaping, exports
from tests import synthetic_tables


def test_json_holds_every_curve_exactly_with_null_for_no_deferral():
  comparison = synthetic_tables.comparison()
  data = json.loads(json.dumps(exports.as_json(comparison), allow_nan=False))
  assert len(data['cascades']) == len(comparison.cascades)
  for entry, cascade in zip(data['cascades'], comparison.cascades, strict=True):
    assert (entry['model'], entry['score'], entry['task']) == cascade[:3]
    curve = entry['curve']
    assert curve['threshold'][0] is None
    assert curve['threshold'][1:] == cascade.curve.threshold[1:].tolist()
    for name in ('deferral_rate', 'quality', 'cost'):
      assert curve[name] == getattr(cascade.curve, name).tolist()
    assert curve['kept'] == cascade.small_contribution.tolist()
    assert curve['deferred'] == cascade.large_contribution.tolist()
    assert entry['band'] == {'low': cascade.low.tolist(), 'high': cascade.high.tolist()}
  assert data['metric'] == {'name': 'accuracy', 'scale': 1.0, 'higher_is_better': True}
  assert data['tasks'] == {'a': 70, 'b': 40}
  assert len(data['band_rates']) == len(data['cascades'][0]['band']['high'])


def test_long_curves_are_thinned_between_their_ends():
  comparison = synthetic_tables.comparison()
  entry = exports.as_json(comparison, points=5)['cascades'][0]
  assert entry['reachable_points'] == len(comparison.cascades[0].curve.quality) > 5
  assert {len(column) for column in entry['curve'].values()} == {5}
  assert (entry['curve']['deferral_rate'][0], entry['curve']['deferral_rate'][-1]) == (0, 1)


def test_what_is_not_finite_becomes_null():
  comparison = synthetic_tables.comparison(costs=(1.0,), qualities=(0.5, 2.0))
  text = json.dumps(exports.as_json(comparison), allow_nan=False)
  estimates = json.loads(text)['cascades'][0]['estimates']
  values = {(entry['quantity'], entry['at']): entry['value'] for entry in estimates}
  assert values['cost at quality', 2.0] is None
  assert values['quality at cost', 1.0] is None
  area = comparison.cascades[0].estimates[quantities.AREA]
  assert values['area', None] == pytest.approx(area.value)


def test_a_metric_without_limit_has_no_scale():
  comparison = synthetic_tables.comparison('edit_distance')
  metric = json.loads(json.dumps(exports.as_json(comparison), allow_nan=False))['metric']
  assert metric == {'name': 'edit_distance', 'scale': None, 'higher_is_better': False}


def test_questions_are_in_the_json_and_the_records():
  estimates = [Estimate(value, value - 0.1, value + 0.1) for value in (0.25, 0.5, 0.4, 0.025)]
  accuracy = GroupAccuracy(953, *estimates)
  comparison = synthetic_tables.comparison()._replace(group_accuracy={'a': {'cat': accuracy}})
  (exported,) = json.loads(json.dumps(exports.as_json(comparison)))['questions']['a'].values()
  assert exported['questions'] == 953
  values = {
    entry['quantity']: (entry['value'], entry['low'], entry['high'])
    for entry in exported['estimates']
  }
  names = ('small alone', 'large alone', 'area', 'area above chord')
  assert values == {name: tuple(x) for name, x in zip(names, estimates, strict=True)}
  records = [r for r in exports.records(comparison) if r['quantity'].startswith('questions')]
  assert [r['quantity'] for r in records] == [f'questions, {name}' for name in names]
  assert {(r['model'], r['score'], r['task']) for r in records} == {('cat', 'average', 'a')}


def test_there_is_one_record_for_each_number_with_an_interval():
  other = {'bleu': {'xent': synthetic_tables.comparison().at('xent').estimates[quantities.SMALL]}}
  comparison = synthetic_tables.comparison()._replace(other_metrics=other)
  records = list(exports.records(comparison))
  assert len(records) == 1 + sum(len(cascade.estimates) for cascade in comparison.cascades) + sum(
    len(pair.estimates) for pair in (*comparison.differences, *comparison.score_differences)
  )
  assert {tuple(record) for record in records} == {
    (
      'model', 'baseline', 'score', 'task', 'quantity', 'at', 'value', 'low', 'high', 'p',
      'baseline_score', 'p_holm',
    )
  }  # fmt: skip
  differences = [record for record in records if record['baseline']]
  assert all(0 < record['p'] <= 1 for record in differences)
  assert all(record['p'] <= record['p_holm'] <= 1 for record in differences)
  assert all(
    record['p'] is record['p_holm'] is None for record in records if not record['baseline']
  )
  assert {record['task'] for record in differences} == {pooling.POOLED}
  assert 'bleu alone' in {record['quantity'] for record in records}


def test_records_hold_every_number_of_the_cascades_and_of_their_differences():
  comparison = synthetic_tables.comparison()
  records = list(exports.records(comparison))

  def rows(estimates):
    """Rows of the numbers; what is not finite is None."""
    return [
      (*quantity, *(x if math.isfinite(x) else None for x in estimate))
      for quantity, estimate in estimates.items()
    ]

  pairs = (*comparison.differences, *comparison.score_differences)
  for source in (*comparison.cascades, *pairs):
    baseline, columns = getattr(source, 'baseline', ''), ['quantity', 'at', 'value', 'low', 'high']
    names = {
      'model': source.model, 'baseline': baseline, 'score': source.score,
      'task': getattr(source, 'task', pooling.POOLED),
      'baseline_score': getattr(source, 'baseline_score', ''),
    }  # fmt: skip
    chosen = [record for record in records if names.items() <= record.items()]
    columns += ['p'] if baseline else []
    assert [tuple(record[name] for name in columns) for record in chosen] == rows(source.estimates)


@given(st.text())
def test_any_text_is_one_harmless_cell_of_the_csv_and_numbers_stay_numbers(text):
  content = exports.to_csv([{'model': text, 'value': -1.5, 'p': None}]).decode()
  header, row = csv.reader(io.StringIO(content))
  assert header == ['model', 'value', 'p']
  assert row == [escaping.cell(text), '-1.5', '']


def test_the_json_has_the_keys_of_version_1():
  data = exports.as_json(synthetic_tables.comparison())
  assert list(data) == [
    'version', 'metric', 'tables', 'tasks', 'tasks_with_repeated_inputs', 'flops_per_token',
    'settings', 'band_rates', 'cascades', 'differences', 'recipes', 'averages',
    'score_differences', 'other_metrics', 'questions', 'chains',
  ]  # fmt: skip
  assert list(data['settings']) == [
    'weights', 'costs', 'qualities', 'baseline', 'resamples', 'confidence', 'seed',
  ]  # fmt: skip
  assert list(data['cascades'][0]) == [
    'model', 'score', 'task', 'reachable_points', 'curve', 'band', 'simultaneous_band',
    'estimates',
  ]  # fmt: skip
  assert list(data['cascades'][0]['curve']) == [
    'threshold', 'deferral_rate', 'quality', 'cost', 'kept', 'deferred',
  ]  # fmt: skip
  assert list(data['differences'][0]) == [
    'model', 'baseline', 'score', 'quality', 'differences', 'baseline_score', 'simultaneous_band',
    'mcnemar',
  ]  # fmt: skip
