"""The frontier of a directory that is written by hand: four rows, two models, a point of both."""

from __future__ import annotations

import json
import math

import pytest

from cascades.evaluation import speculation
from cascades.evaluation.comparison import Settings
from cascades.predictions import rows
from cascades.reporting import speculation_report
from tests import synthetic_tables

LARGE_FLOPS, SMALL_FLOPS = 2000.0, 200.0
SETTINGS = Settings(resamples=50)
RIGHT = {'small': '1000', 'large': '1110', 'opt': '1100'}
CALLS = {  # small, large, accepted, rejected of each row
  'small': [(4, 0, 0, 0)] * 4,
  'large': [(0, 4, 0, 0)] * 4,
  'opt': [(4, 2, 2, 1), (4, 2, 2, 0), (6, 3, 1, 2), (2, 1, 3, 0)],
}
POINTS = {
  'small-temperature0': {'rule': 'small', 'temperature': 0.0, 'alpha': None, 'gamma': None},
  'large-temperature0': {'rule': 'large', 'temperature': 0.0, 'alpha': None, 'gamma': None},
  'opt-alpha0.1-gamma2-temperature0': {
    'rule': 'opt', 'temperature': 0.0, 'alpha': 0.1, 'gamma': 2,
  },
}  # fmt: skip
OPT = 'opt-alpha0.1-gamma2-temperature0'


def row(number, right, calls):
  names = ('small_calls', 'large_calls', 'accepted', 'rejected')
  columns = dict(zip(names, calls, strict=True))
  logprobs = [-0.1 * (number + 1)] * 4
  return rows.build(
    id=str(number), inputs=f'<b>{number}', targets=['yes'], answer='yes' if right else 'no',
    tokens=[3, 4, 5, 1], logprobs=logprobs, statistics={'accuracy': [float(right), 1.0]},
    details=rows.Details(columns=columns),
  )  # fmt: skip


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp('sweep')
  for name, point in POINTS.items():
    model = point['rule']
    records = [
      row(number, right == '1', calls)
      for number, (right, calls) in enumerate(zip(RIGHT[model], CALLS[model], strict=True))
    ]
    flops = SMALL_FLOPS if model == 'small' else LARGE_FLOPS
    synthetic_tables.write(
      path / 'points' / name / 'test', 'a', records, point=point, flops_per_token=flops,
      small={'flops_per_token': SMALL_FLOPS}, metrics=['accuracy'],
      decoding=dict.fromkeys(speculation.ALIKE, 0),
    )  # fmt: skip
  seconds = {'small-temperature0': 0.02, 'large-temperature0': 0.1, OPT: 0.07}
  times = {
    'machine': 'one',
    'points': {name: {'1': {'seconds_per_answer': value}} for name, value in seconds.items()},
    'prompts': {'small': {'1': 0.005}, 'large': {'1': 0.02}},
    'steps': {'small': {'1': {'1': 0.002}}, 'large': {'1': {'1': 0.01, '2': 0.012, '3': 0.014}}},
  }
  (path / 'latency.json').write_text(json.dumps(times))
  return path


@pytest.fixture(scope='module')
def frontier(directory):
  return speculation.frontier(directory, settings=SETTINGS)


@pytest.fixture(scope='module')
def points(frontier):
  return {point.name: point for point in frontier.points}


def test_numbers_of_a_point_equal_those_by_hand(points):
  point = points[OPT]
  assert (point.quality, point.difference.value) == (0.5, -0.25)
  assert point.difference.low <= -0.25 <= point.difference.high <= 0
  assert (point.small_calls, point.large_calls) == (4.0, 2.0)
  assert point.rejection_rate == pytest.approx(3 / 11)
  read = (4 + 4 + 7 + 1) / 4  # tokens of the large model: one behind the prompt, then three a call
  assert point.flops == pytest.approx(4 * SMALL_FLOPS + read * LARGE_FLOPS)
  assert point.seconds == {'1': pytest.approx(0.7)}
  alone = 0.02 + 3 * 0.01
  assert point.modeled['1'] == pytest.approx((0.005 + 3 * 0.002 + 0.02 + 1 * 0.014) / alone)
  assert (point.tokens, point.length) == (4.0, 1.0)


def test_either_model_alone_has_its_own_calls_and_costs(points):
  large, small = points['large-temperature0'], points['small-temperature0']
  assert (large.difference.value, large.difference.low, large.difference.high) == (0, 0, 0)
  assert large.seconds['1'] == large.modeled['1'] == large.length == 1.0
  assert large.flops == 4 * LARGE_FLOPS
  assert small.flops == 4 * SMALL_FLOPS
  assert math.isnan(small.rejection_rate)


def test_the_sequence_cascade_pays_for_the_small_answer_and_ends_at_both_models(frontier):
  curve = frontier.sequence[0.0]
  assert curve.cost[0] == pytest.approx(0.2)
  assert curve.cost[-1] == pytest.approx(1.2)
  assert (curve.quality[0], curve.quality[-1]) == (0.25, 0.75)


def test_a_method_is_summed_up_by_what_it_reaches_and_what_it_costs(frontier):
  methods = {method.name: method for method in frontier.methods}
  opt = methods['opt, gamma 2, temperature 0']
  assert opt.matching is None
  assert opt.best is not None
  assert (opt.best.name, opt.matching_within) == (OPT, opt.best)
  assert 'large' not in ''.join(methods)


def test_a_page_and_numbers_are_written_and_texts_stay_texts(directory, frontier, tmp_path, capsys):
  answer = speculation_report.ColoredAnswer(
    OPT, '<script>', [speculation_report.TokenText('<i>', True)]
  )
  speculation_report.write(tmp_path, frontier, {OPT: [1.0, float('nan')]}, [answer])
  page = (tmp_path / 'report.html').read_text()
  assert 'No point is faster than the large model alone at its quality here.' in page
  assert '<script' not in page.split('</head>')[1]
  assert '<i>' not in page
  numbers = json.loads((tmp_path / 'frontier.json').read_text())
  assert numbers['acceptance_by_position'] == {OPT: [1.0, None]}
  assert {method['best'] for method in numbers['methods']} == {'small-temperature0', OPT}
  assert (tmp_path / 'frontier.csv').read_text().splitlines()[0].startswith('name,rule,alpha')
  assert {path.name for path in (tmp_path / 'figures').iterdir()} == {
    f'{name}.{suffix}'
    for name in ('seconds', 'calls', 'rejections', 'positions')
    for suffix in ('png', 'svg')
  }
  assert 'Methods' in capsys.readouterr().out


def test_a_sweep_without_the_large_model_is_refused_by_name(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no finished table points/large-temperature'):
    speculation.frontier(tmp_path)
