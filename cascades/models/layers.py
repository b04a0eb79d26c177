"""Building blocks of every model. Parameters and activations carry logical axis names.

Axes: B batch, T length, V vocabulary, D width, F mlp. Parameters stay float32 and are cast to the
type of the activations they meet.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import spmd
from jax import Array
from jax.sharding import PartitionSpec
from jaxtyping import Float, Int

Layer = TypeVar('Layer', bound=nnx.Module)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'relu': jax.nn.relu,
  # The tanh form, as in T5 1.1 and Gemma; PyTorch's default is the exact one.
  'gelu': functools.partial(jax.nn.gelu, approximate=True),
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}

# What the backward pass recomputes, by T5X's names.
REMAT_POLICIES: dict[str, Callable[[Callable], Callable]] = {
  'none': lambda step: step,
  'minimal': functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  ),
  'full': functools.partial(jax.checkpoint, prevent_cse=False),
}


def check_options(activations: Sequence[str], dtype: str, remat_policy: str) -> None:
  """Refuse names that no table here has."""
  tables = {
    'activation': ([*activations], ACTIVATIONS),
    'dtype': ([dtype], ('float32', 'bfloat16')),
    'remat_policy': ([remat_policy], REMAT_POLICIES),
  }
  for option, (names, known) in tables.items():
    for name in names:
      if name not in known:
        raise ValueError(f'Unknown {option} {name!r}; choose one of {", ".join(known)}.')


def constrain(x: Array, *names: str) -> Array:
  """Lay out an activation as the active logical axis rules say; without rules, do nothing.

  An axis is replicated if it has no rule, or if the mesh axes of its rule do not divide it or
  already split an earlier axis.
  """
  rules, mesh = dict(spmd.get_logical_axis_rules()), jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return x
  used: set[str] = set()
  axes: list[tuple[str, ...] | None] = []
  for size, name in zip(x.shape, names, strict=True):
    rule = rules.get(name) or ()
    wanted = (rule,) if isinstance(rule, str) else tuple(rule)
    fits = not used & {*wanted} and size % math.prod(mesh.shape[axis] for axis in wanted) == 0
    axes.append(wanted if fits else None)
    used |= {*wanted} if fits else set()
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def fold(key: Array | None, data: int | Array) -> Array | None:
  """A key of its own for `data`; no key stays no key."""
  return None if key is None else jax.random.fold_in(key, data)


def dropout(x: Float[Array, '*n T D'], rate: float, key: Array | None) -> Float[Array, '*n T D']:
  """Drop features, the same ones at every position of a row as T5X does; no key, no dropout."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, (*x.shape[:-2], 1, x.shape[-1]))
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def softcap(x: Float[Array, '*n'], cap: float | None) -> Float[Array, '*n']:
  """Squash into (-cap, cap): cap tanh(x / cap). Gemma 2, https://arxiv.org/abs/2408.00118."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def parameter(
  key: Array, shape: Sequence[int], names: Sequence[str], *, stddev: float
) -> nnx.Param[Array]:
  """A normally distributed parameter with logical axis names."""
  return nnx.Param(stddev * jax.random.normal(key, tuple(shape)), out_sharding=tuple(names))


def embed(
  table: Float[Array, 'V D'], tokens: Int[Array, 'B T'], dtype: str
) -> Float[Array, 'B T D']:
  """The rows of `tokens`; NaN for a token outside the vocabulary."""
  x = jnp.take(table, tokens, axis=0, mode='fill').astype(dtype)
  return constrain(x, 'batch', 'length', 'activation_embed')


def unembed(table: Float[Array, 'V D'], hidden: Float[Array, '*n D']) -> Float[Array, '*n V']:
  """Float32 logits: the inner products of `hidden` with every row."""
  logits = jnp.einsum(
    '...D,VD->...V', hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32
  )
  return constrain(logits, *('batch', 'length')[: logits.ndim - 1], 'activation_vocab')


class Projection(nnx.Module):
  """A labelled linear map: einsum(equation, x, kernel) + bias over the last `bias_axes` axes."""

  def __init__(
    self,
    key: Array,
    equation: str,
    shape: Sequence[int],
    names: Sequence[str],
    *,
    stddev: float,
    bias_axes: int = 0,
  ):
    self.equation = equation
    self.kernel = parameter(key, shape, names, stddev=stddev)
    start = len(shape) - bias_axes
    self.bias = parameter(key, shape[start:], names[start:], stddev=0.0) if bias_axes else None

  def __call__(self, x: Array) -> Array:
    y = jnp.einsum(self.equation, x, self.kernel[...].astype(x.dtype))
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) times (offset + scale), https://arxiv.org/abs/1910.07467.

  Gemma stores its scale less one: offset 1.
  """

  def __init__(self, size: int, *, eps: float, offset: float = 0.0):
    self.scale = nnx.Param(jnp.full((size,), 1.0 - offset), out_sharding=('norm',))
    self.eps = eps
    self.offset = offset

  def __call__(self, x: Float[Array, '*n D']) -> Float[Array, '*n D']:
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.eps)
    return (wide * (self.offset + self.scale[...])).astype(x.dtype)


class MLP(nnx.Module):
  """wo(prod_i activation_i(wi_i(x))): ('relu',) in T5 1.0; ('gelu', 'linear') is GeGLU.

  Shazeer 2020, https://arxiv.org/abs/2002.05202.
  """

  def __init__(self, key: Array, emb_dim: int, mlp_dim: int, activations: Sequence[str]):
    self.activations = tuple(activations)
    out, *into = jax.random.split(key, 1 + len(activations))
    self.wi = nnx.List(
      Projection(k, 'BTD,DF->BTF', (emb_dim, mlp_dim), ('embed', 'mlp'), stddev=emb_dim**-0.5)
      for k in into
    )
    self.wo = Projection(
      out, 'BTF,FD->BTD', (mlp_dim, emb_dim), ('mlp', 'embed'), stddev=mlp_dim**-0.5
    )

  def __call__(
    self, x: Float[Array, 'B T D'], *, rate: float = 0.0, key: Array | None = None
  ) -> Float[Array, 'B T D']:
    gates = [ACTIVATIONS[name](wi(x)) for name, wi in zip(self.activations, self.wi, strict=True)]
    inner = constrain(functools.reduce(operator.mul, gates), 'batch', 'length', 'activation_mlp')
    return self.wo(dropout(inner, rate, key))


def stack(make: Callable[[Array], Layer], key: Array, num: int) -> Layer:
  """`num` layers as one module whose parameters have a leading axis 'layers'."""
  vmapped = nnx.vmap(make, transform_metadata={nnx.PARTITION_NAME: 'layers'})
  return vmapped(jax.random.split(key, num))


def scan_layers(
  stacked: Layer,
  step: Callable[[Layer, Array, Any, Array | None], tuple[Array, Any]],
  carry: Array,
  xs: Any,
  *,
  key: Array | None = None,
  remat_policy: str = 'none',
) -> tuple[Array, Any]:
  """Fold `step(layer, carry, x, key) -> (carry, y)` over layers and the leading axis of `xs`."""
  graphdef, params = nnx.split(stacked)

  def body(carry: Array, scanned: Any) -> tuple[Array, Any]:
    index, params, x = scanned
    return step(nnx.merge(graphdef, params), carry, x, fold(key, index))

  num = jax.tree.leaves(params)[0].shape[0]
  return jax.lax.scan(REMAT_POLICIES[remat_policy](body), carry, (jnp.arange(num), params, xs))
