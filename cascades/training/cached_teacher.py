"""Teacher caches in training: checked against a run, and read in place of a large model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from cascades import losses
from cascades.checkpoints import store
from cascades.data.batches import TokenValues
from cascades.data.corpus import Corpus
from cascades.data.records import MixtureRecords, Records
from cascades.tasks.task import Mixture, Task
from cascades.teachers import TeacherError, Teachers
from cascades.tokenizers import vocabularies
from cascades.training import teacher_cache
from cascades.training.answer_format import AnswerFormat
from cascades.training.teacher_cache import CachedAnswers
from cascades.types import Vocabulary

log = logging.getLogger(__name__)

_PRODUCER = (
  'checkpoint_identity', 'vocab_size', 'top_k', 'dtype', 'reference_identity', 'tail_samples',
)  # fmt: skip


class TeacherCache(NamedTuple):
  """A teacher cache that fits a run: of its tasks, vocabulary and lengths, for its loss.

  Attributes:
    directory: the directory that the user named.
    corpus: the run's tasks.
    producer: the large model and the format of its answers, the same for all splits and tasks.
  """

  directory: str
  corpus: Corpus
  producer: Mapping[str, Any]

  @property
  def vocab_size(self) -> int:
    """The number of vocabulary entries that the large model chose among."""
    return self.producer['vocab_size']

  def answers(self, split: MixtureRecords) -> TokenValues:
    """Reader of the answers to all target tokens of given rows of a split.

    Raises ValueError if the answers are to other rows, or incomplete.
    """
    tasks = {task.name: task for task in self.corpus.tasks}
    opened = [self._open(tasks[records.manifest.task], records) for records in split.per_task]
    return CachedAnswers.join(opened).read

  def has_split(self, tasks: Sequence[Task], split: str) -> bool:
    """True if the cache has the split of all these tasks, complete or not."""
    directories = [teacher_cache.location(self.directory, task.name, split) for task in tasks]
    return all((directory / teacher_cache.MANIFEST).exists() for directory in directories)

  def _open(self, task: Task, records: Records) -> CachedAnswers:
    split = records.manifest.split
    directory = teacher_cache.location(self.directory, task.name, split)
    expected = {**self.corpus.identity(task, split), **self.producer}
    teacher_cache.check_identity(directory, teacher_cache.read_manifest(directory), expected)
    answers = CachedAnswers.open(directory)
    if difference := self._difference(answers, directory, records):
      raise ValueError(
        f'the teacher cache {directory} answers other rows than {records.name} has: {difference}. '
        f'Remove it, and make it again with `{teacher_cache.COMMAND}`.'
      )
    return answers

  def _difference(self, answers: CachedAnswers, directory: epath.Path, records: Records) -> str:
    """Difference between the rows of a cache and of records: compares all lengths, some ids."""
    cached, expected = answers.rows['tokens'], self.corpus.target_lengths(records)
    if not np.array_equal(cached, expected):
      return (
        f'{len(cached)} of {int(cached.sum())} target tokens there and '
        f'{len(expected)} of {int(expected.sum())} here'
      )
    ids = teacher_cache.sample_ids(directory)
    rows = zip(ids, records.read(list(ids)), strict=True)
    others = {row: record.row.id for row, record in rows if record.row.id != ids[row]}
    return '; '.join(f'row {n} is {ids[n]!r} there and {id_!r} here' for n, id_ in others.items())


class TeacherCaches(NamedTuple):
  """Teacher caches of one or more large models, which fit a run and each other."""

  caches: tuple[TeacherCache, ...]

  @property
  def vocab_size(self) -> int:
    """The number of vocabulary entries that all large models chose among."""
    return self.caches[0].vocab_size

  def answers(self, split: MixtureRecords) -> TokenValues:
    """Reader of all answers to the target tokens of given rows of a split; see `TeacherCache`."""
    readers = [cache.answers(split) for cache in self.caches]
    return lambda rows: tuple(read(rows) for read in readers)

  def has_split(self, tasks: Sequence[Task], split: str) -> bool:
    """True if all caches have the split of all these tasks, complete or not."""
    return all(cache.has_split(tasks, split) for cache in self.caches)


def check_loss(loss: losses.CascadeLoss, teachers: Teachers, vocab_size: int) -> None:
  """Raises TeacherError, with what to give a program, if `loss` needs more than `teachers` hold."""
  logits, token = np.zeros((1, vocab_size), np.float32), np.zeros(1, np.int32)
  try:
    jax.eval_shape(functools.partial(loss, step=0), logits, teachers, token, token)
  except TeacherError as error:
    remedy = 'Name one as LARGE_CHECKPOINT_PATH, or a cache of its answers as TEACHER_CACHE.'
    if teachers:
      remedy = f'Make a cache of log-probabilities with `{teacher_cache.COMMAND}` and TOP_K=16.'
    if len(teachers) > 1:
      remedy = 'Name its directory alone as TEACHER_CACHE.'
    raise TeacherError(f'{error} {remedy}') from error


def check_alone(loss: losses.CascadeLoss, steps: int, vocab_size: int) -> None:
  """Raises TeacherError, with the way out, if the steps after LARGE_STEPS need a teacher."""
  try:
    check_loss(loss, (), vocab_size)
  except TeacherError as error:
    raise TeacherError(
      f'after LARGE_STEPS={steps} steps there is no teacher, and LOSS needs one: leave LARGE_STEPS '
      'out, or take a loss that does without, such as losses.salt.'
    ) from error


def vocabulary(directory: str, task: Task | Mixture) -> Vocabulary:
  """The large model's vocabulary. Raises FileNotFoundError if there is no cache of the task."""
  first = task.tasks[0] if isinstance(task, Mixture) else task
  location = teacher_cache.location(directory, first.name, 'train')
  teacher_cache.read_manifest(location)
  return vocabularies.load(location)


