"""Train a model, alone or as the small model of a cascade.

    python -m cascades.train --gin_file=recipes/demo_large.gin
    python -m cascades.train --gin_file=recipes/demo_small.gin --gin.LOSS=@losses.cat_xent

With a LARGE_CHECKPOINT_PATH a frozen model runs beside the one that is trained, and teaches it; its
name is that of cascades, it may be the smaller of the two (recipes/salt_lm.gin), and the first log
lines give both sizes. With a TEACHER_CACHE (`cascades.cache_teacher`), or a list, the answers of
one or more are read instead; with LARGE_STEPS they teach in the first steps only. FIXED_FRACTION
and ON_POLICY_FRACTION replace answers of the task by those of either model. The run directory
MODEL_DIR gets config.gin, settings.json, model-info.txt, model.json, the vocabulary, checkpoint_N/,
metrics.jsonl and TensorBoard events in train/. Rerunning the same command resumes from the last
checkpoint, bit by bit; other settings are refused, unless ON_CHANGED_SETTINGS=@stopping.go_on.
With ADAPTERS only low-rank adapters are trained and saved, beside the frozen weights in base/;
other programs read such a run as the merged model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from etils import epath

from cascades import losses
from cascades.checkpoints import finished, store
from cascades.data.corpus import Corpus, Data
from cascades.interop import companions
from cascades.models import configs, lora
from cascades.models.abstract import init_params
from cascades.runtime import files, locking, profiling, stopping
from cascades.runtime.partitioning import Devices
from cascades.tokenizers import named, vocabularies
from cascades.training import (
  cached_teacher,
  continuation,
  loop,
  metrics_log,
  older_moments,
  on_policy,
  run_log,
  setup,
  train_step,
  utilization,
)
from cascades.training import validation as validating
from cascades.training.setup import (
  AbstractRun,
  Failures,
  LargeModel,
  Schedule,
  SmallModel,
  Step,
)
from cascades.training.train_step import Frozen, TrainState
from cascades.training.validation import Validation
from cascades.types import Batch, ModelConfig, Params, Vocabulary

log = logging.getLogger(__name__)


def train(
  model_dir: str,
  *,
  small: SmallModel,
  data: Data,
  step: Step,
  schedule: Schedule,
  large: LargeModel = LargeModel(),
  validation: Validation | None = None,
  failures: Failures = Failures(),
  devices: Devices = Devices(),
  seed: int = 0,
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> list[loop.Values]:
  """Train a model in `model_dir`, from its last checkpoint if there is one.

  Args:
    model_dir: Run directory, local or in an object store.
    small: The model that is trained.
    data: The rows, and the shape of batches.
    step: Loss, optimizer and memory options of a training step.
    schedule: Length of the run, and intervals of log lines and checkpoints.
    large: The frozen large model, if the loss needs one.
    validation: Interval and size of validations; None for no validation.
    failures: Reactions to changed settings, updates that are not accepted, failed saves and hangs.
    devices: Mesh and sharding rules.
    seed: Seed of initial parameters, dropout and the order of rows.
    profile_steps: Steps to be traced by the profiler, as '10:15'.
    provenance: Gives the operative configuration, which is written to config.gin before the first
      step, the bindings of functions, the command, and versions.

  Returns:
    The values of each log line of this call, none if the run is already finished.

  Raises:
    ValueError: for settings that do not fit together, or that differ from those of the run that is
      continued.
    CheckpointError: for checkpoints that do not fit the settings. Nothing is overwritten.
    BlockingIOError: if another run holds the directory.
    stopping.Preempted: after SIGTERM, when a checkpoint is saved; it exits with code 75.
  """
  step.check_batch(data.batch_size)
  on_policy.check(data, large, schedule)
  config = small.config or _config_of(small.initial_checkpoint_path)
  small = dataclasses.replace(small, config=config)
  vocabulary = _vocabulary_of(small, large, data)
  config = configs.with_vocabulary(config, vocabulary.size)
  small = dataclasses.replace(small, config=config)
  directory = files.absolute(model_dir)
  description = _describe(config, vocabulary, small.adapters)
  store.check_description(directory, description)
  corpus = data.corpus(vocabulary, config.architecture)
  with (
    _locked(directory) as start,
    stopping.asked() as asked_to_stop,
    store.Checkpoints(
      directory, keep=schedule.keep, on_failure=failures.on_failed_save
    ) as checkpoints,
    devices.use(),
  ):
    described = continuation.describe(
      small, large, data, step, corpus=corpus, seed=seed, bindings=provenance().get('bindings', '')
    )
    continuation.check(directory, start, described, failures.on_changed_settings)
    if start >= schedule.train_steps:
      log.info('%s is finished: it holds a checkpoint of step %d.', model_dir, start)
      return []
    large, cache = _teacher(large, config, corpus, step.loss, schedule.train_steps)
    abstract = setup.abstract_run(
      small, large, step.transform, rules=devices.rules, vocab_size=cache and cache.vocab_size
    )
    state, base = _initial_state(
      abstract, config, small.initial_checkpoint_path, vocabulary, step.transform, seed, checkpoints
    )
    frozen = Frozen(_large_params(large, abstract), base)
    order: dict[str, Any] = {'batch_size': data.batch_size, 'seed': seed, 'pack': data.pack_length}
    order['pool'] = corpus.pool(data.selection)
    stream = corpus.training(
      start,
      **order,
      teacher=cache.answers if cache else None,
      sources=data.sources,
      vocab_size=train_step.common_vocabulary(abstract.small, abstract.large),
    )
    sample = on_policy.sampler(corpus, data.sources, abstract, base)
    stages = [(abstract, frozen)]
    if large.steps is not None:
      stages.append((abstract.alone, frozen._replace(large=None)))
    validate = validating.validator(
      validation,
      corpus,
      stages[-1][0],
      stages[-1][1],
      loss=step.loss,
      block_length=step.block_length,
      batch_size=data.batch_size,
      cache=cache if large.steps is None else None,
      on_nan=failures.on_nan_validation,
    )
    run_log.describe_run(
      directory, description, vocabulary, {'trained': state.params, 'frozen': frozen}
    )
    meter = utilization.UtilizationMeter()
    companions.inherit(small.initial_checkpoint_path, directory)
    if base is not None and not start:
      checkpoints.save_base(base)

    def compiled(run: AbstractRun, program: jax.stages.Compiled, batch: Batch) -> None:
      # Only now all functions have been called, of which gin reports the arguments.
      if jax.process_index() == 0:
        continuation.record(directory, start, described, provenance())
      meter.compiled(run, program, batch)

    with (
      metrics_log.MetricsLog(directory, first_step=start) as metrics,
      profiling.Profiler(directory / 'profile', profile_steps) as profiler,
      stopping.watchdog(failures.hang_timeout) as alive,
    ):
      programs = [
        setup.on_batches(setup.compiled_step(run, step), params, functools.partial(compiled, run))
        for run, params in stages
      ]
      history = loop.run(
        state,
        on_policy.noted(
          setup.in_stages(programs, start=start, switch=large.steps),
          data.sources,
          seed,
          start=start,
        ),
        on_policy.batches(stream, sample, every=data.sources.sample_every),
        start=start,
        total=schedule.train_steps,
        intervals=loop.Intervals(
          schedule.log_every, validation.every if validation else 0, schedule.save_every
        ),
        report=run_log.reporter(
          schedule.train_steps,
          metrics,
          learning_rate=step.learning_rate,
          utilization=meter.measure,
          check=checkpoints.check,
        ),
        validate=validate,
        save=lambda number, state, values: checkpoints.save(
          number,
          state,
          validation_loss=values.get(f'{validating.PREFIX}loss'),
          trained='loss' in values,
        ),
        on_rejected=stopping.refusals(
          directory,
          lambda number: corpus.training_ids(number - 1, **order),
          failures.on_bad_step,
          way_back=functools.partial(_way_back, directory, start),
        ),
        asked_to_stop=lambda number: (
          (alive() or asked_to_stop(number)) and not number % data.sources.sample_every
        ),
        profile=profiler.step,
      )
  return history


@contextlib.contextmanager
def _locked(directory: epath.Path) -> Iterator[int]:
  """Context manager that locks a run directory and gives the last step saved in it, or 0."""
  with locking.held(directory):
    yield finished.recover(directory) or 0


def _way_back(directory: epath.Path, start: int, step: int) -> str:
  """A sentence for a run that cannot go on: its checkpoint's own first step is refused."""
  earlier = [number for number in finished.steps(directory) if number < start]
  if step != start + 1 or not earlier:
    return ''
  return (
    f' It is the first step after checkpoint_{start}, whose parameters may be ruined: remove that '
    f'folder, and the same command resumes from checkpoint_{max(earlier)}.'
  )


