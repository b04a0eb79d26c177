"""What inference reads: prompts to be answered, and given answers to be scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from cascades.tasks import layouts
from cascades.tasks.layouts import Convert, Lengths
from cascades.tasks.records import Indices, Records
from cascades.types import Batch, Prompt


class Bucket(NamedTuple):
  """Rows whose prompts are padded to the same width; at most a batch of them."""

  indices: Int[np.ndarray, 'k']
  width: int


class Scored(NamedTuple):
  """Candidate answers under teacher forcing. Rows of the batch beyond `rows` are padding."""

  rows: Int[np.ndarray, 'k']  # whose candidate each row of the batch is
  candidates: Int[np.ndarray, 'k']  # and which one
  batch: Batch


def prompt_lengths(records: Records, *, convert: Convert, lengths: Lengths) -> Int[np.ndarray, 'N']:
  """Every row's prompt length as the model reads it, special tokens included."""
  return layouts.of(records, convert, lengths).prompt_lengths(records.lengths)


def buckets(
  prompt_lengths: Int[np.ndarray, 'N'],
  indices: Indices,
  *,
  batch_size: int,
  widths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
) -> list[Bucket]:
  """These rows in order of length, in batches padded to few widths: few shapes are compiled."""
  chosen = np.asarray(indices)
  ordered = chosen[np.argsort(prompt_lengths[chosen], kind='stable')]
  batches = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
  longest = [int(prompt_lengths[batch].max()) for batch in batches]
  return [
    Bucket(batch, min((w for w in widths if w >= length), default=length))
    for batch, length in zip(batches, longest, strict=True)
  ]


def prompts(
  records: Records, bucket: Bucket, *, convert: Convert, lengths: Lengths, batch_size: int
) -> Prompt:
  """The bucket's prompts; short of a batch, the last one is repeated to keep the shape."""
  layout = layouts.of(records, convert, lengths)
  nothing = np.zeros(0, np.int32)
  found = [
    layouts.prompt_of(layout.example(inputs, nothing))
    for inputs, _ in records.tokens(bucket.indices)
  ]
  return layouts.pad(found + found[-1:] * (batch_size - len(found)), bucket.width)
