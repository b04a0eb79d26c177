import dataclasses
import json
import math

import msgspec
import numpy as np
import pytest

from cascades import deferral, guarantees, metrics, risk_tests
from cascades.evaluation import calibration, policy, pooling
from cascades.evaluation.calibration import Demands, NotCertifiedError
from tests import synthetic_tables

AVERAGE = deferral.DECIDERS['average']
SKILLS = {'small': 0.0, 'large': 2.2}


def tables(model, *, tasks=('a', 'b'), size=200, judge=metrics.accuracy, **changes):
  skill = SKILLS[model]
  parameters = 8000 if model == 'large' else 1000
  return [
    synthetic_tables.table(
      task, size=size, skill=skill, seed=len(model), parameters=parameters, judged_by=[judge]
    )._replace(**changes)
    for task in tasks
  ]


def judged(
  metric=metrics.accuracy, *, by_task=False, surrogate=False, axis='flops per token', **kw
):
  return calibration.judged(
    tables('small', judge=metric, **kw),
    tables('large', judge=metric, **kw),
    metric,
    AVERAGE,
    surrogate=surrogate,
    by_task=by_task,
    cost_axis=axis,
  )


def test_the_threshold_is_that_of_the_walk_and_says_what_is_expected():
  (rows,) = judged()
  entry = calibration.calibrate(rows, Demands(quality=0.7))
  walk = guarantees.path(rows.score)
  (risk,) = calibration.risks(rows, Demands(quality=0.7))
  point = np.flatnonzero(guarantees.certified(walk, risk))[0]
  assert entry.task == pooling.POOLED
  assert entry.value == walk.threshold[point]
  deferred = rows.score >= entry.value
  quality = np.where(deferred, rows.large, rows.small).mean()
  assert entry.quality.value == pytest.approx(quality)
  assert entry.promises[0].observed == pytest.approx(quality)
  assert entry.promises[0].loss == pytest.approx(1 - quality)
  assert entry.quality.low < quality < entry.quality.high
  assert entry.deferral_rate.value == deferred.mean()
  assert entry.cost == pytest.approx(2000 + 16000 * deferred.mean())
  rate = entry.deferral_rate
  assert msgspec.structs.astuple(entry.cost_interval) == pytest.approx(
    [2000 + 16000 * share for share in (rate.value, rate.low, rate.high)]
  )
  assert quality >= 0.7


def test_by_task_each_task_has_its_own_threshold():
  subsets = judged(by_task=True)
  entries = [calibration.calibrate(rows, Demands(quality=0.65)) for rows in subsets]
  assert [entry.task for entry in entries] == ['a', 'b']
  assert [entry.rows for entry in entries] == [200, 200]
  assert entries[0].value != entries[1].value


def test_a_cost_that_is_the_same_for_all_queries_is_a_deferral_rate():
  (rows,) = judged()
  by_cost = calibration.calibrate(rows, Demands(cost=2000 + 16000 * 0.5))
  by_rate = calibration.calibrate(rows, Demands(deferral_rate=0.5))
  assert by_cost.value == by_rate.value
  assert by_cost.promises[0].level == pytest.approx(0.5)


def test_costs_that_differ_need_a_bound():
  prices = {'dollars': np.linspace(0.1, 0.5, 200)}
  (rows,) = judged(axis='dollars', columns=prices, tasks=('a',))
  np.testing.assert_allclose(rows.large_cost, 2 * rows.small_cost)  # the discarded answer is paid
  with pytest.raises(ValueError, match=r'give MOST_COST, in dollars.*costs 1'):
    calibration.risks(rows, Demands(cost=0.4, cost_axis='dollars'))
  demands = Demands(cost=0.5, cost_axis='dollars', most_cost=1.5)
  entry = calibration.calibrate(rows, demands)
  assert entry.promises[0].test == 'betting'
  assert 0.3 < entry.cost < 0.5
  ends = [1.5 * end for end in risk_tests.mean_interval(entry.cost / 1.5, 200, 0.1)]
  assert [entry.cost_interval.low, entry.cost_interval.high] == pytest.approx(ends)
  assert ends[0] < entry.cost < ends[1]
  unbounded = calibration.calibrate(rows, Demands(quality=0.3, cost_axis='dollars'))
  assert unbounded.cost_interval is None


def test_error_rates_are_demanded_at_most():
  wrong = metrics.accuracy._replace(name='wrong', higher_is_better=False)
  (rows,) = judged(wrong, tasks=('a',))
  flipped = rows._replace(small=1 - rows.small, large=1 - rows.large)
  entry = calibration.calibrate(flipped, Demands(quality=0.4))
  (other,) = judged(tasks=('a',))
  assert entry.value == calibration.calibrate(other, Demands(quality=0.6)).value
  assert entry.quality.value <= 0.4


