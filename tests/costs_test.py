import numpy as np
import pytest

from cascades import costs, curves, metrics
from cascades.costs import Prices
from tests import synthetic_tables


def test_costs_agree_with_numbers_worked_by_hand():
  assert costs.flops_per_token(1_000_000) == 2e6
  assert costs.cascade(np.array(0.25), small=2.0, large=8.0) == 4.0
  assert costs.query(np.array([3]), np.array([2]), flops_per_token=10.0) == [50.0]


def test_deferring_everything_still_pays_for_the_small_model():
  np.testing.assert_array_equal(costs.cascade(np.array([0, 1]), small=2.0, large=8.0), [2, 10])


def test_the_deferral_rate_is_the_inverse_of_the_cost():
  rates = np.linspace(0, 1, 7)
  cost = costs.cascade(rates, small=3.0, large=11.0)
  np.testing.assert_allclose(costs.deferral_rate(cost, small=3.0, large=11.0), rates)
  assert costs.deferral_rate(np.array(1.0), small=3.0, large=11.0) < 0


def test_the_cost_per_query_is_a_curve_of_its_own():
  generator = np.random.default_rng(0)
  prompt, short, long = (generator.integers(1, 20, size=40) for _ in range(3))
  small = costs.query(prompt, short, flops_per_token=2.0)
  large = small + costs.query(prompt, long, flops_per_token=16.0)
  score = generator.integers(0, 9, size=40).astype(float)
  ones = np.ones(40)
  curve = curves.deferral_curve(
    score, np.stack([small, ones], 1), np.stack([large, ones], 1), metrics.ratio, lambda rate: rate
  )
  for threshold, cost in zip(curve.threshold, curve.quality, strict=True):
    expected = np.where(score >= threshold, large, small).mean()
    assert cost == pytest.approx(expected)


def table(**columns):
  """Two answers, of 3 and 2 tokens, by a model of 10 FLOPs per token."""
  two = synthetic_tables.table('a', size=2)
  return two._replace(
    lengths=np.array([3, 2]),
    token_logprobs=np.zeros(5),
    columns={name: np.array(values, float) for name, values in columns.items()},
    manifest={**two.manifest, 'flops_per_token': 10.0},
  )


def test_costs_of_rows_agree_with_numbers_worked_by_hand():
  stored = table(prompt_tokens=[7, 4], seconds=[0.5, 2], dollars=[3, 1])
  np.testing.assert_array_equal(costs.per_row(stored, 'flops'), [100, 60])
  np.testing.assert_array_equal(costs.per_row(stored, 'seconds'), [0.5, 2])
  np.testing.assert_array_equal(costs.per_row(stored, 'dollars'), [3, 1])
  np.testing.assert_array_equal(costs.per_row(stored, 'flops per token'), [10, 10])
  np.testing.assert_array_equal(costs.per_row(stored, 'large calls'), [0, 0])
  np.testing.assert_array_equal(costs.per_row(stored, 'large calls', last=True), [1, 1])
  # 5 of the prompt's tokens are cached: 1 + 2 x 2 + 5 x 0.5 + 3 x 10, and 1 + 4 x 0.5 + 2 x 10.
  prices = Prices(prompt=2, generated=10, cached_prompt=0.5, cached_tokens=5, request=1)
  np.testing.assert_array_equal(costs.per_row(stored, 'dollars', prices=prices), [37.5, 23])
  prices = Prices(prompt=2, generated=10, cached_tokens=5)  # as any other token
  np.testing.assert_array_equal(costs.per_row(stored, 'seconds', prices=prices), [44, 28])


