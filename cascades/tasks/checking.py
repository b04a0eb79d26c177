"""Whether local data are what was published: every row is read, and the rows are counted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import NamedTuple

from cascades.tasks.task import Task


class Checked(NamedTuple):
  """What one split of a task was found to be."""

  task: str
  split: str
  where: str  # empty if there are no data
  rows: int
  published: int | None
  problems: list[str]  # with file and line

  @property
  def is_wrong(self) -> bool:
    return bool(self.problems)

  @property
  def verdict(self) -> str:
    """One word or two."""
    if self.problems:
      return 'malformed'
    if not self.where:
      return 'no data'
    return 'complete' if self.rows == self.published else 'readable'


def check(task: Task) -> Iterator[Checked]:
  """Reads every split; the task should pass over malformed rows, so that all are found."""
  for split in task.splits:
    try:
      where = task.origin.location(split) if task.origin else task.description
    except FileNotFoundError:
      yield Checked(task.name, split, '', 0, task.sizes.get(split), [])
      continue
    rows = 0
    with _warnings() as found:
      try:
        for _ in task.rows(split):
          rows += 1
      except (ValueError, OSError) as error:
        found.append(str(error))
    problems = [text for text in found if 'was published with' not in text]
    yield Checked(task.name, split, where, rows, task.sizes.get(split), problems)


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
  """What the readers warn of, which names file and line."""
  found: list[str] = []
  handler = logging.Handler(logging.WARNING)
  handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
  logger = logging.getLogger('cascades.tasks')
  was = logger.propagate
  logger.addHandler(handler)
  logger.propagate = False
  try:
    yield found
  finally:
    logger.removeHandler(handler)
    logger.propagate = was
