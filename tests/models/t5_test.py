from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx, serialization

from cascades.models import configs, t5
from cascades.types import Batch, Params
from tests import testing
from tests.golden import twins

ROOT = pathlib.Path(__file__).parents[2]
DATA = pathlib.Path(os.environ.get('CASCADES_TEST_DATA', ROOT.parent / 'shared' / 'data'))
T5X = DATA / 't5x_checkpoints' / 'micro_t5_1_1'


def _logits(config: t5.T5Config, name: str, *, rounding: int = 0) -> jax.Array:
  """Logits of the twin, then of `rounding` copies whose weights are rounded once more."""
  golden = twins.load(name)
  graphdef, params = testing.split(testing.build(config))
  batch = Batch(golden['inputs'], None, None, golden['encoder'])
  random = np.random.RandomState(0)

  def copies(weight: jax.Array) -> np.ndarray:
    steps = random.choice([-1, 0, 1], (1 + rounding, *weight.shape))
    steps[0] = 0
    return np.asarray(weight) + np.float32(steps) * np.spacing(np.abs(weight))

  def logits(params: dict) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return model.readout(model.hidden(batch))

  return jax.jit(jax.vmap(logits))(jax.tree.map(copies, params))


@pytest.mark.parametrize('name', ['t5_1_1', 't5_1_0'])
def test_logits_equal_the_reference_implementation(name):
  # Attention without 1 / sqrt(H) amplifies rounding: one unit in the last place of the weights of
  # t5_1_1 moves its logits by 3e-5, so CPUs that add in another order differ by as much.
  actual, *rounded = _logits(twins.CONFIGS[name], name, rounding=4)
  tolerance = max(1e-5, 4 * np.abs(np.asarray(rounded) - actual).max())
  assert tolerance < 2e-4
  np.testing.assert_allclose(actual, twins.load(name)['logits'], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('t5_1_1', {'mlp_activations': ('silu', 'linear')}),
    ('t5_1_1', {'relative_attention_max_distance': 13}),
    ('t5_1_0', {'relative_attention_max_distance': 13}),
    ('t5_1_0', {'mlp_activations': ('gelu',)}),
  ],
)
def test_the_golden_logits_notice_another_configuration(name, change):
  config = dataclasses.replace(twins.CONFIGS[name], **change)
  assert np.abs(_logits(config, name)[0] - twins.load(name)['logits']).max() > 1e-3


def test_a_tied_readout_is_scaled():
  tied = dataclasses.replace(testing.TINY_T5, logits_via_embedding=True)
  model = testing.build(tied)
  assert model.unembedding is None
  hidden = np.random.RandomState(0).standard_normal((5, 16)).astype(np.float32)
  expected = hidden / 4 @ np.asarray(model.embedding[...]).T
  np.testing.assert_allclose(model.readout(hidden), expected, atol=1e-5)
  untied = testing.build(testing.TINY_T5)
  expected = hidden @ np.asarray(untied.unembedding[...]).T
  np.testing.assert_allclose(untied.readout(hidden), expected, atol=1e-5)


def test_a_batch_of_the_wrong_kind_is_refused_in_a_sentence():
  model = testing.build(testing.TINY_T5)
  batch = testing.batch(testing.TINY_T5)
  with pytest.raises(ValueError, match='needs `encoder` tokens and has none'):
    model.hidden(batch._replace(encoder=None))
  with pytest.raises(ValueError, match='both `segments` and `encoder_segments`'):
    model.hidden(batch._replace(segments=batch.inputs))


def test_t5_1_1_small_has_its_published_size():
  assert configs.count_parameters(t5.T5Config(vocab_size=32128)) == 76_961_152


def _t5x_params() -> dict[str, np.ndarray]:
  """Parameters of the fixture by T5X's path."""
  import tensorstore

  folder = T5X / 'native' / 'checkpoint_30'
  tree = serialization.msgpack_restore((folder / 'checkpoint').read_bytes())
  flat = nnx.traversals.flatten_mapping(tree['optimizer']['target'], sep='/')

  def read(path: str, leaf: object) -> np.ndarray:
    if isinstance(leaf, np.ndarray):
      return leaf
    spec = {'driver': 'zarr', 'kvstore': f'file://{folder}/target.{path.replace("/", ".")}/'}
    return tensorstore.open(spec).result().read().result()

  paths = [name.removeprefix('target/') for name in json.loads((T5X / 'tree.json').read_text())]
  return {path: read(path, flat.get(path)) for path in paths if not path.startswith('state')}


