"""Validation during a run: the loss on held-out rows, and a few answers, judged."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax import Array

from cascades import decoding, losses, metrics
from cascades.data import records
from cascades.data.corpus import Corpus
from cascades.runtime import partitioning, ranges, stopping
from cascades.tasks.task import Task
from cascades.training import loop, train_step
from cascades.training.cached_teacher import TeacherCaches
from cascades.training.setup import AbstractRun
from cascades.training.train_step import Frozen, ModelDef, TrainState
from cascades.types import Params, Prompt

log = logging.getLogger(__name__)

PREFIX = 'validation/'  # of the names of validation's values


@dataclasses.dataclass(frozen=True)
class Validation:
  """Validation during a run: with teacher forcing, without dropout.

  Attributes:
    every: steps between two validations; 0 for none.
    rows: rows of the split, evenly spaced.
    split: the tasks' split.
    decoded_rows: rows whose answers are also decoded greedily and judged by the tasks' metrics.
  """

  every: int = 500
  rows: int = 1024
  split: str = 'validation'
  decoded_rows: int = 0

  def __post_init__(self) -> None:
    ranges.check({'VALIDATE_EVERY': self.every}, least=0, integer=True)
    ranges.check({'VALIDATION_ROWS': self.rows}, least=1, integer=True)
    ranges.check({'train.Validation.decoded_rows': self.decoded_rows}, least=0, integer=True)


def validator(
  validation: Validation | None,
  corpus: Corpus,
  abstract: AbstractRun,
  frozen: Frozen,
  *,
  loss: losses.CascadeLoss,
  block_length: int | None,
  batch_size: int,
  cache: TeacherCaches | None = None,
  on_nan: Callable[[Exception], None] = stopping.go_on,
) -> Callable[[TrainState], loop.Values]:
  """Builds the function from a state to the values of its validation; none if it is None.

  A loss whose weights follow a schedule is that of the state's step. If `cache` lacks the split,
  there is no large model: the loss is then the plain cross-entropy of all tokens, without shares
  of agreement. Beside a large model its accuracy is reported too, and once a warning if it is no
  better than the small one.

  Raises:
    ValueError: if no task has the split.
  """
  if validation is None or not validation.every:
    return lambda _: {}
  tasks = [task for task in corpus.tasks if validation.split in task.splits]
  if not tasks:
    raise ValueError(
      f'no task has a split {validation.split!r} to validate on ({_splits(corpus.tasks)}): add it '
      'to the task, name another as train.Validation.split, or train without validations: '
      'VALIDATE_EVERY=0.'
    )
  split = corpus.open(validation.split, tasks=tasks)
  teacher = None
  if cache and cache.has_split(tasks, validation.split):
    teacher = cache.answers(split)
  elif cache:
    log.warning(
      'the teacher cache has no split %s: validation reports the plain cross-entropy (xent).',
      validation.split,
    )
    loss = losses.xent
  step = jax.jit(
    functools.partial(train_step.eval_step, **abstract.models, loss=loss, block_length=block_length)
  )
  decode = _decoder(
    corpus, tasks, split, abstract.small, frozen.base, validation.decoded_rows, batch_size
  )

  rows = validation.rows
  compare = _large_warning()

  def validate(state: TrainState) -> loop.Values:
    sums = []
    for batch in corpus.evaluation(split, batch_size=batch_size, rows=rows, teacher=teacher):
      sums.append(step(state.params, frozen, partitioning.place_batch(batch), state.step))
      partitioning.wait_on_virtual_devices(sums)
    fetched = jax.device_get(sums)
    values = loop.means(fetched) | loop.large_means(fetched) | decode(state.params)
    compare(values)
    if not math.isfinite(values['loss']):
      on_nan(
        FloatingPointError(
          f'the validation loss of step {int(state.step)} is {values["loss"]}: logits are not '
          'finite. A checkpoint of this step is never the best, and earlier ones stay: resume from '
          'one with a lower learning rate, or with clipping (clip_norm).'
        )
      )
    return {PREFIX + name: value for name, value in values.items()}

  return validate


def _splits(tasks: Sequence[Task]) -> str:
  return '; '.join(f'{task.name} has {", ".join(task.splits)}' for task in tasks)


def _large_warning() -> Callable[[loop.Values], None]:
  """A function of validation values that warns at most once: the large model is no better."""
  is_said = False

  def warn(values: loop.Values) -> None:
    nonlocal is_said
    pairs = [
      (values[f'large_{name}'], values[name])
      for name in ('row_accuracy', 'accuracy')
      if f'large_{name}' in values
    ]
    if is_said or not pairs or any(large > small for large, small in pairs):
      return
    is_said = True
    numbers = ', '.join(
      f'{large:.4f} against {small:.4f} of the {unit}'
      for (large, small), unit in zip(pairs, ('rows', 'tokens'), strict=True)
    )
    only_large = values.get('only_large', 0.0)
    gain = (
      f'can gain only among the {only_large:.1%} of the tokens that it alone predicts'
      if only_large
      else 'no threshold can gain here'
    )
    log.warning(
      'THE LARGE MODEL IS NOT BETTER than the small one on the validation rows (right: %s). '
      'Deferring to it costs more, and %s: train or choose a better large model, or validate on '
      'more rows (VALIDATION_ROWS).',
      *(numbers, gain),
    )

  return warn


def _decoder(
  corpus: Corpus,
  tasks: Sequence[Task],
  split: records.MixtureRecords,
  small: ModelDef,
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

  def answers(
    params: Params, rows_of_task: records.Records
  ) -> Iterator[tuple[tuple[str, ...], str]]:
    first = range(min(-(-rows // len(tasks)), len(rows_of_task)))
    for bucket in corpus.buckets(rows_of_task, first, batch_size=batch_size):
      prompt = partitioning.place_whole(corpus.prompts(rows_of_task, bucket, batch_size=batch_size))
      tokens = partitioning.fetch(generate(params, base, prompt))[: len(bucket.indices)]
      for record, ids in zip(rows_of_task.read(bucket.indices), tokens, strict=True):
        yield record.row.answers, corpus.vocabulary.decode(ids)

  def decode(params: Params) -> loop.Values:
    values = {}
    for task, rows_of_task in zip(tasks, split.per_task, strict=True):
      answered = list(answers(params, rows_of_task)) if rows else []
      for judge in map(metrics.by_name, task.metrics if answered else ()):
        name = judge.name if len(tasks) == 1 else f'{task.name}/{judge.name}'
        sums = np.sum([judge.statistics(*answer) for answer in answered], axis=0)
        values[name] = float(judge.finalize(sums))
    return values

  return decode
