"""JSON files with a tokenizer's settings in a model folder of Hugging Face; all are optional."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from etils import epath

TokenizerSettings: TypeAlias = Mapping[str, Mapping[str, Any]]  # content, by name without .json

CONFIG = 'tokenizer_config.json'

ROLES = ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')  # of special tokens
_TEXT_FILES = ('tokenizer_config', 'special_tokens_map')  # special tokens as text
_ID_FILES = ('generation_config', 'config')  # special tokens as ids
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_SWITCHES = (
  *('add_bos_token', 'add_eos_token', 'add_prefix_space', 'do_lower_case', 'legacy'),
  *('split_special_tokens', 'strip_accents', 'tokenize_chinese_chars'),
)
MAX_ID = 1 << 24  # of tokens; public vocabularies have up to 2**18


def read(file: epath.Path) -> dict[str, Any]:
  """The object in a JSON file; empty if there is no file.

  Raises:
    ValueError: the file holds no JSON object.
  """
  try:
    return {} | json.loads(file.read_text()) if file.exists() else {}
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'{file} is damaged, it should hold a JSON object ({error}): copy it again from where the '
      'model was published.'
    ) from error


def read_text(file: epath.Path) -> str:
  """The text of a file. Raises ValueError if it is not in UTF-8."""
  try:
    return file.read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} is damaged, it should hold text in UTF-8 ({error}).') from error


def read_settings(folder: epath.Path) -> TokenizerSettings:
  """The files that name special and added tokens.

  Raises:
    ValueError: a file is damaged, or a value that is read here has another type.
  """
  names = (*_TEXT_FILES, *_ID_FILES, 'added_tokens')
  settings = {name: read(folder / f'{name}.json') for name in names}
  for name, content in settings.items():
    for key, value in content.items():
      expected = _ID if name == 'added_tokens' else _expected(key)
      if expected and not expected.accepts(value):
        raise ValueError(
          f'{folder / name}.json is damaged: {key!r} is {value!r:.60}; it should be '
          f'{expected.description}.'
        )
  if 'added_tokens_decoder' in settings['tokenizer_config']:
    # It is newer, and transformers reads the two older files no longer.
    image = {k: v for k, v in settings['special_tokens_map'].items() if k == 'image_token'}
    settings |= {'special_tokens_map': image, 'added_tokens': {}}
  return settings


class _Expected(NamedTuple):
  """A type of values, and a text about it."""

  accepts: Callable[[Any], bool]
  description: str


def _is_id(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and -1 <= value < MAX_ID


def _is_token(value: Any) -> bool:
  if isinstance(value, Mapping):
    flags = (value[flag] for flag in _FLAGS if flag in value)
    return isinstance(value.get('content'), str) and all(isinstance(f, bool) for f in flags)
  return isinstance(value, str)


def _is_decoder(value: Any) -> bool:
  return (
    isinstance(value, Mapping)
    and all(
      index.isascii() and index.isdigit() and int(index) < MAX_ID and isinstance(token, Mapping)
      for index, token in value.items()
    )
    and all(_is_token(token) for token in value.values())
  )


def _is_tokens(value: Any) -> bool:
  tokens = value.values() if isinstance(value, Mapping) else value
  return value is None or (isinstance(value, list | Mapping) and all(map(_is_token, tokens)))


_ID = _Expected(_is_id, f'an id below {MAX_ID}')
_IDS = _Expected(
  lambda value: value is None or all(map(_is_id, value if isinstance(value, list) else [value])),
  f'an id below {MAX_ID}, or a list of such',
)
_TOKEN = _Expected(
  lambda value: value is None or _is_token(value),
  'a text, or an object with "content"',
)
_TOKENS = _Expected(_is_tokens, 'a list of tokens, each a text or an object with "content"')
_DECODER = _Expected(_is_decoder, f'an object from ids below {MAX_ID} to objects with "content"')
_COUNT = _Expected(lambda value: value is None or (_is_id(value) and value >= 0), _ID.description)
_SWITCH = _Expected(lambda value: value is None or isinstance(value, bool), 'true or false')
_NAME = _Expected(lambda value: value is None or isinstance(value, str), 'a text')


def _expected(key: str) -> _Expected | None:
  """The type of the value of a key that is read here."""
  if key.endswith('_token_id'):
    return _IDS
  if key in _SWITCHES:
    return _SWITCH
  if key.removesuffix('_token') in ROLES and key.endswith('_token'):
    return _TOKEN
  return _TYPES.get(key)


_TYPES = {
  'added_tokens_decoder': _DECODER,
  'additional_special_tokens': _TOKENS,
  'extra_special_tokens': _TOKENS,
  'extra_ids': _Expected(lambda value: value in (None, *range(1 << 16)), 'a number below 65536'),
  'image_token': _TOKEN,
  'tokenizer_class': _NAME,
  'vocab_size': _COUNT,
}


def token_text(token: str | Mapping[str, Any] | None) -> str:
  """Text of a special token, written as text or as an object with options; empty for None."""
  return (token['content'] if isinstance(token, Mapping) else token) or ''


def named_tokens(settings: TokenizerSettings) -> dict[str, str]:
  """Texts of the special tokens by the names that chat templates know them by, as `bos_token`."""
  named = {**settings['tokenizer_config'], **settings['special_tokens_map']}
  extra = named.get('extra_special_tokens')
  named |= extra if isinstance(extra, Mapping) else {}
  texts = {
    name: token_text(token)
    for name, token in named.items()
    if name.endswith('_token') and isinstance(token, str | Mapping)
  }
  return {name: text for name, text in texts.items() if text}


def token_texts(settings: TokenizerSettings, role: str) -> list[str]:
  """Texts of the tokens for 'eos', 'image' and the like, without repetition."""
  texts = [token_text(settings[name].get(f'{role}_token')) for name in _TEXT_FILES]
  return [text for text in dict.fromkeys(texts) if text]


def special_ids(
  settings: TokenizerSettings, role: str, token_id: Callable[[str], int]
) -> list[int]:
  """Ids for 'pad', 'eos' or 'bos' without repetition; those given as text come first."""
  ids = [token_id(text) for text in token_texts(settings, role)]
  for name in _ID_FILES:
    stored = settings[name].get(f'{role}_token_id')
    ids += stored if isinstance(stored, list) else [] if stored is None else [stored]
  return list(dict.fromkeys(i for i in ids if i >= 0))
