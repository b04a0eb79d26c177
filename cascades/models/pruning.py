"""A small model out of a large one: some of its layers, and of their MLPs the channels that matter.

What is kept computes what it computed; what is between is gone, so the result has to be trained.
Dropping the middle hurts least, every second layer most (docs/checkpoints.md has figures).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from cascades.models import decoder, t5
from cascades.types import Params

Config: TypeAlias = t5.Config | decoder.Config
Layers: TypeAlias = Callable[[int], Sequence[int]]  # of how many there are
Kernels: TypeAlias = Mapping[str, Float[Array, 'layers _ _']]  # of all MLPs: wi_0 ..., wo
Importance: TypeAlias = Callable[[Kernels], Float[Array, 'layers F']]

# Where each stack of layers is, and the field of its number.
STACKS: Mapping[type[Config], Mapping[str, str]] = {
  decoder.Config: {'blocks': 'num_layers'},
  t5.Config: {'encoder': 'num_encoder_layers', 'decoder': 'num_decoder_layers'},
}
_PATTERNS = ('window_pattern', 'rope_theta_pattern', 'rope_factor_pattern')


def every(num: int, *, step: int) -> Sequence[int]:
  """Layers 0, step, 2 step, ... As a start for training this is far worse than `ends`."""
  return range(0, num, step)


def ends(num: int, *, head: int, tail: int = 0) -> Sequence[int]:
  """The first `head` and the last `tail` of `num` layers."""
  return [*range(head), *range(num - tail, num)]


def chosen(num: int, *, numbers: Sequence[int]) -> Sequence[int]:
  """The layers of these numbers, from 0, in this order."""
  del num
  return numbers


def channel_norms(kernels: Kernels) -> Float[Array, 'layers F']:
  """||wo_f|| prod_i ||wi_i_f||: norms of what channel f of an MLP writes and reads.

  Zero for a channel that cannot matter. Of the weights alone; the inputs that they meet are not
  looked at, as they are in https://arxiv.org/abs/2407.14679.
  """
  into = [kernel for name, kernel in kernels.items() if name != 'wo']
  return jnp.linalg.norm(kernels['wo'], axis=2) * math.prod(
    jnp.linalg.norm(kernel, axis=1) for kernel in into
  )


def kept_layers(config: Config, layers: Layers) -> dict[str, tuple[int, ...]]:
  """The layers of each stack that stay. Raises ValueError if they are not some of its layers."""
  kept = {}
  for stack, field in STACKS[type(config)].items():
    num = getattr(config, field)
    numbers = tuple(layers(num))
    if not numbers or not set(numbers) <= {*range(num)} or len({*numbers}) < len(numbers):
      raise ValueError(
        f'{field} is {num}, and layers {list(numbers)} were chosen: choose at least one, from 0 to '
        f'{num - 1}, and each once.'
      )
    kept[stack] = numbers
  return kept


def pruned_config(
  config: Config, kept: Mapping[str, Sequence[int]], mlp_dim: int | None = None
) -> Config:
  """The configuration of what stays; each layer keeps its window and its rotary frequencies."""
  mlp_dim = config.mlp_dim if mlp_dim is None else mlp_dim
  if not 1 <= mlp_dim <= config.mlp_dim:
    raise ValueError(f'mlp_dim={mlp_dim} must be from 1 to {config.mlp_dim}, that of the model.')
  changes: dict[str, Any] = {
    field: len(kept[stack]) for stack, field in STACKS[type(config)].items()
  }
  if isinstance(config, decoder.Config):
    for name in _PATTERNS:
      pattern = getattr(config, name)
      changes[name] = _shortest(tuple(pattern[i % len(pattern)] for i in kept['blocks']))
  return dataclasses.replace(config, mlp_dim=mlp_dim, **changes)


def prune(
  params: Params,
  kept: Mapping[str, Sequence[int]],
  mlp_dim: int | None = None,
  *,
  importance: Importance = channel_norms,
) -> Params:
  """The parameters of `pruned_config`; what belongs to no layer stays as it is."""
  pruned = {**params}
  for stack, numbers in kept.items():
    layers = jax.tree.map(lambda leaf, numbers=numbers: leaf[jnp.asarray(numbers)], params[stack])
    if mlp_dim is not None:
      layers['mlp'] = _narrowed(layers['mlp'], mlp_dim, importance)
    pruned[stack] = layers
  return pruned


def _narrowed(mlp: Params, mlp_dim: int, importance: Importance) -> Params:
  """The `mlp_dim` most important channels of each layer, in their order."""
  kernels = {name: projection['kernel'] for name, projection in mlp.items()}
  _, best = jax.lax.top_k(importance(kernels), mlp_dim)
  best = jnp.sort(best, axis=1)

  def take(name: str, kernel: Array) -> Array:
    axis = 1 if name == 'wo' else 2
    return jnp.take_along_axis(kernel, jnp.expand_dims(best, 3 - axis), axis)

  return {name: {'kernel': take(name, kernel)} for name, kernel in kernels.items()}


def _shortest(values: tuple[Any, ...]) -> tuple[Any, ...]:
  """The shortest pattern that repeats to `values`."""
  repeats = lambda n: all(value == values[i % n] for i, value in enumerate(values))
  return values[: next(n for n in range(1, len(values) + 1) if repeats(n))]
