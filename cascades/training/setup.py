"""Configuration of training, and the training step assembled from it.

`train` and `plan` share everything here: `train` fills an `AbstractRun` with arrays from
checkpoints, `plan` compiles its step for devices that are not attached.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

from cascades import losses
from cascades.models import configs, lora
from cascades.models.abstract import abstract_model
from cascades.runtime import memory, partitioning, ranges, stopping
from cascades.training import optimizers, train_step
from cascades.training.train_step import Frozen, ModelDef, TrainState
from cascades.types import Batch, ModelConfig, Vocabulary

StepFunction: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, train_step.Totals]]

_GRADIENT_DTYPES = ('float32', 'bfloat16', 'float16')


@dataclasses.dataclass(frozen=True)
class SmallModel:
  """The model that is trained.

  Attributes:
    config: Its architecture and sizes; None takes those of the initial checkpoint.
    vocabulary: A vocabulary, or its name or path, see `named`; None takes that of the initial or
      the large checkpoint, else the task's own.
    initial_checkpoint_path: Run directory, or a checkpoint in one, with the initial weights; None
      draws them at random.
    adapters: Trains these low-rank adapters beside the frozen initial weights; None trains all
      weights.
  """

  config: ModelConfig | None = None
  vocabulary: Vocabulary | str | None = None
  initial_checkpoint_path: str | None = None
  adapters: lora.LoraConfig | None = None


@dataclasses.dataclass(frozen=True)
class LargeModel:
  """The frozen model beside the trained one: run in training steps, or read from a cache.

  It is called large after cascades, where the small model learns from it; it may be the smaller one
  (`losses.salt`).

  Attributes:
    config: Its architecture and sizes; None takes those of its checkpoint. `plan` can do without
      the checkpoint.
    checkpoint_path: Run directory, or a checkpoint in one. None trains without a large model,
      unless a cache is given; beside a cache it says of which checkpoint the cache must be.
    dtype: Type that holds its weights: 'float32', 'bfloat16' or 'int8'.
    rules: Sharding rules of its parameters; None takes those of the small model.
    teacher_cache: Directory that `cascades.cache_teacher` wrote, read instead of running it; or
      several, of the later models of a cascade: all are teachers of every token.
    steps: Number of first steps in which the loss has a teacher; the others and validation compute
      the loss without one and do not run this model. None for all.
  """

  config: ModelConfig | None = None
  checkpoint_path: str | None = None
  dtype: str = 'float32'
  rules: partitioning.Rules | None = None
  teacher_cache: str | Sequence[str] | None = None
  steps: int | None = None

  def __post_init__(self) -> None:
    ranges.check({'LARGE_STEPS': self.steps}, least=0, integer=True)
    different = {*self.caches} - {''}
    if self.teacher_cache is not None and not 0 < len(self.caches) == len(different):
      raise ValueError(
        f'TEACHER_CACHE={self.teacher_cache!r:.80} is no list of different directories: name each '
        'model once.'
      )
    if self.checkpoint_path is not None and len(self.caches) > 1:
      raise ValueError(
        f'LARGE_CHECKPOINT_PATH={self.checkpoint_path!r} says of which checkpoint a cache must be, '
        f'and TEACHER_CACHE names {len(self.caches)}: leave LARGE_CHECKPOINT_PATH out.'
      )

  @property
  def caches(self) -> tuple[str, ...]:
    """Directories of the teacher caches."""
    if self.teacher_cache is None:
      return ()
    if isinstance(self.teacher_cache, str):
      return (self.teacher_cache,)
    return tuple(self.teacher_cache)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """The computation of a training step.

  Attributes:
    learning_rate: Maps a step to its learning rate.
    optimizer: Maps the learning rate to an optax transformation.
    loss: Loss of the small model's logits, given the teachers and the target tokens.
    normalizer: Divisor of the batch's summed loss: a number, or a function of the step's totals.
    token_weights: Maps a batch to its tokens' weights in the loss; None weighs all the same.
    microbatches: Number of equal slices of a batch whose gradients are accumulated in turn.
    block_length: Target positions whose logits exist at a time; None chooses by the memory limit.
    readout_gradient_dtype: Type in which the gradient of the readout is accumulated.
    accept: Decides from the metrics of a step's gradient whether it is used.
  """

  learning_rate: optax.Schedule
  optimizer: optimizers.Optimizer = optimizers.adafactor
  loss: losses.CascadeLoss = losses.xent
  normalizer: train_step.Normalizer | float = train_step.valid_tokens
  token_weights: train_step.TokenWeights | None = None
  microbatches: int = 1
  block_length: int | None = None
  readout_gradient_dtype: str = 'float32'
  accept: train_step.Accept = train_step.finite

  def __post_init__(self) -> None:
    ranges.check(
      {'MICROBATCHES': self.microbatches, 'BLOCK_LENGTH': self.block_length}, least=1, integer=True
    )
    if not callable(self.normalizer):
      ranges.check({'LOSS_NORMALIZING_FACTOR': self.normalizer}, above=0)
    if self.readout_gradient_dtype not in _GRADIENT_DTYPES:
      raise ValueError(
        f'READOUT_GRADIENT_DTYPE={self.readout_gradient_dtype!r} must be one of '
        f'{", ".join(_GRADIENT_DTYPES)}.'
      )

  def check_batch(self, batch_size: int) -> None:
    """Raises ValueError if a batch cannot be split into equal microbatches."""
    ranges.check({'BATCH_SIZE': batch_size}, least=1, integer=True)
    if batch_size % self.microbatches:
      raise ValueError(
        f'BATCH_SIZE={batch_size} is not divisible by MICROBATCHES={self.microbatches}: choose a '
        'multiple, so that all microbatches are equal.'
      )

  @functools.cached_property
  def transform(self) -> optax.GradientTransformation:
    """The optimizer with its learning rate."""
    return self.optimizer(self.learning_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """The length of a run, in steps, and the intervals of its log lines and checkpoints.

  Attributes:
    train_steps: Number of training steps.
    log_every: Steps between log lines; 0 for none but the last.
    save_every: Steps between checkpoints; 0 for none but the last.
    keep: Number of latest checkpoints that are kept, besides the best and the last sound one.
  """

  train_steps: int
  log_every: int = 100
  save_every: int = 1000
  keep: int = 2

  def __post_init__(self) -> None:
    ranges.check({'TRAIN_STEPS': self.train_steps}, least=1, below=1 << 31, integer=True)
    ranges.check({'KEEP': self.keep}, least=1, integer=True)
    intervals = {'LOG_EVERY': self.log_every, 'SAVE_EVERY': self.save_every}
    ranges.check(intervals, least=0, integer=True)


@dataclasses.dataclass(frozen=True)
class Failures:
  """Reactions to failures: `stopping.stop` ends the run, `stopping.go_on` logs and continues.

  Attributes:
    on_changed_settings: Called with a ValueError if a run is continued with other settings.
    on_bad_step: Called with a FloatingPointError if a step's update was not accepted.
    on_failed_save: Called with a SaveError if a checkpoint could not be written.
    on_nan_validation: Called with a FloatingPointError if a validation loss is not finite. The
      checkpoint of such a step is never the best.
    hang_timeout: Seconds without a finished step after which the process is aborted with the
      stacks of its threads; None for never.
  """

  on_changed_settings: Callable[[Exception], None] = stopping.stop
  on_bad_step: Callable[[Exception], None] = stopping.stop
  on_failed_save: Callable[[Exception], None] = stopping.stop
  on_nan_validation: Callable[[Exception], None] = stopping.go_on
  hang_timeout: float | None = 3600.0

  def __post_init__(self) -> None:
    ranges.check({'HANG_TIMEOUT': self.hang_timeout}, least=0)


class AbstractRun(NamedTuple):
  """Model definitions of a run, and the shapes, dtypes and shardings of its arrays.

  Attributes:
    small: ModelDef of the model that is trained.
    large: ModelDef of the frozen large model, if there is one.
    state: Abstract training state.
    frozen: Abstract parameters that a step reads and does not change.
  """

  small: ModelDef
  large: ModelDef | None
  state: TrainState
  frozen: Frozen

  @property
  def models(self) -> dict[str, Any]:
    """The definitions as arguments of `train_step` and `eval_step`."""
    return {'small': self.small, 'large': self.large}

  @property
  def alone(self) -> AbstractRun:
    """The run without the large model, with losses over the same vocabulary entries."""
    vocab_size = train_step.common_vocabulary(self.small, self.large)
    return self._replace(
      small=self.small._replace(vocab_size=vocab_size),
      large=None,
      frozen=self.frozen._replace(large=None),
    )


def abstract_run(
  small: SmallModel,
  large: LargeModel,
  optimizer: optax.GradientTransformation,
  *,
  rules: partitioning.Rules = partitioning.RULES,
  vocab_size: int | None = None,
) -> AbstractRun:
  """Definitions and abstract arrays of a run on the active mesh.

  With adapters the state holds those only, and the small model's own weights are frozen.

  Args:
    small: The model that is trained, with its `config`.
    large: The frozen large model; without a `config` there is none.
    optimizer: Its state is part of the training state.
    rules: Sharding rules.
    vocab_size: Number of leading vocabulary entries that the loss sees, by default all.
  """
  if small.config is None:
    raise ValueError('the small model has no config: give one, or that of its checkpoint.')
  adapters = small.adapters
  graph, params = abstract_model(small.config, rules, dtype=(adapters or lora.LoraConfig()).dtype)
  maps = configs.linear_maps(small.config)
  trained = lora.abstract(params, maps, adapters) if adapters else params
  init = functools.partial(train_step.init_state, optimizer=optimizer, seed=0)
  state = partitioning.like_parameters(jax.eval_shape(init, trained), trained)
  definition = ModelDef(
    graph, vocab_size or small.config.vocab_size, adapters.scale if adapters else 1.0
  )
  base = params if adapters else None
  if large.config is None:
    return AbstractRun(definition, None, state, Frozen(None, base))
  large_graph, large_params = abstract_model(
    large.config, rules if large.rules is None else large.rules, dtype=large.dtype
  )
  large_definition = ModelDef(large_graph, large.config.vocab_size)
  return AbstractRun(definition, large_definition, state, Frozen(large_params, base))


def compiled_step(abstract: AbstractRun, step: Step) -> Any:
  """`train_step` under `jax.jit` on the active mesh; the state is donated."""
  function: Callable[..., Any] = functools.partial(
    train_step.train_step,
    **abstract.models,
    optimizer=step.transform,
    loss=step.loss,
    normalizer=step.normalizer,
    microbatches=step.microbatches,
    block_length=step.block_length,
    gradient_dtype=step.readout_gradient_dtype,
    accept=step.accept,
  )

  def weighted(state: TrainState, frozen: Frozen, batch: Batch) -> Any:
    assert step.token_weights
    return function(state, frozen, batch._replace(loss_weights=step.token_weights(batch)))

  return jax.jit(
    weighted if step.token_weights else function,
    donate_argnums=0,
    out_shardings=(shardings(abstract.state), None),
    compiler_options=_compiler_options(jax.sharding.get_mesh()),
  )


def _compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
  """Options that make XLA gather sharded weights on TPU before it multiplies them.

  By default it passes the shards around a ring during the multiplication, which sends nine shards
  where seven of eight are missing, and compiles slowly.
  """
  tpu = not mesh.empty and mesh.devices.flat[0].platform == 'tpu'
  return {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'} if tpu else None


def on_batches(
  step: Any, frozen: Frozen, compiled: Callable[[jax.stages.Compiled, Batch], None]
) -> StepFunction:
  """Adapt a compiled step to the training loop: it takes this process's rows of a batch.

  Args:
    step: The result of `compiled_step`.
    frozen: Parameters that the step does not change.
    compiled: Called once with the executable and the first batch.
  """
  program: Any = None

  def run(state: TrainState, batch: Batch) -> tuple[TrainState, train_step.Totals]:
    nonlocal program
    batch = partitioning.place_batch(batch)
    if program is None:
      program = step.lower(state, frozen, batch).compile()
      memory.trim_heap()
      compiled(program, batch)
    state, totals = program(state, frozen, batch)
    partitioning.wait_on_virtual_devices(totals)
    return state, totals

  return run


def in_stages(stages: Sequence[StepFunction], *, start: int, switch: int | None) -> StepFunction:
  """The steps after step `start`: the first of `stages`, after step `switch` the last, alone.

  Both take and give one state, so optimizer and learning rate pass the switch as any other step.
  """
  numbers = itertools.count(start + 1)

  def run(state: TrainState, batch: Batch) -> tuple[TrainState, train_step.Totals]:
    if switch is None or next(numbers) <= switch:
      return stages[0](state, batch)
    return stages[-1](state, batch._replace(teachers=()))

  return run


def shardings(tree: Any) -> Any:
  """The sharding of every array of a tree."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)
