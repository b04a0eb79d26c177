import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import shuffling


def mix_slowly(*words):
  """The hash in Python's integers."""
  state = 0
  for word in words:
    state = scramble_slowly((state + word + 0x9E3779B97F4A7C15) % 2**64)
  return state


def scramble_slowly(bits):
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
  return bits ^ (bits >> 31)


def shuffled_slowly(index, size, key):
  half = (max(size - 1, 1).bit_length() + 1) // 2
  while True:
    left, right, round_key = index >> half, index % 2**half, key
    for _ in range(6):
      round_key = (round_key + 0x9E3779B97F4A7C15) % 2**64
      left, right = right, left ^ (scramble_slowly(right ^ round_key) % 2**half)
    index = (left << half) | right
    if index < size:
      return index


def test_the_scrambler_gives_the_published_splitmix64_numbers():
  # The generator's first outputs from seed 1234567.
  states = [1234567 + (i + 1) * 0x9E3779B97F4A7C15 for i in range(3)]
  outputs = shuffling._scramble(np.array([s % 2**64 for s in states], np.uint64))
  assert outputs.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_mix_equals_its_oracle(words):
  arrays = [np.array([word], np.uint64) for word in words]
  assert int(shuffling.mix(*arrays)[0]) == mix_slowly(*words)


def test_mix_broadcasts():
  mixed = shuffling.mix(3, np.arange(4))
  assert [int(value) for value in mixed] == [mix_slowly(3, i) for i in range(4)]


@given(st.integers(1, 300), st.integers(0, 2**32))
def test_shuffled_is_a_permutation(size, seed):
  permuted = shuffling.shuffled(np.arange(size), size, shuffling.mix(seed))
  assert sorted(permuted.tolist()) == list(range(size))


@given(st.integers(1, 10**7), st.integers(0, 2**32), st.data())
def test_shuffled_equals_its_oracle(size, seed, data):
  index = data.draw(st.integers(0, size - 1))
  found = shuffling.shuffled(np.array([index]), size, shuffling.mix(seed))
  assert int(found[0]) == shuffled_slowly(index, size, mix_slowly(seed))


def test_each_element_may_have_its_own_size_and_key():
  index, size, key = np.array([0, 1, 2]), np.array([1, 5, 1000]), shuffling.mix(np.arange(3))
  together = shuffling.shuffled(index, size, key)
  apart = [shuffling.shuffled(index[i : i + 1], size[i], key[i : i + 1])[0] for i in range(3)]
  assert together.tolist() == [int(value) for value in apart]


@pytest.mark.parametrize('size', [2, 3, 4, 7])
def test_every_place_is_about_equally_likely(size):
  draws = 3000
  keys = shuffling.mix(np.arange(draws))
  for index in range(size):
    found = shuffling.shuffled(np.full(draws, index), size, keys)
    counts = np.bincount(found, minlength=size)
    assert np.all(np.abs(counts - draws / size) < 6 * np.sqrt(draws / size))


def test_every_order_of_three_occurs():
  orders = collections.Counter(
    tuple(shuffling.shuffled(np.arange(3), 3, shuffling.mix(seed)).tolist()) for seed in range(600)
  )
  assert len(orders) == 6
  assert min(orders.values()) > 50


def test_neighbors_do_not_stay_together():
  size = 20_000
  permuted = shuffling.shuffled(np.arange(size), size, shuffling.mix(5))
  assert abs(np.corrcoef(permuted[1:], permuted[:-1])[0, 1]) < 0.05
  assert abs(np.corrcoef(permuted, np.arange(size))[0, 1]) < 0.05


def test_sizes_beyond_32_bits_work():
  size = 2**40 + 3
  index = np.array([0, 1, size - 1])
  found = shuffling.shuffled(index, size, shuffling.mix(1))
  assert len(set(found.tolist())) == 3
  assert np.all((found >= 0) & (found < size))


def test_the_order_is_the_same_in_every_process_and_version():
  found = shuffling.shuffled(np.arange(8), 8, shuffling.mix(0, 0))
  assert found.tolist() == [shuffled_slowly(i, 8, mix_slowly(0, 0)) for i in range(8)]
