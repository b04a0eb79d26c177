"""Conversion of a Hugging Face folder to a run directory, training, and export."""

from __future__ import annotations

import json
import logging
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from cascades import convert, export
from cascades.checkpoints import store
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import from_folder, vocabularies
from tests import tiny
from tests.golden import twins
from tests.interop import twin_folders

VOCABULARY = vocabularies.symbols([*'abcdefgh', *'ABCDEFGH'][: twins.VOCAB - 3])
GENERATION = {'eos_token_id': 1, 'do_sample': True, 'top_p': 0.9}


@pytest.fixture
def folder(tmp_path):
  config = twin_folders.config('t5_1_1') | {'n_positions': 77, 'dense_act_fn': 'gelu_new'}
  folder = twin_folders.write(tmp_path / 'theirs', config, twin_folders.tensors('t5_1_1'))
  (folder / 'generation_config.json').write_text(json.dumps(GENERATION))
  (folder / 'tokenizer_config.json').write_text('{"extra_ids": 0}')
  (folder / 'README.md').write_text('not a companion')
  return folder


def _convert(folder, run, **options):
  options = {'vocabulary': VOCABULARY, 'mesh': tiny.one_device} | options
  convert.convert(str(folder), str(run), **options)


def _export(run, output, **options):
  export.export(str(run), str(output), mesh=tiny.one_device, **options)


def test_a_conversion_is_a_run_directory(folder, tmp_path):
  run = tmp_path / 'run'
  _convert(folder, run, provenance=lambda: {'config': 'as told'})
  description = store.read_description(run)
  config = configs.from_description(description['model'])
  assert config.num_decoder_layers == twins.CONFIGS['t5_1_1'].num_decoder_layers
  assert description['vocabulary'] == vocabularies.load(run).fingerprint == VOCABULARY.fingerprint
  assert (run / 'config.gin').read_text() == 'as told'
  with partitioning.use(tiny.one_device()):
    _, abstract = abstract_model(config)
    params = store.restore_params(run / 'checkpoint_0', abstract)
  np.testing.assert_array_equal(
    params['embedding'], twin_folders.tensors('t5_1_1')['shared.weight']
  )
  before = (run / 'checkpoint_0' / '_CHECKPOINT_METADATA').read_text()
  _convert(folder, run)  # the same command again finds it done
  assert (run / 'checkpoint_0' / '_CHECKPOINT_METADATA').read_text() == before


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_there_and_back_again_is_bit_exact(dtype, folder, tmp_path):
  _convert(folder, tmp_path / 'run', dtype=dtype)
  _export(tmp_path / 'run', tmp_path / 'ours', dtype=dtype)
  stored = load_file(tmp_path / 'ours' / 'model.safetensors')
  expected = twin_folders.tensors('t5_1_1')
  assert stored.keys() == expected.keys()
  for name, value in expected.items():
    assert stored[name].tobytes() == value.astype(dtype).tobytes(), name
  _convert(tmp_path / 'ours', tmp_path / 'again', dtype=dtype)
  assert store.read_description(tmp_path / 'again') == store.read_description(tmp_path / 'run')
  _export(tmp_path / 'again', tmp_path / 'ours again', dtype=dtype)
  for file in ('model.safetensors', 'config.json', 'generation_config.json'):
    first, other = (tmp_path / name / file for name in ('ours', 'ours again'))
    assert first.read_bytes() == other.read_bytes(), file


def test_what_lies_beside_the_weights_comes_along(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  _export(tmp_path / 'run', tmp_path / 'ours', dtype='bfloat16')
  actual = {file.name for file in (tmp_path / 'ours').iterdir()}
  weights = {'model.safetensors', 'config.json', 'generation_config.json'}
  assert actual == {*weights, 'tokenizer_config.json'}
  assert json.loads((tmp_path / 'ours' / 'generation_config.json').read_text()) == GENERATION
  config = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  assert config['n_positions'] == 77
  assert config['tie_word_embeddings'] is False
  assert config['torch_dtype'] == 'bfloat16'
  # Of another version's making, and no longer true of what we wrote.
  assert not {'dtype', 'transformers_version', 'scale_decoder_outputs'} & config.keys()


def test_a_fine_tuned_model_goes_back_to_where_it_came_from(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  (tmp_path / 'tuned').mkdir()
  settings = tiny.settings(tmp_path / 'tuned', train_steps=2)
  start = {'small': None, 'vocabulary': None, 'initial_checkpoint_path': str(tmp_path / 'run')}
  tiny.train(**settings | start)
  tuned = store.read_description(settings['model_dir'])
  assert tuned == store.read_description(tmp_path / 'run')
  _export(settings['model_dir'], tmp_path / 'ours')
  stored = load_file(tmp_path / 'ours' / 'model.safetensors')
  moved = [np.abs(stored[k] - v).max() for k, v in twin_folders.tensors('t5_1_1').items()]
  assert 0 < max(moved) < 0.1  # two steps away from what was converted
  assert json.loads((tmp_path / 'ours' / 'config.json').read_text())['n_positions'] == 77


@pytest.mark.slow
def test_a_model_of_our_own_is_exported_with_a_warning(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('cascades'), 'propagate', True)
  settings = tiny.settings(tmp_path, train_steps=1)
  tiny.train(**settings)
  _export(settings['model_dir'], tmp_path / 'ours')
  assert 'TOKENIZER is not given' in caplog.text
  config = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  assert config['model_type'] == 't5'
  ids = json.loads((tmp_path / 'ours' / 'generation_config.json').read_text())
  assert ids['eos_token_id'] == tiny.VOCABULARY.eos_id
  assert ids['decoder_start_token_id'] == 0


def test_tokens_added_elsewhere_are_read_and_handed_on_and_prompts_may_end(tmp_path):
  config = twin_folders.config('llama')
  folder = twin_folders.write(tmp_path / 'theirs', config, twin_folders.tensors('llama'))
  pieces = {piece: i for i, piece in enumerate(['<unk>', '<s>', '</s>', *'abcdefgh'])}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [], unk_token='<unk>'))
  tokenizer.save(str(folder / 'tokenizer.json'))
  told = {'eos_token': '</s>', 'bos_token': '<s>', 'extra_special_tokens': ['<sep>']}
  (folder / 'tokenizer_config.json').write_text(json.dumps(told))
  _convert(folder, tmp_path / 'run', vocabulary=None)
  vocabulary = vocabularies.load(tmp_path / 'run')
  assert vocabulary.encode('a<sep>b') == [3, 11, 4]
  _export(tmp_path / 'run', tmp_path / 'ours')
  assert from_folder.read_vocabulary(tmp_path / 'ours') == vocabulary
  _export(tmp_path / 'run', tmp_path / 'ended', prompt_end=True)
  again = from_folder.read_vocabulary(tmp_path / 'ended')
  assert again.encode('a<sep>b') == [3, 11, 4]
  ended = tokenizers.Tokenizer.from_file(str(tmp_path / 'ended' / 'tokenizer.json'))
  assert ended.encode('ab').ids == [3, 4, 2]


