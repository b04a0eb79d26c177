"""Building blocks of every model. Parameters and activations carry logical axis names.

Axes: B batch, T length, V vocabulary, D width, F mlp. Parameters stay float32 and are cast to the
type of the activations they meet; frozen ones may be held otherwise, see `product`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from cascades.models import lora, quantization
from cascades.runtime import partitioning

Layer = TypeVar('Layer', bound=nnx.Module)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'relu': jax.nn.relu,
  # The tanh form, as in T5 1.1 and Gemma; PyTorch's default is the exact one.
  'gelu': functools.partial(jax.nn.gelu, approximate=True),
  'silu': jax.nn.silu,
  'linear': lambda x: x,
}

# What the backward pass of a layer recomputes. All but 'elementwise' are T5X's; on CPU that one
# takes three quarters of the time of 'none', which moves more memory.
REMAT_POLICIES: dict[str, Callable[[Callable], Callable]] = {
  'none': lambda step: step,
  'elementwise': functools.partial(
    jax.checkpoint, prevent_cse=False, policy=jax.checkpoint_policies.dots_saveable
  ),
  'minimal': functools.partial(
    jax.checkpoint,
    prevent_cse=False,
    policy=jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
  ),
  'full': functools.partial(jax.checkpoint, prevent_cse=False),
}


def settle(config: Any) -> None:
  """Finish a new configuration: lists become tuples, names that no table here has are refused.

  JSON and gin give lists; a model's definition is hashed with its configuration.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    object.__setattr__(config, field.name, tuple(value) if isinstance(value, list) else value)
  for name, values, known in (
    ('mlp_activations', config.mlp_activations, ACTIVATIONS),
    ('dtype', (config.dtype,), ('float32', 'bfloat16')),
    ('remat_policy', (config.remat_policy,), REMAT_POLICIES),
  ):
    unknown = [value for value in values if value not in known]
    if unknown:
      raise ValueError(f'Unknown {name} {unknown[0]!r}; choose one of {", ".join(known)}.')


def constrain(x: Array, *names: str) -> Array:
  """Lay out an activation as the active logical axis rules say; without rules, do nothing."""
  spec = partitioning.active_spec(x.shape, names)
  return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


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


def named(value: Array, *names: str, inputs: Sequence[int] = ()) -> nnx.Param[Array]:
  """A parameter with logical axis names. Whoever places it knows the mesh; its maker does not.

  `inputs` are the axes, from the end, that a product with it sums over, if it is a matrix.
  """
  return nnx.Param(value, out_sharding=names, eager_sharding=False, inputs=tuple(inputs))


def normal(
  key: Array, shape: Sequence[int], *names: str, stddev: float, inputs: Sequence[int] = ()
) -> nnx.Param[Array]:
  """A normally distributed parameter."""
  return named(stddev * jax.random.normal(key, tuple(shape)), *names, inputs=inputs)


def table(vocab_size: int, emb_dim: int, key: Array, *, stddev: float) -> nnx.Param[Array]:
  """One row per token, for `embed` and `unembed`."""
  return normal(key, (vocab_size, emb_dim), 'vocab', 'embed', stddev=stddev, inputs=(-1,))


def embed(table: Any, tokens: Int[Array, 'B T'], dtype: str) -> Float[Array, 'B T D']:
  """The rows of `tokens`, however the table is held; NaN for a token outside the vocabulary."""
  rows = jax.tree.map(lambda part: jnp.take(part, tokens, axis=0, mode='fill'), table)
  x = quantization.widen(rows, dtype)
  return constrain(x, 'batch', 'length', 'activation_embed')


def unembed(table: Any, hidden: Float[Array, '*n D']) -> Float[Array, '*n V']:
  """Float32 logits: the inner products of `hidden` with every row, however the table is held."""
  quantized = isinstance(table, quantization.Quantized)
  rows, scale = (table.values, table.scale) if quantized else (table, None)
  # As one matrix, for the same reason as in `product`.
  logits = jnp.matmul(
    hidden.reshape(-1, hidden.shape[-1]),
    rows.astype(hidden.dtype).T,
    preferred_element_type=jnp.float32,
  )
  if scale is not None:
    logits *= scale[:, 0]
  logits = logits.reshape(*hidden.shape[:-1], -1)
  return constrain(logits, *('batch', 'length')[: logits.ndim - 1], 'activation_vocab')


def product(x: Float[Array, 'n I'], weight: Any) -> Float[Array, 'n O']:
  """x W, for a W of any number of axes I and O, as it is held: wide, in eight bits, or adapted.

  The scales of eight bits belong to outputs, so they multiply those, and W is never formed.
  """
  if isinstance(weight, lora.Adapted):
    down, up = weight.adapter
    return product(x, weight.base) + product(product(x, down), up)
  if isinstance(weight, quantization.Quantized):
    return (product(x, weight.values) * weight.scale.reshape(-1)).astype(x.dtype)
  # As one matrix: the gradient of an einsum over more axes takes XLA's CPU backend twice as long.
  return x @ weight.astype(x.dtype).reshape(x.shape[-1], -1)


class Projection(nnx.Module):
  """A linear map of the features that follow axes B and T: x kernel + bias.

  `into` and `out` give the feature axes' sizes by logical name.
  """

  def __init__(
    self,
    key: Array,
    into: Mapping[str, int],
    out: Mapping[str, int],
    *,
    stddev: float | None = None,
    bias: bool = False,
  ):
    self.fan_in = math.prod(into.values())
    self.out = tuple(out.values())
    shape = (*into.values(), *self.out)
    stddev = self.fan_in**-0.5 if stddev is None else stddev
    inputs = range(-len(shape), -len(self.out))
    self.kernel = normal(key, shape, *into, *out, stddev=stddev, inputs=inputs)
    self.bias = named(jnp.zeros(self.out), *out) if bias else None

  def __call__(self, x: Float[Array, 'B T *into']) -> Float[Array, 'B T *out']:
    y = product(x.reshape(-1, self.fan_in), self.kernel.get_value())
    y = y.reshape(*x.shape[:2], *self.out)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
  """x / sqrt(mean(x^2) + eps) times (offset + scale), https://arxiv.org/abs/1910.07467.

  Gemma stores its scale less one: offset 1.
  """

  def __init__(self, size: int, *, eps: float, offset: float = 0.0):
    self.scale = named(jnp.full((size,), 1.0 - offset, jnp.float32), 'norm')
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
    for i, into_key in enumerate(into):
      setattr(self, f'wi_{i}', Projection(into_key, {'embed': emb_dim}, {'mlp': mlp_dim}))
    self.wo = Projection(out, {'mlp': mlp_dim}, {'embed': emb_dim})

  def __call__(
    self, x: Float[Array, 'B T D'], *, rate: float = 0.0, key: Array | None = None
  ) -> Float[Array, 'B T D']:
    gates = [
      ACTIVATIONS[name](getattr(self, f'wi_{i}')(x)) for i, name in enumerate(self.activations)
    ]
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
  remat_policy: str = 'elementwise',
) -> tuple[Array, Any]:
  """Fold `step(layer, carry, x, key) -> (carry, y)` over layers and the leading axis of `xs`."""
  graphdef, params = nnx.split(stacked)

  def body(carry: Array, scanned: Any) -> tuple[Array, Any]:
    index, params, x = scanned
    return step(nnx.merge(graphdef, params), carry, x, fold(key, index))

  num = jax.tree.leaves(params)[0].shape[0]
  return jax.lax.scan(REMAT_POLICIES[remat_policy](body), carry, (jnp.arange(num), params, xs))
