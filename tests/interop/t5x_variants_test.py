"""T5X's scanned T5 and its decoder-only example, against a slow reading of their code."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from cascades.checkpoints.store import CheckpointError
from cascades.interop import t5x, t5x_files
from cascades.models import configs, decoder
from cascades.types import Batch
from tests import testing
from tests.interop import t5x_oracle
from tests.interop.t5x_arrays import (
  TINY,
  TINY_1_0,
  Loaded,
  abstract,
  flat,
  load,
  plain,
  random_arrays,
  scanned,
  write_native,
)

NOW = {'encoder': 'encoder', 'decoder': 'decoder'}
FORMERLY = {'encoder': 'layers', 'decoder': 'layers'}
OURS = [
  dataclasses.replace(config, num_decoder_layers=3, relative_bias_per_layer=True)
  for config in (TINY, TINY_1_0)
]
UNTIED = decoder.DecoderConfig(
  vocab_size=24,
  emb_dim=16,
  num_heads=2,
  num_kv_heads=2,
  num_layers=3,
  head_dim=6,
  mlp_dim=20,
  mlp_activations=('gelu', 'linear'),
  logits_via_embedding=False,
  query_scale=1.0,
  relative_attention_num_buckets=8,
)
TIED = dataclasses.replace(
  UNTIED,
  mlp_activations=('relu',),
  logits_via_embedding=True,
  logit_scale=0.25,
  relative_bias_per_layer=True,
)
DECODERS = pytest.mark.parametrize('config', [UNTIED, TIED], ids=['shared', 'of each layer'])

# The example in the documentation of SeqIO's converter for prefix LMs, two rows packed into one.
TARGETS = np.array([[7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0]])
INPUTS = np.array([[0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0]])
WEIGHTS = np.array([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]])
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0]])
PREFIX = np.array([[1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0]])
PACKED = Batch(INPUTS, TARGETS, np.float32(WEIGHTS), None, SEGMENTS, POSITIONS)


def arrays_of(config: Any) -> dict[str, np.ndarray]:
  """Arrays so large that every module matters at the precision of float32."""
  size = lambda name: 1.0 if 'embedding' in name or 'scale' in name else 0.3
  return {name: size(name) * array for name, array in random_arrays(config).items()}


def of_each_layer(config: Any, layers: dict[str, str]) -> dict[str, np.ndarray]:
  return scanned(config, arrays_of(config), layers=layers)


def answer(loaded: Loaded, batch: Batch) -> np.ndarray:
  graph = abstract(loaded.config, 'float32', 1, 1, 1)[0]

  @jax.jit
  def logits(params: Any, batch: Batch) -> jax.Array:
    model = nnx.merge(graph, params)
    return model.readout(model.hidden(batch))

  return np.asarray(logits(loaded.params, batch))


@pytest.mark.parametrize('config', OURS, ids=['1.1', '1.0'])
def test_the_scanned_t5_answers_as_t5x(config, tmp_path):
  stored = of_each_layer(config, NOW)
  assert stored['decoder/decoder/self_attention/out/kernel'].shape == (2, 3, 6, 16)
  assert stored['decoder/decoder/relpos_bias/rel_embedding'].shape == (2, 3, 8)
  write_native(tmp_path / 'checkpoint_5', stored)
  loaded = load(tmp_path / 'checkpoint_5')
  assert loaded.config == config
  encoder = np.array(testing.tokens((2, 12), 1))
  encoder[1, 8:] = 0
  targets = np.array(testing.tokens((2, 11), 2))
  inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  want = t5x_oracle.scanned_t5(stored, inputs, targets, encoder)
  actual = answer(loaded, Batch(inputs, None, None, encoder))
  np.testing.assert_allclose(actual, want, atol=1e-4)
  first = 'encoder/encoder/relpos_bias/rel_embedding'
  for section in (
    first,
    first.replace('encoder', 'decoder'),
  ):  # or the layers' tables would not matter
    same = stored | {section: np.repeat(stored[section][:, :1], stored[section].shape[1], 1)}
    assert np.abs(t5x_oracle.scanned_t5(same, inputs, targets, encoder) - want).max() > 0.01


@pytest.mark.parametrize('layers', [NOW, FORMERLY], ids=['now', 'formerly'])
def test_scanned_arrays_are_the_plain_ones_layer_by_layer(layers, tmp_path):
  config = OURS[0]
  stored = of_each_layer(config, layers)
  write_native(tmp_path / 'checkpoint_5', stored)
  actual, want = flat(load(tmp_path / 'checkpoint_5').params), plain(config, arrays_of(config))
  for stack in ('encoder', 'decoder'):
    del want[f'{stack}_bias/table']
    table = stored[f'{stack}/{layers[stack]}/relpos_bias/rel_embedding']
    want[f'{stack}/relative_bias/table'] = np.stack([table[:, i].T for i in range(table.shape[1])])
  assert actual.keys() == want.keys()
  jax.tree.map(np.testing.assert_array_equal, actual, want)


@DECODERS
def test_the_decoder_only_example_answers_as_t5x(config, tmp_path):
  stored = arrays_of(config)
  write_native(tmp_path / 'checkpoint_5', stored)
  loaded = load(tmp_path / 'checkpoint_5')
  assert loaded.config == config
  real = TARGETS > 0
  want = t5x_oracle.decoder_only(stored, INPUTS, TARGETS, segments=SEGMENTS)
  np.testing.assert_allclose(answer(loaded, PACKED)[real], want[real], atol=1e-4)
  # A prefix LM has the same parameters: T5X's gin files say that it is one.
  prefix = dataclasses.replace(config, bidirectional_prompt=True)
  other = t5x_oracle.decoder_only(
    stored, INPUTS, TARGETS, segments=SEGMENTS, causal_attention=PREFIX
  )
  actual = answer(Loaded(prefix, loaded.params), PACKED)
  np.testing.assert_allclose(actual[real], other[real], atol=1e-4)
  assert np.abs(other - want)[real].max() > 0.01


def test_the_published_size_is_that_of_the_example_then():
  """models/base.gin: 134,307,072, when each layer had its biases and the head its own table."""
  config = dataclasses.replace(
    UNTIED,
    vocab_size=32128,
    emb_dim=768,
    num_heads=12,
    num_kv_heads=12,
    num_layers=12,
    head_dim=64,
    mlp_dim=2048,
    relative_attention_num_buckets=32,
    relative_bias_per_layer=True,
  )
  assert configs.count_parameters(config) == 134_307_072


@pytest.mark.parametrize('config', [*OURS, UNTIED, TIED], ids=['1.1', '1.0', 'shared', 'each'])
def test_writing_and_reading_gives_the_same_bits(config, tmp_path):
  stored = arrays_of(config) if config in (UNTIED, TIED) else of_each_layer(config, NOW)
  write_native(tmp_path / 'a' / 'checkpoint_5', stored)
  loaded = load(tmp_path / 'a' / 'checkpoint_5')
  path = t5x.write(tmp_path / 'b', configs.describe(config), loaded.params, step=5)
  actual = {name: array.read().result() for name, array in t5x_files.arrays(path).items()}
  again = {n.removeprefix('target/'): array for n, array in actual.items() if 'target/' in n}
  assert again.keys() == stored.keys()
  jax.tree.map(np.testing.assert_array_equal, again, stored)


def test_slots_of_all_layers_are_factored_by_the_names_of_axes():
  """Adafactor's logical rules: the width is a row, heads and features columns, layers apart."""
  actual = {
    name: {slot: value.shape for slot, value in t5x._initial_slots(name, shape).items()}
    for name, shape in {
      'encoder/encoder/attention/query/kernel': (16, 3, 2, 6),
      'encoder/encoder/attention/out/kernel': (2, 3, 6, 16),
      'encoder/encoder/mlp/wi_0/kernel': (16, 3, 20),
      'encoder/encoder/mlp/wo/kernel': (20, 3, 16),
      'encoder/encoder/relpos_bias/rel_embedding': (2, 3, 8),
      'encoder/encoder/pre_mlp_layer_norm/scale': (16, 3),
    }.items()
  }
  factors = lambda row, column: {'v': (1,), 'v_row': row, 'v_col': column, 'm': (1,)}
  complete = lambda shape: {'v': shape, 'v_row': (1,), 'v_col': (1,), 'm': (1,)}
  assert list(actual.values()) == [
    factors((16, 3), (3, 2, 6)),
    factors((3, 16), (2, 3, 6)),
    factors((16, 3), (3, 20)),
    factors((3, 16), (20, 3)),
    complete((2, 3, 8)),
    complete((16, 3)),
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'query_scale': 0.5}, r'query_scale is 0\.5, not 1\.0\.'),
    ({'logit_softcap': 30.0, 'embedding_scale': 4.0}, r'embedding_scale is 4.*logit_softcap is 30'),
    ({'window_pattern': [4, None]}, r'window_pattern is \(4, None\), not \(None,\)'),
    ({'logit_scale': 1.0}, r'logit_scale is 1\.0, not 0\.25'),
  ],
)
def test_a_decoder_that_t5x_does_not_compute_is_not_written(change, message, tmp_path):
  config = dataclasses.replace(TIED, **change)
  _, params = testing.split(testing.build(config))
  with pytest.raises(CheckpointError, match=message):
    t5x.write(tmp_path, configs.describe(config), params, step=1)
  assert not list(tmp_path.iterdir())
