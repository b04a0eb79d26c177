"""Vocabularies, text to token ids and back: bytes, symbols, and tokenizers of pretrained models.

In bytes and symbols 0 is padding and the decoder's first input, 1 the end of sequence and 2
unknown, as in T5. SentencePiece, Hugging Face and GGUF define their own special ids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from etils import epath

from cascades.runtime import files
from cascades.tokenizers import conventions
from cascades.tokenizers.conventions import TOKEN, UNK_ID, AbstractVocabulary, Tokens
from cascades.tokenizers.gguf import read_gguf
from cascades.tokenizers.huggingface import (
  TOKENIZER_JSON,
  HuggingFace,
  SpecialIds,
  read_huggingface,
)
from cascades.tokenizers.sentencepiece import SentencePiece
from cascades.types import Vocabulary

SavedVocabulary: TypeAlias = 'Bytes | Symbols | SentencePiece | HuggingFace'

MAX_EXTRA_IDS = 1 << 16  # that a vocabulary.json may ask for; T5 has 100
_FIRST_ID = 3
_DESCRIPTION_FILE = 'vocabulary.json'
_MODEL_FILES = {'sentencepiece': 'sentencepiece.model', 'huggingface': TOKENIZER_JSON}


class Bytes(AbstractVocabulary):
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
    text = bytes(i - _FIRST_ID for i in ids if _FIRST_ID <= i < _FIRST_ID + 256)
    return text.decode(errors='ignore')

  def _token_bytes(self, token: int) -> bytes:
    return bytes(i - _FIRST_ID for i in [token] if _FIRST_ID <= i < _FIRST_ID + 256)


class Symbols(AbstractVocabulary):
  """A closed list of symbols, separated by white space."""

  def __init__(self, names: Sequence[str]) -> None:
    if not names or any(name.encode().split() != [name.encode()] for name in names):
      raise ValueError('A symbol is a non-empty string without white space; give at least one.')
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
      raise ValueError(f'Symbols must differ, but these are repeated: {", ".join(repeated)}.')
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
  """259 ids that encode any text; equal to `seqio.ByteVocabulary`."""
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
  """Reads a SentencePiece model; equal to `seqio.SentencePieceVocabulary(path, extra_ids)`.

  Args:
    path: the model file.
    extra_ids: the number of sentinels; None for 100 in a model with T5's special ids, else 0.
    eos: the pieces that end an answer, for models that define none or several; targets end with
      the first.
    allow_remote: whether the path may be in an object store.

  Raises:
    FileNotFoundError: there is no file.
    ValueError: the file is damaged, lacks a piece in `eos`, or defines no end of sequence.
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
  """Reads a `tokenizer.json`; equal to what transformers loads.

  Args:
    path: the file, or the model's folder.
    pad: the padding token; by default, like `eos` and `bos`, that of the folder's JSON files.
    eos: the tokens that end an answer; targets end with the first.
    bos: the decoder's first input; '' for none.
    allow_remote: whether the path may be in an object store.

  Raises:
    FileNotFoundError: there is no tokenizer.json.
    ValueError: the file is damaged, lacks a token, or no end of sequence is named.
  """
  return read_huggingface(_located(path, allow_remote), pad=pad, eos=eos, bos=bos)


def gguf(path: epath.PathLike, *, allow_remote: bool = False) -> SentencePiece | HuggingFace:
  """Reads the tokenizer in a GGUF file (byte-level BPE, or SentencePiece).

  Raises:
    ValueError: the file is damaged, or its tokenizer is not supported.
  """
  return read_gguf(_located(path, allow_remote))


def save(vocabulary: Vocabulary, directory: epath.PathLike) -> None:
  """Writes a vocabulary beside the model that was trained with it, for `load`.

  Args:
    vocabulary: the vocabulary; a SentencePiece model or tokenizer.json is copied.
    directory: the run directory, created if it does not exist.
  """
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  description = vocabulary.describe()
  if isinstance(vocabulary, SentencePiece | HuggingFace):
    files.write(directory / _MODEL_FILES[description['kind']], vocabulary.model)
  files.write(directory / _DESCRIPTION_FILE, json.dumps(description, indent=2).encode())


def load(directory: epath.PathLike) -> SavedVocabulary:
  """Reads the vocabulary that `save` wrote.

  Raises:
    FileNotFoundError: the directory holds no vocabulary, or its model file is missing.
    ValueError: the model file was changed.
  """
  file = epath.Path(directory) / _DESCRIPTION_FILE
  if not file.exists():
    raise FileNotFoundError(f'No vocabulary in {directory}: {file.name} is missing.')
  try:
    description = json.loads(file.read_text())
    _check_extra_ids(description.get('extra_ids', 0))
    return from_description(description, directory)
  except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
    raise ValueError(
      f'{file} is damaged ({error!r}): copy it again from where the model was trained.'
    ) from error


def _check_extra_ids(count: object) -> None:
  if not isinstance(count, int) or not 0 <= count <= MAX_EXTRA_IDS:
    raise TypeError(f'extra_ids is {count!r:.40}; it should be a number up to {MAX_EXTRA_IDS}')


def from_description(description: Mapping[str, Any], directory: epath.PathLike) -> SavedVocabulary:
  """Builds the vocabulary that `describe` described; its model file is read from `directory`."""
  vocabulary_type = description.get('kind')
  if vocabulary_type == 'bytes':
    return bytes_vocabulary(description['extra_ids'])
  if vocabulary_type == 'symbols':
    return symbols(description['names'])
  if vocabulary_type not in _MODEL_FILES:
    types = ', '.join(('bytes', 'symbols', *_MODEL_FILES))
    raise ValueError(f'Vocabulary kind {vocabulary_type!r} is not one of {types}.')
  file = epath.Path(directory) / _MODEL_FILES[vocabulary_type]
  if not file.exists():
    raise FileNotFoundError(f'No vocabulary in {directory}: {file.name} is missing.')
  model = file.read_bytes()
  vocabulary: SentencePiece | HuggingFace
  if vocabulary_type == 'sentencepiece':
    extra_ids, eos = description['extra_ids'], description.get('eos', ())
    vocabulary = SentencePiece(model, file, file=file, extra_ids=extra_ids, eos=eos)
  else:
    ids = (description['pad_id'], tuple(description['eos_ids']), description['bos_id'])
    vocabulary = HuggingFace(model, SpecialIds(*ids), file)
  if vocabulary.describe() != dict(description):
    raise ValueError(
      f'{file.name} in {directory} is not the model that was saved: its checksum differs. '
      'Copy the file again from where the model was trained.'
    )
  return vocabulary


def _located(path: epath.PathLike, allow_remote: bool) -> epath.Path:
  files.require_local(path, allow_remote)
  return files.absolute(path)
