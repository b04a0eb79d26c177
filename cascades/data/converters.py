"""How prompts and answers become the token rows that models read. The one place that knows.

A prompt ends with an end of sequence in both architectures: the encoder's last token, and the mark
by which a decoder-only model knows where the answer starts. One without it, as chats have, is never
trimmed: the model goes on from its last token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from cascades.data.records import Readable
from cascades.types import Architecture, Batch, Prompt

Lengths: TypeAlias = Mapping[str, int]  # of 'inputs' and 'targets', end of sequence included
Tokens: TypeAlias = Int[np.ndarray, 'n']
Pieces: TypeAlias = tuple[Sequence[int] | Tokens, ...]  # not yet concatenated
Counts: TypeAlias = Int[np.ndarray, 'n 2']  # tokens of inputs and targets, as stored


class Example(NamedTuple):
  """One example as a model reads it, in pieces: `right` is to be predicted, after `left`."""

  encoder: Pieces | None
  left: Pieces
  right: Pieces


# (prompt, answer, the decoder's first input); prompt and answer end with an end of sequence.
Convert: TypeAlias = Callable[[Pieces, Pieces, Pieces], Example]


def encoder_decoder(prompt: Pieces, answer: Pieces, start: Pieces) -> Example:
  """The prompt goes into the encoder, the answer into the decoder."""
  return Example(prompt, start, answer)


def decoder_only(prompt: Pieces, answer: Pieces, start: Pieces) -> Example:
  """The prompt stands left of the answer."""
  return Example(None, start + prompt, answer)


CONVERTERS: Mapping[Architecture, Convert] = {
  'encoder_decoder': encoder_decoder,
  'decoder_only': decoder_only,
}


@dataclasses.dataclass(frozen=True)
class Layout:
  """A converter with the lengths and special ids that one split's rows need."""

  convert: Convert
  lengths: Lengths
  start: Tokens  # the decoder's first input
  inputs_end: Tokens
  targets_end: Tokens

  def __post_init__(self) -> None:
    fits = set(self.lengths) == {'inputs', 'targets'} and min(self._room) >= 0
    if not fits or self.lengths['targets'] < 1:
      raise ValueError(
        f"Feature lengths are {dict(self.lengths)}, expected positive 'inputs' and 'targets'."
      )
    if self._shortest.encoder is not None and not self.starts:
      raise ValueError(
        'The decoder has no first input: the vocabulary names no beginning of sequence.'
      )

  def example(self, prompt: Tokens, answer: Tokens) -> Example:
    """Trims stored tokens so that an end of sequence still fits, and lays them out."""
    return self.examples([(prompt, answer)])[0]

  def examples(self, tokens: Iterable[tuple[Tokens, Tokens]]) -> list[Example]:
    """The same of many prompts and answers, with less to do for each."""
    (inputs, targets), convert, start = self._room, self.convert, (self.start,)
    inputs_end, targets_end = self.inputs_end, self.targets_end
    return [
      convert((prompt[:inputs], inputs_end), (answer[:targets], targets_end), start)
      for prompt, answer in tokens
    ]

  @property
  def starts(self) -> bool:
    """Whether the decoder has a first input even if a prompt is empty."""
    return bool(_count(self._shortest.left))

  @property
  def _shortest(self) -> Example:
    nothing = np.zeros(0, np.int32)
    return self.example(nothing, nothing)

  def row_lengths(self, counts: Counts) -> Int[np.ndarray, 'n']:
    """How many positions of the decoder each example takes."""
    shortest = self._shortest
    prompts, answers = self._kept(counts)
    row = _count(shortest.left) + _count(shortest.right) - 1 + answers
    return row + prompts if shortest.encoder is None else row

  def target_lengths(self, counts: Counts) -> Int[np.ndarray, 'n']:
    """How many tokens of each example are to be predicted."""
    return _count(self._shortest.right) + self._kept(counts)[1]

  def prompt_lengths(self, counts: Counts) -> Int[np.ndarray, 'n']:
    """How many tokens each example's prompt has, wherever the model reads it."""
    return _count(prompt_of(self._shortest)) + self._kept(counts)[0]

  def trimmed(self, counts: Counts) -> tuple[int, int]:
    """How many examples lose tokens of their inputs, and of their targets."""
    inputs, targets = (counts != np.stack(self._kept(counts), axis=1)).sum(axis=0)
    return int(inputs), int(targets)

  @property
  def width(self) -> int:
    """The decoder's positions that the longest example takes."""
    longest = np.array([[self.lengths['inputs'], self.lengths['targets']]])
    return int(self.row_lengths(longest)[0])

  @property
  def encoder_width(self) -> int | None:
    return None if self._shortest.encoder is None else self.lengths['inputs']

  def _kept(self, counts: Counts) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
    inputs, targets = self._room
    return np.minimum(counts[:, 0], inputs), np.minimum(counts[:, 1], targets)

  @functools.cached_property
  def _room(self) -> tuple[int, int]:
    """How many stored tokens of inputs and of targets fit."""
    return (
      self.lengths['inputs'] - len(self.inputs_end),
      self.lengths['targets'] - len(self.targets_end),
    )