def _config_of(path: str | None) -> ModelConfig:
  if path is None:
    raise ValueError(
      'Neither MODEL nor INITIAL_CHECKPOINT_PATH is given: name sizes, as '
      '--gin_file=models/t5_nano.gin does, or the run whose weights are to be trained further.'
    )
  return configs.from_description(store.read_description(path)['model'])


def _vocabulary_of(small: SmallModel, large: LargeModel, data: Data) -> Vocabulary:
  if isinstance(small.vocabulary, str):
    return named.named(small.vocabulary)
  if small.vocabulary is not None:
    return small.vocabulary
  path = small.initial_checkpoint_path or large.checkpoint_path
  if path is not None:
    return vocabularies.load(store.locate(path)[0])
  if large.caches:
    return cached_teacher.vocabulary(large.caches[0], data.required_task)
  return data.required_task.vocabulary()


def _describe(
  config: ModelConfig, vocabulary: Vocabulary, adapters: lora.LoraConfig | None
) -> dict[str, Any]:
  """The model.json of the run."""
  if config.vocab_size < vocabulary.size:
    raise ValueError(
      f'the model has {config.vocab_size} vocabulary entries and the vocabulary '
      f'{vocabulary.size}: give the model at least as many, VOCAB_SIZE={vocabulary.size}.'
    )
  return {
    'model': configs.describe(config),
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
  large: LargeModel,
  small: ModelConfig,
  corpus: Corpus,
  loss: losses.CascadeLoss,
  train_steps: int,
) -> tuple[LargeModel, cached_teacher.TeacherCaches | None]:
  """The large model with its config, or without one beside caches of answers."""
  path = large.checkpoint_path
  if large.steps is not None:
    cached_teacher.check_alone(loss, large.steps, small.vocab_size)
  if large.caches:
    cache = cached_teacher.load_all(
      large.caches, corpus, loss=loss, vocab_size=small.vocab_size, checkpoint=path
    )
    return dataclasses.replace(large, config=None), cache
  if path is None:
    if large.config is not None:
      raise ValueError('a large model has sizes and no weights: name its LARGE_CHECKPOINT_PATH.')
    if large.steps:
      raise ValueError(
        f'LARGE_STEPS={large.steps} steps are to learn from a frozen model, and none is given: '
        'name it as LARGE_CHECKPOINT_PATH (recipes/salt_lm.gin: TEACHER_CHECKPOINT_PATH), or train '
        'without by LARGE_STEPS=0 (DISTILL_STEPS=0).'
      )
    cached_teacher.check_loss(loss, (), small.vocab_size)
    return large, None
  description = store.read_description(path)
  _check_vocabulary(path, description, corpus.vocabulary)
  config = configs.from_description(description['model'])
  if config.architecture != small.architecture:
    raise ValueError(
      f'the large model of {path} is {config.architecture} and the small one '
      f'{small.architecture}: to be compared token by token they must read their prompts alike.'
    )
  if large.config not in (None, config):
    raise ValueError(f'the large model of {path} is {config} and not {large.config}.')
  log.info(
    'the model that is trained has %s parameters; it learns from the frozen model of %s, which has '
    '%s (%.2g times as many)%s.',
    *(f'{configs.count_parameters(small):,}', path, f'{configs.count_parameters(config):,}'),
    configs.count_parameters(config) / configs.count_parameters(small),
    '' if large.steps is None else f', in the first {large.steps} of {train_steps} steps',
  )
  return dataclasses.replace(large, config=config), None


