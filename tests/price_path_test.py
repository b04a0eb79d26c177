"""Choices at a price, and the curve over all prices, agree with brute force and with laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import curve_metrics, frontier, price_path
from cascades.price_path import choose

seeds = st.integers(0, 10_000)
few = settings(max_examples=40, deadline=None)


def problem(seed, *, ties=True, by_prompt=False):
  """Predicted losses, costs and qualities of a few prompts and models, with ties."""
  rng = np.random.default_rng(seed)
  N, J = rng.integers(1, 9), rng.integers(1, 6)
  losses = rng.integers(0, 5, (N, J)) / 4 if ties else rng.random((N, J))
  shape = (N, J) if by_prompt else J
  cost = rng.integers(0, 5, shape).astype(float) if ties else rng.random(shape)
  return losses, cost, rng.random((N, J))


def slow_choice(losses, cost, price):
  """Model of each prompt by a loop."""
  chosen = []
  for row, own in zip(losses, np.broadcast_to(cost, losses.shape), strict=True):
    ranked = [(row[m] + price * own[m], own[m], m) for m in range(len(row))]
    chosen.append(min(ranked)[2])
  return np.array(chosen)


def point(models, cost, quality):
  rows = np.arange(len(models))
  return np.broadcast_to(cost, quality.shape)[rows, models].mean(), quality[rows, models].mean()


def test_a_path_of_three_models_worked_by_hand():
  losses = np.array([[0.5, 0.25, 0.0], [0.5, 0.5, 0.25]])
  cost, quality = np.array([1.0, 2, 4]), np.array([[0.0, 1, 1], [1, 0, 1]])
  # First prompt: 4 -> 2 at .25/2, then 2 -> 1 at .25. Second: 4 -> 1 at .25/3; 2 is never best.
  path = price_path.price_path(losses, cost, quality)
  np.testing.assert_allclose(path.price, [0, 0.25 / 3, 0.125, 0.25])
  np.testing.assert_allclose(path.cost, [4, 2.5, 1.5, 1])
  np.testing.assert_allclose(path.quality, [1, 1, 1, 0.5])


@given(seeds, st.booleans())
@few
def test_a_choice_is_that_of_a_loop(seed, by_prompt):
  losses, cost, _ = problem(seed, by_prompt=by_prompt)
  for price in (0.0, 0.125, 0.25, 1.0, 3.0):
    np.testing.assert_array_equal(choose(losses, cost, price), slow_choice(losses, cost, price))


@given(seeds, st.booleans())
@few
def test_the_price_zero_takes_the_lowest_loss_and_a_high_one_the_cheapest_model(seed, by_prompt):
  losses, cost, _ = problem(seed, by_prompt=by_prompt)
  rows = np.arange(len(losses))
  np.testing.assert_array_equal(losses[rows, choose(losses, cost, 0.0)], losses.min(axis=1))
  by_row = np.broadcast_to(cost, losses.shape)
  gaps = np.diff(np.sort(by_row, axis=1), axis=1)
  enough = np.ptp(losses) / np.min(gaps[gaps > 0], initial=1.0) + 1e-9
  for price in (enough, np.inf):
    np.testing.assert_array_equal(by_row[rows, choose(losses, cost, price)], by_row.min(axis=1))


@given(seeds, st.booleans(), st.booleans())
@few
def test_a_path_holds_every_choice_of_a_dense_grid_of_prices_and_no_other(seed, ties, by_prompt):
  losses, cost, quality = problem(seed, ties=ties, by_prompt=by_prompt)
  path = price_path.price_path(losses, cost, quality)
  assert (np.diff(path.price) > 0).all()
  assert path.price[0] == 0
  assert (np.diff(path.cost) <= 1e-12).all()
  between = np.append((path.price[1:] + path.price[:-1]) / 2, path.price[-1] + 1)
  for index, price in enumerate(between):
    expected = point(slow_choice(losses, cost, price), cost, quality)
    np.testing.assert_allclose((path.cost[index], path.quality[index]), expected, atol=1e-12)
  for price in np.linspace(0, 5, 101) + 1e-7:
    index = np.searchsorted(path.price, price, side='right') - 1
    expected = point(slow_choice(losses, cost, price), cost, quality)
    np.testing.assert_allclose((path.cost[index], path.quality[index]), expected, atol=1e-12)


@given(seeds, st.booleans())
@few
def test_costs_that_are_paid_need_not_be_those_that_decide(seed, by_prompt):
  losses, cost, quality = problem(seed, by_prompt=by_prompt)
  paid = np.random.default_rng(seed).random(losses.shape)
  path = price_path.price_path(losses, cost, quality, paid=paid)
  for index, price in enumerate(np.append((path.price[1:] + path.price[:-1]) / 2, 1e6)):
    models = slow_choice(losses, cost, price)
    expected = point(models, paid, quality)
    np.testing.assert_allclose((path.cost[index], path.quality[index]), expected, atol=1e-12)
  with pytest.raises(ValueError, match='A model costs -1'):
    price_path.price_path(losses, cost, quality, paid=-np.ones(losses.shape))


@given(seeds)
@few
def test_two_models_have_one_threshold_of_the_gain_by_cost(seed):
  rng = np.random.default_rng(seed)
  losses, quality, cost = rng.random((7, 2)), rng.random((7, 2)), np.array([1.0, 3.0])
  for price in rng.random(5):
    dear = losses[:, 0] - losses[:, 1] > price * 2
    np.testing.assert_array_equal(choose(losses, cost, price) == 1, dear)
  assert len(price_path.price_path(losses, cost, quality).price) <= 8


@given(seeds, st.floats(0.1, 10))
@few
def test_scaling_costs_or_shifting_prompts_or_reordering_models_changes_nothing(seed, scale):
  losses, cost, quality = problem(seed, ties=False)
  path = price_path.price_path(losses, cost, quality)
  scaled = price_path.price_path(losses, scale * cost, quality)
  np.testing.assert_allclose(scaled.cost, scale * path.cost)
  np.testing.assert_allclose(scaled.price, path.price / scale)
  shift = np.random.default_rng(seed).random((len(losses), 1))
  shifted = price_path.price_path(losses + shift, cost, quality)
  np.testing.assert_allclose(shifted.quality, path.quality)
  order = np.random.default_rng(seed).permutation(len(cost))
  permuted = price_path.price_path(losses[:, order], cost[order], quality[:, order])
  np.testing.assert_allclose(permuted.quality, path.quality)
  np.testing.assert_array_equal(order[choose(losses[:, order], cost[order], 0.3)],
                                choose(losses, cost, 0.3))  # fmt: skip


def test_blocks_of_prompts_give_the_path_of_all(monkeypatch):
  rng = np.random.default_rng(0)
  arrays = rng.random((23, 4)), rng.random((23, 4)), rng.random((23, 4))
  expected = price_path.price_path(*arrays)
  monkeypatch.setattr(price_path, 'BLOCK', 12)
  np.testing.assert_allclose(price_path.price_path(*arrays), expected)


def test_prompts_alike_in_all_models_have_a_path_of_single_models():
  losses = np.tile([0.5, 0.2, 0.45, 0.1], (6, 1))
  cost, quality = np.array([1.0, 2, 3, 4]), np.random.default_rng(0).random((6, 4))
  path = price_path.price_path(losses, cost, quality)
  np.testing.assert_allclose(path.cost, [4, 2, 1])  # the third is above the hull
  np.testing.assert_allclose(path.quality, quality.mean(axis=0)[[3, 1, 0]])


def assignments(losses, cost):
  """Mean cost and quality of every assignment of models to prompts."""
  N, J = losses.shape
  return np.array(
    [point(np.array(models), cost, 1 - losses) for models in itertools.product(range(J), repeat=N)]
  )


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_true_losses_trace_the_hull_of_all_assignments(seed):
  rng = np.random.default_rng(seed)
  losses, cost = rng.random((4, 3)), rng.random(3) + 0.1
  path = price_path.price_path(losses, cost, 1 - losses)
  every = assignments(losses, cost)
  x, y = curve_metrics.hull(*every.T)
  np.testing.assert_allclose(np.interp(path.cost, x, y), path.quality, atol=1e-9)
  for price in (0.0, 0.1, 0.5, 2.0):  # optimal at its own budget
    own_cost, own_quality = point(choose(losses, cost, price), cost, 1 - losses)
    assert own_quality >= every[every[:, 0] <= own_cost + 1e-12, 1].max() - 1e-12
  other = price_path.price_path(rng.random((4, 3)), cost, 1 - losses)
  assert (np.interp(other.cost, *path_of(path)) >= other.quality - 1e-9).all()


@given(seeds, st.booleans())
@few
def test_true_losses_trace_the_oracle_of_the_chains(seed, by_prompt):
  losses, cost, _ = problem(seed, by_prompt=by_prompt)
  quality, own = 1 - losses.T, np.broadcast_to(cost, losses.shape).T
  statistics = quality[..., None] / len(losses)
  oracle = frontier.oracle(quality, own, statistics, lambda sums: sums[..., 0])
  path = price_path.price_path(losses, cost, 1 - losses)
  both = curve_metrics.hull(oracle.cost, oracle.quality), curve_metrics.hull(*path[1:])
  levels = np.linspace(own.min(axis=0).mean(), cost.max(), 9)
  np.testing.assert_allclose(*(np.interp(levels, *curve) for curve in both), atol=1e-9)


def path_of(path):
  return path.cost[::-1], path.quality[::-1]


@given(seeds)
@few
def test_an_oracle_reaches_the_best_model_at_no_higher_cost_than_any_router(seed):
  rng = np.random.default_rng(seed)
  losses, cost = rng.integers(0, 2, (30, 4)).astype(float), rng.random(4) + 0.1
  models = {'model_cost': cost, 'model_quality': 1 - losses.mean(axis=0)}
  numbers = [
    curve_metrics.router_numbers(*price_path.price_path(g, cost, 1 - losses)[1:], **models)
    for g in (losses, rng.random((30, 4)))
  ]
  assert numbers[0].qnc <= numbers[1].qnc + 1e-12
  assert numbers[0].area >= numbers[1].area - 1e-12


def test_errors_of_predictions_cost_at_most_twice_their_size_and_more_than_once():
  ratios = []
  for seed in range(300):
    rng = np.random.default_rng(seed)
    true, cost = rng.random((1, 3)), rng.random(3)
    size = 0.2 * rng.random()
    noise = size * rng.choice([-1, 1], true.shape)
    for price in (0.1, 0.5):
      value = true + price * cost
      lost = value[0, choose(true + noise, cost, price)[0]] - value.min()
      ratios.append(lost / size)
  assert 1 < max(ratios) <= 2


def test_a_router_has_the_numbers_of_a_constant_curve_and_of_a_line():
  models = {'model_cost': np.array([2.0, 10.0]), 'model_quality': np.array([0.75, 0.75])}
  flat = curve_metrics.router_numbers(np.array([2.0]), np.array([0.75]), **models)
  np.testing.assert_allclose(flat, [0.75, 0.375, 1.0, 0.75])  # the best is the cheapest
  models['model_quality'] = np.array([0.6, 0.75])
  flat = curve_metrics.router_numbers(np.array([2.0]), np.array([0.75]), **models)
  assert flat.qnc == pytest.approx(0.2)  # cheapest cost by the best model's
  line = curve_metrics.router_numbers(np.array([10.0, 2.0]), np.array([0.75, 0.6]), **models)
  # .6 up to .2, then the trapezoids to .5, where the line is at .6 + .15 * 3/8, and to 1.
  half = 0.2 * 0.6 + 0.3 * (0.6 + 0.65625) / 2
  np.testing.assert_allclose(line, [0.2 * 0.6 + 0.8 * 0.675, half, 1.0, 0.75])


@pytest.mark.parametrize(
  ('losses', 'cost', 'sentence'),
  [
    (np.empty((0, 2)), np.ones(2), r'Predicted losses of shape \(0, 2\)'),
    (np.ones((2, 0)), np.ones(0), r'Predicted losses of shape \(2, 0\)'),
    (np.ones((2, 2)), np.ones(3), r'Costs of shape \(3,\) for 2 models'),
    (np.array([[np.nan, 1]]), np.ones(2), 'A predicted loss is not a finite number'),
    (np.ones((2, 2)), np.array([1, -1.0]), 'A model costs -1; a cost is a finite number of 0'),
    (np.ones((2, 2)), np.array([1, np.inf]), 'A model costs inf'),
  ],
)
def test_what_is_no_loss_or_cost_is_an_error_that_says_so(losses, cost, sentence):
  with pytest.raises(ValueError, match=sentence):
    price_path.price_path(losses, cost, losses)


def test_missing_qualities_and_negative_prices_are_refused():
  losses, cost = np.ones((2, 2)), np.ones(2)
  with pytest.raises(ValueError, match='leave out prompts that a model has not answered'):
    price_path.price_path(losses, cost, np.array([[1, np.nan], [1, 1]]))
  with pytest.raises(ValueError, match='The price of cost is -1; a price is 0 or more'):
    choose(losses, cost, -1.0)


def test_models_without_cost_and_a_single_model_have_a_path_of_one_point():
  losses = np.array([[0.2, 0.1], [0.3, 0.4]])
  free = price_path.price_path(losses, np.zeros(2), 1 - losses)
  np.testing.assert_allclose(np.ravel(free), [0, 0, 0.8])
  single = price_path.price_path(losses[:, :1], np.array([3.0]), 1 - losses[:, :1])
  np.testing.assert_allclose(np.ravel(single), [0, 3, 0.75])
