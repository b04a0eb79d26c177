"""Train a model, alone or aware of its place in a cascade.

    python -m cascades.train --gin_file=recipes/demo_large.gin
    python -m cascades.train --gin_file=recipes/demo_small.gin --gin.LOSS=@losses.cat_xent

With a LARGE_CHECKPOINT_PATH the frozen large model runs beside the small one in every step; with a
TEACHER_CACHE (`cache_teacher`) what it would say is read instead, and the path, if also given, only
says of which checkpoint the cache must be. The run directory MODEL_DIR gets config.gin,
model-info.txt, model.json, the vocabulary, checkpoint_N/ and TensorBoard events in train/. The same
command goes on from the last checkpoint, bit by bit. With ADAPTERS only those are trained (`lora`)
and saved, beside the frozen weights in base/; other programs read such a run as the plain model
that the two make.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from etils import epath

from cascades import losses
from cascades.checkpoints import finished, store
from cascades.data import materialize
from cascades.data.corpus import Corpus
from cascades.interop import companions
from cascades.models import configs, lora
from cascades.models.abstract import init_params
from cascades.runtime import files, locking, partitioning, profiling, progress, stopping
from cascades.tasks.task import Mixture, Task
from cascades.tokenizers import vocabularies
from cascades.training import (
  cached_teacher,
  loop,
  optimizers,
  run_log,
  setup,
  train_step,
  utilization,
)
from cascades.training import validation as validating
from cascades.training.setup import Blueprint
from cascades.training.train_step import Frozen, TrainState
from cascades.training.validation import Validation
from cascades.types import ModelConfig, Params, Vocabulary

log = logging.getLogger(__name__)


def train(
  model_dir: str,
  *,
  small: ModelConfig | None = None,
  task: Task | Mixture,
  task_feature_lengths: Mapping[str, int],
  train_steps: int,
  batch_size: int,
  learning_rate: optimizers.Schedule,
  optimizer: optimizers.Optimizer = optimizers.adafactor,
  loss: losses.CascadeLoss = losses.xent,
  vocabulary: Vocabulary | None = None,
  large_checkpoint_path: str | None = None,
  large_dtype: str = 'float32',
  teacher_cache: str | None = None,
  initial_checkpoint_path: str | None = None,
  adapters: lora.LoraConfig | None = None,
  normalizer: train_step.Normalizer | float = train_step.valid_tokens,
  microbatches: int = 1,
  block_length: int | None = None,
  readout_gradient_dtype: str = 'float32',
  pack_length: int | None = None,
  seed: int = 0,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  large_rules: partitioning.Rules | None = None,
  validation: Validation | None = None,
  log_every: int = 100,
  save_every: int = 1000,
  keep: int = 2,
  accept: train_step.Accept = train_step.finite,
  on_bad_step: Callable[[Exception], None] = stopping.stop,
  on_failed_save: Callable[[Exception], None] = stopping.stop,
  hang_timeout: float | None = 3600.0,
  records_dir: str = materialize.DIRECTORY,
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> list[loop.Values]:
  """Train `small` for `train_steps` steps in `model_dir`; the module says what it leaves there.

  A model or vocabulary that is not given is that of the initial checkpoint; a vocabulary also the
  large model's, else the task's own. Returns the values of each log line.

  Raises ValueError for settings that do not fit together, CheckpointError for checkpoints that do
  not fit them, BlockingIOError if another run holds the directory; nothing that was saved before
  is touched. Ended by SIGTERM it saves and raises stopping.Preempted, which exits with code 75.

  Updates that `accept` refuses are not applied, and `on_bad_step` (stopping.stop or stopping.go_on)
  gets a FloatingPointError; so does `on_failed_save` a SaveError, as when the disk is full. The
  process is aborted with its stacks if nothing happens for `hang_timeout` seconds.
  """
  small = small or _model_of(initial_checkpoint_path)
  vocabulary = vocabulary or _vocabulary_of(
    initial_checkpoint_path or large_checkpoint_path, teacher_cache, task
  )
  directory = files.absolute(model_dir)
  description = _describe(small, vocabulary, adapters)
  store.check_description(directory, description)
  corpus = Corpus(task, vocabulary, small.architecture, task_feature_lengths, records_dir)
  transform = optimizer(learning_rate)
  with (
    _claimed(directory) as start,
    stopping.asked() as asked_to_stop,
    store.Checkpoints(directory, keep=keep, on_failure=on_failed_save) as checkpoints,
    partitioning.use(mesh(), rules),
  ):
    if start >= train_steps:
      log.info('%s is finished: it holds a checkpoint of step %d.', model_dir, start)
      return []
    large, cache = _teacher(large_checkpoint_path, teacher_cache, small, corpus, loss)
    parts = setup.blueprint(
      small,
      large,
      transform,
      adapters=adapters,
      large_dtype=large_dtype,
      rules=rules,
      large_rules=large_rules,
      vocab_size=cache and cache.vocab_size,
    )
    step = setup.compiled_step(
      parts,
      transform,
      loss=loss,
      normalizer=normalizer,
      microbatches=microbatches,
      block_length=block_length,
      gradient_dtype=readout_gradient_dtype,
      accept=accept,
    )
    state, base = _initial_state(
      parts, small, vocabulary, transform, seed, checkpoints, initial_checkpoint_path
    )
    frozen = Frozen(large and store.restore_params(large_checkpoint_path, parts.frozen.large), base)
    order: dict[str, Any] = {'batch_size': batch_size, 'seed': seed, 'pack': pack_length}
    batches = corpus.training(start, **order, teacher=cache.answers if cache else None)
    validate = validating.validator(
      validation,
      corpus,
      parts,
      frozen,
      loss=loss,
      block_length=block_length,
      batch_size=batch_size,
      cache=cache,
    )
    run_log.write_down(
      directory, description, vocabulary, {'trained': state.params, 'frozen': frozen}
    )
    used = utilization.Usage(parts)
    companions.inherit(initial_checkpoint_path, directory)
    if base is not None and not start:
      checkpoints.save_base(base)
    with (
      progress.Events(directory / 'train', first_step=start) as events,
      profiling.Profiler(directory / 'profile', profile_steps) as profiler,
      stopping.watchdog(hang_timeout) as alive,
    ):
      history = loop.run(
        state,
        setup.on_batches(step, frozen, used.compiled),
        lambda _state, _step: next(batches),
        start=start,
        total=train_steps,
        intervals=loop.Intervals(log_every, validation.every if validation else 0, save_every),
        report=run_log.reporter(
          train_steps, events, learning_rate=learning_rate, used=used.now, check=checkpoints.check
        ),
        validate=validate,
        save=lambda number, state, values: checkpoints.save(
          number, state, validation_loss=values.get(f'{validating.PREFIX}loss')
        ),
        on_rejected=stopping.refusals(
          directory, lambda number: corpus.training_ids(number - 1, **order), on_bad_step
        ),
        asked_to_stop=lambda number: alive() or asked_to_stop(number),
        profile=profiler.step,
      )
  if jax.process_index() == 0:
    files.write(directory / 'config.gin', provenance().get('config', ''))
  return history


@contextlib.contextmanager
def _claimed(directory: epath.Path) -> Iterator[int]:
  """The step from which a run goes on that has the directory for itself."""
  with locking.held(directory):
    yield finished.recover(directory) or 0


def _model_of(path: str | None) -> configs.LanguageModelConfig:
  if path is None:
    raise ValueError(
      'Neither MODEL nor INITIAL_CHECKPOINT_PATH is given: name sizes, as '
      '--gin_file=models/t5_nano.gin does, or the run whose weights are to be trained further.'
    )
  return configs.from_description(store.read_description(path)['model'])


def _vocabulary_of(path: str | None, teacher_cache: str | None, task: Task | Mixture) -> Vocabulary:
  if path is not None:
    return vocabularies.load(store.locate(path)[0])
  return (
    task.vocabulary() if teacher_cache is None else cached_teacher.vocabulary(teacher_cache, task)
  )


def _describe(
  small: ModelConfig, vocabulary: Vocabulary, adapters: lora.LoraConfig | None
) -> dict[str, Any]:
  """What the run's checkpoints will be."""
  if small.vocab_size < vocabulary.size:
    raise ValueError(
      f'the model has {small.vocab_size} vocabulary entries and the vocabulary {vocabulary.size}: '
      'give the model at least as many.'
    )
  return {
    'model': configs.describe(small),
    'vocabulary': vocabulary.fingerprint,
    'vocabulary_size': vocabulary.size,
    **({store.LORA: adapters._asdict()} if adapters else {}),
  }


