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

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from etils import epath

from cascades import (
  assembly,
  cached,
  files,
  loop,
  lora,
  losses,
  optimizers,
  partitioning,
  profiling,
  progress,
  train_step,
  validating,
)
from cascades.assembly import Blueprint
from cascades.checkpoints import huggingface, store
from cascades.models import configs
from cascades.tasks import records, vocabularies
from cascades.tasks.corpus import Corpus
from cascades.tasks.task import Mixture, Task
from cascades.train_step import Frozen, TrainState
from cascades.types import Batch, ModelConfig, Params, Vocabulary
from cascades.validating import Validation

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
  adapters: lora.Config | None = None,
  normalizer: train_step.Normalizer | float = train_step.valid_tokens,
  microbatches: int = 1,
  block_length: int | None = None,
  pack_length: int | None = None,
  seed: int = 0,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  large_rules: partitioning.Rules | None = None,
  validation: Validation | None = None,
  log_every: int = 100,
  save_every: int = 1000,
  keep: int = 1,
  records_dir: str = records.DIRECTORY,
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> list[loop.Values]:
  """Train `small` for `train_steps` steps in `model_dir`; the module says what it leaves there.

  A model or vocabulary that is not given is that of the initial checkpoint; a vocabulary also the
  large model's, else the task's own. Returns the values of each log line.

  Raises ValueError for settings that do not fit together, CheckpointError for checkpoints that do
  not fit them, FloatingPointError if the loss or the gradient stops being finite; nothing that was
  saved before is touched.
  """
  small = small or _model_of(initial_checkpoint_path)
  vocabulary = vocabulary or _vocabulary_of(
    initial_checkpoint_path or large_checkpoint_path, teacher_cache, task
  )
  directory = files.absolute(model_dir)
  description = _describe(small, vocabulary, adapters)
  store.check_description(directory, description)
  start = store.latest(directory) or 0
  if start >= train_steps:
    log.info('%s is finished: it holds a checkpoint of step %d.', model_dir, start)
    return []
  corpus = Corpus(task, vocabulary, small.architecture, task_feature_lengths, records_dir)
  cache = large = None
  if teacher_cache is None:
    large = _large_model(large_checkpoint_path, small, vocabulary)
  else:
    cache = cached.fitting(
      teacher_cache,
      corpus,
      loss=loss,
      vocab_size=small.vocab_size,
      checkpoint=large_checkpoint_path,
    )
  transform = optimizer(learning_rate)
  with store.Checkpoints(directory, keep=keep) as checkpoints, partitioning.use(mesh(), rules):
    parts = assembly.blueprint(
      small,
      large,
      transform,
      adapters=adapters,
      large_dtype=large_dtype,
      rules=rules,
      large_rules=large_rules,
    )
    if cache:
      parts = parts._replace(small=parts.small._replace(vocab_size=cache.vocab_size))
    step = assembly.compiled_step(
      parts,
      transform,
      loss=loss,
      normalizer=normalizer,
      microbatches=microbatches,
      block_length=block_length,
    )
    state, base = _initial_state(
      parts, small, vocabulary, transform, seed, checkpoints, initial_checkpoint_path
    )
    frozen = Frozen(
      large and store.restore_params(large_checkpoint_path, parts.frozen.large),
      base,
    )
    batches = corpus.training(
      start,
      batch_size=batch_size,
      seed=seed,
      pack=pack_length,
      teacher=cache.answers if cache else None,
    )
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
    _write_down(directory, description, vocabulary, {'trained': state.params, 'frozen': frozen})
    huggingface.pass_on(initial_checkpoint_path, directory)
    if base is not None and not start:
      checkpoints.save_base(base)
    with (
      progress.Events(directory / 'train', first_step=start) as events,
      profiling.Profiler(directory / 'profile', profile_steps) as profiler,
    ):
      history = loop.run(
        state,
        _placing(step, frozen),
        batches,
        start=start,
        total=train_steps,
        every=loop.Every(log_every, validation.every if validation else 0, save_every),
        report=_reporter(train_steps, learning_rate, events),
        validate=validate,
        save=lambda number, state, values: checkpoints.save(
          number, state, validation_loss=values.get(f'{validating.PREFIX}loss')
        ),
        profile=profiler.step,
      )
  if jax.process_index() == 0:
    files.write(directory / 'config.gin', provenance().get('config', ''))
  return history


