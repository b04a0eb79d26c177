"""A vocabulary as the files that transformers, and servers built on it, read a tokenizer from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import sentencepiece as spm
from etils import epath

from cascades.tokenizers import huggingface, huggingface_folder
from cascades.tokenizers.huggingface import HuggingFace
from cascades.tokenizers.sentencepiece import ModelProto, SentencePiece
from cascades.types import Vocabulary


class _Model(NamedTuple):
  """The file that holds the tokens, transformers' class for it, and how a token is spelled."""

  name: str
  content: bytes
  said: dict[str, Any]
  spelled: Callable[[int], str | None]


def tokenizer_files(
  vocabulary: Vocabulary, *, chat_template: str | None = None
) -> dict[str, bytes]:
  """By file name; none of a vocabulary that transformers has no tokenizer for.

  T5's own cuts white space as its released models do, whatever the vocabulary was trained to do.
  """
  bos = None if _is_t5(vocabulary) else vocabulary.bos_id
  if isinstance(vocabulary, HuggingFace):
    model = _huggingface(vocabulary, bos)
  elif isinstance(vocabulary, SentencePiece):
    model = _sentencepiece(vocabulary)
  else:
    return {}
  ids = {'bos': bos, 'eos': vocabulary.eos_id, 'pad': vocabulary.pad_id, 'unk': vocabulary.unk_id}
  said = {
    **model.said,
    **{f'{which}_token': model.spelled(i) for which, i in ids.items() if i is not None},
    'add_bos_token': bos is not None,
    'clean_up_tokenization_spaces': False,
    **({'chat_template': chat_template} if chat_template else {}),
  }
  text = json.dumps(said, indent=2, ensure_ascii=False) + '\n'
  return {model.name: model.content, huggingface_folder.CONFIG: text.encode()}


def special_ids(vocabulary: Vocabulary, config: Mapping[str, Any]) -> dict[str, Any]:
  """`config` with those that a config.json names and it lacks."""
  first, *others = vocabulary.eos_ids
  return {
    'eos_token_id': [first, *others] if others else first,
    'pad_token_id': vocabulary.pad_id,
    **({} if 'decoder_start_token_id' in config else {'bos_token_id': vocabulary.bos_id}),
    **config,
  }


def _is_t5(vocabulary: Vocabulary) -> bool:
  return vocabulary.bos_id == vocabulary.pad_id


def _sentencepiece(vocabulary: SentencePiece) -> _Model:
  content = vocabulary.model
  spelled = spm.SentencePieceProcessor(model_proto=content).IdToPiece
  if _is_t5(vocabulary):
    said = {'tokenizer_class': 'T5Tokenizer', 'extra_ids': vocabulary.extra_ids}
    return _Model('spiece.model', content, said, spelled)
  # The classes differ in how a text starts.
  llama = ModelProto.FromString(content).normalizer_spec.add_dummy_prefix
  said = {'tokenizer_class': 'LlamaTokenizer' if llama else 'GemmaTokenizer'}
  return _Model('tokenizer.model', content, said, spelled)


def _huggingface(vocabulary: HuggingFace, bos: int | None) -> _Model:
  from tokenizers import processors

  name, content = huggingface.FILE, vocabulary.model
  tokenizer = huggingface.parse(content, epath.Path(name))
  if bos is not None and tokenizer.encode('a').ids[0] != bos:
    # transformers takes it from here, whatever `add_bos_token` says.
    token = tokenizer.id_to_token(bos)
    template = processors.TemplateProcessing(
      single=[token, '$A'], pair=[token, '$A', token, '$B:1'], special_tokens=[(token, bos)]
    )
    others = [tokenizer.post_processor] if tokenizer.post_processor else []
    tokenizer.post_processor = processors.Sequence([*others, template])
    content = tokenizer.to_str().encode()
  said = {'tokenizer_class': 'PreTrainedTokenizerFast'}  # of any model: the file says it all
  return _Model(name, content, said, tokenizer.id_to_token)
