from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from cascades.models import attention

# Compiled as a whole: one by one, the operations would take longer to compile than to test.
_attend = jax.jit(attention.attend, static_argnames=('scale', 'cap', 'rate'))
_append = jax.jit(attention.append)
_cached_view = jax.jit(attention.cached_view, static_argnums=(1, 2))


def _random(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _source(batch: int, length: int, heads: int, size: int, seed: int) -> attention.Source:
  """Keys [B, K, H, S] and values [B, K, S, H]."""
  return (
    _random(batch, heads, size, length, seed=seed),
    _random(batch, heads, length, size, seed=seed + 1),
  )


def _oracle(query, keys, values, mask, bias, scale, cap):
  B, T, N, H = query.shape
  K, S = values.shape[1:3]
  out = np.zeros((B, T, N, H))
  for b, t, n in np.ndindex(B, T, N):
    k = n // (N // K)
    logits = np.empty(S)
    for s in range(S):
      logit = scale * np.dot(query[b, t, n], keys[b, k, :, s])
      logit = logit if cap is None else cap * np.tanh(logit / cap)
      logits[s] = logit + bias[b, n, t, s] if mask[b, t, s] else -np.inf
    weights = np.exp(logits - logits.max())
    out[b, t, n] = (weights / weights.sum()) @ values[b, k]
  return out


@pytest.mark.parametrize(('heads', 'kv_heads', 'cap'), [(4, 4, None), (4, 2, 1.5), (3, 1, None)])
def test_attention_against_its_oracle(heads, kv_heads, cap):
  query, source = _random(2, 3, heads, 4), _source(2, 5, kv_heads, 4, seed=1)
  mask = np.random.RandomState(3).rand(2, 3, 5) < 0.6
  mask[..., 0] = True
  bias = _random(2, heads, 3, 5, seed=4)
  expected = _oracle(query, *source, mask, bias, 0.7, cap)
  got = _attend(query, [source], mask, scale=0.7, cap=cap, bias=bias)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_attention_by_hand():
  # Scores log 1 and log 3: a quarter of the first value, three quarters of the second.
  query = np.ones((1, 1, 1, 1), np.float32)
  keys = np.log(np.float32([1.0, 3.0])).reshape(1, 1, 1, 2)
  values = np.float32([10.0, 20.0]).reshape(1, 1, 2, 1)
  see = np.ones((1, 1, 2), bool)
  np.testing.assert_allclose(_attend(query, [(keys, values)], see), 17.5, rtol=1e-6)
  half = _attend(query, [(keys, values)], see, scale=0.0)
  np.testing.assert_allclose(half, 15.0, rtol=1e-6)


def test_several_sources_are_one_source_after_the_other():
  query, first, second = _random(2, 3, 2, 4), _source(2, 5, 2, 4, 1), _source(2, 3, 2, 4, 5)
  whole = np.concatenate([first[0], second[0]], -1), np.concatenate([first[1], second[1]], -2)
  mask = np.random.RandomState(0).rand(2, 3, 8) < 0.7
  np.testing.assert_allclose(
    _attend(query, [first, second], mask),
    _attend(query, [whole], mask),
    atol=1e-6,
  )


def test_grouped_queries_share_the_key_value_heads_of_their_group():
  query, (keys, values) = _random(2, 3, 6, 4), _source(2, 5, 2, 4, 1)
  repeated = np.repeat(keys, 3, 1), np.repeat(values, 3, 1)
  mask = np.ones((1, 1, 5), bool)
  np.testing.assert_allclose(
    _attend(query, [(keys, values)], mask),
    _attend(query, [repeated], mask),
    atol=1e-6,
  )


def test_a_query_that_sees_nothing_gets_the_mean_and_not_nan():
  query, source = _random(1, 2, 2, 3), _source(1, 4, 2, 3, 1)
  read = _attend(query, [source], np.zeros((1, 1, 4), bool))
  np.testing.assert_allclose(read[0, 0], source[1][0].mean(1), rtol=1e-5)


def test_unseen_keys_and_values_get_no_gradient():
  query, source = _random(1, 2, 2, 3), _source(1, 4, 2, 3, 1)
  mask = np.array([[[True, True, False, True]]])
  loss = lambda source: (_attend(query, [source], mask) ** 2).sum()
  keys, values = map(np.asarray, jax.jit(jax.grad(loss))(source))
  for gradient in (keys, values.swapaxes(2, 3)):
    assert (gradient[..., 2] == 0).all()
    assert (np.abs(gradient[..., [0, 1, 3]]).max((0, 1, 2)) > 1e-4).all()


def test_attention_has_the_gradient_of_its_numbers():
  query, source = _random(1, 2, 2, 3), _source(1, 3, 1, 3, 1)
  mask = np.array([[[True, False, True], [True, True, True]]])
  attend = jax.jit(lambda q, s: _attend(q, [s], mask, scale=0.5, cap=2.0))
  check_grads(attend, (query, source), 1, modes='rev', rtol=1e-2)


def test_attention_drops_weights_only_with_a_key():
  query, source = _random(2, 3, 2, 4), _source(2, 50, 2, 4, 1)
  mask = np.ones((1, 1, 50), bool)
  plain = _attend(query, [source], mask)
  np.testing.assert_array_equal(plain, _attend(query, [source], mask, rate=0.5))
  drop = jax.jit(jax.vmap(lambda k: attention.attend(query, [source], mask, rate=0.5, key=k)))
  dropped = np.asarray(drop(jax.random.split(jax.random.key(0), 600)))
  assert np.abs(dropped[0] - plain).max() > 0.01
  np.testing.assert_allclose(dropped.mean(0), plain, atol=0.1)


def test_biases_belong_to_query_key_and_value_only():
  layer = attention.Attention(jax.random.key(0), 8, 4, 3, num_kv_heads=2, qkv_bias=True)
  assert [p.bias.shape for p in (layer.query, layer.key, layer.value)] == [(4, 3), (2, 3), (2, 3)]
  assert layer.out.bias is None
  x = _random(2, 5, 8)
  keys, values = layer.source(x)
  np.testing.assert_allclose(keys[1, 0, :, 4], layer.key(x)[1, 4, 0], atol=1e-6)
  np.testing.assert_allclose(values[1, 0, 4], layer.value(x)[1, 4, 0], atol=1e-6)


def test_a_token_sees_its_own_segment_up_to_itself():
  segments = jnp.asarray([[1, 1, 2, 2, 0]])
  view = attention.causal(attention.view(jnp.asarray([[0, 1, 0, 1, 0]]), segments))
  expected = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 0, 0, 1],
  ]
  np.testing.assert_array_equal(view.mask[0], np.array(expected, bool))
  alone = attention.causal(attention.view(jnp.arange(4)[None], None))
  np.testing.assert_array_equal(alone.mask[0], np.tri(4, dtype=bool))
  np.testing.assert_array_equal(alone.distance[0, 2], [-2, -1, 0, 1])