def test_a_tokenizer_of_another_vocabulary_is_refused(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  other = vocabularies.symbols('xyz')
  _convert(folder, tmp_path / 'other', vocabulary=other)
  with pytest.raises(store.CheckpointError, match='is not the vocabulary that the model was'):
    _export(tmp_path / 'run', tmp_path / 'ours', tokenizer=str(tmp_path / 'other'))
  with pytest.raises(store.CheckpointError, match='neither a folder of Hugging Face nor'):
    _export(tmp_path / 'run', tmp_path / 'ours', tokenizer=str(tmp_path))
  assert not (tmp_path / 'ours').exists()


def test_a_model_is_never_written_over_another(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  with pytest.raises(store.CheckpointError, match='holds a model already'):
    _export(tmp_path / 'run', folder)


def test_a_tokenizer_larger_than_its_model_is_refused(folder, tmp_path):
  larger = vocabularies.bytes_vocabulary()
  with pytest.raises(ValueError, match='has 20 vocabulary entries and its tokenizer 259'):
    _convert(folder, tmp_path / 'run', vocabulary=larger)
  assert not (tmp_path / 'run').exists()


def test_another_model_is_not_converted_into_a_run_directory(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  other = twin_folders.twin(tmp_path / 'other', 'llama')
  with pytest.raises(store.CheckpointError, match='belongs to another run'):
    _convert(other, tmp_path / 'run')


def test_a_conversion_lies_on_the_mesh_that_it_is_told(folder, tmp_path):
  mesh = lambda: partitioning.make_mesh(1, 4, 2)
  _convert(folder, tmp_path / 'one')
  _convert(folder, tmp_path / 'many', mesh=mesh)
  config = configs.from_description(store.read_description(tmp_path / 'one')['model'])
  with partitioning.use(mesh()):
    _, abstract = abstract_model(config)
    first, many = (store.restore_params(tmp_path / name, abstract) for name in ('one', 'many'))
  jax.tree.map(np.testing.assert_array_equal, first, many)


def test_another_source_or_type_in_the_same_place_is_refused(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  _convert(folder, tmp_path / 'run')
  other = shutil.copytree(folder, tmp_path / 'other')
  with pytest.raises(store.CheckpointError, match=r'converted_from is .*theirs.* there'):
    _convert(other, tmp_path / 'run')
  with pytest.raises(store.CheckpointError, match="dtype is 'float32' there and 'bfloat16' here"):
    _convert(folder, tmp_path / 'run', dtype='bfloat16')
  _convert(folder, tmp_path / 'run', dtype='bfloat16', overwrite=True)
  assert json.loads((tmp_path / 'run' / 'manifest.json').read_text())['dtype'] == 'bfloat16'


def test_a_source_that_cannot_be_read_leaves_the_run_that_it_should_replace(folder, tmp_path):
  _convert(folder, tmp_path / 'run')
  before = store.identity(tmp_path / 'run', 0)
  tensors = twin_folders.tensors('t5_1_1')
  tensors['shared.weight'] = np.full_like(tensors['shared.weight'], np.nan)
  twin_folders.write(folder, twin_folders.config('t5_1_1'), tensors)
  with pytest.raises(store.CheckpointError, match=r'NaN or infinite.*: shared\.weight'):
    _convert(folder, tmp_path / 'run', overwrite=True)
  assert store.identity(tmp_path / 'run', 0) == before


def test_a_conversion_does_not_mix_with_other_files(folder, tmp_path):
  other = shutil.copytree(folder, tmp_path / 'other')
  with pytest.raises(
    store.CheckpointError, match=r"holds no run, but 'README\.md', 'config\.json'"
  ):
    _convert(folder, other)
  with pytest.raises(store.CheckpointError, match='holds the source'):
    _convert(folder, folder)


@pytest.mark.parametrize('program', [_convert, _export])
def test_a_type_that_is_not_stored_is_named(program, tmp_path):
  with pytest.raises(
    ValueError, match="DTYPE is 'int8'; weights are stored as float32 or bfloat16"
  ):
    program(tmp_path / 'a', tmp_path / 'b', dtype='int8')
