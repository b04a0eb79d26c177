import numpy as np
import pytest

from cascades import deferral
from cascades.evaluation.chain_comparison import compare_chains
from cascades.evaluation.chains import Chains
from cascades.reporting import chain_tables
from tests import synthetic_tables


def with_chains(**options):
  comparison = synthetic_tables.comparison()
  small, large = synthetic_tables.small_and_large()
  results = compare_chains(
    {**small, 'large': large}, None, deciders=[deferral.DECIDERS['average']],
    chains=Chains(**options), settings=comparison.settings,
  )  # fmt: skip
  return comparison._replace(chains=results)


def test_a_table_shows_the_chain_its_controls_and_its_models():
  comparison = with_chains()
  table = chain_tables.tables(comparison)[0]
  assert table.title == 'xent > large, by FLOPs per token'
  assert [row[0].text for row in table.rows] == [
    'chain', 'oracle', 'oracle router', 'random deferral', 'random router', 'xent alone',
    'large alone',
  ]  # fmt: skip
  assert table.rows[-1][0].note == '(best single model)'
  quality = comparison.at('xent').curve.quality[-1]
  assert table.rows[-1][1].text == f'{quality:.4f}'
  assert all(len(row) == len(table.header) for row in table.rows)


@pytest.mark.parametrize('charge', [True, False])
def test_every_table_says_whether_discarded_answers_are_charged(charge):
  for table in chain_tables.tables(with_chains(charge_discarded=charge)):
    assert ('thrown away are charged' in table.note) == charge
    assert ('NOT charged: CHARGE_DISCARDED=False' in table.note) != charge


def test_the_terminal_shows_what_was_asked_for():
  assert chain_tables.asked_for(with_chains()) == []
  assert len(chain_tables.asked_for(with_chains(axes=['flops per token', 'large calls']))) == 2


def test_random_deferral_gains_nothing():
  for result in with_chains().chains:
    curve = result.curves['random deferral']
    gain = [
      value for quantity, value in curve.metrics.items() if quantity.name == 'gain over random'
    ]
    np.testing.assert_allclose(gain, [0], atol=1e-12)
