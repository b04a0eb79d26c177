"""Folders of Hugging Face that are damaged, contradict themselves, or want too much."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from cascades.checkpoints import json_files, store
from cascades.interop import huggingface
from tests.interop import twin_folders


def _refused(folder, words):
  with pytest.raises(store.CheckpointError, match=words):
    twin_folders.load(folder)


@pytest.mark.parametrize(
  'content', ['[]', 'null', '3', '"x"', '{}', '{"model_type": ', '[' * 10**5, '', '\ufeff{}']
)
def test_a_configuration_that_is_none_is_refused(content, tmp_path):
  folder = twin_folders.twin(tmp_path, 'llama')
  (folder / 'config.json').write_text(content)
  _refused(folder, r'config\.json')


def test_a_huge_configuration_is_not_read(tmp_path):
  folder = twin_folders.twin(tmp_path, 'llama')
  with (folder / 'config.json').open('wb') as file:
    file.truncate(1 << 30)  # a sparse file
  _refused(folder, 'more than cascades.checkpoints.json_files.MAX_BYTES')
  assert json_files.MAX_BYTES < 1 << 30


@pytest.mark.parametrize(
  ('name', 'change', 'words'),
  [
    ('llama', {'num_hidden_layers': 10**6}, 'num_hidden_layers=1000000'),
    ('llama', {'num_hidden_layers': 999}, 'num_layers=999, and there are 21 tensors'),
    ('llama', {'vocab_size': 2**31 - 1}, 'vocab_size=2147483647'),
    ('llama', {'num_attention_heads': 2**20, 'head_dim': 2**10}, 'num_heads x head_dim'),
    ('llama', {'hidden_size': 10**6}, 'does not fit the model'),
    ('t5_1_1', {'num_decoder_layers': 500}, 'num_decoder_layers=500'),
  ],
)
def test_sizes_are_compared_with_the_tensors(name, change, words, tmp_path):
  config = twin_folders.config(name) | change
  _refused(twin_folders.write(tmp_path, config, twin_folders.tensors(name)), words)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('batch_bytes', [1, 1 << 28])
def test_weights_that_are_no_numbers_are_refused_by_name(value, batch_bytes, tmp_path):
  tensors = twin_folders.tensors('llama')
  name = 'model.layers.1.mlp.up_proj.weight'
  tensors[name] = tensors[name].copy()
  tensors[name][3, 2] = value
  folder = twin_folders.write(tmp_path, twin_folders.config('llama'), tensors)
  with pytest.raises(store.CheckpointError, match=f'NaN or infinite.*: {name}'):
    twin_folders.load(folder, batch_bytes=batch_bytes)


def test_a_t5_that_transformers_5_tied_is_read_as_it_computes(tmp_path):
  tensors, config = twin_folders.tensors('t5_1_1'), twin_folders.config('t5_1_1')
  del tensors['lm_head.weight']
  actual, params = twin_folders.load(twin_folders.write(tmp_path / 'tied', config, tensors))
  assert not actual.logits_via_embedding  # no scaling: scale_decoder_outputs is false
  np.testing.assert_array_equal(params['unembedding'], tensors['shared.weight'])
  np.testing.assert_array_equal(params['embedding'], tensors['shared.weight'])
  # The same with the option of the versions before, and with a copy of the table.
  tensors['decoder.embed_tokens.weight'] = tensors.pop('shared.weight')
  config = {k: v for k, v in config.items() if k != 'scale_decoder_outputs'}
  config['tie_word_embeddings'] = False
  twin_folders.write(tmp_path / 'before', config, tensors)
  _, again = twin_folders.load(tmp_path / 'before')
  np.testing.assert_array_equal(again['unembedding'], params['unembedding'])


def test_two_sets_of_weights_in_a_folder_are_refused(tmp_path):
  tensors = twin_folders.tensors('llama')
  names = list(tensors)
  shards = [{name: tensors[name] for name in part} for part in (names[:9], names[9:])]
  folder = twin_folders.write(tmp_path, twin_folders.config('llama'), *shards)
  twin_folders.load(folder)
  save_file(tensors, folder / 'model.safetensors')
  _refused(folder, r'holds model\.safetensors and model\.safetensors\.index\.json of other files')


@pytest.mark.parametrize(
  'index',
  [
    [],
    {},
    {'weight_map': []},
    {'weight_map': {}},
    {'weight_map': {'a': '../model.safetensors'}},
    {'weight_map': {'a': '/etc/passwd'}},
    {'weight_map': {'a': 3}},
  ],
)
def test_an_index_names_files_of_its_folder(index, tmp_path):
  folder = twin_folders.twin(tmp_path / 'a', 'llama')
  (folder / huggingface.WEIGHTS).rename(tmp_path / huggingface.WEIGHTS)
  (folder / huggingface.INDEX).write_text(json.dumps(index))
  _refused(folder, r'model\.safetensors\.index\.json')