def load(
  directory: str,
  corpus: Corpus,
  *,
  loss: losses.CascadeLoss,
  vocab_size: int,
  checkpoint: str | None = None,
) -> TeacherCache:
  """The cache below a directory, checked to replace the large model in a run. Reads manifests only.

  Args:
    directory: the directory that `cache_teacher` was given.
    corpus: the run's tasks, vocabulary and lengths; the cache must have the same.
    loss: the cache must hold what it asks for.
    vocab_size: the small model's number of vocabulary entries; the cache must be of no more.
    checkpoint: the large model's run directory, if the cache must be of that one.

  Raises:
    ValueError: naming the differences, if the cache does not fit.
    FileNotFoundError: if there is none.
  """
  producer: dict[str, Any] = {'format': teacher_cache.FORMAT}
  if checkpoint:
    identity = store.identity(*store.locate(checkpoint))
    producer['checkpoint_identity'] = teacher_cache.fingerprint(identity)
  for task in corpus.tasks:
    location = teacher_cache.location(directory, task.name, 'train')
    manifest = teacher_cache.read_manifest(location)
    teacher_cache.check_identity(location, manifest, corpus.identity(task, 'train') | producer)
    if manifest['vocab_size'] > vocab_size:
      raise ValueError(
        f'the teacher cache {location} chooses among {manifest["vocab_size"]} vocabulary entries, '
        f'and the small model has {vocab_size}: make one with VOCAB_SIZE={vocab_size}.'
      )
    producer |= {name: manifest.get(name) for name in _PRODUCER}
    answers = AnswerFormat.of(manifest).abstract(1)
    check_loss(loss, (answers,), manifest['vocab_size'])
  log.info('the large model is that of the teacher cache %s', directory)
  return TeacherCache(directory, corpus, producer)


def load_all(
  directories: Sequence[str],
  corpus: Corpus,
  *,
  loss: losses.CascadeLoss,
  vocab_size: int,
  checkpoint: str | None = None,
) -> TeacherCaches:
  """The caches below directories, each checked as `load` does, and for their loss together.

  Raises:
    ValueError: also if the large models chose among different numbers of vocabulary entries, or
      the loss is not defined for several teachers.
    FileNotFoundError: if one is missing.
  """
  options: dict[str, Any] = {'vocab_size': vocab_size, 'checkpoint': checkpoint}
  caches = tuple(load(directory, corpus, loss=loss, **options) for directory in directories)
  if len(sizes := {cache.vocab_size for cache in caches}) > 1:
    named = ', '.join(f'{cache.vocab_size} in {cache.directory}' for cache in caches)
    raise ValueError(
      f'the teacher caches choose among different numbers of vocabulary entries ({named}): make '
      f'all with VOCAB_SIZE={min(sizes)}.'
    )
  answers = tuple(AnswerFormat.of(cache.producer).abstract(1) for cache in caches)
  check_loss(loss, answers, caches[0].vocab_size)
  return TeacherCaches(caches)
