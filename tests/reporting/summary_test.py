import math

import pytest

from cascades.bootstrap import Estimate
from cascades.evaluation import quantities
from cascades.evaluation.grouped import GroupAccuracy
from cascades.reporting import summary
from tests import synthetic_tables


def titles(comparison):
  return [table.title for table in summary.tables(comparison)]


def test_tables_are_shown_when_they_have_numbers():
  comparison = synthetic_tables.comparison()
  full = titles(comparison)
  assert full == [
    'Models', 'Quality at fixed cost', 'Cost at fixed quality', 'Paired differences',
    'Savings at equal quality', 'Scores', 'Thresholds', 'Tasks',
  ]  # fmt: skip
  alone = titles(comparison._replace(differences=(), sizes={'a': 70}))
  assert set(full) - set(alone) == {'Paired differences', 'Savings at equal quality', 'Tasks'}
  other = {'bleu': {'xent': comparison.at('xent').estimates[quantities.SMALL]}}
  assert titles(comparison._replace(other_metrics=other))[-1] == 'Other metrics'


def test_question_level_accuracy_has_a_table_of_its_own():
  estimates = [Estimate(value, value - 0.1, value + 0.1) for value in (0.25, 0.5, 0.4, 0.025)]
  accuracy = GroupAccuracy(953, *estimates)
  comparison = synthetic_tables.comparison()._replace(group_accuracy={'a': {'cat': accuracy}})
  title = 'Question-level accuracy'
  (table,) = [table for table in summary.tables(comparison) if table.title == title]
  ((task, model, small, *_, above),) = table.rows
  assert len(table.header) == 6
  assert (task.text, task.note, model.text) == ('a', '953 questions', 'cat')
  assert (small.text, small.note) == ('25.0 %', '[15.0 %, 35.0 %]')
  assert (above.text, above.note) == ('+2.5 %', '[-7.5 %, +12.5 %]')


@pytest.mark.parametrize('metric', ['accuracy', 'bleu'])
def test_every_row_has_a_cell_for_each_column(metric):
  for table in summary.tables(synthetic_tables.comparison(metric)):
    assert table.rows
    for row in table.rows:
      assert len(row) == len(table.header)


def test_cells_show_the_numbers_of_the_comparison():
  comparison = synthetic_tables.comparison()
  row = next(row for row in summary.models(comparison).rows if row[0].text == 'cat')
  area = comparison.at('cat').estimates[quantities.AREA]
  assert row[3] == (f'{area.value:.4f}', f'[{area.low:.4f}, {area.high:.4f}]')
  assert row[1].text == '2 k'
  pair = comparison.differences[0].estimates[quantities.AREA]
  cell = summary.differences(comparison).rows[0][2]
  assert cell.text == f'{pair.value:+.4f}'
  assert cell.note.endswith(f'p={pair.p:.3f}')


COMPARISON = synthetic_tables.comparison(qualities=(0.5, 0.55), costs=(4000.0, 9000.0))


def row_of(table, *names):
  """Cells to the right of those that hold these names."""
  (row,) = [row for row in table.rows if tuple(cell.text for cell in row[: len(names)]) == names]
  return row[len(names) :]


def assert_shows(cells, values, show):
  """Each cell holds a value, its interval, and a p-value where it has one."""
  for cell, value in zip(cells, values, strict=True):
    p = f' p={value.p:.3f}' if hasattr(value, 'p') else ''
    assert cell == (show(value.value), f'[{show(value.low)}, {show(value.high)}]{p}')


def quality(value):
  return f'{value:.4f}'


