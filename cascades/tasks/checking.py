"""Comparison of local data with published sizes, by reading and counting every row."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import NamedTuple

from cascades.tasks.task import Task


class SplitCheck(NamedTuple):
  """Result of reading one split of a task.

  Attributes:
    task: name of the task.
    split: name of the split.
    where: file or directory; empty if there are no data.
    rows: number of usable rows.
    published: published number of rows.
    problems: a message for each malformed row, with file and line.
  """

  task: str
  split: str
  where: str
  rows: int
  published: int | None
  problems: list[str]

  @property
  def is_wrong(self) -> bool:
    return bool(self.problems)

  @property
  def verdict(self) -> str:
    """One of malformed, no data, complete, readable."""
    if self.problems:
      return 'malformed'
    if not self.where:
      return 'no data'
    return 'complete' if self.rows == self.published else 'readable'


def check(task: Task) -> Iterator[SplitCheck]:
  """Reads every split. The task should skip malformed rows, so that all of them are reported."""
  for split in task.splits:
    try:
      where = task.origin.location(split) if task.origin else task.description
    except FileNotFoundError:
      yield SplitCheck(task.name, split, '', 0, task.sizes.get(split), [])
      continue
    rows = 0
    with _warnings() as messages:
      try:
        for _ in task.rows(split):
          rows += 1
      except (ValueError, OSError) as error:
        messages.append(str(error))
    problems = [text for text in messages if 'was published with' not in text]
    yield SplitCheck(task.name, split, where, rows, task.sizes.get(split), problems)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
  """Collects the readers' warnings, which have file and line."""
  messages: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
  logger = logging.getLogger('cascades.tasks')
  was = logger.propagate
  logger.addHandler(handler)
  logger.propagate = False
  try:
    yield messages
  finally:
    logger.removeHandler(handler)
    logger.propagate = was
