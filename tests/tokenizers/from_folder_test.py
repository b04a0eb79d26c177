from __future__ import annotations

import json

import pytest
import sentencepiece as spm

from cascades.tokenizers import from_folder, train_sentencepiece, vocabularies

TEXTS = ['Two boats left the harbour before dawn.', 'Лодки вышли из гавани до рассвета.']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'tiny.model'
  train_sentencepiece.train_sentencepiece(TEXTS * 5, path, size=296)
  return path


def test_the_sentencepiece_model_of_t5_gets_its_extra_ids(model, tmp_path):
  (tmp_path / 'spiece.model').write_bytes(model.read_bytes())
  (tmp_path / 'tokenizer.json').write_text('{"a translation of it": "which is not read"}')
  actual = from_folder.read_vocabulary(tmp_path)
  assert actual.size == 396
  assert actual.fingerprint == vocabularies.sentencepiece(model, 100).fingerprint
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'extra_ids': 0}))
  assert from_folder.read_vocabulary(tmp_path).size == 296  # mT5


def test_a_sentencepiece_model_is_read_where_nothing_else_is(model, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(model.read_bytes())
  assert from_folder.read_vocabulary(tmp_path).encode(TEXTS[0]) == (
    vocabularies.sentencepiece(model, 0).encode(TEXTS[0])
  )


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('generation_config', {'eos_token_id': [1, 7]}),
    ('special_tokens_map', {'eos_token': {'content': '{piece}'}}),
  ],
)
def test_a_sentencepiece_model_ends_as_the_files_beside_it_say(name, options, model, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(model.read_bytes())
  own = vocabularies.sentencepiece(model, 0)
  piece = spm.SentencePieceProcessor(model_proto=own.model).IdToPiece(7)
  written = json.dumps(options, ensure_ascii=False).replace('{piece}', piece)
  (tmp_path / f'{name}.json').write_text(written)
  actual = from_folder.read_vocabulary(tmp_path)
  assert actual.eos_ids == ((1, 7) if name == 'generation_config' else (7,))
  vocabularies.save(actual, tmp_path / 'saved')
  assert vocabularies.load(tmp_path / 'saved') == actual
  (tmp_path / f'{name}.json').write_text(json.dumps({'eos_token_id': 1}))
  assert from_folder.read_vocabulary(tmp_path) == vocabularies.sentencepiece(model)


@pytest.mark.parametrize(
  ('name', 'options'),
  [('added_tokens', {'<|im_end|>': 296}), ('config', {'eos_token_id': 296})],
)
def test_tokens_added_to_a_sentencepiece_model_are_refused(name, options, model, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(model.read_bytes())
  (tmp_path / f'{name}.json').write_text(json.dumps(options))
  if name == 'added_tokens':
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<|im_end|>'}))
  with pytest.raises(ValueError, match=r'has 296 pieces, .* add .* with id 296, .*: save both'):
    from_folder.read_vocabulary(tmp_path)


@pytest.mark.parametrize('name', ['spiece.model', 'tokenizer.model', 'vocab.txt', 'tokenizer.json'])
def test_a_damaged_configuration_is_named(name, model, tmp_path):
  (tmp_path / name).write_bytes(model.read_bytes())
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "</')
  with pytest.raises(ValueError, match=r'tokenizer_config\.json is damaged'):
    from_folder.read_vocabulary(tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='There is no'):
    from_folder.read_vocabulary(tmp_path)
