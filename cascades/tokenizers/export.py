"""Tokenizer files of transformers, and of servers built on it, from a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import sentencepiece as spm
from etils import epath

from cascades.tokenizers import huggingface_folder
from cascades.tokenizers.huggingface import TOKENIZER_JSON, HuggingFace, parse
from cascades.tokenizers.sentencepiece import ModelProto, SentencePiece
from cascades.types import Vocabulary

CHAT_TEMPLATE = 'chat_template.jinja'


class _TokenizerFile(NamedTuple):
  """The file with the tokens, options of its tokenizer_config.json, and tokens by id."""

  name: str
  content: bytes
  options: dict[str, Any]
  token: Callable[[int], str | None]


def tokenizer_files(
  vocabulary: Vocabulary, *, chat_template: str | None = None
) -> dict[str, bytes]:
  """Writes a vocabulary as the files that transformers reads a tokenizer from.

  T5's tokenizer normalizes white space as the released models do, even if the vocabulary does not.

  Args:
    vocabulary: the vocabulary.
    chat_template: the Jinja template of a chat model.

  Returns:
    The files by name; none for a type of vocabulary that transformers does not have.
  """
  bos = None if _is_t5(vocabulary) else vocabulary.bos_id
  if isinstance(vocabulary, HuggingFace):
    file = _huggingface(vocabulary, bos)
  elif isinstance(vocabulary, SentencePiece):
    file = _sentencepiece(vocabulary)
  else:
    return {}
  ids = {'bos': bos, 'eos': vocabulary.eos_id, 'pad': vocabulary.pad_id, 'unk': vocabulary.unk_id}
  options = {
    **file.options,
    **{f'{role}_token': file.token(i) for role, i in ids.items() if i is not None},
    'add_bos_token': bos is not None,
    'clean_up_tokenization_spaces': False,
    **({'chat_template': chat_template} if chat_template else {}),
  }
  return {file.name: file.content, huggingface_folder.CONFIG: _json(options)}


def end_prompts(files: Mapping[str, bytes], vocabulary: Vocabulary) -> dict[str, bytes]:
  """Makes tokenizer files put an end of sequence after a text, as a prompt has it in training here.

  A text gets the beginning of sequence, if the vocabulary has one, and the end; the chat template
  writes the same around the last message. T5's tokenizer ends a text already.

  Args:
    files: the files by name, generated or copied.
    vocabulary: the vocabulary that they are of.

  Returns:
    All files, some changed.

  Raises:
    ValueError: there are no tokenizer files, or `vocabulary` is none that transformers has.
  """
  if not isinstance(vocabulary, HuggingFace | SentencePiece):
    raise ValueError(
      'PROMPT_END needs a tokenizer that transformers has, and the vocabulary is none.'
    )
  if _is_t5(vocabulary):
    return dict(files)
  token = _token_text(vocabulary)
  start, end = vocabulary.bos_id, vocabulary.eos_id
  before = [] if start is None else [token(start)]
  options = json.loads(files.get(huggingface_folder.CONFIG, b'{}'))
  options |= {'eos_token': token(end), 'add_bos_token': bool(before), 'add_eos_token': True}
  changed = {huggingface_folder.CONFIG: _json(options)}
  if TOKENIZER_JSON in files:  # transformers reads its template, and not the two options
    ids = {token(index): index for index in (start, end) if index is not None}
    changed[TOKENIZER_JSON] = _with_template(files[TOKENIZER_JSON], before, [token(end)], ids)
  written = json.dumps(''.join(before), ensure_ascii=False), json.dumps(token(end))
  template = f"{{{{ {written[0]} }}}}{{{{ messages[-1]['content'] }}}}{{{{ {written[1]} }}}}"
  return {**files, **changed, CHAT_TEMPLATE: template.encode()}


def special_ids(vocabulary: Vocabulary, config: Mapping[str, Any]) -> dict[str, Any]:
  """Adds the special ids of a vocabulary to the options of a config.json that lacks them."""
  first, *others = vocabulary.eos_ids
  return {
    'eos_token_id': [first, *others] if others else first,
    'pad_token_id': vocabulary.pad_id,
    **({} if 'decoder_start_token_id' in config else {'bos_token_id': vocabulary.bos_id}),
    **config,
  }


def _is_t5(vocabulary: Vocabulary) -> bool:
  return vocabulary.bos_id == vocabulary.pad_id


def _sentencepiece(vocabulary: SentencePiece) -> _TokenizerFile:
  content = vocabulary.model
  token = spm.SentencePieceProcessor(model_proto=content).IdToPiece
  if _is_t5(vocabulary):
    options = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': vocabulary.extra_ids}
    return _TokenizerFile('spiece.model', content, options, token)
  # The two classes differ in the prefix of a text.
  llama = ModelProto.FromString(content).normalizer_spec.add_dummy_prefix
  options = {'tokenizer_class': 'LlamaTokenizer' if llama else 'GemmaTokenizer'}
  return _TokenizerFile('tokenizer.model', content, options, token)


def _huggingface(vocabulary: HuggingFace, bos: int | None) -> _TokenizerFile:
  content, token = vocabulary.model, _token_text(vocabulary)
  tokenizer = parse(content, epath.Path(TOKENIZER_JSON))
  plain, full = (tokenizer.encode('a', add_special_tokens=special).ids for special in (False, True))
  if full[:1] != (plain[:1] if bos is None else [bos]):
    # transformers reads the template and ignores `add_bos_token`.
    before = {} if bos is None else {token(bos): bos}
    content = _with_template(content, [*before], [], before)
  # The class for any tokenizer.json.
  options = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  return _TokenizerFile(TOKENIZER_JSON, content, options, tokenizer.id_to_token)


def _token_text(vocabulary: HuggingFace | SentencePiece) -> Callable[[int], str]:
  """The function from an id to the token's text."""
  if isinstance(vocabulary, SentencePiece):
    return spm.SentencePieceProcessor(model_proto=vocabulary.model).IdToPiece
  tokenizer = parse(vocabulary.model, epath.Path(TOKENIZER_JSON))
  return lambda index: tokenizer.id_to_token(index) or ''


def _with_template(
  content: bytes, before: Sequence[str], after: Sequence[str], ids: Mapping[str, int]
) -> bytes:
  """A tokenizer.json that puts these tokens around a text, instead of others."""
  from tokenizers import processors

  tokenizer = parse(content, epath.Path(TOKENIZER_JSON))
  template = processors.TemplateProcessing(
    single=[*before, '$A', *after],
    pair=[*before, '$A', *after, *(f'{token}:1' for token in before), '$B:1', *after],
    special_tokens=[*ids.items()],
  )
  tokenizer.post_processor = template
  return tokenizer.to_str().encode()


def _json(options: Mapping[str, Any]) -> bytes:
  return (json.dumps(options, indent=2, ensure_ascii=False) + '\n').encode()