ROWS, CAPACITY = 3, 5
LENGTHS = st.lists(st.integers(0, CAPACITY + 1), min_size=ROWS, max_size=ROWS)


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, num=st.sampled_from([1, 3]))
def test_a_cached_view_shows_what_was_written_and_no_more(lengths, num):
  view = jax.tree.map(np.asarray, _cached_view(np.array(lengths), CAPACITY, num))
  for b, i in np.ndindex(ROWS, num):
    assert view.positions[b, i] == lengths[b] + i
    for s in range(CAPACITY):
      assert view.mask[b, i, s] == (s < lengths[b])
      assert view.distance[b, i, s] == s - (lengths[b] + i)
    for j in range(num):
      assert view.mask[b, i, CAPACITY + j] == (j <= i)
      assert view.distance[b, i, CAPACITY + j] == j - i


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, num=st.sampled_from([1, 3]))
def test_appending_writes_behind_each_rows_length(lengths, num):
  random = functools.partial(_random, 2, ROWS, 1)  # 2 layers, 1 head of size 4
  cache = random(4, CAPACITY), random(CAPACITY, 4, seed=1)
  new = random(4, num, seed=2), random(num, 4, seed=3)
  expected = cache[0].copy(), cache[1].copy()
  for b, i in np.ndindex(ROWS, num):
    if lengths[b] + i < CAPACITY:
      expected[0][:, b, :, :, lengths[b] + i] = new[0][:, b, :, :, i]
      expected[1][:, b, :, lengths[b] + i] = new[1][:, b, :, i]
  jax.tree.map(np.testing.assert_array_equal, _append(cache, new, np.array(lengths)), expected)


def test_room_is_added_behind_what_is_cached():
  keys, values = _random(2, 3, 1, 4, 5), _random(2, 3, 1, 5, 4)
  got = attention.room((keys, values), 2)
  assert [x.shape for x in got] == [(2, 3, 1, 4, 7), (2, 3, 1, 7, 4)]
  np.testing.assert_array_equal(got[0][..., :5], keys)
  np.testing.assert_array_equal(got[1][..., :5, :], values)
