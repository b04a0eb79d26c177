from __future__ import annotations

import json

import pytest

from cascades.tokenizers import huggingface_folder


def write(folder, **contents):
  for name, content in contents.items():
    (folder / f'{name}.json').write_text(json.dumps(content))


def test_files_that_are_not_there_say_nothing(tmp_path):
  write(tmp_path, config={'vocab_size': 7})
  assert huggingface_folder.read(tmp_path / 'config.json') == {'vocab_size': 7}
  assert huggingface_folder.read(tmp_path / 'generation_config.json') == {}
  assert {**huggingface_folder.read_settings(tmp_path)} == {
    'config': {'vocab_size': 7},
    'generation_config': {},
    'tokenizer_config': {},
    'special_tokens_map': {},
    'added_tokens': {},
  }


@pytest.mark.parametrize('content', ['', '{"eos_token": "</', '[]', 'null', b'\xff'])
def test_a_damaged_file_is_named(content, tmp_path):
  content = content if isinstance(content, bytes) else content.encode()
  (tmp_path / 'tokenizer_config.json').write_bytes(content)
  with pytest.raises(ValueError, match=r'tokenizer_config\.json is damaged, it should hold a JSON'):
    huggingface_folder.read_settings(tmp_path)


def test_special_tokens_are_spelled_in_several_ways():
  spelled = ['</s>', {'content': '</s>', 'lstrip': False}, None]
  assert [huggingface_folder.token_text(token) for token in spelled] == ['</s>', '</s>', '']


def test_spelled_tokens_come_before_numbered_ones(tmp_path):
  write(
    tmp_path,
    tokenizer_config={'eos_token': 'b', 'pad_token': None},
    special_tokens_map={'eos_token': {'content': 'c'}},
    generation_config={'eos_token_id': [0, 1], 'pad_token_id': -1},
    config={'eos_token_id': 3},
  )
  options = huggingface_folder.read_settings(tmp_path)
  assert huggingface_folder.special_ids(options, 'eos', 'abc'.index) == [1, 2, 0, 3]
  assert huggingface_folder.special_ids(options, 'pad', 'abc'.index) == []
