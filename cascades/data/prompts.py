"""Rows for inference: prompts to be answered, and given answers to be scored."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cascades.data import converters
from cascades.data.converters import Convert, ExampleTokens, FeatureConverter, Lengths
from cascades.data.records import AnyRecords, Indices
from cascades.tasks.task import Record
from cascades.tokenizers.conventions import Tokens
from cascades.types import Batch, Prompt

log = logging.getLogger(__name__)

_NO_ANSWER = np.zeros(0, np.int32)


class Bucket(NamedTuple):
  """Rows whose prompts are padded to the same width; at most a batch of them."""

  indices: Int[np.ndarray, 'k']
  width: int


class ScoringBatch(NamedTuple):
  """Candidate answers under teacher forcing. Rows of the batch beyond `rows` are padding.

  Attributes:
    rows: the record of each row of the batch.
    candidates: the number of the candidate among its record's candidates.
    batch: prompts and candidates.
  """

  rows: Int[np.ndarray, 'k']
  candidates: Int[np.ndarray, 'k']
  batch: Batch


def prompt_lengths(
  records: AnyRecords, *, convert: Convert, lengths: Lengths
) -> Int[np.ndarray, 'N']:
  """Number of tokens of every row's prompt as the model reads it, special tokens included."""
  converter = converters.feature_converter(records, convert, lengths)
  trimmed, _ = converter.count_trimmed(records.lengths)
  if trimmed:
    log.warning(
      '%s: %d of %d prompts are longer than %d tokens and are trimmed.',
      *(records.name, trimmed, len(records), lengths['inputs']),
    )
  return converter.prompt_lengths(records.lengths)


def buckets(
  prompt_lengths: Int[np.ndarray, 'N'],
  indices: Indices,
  *,
  batch_size: int,
  widths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
) -> list[Bucket]:
  """Groups rows by length into batches of few widths, so that few shapes are compiled.

  Args:
    prompt_lengths: number of tokens of every prompt.
    indices: numbers of the rows to group.
    batch_size: maximum rows of a bucket.
    widths: permitted widths; a longer prompt gets a bucket of its own length.

  Returns:
    Buckets in order of length.
  """
  numbers = np.asarray(indices, np.int64)
  ordered = numbers[np.argsort(prompt_lengths[numbers], kind='stable')]
  batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
  longest = [int(prompt_lengths[batch].max()) for batch in batches]
  return [
    Bucket(batch, min((w for w in widths if w >= length), default=length))
    for batch, length in zip(batches, longest, strict=True)
  ]


def padded_rows(rows: int, batch_size: int, *, multiple: int = 1) -> int:
  """Rows of the batch that holds `rows` rows: few shapes, and little padding.

  >>> [padded_rows(rows, batch_size=48) for rows in (1, 3, 17, 33, 48)]
  [1, 4, 32, 48, 48]

  Args:
    rows: number of rows, at most `batch_size`.
    batch_size: rows of a full batch.
    multiple: a divisor of `batch_size` and of the result: rows are split over so many devices.

  Returns:
    A power of two times `multiple`, or `batch_size` if that is smaller.
  """
  blocks = -(-rows // multiple)
  return min(multiple << (blocks - 1).bit_length(), batch_size)


def read_prompts(
  records: AnyRecords, bucket: Bucket, *, convert: Convert, lengths: Lengths, batch_size: int
) -> Prompt:
  """Reads a bucket's prompts; repeats the last one up to `batch_size`, to keep the shape."""
  converter = converters.feature_converter(records, convert, lengths)
  prompts = [
    converter.example(inputs, _NO_ANSWER).prompt for inputs, _ in records.tokens(bucket.indices)
  ]
  return converters.pad(prompts + prompts[-1:] * (batch_size - len(prompts)), bucket.width)


def given_targets(record: Record) -> Sequence[Tokens]:
  """The row's own answer, the one candidate of teacher forcing."""
  return [record.targets]


def given_options(record: Record) -> Sequence[Tokens]:
  """The permitted answers, the candidates of rank classification."""
  if not record.options:
    raise ValueError(f'Row {record.row.id} has no options to rank; score its targets instead.')
  return record.options


def score_batches(
  records: AnyRecords,
  indices: Indices,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  multiple: int = 1,
  candidates: Callable[[Record], Sequence[Tokens]] = given_targets,
) -> Iterator[ScoringBatch]:
  """Yields each row's candidates in order, as batches of `batch_size`, the last one padded."""
  converter = converters.feature_converter(records, convert, lengths)
  examples = _candidates(records, np.asarray(indices), converter, candidates, chunk=batch_size)
  while chunk := list(itertools.islice(examples, batch_size)):
    rows, numbers, tokens = zip(*chunk, strict=True)
    padding = padded_rows(len(chunk), batch_size, multiple=multiple) - len(chunk)
    padded = [[example] for example in tokens] + [[]] * padding
    batch = converters.assemble(
      padded, width=converter.width, encoder_width=converter.encoder_width
    )
    yield ScoringBatch(np.array(rows), np.array(numbers), converters.without_segments(batch))


def _candidates(
  records: AnyRecords,
  indices: Int[np.ndarray, 'n'],
  converter: FeatureConverter,
  candidates: Callable[[Record], Sequence[Tokens]],
  *,
  chunk: int,
) -> Iterator[tuple[int, int, ExampleTokens]]:
  """(row, number of the candidate, its tokens), read `chunk` rows at a time."""
  trimmed = 0
  for begin in range(0, len(indices), chunk):
    rows = indices[begin : begin + chunk]
    for index, record in zip(rows.tolist(), records.read(rows), strict=True):
      for number, answer in enumerate(candidates(record)):
        trimmed += len(answer) + len(converter.targets_end) > converter.lengths['targets']
        yield index, number, converter.example(record.inputs, answer)
  if trimmed:
    log.warning(
      '%d scored answers are longer than %s and were trimmed.', trimmed, converter.lengths
    )
