"""Text to token ids and back, without TensorFlow: bytes, symbols, SentencePiece.

All count 0 as padding and as the decoder's first input, 1 as end of sequence, 2 as unknown.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import sentencepiece as spm
from etils import epath
from jaxtyping import Int
from sentencepiece import sentencepiece_model_pb2

from cascades import files
from cascades.tasks import textfiles
from cascades.types import Vocabulary

Tokens: TypeAlias = Int[np.ndarray, 'n']

TOKEN = np.dtype('<i4')
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_FIRST_ID = 3
_DESCRIPTION_FILE = 'vocabulary.json'
_MODEL_FILE = 'sentencepiece.model'
_ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]


class _Conventions:
  """What all of ours share: three ids, and a fingerprint of the description."""

  pad_id = PAD_ID
  eos_id = EOS_ID
  unk_id = UNK_ID
  bos_id = PAD_ID  # as in T5, whose decoder starts from padding
  size: int

  def describe(self) -> dict[str, Any]:
    """What `from_description` needs to build it again, as JSON."""
    raise NotImplementedError

  def encode(self, text: str) -> list[int]:
    raise NotImplementedError

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    """The same for many texts, faster."""
    return [np.array(self.encode(text), TOKEN) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    """Text up to the first end of sequence, without padding; an id beyond `size` is unknown."""
    ids = [int(i) for i in ids]
    end = ids.index(EOS_ID) if EOS_ID in ids else len(ids)
    return self._decode([i if i < self.size else UNK_ID for i in ids[:end] if i != PAD_ID])

  def _decode(self, ids: list[int]) -> str:
    raise NotImplementedError

  @functools.cached_property
  def fingerprint(self) -> str:
    return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Conventions) and self.fingerprint == other.fingerprint

  def __hash__(self) -> int:
    return hash(self.fingerprint)


class Bytes(_Conventions):
  """UTF-8 bytes at 3..258, as in ByT5, https://arxiv.org/abs/2105.13626."""

  def __init__(self, extra_ids: int) -> None:
    self.extra_ids = extra_ids
    self.size = _FIRST_ID + 256 + extra_ids

  def describe(self) -> dict[str, Any]:
    return {'kind': 'bytes', 'extra_ids': self.extra_ids}

  def encode(self, text: str) -> list[int]:
    return [byte + _FIRST_ID for byte in text.encode()]

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    encoded = [text.encode() for text in texts]
    ids = np.frombuffer(b''.join(encoded), np.uint8).astype(TOKEN) + TOKEN.type(_FIRST_ID)
    return _split(ids, map(len, encoded))

  def _decode(self, ids: list[int]) -> str:
    kept = bytes(i - _FIRST_ID for i in ids if _FIRST_ID <= i < _FIRST_ID + 256)
    return kept.decode(errors='ignore')


class Symbols(_Conventions):
  """A closed list of symbols, written with white space between them."""

  def __init__(self, names: Sequence[str]) -> None:
    if not names or any(name.encode().split() != [name.encode()] for name in names):
      raise ValueError('A symbol is a non-empty string without white space; give at least one.')
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
      raise ValueError(f'Symbols must differ, but these are listed twice: {", ".join(repeated)}.')
    self.names = tuple(names)
    self.size = _FIRST_ID + len(names)
    self._ids = {name.encode(): i for i, name in enumerate(names, _FIRST_ID)}

  def describe(self) -> dict[str, Any]:
    return {'kind': 'symbols', 'names': list(self.names)}

  def encode(self, text: str) -> list[int]:
    # Bytes split at ASCII white space alone, as TensorFlow does.
    return [self._ids.get(name, UNK_ID) for name in text.encode().split()]

  def _decode(self, ids: list[int]) -> str:
    return ' '.join(self.names[i - _FIRST_ID] if i >= _FIRST_ID else '<unk>' for i in ids)


