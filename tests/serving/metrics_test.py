"""Metrics in the form of Prometheus, drift alarms, and the status that the page reads."""

import gc
import json
import math
import time
import tracemalloc

import numpy as np
import pytest
from prometheus_client import parser

from cascades import drift
from cascades.evaluation.policy import Interval, Promise, Threshold
from cascades.serving import metrics as serving_metrics
from cascades.serving import status
from cascades.serving.breaker import Breaker
from cascades.serving.exchanges import LevelDecision
from cascades.serving.metering import Log, LogOptions
from cascades.serving.metrics import Metrics
from cascades.serving.status import Recent
from tests.serving.example_exchanges import exchange, leg
from tests.serving.fake_models import rule


def read(metrics):
  """Samples by name and labels, from the exposition."""
  families = parser.text_string_to_metric_families(metrics.exposition().decode())
  return {
    (sample.name, *(f'{k}={v}' for k, v in sorted(sample.labels.items()))): sample.value
    for family in families
    for sample in family.samples
  }


def entry(scores, threshold=0.0, task='words', promises=()):
  edges, ties, gaps = drift.reference(np.asarray(scores), seed=0)
  rate = float(np.mean(np.asarray(scores) >= threshold))
  return Threshold(
    task, threshold, len(scores), list(promises), Interval(rate, 0, 1), Interval(0.9, 0, 1), 1.0,
    edges.tolist(), ties.tolist(), gaps.tolist(),
  )  # fmt: skip


def test_exchanges_are_counted_by_status_author_model_and_decision():
  metrics = Metrics()
  metrics.record(exchange())
  metrics.record(exchange(leg(), leg('large', dollars=0.5, generated_tokens=9), score=0.75))
  refused = exchange()._replace(legs=(), author=None, status=429, decisions=())
  metrics.record(refused)
  samples = read(metrics)
  assert samples['cascade_requests_total', 'author=small', 'status=200'] == 1
  assert samples['cascade_requests_total', 'author=large', 'status=200'] == 1
  assert samples['cascade_requests_total', 'author=nobody', 'status=429'] == 1
  assert samples['cascade_decisions_total', 'deferred=true'] == 1
  assert samples['cascade_decisions_total', 'deferred=false'] == 1
  assert samples['cascade_dollars_total', 'role=small'] == pytest.approx(0.002)
  assert samples['cascade_dollars_total', 'role=large'] == 0.5
  assert samples['cascade_prompt_tokens_total', 'role=small'] == 10
  assert samples['cascade_cached_tokens_total', 'role=large'] == 2
  assert samples['cascade_generated_tokens_total', 'role=large'] == 9
  assert samples[('cascade_discarded_tokens_total',)] == 2
  assert samples[('cascade_score_count',)] == 2
  assert samples['cascade_score_bucket', 'le=0.3'] == 1
  assert samples['cascade_request_seconds_bucket', 'author=small', 'le=0.5'] == 1
  assert samples['cascade_request_seconds_bucket', 'author=small', 'le=0.25'] == 0
  assert samples['cascade_queue_seconds_count', 'role=small'] == 2
  assert samples['cascade_model_seconds_sum', 'role=large'] == 0.2
  assert samples['cascade_tokens_per_second_sum', 'role=large'] == pytest.approx(9 / 0.19)
  assert samples[('cascade_decision_seconds_count',)] == 2


def test_failures_and_flags_are_counted_in_a_bounded_number_of_series():
  metrics = Metrics()
  for number in range(40):
    metrics.record(exchange(leg(), leg('large', error='down', finish=None), flag=f'f{number}'))
  samples = read(metrics)
  assert samples['cascade_model_failures_total', 'role=large'] == 40
  flags = [key for key in samples if key[0] == 'cascade_flags_total']
  assert len(flags) == serving_metrics.MOST_FLAGS + 1
  assert samples['cascade_flags_total', 'flag=other'] == 20


