"""JSON files with a tokenizer's settings in a model folder of Hugging Face; all are optional."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from etils import epath

TokenizerSettings: TypeAlias = Mapping[str, Mapping[str, Any]]  # content, by name without .json

CONFIG = 'tokenizer_config.json'

_TEXT_FILES = ('tokenizer_config', 'special_tokens_map')  # special tokens as text
_ID_FILES = ('generation_config', 'config')  # special tokens as ids


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
  """The files that name special tokens."""
  return {name: read(folder / f'{name}.json') for name in (*_TEXT_FILES, *_ID_FILES)}


def token_text(token: str | Mapping[str, Any] | None) -> str:
  """Text of a special token, written as text or as an object with options; empty for None."""
  return (token['content'] if isinstance(token, Mapping) else token) or ''


def named_tokens(settings: TokenizerSettings) -> dict[str, str]:
  """Texts of the special tokens by the names that chat templates know them by, as `bos_token`."""
  config = settings['tokenizer_config']
  named = {**config, **({} if 'added_tokens_decoder' in config else settings['special_tokens_map'])}
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
