"""Tokenization of rows to token records, a block of rows at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from cascades.tasks.task import Record, Row, Vocabularies

T = TypeVar('T')

ROWS_PER_SHARD = 1 << 14  # `Tokenize` takes the number of a shard of so many rows
ROWS_TOGETHER = 256  # tokenized at once


def row_by_row(rows: Iterable[Row], vocabularies: Vocabularies, shard: int) -> Iterator[Record]:
  """Tokenizes the inputs, the first answer and the options of each row."""
  del shard
  for block in blocks(rows, ROWS_TOGETHER):
    inputs = vocabularies.inputs.encode_all([row.inputs for row in block])
    targets = vocabularies.targets.encode_all([row.targets for row in block])
    options = iter(vocabularies.targets.encode_all([o for row in block for o in row.options]))
    for row, prompt, answer in zip(block, inputs, targets, strict=True):
      yield Record(row, prompt, answer, tuple(itertools.islice(options, len(row.options))))


def blocks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
  """Groups items into lists of `size`; the last one may be shorter."""
  stream = iter(rows)
  while block := list(itertools.islice(stream, size)):
    yield block
