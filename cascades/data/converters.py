"""Conversion of tokenized prompts and answers to the arrays that models read.

A prompt ends with an end of sequence in both architectures: it is the encoder's last token, and it
shows a decoder-only model where the answer starts. A prompt without one, as chats have, is never
trimmed, because the model continues from its last token.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from cascades.data.records import AnyRecords, split_by_task
from cascades.tokenizers.conventions import Tokens
from cascades.types import Architecture, Batch, Prompt

Lengths: TypeAlias = Mapping[str, int]  # of 'inputs' and 'targets', end of sequence included
Pieces: TypeAlias = tuple[Sequence[int] | Tokens, ...]  # a sequence that is not yet concatenated
Counts: TypeAlias = Int[np.ndarray, 'n 2']  # tokens of inputs and targets, as stored


class ExampleTokens(NamedTuple):
  """One example as a model reads it.

  Attributes:
    encoder: the encoder's tokens; None for a decoder-only model.
    context: the decoder's tokens before the first one that is predicted.
    targets: the tokens to be predicted.
  """

  encoder: Pieces | None
  context: Pieces
  targets: Pieces

  @property
  def prompt(self) -> Pieces:
    """The tokens that decoding starts from: the encoder's, or the decoder's context."""
    return self.context if self.encoder is None else self.encoder


# (prompt, answer, the decoder's first input); prompt and answer end with an end of sequence.
Convert: TypeAlias = Callable[[Pieces, Pieces, Pieces], ExampleTokens]


def encoder_decoder(prompt: Pieces, answer: Pieces, start: Pieces) -> ExampleTokens:
  """Puts the prompt into the encoder and the answer into the decoder."""
  return ExampleTokens(prompt, start, answer)


def decoder_only(prompt: Pieces, answer: Pieces, start: Pieces) -> ExampleTokens:
  """Puts the prompt to the left of the answer."""
  return ExampleTokens(None, start + prompt, answer)


CONVERTERS: Mapping[Architecture, Convert] = {
  'encoder_decoder': encoder_decoder,
  'decoder_only': decoder_only,
}


@dataclasses.dataclass(frozen=True)
class FeatureConverter:
  """A converter with the feature lengths and special ids of one split's records.

  Attributes:
    convert: `encoder_decoder` or `decoder_only`.
    lengths: maximum tokens of 'inputs' and 'targets', end of sequence included.
    start: the decoder's first input, or no token.
    inputs_end: the token that ends every prompt, or no token.
    targets_end: the token that ends every answer, or no token.

  >>> convert = FeatureConverter(
  ...   decoder_only, {'inputs': 3, 'targets': 4}, start=[0], inputs_end=[1], targets_end=[1]
  ... )
  >>> convert.example([7, 8, 9], [5, 6])  # 9 is trimmed, so that the prompt can end
  ExampleTokens(encoder=None, context=([0], [7, 8], [1]), targets=([5, 6], [1]))
  """

  convert: Convert
  lengths: Lengths
  start: Tokens
  inputs_end: Tokens
  targets_end: Tokens

  def __post_init__(self) -> None:
    fits = set(self.lengths) == {'inputs', 'targets'} and min(self._limits) >= 0
    if not fits or self.lengths['targets'] < 1:
      raise ValueError(
        f"Feature lengths are {dict(self.lengths)}, expected positive 'inputs' and 'targets'."
      )
    if self._shortest.encoder is not None and not self.has_start:
      raise ValueError(
        'The decoder has no first input: the vocabulary defines no beginning of sequence.'
      )

  def example(self, prompt: Tokens, answer: Tokens) -> ExampleTokens:
    """Converts one stored prompt and answer, trimmed so that an end of sequence still fits."""
    return self.examples([(prompt, answer)])[0]

  def examples(self, tokens: Iterable[tuple[Tokens, Tokens]]) -> list[ExampleTokens]:
    """Converts many stored prompts and answers, faster than one by one."""
    (inputs, targets), convert, start = self._limits, self.convert, (self.start,)
    inputs_end, targets_end = self.inputs_end, self.targets_end
    return [
      convert((prompt[:inputs], inputs_end), (answer[:targets], targets_end), start)
      for prompt, answer in tokens
    ]

  @property
  def has_start(self) -> bool:
    """True if the decoder has a first input even for an empty prompt."""
    return bool(_count(self._shortest.context))

  @property
  def _shortest(self) -> ExampleTokens:
    empty = np.zeros(0, np.int32)
    return self.example(empty, empty)

  def row_lengths(self, counts: Counts) -> Int[np.ndarray, 'n']:
    """Number of decoder positions of each example."""
    shortest = self._shortest
    prompts, answers = self._trimmed_counts(counts)
    row = _count(shortest.context) + _count(shortest.targets) - 1 + answers
    return row + prompts if shortest.encoder is None else row

  def target_lengths(self, counts: Counts) -> Int[np.ndarray, 'n']:
    """Number of predicted tokens of each example."""
    return _count(self._shortest.targets) + self._trimmed_counts(counts)[1]

  def prompt_lengths(self, counts: Counts) -> Int[np.ndarray, 'n']:
    """Number of prompt tokens of each example, in the encoder or in the decoder."""
    return _count(self._shortest.prompt) + self._trimmed_counts(counts)[0]

  def count_trimmed(self, counts: Counts) -> tuple[int, int]:
    """Numbers of examples whose inputs, and whose targets, lose tokens."""
    inputs, targets = (counts != np.stack(self._trimmed_counts(counts), axis=1)).sum(axis=0)
    return int(inputs), int(targets)

  @property
  def width(self) -> int:
    """Number of decoder positions of the longest possible example."""
    longest = np.array([[self.lengths['inputs'], self.lengths['targets']]])
    return int(self.row_lengths(longest)[0])

  @property
  def prompt_width(self) -> int:
    """Number of tokens of the longest possible prompt, special tokens included."""
    return int(self.prompt_lengths(np.array([[self.lengths['inputs'], 0]]))[0])

  @property
  def encoder_width(self) -> int | None:
    """Number of encoder positions; None without an encoder."""
    return None if self._shortest.encoder is None else self.lengths['inputs']

  def _trimmed_counts(self, counts: Counts) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
    inputs, targets = self._limits
    return np.minimum(counts[:, 0], inputs), np.minimum(counts[:, 1], targets)

  @functools.cached_property
  def _limits(self) -> tuple[int, int]:
    """Maximum stored tokens of inputs and of targets."""
    return (
      self.lengths['inputs'] - len(self.inputs_end),
      self.lengths['targets'] - len(self.targets_end),
    )


def feature_converter(records: AnyRecords, convert: Convert, lengths: Lengths) -> FeatureConverter:
  """Makes the converter for a split's records, whose manifest has the special ids.

  Args:
    records: the split's records.
    convert: `encoder_decoder` or `decoder_only`.
    lengths: maximum tokens of 'inputs' and 'targets', end of sequence included.

  Returns:
    The converter for rows of `records`.

  Raises:
    ValueError: if a prompt that may not be trimmed is longer than `lengths['inputs']`, or if the
      decoder would have no first input.
  """
  manifest = records.manifest
  special = (manifest.bos_id, manifest.inputs_eos_id, manifest.eos_id)
  start, inputs_end, targets_end = (
    np.array([] if token is None else [token], np.int32) for token in special
  )
  converter = FeatureConverter(convert, dict(lengths), start, inputs_end, targets_end)
  counts = [each.lengths[:, 0] for each in split_by_task(records)]
  longest = max(int(own.max()) for own in counts) if manifest.inputs_eos_id is None else 0
  if longest > lengths['inputs']:
    raise ValueError(
      f'{records.name} has prompts of up to {longest} tokens, more than the feature length of '
      f"'inputs', {lengths['inputs']}. The model continues from the end of a prompt, so none can "
      f"be trimmed: raise task_feature_lengths['inputs'] to {longest}, or leave long rows out."
    )
  if not converter.has_start and not all(own.all() for own in counts):
    raise ValueError(
      f'{records.name} has empty prompts, and the decoder no first input: the vocabulary defines '
      'no beginning of sequence.'
    )
  return converter


def assemble(
  rows: Sequence[Sequence[ExampleTokens]], *, width: int, encoder_width: int | None
) -> Batch:
  """Builds a batch with one or more examples in each row.

  Two examples share the first row; the second row is padding.

  >>> first = ExampleTokens(encoder=None, context=([0, 7, 1],), targets=([5, 1],))
  >>> second = ExampleTokens(encoder=None, context=([0, 1],), targets=([6, 1],))
  >>> batch = assemble([[first, second], []], width=8, encoder_width=None)
  >>> batch.inputs
  array([[0, 7, 1, 5, 0, 1, 6, 0],
         [0, 0, 0, 0, 0, 0, 0, 0]], dtype=int32)
  >>> batch.targets
  array([[7, 1, 5, 1, 1, 6, 1, 0],
         [0, 0, 0, 0, 0, 0, 0, 0]], dtype=int32)
  >>> batch.weights.astype(int)
  array([[0, 0, 1, 1, 0, 1, 1, 0],
         [0, 0, 0, 0, 0, 0, 0, 0]])
  >>> batch.segments
  array([[1, 1, 1, 1, 2, 2, 2, 0],
         [0, 0, 0, 0, 0, 0, 0, 0]], dtype=int32)

  Args:
    rows: the examples of each row, in order; a row without examples is padding.
    width: number of decoder positions of a row.
    encoder_width: number of encoder positions; None for a decoder-only model.

  Returns:
    A batch of `len(rows)` rows, with weight 1 on the tokens to be predicted.
  """
  examples = [example for row in rows for example in row]
  tokens = _concatenate([piece for e in examples for piece in (*e.context, *e.targets)])
  context = _counts([example.context for example in examples])
  size = context + _counts([example.targets for example in examples]) - 1  # positions
  ends = np.cumsum(size + 1)  # of the tokens, of which there is one more than positions
  position = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
  per_row = [len(row) for row in rows]
  used = np.bincount(np.repeat(np.arange(len(rows)), per_row), size, minlength=len(rows))
  mask = np.arange(width) < used[:, None]

  inputs, targets, segments, positions = _zeros(4, len(rows), width)
  weights = _zeros(len(rows), width, dtype=np.float32)
  inputs[mask] = np.delete(tokens, ends - 1)
  targets[mask] = np.delete(tokens, ends - size - 1)
  weights[mask] = position >= np.repeat(context - 1, size)
  segments[mask] = np.repeat([s for n in per_row for s in range(1, n + 1)], size)
  positions[mask] = position
  encoder = None
  if encoder_width is not None:
    encoder = pad([row[0].encoder or () if row else () for row in rows], encoder_width).tokens
  return Batch(inputs, targets, weights, encoder, segments, positions)


def without_segments(batch: Batch) -> Batch:
  """Drops segments and positions, which rows of one example each do not need."""
  return batch._replace(segments=None, positions=None)


def with_teachers(batch: Batch, values: Any) -> Batch:
  """Adds teachers' values of the target tokens, given in the order of the batch's examples.

  `values` are a tree of arrays [tokens, ...], of one teacher, or a tuple of such trees.
  """
  mask = np.asarray(batch.weights) > 0

  def scatter(column: np.ndarray) -> np.ndarray:
    scattered = np.zeros((*mask.shape, *column.shape[1:]), column.dtype)
    scattered[mask] = column
    return scattered

  teachers = values if type(values) is tuple else (values,)  # most teachers are NamedTuples
  return batch._replace(teachers=jax.tree.map(scatter, teachers))


def pad(prompts: Sequence[Pieces], width: int) -> Prompt:
  """Pads prompts on the right to `width` tokens."""
  length = _counts(prompts).astype(np.int32)
  tokens = _zeros(len(prompts), width)
  mask = np.arange(width) < length[:, None]
  tokens[mask] = _concatenate([piece for prompt in prompts for piece in prompt])
  return Prompt(tokens, length)


def _count(pieces: Pieces) -> int:
  return sum(map(len, pieces))


def _counts(sequences: Sequence[Pieces]) -> Any:
  return np.array([_count(pieces) for pieces in sequences], np.int64)


def _concatenate(pieces: Sequence[Sequence[int] | Tokens]) -> Tokens:
  return np.concatenate([np.zeros(0, np.int32), *pieces]).astype(np.int32, copy=False)


def _zeros(*shape: int, dtype: type = np.int32) -> Any:  # Any: Batch declares JAX's arrays
  return np.zeros(shape, dtype)
