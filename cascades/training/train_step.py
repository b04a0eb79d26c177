"""The training step: hidden states of both models, the loss block by block, one update.

`train_step` is the whole of it. Everything here is pure; what is fixed for a run (the models'
definitions, the loss, the optimiser) is bound with `functools.partial` before `jax.jit`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from cascades import masks
from cascades.losses import CascadeLoss
from cascades.models import lora
from cascades.teachers import Logits
from cascades.training import blockwise
from cascades.training.blockwise import Totals
from cascades.types import Batch, LanguageModel, Params


class TrainState(NamedTuple):
  """All that a run is: with the same data it goes on from here bit by bit."""

  step: Int[Array, '']  # also the position in the data
  params: Params
  opt_state: Any
  key: UInt32[Array, '2']  # the run's random key; each step folds its number in


class Frozen(NamedTuple):
  """What a step reads and leaves alone."""

  large: Params | None = None
  base: Params | None = None  # of the small model, if only adapters beside it are trained


class Definition(NamedTuple):
  """A model without its parameters."""

  graph: nnx.GraphDef
  vocab_size: int
  scale: float = 1.0  # of adapters

  def bind(self, params: Params, base: Params | None = None) -> LanguageModel:
    """The model of these parameters, or of these adapters beside `base`."""
    whole = params if base is None else lora.adapt(base, params, scale=self.scale)
    return nnx.merge(self.graph, whole)


def valid_tokens(totals: Totals) -> Float[Array, '']:
  """The default normaliser: valid target tokens, masked or not. The same for all losses."""
  return totals['tokens']


def examples(totals: Totals) -> Float[Array, '']:
  """The paper's: the sum over a target's tokens, averaged over rows."""
  return totals['examples']


def kept_tokens(totals: Totals) -> Float[Array, '']:
  """Tokens that either model predicts. Raises the effective learning rate of sparse masks."""
  if 'both' not in totals:
    raise ValueError('the kept tokens are known only where a large model is given.')
  return totals['both'] + totals['only_small'] + totals['only_large']


Normalizer: TypeAlias = Callable[[Totals], Float[Array, '']]


def finite(metrics: Totals, *, most_grad_norm: float = math.inf) -> Bool[Array, '']:
  """The default of which updates are applied: those of finite numbers, and of no spike.

  `most_grad_norm` is the largest gradient norm before clipping that is not a spike.
  """
  names = ('loss', 'grad_norm', 'update_norm')
  numbers = jnp.stack([metrics[name].astype(jnp.float32) for name in names])
  return jnp.isfinite(numbers).all() & (metrics['grad_norm'] <= most_grad_norm)


Accept: TypeAlias = Callable[[Totals], Bool[Array, '']]


def init_state(params: Params, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
  """The state before the first step."""
  key = jax.random.key_data(jax.random.key(seed))
  return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key)


def loss_totals(
  small: LanguageModel,
  large: LanguageModel | None,
  batch: Batch,
  key: Array | None,
  *,
  loss: CascadeLoss,
  vocab_size: int,
  block_length: int | None = None,
  gradient_dtype: str = 'float32',
) -> Totals:
  """Loss and agreement of both models, summed over the batch.

  Hidden states are computed at once; logits exist only of as many tokens at a time as
  `block_length` positions of all rows have, by default as `blockwise` finds room for, so
  [B, T, V] is never formed. Blocks of tokens without a weight are passed over.
  Without a large model a batch may carry what another run of it said, `batch.teacher`.
  """
  hidden = small.hidden(batch, key)
  hidden_large = None if large is None else jax.lax.stop_gradient(large.hidden(batch))

  def totals_of(table: Any, hidden: Array, large_table: Any, rows: Any) -> Totals:
    hidden_large, teacher, targets, weights = rows
    logits = small.readout(hidden, table)[..., :vocab_size]
    if large is not None:
      teacher = Logits(large.readout(hidden_large, large_table)[..., :vocab_size])
    total, tokens = loss(logits, teacher, targets, weights)
    agreement = masks.count_agreement(logits, teacher, targets, weights)
    return {'loss': total, 'tokens': tokens} | jax.lax.stop_gradient(agreement)

  totals = blockwise.sum_blocks(
    totals_of,
    small.table,
    hidden,
    None if large is None else large.table,
    (hidden_large, batch.teacher, batch.targets, batch.weights),
    batch.weights != 0,
    length=block_length,
    gradient_dtype=gradient_dtype,
  )
  return totals | {'examples': jnp.sum(jnp.any(batch.weights > 0, axis=1), dtype=jnp.float32)}


def train_step(
  state: TrainState,
  frozen: Frozen,
  batch: Batch,
  *,
  small: Definition,
  large: Definition | None,
  loss: CascadeLoss,
  optimizer: optax.GradientTransformation,
  normalizer: Normalizer | float = valid_tokens,
  microbatches: int = 1,
  block_length: int | None = None,
  gradient_dtype: str = 'float32',
  accept: Accept = finite,
) -> tuple[TrainState, Totals]:
  """One update of the small model; the large one is frozen and runs without dropout.

  The gradient is that of (sum of the losses) / normalizer(sums), over all devices and
  microbatches: sums are added first and divided once. That of the readout is summed over blocks in
  `gradient_dtype`. An update that `accept` refuses is not applied: the step counts, parameters and
  optimiser stay. Returns the new state and the sums, with the norms of the gradient before clipping
  and of the update, the normalised loss, and 'applied'.
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

  def total_loss(params: Params, rows: Batch, key: Array) -> tuple[Float[Array, ''], Totals]:
    totals = loss_totals(
      small.bind(params, frozen.base),
      None if large is None else large.bind(frozen.large),
      rows,
      key,
      loss=loss,
      vocab_size=_common_vocabulary(small, large),
      block_length=block_length,
      gradient_dtype=gradient_dtype,
    )
    return totals['loss'], totals

  gradients, totals = _accumulate(
    jax.grad(total_loss, has_aux=True), state.params, batch, key, microbatches
  )
  normal = normalizer(totals) if callable(normalizer) else normalizer
  scale = 1 / jnp.maximum(normal, 1.0)
  gradients = jax.tree.map(lambda g: g * scale, gradients)
  updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
  updated = optax.apply_updates(state.params, updates), opt_state
  metrics = totals | {
    'grad_norm': optax.global_norm(gradients),
    'update_norm': optax.global_norm(updates),
    'objective': totals['loss'] * scale,
  }
  applied = accept(metrics)
  # Inside the step, since its input is donated: afterwards there would be nothing to go back to.
  params, opt_state = jax.tree.map(
    functools.partial(jnp.where, applied), updated, (state.params, state.opt_state)
  )
  metrics['applied'] = applied.astype(jnp.float32)
  return TrainState(state.step + 1, params, opt_state, state.key), metrics


