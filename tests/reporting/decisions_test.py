import numpy as np
import pytest

from cascades import comparisons
from cascades.bootstrap import Difference
from cascades.comparisons import McNemar
from cascades.evaluation.quantities import AREA
from cascades.reporting import decisions
from tests import synthetic_tables
from tests.evaluation import seeds_test
from tests.reporting import chain_tables_test


def texts(table):
  return [[f'{cell.text} {cell.note}'.rstrip() for cell in row] for row in table.rows]


def with_p(value, p, **changes):
  """One comparison of two models whose area differs by `value` with a corrected p-value."""
  comparison = synthetic_tables.comparison(resamples=300)
  pair = comparison.differences[0]
  estimates = {**pair.estimates, AREA: Difference(value, value - 0.01, value + 0.01, p / 3)}
  pair = pair._replace(estimates=estimates, holm={AREA: p}, mcnemar={}, **changes)
  return comparison._replace(differences=(pair,), score_differences=())


@pytest.mark.parametrize(
  ('value', 'p', 'verdict'),
  [(0.02, 0.01, 'cat is better'), (-0.02, 0.05, 'xent is better'), (0.02, 0.051, 'no difference')],
)
def test_the_decision_follows_the_corrected_p_value(value, p, verdict):
  ((name, measure, difference, corrected, decision),) = texts(decisions.table(with_p(value, p)))
  assert (name, measure) == ('cat − xent', 'area by average')  # noqa: RUF001
  assert difference == f'{value:+.4f} [{value - 0.01:+.4f}, {value + 0.01:+.4f}]'
  assert corrected == f'{p:.3f}'
  assert decision.startswith(verdict)


def test_lower_error_rates_are_better():
  comparison = with_p(0.02, 0.01)
  metric = comparison.metric._replace(higher_is_better=False)
  (row,) = texts(decisions.table(comparison._replace(metric=metric)))
  assert row[-1] == 'xent is better'


def test_single_points_show_the_counts_of_mcnemar_corrected_for_their_number():
  counted = {cost: comparisons.mcnemar(*np.array(right)) for cost, right in (
    (1e9, ([True] * 9 + [False], [False] * 9 + [True])), (2e9, ([True, False], [False, True])),
  )}  # fmt: skip
  comparison = with_p(0.02, 0.01)
  pair = comparison.differences[0]._replace(mcnemar=counted)
  _, first, second = texts(decisions.table(comparison._replace(differences=(pair,))))
  assert counted[1e9] == McNemar(9, 1, 22 / 1024)
  assert first[1:] == ['right answers at 1 G FLOPs/token', '+8 [9 : 1]', '0.043', 'cat is better']
  assert second[2:4] == ['+0 [1 : 1]', '1.000']


def test_scores_and_chains_are_compared_in_groups_of_their_own():
  comparison = chain_tables_test.with_chains(axes=['large calls'])
  rows = texts(decisions.table(comparison))
  named = {row[0]: row for row in rows}
  assert named['sum − average'][1].startswith('area of ')  # noqa: RUF001
  raw = [x.p for result in comparison.chains for x in result.differences.values()]
  shown = [row for row in rows if row[0] == 'chain − random router']  # noqa: RUF001
  assert [row[3] for row in shown] == [
    f'{p:.3f}' if p >= 5e-4 else '< 0.001' for p in comparisons.holm(np.array(raw))
  ]
  assert all('calls of the large model per query' in row[1] for row in shown)


def test_the_number_of_printed_rows_is_bounded_and_the_rest_is_counted():
  comparison = synthetic_tables.comparison()
  every = decisions.table(comparison).rows
  few = decisions.table(comparison, most=2).rows
  assert few[:2] == every[:2]
  assert few[2][0].text == f'and {len(every) - 2} more in report.html'
  assert decisions.table(comparison, most=len(every)).rows == every


def test_too_few_resamples_for_the_number_of_comparisons_are_said():
  comparison = synthetic_tables.comparison()
  few = decisions.table(comparison)  # of 60 resamples
  assert 'raise RESAMPLES' in few.note
  assert {row[-1] for row in texts(few) if row[1].startswith('area')} == {
    'too few resamples to tell'
  }
  settings = comparison.settings
  many = comparison._replace(settings=type(settings)(**{**vars(settings), 'resamples': 1000}))
  assert 'raise RESAMPLES' not in decisions.table(many).note


def test_nothing_to_compare_is_no_table():
  comparison = synthetic_tables.comparison()
  assert decisions.table(comparison._replace(differences=(), score_differences=())) is None


def test_means_over_seeds_have_a_table_with_their_number():
  table = decisions.seed_averages(seeds_test.compared())
  assert [row[:2] for row in texts(table)] == [['cat 3 seeds', 'average'], ['cat 3 seeds', 'sum']]
  assert all(len(row) == len(table.header) for row in table.rows)