def of(records: Readable, convert: Convert, lengths: Lengths) -> Layout:
  """The layout for a split's records, whose manifest knows the special ids."""
  made = records.manifest
  ids = (made.bos_id, made.inputs_eos_id, made.eos_id)
  start, inputs_end, targets_end = (np.array([] if one is None else [one], np.int32) for one in ids)
  layout = Layout(convert, dict(lengths), start, inputs_end, targets_end)
  longest = int(records.lengths[:, 0].max()) if made.inputs_eos_id is None else 0
  if longest > lengths['inputs']:
    raise ValueError(
      f'{records.name} has prompts of up to {longest} tokens, more than the feature length of '
      f"'inputs', {lengths['inputs']}. The model goes on from where a prompt ends, so none can be "
      f"trimmed: raise task_feature_lengths['inputs'] to {longest}, or leave long rows out."
    )
  if not layout.starts and not records.lengths[:, 0].all():
    raise ValueError(
      f'{records.name} has empty prompts, and the decoder no first input: the vocabulary names no '
      'beginning of sequence.'
    )
  return layout


def assemble(rows: Sequence[Sequence[Example]], *, width: int, encoder_width: int | None) -> Batch:
  """Rows of examples, one after the other, as arrays. A row without examples is padding."""
  examples = [example for row in rows for example in row]
  tokens = _concatenate([piece for e in examples for piece in (*e.left, *e.right)])
  left = _counts([example.left for example in examples])
  size = left + _counts([example.right for example in examples]) - 1  # positions; one token more
  ends = np.cumsum(size + 1)
  position = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
  per_row = [len(row) for row in rows]
  used = np.bincount(np.repeat(np.arange(len(rows)), per_row), size, minlength=len(rows))
  taken = np.arange(width) < used[:, None]

  inputs, targets, segments, positions = _zeros(4, len(rows), width)
  weights = _zeros(len(rows), width, dtype=np.float32)
  inputs[taken] = np.delete(tokens, ends - 1)
  targets[taken] = np.delete(tokens, ends - size - 1)
  weights[taken] = position >= np.repeat(left - 1, size)
  segments[taken] = np.repeat([s for n in per_row for s in range(1, n + 1)], size)
  positions[taken] = position
  encoder = None
  if encoder_width is not None:
    encoder = pad([row[0].encoder or () if row else () for row in rows], encoder_width).tokens
  return Batch(inputs, targets, weights, encoder, segments, positions)


def unpacked(batch: Batch) -> Batch:
  """The batch of rows with one example each, for models that then need no segments."""
  return batch._replace(segments=None, positions=None)


def with_teacher(batch: Batch, values: Any) -> Batch:
  """The batch with what is known of its targets' tokens, given in the order of its examples."""
  taken = np.asarray(batch.weights) > 0

  def placed(column: np.ndarray) -> np.ndarray:
    found = np.zeros((*taken.shape, *column.shape[1:]), column.dtype)
    found[taken] = column
    return found

  return batch._replace(teacher=jax.tree.map(placed, values))


def prompt_of(example: Example) -> Pieces:
  """The tokens that decoding starts from: the encoder's, or the decoder's left context."""
  return example.left if example.encoder is None else example.encoder


def pad(prompts: Sequence[Pieces], width: int) -> Prompt:
  """Prompts padded on the right."""
  length = _counts(prompts).astype(np.int32)
  tokens = _zeros(len(prompts), width)
  taken = np.arange(width) < length[:, None]
  tokens[taken] = _concatenate([piece for prompt in prompts for piece in prompt])
  return Prompt(tokens, length)


def _count(pieces: Pieces) -> int:
  return sum(map(len, pieces))


def _counts(examples: Sequence[Pieces]) -> Any:
  return np.array([_count(pieces) for pieces in examples], np.int64)


def _concatenate(pieces: Sequence[Sequence[int] | Tokens]) -> Tokens:
  return np.concatenate([np.zeros(0, np.int32), *pieces]).astype(np.int32, copy=False)


def _zeros(*shape: int, dtype: type = np.int32) -> Any:  # Any: Batch declares JAX's arrays
  return np.zeros(shape, dtype)