def test_the_state_of_a_breaker_and_of_the_log_is_read_when_it_is_asked_for(tmp_path):
  metrics, breaker = Metrics(), Breaker(failures=1)
  log = Log(tmp_path)
  metrics.watch_breaker('large', breaker)
  metrics.watch_breaker('small', Breaker())
  metrics.watch_log(log)
  metrics.gauge('waiting', 'Requests that wait.', lambda: 3)
  assert read(metrics)['cascade_breaker_state', 'role=large', 'state=closed'] == 1
  breaker.fail(breaker.enter())
  log.lost, log.failure = 7, 'full'
  samples = read(metrics)
  assert samples['cascade_breaker_state', 'role=large', 'state=closed'] == 0
  assert samples['cascade_breaker_state', 'role=large', 'state=open'] == 1
  assert samples['cascade_breaker_state', 'role=small', 'state=closed'] == 1
  assert samples[('cascade_log_lost',)] == 7
  assert samples[('cascade_log_failing',)] == 1
  assert samples[('cascade_log_rows',)] == 0
  assert samples[('cascade_waiting',)] == 3
  log.close()


def stream(metrics, scores, threshold=0.0, task='words', **changes):
  for score in scores:
    deferred = bool(score >= threshold)
    legs = (leg(), leg('large')) if deferred else (leg(),)
    metrics.record(exchange(*legs, score=score, threshold=threshold, task=task, **changes))


def test_drift_of_the_scores_raises_an_alarm_and_exchangeable_scores_none():
  generator = np.random.default_rng(0)
  metrics = Metrics({('small', 'words'): entry(generator.normal(size=499))}, seed=0)
  alarm = 'cascade_drift_alarm', 'monitor=scores', 'role=small', 'task=words'
  stream(metrics, generator.normal(size=300))
  assert read(metrics)[alarm] == 0
  assert metrics.alarms() == []
  stream(metrics, generator.normal(size=200) + 1.5)
  samples = read(metrics)
  assert samples[alarm] == 1
  assert samples['cascade_drift_rows', 'role=small', 'task=words'] == 500
  assert ('small', 'words', 'scores') in metrics.alarms()
  assert ('cascade_drift_alarm', 'monitor=quality', 'role=small', 'task=words') not in samples


def test_more_deferrals_than_promised_raise_an_alarm():
  generator = np.random.default_rng(0)
  promise = Promise('deferral rate', 0.3, 0.05, 0.2, 'deferral', 0.3, 'binomial')
  calibrated = entry(generator.normal(size=499), threshold=0.85, promises=[promise])
  metrics = Metrics({('small', 'words'): calibrated}, seed=0)
  stream(metrics, generator.normal(size=150) + 2, threshold=0.85)
  assert ('small', 'words', 'deferrals above') in metrics.alarms()


def test_each_level_of_a_chain_is_watched_on_the_rows_that_reach_it():
  generator = np.random.default_rng(0)
  watched = {(role, 'words'): entry(generator.normal(size=499)) for role in ('1b', '8b')}
  metrics = Metrics(watched, seed=0)
  for first, second in generator.normal([0, 1.5], size=(400, 2)):
    decisions = [LevelDecision('1b', first, 0.0, 0.0)]
    if first >= 0:
      decisions.append(LevelDecision('8b', second, 0.0, 0.0))
    metrics.record(exchange(leg(), task='words')._replace(decisions=tuple(decisions)))
  samples = read(metrics)
  assert samples['cascade_drift_rows', 'role=1b', 'task=words'] == 400
  assert 150 < samples['cascade_drift_rows', 'role=8b', 'task=words'] < 250
  assert {role for role, _, _ in metrics.alarms()} == {'8b'}
  assert ('8b', 'words', 'scores') in metrics.alarms()


def test_scores_that_are_bounds_raise_no_alarm_about_scores():
  generator = np.random.default_rng(0)
  metrics = Metrics({('small', 'words'): entry(generator.normal(size=499))}, seed=0)
  for score in generator.normal(size=400):
    if score < 0:
      stream(metrics, [score])
    else:  # stopped at a bound that is always the same
      metrics.record(exchange(leg(finish=None), leg('large'), score=0.01, threshold=0.0))
  samples = read(metrics)
  assert metrics.alarms() == []
  assert ('cascade_drift_alarm', 'monitor=scores', 'role=small', 'task=words') not in samples
  assert samples['cascade_drift_alarm', 'monitor=deferrals above', 'role=small', 'task=words'] == 0
  assert samples[('cascade_score_count',)] < 400
  assert samples['cascade_decisions_total', 'deferred=true'] > 100


