"""The frontier of a directory that is written by hand: four rows, two models, a point of both."""

from __future__ import annotations

import json
import math
import shutil
import types

import numpy as np
import pytest
from etils import epath

from cascades import bootstrap, deferral
from cascades.evaluation import speculation, speculation_costs
from cascades.evaluation.comparison import Settings
from cascades.predictions import rows
from cascades.reporting import speculation_charts, speculation_figures, speculation_report
from tests import synthetic_tables
from tests.reporting.router_report_test import CHROMIUM, opened

LARGE_FLOPS, SMALL_FLOPS = 2000.0, 200.0
SETTINGS = Settings(resamples=50)
RIGHT = {'small': '1000', 'large': '1110', 'opt': '1100'}
CALLS = {  # small, large, accepted, rejected of each row
  'small': [(4, 0, 0, 0)] * 4,
  'large': [(0, length, 0, 0) for length in (6, 4, 4, 2)],  # the first rows are the surest
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
  length = calls[1] if calls[0] == 0 else 4
  logprobs = [-0.1 * (number + 1)] * length
  return rows.build(
    id=str(number), inputs=f'<b>{number}', targets=['yes'], answer='yes' if right else 'no',
    tokens=[3] * (length - 1) + [1], logprobs=logprobs,
    statistics={'accuracy': [float(right), 1.0]}, details=rows.Details(columns=columns),
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


def test_points_stand_in_the_order_of_their_names_at_each_temperature(points):
  assert list(points) == ['large-temperature0', OPT, 'small-temperature0']


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
  assert (point.tokens, point.length.value) == (4.0, 1.0)
  # At 8 of 11 accepted: (2 * .2 + 1.2) / 1.727 = .93 with one draft, (3 * .2 + 1.4) / 2.256 = .89.
  assert point.planned == {'1': 2}
  assert not points['small-temperature0'].planned


def test_drafts_are_planned_from_measured_steps_and_acceptance(directory):
  latency = json.loads((directory / 'latency.json').read_text())
  point = {'rule': 'lossless', 'gamma': 1}
  planned = lambda acceptance, **model: speculation_costs.planned_drafts(
    latency, {'point': point, 'small': model}, acceptance
  )
  assert [planned(a)['1'] for a in (0.2, 0.45, 0.9)] == [0, 1, 2]
  assert planned(float('nan')) == planned(0.9, shortlist={}) == {}  # no steps of the drafter
  latency['steps']['drafter'] = {'1': {'1': 0.0002}}
  assert (planned(0.6), planned(0.6, shortlist={})) == ({'1': 1}, {'1': 2})
  point['rule'] = 'opt'  # which needs both models
  assert planned(0.0) == {'1': 1}


def test_the_large_model_of_a_token_cascade_reads_whole_answers_once_it_is_called():
  point = {'rule': 'token_chow', 'gamma': None}
  manifest = {'flops_per_token': LARGE_FLOPS, 'small': {'flops_per_token': SMALL_FLOPS}}
  table = types.SimpleNamespace(manifest=manifest, lengths=np.array([6, 4]))
  calls = {'small': np.array([5, 4]), 'large': np.array([2, 0])}
  flops = speculation_costs.flops(table, point, calls)
  assert flops == 4.5 * SMALL_FLOPS + (6 + 0) / 2 * LARGE_FLOPS


def test_lengths_have_the_interval_of_ratios_of_resampled_sums():
  lengths, alone = np.array([4, 4, 4, 4]), np.array([6, 4, 4, 2])
  counts = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 0, 0, 4], [0, 2, 2, 0]])
  own = speculation_costs.relative_length(lengths, alone, counts, 1.0)
  assert own == pytest.approx((1.0, 4 / 6, 4 / 2))


def test_p_values_are_adjusted_for_the_number_of_points_and_resamples_suffice_for_it(
  directory, points, monkeypatch
):
  tested = [point for point in points.values() if not math.isnan(point.holm)]
  assert {point.name for point in tested} == {OPT, 'small-temperature0'}
  raw = sorted(point.difference.p for point in tested)
  assert sorted(point.holm for point in tested) == pytest.approx(
    [min(1, 2 * raw[0]), max(min(1, 2 * raw[0]), raw[1])]
  )
  drawn, draw = [], bootstrap.draw

  def counted(sizes, *, resamples, seed):
    drawn.append(resamples)
    return draw(sizes, resamples=resamples, seed=seed)

  monkeypatch.setattr(bootstrap, 'draw', counted)
  speculation.frontier(directory, settings=SETTINGS)
  assert drawn == [3 * speculation.RESAMPLES_EACH]  # more than the settings ask for
  # Every difference that no resample turns around is below .05, whatever the number of points.
  assert 2 / (1 + speculation.RESAMPLES_EACH * 200) * 200 < 0.05


