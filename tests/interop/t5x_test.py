from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization

from cascades import decoding
from cascades.checkpoints.store import CheckpointError
from cascades.interop import t5x, t5x_files, tensor_tables
from cascades.models import configs, t5
from cascades.runtime import partitioning
from cascades.training import optimizers, train_step
from cascades.types import Batch, Prompt
from tests import real_data, testing
from tests.interop.t5x_arrays import (
  TINY,
  TINY_1_0,
  Loaded,
  abstract,
  flat,
  load,
  plain,
  random_arrays,
  write_native,
  write_orbax,
)

FIXTURE = 't5x_checkpoints/micro_t5_1_1'


def as_t5x(config: t5.T5Config, params: Any) -> dict[str, np.ndarray]:
  """Arrays by T5X's names."""
  tensors = tensor_tables.unload(t5x.table(configs.describe(config)), jax.device_get(params))
  return {name: tensor.compute() for name, tensor in tensors.items()}


# What T5X itself wrote.


@pytest.fixture(scope='module')
def fixture() -> pathlib.Path:
  return real_data.real(FIXTURE)


@pytest.fixture(scope='module')
def expected(fixture: pathlib.Path) -> Mapping[str, np.ndarray]:
  with np.load(fixture / 'expected.npz', allow_pickle=False) as arrays:
    return dict(arrays)


@pytest.fixture(scope='module')
def micro(fixture: pathlib.Path) -> Loaded:
  return load(fixture / 'native' / 'checkpoint_30')


def batch(expected: Mapping[str, np.ndarray], section: str) -> Batch:
  """A batch with segments in any case, so that one compiled function serves all rows."""
  get = lambda name: expected.get(f'{section}/{name}')
  segments, encoder_segments = get('decoder_segment_ids'), get('encoder_segment_ids')
  if segments is None:
    segments = np.ones_like(get('decoder_input_tokens'))
    encoder_segments = np.int32(get('encoder_input_tokens') != 0)
  return Batch(
    inputs=get('decoder_input_tokens'),
    targets=get('decoder_target_tokens'),
    weights=np.float32(get('decoder_loss_weights')),
    encoder=get('encoder_input_tokens'),
    segments=segments,
    encoder_segments=encoder_segments,
  )


def test_the_configuration_is_found_in_both_layouts(fixture):
  written = json.loads((fixture / 'expected.json').read_text())['config']
  for layout in ('native', 'orbax'):
    config = configs.from_description(
      t5x.open_checkpoint(fixture / layout / 'checkpoint_30').description
    )
    assert config == t5.T5Config(**written)


def test_every_array_of_both_layouts_is_there_and_equal(fixture):
  tree = json.loads((fixture / 'tree.json').read_text())
  native, orbax = (
    t5x_files.arrays(fixture / variant / 'checkpoint_30') for variant in ('native', 'orbax')
  )
  assert set(native) == set(orbax) == set(tree) | {'state/step'}
  for name, leaf in tree.items():
    assert [*native[name].shape] == leaf['shape']
    assert native[name].dtype.name == leaf['dtype']
    np.testing.assert_array_equal(native[name].read().result(), orbax[name].read().result())
  assert native['state/step'].read().result() == 30


def test_both_layouts_are_the_same_parameters(fixture, micro):
  again = load(fixture / 'orbax' / 'checkpoint_30')
  assert again.config == micro.config
  jax.tree.map(np.testing.assert_array_equal, again.params, micro.params)
  written = json.loads((fixture / 'expected.json').read_text())['n_params']
  assert sum(leaf.size for leaf in jax.tree.leaves(micro.params)) == written


@pytest.fixture(scope='module')
def run(micro: Loaded) -> Any:
  """Everything that is computed from a batch, compiled once."""
  graph = abstract(micro.config, 'float32', 1, 1, 1)[0]

  def loss(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graph, params)
    logits = model.readout(model.hidden(batch))
    return loss_with_z_loss(logits, (), batch.targets, batch.weights)[0], logits

  @jax.jit
  def run(batch: Batch) -> dict[str, Any]:
    (total, logits), gradient = jax.value_and_grad(loss, has_aux=True)(micro.params, batch)
    scores, *_ = decoding.score(nnx.merge(graph, micro.params), batch)
    return {'loss': total, 'logits': logits, 'gradient': gradient, 'scores': scores}

  return run


