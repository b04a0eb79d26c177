"""Tokenizer files of transformers, and of servers built on it, from a vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import sentencepiece as spm
from etils import epath

from cascades.tokenizers import huggingface_folder
from cascades.tokenizers.huggingface import TOKENIZER_JSON, HuggingFace, parse
from cascades.tokenizers.sentencepiece import ModelProto, SentencePiece
from cascades.types import Vocabulary


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
  text = json.dumps(options, indent=2, ensure_ascii=False) + '\n'
  return {file.name: file.content, huggingface_folder.CONFIG: text.encode()}


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
  from tokenizers import processors

  content = vocabulary.model
  tokenizer = parse(content, epath.Path(TOKENIZER_JSON))
  if bos is not None and tokenizer.encode('a').ids[0] != bos:
    # transformers reads the template and ignores `add_bos_token`.
    token = tokenizer.id_to_token(bos)
    template = processors.TemplateProcessing(
      single=[token, '$A'], pair=[token, '$A', token, '$B:1'], special_tokens=[(token, bos)]
    )
    others = [tokenizer.post_processor] if tokenizer.post_processor else []
    tokenizer.post_processor = processors.Sequence([*others, template])
    content = tokenizer.to_str().encode()
  # The class for any tokenizer.json.
  options = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  return _TokenizerFile(TOKENIZER_JSON, content, options, tokenizer.id_to_token)
