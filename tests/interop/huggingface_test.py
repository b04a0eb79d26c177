from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cascades.checkpoints import safetensors_files, store
from cascades.interop import families, huggingface, tensor_tables
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from tests import testing
from tests.golden import twins
from tests.interop import twin_folders


def _assert_twin(params, name):
  actual, expected = twin_folders.flat(params), testing.weights(twins.CONFIGS[name])
  assert actual.keys() == expected.keys()
  for path in expected:
    np.testing.assert_array_equal(actual[path], expected[path], err_msg=path)


@pytest.mark.parametrize('name', twins.CONFIGS)
def test_a_folder_is_the_model_that_has_the_golden_logits(name, tmp_path):
  config, params = twin_folders.load(twin_folders.twin(tmp_path, name))
  assert dataclasses.replace(config, dropout_rate=0.0) == twins.CONFIGS[name]
  _assert_twin(params, name)


@pytest.mark.parametrize('name', twins.CONFIGS)
def test_reading_what_was_written_is_bit_exact(name, tmp_path):
  first = twin_folders.twin(tmp_path / 'first', name)
  actual = huggingface.open_folder(first)
  _, params = twin_folders.load(first)
  tensors = tensor_tables.unload(actual.tensors.table, params)
  huggingface.write_folder(tmp_path / 'second', twin_folders.config(name), tensors, {})
  again = load_file(tmp_path / 'second' / 'model.safetensors')
  expected = twin_folders.tensors(name)
  assert again.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(again[key], value, err_msg=key)


@pytest.mark.parametrize('name', ['t5_1_1', 'gemma3'])
def test_shards_with_an_index_are_one_model(name, tmp_path):
  tensors = twin_folders.tensors(name)
  halves = [dict(itertools.islice(tensors.items(), i, None, 2)) for i in range(2)]
  folder = twin_folders.write(tmp_path, twin_folders.config(name), *halves)
  save_file({'stray': np.ones(3, np.float32)}, folder / 'adapter.safetensors')
  _, params = twin_folders.load(folder)
  _assert_twin(params, name)


@pytest.mark.parametrize('name', ['t5_1_0', 'qwen2'])
def test_weights_go_where_the_mesh_wants_them(name, tmp_path):
  folder = twin_folders.twin(tmp_path, name)
  mesh = partitioning.make_mesh(1, 4, 2)
  config, params = twin_folders.load(folder, mesh=mesh)
  with partitioning.use(mesh):
    _, abstract = abstract_model(config)
  for leaf, like in zip(jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True):
    assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
  assert params['embedding'].addressable_shards[0].data.shape == (10, 4)
  _assert_twin(params, name)


def test_every_process_reads_only_what_its_devices_hold(tmp_path, monkeypatch):
  folder = twin_folders.twin(tmp_path, 'llama')
  asked = []
  load = safetensors_files.ocp.load
  spy = lambda path, abstract_state: asked.append(abstract_state) or load(path, abstract_state)
  monkeypatch.setattr(safetensors_files.ocp, 'load', spy)
  twin_folders.load(folder, mesh=partitioning.make_mesh(1, 4, 2), batch_bytes=1)
  placed = {name: like for section in asked for name, like in section.items()}
  shards = lambda name: placed[name].sharding.shard_shape(placed[name].shape)
  assert shards('model.layers.0.self_attn.q_proj.weight') == (12, 4)  # of (4 x 6, 16)
  assert shards('model.layers.1.self_attn.o_proj.weight') == (4, 12)
  assert shards('model.layers.1.mlp.down_proj.weight') == (4, 12)
  # One tensor at a time: that is what waits in the host's memory.
  assert max(map(len, asked)) == 1


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_types_may_be_mixed_within_a_file(dtype, tmp_path):
  kinds = itertools.cycle([np.float32, ml_dtypes.bfloat16, np.float16])
  stored = {name: x.astype(next(kinds)) for name, x in twin_folders.tensors('gemma2').items()}
  folder = twin_folders.write(tmp_path, twin_folders.config('gemma2'), stored)
  _, params = twin_folders.load(folder, dtype=dtype)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
  tensors = tensor_tables.unload(huggingface.open_folder(folder).tensors.table, params)
  for name, value in stored.items():
    np.testing.assert_array_equal(tensors[name].compute(), value.astype(dtype), err_msg=name)


def test_what_is_written_can_be_split_into_shards(tmp_path):
  _, params = twin_folders.load(twin_folders.twin(tmp_path / 'one', 'qwen3'), dtype='bfloat16')
  table = huggingface.open_folder(tmp_path / 'one').tensors.table
  tensors = tensor_tables.unload(table, params)
  config = twin_folders.config('qwen3')
  huggingface.write_folder(tmp_path / 'many', config, tensors, {}, shard_bytes=2500)
  shards = sorted((tmp_path / 'many').glob('*.safetensors'))
  index = json.loads((tmp_path / 'many' / 'model.safetensors.index.json').read_text())
  assert shards[0].name == f'model-00001-of-{len(shards):05}.safetensors'
  assert len(shards) > 2
  sizes = [sum(x.nbytes for x in load_file(shard).values()) for shard in shards]
  assert max(sizes) <= 2500
  assert index['metadata']['total_size'] == sum(sizes)
  _, again = twin_folders.load(tmp_path / 'many', dtype='bfloat16')
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize('prefix', ['language_model.model', 'model.language_model'])
def test_the_language_part_of_a_model_with_eyes_is_read(prefix, tmp_path):
  text = {name.replace('model', prefix, 1): x for name, x in twin_folders.tensors('gemma3').items()}
  eyes = {'vision_tower.a.weight': np.ones(2, np.float32)}
  if prefix.startswith('model'):
    eyes = {f'model.{name}': x for name, x in eyes.items()}
  config = {'model_type': 'gemma3', 'text_config': twin_folders.config('gemma3')}
  config, params = twin_folders.load(twin_folders.write(tmp_path, config, text | eyes))
  assert config == twins.CONFIGS['gemma3']
  _assert_twin(params, 'gemma3')


