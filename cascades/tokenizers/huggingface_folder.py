"""What the JSON files in a model's folder of Hugging Face say, where they are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from etils import epath

Said: TypeAlias = Mapping[str, Mapping[str, Any]]  # what a file says, by its name without .json

CONFIG = 'tokenizer_config.json'

_SPELL, _NUMBER = ('tokenizer_config', 'special_tokens_map'), ('generation_config', 'config')


def read(file: epath.Path) -> dict[str, Any]:
  """A file's object, empty if there is no file. Raises ValueError if it holds anything else."""
  try:
    return {} | json.loads(file.read_text()) if file.exists() else {}
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'{file} is damaged, it should hold a JSON object ({error}): copy it again from where the '
      'model was published.'
    ) from error


def said(folder: epath.Path) -> Said:
  """All that may be said of a tokenizer's special tokens."""
  return {name: read(folder / f'{name}.json') for name in (*_SPELL, *_NUMBER)}


def spelling(token: str | Mapping[str, Any] | None) -> str:
  """A special token's text, with or without how it is to be matched; none is empty."""
  return (token['content'] if isinstance(token, Mapping) else token) or ''


def spellings(said: Said, which: str) -> list[str]:
  """The texts of 'eos', 'image' and the like, without repetition."""
  found = [spelling(said[name].get(f'{which}_token')) for name in _SPELL]
  return [text for text in dict.fromkeys(found) if text]


def special_ids(said: Said, which: str, named: Callable[[str], int]) -> list[int]:
  """The ids of 'pad', 'eos' or 'bos', those of tokens that are spelled first; each once."""
  ids = [named(text) for text in spellings(said, which)]
  for name in _NUMBER:
    found = said[name].get(f'{which}_token_id')
    ids += found if isinstance(found, list) else [] if found is None else [found]
  return list(dict.fromkeys(i for i in ids if i >= 0))