def test_either_model_alone_has_its_own_calls_and_costs(points):
  large, small = points['large-temperature0'], points['small-temperature0']
  assert (large.difference.value, large.difference.low, large.difference.high) == (0, 0, 0)
  assert large.seconds['1'] == large.modeled['1'] == 1.0
  assert large.length == (1, 1, 1)
  assert large.flops == 4 * LARGE_FLOPS
  assert small.flops == 4 * SMALL_FLOPS
  assert math.isnan(small.rejection_rate)


def test_the_sequence_cascade_pays_for_the_small_answer_and_ends_at_both_models(frontier):
  cascade = frontier.sequence[0.0]
  first, last = cascade.points[0], cascade.points[-1]
  for point, seconds, quality, calls, flops in (
    (first, 0.2, 0.25, 0.0, 4 * SMALL_FLOPS),
    (last, 1.2, 0.75, 4.0, 4 * SMALL_FLOPS + 4 * LARGE_FLOPS),
  ):
    assert point.seconds['1'] == pytest.approx(seconds)
    assert (point.quality, point.large_calls, point.flops) == (quality, calls, flops)
  assert (last.difference.low, last.difference.high) == (0, 0)
  assert first.difference.low <= -0.5 <= first.difference.high


def test_a_deferred_answer_costs_as_much_as_it_is_long(frontier):
  """The least certain row defers first: a quarter of the answers, an eighth of the calls."""
  point = frontier.sequence[0.0].points[10]
  assert (point.alpha, point.large_calls, point.relative_calls) == (0.25, 0.5, 0.125)
  assert point.seconds['1'] == pytest.approx(0.02 / 0.1 + 0.125)
  alone = 0.02 + 3 * 0.01
  assert point.modeled['1'] == pytest.approx((0.005 + 3 * 0.002) / alone + 0.125)
  assert point.flops == 4 * SMALL_FLOPS + 0.5 * LARGE_FLOPS
  assert (point.tokens, point.length.value) == (3.5, 0.875)
  assert point.length.low < 0.875 < point.length.high <= 1


def test_the_sequence_cascade_takes_the_rule_that_orders_best(directory, frontier, monkeypatch):
  knowing = lambda logprobs, mask: np.array([0.0, 2.0, 1.0, 0.0])  # only rows 1 and 2 gain
  rules = {'average': deferral.average, 'knowing': knowing, 'random': deferral.random}
  monkeypatch.setattr(deferral, 'PAPER', rules)
  cascade = speculation.frontier(directory, settings=SETTINGS).sequence[0.0]
  assert (cascade.rule, cascade.points[20].alpha, cascade.points[20].quality) == (
    'knowing', 0.5, 0.75,
  )  # fmt: skip
  assert frontier.sequence[0.0].points[20].quality == 0.5


def test_a_method_is_summed_up_by_what_it_reaches_and_what_it_costs(frontier):
  methods = {method.name: method for method in frontier.methods}
  opt = methods['opt, temperature 0']
  assert opt.matching is None
  assert opt.best is not None
  assert (opt.best.name, opt.matching_within) == (OPT, opt.best)
  assert 'large' not in ''.join(methods)
  sequence = methods['sequence, temperature 0']
  assert sequence.matching.name == sequence.best.name == 'sequence-rate0.75-temperature0'
  assert frontier.cost(sequence.matching) == pytest.approx(0.2 + 10 / 16)
  costs = [frontier.cost(own.matching) for own in frontier.methods if own.matching]
  assert costs == sorted(costs)


def test_the_cheapest_point_drafts_and_is_as_good_as_the_large_model(frontier):
  assert frontier.cheapest() is None  # its only point that drafts is worse
  (opt,) = (method for method in frontier.methods if method.name == 'opt, temperature 0')
  points = [
    opt.best._replace(name=f'{seconds}', seconds={'1': seconds}, temperature=temperature)
    for seconds, temperature in ((0.7, 0.0), (0.5, 1.0), (0.6, 1.0))
  ]
  methods = [*frontier.methods, *(opt._replace(matching=point) for point in points)]
  wider = frontier._replace(methods=methods)
  assert wider.cheapest().name == '0.5'
  assert [wider.cheapest(t).name for t in (0.0, 1.0)] == ['0.7', '0.5']


def test_without_measured_seconds_methods_are_compared_by_calls_of_the_large_model(
  directory, tmp_path
):
  shutil.copytree(directory / 'points', tmp_path / 'points')
  frontier = speculation.frontier(epath.Path(tmp_path), settings=SETTINGS)
  methods = {method.name: method for method in frontier.methods}
  assert frontier.cost(methods['opt, temperature 0'].best) == 0.5
  speculation_report.write(epath.Path(tmp_path), frontier, {}, [])
  assert 'calls of the large model' in (tmp_path / 'report.html').read_text().lower()


