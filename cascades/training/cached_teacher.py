"""The large model's part in training, read from a teacher cache instead of run."""

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
from cascades.training.teacher_cache import Answers, Held
from cascades.types import Vocabulary

log = logging.getLogger(__name__)

_MADE = ('checkpoint_identity', 'vocab_size', 'top_k', 'dtype')


class Cache(NamedTuple):
  """A teacher cache that fits a run: of its tasks, vocabulary and lengths, for its loss."""

  directory: str
  corpus: Corpus
  made: Mapping[str, Any]  # by which model, and what is held: the same for all splits and tasks

  @property
  def vocab_size(self) -> int:
    """How many entries the large model's choices are among."""
    return self.made['vocab_size']

  def answers(self, split: MixtureRecords) -> TokenValues:
    """The answers to all target tokens of given rows of a split.

    Raises ValueError if they are of other rows, or not whole.
    """
    tasks = {task.name: task for task in self.corpus.tasks}
    parts = [self._part(tasks[part.manifest.task], part) for part in split.per_task]
    return Answers.join(parts).read

  def holds(self, tasks: Sequence[Task], split: str) -> bool:
    """Whether it has the split of all these tasks, finished or not."""
    places = [teacher_cache.location(self.directory, task.name, split) for task in tasks]
    return all((place / teacher_cache.MANIFEST).exists() for place in places)

  def _part(self, task: Task, part: Records) -> Answers:
    split = part.manifest.split
    directory = teacher_cache.location(self.directory, task.name, split)
    manifest = teacher_cache.read_manifest(directory)
    teacher_cache.refuse_others(
      directory, manifest, {**self.corpus.identity(task, split), **self.made}
    )
    answers = Answers.open(directory)
    if difference := self._difference(answers, directory, part):
      raise ValueError(
        f'the teacher cache {directory} answers other rows than {part.name} has: {difference}. '
        f'Remove it, and make it again with `{teacher_cache.MAKE}`.'
      )
    return answers

  def _difference(self, answers: Answers, directory: epath.Path, part: Records) -> str:
    """Where the rows of a cache are not those of the records: every length, some ids."""
    found, expected = answers.rows['tokens'], self.corpus.target_lengths(part)
    if not np.array_equal(found, expected):
      return (
        f'{len(found)} of {int(found.sum())} target tokens there and '
        f'{len(expected)} of {int(expected.sum())} here'
      )
    ids = teacher_cache.outermost_ids(directory)
    rows = zip(ids, part.read(list(ids)), strict=True)
    others = {row: record.row.id for row, record in rows if record.row.id != ids[row]}
    return '; '.join(f'row {n} is {ids[n]!r} there and {id_!r} here' for n, id_ in others.items())


def check_loss(loss: losses.CascadeLoss, teachers: Teachers, vocab_size: int) -> None:
  """Raises TeacherError, with what to give a program, if `loss` needs more than `teachers` hold."""
  logits, token = np.zeros((1, vocab_size), np.float32), np.zeros(1, np.int32)
  try:
    jax.eval_shape(functools.partial(loss, step=0), logits, teachers, token, token)
  except TeacherError as error:
    remedy = (
      f'Make a cache of log-probabilities with `{teacher_cache.MAKE}` and TOP_K=16.'
      if teachers
      else 'Name one as LARGE_CHECKPOINT_PATH, or a cache of its answers as TEACHER_CACHE.'
    )
    raise TeacherError(f'{error} {remedy}') from error


def vocabulary(directory: str, task: Task | Mixture) -> Vocabulary:
  """The large model's."""
  first = task.tasks[0] if isinstance(task, Mixture) else task
  place = teacher_cache.location(directory, first.name, 'train')
  teacher_cache.read_manifest(place)  # raises if there is no cache
  return vocabularies.load(place)


def fitting(
  directory: str,
  corpus: Corpus,
  *,
  loss: losses.CascadeLoss,
  vocab_size: int,
  checkpoint: str | None = None,
) -> Cache:
  """The cache below a directory, if it can stand for the large model in a run.

  It must be of the run's tasks, vocabulary and lengths, hold what `loss` asks for, choose among no
  more than the small model's `vocab_size` entries and, if `checkpoint` is given, be of that one.
  Raises ValueError, naming what differs; nothing is read but manifests.
  """
  made: dict[str, Any] = {'format': teacher_cache.FORMAT}
  if checkpoint:
    identity = store.identity(*store.locate(checkpoint))
    made['checkpoint_identity'] = teacher_cache.fingerprint(identity)
  for task in corpus.tasks:
    place = teacher_cache.location(directory, task.name, 'train')
    found = teacher_cache.read_manifest(place)
    teacher_cache.refuse_others(place, found, corpus.identity(task, 'train') | made)
    if found['vocab_size'] > vocab_size:
      raise ValueError(
        f'the teacher cache {place} is of choices among {found["vocab_size"]} vocabulary entries, '
        f'and the small model has {vocab_size}: make one with VOCAB_SIZE={vocab_size}.'
      )
    made |= {name: found[name] for name in _MADE}
    answers = Held(found['top_k'], found['dtype']).abstract(1)
    check_loss(loss, (answers,), found['vocab_size'])
  log.info('the large model is that of the teacher cache %s', directory)
  return Cache(directory, corpus, made)
