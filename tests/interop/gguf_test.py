from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from cascades.checkpoints import store
from cascades.interop import gguf as importer
from cascades.models import configs, decoder
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from tests import testing
from tests.golden import twins
from tests.interop import twin_folders

gguf = pytest.importorskip('gguf', reason='the extra `gguf` is not installed')
gguf_files = pytest.importorskip('tests.interop.gguf_files')

# As GGUF can say them: Llama 3's scaling is recognized by its published sizes, and Gemma 3 has one
# scale for its queries.
TWINS = {
  'llama': dataclasses.replace(twins.CONFIGS['llama'], rope_llama3=None),
  'qwen2': twins.CONFIGS['qwen2'],
  'qwen3': twins.CONFIGS['qwen3'],
  'gemma3': dataclasses.replace(twins.CONFIGS['gemma3'], query_scale=6**-0.5),
}


def _write(path, name, config=None, *, settings=None, tensors=None, **options):
  config = config or TWINS[name]
  return gguf_files.write(
    path / f'{name}.gguf',
    name,
    gguf_files.fields(name, config) | (settings or {}),
    gguf_files.tensors(name, config) if tensors is None else tensors,
    **options,
  )


def _load(path, *, mesh=None):
  actual = importer.open_file(path)
  config = configs.from_description(actual.description)
  mesh = mesh or partitioning.make_mesh(devices=jax.devices()[:1])
  with partitioning.use(mesh):
    _, abstract = abstract_model(config)
  return config, actual.tensors.load(abstract)


@pytest.mark.parametrize('name', TWINS)
def test_a_file_is_the_twin_that_it_was_written_from(name, tmp_path):
  config, params = _load(_write(tmp_path, name))
  expected = TWINS[name]
  if expected.query_scale:
    assert config.query_scale == pytest.approx(expected.query_scale)
    config = dataclasses.replace(config, query_scale=expected.query_scale)
  assert config == expected
  actual, weights = twin_folders.flat(params), testing.weights(expected)
  assert actual.keys() == weights.keys()
  # Adding one to Gemma's scales, and taking it away, costs their last bits.
  for path, value in weights.items():
    np.testing.assert_allclose(actual[path], value, rtol=0, atol=3e-7 if 'norm' in path else 0)


def test_adjacent_rotary_rows_become_halves():
  rows = np.arange(8.0)[:, None]  # two heads of four features
  np.testing.assert_array_equal(
    importer._deinterleave(rows, heads=2)[:, 0], [0, 2, 1, 3, 4, 6, 5, 7]
  )


def test_deinterleaving_inverts_interleaving():
  rows = np.random.RandomState(0).standard_normal((24, 5))
  again = importer._deinterleave(gguf_files.interleave(rows, 4), heads=4)
  np.testing.assert_array_equal(again, rows)


WIDE = decoder.DecoderConfig(32, 32, 4, 2, 1, 8, 64)
STORED = {
  'token_embd.weight': 'BF16',
  'blk.0.attn_q.weight': 'Q8_0',
  'blk.0.attn_k.weight': 'F16',
  'blk.0.attn_v.weight': 'Q4_1',
  'blk.0.ffn_down.weight': 'Q5_0',
}


def test_every_tensor_is_dequantized_by_its_own_type(tmp_path):
  original = gguf_files.tensors('llama', WIDE)
  file = _write(tmp_path, 'llama', WIDE, stored_as=STORED)
  arrays = importer._tensors(
    importer.gguf_files.read(file), importer.read_config(importer.gguf_files.read(file))
  )

  def restored(name):
    variant = gguf.GGMLQuantizationType[STORED[name]]
    return gguf.quants.dequantize(gguf.quants.quantize(original[name], variant), variant)

  layer = 'model.layers.0'
  np.testing.assert_array_equal(arrays['model.embed_tokens.weight'], restored('token_embd.weight'))
  np.testing.assert_array_equal(
    arrays[f'{layer}.self_attn.v_proj.weight'], restored('blk.0.attn_v.weight')
  )
  np.testing.assert_array_equal(
    arrays[f'{layer}.mlp.down_proj.weight'], restored('blk.0.ffn_down.weight')
  )
  query = gguf_files.interleave(np.asarray(arrays[f'{layer}.self_attn.q_proj.weight']), 4)
  np.testing.assert_array_equal(query, restored('blk.0.attn_q.weight'))
  key = gguf_files.interleave(np.asarray(arrays[f'{layer}.self_attn.k_proj.weight']), 2)
  np.testing.assert_array_equal(key, restored('blk.0.attn_k.weight'))
  assert 0 < np.abs(query - original['blk.0.attn_q.weight']).max() < 0.01
  assert {np.asarray(array).dtype for array in arrays.values()} == {np.dtype('float32')}
  assert all(np.asarray(array).shape == array.shape for array in arrays.values())


