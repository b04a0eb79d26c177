"""Hugging Face's `tokenizer.json`, through the package `tokenizers`; transformers is not needed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from cascades.tasks import tokens
from cascades.tasks.tokens import Tokens

if TYPE_CHECKING:  # a compiled package that only some runs need
  import tokenizers

FILE = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Which ids mean what; tokenizer.json does not say."""

  pad: int
  eos: tuple[int, ...]
  bos: int | None


class HuggingFace(tokens.Conventions):
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
    return tokens.concatenated([one.ids for one in found])

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
  model = file.read_bytes()
  tokenizer = parse(model, file)
  said = {
    name: _optional(file.parent / f'{name}.json')
    for name in ('config', 'generation_config', 'tokenizer_config', 'special_tokens_map')
  }
  named = lambda token: _id(tokenizer, token, file)
  ends = tuple(map(named, eos)) or _ends(tokenizer, said, file)
  pads = [named(pad)] if pad else _said(tokenizer, said, 'pad', file)
  start = (named(bos) if bos else None) if bos is not None else _start(tokenizer, said, pads, file)
  ids = SpecialIds([*pads, ends[0]][0], ends, start)
  return HuggingFace(model, ids, file, tokenizer=tokenizer)


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


def _optional(file: epath.Path) -> dict[str, Any]:
  return json.loads(file.read_text()) if file.exists() else {}


def _id(tokenizer: tokenizers.Tokenizer, token: str, file: epath.Path) -> int:
  found = tokenizer.token_to_id(token)
  if found is None:
    raise ValueError(f'{file} has no token {token!r}.')
  return found


def _said(
  tokenizer: tokenizers.Tokenizer, said: Mapping[str, Any], which: str, file: epath.Path
) -> list[int]:
  """The ids of 'pad', 'eos' or 'bos' in the files that may say them, without repetition."""
  ids = []
  for name in ('tokenizer_config', 'special_tokens_map'):
    token = said[name].get(f'{which}_token')
    text = token['content'] if isinstance(token, dict) else token
    ids += [_id(tokenizer, text, file)] if text else []
  for name in ('generation_config', 'config'):
    found = said[name].get(f'{which}_token_id')
    ids += found if isinstance(found, list) else [] if found is None else [found]
  return list(dict.fromkeys(i for i in ids if i >= 0))


def _ends(
  tokenizer: tokenizers.Tokenizer, said: Mapping[str, Any], file: epath.Path
) -> tuple[int, ...]:
  _, trailing = _added(tokenizer)
  ends = _said(tokenizer, said, 'eos', file) or trailing[:1]
  if not ends:
    raise ValueError(
      f'{file} and the files beside it name no end of sequence: give it as eos, such as '
      'eos=("</s>",), or copy the tokenizer_config.json of the model beside it.'
    )
  return tuple(ends)


def _start(
  tokenizer: tokenizers.Tokenizer, said: Mapping[str, Any], pads: Sequence[int], file: epath.Path
) -> int | None:
  """What a decoder reads first, if the model was trained with anything."""
  for name in ('generation_config', 'config'):
    if (start := said[name].get('decoder_start_token_id')) is not None:
      return start
  if 'T5' in said['tokenizer_config'].get('tokenizer_class', ''):
    return pads[0]
  adds = said['tokenizer_config'].get('add_bos_token')
  leading, _ = _added(tokenizer)
  if adds or (adds is None and leading):
    return [*leading, *_said(tokenizer, said, 'bos', file)][0]
  return None


def _added(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
  """The ids that the tokenizer itself puts before and behind a text."""
  plain = tokenizer.encode('a', add_special_tokens=False).ids
  whole = tokenizer.encode('a', add_special_tokens=True).ids
  before = next(n for n in range(len(whole)) if whole[n : n + len(plain)] == plain)
  return whole[:before], whole[before + len(plain) :]
