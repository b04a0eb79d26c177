"""Hugging Face's `tokenizer.json`, through the package `tokenizers`; transformers is not needed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from cascades.tokenizers import (
  added_tokens,
  conventions,
  huggingface_folder,
  tokenizer_classes,
)
from cascades.tokenizers.conventions import Tokens
from cascades.tokenizers.huggingface_folder import TokenizerSettings

if TYPE_CHECKING:  # a compiled package that only some runs need
  import tokenizers

TOKENIZER_JSON = 'tokenizer.json'
_UNKNOWN = 'a \U0010fffe'  # with a character that no vocabulary has


@dataclasses.dataclass(frozen=True)
class SpecialIds:
  """Ids of padding, ends and beginning of sequence, which tokenizer.json does not name."""

  pad: int
  eos: tuple[int, ...]
  bos: int | None


class HuggingFace(conventions.AbstractVocabulary):
  """Any tokenizer of a `tokenizer.json`. Special tokens in a text are encoded as such.

  Args:
    model: the content of tokenizer.json.
    ids: the special ids.
    origin: the path of the file, for messages.
    tokenizer: the parsed `model`, if the caller has it; parsing a large one takes seconds.
  """

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
    self._tokenizer = tokenizer or parse(model, origin)
    vocabulary = self._tokenizer.get_vocab()
    self.size = max(vocabulary.values()) + 1
    unknown = content['model'].get('unk_token') or ''
    self.unk_id = content['model'].get('unk_id', vocabulary.get(unknown))

  def __reduce__(self) -> tuple[Any, ...]:
    # Worker processes unpickle one per task, and build it once.
    return _cached, (self.model, self.ids, self._origin)

  def describe(self) -> dict[str, Any]:
    content = hashlib.sha256(self.model).hexdigest()
    ids = {'pad_id': self.pad_id, 'eos_ids': list(self.eos_ids), 'bos_id': self.bos_id}
    return {'kind': 'huggingface', 'sha256': content, **ids}

  def encode(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_all(self, texts: Sequence[str]) -> list[Tokens]:
    encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return conventions.to_arrays([encoding.ids for encoding in encodings])

  def _decode(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def _token_bytes(self, token: int) -> bytes:
    text = self._tokenizer.id_to_token(token) or ''
    if token in self._added:
      return text.encode()
    if '"ByteLevel"' in self._decoder:
      spelled = _byte_characters()
      return b''.join(spelled.get(character, character.encode()) for character in text)
    if '"ByteFallback"' in self._decoder and conventions.is_spelled_byte(text):
      return conventions.spelled_byte(text)
    return text.replace(conventions.SPACE, ' ').encode()

  @functools.cached_property
  def _added(self) -> frozenset[int]:
    """Ids of the added tokens, which stand for themselves."""
    return frozenset(self._tokenizer.get_added_tokens_decoder())

  @functools.cached_property
  def _decoder(self) -> str:
    """Description of the decoder, in JSON."""
    return json.dumps(json.loads(self.model).get('decoder'))


@functools.cache
def _byte_characters() -> dict[str, bytes]:
  """Bytes by the characters that byte-level tokenizers write for them, as GPT-2 does.

  Printable characters of Latin-1 stand for themselves, the other bytes for those from U+0100 on.
  """
  printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
  others = sorted({*range(256)} - printable)
  codes = {byte: byte for byte in printable} | {byte: 256 + n for n, byte in enumerate(others)}
  return {chr(code): bytes([byte]) for byte, code in codes.items()}


def read_huggingface(
  path: epath.Path, *, pad: str | None, eos: Sequence[str], bos: str | None
) -> HuggingFace:
  """Reads the tokenizer in a model's folder, or in one file there.

  Args:
    path: tokenizer.json or its folder.
    pad: the padding token.
    eos: the tokens that end a sequence.
    bos: the token that begins a sequence; '' for none.

  Returns:
    The vocabulary. Tokens that are not given are those of generation_config.json,
    tokenizer_config.json and config.json in the same folder.

  Raises:
    FileNotFoundError: there is no tokenizer.json.
    ValueError: the file is damaged, lacks a token, or no end of sequence is named.
  """
  file = path / TOKENIZER_JSON if path.is_dir() else path
  if not file.exists():
    raise FileNotFoundError(
      f'There is no {file}. A folder with a SentencePiece model (tokenizer.model, spiece.model) '
      'instead is read by `vocabularies.sentencepiece`, given that file.'
    )
  settings = huggingface_folder.read_settings(file.parent)
  if settings['tokenizer_config'].get('split_special_tokens'):
    raise ValueError(
      f'{file.parent / huggingface_folder.CONFIG} sets split_special_tokens, with which a text '
      'cannot hold special tokens; set it to false.'
    )
  model = _as_class_reads(_without_unused_tokens(file.read_bytes(), settings, file), settings, file)
  tokenizer = parse(model, file)
  model = _with_added_tokens(model, tokenizer, settings, file)

  def token_id(token: str) -> int:
    index = tokenizer.token_to_id(token)
    if index is None:
      raise ValueError(f'{file} has no token {token!r} within the vocab_size of config.json.')
    return index

  ids = lambda role: huggingface_folder.special_ids(settings, role, token_id)
  prefix, suffix = _template_ids(tokenizer, file)
  ends = [*map(token_id, eos)] or ids('eos') or suffix[:1]
  if not ends:
    raise ValueError(
      f'{file} and the files beside it name no end of sequence: give it as eos, such as '
      'eos=("</s>",), or copy the tokenizer_config.json of the model to the same folder.'
    )
  padding = token_id(pad) if pad else [*ids('pad'), *ends][0]
  start = token_id(bos) if bos else None
  if bos is None:
    start = _start_id(settings, padding, prefix)
  special = SpecialIds(padding, tuple(ends), start)
  return HuggingFace(model, special, file, tokenizer=tokenizer)


def parse(model: bytes, origin: epath.Path) -> tokenizers.Tokenizer:
  """Parses the content of tokenizer.json. Raises ValueError if it is damaged."""
  import tokenizers

  try:
    tokenizer = tokenizers.Tokenizer.from_str(model.decode())
  except Exception as error:  # the library raises bare Exceptions
    raise ValueError(f'{origin} is not a tokenizer.json of Hugging Face: {error}') from error
  # Files of embedding models set limits; the data pipeline trims instead.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


@functools.lru_cache(maxsize=4)
def _cached(model: bytes, ids: SpecialIds, origin: epath.Path) -> HuggingFace:
  return HuggingFace(model, ids, origin)


def _content(model: bytes, origin: epath.Path) -> dict[str, Any]:
  """The parsed file, without truncation and padding, which belong to one use of the model."""
  try:
    content = json.loads(model) | {'truncation': None, 'padding': None}
    tokens = content.get('added_tokens') or []
    if not all(
      isinstance(token['id'], int) and isinstance(token['content'], str) for token in tokens
    ):
      raise TypeError('added_tokens lack "id" or "content"')
    if not isinstance(content['model'], dict):
      raise TypeError(f'its model is {content["model"]!r:.60}')
    # The library ends the process at a merge without the prefix.
    prefix, merges = (content['model'].get(k) for k in ('continuing_subword_prefix', 'merges'))
    pairs = (merge.split(' ') if isinstance(merge, str) else merge for merge in merges or ())
    if prefix and not all(right.startswith(prefix) for _, right in pairs):
      raise ValueError(f'merges lack the continuing_subword_prefix {prefix!r}')
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
    raise ValueError(f'{origin} is not a tokenizer.json of Hugging Face: {error!r}') from error
  return content


def _without_unused_tokens(model: bytes, settings: TokenizerSettings, file: epath.Path) -> bytes:
  """Removes the last added tokens that a language model never reads.

  These are the token for images, and ids beyond the model's embedding table. Gemma 3's
  `<image_soft_token>` is both in the text-only sizes; without it all sizes share a vocabulary.
  """
  content = _content(model, file)
  images = huggingface_folder.token_texts(settings, 'image')
  size = settings['config'].get('vocab_size') or math.inf
  added = content.get('added_tokens') or []
  unused = lambda token: token['id'] >= size or token['content'] in images
  tokens = [*itertools.dropwhile(unused, reversed(added))][::-1]
  return json.dumps(content | {'added_tokens': tokens}).encode() if tokens != added else model


def _as_class_reads(model: bytes, settings: TokenizerSettings, file: epath.Path) -> bytes:
  """The file as the tokenizer's class in transformers reads it; see `tokenizer_classes`."""
  content, original = _content(model, file), _content(model, file)
  content = tokenizer_classes.apply(content, settings)
  return json.dumps(content).encode() if content != original else model


