"""The training step: hidden states of both models, the loss block by block, one update.

Everything here is pure. What is fixed for a run (the models without their parameters, the loss, the
optimizer) is bound to `train_step` with `functools.partial` before `jax.jit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt32

from cascades import masks
from cascades.losses import CascadeLoss, StepNumber
from cascades.models import lora
from cascades.teachers import Logits, TeacherError
from cascades.training import blockwise
from cascades.training.blockwise import Totals
from cascades.types import Batch, LanguageModel, Params


class TrainState(NamedTuple):
  """The state of a run, which with the same data resumes from here bit by bit.

  Attributes:
    step: updates so far, which is also the position in the data.
    params: the trained parameters.
    opt_state: the optimizer's state.
    key: the run's random key; each step folds its number in.
  """

  step: Int[Array, '']
  params: Params
  opt_state: optax.OptState
  key: UInt32[Array, '2']


class Frozen(NamedTuple):
  """Parameters that a step reads and does not change.

  Attributes:
    large: the large model's, if one runs beside the small one.
    base: the small model's, if only adapters beside it are trained.
  """

  large: Params | None = None
  base: Params | None = None


class ModelDef(NamedTuple):
  """A model without its parameters.

  Attributes:
    graph: its structure.
    vocab_size: the vocabulary entries that losses see.
    scale: the scale of adapters.
  """

  graph: nnx.GraphDef
  vocab_size: int
  scale: float = 1.0

  def bind(self, params: Params, base: Params | None = None) -> LanguageModel:
    """The model with `params`, or with `base` and `params` as adapters beside it."""
    if base is not None:
      params = lora.adapt(base, params, scale=self.scale)
    return nnx.merge(self.graph, params)


def valid_tokens(totals: Totals) -> Float[Array, '']:
  """The default normalizer: valid target tokens, masked or not. The same for all losses.

  With other weights of tokens than 1 the sum of these, so that the loss is their mean.
  """
  return totals['weight']


def examples(totals: Totals) -> Float[Array, '']:
  """The paper's normalizer: losses are summed over a row's tokens and averaged over rows."""
  return totals['examples']


def kept_tokens(totals: Totals) -> Float[Array, '']:
  """The tokens that either model predicts. Raises the effective learning rate of sparse masks.

  Raises:
    TeacherError: if there is no large model.
  """
  if 'both' not in totals:
    raise TeacherError(
      'kept_tokens counts the tokens that either model predicts, and no large model is given: '
      'normalize by valid_tokens.'
    )
  return totals['both'] + totals['only_small'] + totals['only_large']


def equal_answers(batch: Batch) -> Float[Array, 'B T']:
  """Weights of tokens, `1 / |y|` in an answer of |y| tokens: every answer weighs the same.

  With the normalizer `valid_tokens` the loss is the mean over answers of their tokens' means.
  """
  number_of, count = _rows_of_tokens(batch)
  tokens = jnp.zeros(count).at[number_of].add(batch.weights)
  return batch.weights / jnp.maximum(tokens[number_of], 1)


TokenWeights: TypeAlias = Callable[[Batch], Float[Array, 'B T']]
Normalizer: TypeAlias = Callable[[Totals], Float[Array, '']]


def finite(metrics: Totals, *, most_grad_norm: float = math.inf) -> Bool[Array, '']:
  """The default `accept`: the loss and the squared gradient are finite, and no spike.

  Moments hold squares, so the square of the norm has to be finite too: those of this package's
  optimizers, and their updates at a finite rate, then stay finite. `most_grad_norm` is the largest
  gradient norm before clipping that is not a spike.
  """
  # Not optax.apply_if_finite: it does not check the loss, and applies even what is not finite after
  # a number of them in a row.
  numbers = jnp.stack([metrics['loss'], jnp.square(metrics['grad_norm'])]).astype(jnp.float32)
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
  step: StepNumber = None,
  trains_table: bool = True,
  block_length: int | None = None,
  gradient_dtype: str = 'float32',
) -> Totals:
  """Loss and agreement of both models, summed over the batch.

  Hidden states of all tokens are computed at once, and logits block by block, so that [B, T, V] is
  never formed; blocks of tokens without a weight are skipped. The teachers of the loss are the
  large model, if there is one, and then `batch.teachers`.

  Args:
    small: the model that is trained.
    large: the frozen model that runs beside it; None with cached teachers or without any.
    batch: examples under teacher forcing.
    key: switches dropout of the small model on.
    loss: the loss of a block of logits.
    vocab_size: the vocabulary entries that both models have; logits are cut to them.
    step: the number of updates before this one, for losses whose weights follow a schedule.
    trains_table: whether the small model's readout table has a gradient.
    block_length: positions of all rows per block; by default as many as fit `blocks`' budget.
    gradient_dtype: the type in which the readout table's gradient is summed over blocks.

  Returns:
    Sums over the batch: 'loss', 'weight' (of tokens in the loss), 'tokens' (valid ones), 'examples'
    (rows with any), the counts of `masks.count_agreement`, and those of `_count_rows`.
  """
  hidden = small.hidden(batch, key)
  hidden_large = None if large is None else jax.lax.stop_gradient(large.hidden(batch))
  in_loss = batch.weights if batch.loss_weights is None else batch.loss_weights
  row_of_token, num_rows = _rows_of_tokens(batch)

  def totals_of(table: Any, hidden: Array, large_table: Any, rows: Any) -> Totals:
    hidden_large, teachers, targets, weights, in_loss, numbers = rows
    logits = small.readout(hidden, table)[..., :vocab_size]
    if large is not None:
      teachers = (Logits(large.readout(hidden_large, large_table)[..., :vocab_size]), *teachers)
    total, weight = loss(logits, teachers, targets, in_loss, step=step)
    agreement = masks.count_agreement(logits, teachers, targets, weights)
    per_row = lambda tokens: jnp.zeros(num_rows).at[numbers].add(tokens & (weights > 0))
    wrong = {'wrong': per_row(~masks.small_correct(logits, teachers, targets))}
    if teachers:
      wrong['wrong_large'] = per_row(~masks.large_correct(logits, teachers, targets))
    counts = {'weight': weight, 'tokens': jnp.sum(weights)}
    return {'loss': total} | jax.lax.stop_gradient(counts | agreement | wrong)

  totals = blockwise.sum_blocks(
    totals_of,
    small.table,
    hidden,
    None if large is None else large.table,
    (hidden_large, batch.teachers, batch.targets, batch.weights, in_loss, row_of_token),
    batch.weights != 0,
    trains_table=trains_table,
    length=block_length,
    gradient_dtype=gradient_dtype,
  )
  in_row = jnp.zeros(num_rows).at[row_of_token].add(batch.weights > 0)
  examples = jnp.sum(jnp.any(batch.weights > 0, axis=1), dtype=jnp.float32)
  return _count_rows(totals, in_row) | {'examples': examples}


def _rows_of_tokens(batch: Batch) -> tuple[Int[Array, 'B T'], int]:
  """The number of each token's row of the task, and a bound of these numbers.

  Packed rows hold several; a number is then that of the packed row and of the segment.
  """
  rows, length = batch.targets.shape
  numbers = jnp.broadcast_to(jnp.arange(rows)[:, None], (rows, length))
  if batch.segments is None:
    return numbers, rows
  return numbers * (length + 1) + batch.segments, rows * (length + 1)


def _count_rows(totals: Totals, in_row: Float[Array, 'N']) -> Totals:
  """Totals with numbers of rows in place of the wrong tokens of each row, and with 'correct'.

  'rows' have targets, 'rows_right' no wrong token, and 'rows_right_large' none of the large model.
  """
  count = lambda rows: jnp.sum(rows & (in_row > 0), dtype=jnp.float32)
  counts = {'rows': count(True), 'rows_right': count(totals['wrong'] == 0)}
  if 'wrong_large' in totals:
    counts['rows_right_large'] = count(totals['wrong_large'] == 0)
  if 'both' in totals:
    counts['correct'] = totals['both'] + totals['only_small']
  return {name: total for name, total in totals.items() if name[:5] != 'wrong'} | counts


def train_step(
  state: TrainState,
  frozen: Frozen,
  batch: Batch,
  *,
  small: ModelDef,
  large: ModelDef | None,
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
  microbatches: sums are added first and divided once.

  Args:
    state: before the update.
    frozen: parameters that are read only.
    batch: examples of all devices, split over their rows.
    small: the model of `state.params`.
    large: the model of `frozen.large`, if there is one.
    loss: called with `state.step`.
    optimizer: as it initialized `state`.
    normalizer: maps the sums to the divisor, or is the divisor, a positive number.
    microbatches: parts of the batch whose gradients are computed one after another.
    block_length: positions of all rows read out at a time; see `loss_totals`.
    gradient_dtype: the type in which the readout's gradient is summed over blocks.
    accept: maps the metrics of the gradient to whether it is used. Of one that is not, the step
      counts, and parameters and optimizer stay. Entries of an update that are not finite, as of a
      learning rate that is not, leave their parameters as they are.

  Returns:
    The state after the update, and the sums of `loss_totals` with 'grad_norm' (before clipping),
    'objective' (the normalized loss), 'update_norm' (0 of a gradient that is not used) and
    'applied' (1 if the gradient is used and the norm of its update is finite, else 0).
  """
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

  if not callable(normalizer) and not normalizer > 0:
    raise ValueError(f'the normalizer is {normalizer}: divide by a positive number.')

  def total_loss(params: Params, rows: Batch, key: Array) -> tuple[Float[Array, ''], Totals]:
    totals = loss_totals(
      small.bind(params, frozen.base),
      None if large is None else large.bind(frozen.large),
      rows,
      key,
      loss=loss,
      vocab_size=common_vocabulary(small, large),
      step=state.step,
      trains_table=frozen.base is None,  # adapters stand beside linear maps only
      block_length=block_length,
      gradient_dtype=gradient_dtype,
    )
    return totals['loss'], totals

  gradients, totals = _accumulate(
    jax.grad(total_loss, has_aux=True), state.params, batch, key, microbatches
  )
  divisor = normalizer(totals) if callable(normalizer) else jnp.float32(normalizer)
  scale = 1 / jnp.where(divisor == 0, 1.0, divisor)  # of nothing, as where no token is kept
  metrics = totals | {
    'grad_norm': optax.global_norm(gradients) * scale,
    'objective': totals['loss'] * scale,
  }
  accepted = accept(metrics)

  def update(params: Params, opt_state: optax.OptState) -> tuple[Params, optax.OptState, Array]:
    scaled = jax.tree.map(lambda g: g * scale, gradients)
    updates, opt_state = optimizer.update(scaled, opt_state, params)
    norm = optax.global_norm(updates).astype(jnp.float32)
    updates = jax.tree.map(lambda u: jnp.where(jnp.isfinite(u), u, 0), updates)
    return optax.apply_updates(params, updates), opt_state, norm

  # Inside the step, since its input is donated: afterwards there would be nothing to return to. A
  # branch, taken before the update is known, lets XLA write parameters and moments in their place.
  params, opt_state, metrics['update_norm'] = jax.lax.cond(
    accepted, update, lambda *old: (*old, jnp.zeros(())), state.params, state.opt_state
  )
  applied = accepted & jnp.isfinite(metrics['update_norm'])
  metrics['applied'] = applied.astype(jnp.float32)
  return TrainState(state.step + 1, params, opt_state, state.key), metrics


def common_vocabulary(small: ModelDef, large: ModelDef | None) -> int:
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
  step: StepNumber = None,
  *,
  small: ModelDef,
  large: ModelDef | None,
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
    vocab_size=common_vocabulary(small, large),
    step=step,
    block_length=block_length,
  )