def _from_t5x(arrays: dict[str, np.ndarray], config: t5.T5Config) -> Params:
  """Rename and reshape T5X's parameters."""
  heads = (config.num_heads, config.head_dim)
  attention = {'self_attention': {}, 'cross_attention': {}}
  names = {
    'encoder': {'self_attention': 'attention', 'self_norm': 'pre_attention_layer_norm'},
    'decoder': {
      'self_attention': 'self_attention',
      'self_norm': 'pre_self_attention_layer_norm',
      'cross_attention': 'encoder_decoder_attention',
      'cross_norm': 'pre_cross_attention_layer_norm',
    },
  }
  flat = {
    'embedding': arrays['token_embedder/embedding'],
    'unembedding': arrays['decoder/logits_dense/kernel'].T,
  }
  for stack, num in (
    ('encoder', config.num_encoder_layers),
    ('decoder', config.num_decoder_layers),
  ):
    flat[f'{stack}_bias/table'] = arrays[f'{stack}/relpos_bias/rel_embedding'].T
    flat[f'{stack}_norm/scale'] = arrays[f'{stack}/{stack}_norm/scale']
    gather = lambda name, stack=stack, num=num: np.stack(
      [arrays[f'{stack}/layers_{i}/{name}'] for i in range(num)]
    )
    for layer, name in (names[stack] | {'mlp_norm': 'pre_mlp_layer_norm'}).items():
      if layer not in attention:
        flat[f'{stack}/{layer}/scale'] = gather(f'{name}/scale')
        continue
      for projection in ('query', 'key', 'value'):
        kernel = gather(f'{name}/{projection}/kernel')
        flat[f'{stack}/{layer}/{projection}/kernel'] = kernel.reshape(*kernel.shape[:2], *heads)
      kernel = gather(f'{name}/out/kernel')
      flat[f'{stack}/{layer}/out/kernel'] = kernel.reshape(num, *heads, -1)
    for projection in ('wi_0', 'wi_1', 'wo'):
      flat[f'{stack}/mlp/{projection}/kernel'] = gather(f'mlp/{projection}/kernel')
  return nnx.traversals.unflatten_mapping(flat, sep='/')


@pytest.mark.skipif(not T5X.exists(), reason=f'no T5X fixture at {T5X}; set CASCADES_TEST_DATA')
def test_logits_and_packing_equal_t5x():
  expected = np.load(T5X / 'expected.npz', allow_pickle=False)
  config = t5.T5Config(
    vocab_size=384,
    emb_dim=48,
    num_heads=3,
    num_encoder_layers=2,
    num_decoder_layers=3,
    head_dim=16,
    mlp_dim=96,
  )
  params = _from_t5x(_t5x_params(), config)
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: config.build(jax.random.key(0))))

  def batch(layout: str) -> Batch:
    get = lambda name: expected.get(f'{layout}/{name}')
    segments, encoder_segments = get('decoder_segment_ids'), get('encoder_segment_ids')
    if segments is None:  # the same compiled function then serves both
      segments = np.ones_like(get('decoder_input_tokens'))
      encoder_segments = np.int32(get('encoder_input_tokens') != 0)
    return Batch(
      inputs=get('decoder_input_tokens'),
      targets=get('decoder_target_tokens'),
      weights=get('decoder_loss_weights'),
      encoder=get('encoder_input_tokens'),
      segments=segments,
      encoder_segments=encoder_segments,
    )

  for layout, name in (('batch', 'logits'), ('packed', 'packed_logits')):
    rows = batch(layout)
    targets = np.asarray(rows.weights, bool)
    logits = testing.logits(graphdef, params, rows)
    np.testing.assert_allclose(logits[targets], expected[name][targets], atol=1e-4)
