"""Inputs and targets from unlabeled tokens: chunks, span corruption, prefix and rest.

As in T5, Raffel et al. 2020, https://arxiv.org/abs/1910.10683, sections 3.1.4 and 3.3. The random
choices in a chunk are a function of the seed and the chunk's number.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from cascades.tokenizers.conventions import Tokens


def chunks(
  documents: Iterable[Tokens], length: int, *, separator: int | None = None
) -> Iterator[Int[np.ndarray, 'length']]:
  """Concatenates documents and cuts them into chunks, with one document in memory at a time.

  Args:
    documents: token ids of each document.
    length: tokens of a chunk.
    separator: a token that follows each document, or None.

  Yields:
    The chunks; a shorter remainder is dropped.

  Raises:
    ValueError: if `length` is below 1.
  """
  if length < 1:
    raise ValueError(f'Chunks of {length} tokens cannot be cut; give a length of at least 1.')
  end = np.array([] if separator is None else [separator], np.int32)
  pending: list[Tokens] = []
  missing = length
  for piece in itertools.chain.from_iterable((document, end) for document in documents):
    start = 0
    while len(piece) - start >= missing:
      yield np.concatenate([*pending, piece[start : start + missing]], dtype=np.int32)
      start += missing
      pending, missing = [], length
    if start < len(piece):
      pending.append(piece[start:])
      missing -= len(piece) - start


def noise_counts(length: int, *, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
  """Numbers of noise tokens and of noise spans of a chunk; at least one of each.

  Rounds in float64, as T5 plans lengths. T5 draws its masks in float32, which at a few lengths
  (190, 350, ...) gives one noise token more than planned.
  """
  if length < 2 or not 0 < density < 1 or mean_span < 1:
    raise ValueError(
      f'Noise of density {density} in spans of {mean_span} on average cannot be put into {length} '
      'tokens: it takes at least 2 tokens, a density between 0 and 1, spans of at least 1.'
    )
  noise = min(max(round(length * density), 1), length - 1)
  spans = max(round(noise / mean_span), 1)
  if spans > length - noise:
    raise ValueError(
      f'{spans} spans of noise cannot be kept apart by the {length - noise} other tokens of a '
      f'chunk of {length}: lower the density from {density} or make spans longer than {mean_span}.'
    )
  return noise, spans


def chunk_length(
  inputs_length: int, *, density: float = 0.15, mean_span: float = 3.0
) -> tuple[int, int]:
  """The longest chunk whose inputs fit, and the length of its targets.

  Inputs, exactly `inputs_length`, and targets count the end of sequence that is appended later.
  """
  length, targets_length = inputs_length - 1, 0
  while True:
    noise, spans = noise_counts(length, density=density, mean_span=mean_span)
    if length - noise + spans + 1 > inputs_length:
      return length - 1, targets_length
    length, targets_length = length + 1, noise + spans + 1


def random_spans(
  length: int, *, seed: int, number: int, density: float = 0.15, mean_span: float = 3.0
) -> Bool[np.ndarray, 'length']:
  """Draws a mask that is True on noise, uniformly from the masks of `noise_counts`.

  Spans of other tokens and of noise alternate, other tokens first; none is empty.
  """
  noise, spans = noise_counts(length, density=density, mean_span=mean_span)
  draws = _draws(seed, number, 2 * (spans - 1))
  other_spans, noise_spans = _segments(length - noise, draws[::2]), _segments(noise, draws[1::2])
  pairs = zip(other_spans, noise_spans, strict=True)
  return np.frombuffer(b''.join(bytes(o) + b'\1' * n for o, n in pairs), bool)


def span_corruption(
  tokens: Int[np.ndarray, 'n'], noise: Bool[np.ndarray, 'n'], *, vocab_size: int, extra_ids: int
) -> tuple[Tokens, Tokens]:
  """Splits a chunk into inputs with sentinels for noise spans, and targets with the spans.

  Args:
    tokens: the chunk. A token of it that is itself a sentinel is not changed, as in T5.
    noise: True on noise tokens; starts without noise and ends with noise.
    vocab_size: sentinel k is `vocab_size - 1 - k`.
    extra_ids: number of sentinels in the vocabulary.

  Returns:
    Inputs and targets, without an end of sequence.

  Raises:
    ValueError: if the mask starts with noise or there are too few sentinels.
  """
  if noise[0] or not noise[-1]:
    raise ValueError('A noise mask must start with a token that is not noise and end with noise.')
  starts = np.flatnonzero(np.concatenate([[True], noise[1:] != noise[:-1]]))
  other_starts, noise_starts = starts[::2], starts[1::2]
  if len(noise_starts) > extra_ids:
    raise ValueError(
      f'{len(noise_starts)} spans of noise need as many sentinels, but the vocabulary has '
      f'{extra_ids} extra ids: give it more, or shorten the inputs.'
    )
  sentinels = vocab_size - 1 - np.arange(len(noise_starts))
  inputs = _with_sentinels(tokens, ~noise, noise_starts, sentinels)
  return inputs, _with_sentinels(tokens, noise, other_starts, sentinels)


def restore(inputs: Tokens, targets: Tokens, *, vocab_size: int, extra_ids: int) -> Tokens:
  """Restores the chunk of `span_corruption`, whose own tokens must not be sentinels."""
  holes = np.flatnonzero(inputs >= vocab_size - extra_ids)
  marks = np.flatnonzero(targets >= vocab_size - extra_ids)
  sentinels = inputs[holes].tolist(), targets[marks].tolist()
  expected = [vocab_size - 1 - k for k in range(len(holes))]
  if sentinels != (expected, expected):
    raise ValueError(
      f'The sentinels are {sentinels[0]} in the inputs and {sentinels[1]} in the targets, expected '
      f'{expected} in both: these are not the halves of one chunk, or its own text had sentinels.'
    )
  first, *others = np.split(inputs, holes)
  noise = np.split(targets, marks)[1:]
  rest = [span[1:] for pair in zip(noise, others, strict=True) for span in pair]
  return np.concatenate([first, *rest])


def prefix_split(
  tokens: Tokens, *, max_inputs: int, max_targets: int, seed: int, number: int
) -> tuple[Tokens, Tokens]:
  """Splits a chunk into the first k tokens and the rest, with k uniform within the limits.

  Neither side is empty. The limits do not count the end of sequence that is appended later.
  """
  fewest, most = max(1, len(tokens) - max_targets), min(max_inputs, len(tokens) - 1)
  if fewest > most:
    raise ValueError(
      f'A chunk of {len(tokens)} tokens cannot be split into 1 to {max_inputs} inputs and 1 to '
      f'{max_targets} targets: cut chunks of at least 2 tokens and at most both limits together.'
    )
  k = fewest + _draws(seed, number, 1)[0] % (most - fewest + 1)
  return tokens[:k], tokens[k:]


def _with_sentinels(tokens: Tokens, keep: np.ndarray, at: Tokens, sentinels: Tokens) -> Tokens:
  """The tokens where `keep`, and a sentinel for each run of others, which start `at` these."""
  tokens, keep = tokens.copy(), keep.copy()
  tokens[at] = sentinels
  keep[at] = True
  return tokens[keep]


def _segments(items: int, draws: Sequence[int]) -> list[int]:
  """Lengths of non-empty segments of `items`, one segment more than draws, all equally likely.

  Floyd's sampling of the cuts, Bentley & Floyd 1987, https://doi.org/10.1145/30401.315746.
  """
  cuts: set[int] = set()
  for last, draw in enumerate(draws, items - len(draws)):
    cut = 1 + draw % last
    cuts.add(last if cut in cuts else cut)
  return [end - start for start, end in itertools.pairwise([0, *sorted(cuts), items])]


def _draws(seed: int, number: int, count: int) -> tuple[int, ...]:
  """64-bit integers. A published hash: NumPy may change its generators between versions."""
  stream = hashlib.shake_128(f'{seed} {number}'.encode())
  return struct.unpack(f'<{count}Q', stream.digest(8 * count))