class SentencePiece(_Conventions):
  """A trained subword model; `<extra_id_0>` is the last id, `<extra_id_1>` the one before."""

  def __init__(self, file: epath.Path, extra_ids: int) -> None:
    self.file = file
    self.model = file.read_bytes()
    self.extra_ids = extra_ids
    self._processor = spm.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(_with_extra_ids(self.model, extra_ids))
    except Exception as error:  # protobuf and the C++ library raise types of their own
      raise ValueError(
        f'{file} is not a SentencePiece model. Train one with '
        '`python -m cascades.tasks train_vocabulary`.'
      ) from error
    found = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
      raise ValueError(
        f'{file} has padding, end-of-sequence and unknown ids {found}, expected (0, 1, 2) as in '
        'T5. Train one with `python -m cascades.tasks train_vocabulary`.'
      )
    self.size = self._processor.GetPieceSize()

  def describe(self) -> dict[str, Any]:
    content = hashlib.sha256(self.model).hexdigest()
    return {'kind': 'sentencepiece', 'extra_ids': self.extra_ids, 'sha256': content}

  def encode(self, text: str) -> list[int]:
    return self._processor.EncodeAsIds(text)

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    encoded = self._processor.Encode(list(texts), num_threads=1)
    ids = np.fromiter(itertools.chain.from_iterable(encoded), TOKEN)
    return _split(ids, map(len, encoded))

  def _decode(self, ids: list[int]) -> str:
    return self._processor.DecodeIds(ids)


def _split(ids: Tokens, lengths: Iterable[int]) -> list[Tokens]:
  """Views of consecutive parts; one array for all costs less than one for each."""
  ends = itertools.accumulate(lengths, initial=0)
  return [ids[begin:end] for begin, end in itertools.pairwise(ends)]


def _with_extra_ids(model: bytes, extra_ids: int) -> bytes:
  """The model with sentinels at its end, last one first, exactly as SeqIO adds them."""
  proto = _ModelProto.FromString(model)
  kind = _ModelProto.SentencePiece.USER_DEFINED
  for i in reversed(range(extra_ids)):
    proto.pieces.add(piece=f'▁<extra_id_{i}>', score=0.0, type=kind)
  return proto.SerializeToString()


def bytes_vocabulary(extra_ids: int = 0) -> Bytes:
  """259 ids that can spell everything; equal to `seqio.ByteVocabulary`."""
  return Bytes(extra_ids)


def symbols(names: Sequence[str]) -> Symbols:
  """Ids 3, 4, ... for `names` in order; any other symbol is unknown."""
  return Symbols(names)


def sentencepiece(
  path: epath.PathLike, extra_ids: int = 100, *, allow_remote: bool = False
) -> SentencePiece:
  """A SentencePiece model file; equal to `seqio.SentencePieceVocabulary(path, extra_ids)`."""
  textfiles.require_local(path, allow_remote)
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(
      f'No SentencePiece model at {file}. Train one with '
      '`python -m cascades.tasks train_vocabulary`.'
    )
  return SentencePiece(file, extra_ids)


def save(vocabulary: Vocabulary, directory: epath.PathLike) -> None:
  """Writes the vocabulary beside what was trained with it, for `load`."""
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  if isinstance(vocabulary, SentencePiece):
    files.write(directory / _MODEL_FILE, vocabulary.model)
  files.write(directory / _DESCRIPTION_FILE, json.dumps(vocabulary.describe(), indent=2).encode())


def load(directory: epath.PathLike) -> Bytes | Symbols | SentencePiece:
  """The vocabulary that `save` wrote."""
  file = epath.Path(directory) / _DESCRIPTION_FILE
  if not file.exists():
    raise FileNotFoundError(f'No vocabulary in {directory}: {file.name} is missing.')
  return from_description(json.loads(file.read_text()), directory)


def from_description(
  description: Mapping[str, Any], directory: epath.PathLike
) -> Bytes | Symbols | SentencePiece:
  """The inverse of `describe`; a SentencePiece model is read from `directory`."""
  kind = description.get('kind')
  if kind == 'bytes':
    return bytes_vocabulary(description['extra_ids'])
  if kind == 'symbols':
    return symbols(description['names'])
  if kind != 'sentencepiece':
    raise ValueError(f'Vocabulary kind {kind!r} is not one of bytes, symbols, sentencepiece.')
  file = epath.Path(directory) / _MODEL_FILE
  vocabulary = sentencepiece(file, description['extra_ids'], allow_remote=True)
  if vocabulary.describe() != dict(description):
    raise ValueError(
      f'{_MODEL_FILE} in {directory} is not the model that was saved there: its checksum differs. '
      'Copy the file again from where the model was trained.'
    )
  return vocabulary
