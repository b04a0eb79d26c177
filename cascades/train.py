"""Train a model, alone or aware of its place in a cascade.

    python -m cascades.train --gin_file=recipes/demo_large.gin
    python -m cascades.train --gin_file=recipes/demo_small.gin --gin.LOSS=@losses.cat_xent

With a LARGE_CHECKPOINT_PATH the frozen large model runs beside the small one in every step. The
run directory MODEL_DIR gets config.gin, model-info.txt, model.json, the vocabulary, checkpoint_N/
and TensorBoard events in train/. The same command goes on from the last checkpoint, bit by bit.
With ADAPTERS only those are trained (`lora`) and saved, beside the frozen weights in base/; other
programs read such a run as the plain model that the two make.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax import Array

from cascades import (
  decoding,
  files,
  loop,
  lora,
  losses,
  metrics,
  optimizers,
  partitioning,
  profiling,
  progress,
  train_step,
)
from cascades.checkpoints import huggingface, store
from cascades.models import configs
from cascades.tasks import reading, records, vocabularies
from cascades.tasks.corpus import Corpus
from cascades.tasks.task import Mixture, Task
from cascades.train_step import Definition, Frozen, TrainState
from cascades.types import Batch, ModelConfig, Params, Prompt, Vocabulary

log = logging.getLogger(__name__)

VALIDATION = 'validation/'  # begins the names of what validation finds
LOGITS_PER_ROW = 1 << 22  # of a block of the loss, unless its length is given


class Validation(NamedTuple):
  """When and on how many rows a run is validated: with teacher forcing, without dropout."""

  every: int = 500
  rows: int = 1024
  split: str = 'validation'
  decoded_rows: int = 0  # that many answers are also decoded greedily and judged by the metrics


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
  initial_checkpoint_path: str | None = None,
  adapters: lora.Config | None = None,
  normalizer: train_step.Normalizer | float = train_step.valid_tokens,
  microbatches: int = 1,
  block_length: int | None = None,
  pack_length: int | None = None,
  seed: int = 0,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
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
  vocabulary = vocabulary or _vocabulary_of(initial_checkpoint_path or large_checkpoint_path, task)
  directory = files.absolute(model_dir)
  description = _describe(small, vocabulary, adapters)
  store.check_description(directory, description)
  start = store.latest(directory) or 0
  if start >= train_steps:
    log.info('%s is finished: it holds a checkpoint of step %d.', model_dir, start)
    return []
  with store.Checkpoints(directory, keep=keep) as checkpoints, partitioning.use(mesh(), rules):
    large, large_params = _large(large_checkpoint_path, small, vocabulary, rules, large_dtype)
    transform = optimizer(learning_rate)
    graph, state, base = _initial_state(
      small, adapters, vocabulary, rules, transform, seed, checkpoints, initial_checkpoint_path
    )
    frozen = Frozen(large_params, base)
    models: dict[str, Any] = {
      'small': Definition(graph, small.vocab_size, adapters.scale if adapters else 1.0),
      'large': large,
      'loss': loss,
      'block_length': block_length or max(1, LOGITS_PER_ROW // small.vocab_size),
    }
    step = functools.partial(
      train_step.train_step,
      **models,
      optimizer=transform,
      normalizer=normalizer,
      microbatches=microbatches,
    )
    corpus = Corpus(task, vocabulary, small.architecture, task_feature_lengths, records_dir)
    batches = corpus.training(start, batch_size=batch_size, seed=seed, pack=pack_length)
    validate = _validator(validation, corpus, models, frozen, batch_size)
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
        _placing(jax.jit(step, donate_argnums=0, out_shardings=(_places(state), None)), frozen),
        batches,
        start=start,
        total=train_steps,
        every=loop.Every(log_every, validation.every if validation else 0, save_every),
        report=_reporter(train_steps, learning_rate, events),
        validate=validate,
        save=lambda number, state, values: checkpoints.save(
          number, state, validation_loss=values.get(f'{VALIDATION}loss')
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


def _vocabulary_of(path: str | None, task: Task | Mixture) -> Vocabulary:
  return task.vocabulary() if path is None else vocabularies.load(store.locate(path)[0])


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


def _large(
  path: str | None,
  small: ModelConfig,
  vocabulary: Vocabulary,
  rules: partitioning.Rules,
  dtype: str,
) -> tuple[Definition | None, Params]:
  """The large model of a run directory, placed by the same rules as the small one."""
  if path is None:
    return None, None
  description = store.read_description(path)
  _check_vocabulary(path, description, vocabulary)
  config = configs.from_description(description['model'])
  if config.architecture != small.architecture:
    raise ValueError(
      f'the large model of {path} is {config.architecture} and the small one '
      f'{small.architecture}: to be compared token by token they must read their prompts alike.'
    )
  graph, abstract = partitioning.abstract_model(config, rules, dtype=dtype)
  return Definition(graph, config.vocab_size), store.restore_params(path, abstract)


def _initial_state(
  small: ModelConfig,
  adapters: lora.Config | None,
  vocabulary: Vocabulary,
  rules: partitioning.Rules,
  transform: Any,
  seed: int,
  checkpoints: store.Checkpoints,
  initial_checkpoint_path: str | None,
) -> tuple[nnx.GraphDef, TrainState, Params]:
  """Where the run starts. The order matters: its own checkpoint, another run's weights, chance.

  With adapters those are its state, and the weights beside them, which come last here, their base.
  """
  graph, whole = partitioning.abstract_model(small, rules, dtype=(adapters or lora.Config()).dtype)
  trained = lora.abstract(whole, configs.linear_maps(small), adapters) if adapters else whole
  init = functools.partial(train_step.init_state, optimizer=transform, seed=seed)
  shapes = partitioning.like_parameters(jax.eval_shape(init, trained), trained)
  start = jax.jit(init, out_shardings=_places(shapes))
  latest = checkpoints.latest()
  if latest is not None:
    log.info('going on from step %d.', latest)
    state = checkpoints.restore(latest, shapes)
    return graph, state, checkpoints.restore_base(whole) if adapters else None
  if initial_checkpoint_path:
    _check_vocabulary(
      initial_checkpoint_path, store.read_description(initial_checkpoint_path), vocabulary
    )
    params = store.restore_params(initial_checkpoint_path, whole)
  elif adapters:
    raise ValueError(
      'adapters learn beside trained weights and INITIAL_CHECKPOINT_PATH is None: name the run '
      'whose weights they are, or train all weights.'
    )
  else:
    params = partitioning.init_params(small, seed, whole)
  if not adapters:
    return graph, start(params), None
  draw = jax.jit(functools.partial(lora.init, abstract=trained), out_shardings=_places(trained))
  return graph, start(draw(jax.random.key(seed))), params


def _places(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _placing(compiled: Callable[..., Any], frozen: Frozen) -> Callable[..., Any]:
  """The compiled step as the loop calls it: with this process's rows."""

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, train_step.Totals]:
    state, totals = compiled(state, frozen, partitioning.place_batch(batch))
    partitioning.wait_on_virtual_devices(totals)
    return state, totals

  return step