def test_tasks_under_one_threshold_are_one_stream_and_other_tasks_are_not_watched():
  pooled = entry(np.arange(99.0), task='all tasks')
  metrics = Metrics({('small', 'a'): pooled, ('small', 'b'): pooled})
  for task in ('a', 'b', 'c'):
    stream(metrics, [3.0], task=task)
  assert read(metrics)['cascade_drift_rows', 'role=small', 'task=all tasks'] == 2


def test_another_policy_begins_anew_with_buckets_of_its_own_scores():
  metrics = Metrics({('small', 'words'): entry(np.arange(99.0))})
  stream(metrics, [3.0, 4.0])
  metrics.watch(
    {('small', 'other'): entry(np.arange(0, 9900.0, 100), threshold=math.inf, task='other')}
  )
  samples = read(metrics)
  assert samples['cascade_drift_rows', 'role=small', 'task=other'] == 0
  assert ('cascade_drift_rows', 'role=small', 'task=words') not in samples
  assert samples[('cascade_score_count',)] == 0
  assert ('cascade_score_bucket', 'le=900.0') in samples
  assert samples['cascade_requests_total', 'author=large', 'status=200'] == 2


def test_the_status_has_points_and_no_text():
  recent = Recent(most=3)
  for number in range(4):
    recent.record(
      exchange(leg(text='a secret'), leg('large'), id=str(number), score=0.25, threshold=math.inf)
    )
  recent.record(exchange()._replace(legs=()))
  recent.record(exchange(leg(finish=None), leg('large'), leg('large', dollars=None)))
  state = status.status(
    recent, name='mine', time=5.0, models={'small': 's', 'large': 'l'}, policy=rule(math.inf),
    alarms=[('small', 'words', 'scores')], breakers={'large': 'open'},
    log='full', since=3,
  )  # fmt: skip
  assert 'secret' not in json.dumps(state, allow_nan=False)
  assert [point['number'] for point in state['recent']] == [4, 5]
  first, last = state['recent']
  assert (first['score'], first['threshold'], first['is_bound']) == (0.25, None, False)
  assert (first['decided'], [*first['sides']]) == ('small', ['small', 'large'])
  assert first['sides']['small'] == {
    'dollars': 0.001, 'tokens': 2, 'seconds': 0.2, 'queue_seconds': 0.01,
  }  # fmt: skip
  assert last['is_bound']
  assert last['sides']['large'] == {
    'dollars': None,
    'tokens': 4,
    'seconds': 0.4,
    'queue_seconds': 0.02,
  }
  assert state['total'] == 5
  assert state['drift'] == [{'role': 'small', 'task': 'words', 'monitor': 'scores'}]
  assert state['levels'] == [
    {'role': 'small', 'decider': 'average', 'thresholds': {'all tasks': None}},
    {'role': 'large', 'decider': None, 'thresholds': {}},
  ]


@pytest.mark.slow
def test_memory_is_flat_over_20000_exchanges(tmp_path):
  generator = np.random.default_rng(0)
  metrics = Metrics({('small', 'words'): entry(generator.normal(size=499))}, seed=0)
  recent, log = Recent(), Log(tmp_path, LogOptions(file_bytes=1 << 20))
  sizes = []
  tracemalloc.start()
  for number in range(20_001):
    score = generator.normal()
    each = exchange(leg(), id=str(number), score=score, threshold=0.0)
    for record in (metrics.record, recent.record, log.record):
      record(each)
    while number - log.written > 500:
      time.sleep(0.001)
    if number % 5000 == 0 and number:
      gc.collect()
      sizes.append(tracemalloc.get_traced_memory()[0])
  tracemalloc.stop()
  log.close()
  assert log.written == 20_001
  assert max(sizes) - min(sizes) < 200_000, sizes
