"""What all vocabularies share: special ids, decoding up to the end, a fingerprint."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

Tokens: TypeAlias = Int[np.ndarray, 'n']

TOKEN = np.dtype('<i4')
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # of T5


class Conventions:
  """Special ids, those of T5 unless a vocabulary says otherwise; `describe` decides identity."""

  size: int
  pad_id: int = PAD_ID
  eos_ids: tuple[int, ...] = (EOS_ID,)  # the first is written, all of them end an answer
  unk_id: int | None = UNK_ID
  bos_id: int | None = PAD_ID  # as in T5, whose decoder starts from padding

  @property
  def eos_id(self) -> int:
    return self.eos_ids[0]

  def describe(self) -> dict[str, Any]:
    """What `vocabularies.from_description` needs to build it again, as JSON."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    raise NotImplementedError

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    """The same for many texts, faster."""
    return [np.array(self.encode(text), TOKEN) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    """Text up to the first end of sequence, without padding; an id beyond `size` is unknown."""
    ids = [int(i) for i in ids]
    end = next((n for n, i in enumerate(ids) if i in self.eos_ids), len(ids))
    known = [i if i < self.size else self.unk_id for i in ids[:end]]
    return self._decode([i for i in known if i not in (None, self.pad_id, self.bos_id)])

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  @functools.cached_property
  def fingerprint(self) -> str:
    return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Conventions) and self.fingerprint == other.fingerprint

  def __hash__(self) -> int:
    return hash(self.fingerprint)


def concatenated(parts: Sequence[Sequence[int]]) -> list[Tokens]:
  """Each part as an array."""
  return split(np.fromiter(itertools.chain.from_iterable(parts), TOKEN), map(len, parts))


def split(ids: Tokens, lengths: Iterable[int]) -> list[Tokens]:
  """Views of consecutive parts; one array for all costs less than one for each."""
  ends = itertools.accumulate(lengths, initial=0)
  return [ids[begin:end] for begin, end in itertools.pairwise(ends)]