def _validator(
  validation: Validation | None,
  corpus: Corpus,
  models: Mapping[str, Any],
  frozen: Frozen,
  batch_size: int,
) -> Callable[[TrainState], loop.Values]:
  if validation is None:
    return lambda _: {}
  tasks = [task for task in corpus.tasks if validation.split in task.splits]
  if not tasks:
    corpus.tasks[0].require(validation.split)
  split = corpus.open(validation.split, tasks=tasks)
  step = jax.jit(functools.partial(train_step.eval_step, **models))
  decode = _decoder(
    corpus, tasks, split, models['small'], frozen.base, validation.decoded_rows, batch_size
  )

  def validate(state: TrainState) -> loop.Values:
    sums = []
    for batch in corpus.evaluation(split, batch_size=batch_size, rows=validation.rows):
      sums.append(step(state.params, frozen, partitioning.place_batch(batch)))
      partitioning.wait_on_virtual_devices(sums)
    found = loop.means(jax.device_get(sums)) | decode(state.params)
    return {VALIDATION + name: value for name, value in found.items()}

  return validate


def _decoder(
  corpus: Corpus,
  tasks: Sequence[Task],
  split: reading.Joined,
  small: Definition,
  base: Params,
  rows: int,
  batch_size: int,
) -> Callable[[Params], loop.Values]:
  """Greedy answers to the first `rows` rows, equally many of each task, judged by its metrics."""

  @jax.jit
  def generate(params: Params, base: Params, prompt: Prompt) -> Array:
    return decoding.generate(
      small.bind(params, base),
      prompt,
      max_len=corpus.lengths['targets'],
      eos_id=corpus.vocabulary.eos_ids,
    ).tokens

  def answers(params: Params, part: reading.Records) -> Iterator[tuple[tuple[str, ...], str]]:
    first = range(min(-(-rows // len(tasks)), len(part)))
    for bucket in corpus.buckets(part, first, batch_size=batch_size):
      prompt = partitioning.place_whole(corpus.prompts(part, bucket, batch_size=batch_size))
      tokens = partitioning.fetch(generate(params, base, prompt))[: len(bucket.indices)]
      for record, ids in zip(part.read(bucket.indices), tokens, strict=True):
        yield record.row.answers, corpus.vocabulary.decode(ids)

  def decode(params: Params) -> loop.Values:
    found = {}
    for task, part in zip(tasks, split.parts, strict=True):
      answered = list(answers(params, part)) if rows else []
      for judge in map(metrics.by_name, task.metrics if answered else ()):
        name = judge.name if len(tasks) == 1 else f'{task.name}/{judge.name}'
        sums = np.sum([judge.statistics(*answer) for answer in answered], axis=0)
        found[name] = float(judge.finalize(sums))
    return found

  return decode


def _reporter(
  total: int, learning_rate: optimizers.Schedule, events: progress.Events
) -> Callable[[int, loop.Values, float], None]:
  """Lines for the terminal, and the same numbers for TensorBoard."""
  meter = progress.Meter(total)
  began = time.monotonic()

  def report(step: int, values: loop.Values, tokens: float) -> None:
    rates = meter.update(step, tokens)
    if jax.process_index() != 0:
      return
    if not values:
      log.info('step %d, compiling included: %.1f s', step, time.monotonic() - began)
      return
    values = values | {'lr': float(learning_rate(step - 1))}
    validation = {k[len(VALIDATION) :]: v for k, v in values.items() if k.startswith(VALIDATION)}
    training = {k: v for k, v in values.items() if not k.startswith(VALIDATION)}
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
