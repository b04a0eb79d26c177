"""Building blocks of every model. Parameters and activations carry logical axis names.

Trained parameters are float32 and are cast to the dtype of the activations. Frozen weights may be
bfloat16, int8 or adapted by LoRA: see `matmul`.
Axes: B batch, T length, V vocabulary, D width, F mlp, I inputs and O outputs of a linear map.
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

from cascades.models import lora
from cascades.models.quantization import Quantized, dequantize
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


def validate_config(config: Any) -> None:
  """Make a new model configuration hashable, and raise ValueError for an unknown option.

  Lists, which JSON and gin give, become tuples: model definitions are hashed with their
  configurations.
  """
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    object.__setattr__(config, field.name, tuple(value) if isinstance(value, list) else value)
  for name, values, choices in (
    ('mlp_activations', config.mlp_activations, ACTIVATIONS),
    ('dtype', (config.dtype,), ('float32', 'bfloat16')),
    ('remat_policy', (config.remat_policy,), REMAT_POLICIES),
  ):
    unknown = [value for value in values if value not in choices]
    if unknown:
      raise ValueError(f'Unknown {name} {unknown[0]!r}; choose one of {", ".join(choices)}.')


def constrain(x: Array, *axes: str) -> Array:
  """Constrain an activation's sharding by the active logical axis rules; without any, return it."""
  spec = partitioning.active_spec(x.shape, axes)
  return x if spec is None else jax.lax.with_sharding_constraint(x, spec)


def fold_in(key: Array | None, data: int | Array) -> Array | None:
  """Derive the key of `data`; None stays None."""
  return None if key is None else jax.random.fold_in(key, data)


def dropout(x: Float[Array, '*n T D'], rate: float, key: Array | None) -> Float[Array, '*n T D']:
  """Drop features, the same ones at every position of a row, as T5X does; None for no dropout."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, (*x.shape[:-2], 1, x.shape[-1]))
  return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def softcap(x: Float[Array, '*n'], cap: float | None) -> Float[Array, '*n']:
  """Squash into (-cap, cap): cap tanh(x / cap). Gemma 2, https://arxiv.org/abs/2408.00118."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def parameter(value: Array, *axes: str, inputs: Sequence[int] = ()) -> nnx.Param[Array]:
  """Parameter with logical axis names, which sharding rules map to a mesh.

  `inputs` are the axes of a matrix, counted from the end, that its product sums over.
  """
  return nnx.Param(value, out_sharding=axes, eager_sharding=False, inputs=tuple(inputs))


def normal_parameter(
  key: Array, shape: Sequence[int], *axes: str, stddev: float, inputs: Sequence[int] = ()
) -> nnx.Param[Array]:
  """Normally distributed parameter with logical axis names."""
  return parameter(stddev * jax.random.normal(key, tuple(shape)), *axes, inputs=inputs)


def embedding_table(
  vocab_size: int, emb_dim: int, key: Array, *, stddev: float
) -> nnx.Param[Array]:
  """Table of one row per token, for `embed` and `unembed`."""
  return normal_parameter(key, (vocab_size, emb_dim), 'vocab', 'embed', stddev=stddev, inputs=(-1,))


def embed(
  table: Float[Array, 'V D'] | Quantized, tokens: Int[Array, 'B T'], dtype: str
) -> Float[Array, 'B T D']:
  """Look up the rows of `tokens`; NaN for a token outside the vocabulary."""
  rows = jax.tree.map(lambda leaf: jnp.take(leaf, tokens, axis=0, mode='fill'), table)
  return constrain(dequantize(rows, dtype), 'batch', 'length', 'activation_embed')


def unembed(
  table: Float[Array, 'V D'] | Quantized, hidden: Float[Array, '*n D']
) -> Float[Array, '*n V']:
  """Compute float32 logits: the inner products of `hidden` with every row of the table."""
  rows, scale = (table.values, table.scale) if isinstance(table, Quantized) else (table, None)
  # As one matrix, for the same reason as in `matmul`.
  logits = jnp.matmul(
    hidden.reshape(-1, hidden.shape[-1]),
    rows.astype(hidden.dtype).T,
    preferred_element_type=jnp.float32,
  )
  if scale is not None:
    logits *= scale[:, 0]
  logits = logits.reshape(*hidden.shape[:-1], -1)
  return constrain(logits, *('batch', 'length')[: logits.ndim - 1], 'activation_vocab')


def matmul(
  x: Float[Array, 'n I'], weight: Float[Array, '*IO'] | Quantized | lora.Adapted
) -> Float[Array, 'n O']:
  """Compute x W for a weight of any number of axes: dense, int8, or with an adapter beside it.

  The scales of int8 weights belong to outputs, so they multiply those; W is never dequantized.
  """
  if isinstance(weight, lora.Adapted):
    down, up = weight.adapter
    return matmul(x, weight.base) + matmul(matmul(x, down), up)
  if isinstance(weight, Quantized):
    return (matmul(x, weight.values) * weight.scale.reshape(-1)).astype(x.dtype)
  # As one matrix: the gradient of an einsum over more axes takes XLA's CPU backend twice as long.
  return x @ weight.astype(x.dtype).reshape(x.shape[-1], -1)


