"""What inference reads: prompts to be answered, and given answers to be scored."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cascades.data import converters
from cascades.data.converters import Convert, Example, Layout, Lengths, Tokens
from cascades.data.records import Indices, Readable
from cascades.tasks.task import Record
from cascades.types import Batch, Prompt

log = logging.getLogger(__name__)

_NOTHING = np.zeros(0, np.int32)


class Bucket(NamedTuple):
  """Rows whose prompts are padded to the same width; at most a batch of them."""

  indices: Int[np.ndarray, 'k']
  width: int


class Scored(NamedTuple):
  """Candidate answers under teacher forcing. Rows of the batch beyond `rows` are padding."""

  rows: Int[np.ndarray, 'k']  # whose candidate each row of the batch is
  candidates: Int[np.ndarray, 'k']  # and which one
  batch: Batch


def prompt_lengths(
  records: Readable, *, convert: Convert, lengths: Lengths
) -> Int[np.ndarray, 'N']:
  """Every row's prompt length as the model reads it, special tokens included."""
  layout = converters.of(records, convert, lengths)
  trimmed, _ = layout.trimmed(records.lengths)
  if trimmed:
    log.warning(
      '%s: %d of %d prompts are longer than %d tokens and are trimmed.',
      *(records.name, trimmed, len(records), lengths['inputs']),
    )
  return layout.prompt_lengths(records.lengths)


def buckets(
  prompt_lengths: Int[np.ndarray, 'N'],
  indices: Indices,
  *,
  batch_size: int,
  widths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
) -> list[Bucket]:
  """These rows in order of length, in batches padded to few widths: few shapes are compiled."""
  chosen = np.asarray(indices, np.int64)
  ordered = chosen[np.argsort(prompt_lengths[chosen], kind='stable')]
  batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
  longest = [int(prompt_lengths[batch].max()) for batch in batches]
  return [
    Bucket(batch, min((w for w in widths if w >= length), default=length))
    for batch, length in zip(batches, longest, strict=True)
  ]


def prompts(
  records: Readable, bucket: Bucket, *, convert: Convert, lengths: Lengths, batch_size: int
) -> Prompt:
  """The bucket's prompts; short of a batch, the last one is repeated to keep the shape."""
  layout = converters.of(records, convert, lengths)
  examples = [layout.example(inputs, _NOTHING) for inputs, _ in records.tokens(bucket.indices)]
  found = [converters.prompt_of(example) for example in examples]
  return converters.pad(found + found[-1:] * (batch_size - len(found)), bucket.width)


def given_targets(record: Record) -> Sequence[Tokens]:
  """The row's own answer, the one candidate of teacher forcing."""
  return [record.targets]


def given_options(record: Record) -> Sequence[Tokens]:
  """The permitted answers, the candidates of rank classification."""
  if not record.options:
    raise ValueError(f'Row {record.row.id} has no options to rank; score its targets instead.')
  return record.options


def score_batches(
  records: Readable,
  indices: Indices,
  *,
  convert: Convert,
  lengths: Lengths,
  batch_size: int,
  candidates: Callable[[Record], Sequence[Tokens]] = given_targets,
) -> Iterator[Scored]:
  """Each row's candidates in order, as batches of equal shape."""
  layout = converters.of(records, convert, lengths)
  laid_out = _candidates(records, np.asarray(indices), layout, candidates, chunk=batch_size)
  while some := list(itertools.islice(laid_out, batch_size)):
    rows, numbers, examples = zip(*some, strict=True)
    padded = [[example] for example in examples] + [[]] * (batch_size - len(some))
    batch = converters.assemble(padded, width=layout.width, encoder_width=layout.encoder_width)
    yield Scored(np.array(rows), np.array(numbers), converters.unpacked(batch))


def _candidates(
  records: Readable,
  indices: Int[np.ndarray, 'n'],
  layout: Layout,
  candidates: Callable[[Record], Sequence[Tokens]],
  *,
  chunk: int,
) -> Iterator[tuple[int, int, Example]]:
  trimmed = 0
  for begin in range(0, len(indices), chunk):
    some = indices[begin : begin + chunk]
    for index, record in zip(some.tolist(), records.read(some), strict=True):
      for number, answer in enumerate(candidates(record)):
        trimmed += len(answer) + len(layout.targets_end) > layout.lengths['targets']
        yield index, number, layout.example(record.inputs, answer)
  if trimmed:
    log.warning('%d scored answers are longer than %s and were trimmed.', trimmed, layout.lengths)