def test_a_memory_costs_its_bytes_and_the_time_of_its_lookups():
  stored = table(prompt_tokens=[7, 4], seconds=[0.5, 2])
  memory = {'bytes': 1000, 'milliseconds_per_token': 500.0}
  for weights, expected in (('float32', 400), ('bfloat16', 200), ('int8', 100)):
    plain = stored._replace(manifest={**stored.manifest, 'parameters': 100, 'weights': weights})
    np.testing.assert_array_equal(costs.per_row(plain, 'bytes'), [expected, expected])
    larger = plain._replace(manifest={**plain.manifest, 'memory': memory})
    np.testing.assert_array_equal(costs.per_row(larger, 'bytes'), [expected + 1000] * 2)
  prices = Prices(prompt=2, generated=10)
  # Half a second for each of 3 and 2 tokens that are written; a measured column has it already.
  np.testing.assert_array_equal(costs.per_row(larger, 'seconds', prices=prices), [45.5, 29])
  np.testing.assert_array_equal(costs.per_row(larger, 'seconds'), [0.5, 2])
  np.testing.assert_array_equal(costs.per_row(plain, 'seconds', prices=prices), [44, 28])
  with pytest.raises(
    ValueError, match=r'weights are of the type None.*tables of `infer`, or another'
  ):
    costs.per_row(stored, 'bytes')


def test_written_tokens_that_are_not_shown_are_charged():
  stored = table(prompt_tokens=[7, 4], generated_tokens=[1000, 2])
  np.testing.assert_array_equal(costs.per_row(stored, 'flops'), [10070, 60])


@pytest.mark.parametrize(
  ('axis', 'columns', 'sentence'),
  [
    ('flops', {}, '2 of 2 rows of task .a. have no prompt_tokens'),
    ('seconds', {'seconds': [1, np.nan]}, '1 of 2 rows of task .a. have no seconds'),
    ('dollars', {'dollars': [1, -1]}, '1 of 2 rows of task .a. cost -1 dollars'),
    (
      'euros',
      {},
      "Unknown axis of cost 'euros'; the axes are flops per token, flops, bytes, seconds",
    ),
  ],
)
def test_a_cost_that_the_table_does_not_have_is_refused_by_name(axis, columns, sentence):
  with pytest.raises(ValueError, match=sentence):
    costs.per_row(table(**columns), axis)


@pytest.mark.parametrize('price', [-1, np.inf, np.nan, '2', True])
def test_a_price_that_is_no_amount_is_refused_by_name(price):
  with pytest.raises(ValueError, match='The price generated='):
    Prices(prompt=1, generated=price)


def test_every_answer_that_was_given_is_charged_unless_discarded_ones_are_left_out():
  own = [np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([100.0, 200.0])]
  decisions = [0.5, np.array([0.25, 0.25])]
  np.testing.assert_array_equal(
    costs.added(own, decisions), [[1.5, 2.5], [10.25, 20.25], [100, 200]]
  )
  # What the third model answers costs 100 and the decisions, 0.75: 1.5 + 9.25 + 90.
  without = costs.added(own, decisions, discarded=False)
  np.testing.assert_array_equal(without, [[1.5, 2.5], [9.25, 18.25], [90, 180]])
  np.testing.assert_array_equal(without.sum(axis=0), [100.75, 200.75])
  np.testing.assert_array_equal(costs.added(own), own)


@pytest.mark.parametrize(
  ('kappa', 'saving'),
  [(1.0, 0.298), (1.10, 0.280), (1.28, 0.250), (1 + 2 * 1.5 / (6 * 2.8), 0.267)],
)
def test_a_teacher_in_the_first_steps_costs_its_forward_passes(kappa, saving):
  """The numbers of the specification of SALT: parity after 146 of 208 thousand steps, 36 aided."""
  assert costs.aided_saving(146, 208, distill_steps=36, kappa=kappa) == pytest.approx(
    saving, abs=1e-3
  )
  steps = np.arange(50)
  curve = costs.aided_training(steps, distill_steps=36, kappa=kappa)
  np.testing.assert_allclose(np.diff(curve), [kappa] * 36 + [1] * 13)
  plain = costs.training_step(100, parameters=2800)
  aided = costs.training_step(100, parameters=2800, teacher=1500)
  assert plain == 6 * 2800 * 100
  assert aided / plain == pytest.approx(1 + 2 * 1500 / (6 * 2800))
