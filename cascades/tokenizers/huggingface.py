"""Hugging Face's `tokenizer.json`, through the package `tokenizers`; transformers is not needed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from cascades.tokenizers import conventions, huggingface_folder
from cascades.tokenizers.conventions import Tokens
from cascades.tokenizers.huggingface_folder import Said

if TYPE_CHECKING:  # a compiled package that only some runs need
  import tokenizers

FILE = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Which ids mean what; tokenizer.json does not say."""

  pad: int
  eos: tuple[int, ...]
  bos: int | None


class HuggingFace(conventions.Conventions):
  """Any tokenizer that `tokenizer.json` can describe. Special tokens in a text are recognised."""

  def __init__(
    self,
    model: bytes,
    ids: SpecialIds,
    origin: epath.Path,
    *,
    tokenizer: tokenizers.Tokenizer | None = None,
  ) -> None:
    content = _content(model, origin)
    self.model = json.dumps(content, ensure_ascii=False, separators=(',', ':')).encode()
    self.ids = ids
    self.pad_id, self.eos_ids, self.bos_id = ids.pad, ids.eos, ids.bos
    self._origin = origin
    self._tokenizer = tokenizer or parse(model, origin)  # a large one takes seconds
    vocabulary = self._tokenizer.get_vocab()
    self.size = max(vocabulary.values()) + 1
    self.unk_id = _unknown(content['model'], vocabulary)

  def __reduce__(self) -> tuple[Any, ...]:
    # Processes that tokenise get one with every task, and build it once.
    return _rebuilt, (self.model, self.ids, self._origin)

  def describe(self) -> dict[str, Any]:
    content = hashlib.sha256(self.model).hexdigest()
    ids = {'pad_id': self.pad_id, 'eos_ids': list(self.eos_ids), 'bos_id': self.bos_id}
    return {'kind': 'huggingface', 'sha256': content, **ids}

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return conventions.concatenated([one.ids for one in found])

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=False)


def read(path: epath.Path, *, pad: str | None, eos: Sequence[str], bos: str | None) -> HuggingFace:
  """The tokenizer of a model's folder, or of one file in it.

  Tokens that are not given are those of generation_config.json, tokenizer_config.json and
  config.json beside it; bos='' means none.
  """
  file = path / FILE if path.is_dir() else path
  if not file.exists():
    raise FileNotFoundError(
      f'There is no {file}. A folder with a SentencePiece model (tokenizer.model, spiece.model) '
      'instead is read by `vocabularies.sentencepiece`, given that file.'
    )
  said = huggingface_folder.said(file.parent)
  model = _spellable(file.read_bytes(), said, file)
  tokenizer = parse(model, file)
  named = lambda token: _id(tokenizer, token, file)
  ids = lambda which: huggingface_folder.special_ids(said, which, named)
  leading, trailing = _added(tokenizer)
  ends = [*map(named, eos)] or ids('eos') or trailing[:1]
  if not ends:
    raise ValueError(
      f'{file} and the files beside it name no end of sequence: give it as eos, such as '
      'eos=("</s>",), or copy the tokenizer_config.json of the model beside it.'
    )
  padding = named(pad) if pad else [*ids('pad'), *ends][0]
  start = named(bos) if bos else None
  if bos is None:
    start = _start(said, padding, leading, ids, file)
  special = SpecialIds(padding, tuple(ends), start)
  return HuggingFace(model, special, file, tokenizer=tokenizer)


def parse(model: bytes, origin: epath.Path) -> tokenizers.Tokenizer:
  """The library's tokenizer."""
  import tokenizers

  try:
    tokenizer = tokenizers.Tokenizer.from_str(model.decode())
  except Exception as error:  # the library raises bare Exceptions
    raise ValueError(f'{origin} is not a tokenizer.json of Hugging Face: {error}') from error
  # Models for embeddings bring limits of their own; trimming is the feed's business.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


@functools.lru_cache(maxsize=4)
def _rebuilt(model: bytes, ids: SpecialIds, origin: epath.Path) -> HuggingFace:
  return HuggingFace(model, ids, origin)


def _content(model: bytes, origin: epath.Path) -> dict[str, Any]:
  """The same whether or not the file was cut to one use of the model."""
  try:
    return json.loads(model) | {'truncation': None, 'padding': None}
  except (ValueError, TypeError) as error:
    raise ValueError(f'{origin} is not a tokenizer.json of Hugging Face: {error}') from error


def _unknown(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> int | None:
  return model.get('unk_id', vocabulary.get(model.get('unk_token') or ''))


def _spellable(model: bytes, said: Said, file: epath.Path) -> bytes:
  """Without the last added tokens, where no text of a language model may hold them.

  The one for images, and those that the model's table has no row for. Gemma 3's
  `<image_soft_token>` is both in the sizes that read only text; as the others leave it out too, all
  share a vocabulary.
  """
  content = _content(model, file)
  images = huggingface_folder.spellings(said, 'image')
  size = said['config'].get('vocab_size') or math.inf
  added = content.get('added_tokens') or []
  unread = lambda token: token['id'] >= size or token['content'] in images
  kept = [*itertools.dropwhile(unread, reversed(added))][::-1]
  return json.dumps(content | {'added_tokens': kept}).encode() if kept != added else model


def _id(tokenizer: tokenizers.Tokenizer, token: str, file: epath.Path) -> int:
  found = tokenizer.token_to_id(token)
  if found is None:
    raise ValueError(f'{file} has no token {token!r} within the vocab_size of config.json.')
  return found


def _start(
  said: Said,
  pad: int,
  leading: Sequence[int],
  ids: Callable[[str], list[int]],
  file: epath.Path,
) -> int | None:
  """What a decoder reads first, if the model was trained with anything."""
  for name in ('generation_config', 'config'):
    if (start := said[name].get('decoder_start_token_id')) is not None:
      return start
  if 'T5' in (said['tokenizer_config'].get('tokenizer_class') or ''):
    return pad
  adds = said['tokenizer_config'].get('add_bos_token')
  if not adds and (adds is not None or not leading):
    return None
  found = [*leading, *ids('bos')]
  if not found:
    raise ValueError(
      f'{file.parent / huggingface_folder.CONFIG} asks for a beginning of sequence '
      '(add_bos_token) and names none: give it as bos, or bos="" to do without.'
    )
  return found[0]


def _added(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
  """The ids that the tokenizer itself puts before and behind a text."""
  plain = tokenizer.encode('a', add_special_tokens=False).ids
  whole = tokenizer.encode('a', add_special_tokens=True).ids
  before = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
  return whole[:before], whole[before + len(plain) :]
