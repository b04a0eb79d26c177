"""A task as one kind of model reads it: its token records, as batches, prompts and candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from cascades.data import batches, converters, materialize
from cascades.data import prompts as prompting
from cascades.data.batches import TokenValues
from cascades.data.prompts import Bucket, Scored
from cascades.data.records import Indices, Joined, Readable
from cascades.data.workers import Workers
from cascades.tasks.task import Mixture, Record, Task, both
from cascades.types import Architecture, Batch, Prompt, Vocabulary


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Everything that training and inference ask of a task, with their common settings said once."""

  task: Task | Mixture
  vocabulary: Vocabulary
  architecture: Architecture
  lengths: Mapping[str, int]
  directory: str = materialize.DIRECTORY

  @property
  def tasks(self) -> tuple[Task, ...]:
    """The task, or those of the mixture."""
    return self.task.tasks if isinstance(self.task, Mixture) else (self.task,)

  def open(self, split: str, *, tasks: Sequence[Task] | None = None) -> Joined:
    """The split's records of all tasks, materialised by process 0 if they are not there yet."""
    with Workers() as workers:
      return Joined(
        [
          materialize.materialize(
            task,
            split,
            both(self.vocabulary),
            self.directory,
            process_index=jax.process_index(),
            workers=workers,
          )
          for task in (self.tasks if tasks is None else tasks)
        ]
      )

  def identity(self, task: Task, split: str) -> dict[str, Any]:
    """What decides about the target tokens of a split's rows, and what a model sees before them."""
    decided = materialize.identity(task, split, both(self.vocabulary))
    kept = {name: decided[name] for name in ('definition', 'source', 'vocabulary')}
    asked = {'task': task.name, 'split': split, **kept}
    return asked | {'lengths': dict(self.lengths), 'architecture': self.architecture}

  def target_lengths(self, split: Readable) -> Int[np.ndarray, 'N']:
    """How many tokens of each row are to be predicted."""
    return converters.of(split, **self._layout).target_lengths(split.lengths)

  def training(
    self,
    start: int,
    *,
    batch_size: int,
    seed: int,
    pack: int | None = None,
    teacher: Callable[[Joined], TokenValues] | None = None,
  ) -> Iterator[Batch]:
    """This process's rows of the batch of step `start`, and of all that follow.

    Of the records, `teacher` gives what is known of their targets' tokens.
    """
    joined = self.open('train')
    return batches.train_batches(
      joined,
      **self._layout,
      batch_size=batch_size,
      seed=seed,
      rates=self._rates(joined),
      start_step=start,
      pack=pack,
      teacher=teacher and teacher(joined),
      **_share(),
    )

  def training_ids(
    self, step: int, *, batch_size: int, seed: int, pack: int | None = None
  ) -> list[str]:
    """The examples of all processes in the batch of step `step`, counted from 0 as `start` is."""
    joined = Joined(
      [
        materialize.Records(
          materialize.location(task, 'train', both(self.vocabulary), self.directory)
        )
        for task in self.tasks
      ]
    )
    return batches.train_ids(
      joined,
      step,
      **self._layout,
      batch_size=batch_size,
      seed=seed,
      rates=self._rates(joined),
      pack=pack,
    )

  def _rates(self, joined: Joined) -> list[float]:
    return [task.rate or len(part) for task, part in zip(self.tasks, joined.parts, strict=True)]

  def evaluation(
    self,
    split: Readable,
    *,
    batch_size: int,
    rows: int | None,
    teacher: TokenValues | None = None,
  ) -> Iterator[Batch]:
    """This process's share of `rows` rows from all over the split, or of all, each once."""
    indices = batches.evenly_spaced(split, rows) if rows else None
    return batches.evaluation_batches(
      split, **self._layout, batch_size=batch_size, indices=indices, teacher=teacher, **_share()
    )

  def ordered(self, split: Readable, indices: Indices, *, batch_size: int) -> Iterator[Batch]:
    """These rows in order, the same batches in every process."""
    return batches.evaluation_batches(split, **self._layout, batch_size=batch_size, indices=indices)

  def buckets(self, split: Readable, indices: Indices, *, batch_size: int) -> list[Bucket]:
    """These rows' prompts, grouped by length."""
    widths = prompting.prompt_lengths(split, **self._layout)
    return prompting.buckets(widths, indices, batch_size=batch_size)

  def prompts(self, split: Readable, bucket: Bucket, *, batch_size: int) -> Prompt:
    """A bucket's prompts, padded to one shape."""
    return prompting.prompts(split, bucket, **self._layout, batch_size=batch_size)

  def candidates(
    self,
    split: Readable,
    indices: Indices,
    *,
    batch_size: int,
    of: Callable[[Record], Sequence[converters.Tokens]] = prompting.given_targets,
  ) -> Iterator[Scored]:
    """These rows' given answers, to be scored under teacher forcing."""
    return prompting.score_batches(
      split, indices, **self._layout, batch_size=batch_size, candidates=of
    )

  @property
  def _layout(self) -> dict[str, Any]:
    return {'convert': converters.CONVERTERS[self.architecture], 'lengths': self.lengths}


def _share() -> dict[str, Any]:
  return {'process_index': jax.process_index(), 'process_count': jax.process_count()}
