from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades.models import positions
from tests.interop.t5x_oracle import bucket

_rotate = jax.jit(positions.rotate)


@pytest.mark.parametrize('bidirectional', [True, False])
@pytest.mark.parametrize(('num_buckets', 'max_distance'), [(32, 128), (8, 12), (32, 256)])
def test_relative_buckets_against_t5x(bidirectional, num_buckets, max_distance):
  options = {
    'bidirectional': bidirectional,
    'num_buckets': num_buckets,
    'max_distance': max_distance,
  }
  got = positions.relative_buckets(**options)
  distances = range(-max_distance, max_distance + 1)
  np.testing.assert_array_equal(got, [bucket(d, **options) for d in distances])
  for beyond in (-3 * max_distance, 3 * max_distance):
    assert bucket(beyond, **options) == got[-1 if beyond > 0 else 0]


def test_relative_buckets_by_hand():
  # 4 buckets a side, 2 of them exact; log-spaced from 2 to 8, so 2-3 share one and 4-8 the last.
  got = positions.relative_buckets(bidirectional=True, num_buckets=8, max_distance=8)
  np.testing.assert_array_equal(got[8:], [0, 5, 6, 6, 7, 7, 7, 7, 7])
  np.testing.assert_array_equal(got[:9], [3, 3, 3, 3, 3, 2, 2, 1, 0])


def test_relative_bias_is_one_number_per_head_and_bucket():
  bias = positions.RelativeBias(
    jax.random.key(0), 3, bidirectional=False, num_buckets=8, max_distance=12
  )
  distance = np.random.RandomState(0).randint(-40, 40, (2, 4, 5))
  got, table = np.asarray(bias(distance)), np.asarray(bias.table[...])
  assert got.shape == (2, 3, 4, 5)
  for b, n, t, s in np.ndindex(*got.shape):
    expected = bucket(int(distance[b, t, s]), bidirectional=False, num_buckets=8, max_distance=12)
    assert got[b, n, t, s] == table[expected, n]


def test_rotary_frequencies_by_hand():
  got = positions.inverse_frequencies(4, 100.0)
  np.testing.assert_allclose(got, [1.0, 0.1])
  np.testing.assert_allclose(positions.inverse_frequencies(4, 100.0, linear_factor=8.0), got / 8)


@pytest.mark.parametrize(
  'options', [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (2.0, 1.5, 3.0, 64)]
)
def test_llama3_scaling_against_its_oracle(options):
  factor, low, high, length = options
  plain = positions.inverse_frequencies(32, 500_000.0)
  expected = []
  for frequency in plain:
    wavelength = 2 * np.pi / frequency
    if wavelength < length / high:
      expected.append(frequency)
    elif wavelength > length / low:
      expected.append(frequency / factor)
    else:
      smooth = (length / wavelength - low) / (high - low)
      expected.append((1 - smooth) * frequency / factor + smooth * frequency)
  got = positions.inverse_frequencies(32, 500_000.0, llama3=options)
  np.testing.assert_allclose(got, expected, rtol=1e-6)
  assert got[0] == plain[0]
  np.testing.assert_allclose(got[-1], plain[-1] / factor)


def test_rotation_is_multiplication_by_a_complex_unit():
  x = np.random.RandomState(0).standard_normal((2, 3, 2, 6)).astype(np.float32)
  at = np.array([[0, 1, 5], [2, 2, 9]])
  frequencies = positions.inverse_frequencies(6, 50.0)
  expected = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * at[..., None, None] * frequencies)
  rotated = _rotate(x, at, frequencies)
  np.testing.assert_allclose(rotated, np.concatenate([expected.real, expected.imag], -1), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))
def test_rotated_products_depend_on_the_distance_only(query_at, key_at, shift):
  random = np.random.RandomState(0)
  query, key = random.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
  frequencies = np.float32(positions.inverse_frequencies(8, 10_000.0))

  def product(query_at, key_at):
    rotate = lambda x, position: np.asarray(_rotate(x, np.array([[position]]), frequencies))
    return (rotate(query, query_at) * rotate(key, key_at)).sum()

  np.testing.assert_allclose(
    product(query_at + shift, key_at + shift), product(query_at, key_at), atol=2e-3
  )
  np.testing.assert_allclose(product(query_at, query_at), (query * key).sum(), atol=1e-4)
