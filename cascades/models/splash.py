"""Causal attention that never forms its scores: JAX's Splash kernel on TPU, plain elsewhere.

Axes: B batch, T length, N heads, K key-value heads, H head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask,
)
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

from cascades.models.attention import Source
from cascades.runtime import partitioning

LANES = 128  # rows are multiples of it
BLOCK = 512


def fits(length: int) -> bool:
  """Whether the kernel takes rows of this length."""
  return length % LANES == 0


def attend_or(
  plain: Callable[[Array, Source], Array],
  query: Float[Array, 'B T N H'],
  source: Source,
  segments: Int[Array, 'B T'] | None,
  *,
  windows: Sequence[int | None],
  which: Int[Array, ''],
  scale: float,
  cap: float | None,
) -> Float[Array, 'B T N H']:
  """The kernel where the program is compiled for TPU, `plain(query, source)` anywhere else.

  A layer sees `windows[which]` tokens, itself included, None for all: each is a kernel of its own,
  of which the layer runs one.
  """
  kernels = [functools.partial(attend, window=w, scale=scale, cap=cap) for w in windows]

  def fused(query: Array, source: Source) -> Array:
    if len(kernels) == 1:
      return kernels[0](query, source, segments)
    return jax.lax.switch(which, kernels, query, source, segments)

  return jax.lax.platform_dependent(query, source, tpu=fused, default=plain)


def attend(
  query: Float[Array, 'B T N H'],
  source: Source,
  segments: Int[Array, 'B T'] | None,
  *,
  window: int | None,
  scale: float,
  cap: float | None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """softmax(softcap(scale q k)) v over what is not later, in the same segment and in the window.

  Every device attends for its own rows and heads.
  """
  arrays = (
    jnp.einsum('BTNH->BNTH', query * scale),
    jnp.einsum('BKHS->BKSH', source[0]),
    source[1],
    jnp.ones(query.shape[:2], jnp.int32) if segments is None else segments,
  )
  run = functools.partial(_on_device, window=window, cap=cap, interpret=interpret)
  # Heads are split as their keys are: a group of queries stays with the one that it reads.
  spec = partitioning.active_spec(arrays[1].shape, ('batch', 'activation_heads', None, None))
  if spec is not None:
    rows = PartitionSpec(spec[0], None)
    run = jax.shard_map(run, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False)
  return jnp.einsum('BNTH->BTNH', run(*arrays)).astype(query.dtype)


def _on_device(
  query: Float[Array, 'B N T H'],
  keys: Float[Array, 'B K T H'],
  values: Float[Array, 'B K T H'],
  segments: Int[Array, 'B T'],
  *,
  window: int | None,
  cap: float | None,
  interpret: bool,
) -> Float[Array, 'B N T H']:
  num_heads, length = query.shape[1:3]
  shape = (length, length)
  mask = (
    splash_attention_mask.CausalMask(shape)
    if window is None or window >= length
    else splash_attention_mask.LocalMask(shape, (window - 1, 0), 0)
  )
  block = next(size for size in (BLOCK, BLOCK // 2, LANES) if length % size == 0)
  kernel = splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([mask] * num_heads),
    block_sizes=splash_attention_kernel.BlockSizes(
      *(block, block, block),  # forward: queries, keys, keys at a time
      *(block, block, block),  # gradients of keys and values
      *(block, block),  # of queries
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cap,
    interpret=interpret,
  )
  ids = splash_attention_kernel.SegmentIds(segments, segments)
  return jax.vmap(kernel)(query, keys, values, segment_ids=ids)
