"""A small model out of a large one: some of its layers, and of their MLPs the channels that matter.

What is kept computes what it computed; what is between is gone, so the result has to be trained.
How much is left before that depends on the choice: losing the middle hurts least, losing every
second layer or the last ones is catastrophic (`python -m benchmarks.pruning`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from cascades.models import decoder, t5
from cascades.models.configs import LanguageModelConfig
from cascades.types import Batch, Params

Layers: TypeAlias = Callable[[int], Sequence[int]]  # of how many there are
Importance: TypeAlias = Mapping[str, Float[Array, 'layers F']]  # of each stack's channels
Loss: TypeAlias = Callable[[Params, Batch], Float[Array, '']]

# Where each stack of layers is, and the field of its number.
STACKS: Mapping[type[LanguageModelConfig], Mapping[str, str]] = {
  decoder.DecoderConfig: {'blocks': 'num_layers'},
  t5.T5Config: {'encoder': 'num_encoder_layers', 'decoder': 'num_decoder_layers'},
}
_PATTERNS = ('window_pattern', 'rope_theta_pattern', 'rope_factor_pattern')


def every(num: int, *, step: int) -> Sequence[int]:
  """Layers 0, step, 2 step, ...: a far worse start for training than `ends`."""
  return range(0, num, step)


def ends(num: int, *, head: int, tail: int = 0) -> Sequence[int]:
  """The first `head` and the last `tail` of `num` layers."""
  return [*range(head), *range(num - tail, num)]


def chosen(num: int, *, numbers: Sequence[int]) -> Sequence[int]:
  """The layers of these numbers, from 0, in this order."""
  del num
  return numbers


def channel_importance(
  loss: Loss, params: Params, batches: Iterable[Batch], stacks: Iterable[str]
) -> Importance:
  """How much the loss changes, to first order, when a channel of an MLP goes.

      sum over batches of (w_f . dL/dw_f)^2,   w_f what channel f writes

  Molchanov et al. 2019, https://arxiv.org/abs/1906.10771. Norms of weights, without any text, tell
  far less (benchmarks/pruning.py).
  """

  @jax.jit
  def squares(params: Params, batch: Batch) -> Importance:
    def loss_of(written: Params) -> Float[Array, '']:
      return loss(_with_written(params, written), batch)

    written = {stack: params[stack]['mlp']['wo']['kernel'] for stack in stacks}
    return jax.tree.map(
      lambda kernel, gradient: jnp.square(jnp.sum(kernel * gradient, -1)),
      written,
      jax.grad(loss_of)(written),
    )

  return functools.reduce(
    lambda one, other: jax.tree.map(jnp.add, one, other),
    (squares(params, batch) for batch in batches),
  )


def _with_written(params: Params, written: Params) -> Params:
  changed = {**params}
  for stack, kernel in written.items():
    mlp = {**params[stack]['mlp'], 'wo': {'kernel': kernel}}
    changed[stack] = {**params[stack], 'mlp': mlp}
  return changed


def kept_layers(config: LanguageModelConfig, layers: Layers) -> dict[str, tuple[int, ...]]:
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
  config: LanguageModelConfig, kept: Mapping[str, Sequence[int]], mlp_dim: int | None = None
) -> LanguageModelConfig:
  """The configuration of what stays; each layer keeps its window and its rotary frequencies."""
  mlp_dim = config.mlp_dim if mlp_dim is None else mlp_dim
  if not 1 <= mlp_dim <= config.mlp_dim:
    raise ValueError(f'mlp_dim={mlp_dim} must be from 1 to {config.mlp_dim}, that of the model.')
  changes: dict[str, Any] = {
    field: len(kept[stack]) for stack, field in STACKS[type(config)].items()
  }
  if isinstance(config, decoder.DecoderConfig):
    for name in _PATTERNS:
      pattern = getattr(config, name)
      changes[name] = _shortest(tuple(pattern[i % len(pattern)] for i in kept['blocks']))
  return dataclasses.replace(config, mlp_dim=mlp_dim, **changes)


def prune(
  params: Params,
  kept: Mapping[str, Sequence[int]],
  mlp_dim: int | None = None,
  importance: Importance | None = None,
) -> Params:
  """The parameters of `pruned_config`; what belongs to no layer stays as it is.

  Of each layer's MLP the `mlp_dim` channels of highest `importance` stay, in their order.
  """
  pruned = {**params}
  for stack, numbers in kept.items():
    take = lambda leaf, numbers=numbers: leaf[jnp.asarray(numbers)]
    layers = jax.tree.map(take, params[stack])
    if mlp_dim is not None and importance is not None:
      layers['mlp'] = _narrowed(layers['mlp'], mlp_dim, take(importance[stack]))
    pruned[stack] = layers
  return pruned


def _narrowed(mlp: Params, mlp_dim: int, importance: Float[Array, 'layers F']) -> Params:
  best = jnp.sort(jax.lax.top_k(importance, mlp_dim)[1], axis=1)

  def take(name: str, kernel: Array) -> Array:
    axis = 1 if name == 'wo' else 2
    return jnp.take_along_axis(kernel, jnp.expand_dims(best, 3 - axis), axis)

  return {name: {'kernel': take(name, projection['kernel'])} for name, projection in mlp.items()}


def _shortest(values: tuple[Any, ...]) -> tuple[Any, ...]:
  """The shortest pattern that repeats to `values`."""
  repeats = lambda n: all(value == values[i % n] for i, value in enumerate(values))
  return values[: next(n for n in range(1, len(values) + 1) if repeats(n))]