def _check_vocabulary(path: str, description: Mapping[str, Any], vocabulary: Vocabulary) -> None:
  if description['vocabulary'] != vocabulary.fingerprint:
    raise ValueError(
      f'the model of {path} has vocabulary {description["vocabulary"][:12]} of '
      f'{description["vocabulary_size"]} tokens, and this run has vocabulary '
      f'{vocabulary.fingerprint[:12]} of {vocabulary.size}: they must be the same. Convert both '
      "from one format, or one with the other's VOCABULARY; or train one anew with it."
    )


def _teacher(
  path: str | None,
  teacher_cache: str | None,
  small: ModelConfig,
  corpus: Corpus,
  loss: losses.CascadeLoss,
) -> tuple[configs.LanguageModelConfig | None, cached_teacher.TeacherCache | None]:
  """The large model of a run directory, or what one has said of the corpus, or neither."""
  if teacher_cache is None:
    large = _large_model(path, small, corpus.vocabulary)
    if large is None:
      cached_teacher.check_loss(loss, (), small.vocab_size)
    return large, None
  cache = cached_teacher.load(
    teacher_cache, corpus, loss=loss, vocab_size=small.vocab_size, checkpoint=path
  )
  return None, cache


def _large_model(
  path: str | None, small: ModelConfig, vocabulary: Vocabulary
) -> configs.LanguageModelConfig | None:
  """The large model of a run directory, if it reads what the small one reads."""
  if path is None:
    return None
  description = store.read_description(path)
  _check_vocabulary(path, description, vocabulary)
  config = configs.from_description(description['model'])
  if config.architecture != small.architecture:
    raise ValueError(
      f'the large model of {path} is {config.architecture} and the small one '
      f'{small.architecture}: to be compared token by token they must read their prompts alike.'
    )
  return config


