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
_insert = jax.jit(attention.insert)
_decoding_mask = jax.jit(attention.decoding_mask, static_argnums=(1, 2))


def _random(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def _key_value(batch: int, length: int, heads: int, size: int, seed: int) -> attention.KeyValue:
  """Keys [B, K, H, S] and values [B, K, S, H]."""
  return attention.KeyValue(
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
  query, key_value = _random(2, 3, heads, 4), _key_value(2, 5, kv_heads, 4, seed=1)
  mask = np.random.RandomState(3).rand(2, 3, 5) < 0.6
  mask[..., 0] = True
  bias = _random(2, heads, 3, 5, seed=4)
  expected = _oracle(query, *key_value, mask, bias, 0.7, cap)
  got = _attend(query, [key_value], mask, scale=0.7, cap=cap, bias=bias)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_attention_by_hand():
  # Scores log 1 and log 3: a quarter of the first value, three quarters of the second.
  query = np.ones((1, 1, 1, 1), np.float32)
  keys = np.log(np.float32([1.0, 3.0])).reshape(1, 1, 1, 2)
  values = np.float32([10.0, 20.0]).reshape(1, 1, 2, 1)
  key_values, visible = [attention.KeyValue(keys, values)], np.ones((1, 1, 2), bool)
  np.testing.assert_allclose(_attend(query, key_values, visible), 17.5, rtol=1e-6)
  uniform = _attend(query, key_values, visible, scale=0.0)
  np.testing.assert_allclose(uniform, 15.0, rtol=1e-6)


def test_several_keys_and_values_are_read_as_if_concatenated():
  query, first, second = _random(2, 3, 2, 4), _key_value(2, 5, 2, 4, 1), _key_value(2, 3, 2, 4, 5)
  joined = attention.KeyValue(
    np.concatenate([first.key, second.key], -1), np.concatenate([first.value, second.value], -2)
  )
  mask = np.random.RandomState(0).rand(2, 3, 8) < 0.7
  np.testing.assert_allclose(
    _attend(query, [first, second], mask),
    _attend(query, [joined], mask),
    atol=1e-6,
  )


def test_grouped_queries_share_the_key_value_heads_of_their_group():
  query, key_value = _random(2, 3, 6, 4), _key_value(2, 5, 2, 4, 1)
  repeated = attention.KeyValue(*(np.repeat(x, 3, 1) for x in key_value))
  mask = np.ones((1, 1, 5), bool)
  np.testing.assert_allclose(
    _attend(query, [key_value], mask),
    _attend(query, [repeated], mask),
    atol=1e-6,
  )


def test_a_query_that_sees_nothing_gets_the_mean_and_not_nan():
  query, key_value = _random(1, 2, 2, 3), _key_value(1, 4, 2, 3, 1)
  output = _attend(query, [key_value], np.zeros((1, 1, 4), bool))
  np.testing.assert_allclose(output[0, 0], key_value.value[0].mean(1), rtol=1e-5)


def test_unseen_keys_and_values_get_no_gradient():
  query, key_value = _random(1, 2, 2, 3), _key_value(1, 4, 2, 3, 1)
  mask = np.array([[[True, True, False, True]]])
  loss = lambda key_value: (_attend(query, [key_value], mask) ** 2).sum()
  keys, values = map(np.asarray, jax.jit(jax.grad(loss))(key_value))
  for gradient in (keys, values.swapaxes(2, 3)):
    assert (gradient[..., 2] == 0).all()
    assert (np.abs(gradient[..., [0, 1, 3]]).max((0, 1, 2)) > 1e-4).all()


def test_attention_has_the_gradient_of_its_numbers():
  query, key_value = _random(1, 2, 2, 3), _key_value(1, 3, 1, 3, 1)
  mask = np.array([[[True, False, True], [True, True, True]]])
  attend = jax.jit(lambda q, s: _attend(q, [s], mask, scale=0.5, cap=2.0))
  check_grads(attend, (query, key_value), 1, modes='rev', rtol=1e-2)


def test_attention_drops_weights_only_with_a_key():
  query, key_value = _random(2, 3, 2, 4), _key_value(2, 50, 2, 4, 1)
  mask = np.ones((1, 1, 50), bool)
  plain = _attend(query, [key_value], mask)
  np.testing.assert_array_equal(plain, _attend(query, [key_value], mask, rate=0.5))
  drop = jax.jit(jax.vmap(lambda k: attention.attend(query, [key_value], mask, rate=0.5, key=k)))
  dropped = np.asarray(drop(jax.random.split(jax.random.key(0), 600)))
  assert np.abs(dropped[0] - plain).max() > 0.01
  np.testing.assert_allclose(dropped.mean(0), plain, atol=0.1)


def test_biases_belong_to_query_key_and_value_only():
  layer = attention.Attention(jax.random.key(0), 8, 4, 3, num_kv_heads=2, qkv_bias=True)
  assert [p.bias.shape for p in (layer.query, layer.key, layer.value)] == [(4, 3), (2, 3), (2, 3)]
  assert layer.out.bias is None
  x = _random(2, 5, 8)
  keys, values = layer.key_value(x)
  np.testing.assert_allclose(keys[1, 0, :, 4], layer.key(x)[1, 4, 0], atol=1e-6)
  np.testing.assert_allclose(values[1, 0, 4], layer.value(x)[1, 4, 0], atol=1e-6)


def test_a_token_sees_its_own_segment_up_to_itself():
  segments = jnp.asarray([[1, 1, 2, 2, 0]])
  positions = jnp.asarray([[0, 1, 0, 1, 0]])
  mask = attention.causal(attention.self_attention_mask(positions, segments))
  expected = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 0, 0, 1],
  ]
  np.testing.assert_array_equal(mask.visible[0], np.array(expected, bool))
  unpacked = attention.causal(attention.self_attention_mask(jnp.arange(4)[None], None))
  np.testing.assert_array_equal(unpacked.visible[0], np.tri(4, dtype=bool))
  np.testing.assert_array_equal(unpacked.relative_positions[0, 2], [-2, -1, 0, 1])