def test_weights_go_where_the_mesh_wants_them(tmp_path):
  mesh = partitioning.make_mesh(1, 4, 2)
  _, params = _load(_write(tmp_path, 'llama'), mesh=mesh)
  kernel = params['blocks']['mlp']['wi_0']['kernel']
  assert kernel.addressable_shards[0].data.shape == (2, 4, 12)
  expected = testing.weights(TWINS['llama'])['blocks/mlp/wi_0/kernel']
  np.testing.assert_array_equal(kernel, expected)


def _llama_factors(size, theta, factor, low, high, length):
  """`LlamaModel.generate_extra_tensors` of llama.cpp's converter, frequency by frequency."""
  actual = []
  for i in range(0, size, 2):
    wavelength = 2 * np.pi * theta ** (i / size)
    if wavelength < length / high:
      actual.append(1.0)
    elif wavelength > length / low:
      actual.append(factor)
    else:
      smooth = (length / wavelength - low) / (high - low)
      actual.append(1 / ((1 - smooth) / factor + smooth))
  return np.array(actual, np.float32)


@pytest.mark.parametrize('published', importer._LLAMA3_ROPES)
def test_llama_3_is_recognized_by_its_rotary_factors(published, tmp_path):
  config = dataclasses.replace(WIDE, head_dim=64, rope_theta_pattern=(500_000.0,))
  tensors = {
    'token_embd.weight': np.zeros((32, 32), np.float32),
    'rope_freqs.weight': _llama_factors(64, 500_000.0, *published),
  }
  assert len(set(tensors['rope_freqs.weight'].tolist())) > 3
  actual = importer.open_file(_write(tmp_path, 'llama', config, tensors=tensors))
  assert tuple(actual.description['rope_llama3']) == published


def test_rotary_factors_of_another_kind_are_refused(tmp_path):
  tensors = {
    **gguf_files.tensors('llama', WIDE),
    'rope_freqs.weight': np.array([1, 2, 3, 4], np.float32),
  }
  with pytest.raises(store.CheckpointError, match=r'rope_freqs\.weight .* is not supported'):
    importer.open_file(_write(tmp_path, 'llama', WIDE, tensors=tensors))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'llama.expert_count': 8}, r'llama\.expert_count=8 .* supported: None, 0'),
    ({'llama.attention.value_length': 4}, r'llama\.attention\.value_length=4'),
    ({'llama.rope.dimension_count': 4}, r'llama\.rope\.dimension_count=4'),
    ({'llama.rope.scaling.type': 'yarn'}, r"llama\.rope\.scaling\.type='yarn'"),
    ({'split.count': 3}, r'is one of 3 files of a model: join them with'),
  ],
)
def test_what_our_models_do_not_compute_is_named(settings, message, tmp_path):
  with pytest.raises(store.CheckpointError, match=message):
    importer.open_file(_write(tmp_path, 'llama', settings=settings))


def test_another_architecture_is_named_with_those_that_are_known(tmp_path):
  path = gguf_files.write(tmp_path / 'm.gguf', 'mamba', {})
  with pytest.raises(store.CheckpointError, match=r"'mamba' .* these are: llama, qwen2, qwen3"):
    importer.open_file(path)


def test_a_missing_field_is_named(tmp_path):
  settings = gguf_files.fields('llama', TWINS['llama'])
  del settings['llama.feed_forward_length']
  tensors = gguf_files.tensors('llama', TWINS['llama'])
  path = gguf_files.write(tmp_path / 'm.gguf', 'llama', settings, tensors)
  with pytest.raises(store.CheckpointError, match=r'lacks llama\.feed_forward_length'):
    importer.open_file(path)


def test_missing_and_unknown_tensors_are_named(tmp_path):
  tensors = gguf_files.tensors('llama', TWINS['llama'])
  for layer in range(2):
    del tensors[f'blk.{layer}.ffn_up.weight']
    tensors[f'blk.{layer}.ffn_gate_exps.weight'] = np.zeros((2, 2), np.float32)
  with pytest.raises(store.CheckpointError) as caught:
    _load(_write(tmp_path, 'llama', tensors=tensors))
  assert 'missing: model.layers.{0-1}.mlp.up_proj.weight' in str(caught.value)
  assert 'blk.{0-1}.ffn_gate_exps.weight' in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'GGUF', b'PK\x03\x04 something else entirely'])
def test_what_is_no_gguf_file_is_refused(content, tmp_path):
  path = tmp_path / 'wrong.gguf'
  path.write_bytes(content)
  with pytest.raises(store.CheckpointError, match=r'wrong\.gguf is not a complete GGUF file'):
    importer.open_file(path)


def test_a_truncated_file_is_refused(tmp_path):
  path = _write(tmp_path, 'llama')
  content = path.read_bytes()
  for size in (100, 700, len(content) - 64):
    path.write_bytes(content[:size])
    with pytest.raises(store.CheckpointError, match='is not a complete GGUF file'):
      importer.open_file(path)


def test_numbers_come_back_as_they_were_written():
  assert importer._decimal(float(np.float32(1e-5))) == 1e-5
  assert importer._decimal(1_000_000.0) == 1_000_000.0
