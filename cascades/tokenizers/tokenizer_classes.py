"""Changes that tokenizer classes of transformers 5 make to a tokenizer.json.

A class of its own, which tokenizer_config.json or the type of model names, takes vocabulary and
merges from the file and decides itself how text is normalized and split, from options of
tokenizer_config.json. `PreTrainedTokenizerFast` leaves the file as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cascades.tokenizers.huggingface_folder import TokenizerSettings

_OF_MODELS = {
  **dict.fromkeys(('qwen2', 'qwen3'), 'Qwen2Tokenizer'),
  **dict.fromkeys(('gemma', 'gemma2', 'gemma3_text'), 'GemmaTokenizer'),
  **dict.fromkeys(('t5', 'mt5'), 'T5Tokenizer'),
  'bert': 'BertTokenizer',
  'mpnet': 'MPNetTokenizer',
}
_BYTE_LEVEL = {
  'type': 'ByteLevel',
  'add_prefix_space': True,
  'trim_offsets': True,
  'use_regex': True,
}
_DISTRUSTED = ('qwen2',)  # models whose files often name a wrong class
# Special tokens of classes where tokenizer_config.json does not say.
_DEFAULTS: dict[str, dict[str, str]] = {
  'GPT2Tokenizer': dict.fromkeys(('bos_token', 'eos_token', 'unk_token'), '<|endoftext|>'),
  'GemmaTokenizer': {f'{name}_token': f'<{name}>' for name in ('bos', 'eos', 'unk', 'pad')},
  'LlamaTokenizer': {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'},
  'Qwen2Tokenizer': dict.fromkeys(('eos_token', 'unk_token', 'pad_token'), '<|endoftext|>'),
  'T5Tokenizer': {'eos_token': '</s>', 'unk_token': '<unk>', 'pad_token': '<pad>'},
}


def name(settings: TokenizerSettings) -> str:
  """The class that transformers loads a folder with; '' for one that changes nothing."""
  model_type = settings['config'].get('model_type')
  named = next(
    filter(None, (settings[f].get('tokenizer_class') for f in ('tokenizer_config', 'config'))), ''
  ).removesuffix('Fast')
  of_model = _OF_MODELS.get(model_type, '') if isinstance(model_type, str) else ''
  if not named or (model_type in _DISTRUSTED and named != of_model):
    return of_model
  return named


def special_tokens(settings: TokenizerSettings) -> dict[str, str]:
  """The special tokens of the class, by role, that tokenizer_config.json does not name."""
  config = settings['tokenizer_config']
  defaults = _DEFAULTS.get(name(settings), {})
  return {role: token for role, token in defaults.items() if role not in config}


def apply(content: dict[str, Any], settings: TokenizerSettings) -> dict[str, Any]:
  """The content of tokenizer.json as the class of a folder reads it."""
  config, tokenizer_class = settings['tokenizer_config'], name(settings)
  prefix = config.get('add_prefix_space')
  byte_levels = [*_steps(content.get('pre_tokenizer'), 'ByteLevel')]
  if tokenizer_class == 'LlamaTokenizer' and not byte_levels:
    scheme = 'never' if prefix is False else 'always' if config.get('legacy') else 'first'
    splitter = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': scheme, 'split': False}
    return content | {'normalizer': None, 'pre_tokenizer': splitter}
  if tokenizer_class == 'GPT2Tokenizer' and prefix:
    return content | {'pre_tokenizer': _BYTE_LEVEL}
  if tokenizer_class in ('GPT2Tokenizer', 'Qwen2Tokenizer'):
    for step in byte_levels:
      step['add_prefix_space'] = bool(prefix)
    if tokenizer_class == 'Qwen2Tokenizer':
      return content | {'normalizer': {'type': 'NFC'}}
  if tokenizer_class in ('BertTokenizer', 'MPNetTokenizer'):
    names = {'do_lower_case': 'lowercase', 'tokenize_chinese_chars': 'handle_chinese_chars'}
    for option in ('do_lower_case', 'tokenize_chinese_chars', 'strip_accents'):
      for step in _steps(content.get('normalizer'), 'BertNormalizer'):
        if option in config:
          step[names.get(option, option)] = config[option]
  return content


def _steps(stage: Any, step_type: str) -> Iterator[dict[str, Any]]:
  """The steps of this type in a normalizer or pre-tokenizer, which may be a sequence."""
  if isinstance(stage, dict):
    if stage.get('type') == step_type:
      yield stage
    for sequence in ('normalizers', 'pretokenizers'):
      steps = stage.get(sequence)
      for step in steps if isinstance(steps, list) else ():
        yield from _steps(step, step_type)
