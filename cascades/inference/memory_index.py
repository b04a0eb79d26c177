"""Approximate search in large memories with faiss, which is installed with `lm-cascades[faiss]`."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array
from jaxtyping import Float, Int

from cascades import resmem

SAMPLE = 200  # queries whose neighbors are searched for exactly, for the recall


def faiss() -> Any:
  """The module of faiss. Raises ImportError with the way to get it."""
  try:
    import faiss as module
  except ImportError as error:
    raise ImportError(
      'An index of a large memory needs faiss, which is not installed: run '
      '`pip install "lm-cascades[faiss]"`, or search exactly with INDEX_ABOVE=None.'
    ) from error
  return module


def build(keys: Float[np.ndarray, 'N D'], path: epath.Path, *, seed: int = 0) -> None:
  """Write an inverted index of about 4 sqrt(N) cells, of which a search reads every 16th."""
  module = faiss()
  entries = np.ascontiguousarray(keys, np.float32)
  cells = max(1, min(int(4 * len(entries) ** 0.5), len(entries) // 40))
  index = module.IndexIVFFlat(module.IndexFlatL2(entries.shape[1]), entries.shape[1], cells)
  index.cp.seed, index.cp.max_points_per_centroid = seed + 1, 64
  index.train(entries)
  index.add(entries)
  index.nprobe = -(-cells // 16)
  module.write_index(index, os.fspath(path))


def search(path: epath.Path) -> resmem.Search:
  """Search in an index that `build` wrote, also inside compiled programs."""
  index = faiss().read_index(os.fspath(path))

  def nearest(queries: Float[Array, 'Q D'], keys: Float[Array, 'N D'], k: int) -> Int[Array, 'Q k']:
    del keys

    def on_host(rows: Any) -> np.ndarray:
      neighbors = index.search(np.ascontiguousarray(rows, np.float32), k)[1]
      # Cells that are read may hold fewer than k entries; the nearest of them stands in.
      return np.where(neighbors < 0, neighbors[:, :1], neighbors).astype(np.int32)

    shape = jax.ShapeDtypeStruct((len(queries), k), jnp.int32)
    return jax.pure_callback(on_host, shape, queries)

  return nearest


def recall(
  approximate: resmem.Search, keys: Float[np.ndarray, 'N D'], k: int, *, seed: int = 0
) -> float:
  """Share of the exact k neighbors that a search returns, for a sample of perturbed entries."""
  rng = np.random.default_rng(seed)
  rows = np.asarray(keys[np.sort(rng.choice(len(keys), min(SAMPLE, len(keys)), replace=False))])
  queries = jnp.asarray(rows + 0.1 * rows.std(0) * rng.standard_normal(rows.shape), jnp.float32)
  entries = jnp.asarray(keys)
  exact, other = resmem.nearest(queries, entries, k), approximate(queries, entries, k)
  pairs = zip(np.asarray(exact).tolist(), np.asarray(other).tolist(), strict=True)
  return float(np.mean([len({*a} & {*b}) / k for a, b in pairs]))