def test_logits_packing_and_token_scores_equal_t5x(expected, run):
  for section, name in (('batch', 'logits'), ('packed', 'packed_logits')):
    rows = batch(expected, section)
    actual, real = run(rows), rows.weights > 0
    np.testing.assert_allclose(actual['logits'][real], expected[name][real], atol=1e-4)
    if section == 'batch':
      np.testing.assert_allclose(actual['scores'], expected['token_scores'] * real, atol=1e-4)
      np.testing.assert_allclose(actual['scores'].sum(1), expected['score'], atol=1e-4)


def test_loss_and_gradient_equal_t5x(expected, micro, run):
  actual = run(batch(expected, 'batch'))
  np.testing.assert_allclose(actual['loss'], expected['loss_sum_with_zloss'], rtol=1e-5)
  norms = {
    n: np.linalg.norm(g.ravel()) for n, g in as_t5x(micro.config, actual['gradient']).items()
  }
  np.testing.assert_allclose(np.hypot.reduce([*norms.values()]), expected['grad_global_norm'], 1e-5)
  assert {f'grad_norm/{name}' for name in norms} == {n for n in expected if 'grad_norm/' in n}
  for name, norm in norms.items():
    np.testing.assert_allclose(norm, expected[f'grad_norm/{name}'], rtol=1e-4)


def test_greedy_decodes_equal_t5x(expected, micro):
  tokens = expected['batch/encoder_input_tokens']
  prompt = Prompt(tokens, np.int32((tokens != 0).sum(1)))
  want = expected['decode_greedy/tokens'][:, 0]
  graph = abstract(micro.config, 'float32', 1, 1, 1)[0]
  decode = lambda params, prompt: decoding.generate(
    nnx.merge(graph, params), prompt, max_len=want.shape[1], eos_id=1
  )
  answer = jax.jit(decode)(micro.params, prompt)
  np.testing.assert_array_equal(answer.tokens, want)
  # T5X scores greedy decodes 0; a beam of one gives the same tokens, and divides by its penalty.
  np.testing.assert_array_equal(want, expected['decode_beam1/tokens'][:, 0])
  penalty = ((5 + answer.mask.sum(1)) / 6) ** 0.6
  scores = expected['decode_beam1/scores'][:, 0]
  np.testing.assert_allclose(answer.logprobs.sum(1) / penalty, scores, atol=1e-4)


def loss_with_z_loss(logits, teachers, targets, weights, *, step=None):
  """T5X's: a sum over tokens."""
  del teachers, step
  log_z = jax.nn.logsumexp(logits, -1)
  hit = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
  return jnp.sum((log_z - hit + 1e-4 * log_z**2) * weights), jnp.sum(weights)


@pytest.mark.slow
def test_one_more_step_equals_t5x(fixture, expected, micro, run, tmp_path):
  """Our training step 31 on stacked layers, from T5X's second moments."""
  next_batch = batch(expected, 'next_batch')
  gradient = as_t5x(micro.config, run(next_batch)['gradient'])
  for name, array in gradient.items():
    np.testing.assert_allclose(array, expected[f'next_grad/{name}'], atol=1e-4)
  states = t5x_files.arrays(fixture / 'native' / 'checkpoint_30')
  write_native(
    tmp_path / 'checkpoint_30',
    {name: states[f'state/param_states/{name}/v'].read().result() for name in gradient},
  )
  moments = load(tmp_path / 'checkpoint_30').params
  optimizer = optimizers.adafactor(optimizers.constant(1e-2))
  is_factored = lambda state: isinstance(state, optax.FactoredState)
  state = train_step.init_state(micro.params, optimizer, seed=0)
  state = state._replace(
    opt_state=jax.tree.map(
      lambda s: s._replace(count=jnp.int32(30), v=moments) if is_factored(s) else s,
      state.opt_state,
      is_leaf=is_factored,
    )
  )
  graph = abstract(micro.config, 'float32', 1, 1, 1)[0]
  definition = train_step.ModelDef(graph, micro.config.vocab_size)
  step = functools.partial(
    train_step.train_step, small=definition, large=None, loss=loss_with_z_loss, normalizer=1.0,
    optimizer=optimizer,
  )  # fmt: skip
  state, _ = jax.jit(step)(state, train_step.Frozen(), next_batch)
  stepped = as_t5x(micro.config, state.params)
  assert {f'after_next_step/{name}' for name in stepped} == {
    name for name in expected if name.startswith('after_next_step/')
  }
  for name, after in stepped.items():
    np.testing.assert_allclose(after, expected[f'after_next_step/{name}'], atol=1e-5)


