"""Tokens that are added to a tokenizer in the JSON files beside it.

transformers adds tokens from five places: `added_tokens_decoder`, the special tokens by role,
`extra_special_tokens` and `additional_special_tokens` of tokenizer_config.json, the same of
special_tokens_map.json, and added_tokens.json. The last two count only where the first is missing.
Flags, such as whether a token takes the spaces before it, are those of `added_tokens_decoder`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from cascades.tokenizers import huggingface_folder, tokenizer_classes
from cascades.tokenizers.huggingface_folder import TokenizerSettings

if TYPE_CHECKING:  # a compiled package that only some runs need
  import tokenizers

log = logging.getLogger(__name__)

_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized')
_EXTRA = ('extra_special_tokens', 'additional_special_tokens')


class DeclaredToken(NamedTuple):
  """A token that a JSON file adds.

  Attributes:
    content: its text.
    id: its id, if the file says so; else the next.
    special: whether it is a special token.
    flags: those that the file gives, by name.
  """

  content: str
  id: int | None
  special: bool
  flags: Mapping[str, bool]


def declared(settings: TokenizerSettings) -> list[DeclaredToken]:
  """The tokens of a folder's JSON files, in the order in which transformers adds them.

  Tokens for images are left out: language models do not read them.
  """
  images = huggingface_folder.token_texts(settings, 'image')
  named = {token.content for token in _named(_options(settings))}
  tokens = {token.content: token for token in reversed([*_all(settings)])}
  ordered = {token.content: tokens[token.content] for token in _all(settings)}
  if tokenizer_classes.name(settings) == 'Qwen2Tokenizer':  # adds its special tokens once more
    ordered |= {c: t._replace(special=True, flags={}) for c, t in ordered.items() if c in named}
  return [token for token in ordered.values() if token.content not in images]


def listed(file: epath.Path) -> list[DeclaredToken]:
  """The added tokens of a tokenizer.json; none if there is no file."""
  entries = huggingface_folder.read(file).get('added_tokens') or []
  try:
    return [_declared(token, int(token['id']), special=token['special']) for token in entries]
  except (TypeError, KeyError, ValueError, AttributeError) as error:
    raise ValueError(
      f'{file} is not a tokenizer.json of Hugging Face: added_tokens ({error!r}).'
    ) from error


def add(
  tokenizer: tokenizers.Tokenizer, settings: TokenizerSettings, origin: epath.Path
) -> list[dict[str, Any]]:
  """Adds the declared tokens to a tokenizer.

  Args:
    tokenizer: the tokenizer, changed in place.
    settings: the JSON files beside it.
    origin: the path of the tokenizer, for messages.

  Returns:
    All added tokens, as tokenizer.json lists them.

  Raises:
    ValueError: a file gives a token another id than its place, or the model has no row for it.
  """
  from tokenizers import AddedToken

  size = settings['config'].get('vocab_size') or math.inf
  tokens = declared(settings)
  if unused := [token for token in tokens if (token.id or 0) >= size]:
    names = ', '.join(repr(token.content) for token in unused[:5])
    log.warning(
      'Leaving out %d added tokens (%s), for which the model has no row: vocab_size is %d.',
      *(len(unused), names, size),
    )
  tokens = [token for token in tokens if (token.id or 0) < size]
  present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
  described = 'added_tokens_decoder' in settings['tokenizer_config']
  for token in tokens:
    if token.content not in present or (described and token.id is not None):
      tokenizer.add_tokens([AddedToken(token.content, special=token.special, **token.flags)])
    index = tokenizer.token_to_id(token.content)
    if index is None or index >= size or token.id not in (None, index):
      expected = f'the id {token.id}' if token.id is not None else f'one of {size} ids of the model'
      raise ValueError(
        f'{origin}: the JSON files beside it give the added token {token.content!r} {expected}, '
        f'and its place is {index}. Save the tokenizer again with `transformers.AutoTokenizer'
        '.from_pretrained(FOLDER).save_pretrained(FOLDER)`, or correct the files.'
      )
  return [
    {
      'id': index,
      'content': token.content,
      **{flag: getattr(token, flag) for flag in _FLAGS},
      'special': token.special,
    }
    for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
  ]


def _all(settings: TokenizerSettings) -> Iterator[DeclaredToken]:
  """Every declaration; of several of a token the first counts."""
  config = settings['tokenizer_config']
  decoder = config.get('added_tokens_decoder', {})
  for index, token in sorted(decoder.items(), key=lambda item: int(item[0])):
    yield _declared(token, int(index), special=bool(token.get('special', False)))
  named = [*_named(_options(settings))]
  special = {token.content for token in named}
  for content, index in sorted(settings['added_tokens'].items(), key=lambda item: item[1]):
    yield DeclaredToken(content, index, content in special, {'normalized': content not in special})
  yield from named


def _options(settings: TokenizerSettings) -> dict[str, Any]:
  """The options that name special tokens."""
  defaults = tokenizer_classes.special_tokens(settings)
  return {**defaults, **settings['tokenizer_config'], **settings['special_tokens_map']}


def _named(options: Mapping[str, Any]) -> Iterator[DeclaredToken]:
  """Special tokens that are named by their role or in a list."""
  extra: Any = next((options[name] for name in _EXTRA if options.get(name)), [])
  roles = {f'{role}_token': None for role in huggingface_folder.ROLES} | dict(options)
  tokens = [token for name, token in roles.items() if name.endswith('_token')]
  tokens += extra.values() if isinstance(extra, Mapping) else extra
  for token in tokens:
    if token and isinstance(token, str | Mapping):
      yield _declared(token, None, special=True)


def _declared(token: str | Mapping[str, Any], index: int | None, *, special: bool) -> DeclaredToken:
  flags = (
    {flag: token[flag] for flag in _FLAGS if flag in token} if not isinstance(token, str) else {}
  )
  return DeclaredToken(huggingface_folder.token_text(token), index, special, flags)