def _with_added_tokens(
  model: bytes, tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, file: epath.Path
) -> bytes:
  """Adds the tokens of the JSON files beside a tokenizer.json to both; see `added_tokens`."""
  content = _content(model, file)
  tokens = added_tokens.add(tokenizer, settings, file)
  if tokens == sorted(content.get('added_tokens') or [], key=lambda token: token['id']):
    return model
  return json.dumps(content | {'added_tokens': tokens}).encode()


def _start_id(settings: TokenizerSettings, pad: int, prefix: Sequence[int]) -> int | None:
  """The decoder's first input; None if the model was trained without one.

  The template of a tokenizer.json says it; like transformers 5, `add_bos_token` is not read then.
  """
  for name in ('generation_config', 'config'):
    if (start := settings[name].get('decoder_start_token_id')) is not None:
      return start
  if tokenizer_classes.name(settings) == 'T5Tokenizer':
    return pad
  return prefix[0] if prefix else None


def _template_ids(tokenizer: tokenizers.Tokenizer, file: epath.Path) -> tuple[list[int], list[int]]:
  """The ids that the tokenizer's template puts before and after a text.

  Raises:
    ValueError: the tokenizer fails on a text: its parts contradict each other.
  """
  try:
    tokenizer.encode(_UNKNOWN)
    plain = tokenizer.encode('a', add_special_tokens=False).ids
    full = tokenizer.encode('a', add_special_tokens=True).ids
  except (KeyboardInterrupt, SystemExit):
    raise
  except BaseException as error:  # panics of the library are no Exceptions
    raise ValueError(f'{file} cannot tokenize a text: {error}') from error
  starts = (n for n in range(len(full)) if full[n : n + len(plain)] == plain)
  before = next(starts, None)
  if before is None:
    raise ValueError(f'{file} cannot tokenize a text: its template does not contain the text.')
  return full[:before], full[before + len(plain) :]