def test_what_is_written_is_what_t5x_wrote(fixture, micro, tmp_path):
  original = fixture / 'native' / 'checkpoint_30'
  actual = {name: array.read().result() for name, array in t5x_files.arrays(original).items()}
  prefix = 'state/param_states/'
  slots = {n.removeprefix(prefix): a for n, a in actual.items() if n.startswith(prefix)}
  checkpoint = t5x.write(
    tmp_path, configs.describe(micro.config), micro.params, step=30, slots=slots
  )
  assert checkpoint == tmp_path / 'checkpoint_30'

  again = {name: array.read().result() for name, array in t5x_files.arrays(checkpoint).items()}
  assert {n: a.dtype for n, a in again.items()} == {n: a.dtype for n, a in actual.items()}
  jax.tree.map(np.testing.assert_array_equal, again, actual)
  index = [
    serialization.msgpack_restore((d / 'checkpoint').read_bytes()) for d in (original, checkpoint)
  ]
  assert json.dumps(index[0], sort_keys=True, default=repr) == json.dumps(
    index[1], sort_keys=True, default=repr
  )
  folders = [sorted(actual.name for actual in d.glob('*.*')) for d in (original, checkpoint)]
  assert folders[0] == folders[1]
  for folder in folders[0]:
    zarr = [json.loads((d / folder / '.zarray').read_text()) for d in (original, checkpoint)]
    assert zarr[0] == zarr[1]


def test_new_optimizer_slots_are_those_that_t5x_has(fixture, micro, tmp_path):
  tree = json.loads((fixture / 'tree.json').read_text())
  arrays = t5x_files.arrays(
    t5x.write(tmp_path, configs.describe(micro.config), micro.params, step=30)
  )
  assert {name: [*array.shape] for name, array in arrays.items() if name in tree} == {
    name: leaf['shape'] for name, leaf in tree.items()
  }


# What is written here in the same formats.


@pytest.mark.parametrize('config', [TINY, TINY_1_0], ids=['1.1', '1.0'])
def test_t5_1_0_and_1_1_are_read_from_either_layout(config, tmp_path):
  exported = random_arrays(config)
  write_orbax(tmp_path / 'checkpoint_5', exported)
  write_native(tmp_path / 'native' / 'checkpoint_5', exported)
  for path in (tmp_path / 'checkpoint_5', tmp_path / 'native' / 'checkpoint_5'):
    loaded = load(path)
    assert loaded.config == config
    want = plain(config, exported)
    assert flat(loaded.params).keys() == want.keys()
    jax.tree.map(np.testing.assert_array_equal, flat(loaded.params), want)


@pytest.mark.parametrize('write', [write_native, write_orbax])
def test_bfloat16_and_float32_are_read_as_either(write, tmp_path):
  exported = random_arrays(TINY)
  mixed = {  # T5X stores one type; files that were put together by hand need not
    name: array.astype(jnp.bfloat16) if 'kernel' in name else array
    for name, array in exported.items()
  }
  write(tmp_path / 'checkpoint_5', mixed)
  exact = {name: array.astype(np.float32) for name, array in mixed.items()}
  wide = flat(load(tmp_path / 'checkpoint_5').params)
  jax.tree.map(np.testing.assert_array_equal, wide, plain(TINY, exact))
  narrow = flat(load(tmp_path / 'checkpoint_5', dtype='bfloat16').params)
  assert {leaf.dtype for leaf in narrow.values()} == {jnp.dtype('bfloat16')}
  want = plain(TINY, {name: array.astype(jnp.bfloat16) for name, array in exported.items()})
  jax.tree.map(np.testing.assert_array_equal, narrow, want)


@pytest.mark.parametrize(('dtype', 'config'), [('float32', TINY), ('bfloat16', TINY_1_0)])
def test_writing_and_reading_gives_the_same_bits(dtype, config, tmp_path):
  exported = {name: array.astype(dtype) for name, array in random_arrays(config).items()}
  write_native(tmp_path / 'a' / 'checkpoint_5', exported)
  first = load(tmp_path / 'a' / 'checkpoint_5', dtype=dtype)
  checkpoint = t5x.write(
    tmp_path / 'b', configs.describe(config), first.params, step=7, dtype=dtype
  )
  stored = {
    name.removeprefix('target/'): array.read().result()
    for name, array in t5x_files.arrays(checkpoint).items()
    if name.startswith('target/')
  }
  assert stored.keys() == exported.keys()
  assert {array.dtype for array in stored.values()} == {np.dtype(dtype)}
  jax.tree.map(np.testing.assert_array_equal, stored, exported)
  types = {
    array.dtype.name for name, array in t5x_files.arrays(checkpoint).items() if '/param_' in name
  }
  assert types == {'float32'}  # the optimizer's state is not cast
  again = load(checkpoint, dtype=dtype)
  assert again.config == config
  jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


