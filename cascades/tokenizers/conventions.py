"""Conventions of all vocabularies: special ids, decoding up to the end, a fingerprint."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

Tokens: TypeAlias = Int[np.ndarray, 'n']

TOKEN = np.dtype('<i4')
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # of T5
SPACE = '\u2581'  # a space in the pieces of SentencePiece, and of tokenizers that were made from it


class AbstractVocabulary:
  """A vocabulary, to be completed with `size`, `describe`, `encode` and `_decode`.

  Special ids are T5's unless a vocabulary sets others. Vocabularies with equal descriptions are
  equal.
  """

  size: int
  pad_id: int = PAD_ID
  eos_ids: tuple[int, ...] = (EOS_ID,)  # each ends an answer; targets end with the first
  unk_id: int | None = UNK_ID
  bos_id: int | None = PAD_ID  # T5's decoder starts with padding

  @property
  def eos_id(self) -> int:
    return self.eos_ids[0]

  def describe(self) -> dict[str, Any]:
    """JSON from which `vocabularies.from_description` builds the vocabulary."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    """Token ids of a text, without beginning or end of sequence."""
    raise NotImplementedError

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    """Token ids of many texts, faster than one by one."""
    return [np.array(self.encode(text), TOKEN) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    """Text up to the first end of sequence, without padding; ids beyond `size` are unknown."""
    ids = [int(i) for i in ids]
    end = next((n for n, i in enumerate(ids) if i in self.eos_ids), len(ids))
    clipped = [i if i < self.size else self.unk_id for i in ids[:end]]
    return self._decode([i for i in clipped if i not in (None, self.pad_id, self.bos_id)])

  def token_bytes(self, token: int) -> bytes:
    """Bytes that a token stands for, alone; none for padding, the start and ends of sequence."""
    special = (self.pad_id, self.bos_id, *self.eos_ids)
    if token in special or not 0 <= token < self.size:
      return b''
    return self._token_bytes(token)

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  def _token_bytes(self, token: int) -> bytes:
    return self._decode([token]).encode()

  @functools.cached_property
  def fingerprint(self) -> str:
    """Checksum of the description: equal only for vocabularies that encode every text alike."""
    return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

  def __eq__(self, other: object) -> bool:
    return isinstance(other, AbstractVocabulary) and self.fingerprint == other.fingerprint

  def __hash__(self) -> int:
    return hash(self.fingerprint)


def is_spelled_byte(piece: str) -> bool:
  """True for a piece such as `<0xE2>`, which stands for a byte of a character without a piece."""
  return re.fullmatch('<0x[0-9A-F]{2}>', piece) is not None


def spelled_byte(piece: str) -> bytes:
  """The byte of such a piece."""
  return bytes([int(piece[3:5], 16)])


def to_arrays(sequences: Sequence[Sequence[int]]) -> list[Tokens]:
  """Each sequence as an array."""
  ids = np.fromiter(itertools.chain.from_iterable(sequences), TOKEN)
  return split(ids, map(len, sequences))


def split(ids: Tokens, lengths: Iterable[int]) -> list[Tokens]:
  """Consecutive views of these lengths; a single array is cheaper than many."""
  ends = itertools.accumulate(lengths, initial=0)
  return [ids[begin:end] for begin, end in itertools.pairwise(ends)]