def _common_vocabulary(small: Definition, large: Definition | None) -> int:
  """Embeddings padded to different sizes are cut to the size that both have."""
  return small.vocab_size if large is None else min(small.vocab_size, large.vocab_size)


def _accumulate(
  gradient_of: Callable[..., tuple[Params, Totals]],
  params: Params,
  batch: Batch,
  key: Array,
  microbatches: int,
) -> tuple[Params, Totals]:
  """Sums of gradients and totals over microbatches, one after another.

  Every `microbatches`-th row goes to one microbatch, so that each device keeps its own rows.
  """
  if microbatches == 1:
    return gradient_of(params, batch, key)

  def split(x: Array) -> Array:
    return jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1)

  def add(sums: Any, numbered: tuple[Array, Batch]) -> tuple[Any, None]:
    number, rows = numbered
    return jax.tree.map(
      jnp.add, sums, gradient_of(params, rows, jax.random.fold_in(key, number))
    ), None

  rows = jax.tree.map(split, batch)
  shapes = jax.eval_shape(gradient_of, params, jax.tree.map(lambda x: x[0], rows), key)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(add, zeros, (jnp.arange(microbatches), rows))[0]


def eval_step(
  params: Params,
  frozen: Frozen,
  batch: Batch,
  *,
  small: Definition,
  large: Definition | None,
  loss: CascadeLoss,
  block_length: int | None = None,
) -> Totals:
  """The sums of `train_step` without dropout and without an update."""
  return loss_totals(
    small.bind(params, frozen.base),
    None if large is None else large.bind(frozen.large),
    batch,
    None,
    loss=loss,
    vocab_size=_common_vocabulary(small, large),
    block_length=block_length,
  )
