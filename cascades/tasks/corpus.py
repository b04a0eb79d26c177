"""A task as one kind of model reads it: its token records, as batches, prompts and candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from cascades.tasks import feeding, layouts, prompting, records
from cascades.tasks.prompting import Bucket, Scored
from cascades.tasks.records import Indices, Records
from cascades.tasks.shards import Record
from cascades.tasks.task import Task, both
from cascades.types import Architecture, Batch, Prompt, Vocabulary


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Everything that training and inference ask of a task, with their common settings said once."""

  task: Task
  vocabulary: Vocabulary
  architecture: Architecture
  lengths: Mapping[str, int]
  directory: str = records.DIRECTORY

  def open(self, split: str) -> Records:
    """The split's records, materialised by process 0 if they are not there yet."""
    return records.materialize(
      self.task, split, both(self.vocabulary), self.directory, process_index=jax.process_index()
    )

  def training(
    self, start: int, *, batch_size: int, seed: int, pack: int | None = None
  ) -> Iterator[Batch]:
    """This process's rows of the batch of step `start`, and of all that follow."""
    return feeding.train_batches(
      self.open('train'),
      **self._layout,
      batch_size=batch_size,
      seed=seed,
      start_step=start,
      pack=pack,
      **_share(),
    )

  def evaluation(self, split: Records, *, batch_size: int, rows: int | None) -> Iterator[Batch]:
    """This process's share of `rows` rows from all over the split, or of all, each once."""
    return feeding.evaluation_batches(
      split, **self._layout, batch_size=batch_size, rows=rows, **_share()
    )

  def buckets(self, split: Records, indices: Indices, *, batch_size: int) -> list[Bucket]:
    """These rows' prompts, grouped by length."""
    widths = prompting.prompt_lengths(split, **self._layout)
    return prompting.buckets(widths, indices, batch_size=batch_size)

  def prompts(self, split: Records, bucket: Bucket, *, batch_size: int) -> Prompt:
    """A bucket's prompts, padded to one shape."""
    return prompting.prompts(split, bucket, **self._layout, batch_size=batch_size)

  def candidates(
    self,
    split: Records,
    indices: Indices,
    *,
    batch_size: int,
    of: Callable[[Record], Sequence[layouts.Tokens]] = prompting.given_targets,
  ) -> Iterator[Scored]:
    """These rows' given answers, to be scored under teacher forcing."""
    return prompting.score_batches(
      split, indices, **self._layout, batch_size=batch_size, candidates=of
    )

  @property
  def _layout(self) -> dict[str, Any]:
    return {'convert': layouts.CONVERTERS[self.architecture], 'lengths': self.lengths}


def _share() -> dict[str, Any]:
  return {'process_index': jax.process_index(), 'process_count': jax.process_count()}
