"""Keys of GGUF files: each is read, neutral, or without effect on the logits."""

from __future__ import annotations

import contextlib
import logging
import re

import numpy as np
import pytest

from cascades.checkpoints import store
from cascades.interop import gguf as importer
from cascades.interop import gguf_options
from tests.interop import gguf_test
from tests.interop.gguf_test import TWINS, WIDE, gguf, gguf_files


def _open(path, settings=None, name='llama', **options):
  return importer.open_file(gguf_test._write(path, name, settings=settings, **options)).description


def _refused(words, path, *args, **options):
  with pytest.raises(store.CheckpointError, match=re.escape(words)):
    _open(path, *args, **options)


@pytest.mark.parametrize(
  ('settings', 'factor'),
  [
    ({'scaling.type': 'linear', 'scaling.factor': 4.0}, 4.0),
    ({'scaling.factor': 4.0}, 4.0),  # linear is llama.cpp's default
    ({'scale_linear': 4.0}, 4.0),  # autumn 2023
    ({'scaling.factor': 2.0, 'scale_linear': 4.0}, 2.0),
    ({'scaling.factor': 0.0, 'scale_linear': 4.0}, 1.0),  # 0 is none, and the old key is not read
    ({'scaling.type': 'none', 'scaling.factor': 4.0}, 1.0),
    ({'scaling.type': 'linear'}, 1.0),
    ({'scaling.original_context_length': 64, 'scaling.finetuned': True}, 1.0),
    ({'scaling.attn_factor': 1.0, 'scaling.yarn_ext_factor': 0.0}, 1.0),
  ],
)
def test_linear_scaling_is_that_of_llama_cpp(settings, factor, tmp_path):
  for name in ('llama', 'qwen3'):
    keys = {f'{name}.rope.{key}': value for key, value in settings.items()}
    assert _open(tmp_path, keys, name)['rope_factor_pattern'] == (factor,)


def test_the_scaling_of_gemma_3_needs_no_type_either(tmp_path):
  fields = gguf_files.fields('gemma3', TWINS['gemma3'])
  factor = fields.pop('gemma3.rope.scaling.factor')
  del fields['gemma3.rope.scaling.type']
  path = gguf_files.write(
    tmp_path / 'm.gguf',
    'gemma3',
    fields | {'gemma3.rope.scale_linear': factor},
    gguf_files.tensors('gemma3', TWINS['gemma3']),
  )
  description = importer.open_file(path).description
  assert description['rope_factor_pattern'] == TWINS['gemma3'].rope_factor_pattern


def test_windows_of_gemma_3_may_be_listed_by_layer(tmp_path):
  period = len(TWINS['gemma3'].window_pattern)
  windows = [(layer + 1) % period > 0 for layer in range(TWINS['gemma3'].num_layers)]
  key = 'gemma3.attention.sliding_window_pattern'
  assert (
    _open(tmp_path, {key: windows}, 'gemma3')['window_pattern'] == TWINS['gemma3'].window_pattern
  )


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    ({'rope.scaling.type': 'longrope'}, "rope.scaling.type='longrope'"),
    ({'rope.scaling.type': 'Linear', 'rope.scaling.factor': 2.0}, "rope.scaling.type='Linear'"),
    ({'rope.scaling.factor': -2.0}, 'rope.scaling.factor=-2.0'),
    ({'rope.scaling.factor': 'four'}, "rope.scaling.factor='four'"),
    ({'rope.scaling.factor': float('nan')}, 'rope.scaling.factor=nan'),
    ({'rope.scaling.attn_factor': 1.5}, 'rope.scaling.attn_factor=1.5'),
    ({'rope.scaling.yarn_ext_factor': 1.0}, 'rope.scaling.yarn_ext_factor=1.0'),
    ({'rope.scaling.yarn_attn_factor': 0.5}, 'rope.scaling.yarn_attn_factor=0.5'),
    ({'rope.scaling.yarn_log_multiplier': 0.5}, 'rope.scaling.yarn_log_multiplier=0.5'),
    ({'attention.sliding_window': 8}, 'attention.sliding_window=8'),
    ({'attention.causal': False}, 'attention.causal=False'),
    ({'block_count': 10**6}, 'num_hidden_layers=1000000'),
    ({'block_count': 900}, 'num_layers=900, and there are'),
    ({'block_count': 0}, 'block_count=0'),
    ({'embedding_length': 'wide'}, "embedding_length='wide'"),
    ({'feed_forward_length': 2**31}, 'intermediate_size=2147483648'),
    ({'feed_forward_length': 2**30}, 'mlp_dim=1073741824'),
    ({'feed_forward_length': [24, 32]}, 'feed_forward_length=[24, 32]'),
    ({'attention.head_count': 0}, 'attention.head_count=0'),
    ({'rope.freq_base': 'high'}, "rope_theta='high'"),
    ({'attention.layer_norm_rms_epsilon': 'small'}, "rms_norm_eps='small'"),
  ],
)
def test_what_is_not_computed_is_refused_by_name(settings, words, tmp_path):
  _refused(words, tmp_path, {f'llama.{key}': value for key, value in settings.items()})


