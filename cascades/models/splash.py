"""Causal attention without [T, T] arrays: JAX's Splash kernel on TPU, plain attention elsewhere.

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

from cascades.models.attention import KeyValue
from cascades.runtime import partitioning

LANES = 128  # row lengths are multiples of it
BLOCK = 512


def supports(length: int) -> bool:
  """True if the kernel takes rows of this length."""
  return length % LANES == 0


def attend_on_tpu(
  fallback: Callable[[Array, KeyValue], Array],
  query: Float[Array, 'B T N H'],
  key_value: KeyValue,
  segments: Int[Array, 'B T'] | None,
  *,
  windows: Sequence[int | None],
  window: Int[Array, ''],
  scale: float,
  cap: float | None,
) -> Float[Array, 'B T N H']:
  """Run the kernel in programs compiled for TPU, `fallback(query, key_value)` in all others.

  A layer attends to `windows[window]` tokens, itself included; None is all. Each size is a kernel
  of its own, and a layer runs one of them.
  """
  kernels = [functools.partial(attend, window=size, scale=scale, cap=cap) for size in windows]

  def kernel(query: Array, key_value: KeyValue) -> Array:
    if len(kernels) == 1:
      return kernels[0](query, key_value, segments)
    return jax.lax.switch(window, kernels, query, key_value, segments)

  return jax.lax.platform_dependent(query, key_value, tpu=kernel, default=fallback)


def attend(
  query: Float[Array, 'B T N H'],
  key_value: KeyValue,
  segments: Int[Array, 'B T'] | None,
  *,
  window: int | None,
  scale: float,
  cap: float | None,
  interpret: bool = False,
) -> Float[Array, 'B T N H']:
  """Causal attention within segments and window: softmax(softcap(scale q k)) v.

  Every device computes its own rows and heads.
  """
  arrays = (
    jnp.einsum('BTNH->BNTH', query * scale),
    jnp.einsum('BKHS->BKSH', key_value.key),
    key_value.value,
    jnp.ones(query.shape[:2], jnp.int32) if segments is None else segments,
  )
  kernel = functools.partial(_attend_on_device, window=window, cap=cap, interpret=interpret)
  # Query heads are sharded as their key heads are, so that groups stay on one device.
  spec = partitioning.active_spec(arrays[1].shape, ('batch', 'activation_heads', None, None))
  if spec is not None:
    rows = PartitionSpec(spec[0], None)
    kernel = jax.shard_map(
      kernel, in_specs=(spec, spec, spec, rows), out_specs=spec, check_vma=False
    )
  return jnp.einsum('BNTH->BTNH', kernel(*arrays)).astype(query.dtype)


def _attend_on_device(
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