def test_copies_of_shared_weights_are_compared(tmp_path):
  tensors = twin_folders.tensors('t5_1_0')
  copies = ('lm_head.weight', 'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
  config = twin_folders.config('t5_1_0')
  complete = tensors | dict.fromkeys(copies, tensors['shared.weight'])
  _, params = twin_folders.load(twin_folders.write(tmp_path, config, complete))
  np.testing.assert_array_equal(params['embedding'], tensors['shared.weight'])
  complete['lm_head.weight'] = complete['lm_head.weight'] + 1
  with pytest.raises(store.CheckpointError, match=r'lm_head.weight should repeat shared.weight'):
    twin_folders.load(twin_folders.write(tmp_path, config, complete))


def test_a_copy_stands_for_weights_that_are_stored_once(tmp_path):
  tensors = twin_folders.tensors('t5_1_1')
  expected = tensors.pop('shared.weight')
  tensors['decoder.embed_tokens.weight'] = expected
  folder = twin_folders.write(tmp_path, twin_folders.config('t5_1_1'), tensors)
  np.testing.assert_array_equal(twin_folders.load(folder)[1]['embedding'], expected)


def test_leftovers_of_old_conversions_are_known(tmp_path):
  old = {
    't5_1_0': 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',
    'llama': 'model.layers.1.self_attn.rotary_emb.inv_freq',
  }
  for name, leftover in old.items():
    tensors = twin_folders.tensors(name) | {leftover: np.ones((3,), np.float32)}
    twin_folders.load(twin_folders.write(tmp_path / name, twin_folders.config(name), tensors))


@pytest.mark.parametrize('file', ['pytorch_model.bin', 'pytorch_model-00001-of-00002.bin', 'x.pt'])
def test_pickles_are_refused_with_the_command_that_converts_them(file, tmp_path):
  folder = twin_folders.twin(tmp_path, 't5_1_1')
  (folder / 'model.safetensors').unlink()
  (folder / file).write_bytes(b'\x80\x02never opened')
  with pytest.raises(store.CheckpointError, match='are not read here') as error:
    huggingface.open_folder(folder)
  assert file in str(error.value)
  assert f"from transformers import AutoModelForSeq2SeqLM as M; M.from_pretrained('{folder}')" in (
    str(error.value)
  )


def test_a_folder_that_is_not_whole_says_what_is_missing(tmp_path):
  refused = lambda words: pytest.raises(store.CheckpointError, match=words)
  with refused('has no config.json'):
    huggingface.open_folder(tmp_path)
  (tmp_path / 'config.json').write_text('{"model_type": ')
  with refused('config.json is damaged'):
    huggingface.open_folder(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(twin_folders.config('llama')))
  with refused('has neither model.safetensors nor'):
    huggingface.open_folder(tmp_path)
  tensors = twin_folders.tensors('llama')
  first = dict(itertools.islice(tensors.items(), 5))
  second = dict(itertools.islice(tensors.items(), 3, None))
  twin_folders.write(tmp_path, twin_folders.config('llama'), first, second)
  with refused(r'repeats tensors of other files: model'):
    huggingface.open_folder(tmp_path)
  (tmp_path / 'model-00002-of-00002.safetensors').unlink()
  with refused(r'lists model-00002-of-00002.safetensors, which are missing'):
    huggingface.open_folder(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
  file = twin_folders.twin(tmp_path, 'qwen2') / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:-100])
  with pytest.raises(store.CheckpointError, match=r'model.safetensors cannot be read.*truncated'):
    twin_folders.load(tmp_path)


def test_a_failed_export_leaves_no_folder_that_looks_whole(tmp_path):
  def fail():
    raise RuntimeError('no more')

  broken = tensor_tables.TensorToWrite((1,), np.dtype('float32'), fail)
  with pytest.raises(RuntimeError):
    huggingface.write_folder(tmp_path / 'new', {'model_type': 'llama'}, {'a': broken}, {})
  assert not (tmp_path / 'new' / 'config.json').exists()


def test_every_parameter_has_a_name_in_its_family():
  for name, config in twins.CONFIGS.items():
    table = families.table(configs.describe(config))
    assert {rule.parameter for rule in table.rules} == testing.weights(config).keys(), name


def test_a_pointer_of_git_lfs_is_named(tmp_path):
  folder = twin_folders.twin(tmp_path, 'llama')
  (folder / 'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1\noid 1\n')
  with pytest.raises(store.CheckpointError, match='is a Git LFS pointer'):
    huggingface.open_folder(folder)