def test_columns_of_fixed_costs_and_qualities_are_those_of_the_settings():
  estimates = COMPARISON.at('cat').estimates
  at = [estimates[quantities.QUALITY_AT(cost)] for cost in (4000.0, 9000.0)]
  table = summary.fixed_costs(COMPARISON)
  assert table.header == ('model', '4 k (12.5 %)', '9 k (43.8 %)')
  assert_shows(row_of(table, 'cat'), at, quality)
  table = summary.fixed_qualities(COMPARISON)
  assert table.header == (
    'model', 'FLOPs/token at 0.5000', 'FLOPs/token at 0.5500', 'deferred at 0.5000',
    'deferred at 0.5500',
  )  # fmt: skip
  cells = row_of(table, 'xent')
  estimates = COMPARISON.at('xent').estimates
  costs = [estimates[quantities.COST_AT(level)] for level in (0.5, 0.55)]
  assert costs[0].value < costs[1].value
  assert_shows(cells[:2], costs, summary.amount)
  rates = [estimates[quantities.RATE_AT(level)] for level in (0.5, 0.55)]
  assert_shows(cells[2:], rates, summary.percent)


def test_savings_are_deferrals_then_flops_under_the_first_score():
  table = summary.savings(COMPARISON)
  (row,) = table.rows
  pair = COMPARISON.differences[0]
  assert pair.score == COMPARISON.scores[0]
  assert row[0].text == 'cat \N{MINUS SIGN} xent'
  saved = [
    pair.estimates[quantity(level)]
    for quantity in (quantities.DEFERRALS_SAVED, quantities.FLOPS_SAVED)
    for level in (0.5, 0.55)
  ]
  assert_shows(row[1:], saved, lambda x: ('+' if x > 0 else '') + summary.percent(x))


def test_scores_and_tasks_show_their_own_cascades():
  for score in COMPARISON.scores:
    cascades = [COMPARISON.at(model, score) for model in ('xent', 'cat')]
    above = [cascade.estimates[quantities.ABOVE_CHORD] for cascade in cascades]
    cells = row_of(summary.scores(COMPARISON), score)
    assert_shows(cells, above, lambda x: ('+' if x > 0 else '') + quality(x))
  names = (quantities.SMALL, quantities.LARGE, quantities.AREA, quantities.ABOVE_CHORD)
  for task, size in COMPARISON.sizes.items():
    estimates = COMPARISON.at('cat', task=task).estimates
    table = summary.tasks(COMPARISON)
    assert_shows(row_of(table, task, 'cat'), [estimates[name] for name in names], quality)
    assert (task, f'{size} examples') in {row[0] for row in table.rows}


def test_other_metrics_are_those_of_each_model():
  values = {'xent': Estimate(0.25, 0.125, 0.5), 'large alone': Estimate(1234.5678, 0.0, 2e-7)}
  table = summary.other_metrics(COMPARISON._replace(other_metrics={'f1': values}))
  assert table.header == ('model', 'f1')
  assert row_of(table, 'xent') == (('0.25', '[0.125, 0.5]'),)
  assert row_of(table, 'large alone') == (('1235', '[0, 2e-07]'),)


def test_thresholds_are_those_of_the_curve():
  comparison = synthetic_tables.comparison()
  cells = summary.thresholds(comparison).rows[0][1:]
  curve = comparison.at('xent').curve
  for budget, cell in zip(summary.BUDGETS, cells, strict=True):
    rate = curve.deferral_rate[curve.deferral_rate <= budget][-1]
    assert float(cell.text) == pytest.approx(
      curve.threshold[curve.deferral_rate == rate][0], rel=1e-3
    )


@pytest.mark.parametrize(
  ('value', 'shown'),
  [
    (0, '0'), (950, '950'), (12_345, '12.35 k'), (2e6, '2 M'), (7.89e9, '7.89 G'),
    (1.5e12, '1.5 T'), (4e15, '4000 T'), (0.5, '0.5'),
    (math.inf, 'not reached'), (math.nan, '\N{EN DASH}'),
  ],
)  # fmt: skip
def test_amounts_are_shown_with_their_unit(value, shown):
  assert summary.amount(value) == shown


def test_shares_are_shown_in_per_cent_without_a_negative_zero():
  assert summary.percent(0.1234) == '12.3 %'
  assert summary.percent(-0.0001) == '0.0 %'
  assert summary.percent(math.inf) == 'not reached'
