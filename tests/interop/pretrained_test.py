"""One function for every format: configuration, lazy weights, vocabulary, companion files."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from cascades.checkpoints import store
from cascades.interop import hf_config
from cascades.interop.pretrained import open_encoder, open_pretrained
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from tests import testing
from tests.golden import twins
from tests.interop import encoders_test, t5x_variants_test, twin_folders
from tests.interop.t5x_arrays import TINY, plain, random_arrays, write_native
from tests.tokenizers import wordpiece_test

VOCABULARY = vocabularies.symbols([*'abcdefgh'])


def params(pretrained):
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    _, abstract = abstract_model(pretrained.config)
  return twin_folders.flat(pretrained.tensors.load(abstract))


def assert_equal(got, expected):
  assert got.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(got[path], value, err_msg=path)


def test_a_folder_of_hugging_face_is_its_model(tmp_path):
  folder = twin_folders.twin(tmp_path, 'gemma2')
  pretrained = open_pretrained(folder, vocabulary=VOCABULARY)
  assert pretrained.config == twins.CONFIGS['gemma2']
  assert_equal(params(pretrained), testing.weights(twins.CONFIGS['gemma2']))
  assert pretrained.vocabulary is VOCABULARY


def test_a_gguf_file_brings_its_own_vocabulary(tmp_path):
  pytest.importorskip('gguf', reason='the extra `gguf` is not installed')
  from tests.interop import gguf_test

  file = gguf_test._write(tmp_path, 'qwen2')
  pretrained = open_pretrained(file, vocabulary=VOCABULARY)
  assert pretrained.config == gguf_test.TWINS['qwen2']
  assert_equal(params(pretrained), testing.weights(gguf_test.TWINS['qwen2']))
  with pytest.raises(ValueError, match=r'lacks tokenizer\.ggml\.model'):
    open_pretrained(file)


def test_a_checkpoint_of_t5x_needs_a_vocabulary(tmp_path):
  arrays = random_arrays(TINY)
  write_native(tmp_path / 'checkpoint_5', arrays)
  pretrained = open_pretrained(tmp_path / 'checkpoint_5', vocabulary=VOCABULARY)
  assert pretrained.config == TINY
  assert_equal(params(pretrained), plain(TINY, arrays))
  with pytest.raises(ValueError, match=r'holds no tokenizer.*VOCABULARY=@vocabularies'):
    open_pretrained(tmp_path / 'checkpoint_5')


def test_options_replace_fields_of_the_configuration(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  open_with = lambda **options: open_pretrained(
    tmp_path / 'checkpoint_5', vocabulary=VOCABULARY, model_options=options
  )
  assert open_with(dropout_rate=0.1).config == dataclasses.replace(TINY, dropout_rate=0.1)
  with pytest.raises(ValueError, match='has unknown fields depth'):
    open_with(depth=3)


def test_weights_are_read_when_they_are_loaded(tmp_path):
  """The file on disk is replaced between opening and loading."""
  folder = twin_folders.twin(tmp_path, 'llama')
  pretrained = open_pretrained(folder, vocabulary=VOCABULARY)
  stored = {name: 2 * value for name, value in twin_folders.tensors('llama').items()}
  twin_folders.write(folder, twin_folders.config('llama'), stored)
  expected = {name: 2 * value for name, value in testing.weights(twins.CONFIGS['llama']).items()}
  assert_equal(params(pretrained), expected)


def test_a_vocabulary_larger_than_the_embedding_table_is_refused(tmp_path):
  folder = twin_folders.twin(tmp_path, 'llama')
  with pytest.raises(ValueError, match=r'has \d+ vocabulary entries and its tokenizer 259'):
    open_pretrained(folder, vocabulary=vocabularies.bytes_vocabulary())


def test_companions_of_a_folder_are_its_files(tmp_path):
  folder = twin_folders.twin(tmp_path, 't5_1_1')
  (folder / 'tokenizer_config.json').write_text('{"extra_ids": 0}')
  (folder / 'README.md').write_text('not a companion')
  companions = open_pretrained(folder, vocabulary=VOCABULARY).companions()
  assert companions.keys() == {'config.json', 'tokenizer_config.json'}
  for name, content in companions.items():
    assert content == (folder / name).read_bytes()


def test_companions_of_t5x_are_generated_if_transformers_has_the_model(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  companions = open_pretrained(tmp_path / 'checkpoint_5', vocabulary=VOCABULARY).companions()
  assert companions.keys() == {'config.json', 'generation_config.json'}
  described = configs.from_description(hf_config.describe(json.loads(companions['config.json'])))
  assert dataclasses.replace(described, dropout_rate=0.0) == TINY
  assert json.loads(companions['generation_config.json'])['eos_token_id'] == VOCABULARY.eos_id

  scanned = t5x_variants_test.OURS[0]
  arrays = t5x_variants_test.of_each_layer(scanned, t5x_variants_test.NOW)
  write_native(tmp_path / 'scanned' / 'checkpoint_5', arrays)
  assert not open_pretrained(
    tmp_path / 'scanned' / 'checkpoint_5', vocabulary=VOCABULARY
  ).companions()


def test_encoders_have_a_function_of_their_own(tmp_path):
  folder = encoders_test.write(tmp_path, 'bert')
  (folder / 'vocab.txt').write_text('\n'.join(wordpiece_test.PIECES) + '\n')
  (folder / '1_Pooling').mkdir()
  for file, content in encoders_test.SENTENCES.items():
    (folder / file).write_text(json.dumps(content))
  encoder = open_encoder(folder)
  assert (encoder.config.pooling, encoder.config.normalize) == ('cls', True)
  assert_equal(params(encoder), testing.weights(twins.ENCODERS['bert']))
  assert encoder.vocabulary.bos_id == wordpiece_test.PIECES.index('[CLS]')
  with pytest.raises(store.CheckpointError, match=r'holds an encoder.*`open_encoder`'):
    open_pretrained(folder)
  with pytest.raises(store.CheckpointError, match=r'holds a language model.*`open_pretrained`'):
    open_encoder(twin_folders.twin(tmp_path / 'llama', 'llama'))