def test_parameters_go_straight_to_where_the_mesh_has_them(tmp_path):
  exported = random_arrays(TINY)
  write_orbax(tmp_path / 'checkpoint_5', exported)
  params = load(tmp_path / 'checkpoint_5', mesh=(2, 2, 2)).params
  kernel = params['decoder']['self_attention']['query']['kernel']
  assert {piece.data.shape for piece in kernel.addressable_shards} == {(2, 8, 1, 6)}
  assert len(kernel.sharding.device_set) == 8
  jax.tree.map(np.testing.assert_array_equal, flat(params), plain(TINY, exported))


def test_only_the_pieces_that_a_device_needs_are_asked_for(tmp_path, monkeypatch):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  weights = t5x.open_checkpoint(tmp_path / 'checkpoint_5').tensors.stored
  mesh = partitioning.make_mesh(2, 2, 2)
  sharding = jax.NamedSharding(mesh, jax.P('tensor', 'fsdp'))
  asked = []
  make = jax.make_array_from_callback
  spy = lambda piece: lambda index: asked.append(piece(index).shape) or piece(index)
  monkeypatch.setattr(
    jax, 'make_array_from_callback', lambda shape, where, piece: make(shape, where, spy(piece))
  )
  name = 'token_embedder/embedding'
  weights.read({name: jax.ShapeDtypeStruct((24, 16), jnp.float32, sharding=sharding)})
  assert set(asked) == {(12, 8)}


@pytest.mark.parametrize(
  ('rows', 'columns', 'v_row', 'v_col', 'v'),
  [
    (128, 300, 128, 300, 1),
    (300, 128, 128, 300, 1),  # v_row is what is left without the largest dimension
    (128, 128, 128, 128, 1),
    (127, 300, 1, 1, (127, 300)),
  ],
)
def test_new_slots_are_factored_from_128_on(rows, columns, v_row, v_col, v):
  slots = t5x._initial_slots('encoder/layers_0/mlp/wi/kernel', (rows, columns))
  assert {name: slot.shape for name, slot in slots.items()} == {
    'v_row': (v_row,),
    'v_col': (v_col,),
    'v': v if isinstance(v, tuple) else (v,),
    'm': (1,),
  }
  assert {slot.dtype for slot in slots.values()} == {np.dtype('float32')}


# What is not right is said.


def test_all_arrays_that_do_not_fit_are_named(tmp_path):
  exported = random_arrays(TINY)
  exported['decoder/adapter/kernel'] = np.zeros((2, 2), np.float32)
  for layer in range(2):
    del exported[f'decoder/layers_{layer}/mlp/wo/kernel']
  exported['encoder/encoder_norm/scale'] = np.zeros(3, np.float32)
  exported['encoder/layers_1/mlp/wi_0/kernel'] = np.zeros((16, 20), np.int32)
  write_native(tmp_path / 'checkpoint_5', exported)
  with pytest.raises(CheckpointError) as error:
    load(tmp_path / 'checkpoint_5')
  for section in (
    'missing: decoder/layers_{0-1}/mlp/wo/kernel',
    'decoder/adapter/kernel',
    'encoder/encoder_norm/scale is (3,), expected (16,)',
    'encoder/layers_1/mlp/wi_0/kernel (int32)',
  ):
    assert section in str(error.value)


def test_what_is_no_t5_says_what_it_is(tmp_path):
  write_native(tmp_path / 'checkpoint_5', {'decoder/layers_0/kernel': np.zeros(3, np.float32)})
  with pytest.raises(
    CheckpointError, match=r'lacks token_embedder/embedding.*holds decoder/layers_0'
  ):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (testing.TINY_DECODER, r'no model of T5X: it lacks decoder/relpos_bias/rel_embedding'),
    (testing.TINY_EVERYTHING, r'not in the table: .*blocks/post_mlp_norm/scale'),
    (testing.TINY_T5, r'relative_attention_max_distance is 12, not 128\.$'),
  ],
)
def test_what_t5x_cannot_hold_is_not_written(config, message, tmp_path):
  _, params = testing.split(testing.build(config))
  with pytest.raises(CheckpointError, match=message):
    t5x.write(tmp_path, configs.describe(config), params, step=1)
  with pytest.raises(ValueError, match="DTYPE is 'int8'; weights are stored as float32 or"):
    t5x.write(tmp_path, configs.describe(config), params, step=1, dtype='int8')
  assert not list(tmp_path.iterdir())
