"""A task as one kind of model reads it: its token records as batches, prompts and candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from cascades.data import batches, converters, materialize, scores
from cascades.data.answer_sources import AnswerSources, Unanswered
from cascades.data.batches import TokenValues
from cascades.data.prompts import (
  Bucket,
  ScoringBatch,
  buckets,
  given_targets,
  padded_rows,
  prompt_lengths,
  read_prompts,
  score_batches,
)
from cascades.data.records import AnyRecords, Indices, MixtureRecords, Records
from cascades.data.workers import Workers
from cascades.runtime import partitioning, ranges
from cascades.runtime.block_cache import BlockCache
from cascades.tasks.task import Mixture, Record, Task, both
from cascades.tokenizers.conventions import Tokens
from cascades.types import Architecture, Batch, Prompt, Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """The rows that a program reads, and the shape of its batches.

  Attributes:
    task: Task or mixture; None in programs that read no rows.
    lengths: Most tokens of each feature of an example, {'inputs': 16, 'targets': 16}.
    batch_size: Rows of a batch, of all processes together.
    pack_length: Tokens of a training row that holds several examples of a decoder-only model; None
      puts one example into each row.
    records_dir: Directory of the token records, which are written there on first use.
    selection: Training rows that are read in place of all; None reads all.
    sources: Origin of the answers that training learns from.
    cache: Blocks of token records in an object store.
  """

  task: Task | Mixture | None = None
  lengths: Mapping[str, int]
  batch_size: int
  pack_length: int | None = None
  records_dir: str = materialize.DIRECTORY
  selection: scores.Selection | None = None
  sources: AnswerSources = AnswerSources()
  cache: BlockCache = BlockCache()

  def __post_init__(self) -> None:
    if self.task is not None and set(self.lengths) != {'inputs', 'targets'}:
      raise ValueError(
        f'TASK_FEATURE_LENGTHS={dict(self.lengths)!r:.80} must give the most tokens of inputs and '
        "of targets, as {'inputs': 16, 'targets': 16}."
      )
    lengths = {f'TASK_FEATURE_LENGTHS[{name!r}]': length for name, length in self.lengths.items()}
    ranges.check(
      {'BATCH_SIZE': self.batch_size, 'PACK_LENGTH': self.pack_length, **lengths},
      least=1,
      below=1 << 31,
      integer=True,
    )

  @property
  def required_task(self) -> Task | Mixture:
    """The task. Raises ValueError if there is none."""
    if self.task is None:
      raise ValueError('no task is given: name one as MIXTURE_OR_TASK_NAME, or give a TASK.')
    return self.task

  def corpus(
    self, vocabulary: Vocabulary, architecture: Architecture, *, task: Task | None = None
  ) -> Corpus:
    """The rows as one kind of model reads them, of another `task` if one is given."""
    return Corpus(
      task or self.required_task,
      vocabulary,
      architecture,
      self.lengths,
      self.records_dir,
      self.cache,
    )


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Everything that training and inference read of a task, with their common settings.

  Attributes:
    task: a task or a mixture.
    vocabulary: vocabulary of inputs and targets.
    architecture: 'encoder_decoder' or 'decoder_only'.
    lengths: maximum tokens of 'inputs' and 'targets', end of sequence included.
    directory: directory of the token records of all tasks.
    cache: blocks of token records in an object store.
  """

  task: Task | Mixture
  vocabulary: Vocabulary
  architecture: Architecture
  lengths: Mapping[str, int]
  directory: str = materialize.DIRECTORY
  cache: BlockCache = BlockCache()

  @property
  def tasks(self) -> tuple[Task, ...]:
    """The task, or the tasks of the mixture."""
    return self.task.tasks if isinstance(self.task, Mixture) else (self.task,)

  def open(self, split: str, *, tasks: Sequence[Task] | None = None) -> MixtureRecords:
    """Opens the split's records; process 0 materializes them first if they are missing.

    Args:
      split: name of a split of every task.
      tasks: the tasks to read; None reads all of the corpus.

    Returns:
      The records of all tasks.

    Raises:
      ValueError: if a task does not have the split, or its rows cannot be used.
      FileNotFoundError: if a task's data are missing.
    """
    with Workers() as workers:
      return MixtureRecords(
        [
          materialize.materialize(
            task,
            split,
            both(self.vocabulary),
            self.directory,
            process_index=jax.process_index(),
            workers=workers,
            cache=self.cache,
          )
          for task in (self.tasks if tasks is None else tasks)
        ]
      )

  def identity(self, task: Task, split: str) -> dict[str, Any]:
    """Everything that determines the target tokens of a split's rows and their contexts, as JSON.

    A cache of a teacher's answers is valid for records of the same identity.
    """
    identity = materialize.identity(task, split, both(self.vocabulary))
    content = {name: identity[name] for name in ('definition', 'source', 'vocabulary')}
    settings = {'lengths': dict(self.lengths), 'architecture': self.architecture}
    return {'task': task.name, 'split': split} | content | settings

  def target_lengths(self, split: AnyRecords) -> Int[np.ndarray, 'N']:
    """Number of predicted tokens of each row."""
    return converters.feature_converter(split, **self._features).target_lengths(split.lengths)

  def training(
    self,
    start: int,
    *,
    batch_size: int,
    seed: int,
    pack: int | None = None,
    pool: scores.SelectedRows | None = None,
    teacher: Callable[[MixtureRecords], TokenValues] | None = None,
    sources: AnswerSources = AnswerSources(),
    vocab_size: int | None = None,
  ) -> Iterator[Batch | Unanswered]:
    """Yields this process's rows of the batch of step `start` and of all later steps.

    Args:
      start: step of the first batch, counted from 0.
      batch_size: rows of all processes together.
      seed: seed of the order of examples and of tasks.
      pack: length of packed rows; None puts one example into a row.
      pool: rows that the first steps read, from `pool`; None reads all.
      teacher: gives, for the records, a function to the values of their target tokens.
      sources: answers that the steps learn from; of those to be sampled, prompts are yielded.
      vocab_size: entries that the models have, by default those of the vocabulary.
    """
    joined = self.open('train')
    return batches.train_batches(
      joined,
      **self._features,
      batch_size=batch_size,
      seed=seed,
      rates=self._rates(joined),
      start_step=start,
      pack=pack,
      pool=pool,
      readers=sources.readers(
        joined,
        self.vocabulary,
        seed,
        teacher=teacher and teacher(joined),
        vocab_size=vocab_size,
      ),
      process=_process(),
    )

  def pool(self, selection: scores.Selection | None) -> scores.SelectedRows | None:
    """Rows that a selection takes. ValueError or FileNotFoundError if it has no scores of them."""
    if selection is None:
      return None
    rows = {records.manifest.task: len(records) for records in self.open('train').per_task}
    identities = {task.name: self.identity(task, 'train') for task in self.tasks}
    return scores.read_pool(selection, identities, rows)

  def training_ids(
    self,
    step: int,
    *,
    batch_size: int,
    seed: int,
    pack: int | None = None,
    pool: scores.SelectedRows | None = None,
  ) -> list[str]:
    """Ids of the examples of all processes in the batch of step `step`, counted from 0."""
    vocabularies = both(self.vocabulary)
    joined = MixtureRecords(
      [
        Records(materialize.location(task, 'train', vocabularies, self.directory), self.cache)
        for task in self.tasks
      ]
    )
    return batches.train_ids(
      joined,
      step,
      **self._features,
      batch_size=batch_size,
      seed=seed,
      rates=self._rates(joined),
      pack=pack,
      pool=pool,
    )

  def _rates(self, joined: MixtureRecords) -> list[float]:
    return [
      task.rate or len(records) for task, records in zip(self.tasks, joined.per_task, strict=True)
    ]

  def evaluation(
    self,
    split: AnyRecords,
    *,
    batch_size: int,
    rows: int | None,
    teacher: TokenValues | None = None,
  ) -> Iterator[Batch]:
    """Yields this process's share of `rows` evenly spaced rows, or of all rows, each once."""
    indices = batches.evenly_spaced(split, rows) if rows else None
    return batches.evaluation_batches(
      split,
      **self._features,
      batch_size=batch_size,
      indices=indices,
      teacher=teacher,
      process=_process(),
    )

  def ordered(self, split: AnyRecords, indices: Indices, *, batch_size: int) -> Iterator[Batch]:
    """Yields batches of these rows in order, the same batches in every process.

    Fewer rows than a batch make a smaller one, for the active mesh.
    """
    rows = min(len(indices), batch_size)
    batch_size = padded_rows(rows, batch_size, multiple=partitioning.row_shards())
    return batches.evaluation_batches(
      split, **self._features, batch_size=batch_size, indices=indices
    )

  def buckets(self, split: AnyRecords, indices: Indices, *, batch_size: int) -> list[Bucket]:
    """Groups the prompts of these rows by length."""
    lengths = prompt_lengths(split, **self._features)
    return buckets(lengths, indices, batch_size=batch_size)

  def prompts(self, split: AnyRecords, bucket: Bucket, *, batch_size: int) -> Prompt:
    """Reads a bucket's prompts, padded to one of a few shapes; for the active mesh."""
    rows = padded_rows(len(bucket.indices), batch_size, multiple=partitioning.row_shards())
    return read_prompts(split, bucket, **self._features, batch_size=rows)

  def candidates(
    self,
    split: AnyRecords,
    indices: Indices,
    *,
    batch_size: int,
    of: Callable[[Record], Sequence[Tokens]] = given_targets,
  ) -> Iterator[ScoringBatch]:
    """Yields given answers of these rows, to be scored under teacher forcing on the active mesh.

    Args:
      split: the records.
      indices: numbers of rows.
      batch_size: rows of a batch.
      of: gives a record's candidates: `prompts.given_targets` or `prompts.given_options`.
    """
    return score_batches(
      split,
      indices,
      **self._features,
      batch_size=batch_size,
      multiple=partitioning.row_shards(),
      candidates=of,
    )

  @property
  def _features(self) -> dict[str, Any]:
    return {'convert': converters.CONVERTERS[self.architecture], 'lengths': self.lengths}


def _process() -> batches.Process:
  return batches.Process(jax.process_index(), jax.process_count())