def _initial_state(
  parts: Blueprint,
  small: ModelConfig,
  vocabulary: Vocabulary,
  optimizer: optax.GradientTransformation,
  seed: int,
  checkpoints: store.Checkpoints,
  initial_checkpoint_path: str | None,
) -> tuple[TrainState, Params]:
  """Where the run starts. The order matters: its own checkpoint, another run's weights, chance.

  With adapters those are its state, and the weights beside them, which come last here, their base.
  """
  trained, base = parts.state.params, parts.frozen.base
  latest = checkpoints.latest()
  if latest is not None:
    log.info('going on from step %d.', latest)
    state = checkpoints.restore(latest, parts.state)
    return state, None if base is None else checkpoints.restore_base(base)
  whole = trained if base is None else base
  if initial_checkpoint_path:
    _check_vocabulary(
      initial_checkpoint_path, store.read_description(initial_checkpoint_path), vocabulary
    )
    params = store.restore_params(initial_checkpoint_path, whole)
  elif base is not None:
    raise ValueError(
      'adapters learn beside trained weights and INITIAL_CHECKPOINT_PATH is None: name the run '
      'whose weights they are, or train all weights.'
    )
  else:
    params = init_params(small, seed, whole)
  init = functools.partial(train_step.init_state, optimizer=optimizer, seed=seed)
  start = jax.jit(init, out_shardings=setup.places(parts.state))
  if base is None:
    return start(params), None
  draw = jax.jit(
    functools.partial(lora.init, abstract=trained), out_shardings=setup.places(trained)
  )
  return start(draw(jax.random.key(seed))), params


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.train')