class Projection(nnx.Module):
  """Linear map of the feature axes, which follow B and T: x kernel + bias.

  `inputs` and `outputs` map the logical names of the feature axes to their sizes.
  """

  def __init__(
    self,
    key: Array,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    *,
    stddev: float | None = None,
    bias: bool = False,
  ):
    self.fan_in = math.prod(inputs.values())
    self.output_shape = tuple(outputs.values())
    shape = (*inputs.values(), *self.output_shape)
    stddev = self.fan_in**-0.5 if stddev is None else stddev
    input_axes = range(-len(shape), -len(self.output_shape))
    self.kernel = normal_parameter(key, shape, *inputs, *outputs, stddev=stddev, inputs=input_axes)
    self.bias = parameter(jnp.zeros(self.output_shape), *outputs) if bias else None

  def __call__(self, x: Float[Array, 'B T *inputs']) -> Float[Array, 'B T *outputs']:
    y = matmul(x.reshape(-1, self.fan_in), self.kernel.get_value())
    y = y.reshape(*x.shape[:2], *self.output_shape)
    return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
  """Root mean square norm: x / sqrt(mean(x^2) + eps) * (offset + scale).

  https://arxiv.org/abs/1910.07467. Gemma stores its scales less one: offset 1.
  """

  def __init__(self, size: int, *, eps: float, offset: float = 0.0):
    self.scale = parameter(jnp.full((size,), 1.0 - offset, jnp.float32), 'norm')
    self.eps = eps
    self.offset = offset

  def __call__(self, x: Float[Array, '*n D']) -> Float[Array, '*n D']:
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.eps)
    return (y * (self.offset + self.scale[...])).astype(x.dtype)


class MLP(nnx.Module):
  """Gated feed-forward layer: wo(prod_i activation_i(wi_i(x))).

  ('relu',) is T5 1.0's; ('gelu', 'linear') is GeGLU. Shazeer 2020,
  https://arxiv.org/abs/2002.05202.
  """

  def __init__(self, key: Array, emb_dim: int, mlp_dim: int, activations: Sequence[str]):
    self.activations = tuple(activations)
    wo_key, *wi_keys = jax.random.split(key, 1 + len(activations))
    for i, wi_key in enumerate(wi_keys):
      setattr(self, f'wi_{i}', Projection(wi_key, {'embed': emb_dim}, {'mlp': mlp_dim}))
    self.wo = Projection(wo_key, {'mlp': mlp_dim}, {'embed': emb_dim})

  def __call__(
    self, x: Float[Array, 'B T D'], *, rate: float = 0.0, key: Array | None = None
  ) -> Float[Array, 'B T D']:
    gates = [
      ACTIVATIONS[name](getattr(self, f'wi_{i}')(x)) for i, name in enumerate(self.activations)
    ]
    inner = constrain(functools.reduce(operator.mul, gates), 'batch', 'length', 'activation_mlp')
    return self.wo(dropout(inner, rate, key))


def stack_layers(build: Callable[[Array], Layer], key: Array, num_layers: int) -> Layer:
  """Build one module of `num_layers` layers: its parameters have a leading axis 'layers'."""
  vmapped = nnx.vmap(build, transform_metadata={nnx.PARTITION_NAME: 'layers'})
  return vmapped(jax.random.split(key, num_layers))


def scan_layers(
  stacked: Layer,
  step: Callable[[Layer, Array, Any, Array | None], tuple[Array, Any]],
  carry: Array,
  xs: Any,
  *,
  key: Array | None = None,
  remat_policy: str = 'elementwise',
) -> tuple[Array, Any]:
  """Fold `step` over stacked layers, compiling its body once.

  Args:
    stacked: Layers from `stack_layers`.
    step: `step(layer, carry, x, key) -> (carry, y)` of one layer.
    carry: Input of the first layer.
    xs: Tree of arrays with a leading axis of layers; each layer gets its slice.
    key: Random key, folded with the index of the layer; None stays None.
    remat_policy: Name in `REMAT_POLICIES`: what the backward pass recomputes.

  Returns:
    The last carry, and the ys stacked over layers.
  """
  graphdef, params = nnx.split(stacked)

  def body(carry: Array, scanned: Any) -> tuple[Array, Any]:
    index, params, x = scanned
    return step(nnx.merge(graphdef, params), carry, x, fold_in(key, index))

  indices = jnp.arange(jax.tree.leaves(params)[0].shape[0])
  return jax.lax.scan(REMAT_POLICIES[remat_policy](body), carry, (indices, params, xs))
