"""Text to token ids and back, without TensorFlow: bytes, symbols, and what models bring along.

Bytes and symbols count 0 as padding and as the decoder's first input, 1 as end of sequence, 2 as
unknown, as T5 does. SentencePiece, Hugging Face and GGUF bring special ids of their own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from etils import epath

from cascades.runtime import files
from cascades.tokenizers import conventions
from cascades.tokenizers import gguf as gguf_tokenizers
from cascades.tokenizers import huggingface as huggingface_tokenizers
from cascades.tokenizers.conventions import TOKEN, UNK_ID, Conventions, Tokens
from cascades.tokenizers.huggingface import HuggingFace, SpecialIds
from cascades.tokenizers.sentencepiece import SentencePiece
from cascades.types import Vocabulary

Known: TypeAlias = 'Bytes | Symbols | SentencePiece | HuggingFace'

_FIRST_ID = 3
_DESCRIPTION_FILE = 'vocabulary.json'
_MODEL_FILES = {'sentencepiece': 'sentencepiece.model', 'huggingface': huggingface_tokenizers.FILE}


class Bytes(Conventions):
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
    return conventions.split(ids, map(len, encoded))

  def _decode(self, ids: list[int]) -> str:
    kept = bytes(i - _FIRST_ID for i in ids if _FIRST_ID <= i < _FIRST_ID + 256)
    return kept.decode(errors='ignore')


class Symbols(Conventions):
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


def bytes_vocabulary(extra_ids: int = 0) -> Bytes:
  """259 ids that can spell everything; equal to `seqio.ByteVocabulary`."""
  return Bytes(extra_ids)


def symbols(names: Sequence[str]) -> Symbols:
  """Ids 3, 4, ... for `names` in order; any other symbol is unknown."""
  return Symbols(names)


def sentencepiece(
  path: epath.PathLike,
  extra_ids: int | None = None,
  *,
  eos: Sequence[str] = (),
  allow_remote: bool = False,
) -> SentencePiece:
  """A SentencePiece model file; equal to `seqio.SentencePieceVocabulary(path, extra_ids)`.

  Unless said otherwise a model with T5's special ids gets its 100 extra ids, another none. `eos`
  names the pieces that end an answer, the first being written, if not only the model's own does.
  """
  file = _located(path, allow_remote)
  if not file.exists():
    raise FileNotFoundError(
      f'No SentencePiece model at {file}. Train one with '
      '`python -m cascades.browse_tasks train_vocabulary`.'
    )
  return SentencePiece(file.read_bytes(), file, file=file, extra_ids=extra_ids, eos=eos)


def huggingface(
  path: epath.PathLike,
  *,
  pad: str | None = None,
  eos: Sequence[str] = (),
  bos: str | None = None,
  allow_remote: bool = False,
) -> HuggingFace:
  """A `tokenizer.json`, or a model's folder that has one; equal to what transformers loads.

  The special tokens are those of the folder's JSON files, unless given: several `eos` are written
  by the first and ended by any; bos='' starts the decoder without one.
  """
  return huggingface_tokenizers.read(_located(path, allow_remote), pad=pad, eos=eos, bos=bos)


def gguf(path: epath.PathLike, *, allow_remote: bool = False) -> SentencePiece | HuggingFace:
  """The tokenizer inside a GGUF file (byte-level BPE, or SentencePiece), with its special ids."""
  return gguf_tokenizers.read(_located(path, allow_remote))


def save(vocabulary: Vocabulary, directory: epath.PathLike) -> None:
  """Writes the vocabulary beside what was trained with it, for `load`."""
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  description = vocabulary.describe()
  if isinstance(vocabulary, SentencePiece | HuggingFace):
    files.write(directory / _MODEL_FILES[description['kind']], vocabulary.model)
  files.write(directory / _DESCRIPTION_FILE, json.dumps(description, indent=2).encode())


def load(directory: epath.PathLike) -> Known:
  """The vocabulary that `save` wrote."""
  file = epath.Path(directory) / _DESCRIPTION_FILE
  if not file.exists():
    raise FileNotFoundError(f'No vocabulary in {directory}: {file.name} is missing.')
  return from_description(json.loads(file.read_text()), directory)


def from_description(description: Mapping[str, Any], directory: epath.PathLike) -> Known:
  """The inverse of `describe`; a trained model is read from `directory`."""
  kind = description.get('kind')
  if kind == 'bytes':
    return bytes_vocabulary(description['extra_ids'])
  if kind == 'symbols':
    return symbols(description['names'])
  if kind not in _MODEL_FILES:
    known = ', '.join(('bytes', 'symbols', *_MODEL_FILES))
    raise ValueError(f'Vocabulary kind {kind!r} is not one of {known}.')
  file = epath.Path(directory) / _MODEL_FILES[kind]
  if not file.exists():
    raise FileNotFoundError(f'No vocabulary in {directory}: {file.name} is missing.')
  model = file.read_bytes()
  vocabulary: SentencePiece | HuggingFace
  if kind == 'sentencepiece':
    extra_ids, eos = description['extra_ids'], description.get('eos', ())
    vocabulary = SentencePiece(model, file, file=file, extra_ids=extra_ids, eos=eos)
  else:
    ids = (description['pad_id'], tuple(description['eos_ids']), description['bos_id'])
    vocabulary = HuggingFace(model, SpecialIds(*ids), file)
  if vocabulary.describe() != dict(description):
    raise ValueError(
      f'{file.name} in {directory} is not the model that was saved there: its checksum differs. '
      'Copy the file again from where the model was trained.'
    )
  return vocabulary


def _located(path: epath.PathLike, allow_remote: bool) -> epath.Path:
  files.require_local(path, allow_remote)
  return files.absolute(path)