def _model_of(path: str | None) -> configs.Config:
  if path is None:
    raise ValueError(
      'Neither MODEL nor INITIAL_CHECKPOINT_PATH is given: name sizes, as '
      '--gin_file=models/t5_nano.gin does, or the run whose weights are to be trained further.'
    )
  return configs.from_description(store.read_description(path)['model'])


def _vocabulary_of(path: str | None, teacher_cache: str | None, task: Task | Mixture) -> Vocabulary:
  if path is not None:
    return vocabularies.load(store.locate(path)[0])
  return task.vocabulary() if teacher_cache is None else cached.vocabulary(teacher_cache, task)


def _describe(
  small: ModelConfig, vocabulary: Vocabulary, adapters: lora.Config | None
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


def _large_model(
  path: str | None, small: ModelConfig, vocabulary: Vocabulary
) -> configs.Config | None:
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
    params = partitioning.init_params(small, seed, whole)
  init = functools.partial(train_step.init_state, optimizer=optimizer, seed=seed)
  start = jax.jit(init, out_shardings=assembly.places(parts.state))
  if base is None:
    return start(params), None
  draw = jax.jit(
    functools.partial(lora.init, abstract=trained), out_shardings=assembly.places(trained)
  )
  return start(draw(jax.random.key(seed))), params


def _placing(compiled: Callable[..., Any], frozen: Frozen) -> Callable[..., Any]:
  """The compiled step as the loop calls it: with this process's rows."""

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, train_step.Totals]:
    state, totals = compiled(state, frozen, partitioning.place_batch(batch))
    partitioning.wait_on_virtual_devices(totals)
    return state, totals

  return step


def _reporter(
  total: int, learning_rate: optimizers.Schedule, events: progress.Events
) -> Callable[[int, loop.Values, float], None]:
  """Lines for the terminal, and the same numbers for TensorBoard."""
  meter = progress.Meter(total)
  began = time.monotonic()
  prefix = validating.PREFIX

  def report(step: int, values: loop.Values, tokens: float) -> None:
    rates = meter.update(step, tokens)
    if jax.process_index() != 0:
      return
    if not values:
      log.info('step %d, compiling included: %.1f s', step, time.monotonic() - began)
      return
    values = values | {'lr': float(learning_rate(step - 1))}
    validation = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}
    training = {k: v for k, v in values.items() if not k.startswith(prefix)}
    log.info('%s', progress.format_line(step, total, training, rates))
    if validation:
      log.info('%s', progress.format_line(step, total, validation, None) + '  (validation)')
    events.write(step, values | (rates._asdict() if rates else {}))

  return report


def _write_down(
  directory: epath.Path,
  description: Mapping[str, Any],
  vocabulary: Vocabulary,
  models: Mapping[str, Any],
) -> None:
  """model.json, the vocabulary, and model-info.txt: every array's name, shape, type and place."""
  lines = []
  for role, params in models.items():
    leaves = jax.tree_util.tree_leaves_with_path(params)
    lines.append(f'{role}: {sum(leaf.size for _, leaf in leaves):,} parameters')
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      lines.append(f'  {name}  {leaf.shape}  {leaf.dtype}  {leaf.sharding.spec}')
  log.info('%s', '; '.join(line for line in lines if not line.startswith(' ')))
  if jax.process_index() == 0:
    store.write_description(directory, description)
    vocabularies.save(vocabulary, directory)
    files.write(directory / 'model-info.txt', '\n'.join([*lines, '']))


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.train')
