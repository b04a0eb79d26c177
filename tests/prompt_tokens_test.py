"""Costs with a prompt's own tokens: numbers by hand, a line as NumPy fits it, and exactness."""

from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import prompt_tokens, universal_routing
from cascades.prompt_tokens import Charged
from cascades.universal_routing import mean_losses, one_hot

seeds = st.integers(0, 10_000)
few = settings(max_examples=30, deadline=None)


def test_own_tokens_take_the_place_of_the_mean_by_hand():
  cost, price = np.array([[10.0, 3.0], [10.0, 3.0]]), np.array([2.0, 0.0])
  tokens, mean = np.array([[5.0, 9.0], [0.0, 9.0]]), np.array([[4.0, 4.0], [7.0, 4.0]])
  # 10 + 2 (5 - 4), and 10 + 2 (0 - 7), which is below 0; the second model has one price.
  np.testing.assert_array_equal(
    prompt_tokens.moved(cost, price, tokens, mean), [[12.0, 3.0], [0.0, 3.0]]
  )


def test_tokens_by_length_worked_by_hand():
  line = prompt_tokens.line(np.array([10, 30, 50, 99]), np.array([8.0, 12, 16, np.nan]))
  np.testing.assert_allclose(line, [6, 0.2])  # six tokens around each text, and one in five
  own = prompt_tokens.free(1, 1)._replace(line=line[None])
  np.testing.assert_allclose(own.estimate(np.array([100.0, 0.0])), [[26.0], [6.0]])
  # Of one length, and where longer texts have fewer tokens, the mean.
  np.testing.assert_allclose(prompt_tokens.line(np.full(3, 7), np.array([1.0, 2, 6])), [3, 0])
  np.testing.assert_allclose(prompt_tokens.line(np.arange(3), np.array([6.0, 2, 1])), [3, 0])


@given(seeds)
@few
def test_the_line_is_that_of_numpy(seed):
  rng = np.random.default_rng(seed)
  characters = rng.integers(1, 500, 20)
  tokens = 3 + 0.3 * characters + rng.random(20)
  slope, start = np.polyfit(characters, tokens, 1)
  np.testing.assert_allclose(prompt_tokens.line(characters, tokens), [start, slope], rtol=1e-6)


@given(seeds, st.just(0.0) | st.floats(0.01, 30), st.booleans())
@few
def test_a_cost_of_prompt_tokens_alone_is_exact_for_any_prompt(seed, strength, soft):
  rng = np.random.default_rng(seed)
  groups, tokens = rng.integers(0, 4, 12), rng.integers(1, 90, 12).astype(float)
  tokens[1:][rng.random(11) < 0.3] = np.nan
  price = rng.random() + 0.1
  means = partial(mean_losses, one_hot(groups, 5).T, strength=strength)
  losses = np.where(np.isnan(tokens), np.nan, rng.random(12))
  pool = universal_routing.empty_pool(5).add('plain', 3.0, rng.random(12), means)
  pool = pool.add('priced', price * tokens, losses, means, Charged(price, tokens, 4 * tokens))
  phi = rng.dirichlet(np.ones(5), 9)
  position = phi if soft else rng.integers(0, 5, 9)
  own = rng.integers(1, 200, (9, 2)).astype(float)
  _, cost = pool.predict(position, own)
  np.testing.assert_allclose(cost[:, 1], price * own[:, 1])
  np.testing.assert_allclose(cost[:, 0], 3)
  _, estimated = pool.predict(position)  # without counts, the mean
  assert np.ptp(estimated[:, 1]) < price * 90
  np.testing.assert_allclose(
    pool.remove('plain').predict(position, own[:, 1:])[1][:, 0], cost[:, 1]
  )


def test_a_pool_of_no_prices_of_tokens_has_none():
  pool = universal_routing.empty_pool(1).add('a', 1.0, np.ones(3), lambda v: v.mean(0)[None])
  assert pool.tokens is None
