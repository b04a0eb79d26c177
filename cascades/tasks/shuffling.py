"""Random permutations, evaluated at single positions: no table to build, store or restore."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt64

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*words: int | np.ndarray) -> UInt64[np.ndarray, 'n']:
  """Hashes integers, broadcast together, to 64 bits."""
  state = np.zeros(1, np.uint64)
  for word in words:
    state = _scramble(state + np.asarray(word).astype(np.uint64) + _GOLDEN)
  return state


def shuffled(index: np.ndarray, size: int | np.ndarray, key: np.ndarray) -> np.ndarray:
  """Maps `index` by a random permutation of `range(size)`; elementwise over all three.

  A Feistel network permutes the next larger power of four; values outside `range(size)` are
  permuted again until they are inside (Black & Rogaway 2002, "Ciphers with arbitrary finite
  domains"), which keeps it a permutation.
  """
  index, size, key = np.broadcast_arrays(index, size, key)
  bits = np.frexp(np.maximum(size - 1, 1).astype(np.float64))[1]  # bit length
  half = ((bits + 1) // 2).astype(np.uint64)
  result = index.astype(np.uint64)
  pending = np.arange(len(result))
  while len(pending):
    result[pending] = _feistel(result[pending], half[pending], key[pending])
    pending = pending[result[pending] >= size[pending].astype(np.uint64)]
  return result.astype(np.int64)


def _feistel(
  value: UInt64[np.ndarray, 'n'], half: UInt64[np.ndarray, 'n'], key: UInt64[np.ndarray, 'n']
) -> UInt64[np.ndarray, 'n']:
  mask = (np.uint64(1) << half) - np.uint64(1)
  left, right = value >> half, value & mask
  for _ in range(_ROUNDS):
    key = key + _GOLDEN
    left, right = right, left ^ (_scramble(right ^ key) & mask)
  return (left << half) | right


def _scramble(bits: UInt64[np.ndarray, 'n']) -> UInt64[np.ndarray, 'n']:
  """SplitMix64's finalizer, Steele et al. 2014, https://doi.org/10.1145/2714064.2660195."""
  bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return bits ^ (bits >> np.uint64(31))