def test_a_page_and_numbers_are_written_and_texts_stay_texts(directory, frontier, tmp_path, capsys):
  answer = speculation_report.ColoredAnswer(
    OPT, '<script>alert(1)', [speculation_report.TokenText('<i>y', True)]
  )
  speculation_report.write(tmp_path, frontier, {OPT: [1.0, float('nan')]}, [answer])
  page = (tmp_path / 'report.html').read_text()
  assert 'No speculative cascade reaches the large model&#39;s accuracy in fewer seconds' in page
  assert page.index('numbers-now') < page.index('>Methods<') < page.index('<img')
  assert '<script>alert' not in page
  assert '<i>y' not in page
  assert '&lt;script&gt;alert(1)' in page
  numbers = json.loads((tmp_path / 'frontier.json').read_text())
  assert numbers['acceptance_by_position'] == {OPT: [1.0, None]}
  assert [method['best'] for method in numbers['methods']] == [
    'sequence-rate0.75-temperature0', 'small-temperature0', OPT,
  ]  # fmt: skip
  (opt,) = (point for point in numbers['points'] if point['name'] == OPT)
  assert opt['modeled_over_measured']['1'] == pytest.approx(
    opt['modeled']['1'] / opt['seconds']['1']
  )
  assert 'modeled / measured, batch 1' in page
  assert 'least with 2 drafts' in page
  assert '<td>opt, temperature 0<span class="note">alpha 0.1, gamma 2</span>' in page
  assert (tmp_path / 'frontier.csv').read_text().splitlines()[0].startswith('name,rule,alpha')
  assert {path.name for path in (tmp_path / 'figures').iterdir()} == {
    f'{name}.{suffix}'
    for name in ('frontier-temperature0', 'positions')
    for suffix in ('png', 'svg')
  }
  printed = capsys.readouterr().out
  assert 'Methods' in printed
  adjusted = f'p {opt["holm"]:.2g}'
  assert adjusted in page
  assert adjusted in printed
  assert 'of 2 points differ at' in page


@pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH; name one in CHROMIUM')
def test_the_page_shows_quality_over_any_cost(frontier, tmp_path):
  speculation_report.write(epath.Path(tmp_path), frontier, {OPT: [1.0, 0.5]}, [])
  page = (tmp_path / 'report.html').read_text()
  sources = (
    'Bokeh.documents.at(-1).roots().flatMap((r) => [...r.references()])'
    ".filter((m) => m.name === 'points').map((m) => m.data)"
  )
  with opened(page, tmp_path) as tab:
    assert tab.locator('figure.static').first.is_hidden()
    for cost, values in (('0', [0.2, 0.7, 1.0]), ('1', [0.0, 2.0, 4.0])):
      tab.locator('#choose-cost').select_option(cost)
      shown = {float(x) for data in tab.evaluate(sources) for x in data['x']}
      assert all(any(abs(x - value) < 1e-5 for x in shown) for value in values)
    assert tab.locator('#chart-positions-0').is_visible()


def test_charts_have_a_curve_of_each_rule_and_number_of_drafts(frontier):
  drawn = speculation_charts.draw(frontier, {OPT: [1.0, float('nan')]})
  assert list(drawn) == ['chart-frontier-0', 'chart-positions-0']
  point = next(point for point in frontier.points if point.name == OPT)
  plots = [renderer.data_source.data for renderer in drawn['chart-frontier-0'].renderers]
  (own,) = {tuple(data['quality']) for data in plots if point.quality in data['quality']
            and len(data['quality']) == 1}  # fmt: skip
  assert own == (point.quality,)
  line = drawn['chart-positions-0'].renderers[0].data_source.data
  assert line['x'] == [1, 2]
  assert line['y'][0] == 1.0
  assert math.isnan(line['y'][1])


def test_rules_differ_by_color_or_line_and_numbers_of_drafts_by_marker(frontier):
  point = next(point for point in frontier.points if point.name == OPT)
  rules = [f'rule {number}' for number in range(12)]
  points = [point._replace(rule=rule, gamma=gamma) for rule in rules for gamma in (1, 3, 5, 7)]
  sweep = frontier._replace(points=[*frontier.points, *points])
  (panel, *others) = speculation_figures.draw(sweep, {})['frontier-temperature0'].axes
  drawn = {
    (line.get_color(), line._dash_pattern[1] and tuple(line._dash_pattern[1]), line.get_marker())
    for container in panel.containers
    for line in container.lines[:1]
  }
  assert len(drawn) == len(points) + 1
  assert len(others) == 3


def test_a_sweep_without_the_large_model_is_refused_by_name(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'no finished table points/large-temperature'):
    speculation.frontier(tmp_path)
