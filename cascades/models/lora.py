"""LoRA: low-rank adapters that are trained beside the frozen weights of linear maps.

    y = x W + (alpha / rank) x A B

Hu et al. 2021, https://arxiv.org/abs/2106.09685. A is random and B zero, so that training starts
with exactly the base model. Adapters are a nested dict with the paths of their weights. qwix 0.1.8
was tried and is not used: its LoRA fails on stacked (scanned) layers.
Axes: X stacked layers, I inputs and O outputs of a linear map, r rank.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from cascades.models import quantization
from cascades.types import Params

Path: TypeAlias = tuple[str, ...]


class LoraConfig(NamedTuple):
  """Configuration of LoRA.

  Attributes:
    rank: Rank r of the adapters.
    alpha: Adapters are multiplied by alpha / rank.
    targets: Linear maps to adapt, each a name on the path of a weight such as 'query', 'mlp' or
      'decoder'; all linear maps if empty.
    dtype: Dtype of the frozen base weights: 'float32', 'bfloat16' or 'int8'.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: Sequence[str] = ()
  dtype: str = 'float32'

  @property
  def scale(self) -> float:
    """Factor of the adapters."""
    return self.alpha / self.rank


Config = LoraConfig  # of gin: lora.Config.rank = 8


class Adapter(NamedTuple):
  """Matrices A (`down`) and B (`up`) of one linear map."""

  down: Float[Array, '*X I r']
  up: Float[Array, '*X r O']


class Adapted(NamedTuple):
  """Weight, dense or quantized, with its adapter."""

  base: Any
  adapter: Adapter


def abstract(base: Params, maps: Mapping[Path, Sequence[int]], config: LoraConfig) -> Params:
  """Describe the adapters of an abstract base model.

  Args:
    base: Nested dict of abstract weights.
    maps: Input axes, counted from the end, of each linear map by path: `configs.linear_maps`.
    config: Rank and targets.

  Returns:
    A nested dict of abstract `Adapter`s by the paths of their weights.

  Raises:
    ValueError: A target is on no path.
  """
  names = dict.fromkeys(name for path in maps for name in path)
  if unknown := [name for name in config.targets if name not in names]:
    raise ValueError(
      f'no linear map has {unknown[0]!r} on its path: choose the targets of LoRA among '
      f'{", ".join(names)}.'
    )
  adapters: dict[str, Any] = {}
  for path, axes in maps.items():
    if not config.targets or {*path} & {*config.targets}:
      node = functools.reduce(lambda node, name: node.setdefault(name, {}), path[:-1], adapters)
      weight = functools.reduce(operator.getitem, path, base)
      node[path[-1]] = _abstract_adapter(quantization.as_float32(weight), axes, config.rank)
  return adapters


def _abstract_adapter(weight: Any, axes: Sequence[int], rank: int) -> Adapter:
  """Several axes of inputs or outputs become one, which is sharded as the first of them."""
  num_axes = len(weight.shape)
  first, last = num_axes + axes[0], num_axes + axes[-1] + 1
  spec = (*weight.sharding.spec, *[None] * num_axes)

  def describe(shape: tuple[int, ...], *axis_specs: Any) -> Any:
    sharding = NamedSharding(weight.sharding.mesh, PartitionSpec(*spec[:first], *axis_specs))
    return jax.ShapeDtypeStruct((*weight.shape[:first], *shape), jnp.float32, sharding=sharding)

  inputs, outputs = math.prod(weight.shape[first:last]), math.prod(weight.shape[last:])
  return Adapter(
    describe((inputs, rank), spec[first], None), describe((rank, outputs), None, spec[last])
  )


def init(key: Array, abstract: Params) -> Params:
  """Draw adapters: A is normally distributed with variance 1 / I, B is zero."""
  shapes, tree = jax.tree.flatten(abstract, is_leaf=lambda node: isinstance(node, Adapter))

  def draw(key: Array, like: Adapter) -> Adapter:
    down = jax.random.normal(key, like.down.shape) * like.down.shape[-2] ** -0.5
    return Adapter(down, jnp.zeros(like.up.shape))

  return jax.tree.unflatten(tree, map(draw, jax.random.split(key, len(shapes)), shapes))


def adapt(base: Params, adapters: Params, *, scale: float) -> Params:
  """Put adapters beside the weights of `base`; products then use both (`layers.matmul`)."""
  if isinstance(adapters, Adapter):
    return Adapted(base, adapters._replace(up=scale * adapters.up))
  return {
    name: adapt(node, adapters[name], scale=scale) if name in adapters else node
    for name, node in base.items()
  }


def merge(weight: Any, adapter: Adapter, *, scale: float) -> Float[Array, '*n']:
  """Merge an adapter into its weight: W + scale A B, in float32."""
  dense = quantization.dequantize(weight, jnp.float32)
  update = jnp.matmul(adapter.down, adapter.up, precision='highest')
  return dense + scale * update.reshape(dense.shape)