@pytest.mark.parametrize('key', gguf_options.NEUTRAL)
def test_every_key_of_other_models_is_refused_unless_it_is_neutral(key, tmp_path):
  for value in gguf_options.NEUTRAL[key]:
    if value is not None and value is not False:
      _open(tmp_path, {f'llama.{key}': value if value is True or value >= 0 else float(value)})
  other = False if key == 'attention.causal' else 3
  _refused(f'llama.{key}={other}', tmp_path, {f'llama.{key}': other})


def test_every_key_of_the_package_is_known():
  keys = {
    key.removeprefix('{arch}.')
    for group in (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
    for key in vars(group).values()
    if isinstance(key, str) and key.startswith('{arch}.')
  }
  known = gguf_options.READ | gguf_options.GEMMA3_READ | gguf_options.NEUTRAL.keys()
  known |= gguf_options.WITHOUT_EFFECT
  # Of RWKV, and of encoders, which are other architectures.
  other = {'time_mix_extra_dim', 'time_decay_extra_dim', '{dense}_feat_in', '{dense}_feat_out'}
  lora = {f'attention.{n}_lora_rank' for n in ('decay', 'iclr', 'value_residual_mix', 'gate')}
  assert not keys - known - other - lora


def test_an_unknown_key_is_named_and_not_refused(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('cascades'), 'propagate', True)
  _open(tmp_path, {'llama.flux_capacitor': 3, 'general.name': 'x', 'quantize.imatrix.file': 'y'})
  assert "'llama.flux_capacitor'" in caplog.text
  assert 'general' not in caplog.text


def test_sizes_may_be_listed_by_layer_if_they_are_equal(tmp_path):
  heads = [TWINS['llama'].num_heads] * TWINS['llama'].num_layers
  assert _open(tmp_path, {'llama.attention.head_count': heads})['num_heads'] == heads[0]


@pytest.mark.parametrize(
  ('name', 'settings', 'factors', 'words'),
  [
    ('llama', {'llama.rope.scaling.factor': 2.0}, 'llama3', 'rope.scaling.factor=2 too'),
    ('qwen2', {}, 'llama3', 'of a qwen2 model'),
    ('llama', {}, [1.0, 2.0], 'in a way that is not supported'),
  ],
)
def test_rotary_factors_are_never_dropped(name, settings, factors, words, tmp_path):
  if factors == 'llama3':
    config = {'head_dim': WIDE.head_dim, 'rope_theta': 10_000.0}
    factors = importer._llama3_factors(config, *importer._LLAMA3_ROPES[0])
  tensors = gguf_files.tensors(name, WIDE)
  tensors['rope_freqs.weight'] = np.asarray(factors, np.float32)
  _refused(words, tmp_path, settings, name, config=WIDE, tensors=tensors)


def test_rotary_factors_of_one_are_none(tmp_path):
  tensors = gguf_files.tensors('llama', WIDE)
  tensors['rope_freqs.weight'] = np.ones(WIDE.head_dim // 2, np.float32)
  description = _open(tmp_path, {}, config=WIDE, tensors=tensors)
  assert description['rope_llama3'] is None


def test_a_file_without_embeddings_is_refused(tmp_path):
  _refused('lacks the matrix token_embd.weight', tmp_path, tensors={'a': np.ones(3, np.float32)})


def test_no_damage_of_the_header_ends_in_anything_but_a_sentence(tmp_path):
  content = gguf_test._write(tmp_path, 'llama').read_bytes()
  random = np.random.RandomState(0)
  end = content.index(b'output_norm') + 400
  path = tmp_path / 'damaged.gguf'
  for position in random.randint(4, end, 150):
    damaged = bytearray(content)
    damaged[position : position + 8] = random.choice([b'\xff' * 8, b'\0' * 8, b'\x01' * 8])
    path.write_bytes(damaged)
    with contextlib.suppress(store.CheckpointError):  # other errors are tracebacks
      importer.open_file(path)
  for size in random.randint(0, len(content), 50):
    path.write_bytes(content[:size])
    with pytest.raises(store.CheckpointError, match='is not a complete GGUF file'):
      importer.open_file(path)


def test_tensors_that_overlap_or_lie_outside_are_refused(tmp_path):
  path = gguf_test._write(tmp_path, 'llama')
  content = path.read_bytes()
  field = importer.gguf_files.read(path).tensors[1].field
  place = field.offset + sum(part.nbytes for part in field.parts[:-1])
  for offset in (0, 32, 2**40, 2**63):
    path.write_bytes(content[:place] + offset.to_bytes(8, 'little') + content[place + 8 :])
    with pytest.raises(store.CheckpointError, match='is not a complete GGUF file'):
      importer.open_file(path)
