"""LoRA: a frozen model learns through a product of two thin matrices beside each of its own.

    y = x W + (alpha / rank) x A B

Hu et al. 2021, https://arxiv.org/abs/2106.09685. A is drawn and B zero, so a run starts with
exactly its base. Adapters are a nested dict with the paths of the weights that they stand beside.
Axes: X layers that are stacked, I inputs and O outputs of a linear map, r rank.
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
  """Which linear maps are adapted, all if no targets are named, and how their base is held.

  A target is any name on a weight's path: 'query', 'mlp', 'decoder'.
  """

  rank: int = 8
  alpha: float = 16.0
  targets: Sequence[str] = ()
  dtype: str = 'float32'  # of the base; also 'bfloat16' and 'int8'

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


Config = LoraConfig  # of gin: lora.Config.rank = 8


class Adapter(NamedTuple):
  """A and B."""

  down: Float[Array, '*X I r']
  up: Float[Array, '*X r O']


class Adapted(NamedTuple):
  """A weight, however it is held, and what stands beside it."""

  base: Any
  adapter: Adapter


def abstract(base: Params, maps: Mapping[Path, Sequence[int]], config: LoraConfig) -> Params:
  """Shapes and places of adapters for an abstract base.

  `maps` are the paths of its linear maps, with their input axes from the end. Raises ValueError,
  naming what there is, for a target that is on no path.
  """
  names = dict.fromkeys(name for path in maps for name in path)
  if unknown := [name for name in config.targets if name not in names]:
    raise ValueError(
      f'no linear map is called {unknown[0]!r}: choose the targets of LoRA among '
      f'{", ".join(names)}.'
    )
  adapters: dict[str, Any] = {}
  for path, axes in maps.items():
    if not config.targets or {*path} & {*config.targets}:
      node = functools.reduce(lambda node, name: node.setdefault(name, {}), path[:-1], adapters)
      weight = functools.reduce(operator.getitem, path, base)
      node[path[-1]] = _beside(quantization.wide(weight), axes, config.rank)
  return adapters


def _beside(weight: Any, axes: Sequence[int], rank: int) -> Adapter:
  """Features that are several axes of the weight become one, which lies as the first of them."""
  num = len(weight.shape)
  first, last = num + axes[0], num + axes[-1] + 1
  spec = (*weight.sharding.spec, *[None] * num)

  def thin(shape: tuple[int, ...], *places: Any) -> Any:
    place = NamedSharding(weight.sharding.mesh, PartitionSpec(*spec[:first], *places))
    return jax.ShapeDtypeStruct((*weight.shape[:first], *shape), jnp.float32, sharding=place)

  inputs, outputs = math.prod(weight.shape[first:last]), math.prod(weight.shape[last:])
  return Adapter(thin((inputs, rank), spec[first], None), thin((rank, outputs), None, spec[last]))


def init(key: Array, abstract: Params) -> Params:
  """A is normally distributed with variance 1 / I; B is zero."""
  shapes, tree = jax.tree.flatten(abstract, is_leaf=lambda node: isinstance(node, Adapter))

  def draw(key: Array, like: Adapter) -> Adapter:
    down = jax.random.normal(key, like.down.shape) * like.down.shape[-2] ** -0.5
    return Adapter(down, jnp.zeros(like.up.shape))

  return jax.tree.unflatten(tree, map(draw, jax.random.split(key, len(shapes)), shapes))


def adapt(base: Params, adapters: Params, *, scale: float) -> Params:
  """`base` with the adapters beside its weights, which stay as they are held."""
  if isinstance(adapters, Adapter):
    return Adapted(base, adapters._replace(up=scale * adapters.up))
  return {
    name: adapt(part, adapters[name], scale=scale) if name in adapters else part
    for name, part in base.items()
  }


def merge(weight: Any, adapter: Adapter, *, scale: float) -> Float[Array, '*n']:
  """The plain weight that computes what the adapted one does."""
  wide = quantization.widen(weight, jnp.float32)
  product = jnp.matmul(adapter.down, adapter.up, precision='highest')
  return wide + scale * product.reshape(wide.shape)