def _large_params(large: LargeModel, abstract: AbstractRun) -> Params:
  if large.config is None or large.checkpoint_path is None:
    return None
  return store.restore_params(large.checkpoint_path, abstract.frozen.large)


def _initial_state(
  abstract: AbstractRun,
  config: ModelConfig,
  path: str | None,
  vocabulary: Vocabulary,
  optimizer: optax.GradientTransformation,
  seed: int,
  checkpoints: store.Checkpoints,
) -> tuple[TrainState, Params]:
  """The training state at the start, and with adapters the frozen weights beside them.

  In this order: from the run's own last checkpoint, from the initial one at `path`, at random.
  """
  trained, base = abstract.state.params, abstract.frozen.base
  latest = checkpoints.latest()
  if latest is not None:
    log.info('resuming from step %d.', latest)
    state = checkpoints.restore(latest, abstract.state, adapt=older_moments.adapt)
    return state, None if base is None else checkpoints.restore_base(base)
  weights = trained if base is None else base
  if path:
    _check_vocabulary(path, store.read_description(path), vocabulary)
    params = store.restore_params(path, weights)
  elif base is not None:
    raise ValueError(
      'adapters are trained beside trained weights and INITIAL_CHECKPOINT_PATH is None: name the '
      'run whose weights they are, or train all weights.'
    )
  else:
    params = init_params(config, seed, weights)
  init = functools.partial(train_step.init_state, optimizer=optimizer, seed=seed)
  start = jax.jit(init, out_shardings=setup.shardings(abstract.state))
  if base is None:
    return start(params), None
  draw = jax.jit(
    functools.partial(lora.init, abstract=trained), out_shardings=setup.shardings(trained)
  )
  return start(draw(jax.random.key(seed))), params


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.train')