ROWS, CAPACITY = 3, 5
LENGTHS = st.lists(st.integers(0, CAPACITY + 1), min_size=ROWS, max_size=ROWS)


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, num=st.sampled_from([1, 3]))
def test_new_tokens_see_the_written_cache_and_themselves_and_no_more(lengths, num):
  mask = jax.tree.map(np.asarray, _decoding_mask(np.array(lengths), CAPACITY, num))
  for b, i in np.ndindex(ROWS, num):
    assert mask.positions[b, i] == lengths[b] + i
    for s in range(CAPACITY):
      assert mask.visible[b, i, s] == (s < lengths[b])
      assert mask.relative_positions[b, i, s] == s - (lengths[b] + i)
    for j in range(num):
      assert mask.visible[b, i, CAPACITY + j] == (j <= i)
      assert mask.relative_positions[b, i, CAPACITY + j] == j - i


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, num=st.sampled_from([1, 3]))
def test_appending_writes_behind_each_rows_length(lengths, num):
  random = functools.partial(_random, 2, ROWS, 1)  # 2 layers, 1 head of size 4
  cache = attention.KeyValue(random(4, CAPACITY), random(CAPACITY, 4, seed=1))
  new = attention.KeyValue(random(4, num, seed=2), random(num, 4, seed=3))
  expected = attention.KeyValue(*(x.copy() for x in cache))
  for b, i in np.ndindex(ROWS, num):
    if lengths[b] + i < CAPACITY:
      expected.key[:, b, :, :, lengths[b] + i] = new.key[:, b, :, :, i]
      expected.value[:, b, :, lengths[b] + i] = new.value[:, b, :, i]
  jax.tree.map(np.testing.assert_array_equal, _append(cache, new, np.array(lengths)), expected)


def test_allocated_entries_follow_the_cached_ones():
  cache = attention.KeyValue(_random(2, 3, 1, 4, 5), _random(2, 3, 1, 5, 4))
  padded = attention.allocate(cache, 2)
  assert (cache.capacity, padded.capacity) == (5, 7)
  assert [x.shape for x in padded] == [(2, 3, 1, 4, 7), (2, 3, 1, 7, 4)]
  np.testing.assert_array_equal(padded.key[..., :5], cache.key)
  np.testing.assert_array_equal(padded.value[..., :5, :], cache.value)


@settings(deadline=None, max_examples=30)
@given(row=st.integers(0, ROWS), other_row=st.integers(0, 1), capacity=st.integers(1, CAPACITY))
def test_inserting_overwrites_the_start_of_one_row(row, other_row, capacity):
  random = functools.partial(_random, 2)  # 2 layers, 1 head of size 4
  cache = attention.KeyValue(random(ROWS, 1, 4, CAPACITY), random(ROWS, 1, CAPACITY, 4, seed=1))
  other = attention.KeyValue(random(2, 1, 4, capacity, seed=2), random(2, 1, capacity, 4, seed=3))
  expected = attention.KeyValue(*(x.copy() for x in cache))
  if row < ROWS:  # an index beyond the batch changes nothing, not the last row
    expected.key[:, row, :, :, :capacity] = other.key[:, other_row]
    expected.value[:, row, :, :capacity] = other.value[:, other_row]
  jax.tree.map(np.testing.assert_array_equal, _insert(cache, row, other, other_row), expected)


def test_a_larger_cache_is_not_inserted():
  cache, other = (
    jax.tree.map(lambda x: x[None], _key_value(1, length, 1, 4, 0)) for length in (3, 4)
  )
  with pytest.raises(ValueError, match='capacity of 4 tokens does not fit into one of 3'):
    attention.insert(cache, 0, other)