def test_a_corpus_metric_is_refused_with_the_reason_or_replaced_by_name():
  with pytest.raises(ValueError, match=r'bleu is a function of sums .* SURROGATE=True'):
    judged(metrics.METRICS['bleu'])
  (rows,) = judged(metrics.METRICS['bleu'], surrogate=True)
  assert rows.small.min() >= 0
  assert rows.small.max() <= 100
  entry = calibration.calibrate(rows, Demands(margin=40.0))
  assert entry.promises[0].test == 'betting'
  assert entry.promises[0].level == pytest.approx(0.4)


def test_metrics_without_bounds_are_refused():
  with pytest.raises(ValueError, match=r'edit_distance of single rows .* has no bounds'):
    judged(metrics.edit_distance)


def test_rows_in_groups_are_refused():
  with pytest.raises(ValueError, match="task 'a' come in groups"):
    judged(tasks=('a',), groups=[f'g{i // 2}' for i in range(200)])


def test_a_refusal_says_how_many_more_rows_would_do():
  (rows,) = judged(size=20, tasks=('a',))
  quality = float(rows.large.mean()) - 0.02
  with pytest.raises(NotCertifiedError, match=r'About [\d,]+ more rows, [\d,]+ in all') as error:
    calibration.calibrate(rows, Demands(quality=quality, margin=0.2))
  assert 'QUALITY=' in str(error.value)
  assert 'MARGIN=0.2 (delta 0.1) is certified' in str(error.value)
  with pytest.raises(NotCertifiedError, match='no number of rows would do'):
    calibration.calibrate(rows, Demands(quality=1.0))


@pytest.mark.parametrize(
  ('demands', 'message'),
  [
    ({}, 'nothing to promise: give one or more of QUALITY'),
    ({'margin': 0.0}, 'MARGIN=0.0: no number of rows'),
    ({'deferral_rate': 1.5}, r'DEFERRAL_RATE=1.5 must lie in \[0, 1\]'),
    ({'quality': math.nan}, 'QUALITY=nan must be a finite number'),
    ({'quality': 0.5, 'delta': 0.0}, 'DELTA=0.0 must lie between 0 and 1'),
    ({'quality': 0.5, 'deltas': {'speed': 0.1}}, r"DELTAS names \['speed'\]"),
    ({'quality': 0.5, 'cost_axis': 'joules'}, "COST_AXIS='joules'"),
  ],
)
def test_demands_out_of_range_are_refused_by_name(demands, message):
  with pytest.raises(ValueError, match=message):
    Demands(**demands)


def test_a_quality_outside_the_metric_and_a_cost_below_the_small_model_are_refused():
  (rows,) = judged()
  with pytest.raises(ValueError, match=r'\(accuracy\)=80.0 must be .* at most 1'):
    calibration.risks(rows, Demands(quality=80))
  with pytest.raises(ValueError, match='COST=1000 is less than the small model costs by itself'):
    calibration.risks(rows, Demands(cost=1000.0))


def test_one_row_is_refused_and_equal_scores_defer_all_or_none():
  (rows,) = judged(tasks=('a',))
  one = rows._replace(
    **{name: getattr(rows, name)[:1] for name in ('score', 'small', 'large', 'small_cost')}
  )
  with pytest.raises(ValueError, match="'a' has one row"):
    calibration.calibrate(one, Demands(quality=0.5))
  equal = rows._replace(score=np.ones(200))
  entry = calibration.calibrate(equal, Demands(quality=0.7))
  assert entry.deferral_rate.value == 1
  never = calibration.calibrate(equal, Demands(deferral_rate=0.5))
  assert never.threshold is None
  assert never.value == np.inf


def test_each_demand_has_its_own_delta():
  (rows,) = judged()
  demands = Demands(quality=0.6, deferral_rate=0.9, deltas={'quality': 0.01})
  assert [risk.delta for risk in calibration.risks(rows, demands)] == [0.01, 0.1]


def test_the_check_keeps_promises_that_the_plug_in_breaks():
  (rows,) = judged()
  _, methods = calibration.check(rows, Demands(quality=0.7), draws=150, seed=0)
  assert methods['certified'].fulfilled.mean() > 0.85
  assert methods['plug-in'].fulfilled.mean() < 0.75
  assert np.median(methods['certified'].rate) > np.median(methods['plug-in'].rate)


def test_monitors_watch_what_was_promised():
  (rows,) = judged()
  entry = calibration.calibrate(rows, Demands(quality=0.7))
  monitor = policy.monitor(entry, alpha=0.05)
  assert monitor.alphas.sum() <= 0.05
  assert monitor.levels[2] == pytest.approx(0.3)
  assert monitor.gaps.sum() == len(rows.score) + 1
  promised = calibration.calibrate(rows, Demands(deferral_rate=0.6))
  assert policy.monitor(promised, alpha=0.05).levels[0] == 0.6
  json.dumps(dataclasses.asdict(Demands(quality=0.7)))
