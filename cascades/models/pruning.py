"""Structured pruning: a small model from some layers of a large one and some of its MLP channels.

The pruned model must be trained. Its quality before training depends on the choice of layers:
removing middle layers hurts least, removing every second layer or the last ones is catastrophic
(`python -m benchmarks.pruning`).
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

from cascades.models import configs, decoder
from cascades.models.configs import LanguageModelConfig
from cascades.runtime import ranges
from cascades.types import Batch, Params

LayerChoice: TypeAlias = Callable[[int], Sequence[int]]  # from the number of layers to a choice
Importance: TypeAlias = Mapping[str, Float[Array, 'layers F']]  # of channels, by stack
Loss: TypeAlias = Callable[[Params, Batch], Float[Array, '']]

_PATTERNS = ('window_pattern', 'rope_theta_pattern', 'rope_factor_pattern')


def every(num: int, *, step: int) -> Sequence[int]:
  """Choose layers 0, step, 2 step, ...; a far worse start for training than `ends`."""
  ranges.check({'pruning.every.step': step}, least=1, integer=True)
  return range(0, num, step)


def ends(num: int, *, head: int, tail: int = 0) -> Sequence[int]:
  """Choose the first `head` and the last `tail` of `num` layers."""
  ranges.check({'HEAD': head, 'TAIL': tail}, least=0, integer=True)
  return [*range(head), *range(num - tail, num)]


def chosen(num: int, *, numbers: Sequence[int]) -> Sequence[int]:
  """Choose the layers of these numbers, counted from 0, in this order."""
  del num
  return numbers


def channel_importance(
  loss: Loss, params: Params, batches: Iterable[Batch], stacks: Iterable[str]
) -> Importance:
  """Estimate the change of the loss, to first order, when a channel of an MLP is removed.

      sum over batches of (w_f . dL/dw_f)^2,   w_f the output weights of channel f

  Molchanov et al. 2019, https://arxiv.org/abs/1906.10771. Norms of weights, without any data, are
  far worse estimates (benchmarks/pruning.py).

  Args:
    loss: Loss of a batch as a function of the parameters.
    params: Parameters of the model.
    batches: Batches to sum over.
    stacks: Parameter names of the stacks of layers, keys of `configs.STACKS`.

  Returns:
    Importance of every channel, [layers, F] by stack.
  """

  @jax.jit
  def squares(params: Params, batch: Batch) -> Importance:
    def kernel_loss(kernels: Params) -> Float[Array, '']:
      changed = {**params}
      for stack, kernel in kernels.items():
        mlp = {**params[stack]['mlp'], 'wo': {'kernel': kernel}}
        changed[stack] = {**params[stack], 'mlp': mlp}
      return loss(changed, batch)

    kernels = {stack: params[stack]['mlp']['wo']['kernel'] for stack in stacks}
    return jax.tree.map(
      lambda kernel, gradient: jnp.square(jnp.sum(kernel * gradient, -1)),
      kernels,
      jax.grad(kernel_loss)(kernels),
    )

  return functools.reduce(
    lambda total, addend: jax.tree.map(jnp.add, total, addend),
    (squares(params, batch) for batch in batches),
  )


def select_layers(config: LanguageModelConfig, choice: LayerChoice) -> dict[str, tuple[int, ...]]:
  """Apply a choice of layers to each stack of a model.

  Raises:
    ValueError: The choice is empty, repeats a layer, or names one that does not exist.
  """
  layers = {}
  for stack, field in configs.STACKS[type(config)].items():
    num_layers = getattr(config, field)
    numbers = tuple(choice(num_layers))
    if not numbers or not set(numbers) <= {*range(num_layers)} or len({*numbers}) < len(numbers):
      raise ValueError(
        f'{field} is {num_layers}, and layers {list(numbers)} were chosen: choose at least one, '
        f'from 0 to {num_layers - 1}, and each once.'
      )
    layers[stack] = numbers
  return layers


def pruned_config(
  config: LanguageModelConfig, layers: Mapping[str, Sequence[int]], mlp_dim: int | None = None
) -> LanguageModelConfig:
  """Configuration of the pruned model; each layer keeps its window and rotary frequencies.

  Args:
    config: Configuration of the large model.
    layers: Layers to keep, by stack: `select_layers`.
    mlp_dim: Number of channels of each MLP; None keeps all.

  Raises:
    ValueError: `mlp_dim` is not from 1 to that of the large model.
  """
  mlp_dim = config.mlp_dim if mlp_dim is None else mlp_dim
  if not 1 <= mlp_dim <= config.mlp_dim:
    raise ValueError(
      f'mlp_dim={mlp_dim} must be from 1 to {config.mlp_dim}, the size of the model.'
    )
  changes: dict[str, Any] = {
    field: len(layers[stack]) for stack, field in configs.STACKS[type(config)].items()
  }
  if isinstance(config, decoder.DecoderConfig):
    for name in _PATTERNS:
      pattern = getattr(config, name)
      changes[name] = _shortest_period(tuple(pattern[i % len(pattern)] for i in layers['blocks']))
  return dataclasses.replace(config, mlp_dim=mlp_dim, **changes)


def prune(
  params: Params,
  layers: Mapping[str, Sequence[int]],
  mlp_dim: int | None = None,
  importance: Importance | None = None,
) -> Params:
  """Select the parameters of `pruned_config`; those of no layer are unchanged.

  Args:
    params: Parameters of the large model.
    layers: Layers to keep, by stack: `select_layers`.
    mlp_dim: Number of channels to keep in each MLP: those of highest importance, in their order.
    importance: Importance of every channel of the large model: `channel_importance`.
  """
  pruned = {**params}
  for stack, numbers in layers.items():
    take = lambda leaf, numbers=numbers: leaf[jnp.asarray(numbers)]
    stacked = jax.tree.map(take, params[stack])
    if mlp_dim is not None and importance is not None:
      stacked['mlp'] = _select_channels(stacked['mlp'], mlp_dim, take(importance[stack]))
    pruned[stack] = stacked
  return pruned


def _select_channels(mlp: Params, mlp_dim: int, importance: Float[Array, 'layers F']) -> Params:
  best = jnp.sort(jax.lax.top_k(importance, mlp_dim)[1], axis=1)

  def take(name: str, kernel: Array) -> Array:
    axis = 1 if name == 'wo' else 2
    return jnp.take_along_axis(kernel, jnp.expand_dims(best, 3 - axis), axis)

  return {name: {'kernel': take(name, projection['kernel'])} for name, projection in mlp.items()}


def _shortest_period(values: tuple[Any, ...]) -> tuple[Any, ...]:
  repeats = lambda n: all(value == values[i % n] for i, value in enumerate(values))
  return values[: next(n for n in range(1, len(values) + 1) if repeats(n))]
