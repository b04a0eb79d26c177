from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore
from flax import nnx, serialization, traverse_util

from cascades import decoding, optimizers, partitioning
from cascades.checkpoints import convert, t5x
from cascades.checkpoints.store import CheckpointError
from cascades.models import configs, t5
from cascades.types import Batch, Prompt
from tests import real_data, testing

FIXTURE = 't5x_checkpoints/micro_t5_1_1'
TINY = dataclasses.replace(testing.TINY_T5, relative_attention_max_distance=128)
TINY_1_0 = dataclasses.replace(TINY, mlp_activations=('relu',), logits_via_embedding=True)


class Loaded(NamedTuple):
  config: t5.Config
  params: Any


@functools.cache
def abstract(config: t5.Config, dtype: str, data: int, fsdp: int, tensor: int) -> tuple[Any, Any]:
  mesh = partitioning.make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
  with partitioning.use(mesh):
    return partitioning.abstract_model(config, dtype=dtype)


def load(path: Any, *, dtype: str = 'float32', mesh: tuple[int, int, int] = (1, 1, 1)) -> Loaded:
  """As a program does it: the configuration from the checkpoint, the parameters onto a mesh."""
  source = t5x.open_checkpoint(path)
  config = configs.from_description(source.model)
  like = abstract(config, dtype, *mesh)[1]
  return Loaded(config, convert.load(source.table, source.weights, like))


def flat(params: Any) -> dict[str, np.ndarray]:
  leaves = traverse_util.flatten_dict(params, sep='/')
  return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def as_t5x(params: Any) -> dict[str, np.ndarray]:
  """By T5X's names."""
  gated = 'wi_1' in params['encoder']['mlp']
  tensors = convert.unload(t5x.table(gated=gated), jax.device_get(params))
  return {name: tensor.make() for name, tensor in tensors.items()}


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


def batch(expected: Mapping[str, np.ndarray], part: str) -> Batch:
  """With segments always, so that one compiled function serves packed rows and others."""
  get = lambda name: expected.get(f'{part}/{name}')
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
    config = configs.from_description(t5x.open_checkpoint(fixture / layout / 'checkpoint_30').model)
    assert config == t5.Config(**written)
  given = t5x.open_checkpoint(
    fixture / 'native' / 'checkpoint_30', mlp_activations=('silu', 'linear')
  )
  assert given.model['mlp_activations'] == ('silu', 'linear')


def test_every_array_of_both_layouts_is_there_and_equal(fixture):
  tree = json.loads((fixture / 'tree.json').read_text())
  native, orbax = (t5x.arrays(fixture / kind / 'checkpoint_30') for kind in ('native', 'orbax'))
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
    """T5X's: a sum over tokens, with the z-loss."""
    model = nnx.merge(graph, params)
    logits = model.readout(model.hidden(batch))
    log_z = jax.nn.logsumexp(logits, -1)
    hit = jnp.take_along_axis(logits, batch.targets[..., None], -1)[..., 0]
    return jnp.sum((log_z - hit + 1e-4 * log_z**2) * batch.weights), logits

  @jax.jit
  def run(batch: Batch) -> dict[str, Any]:
    (total, logits), gradient = jax.value_and_grad(loss, has_aux=True)(micro.params, batch)
    scores, _ = decoding.score(nnx.merge(graph, micro.params), batch)
    return {'loss': total, 'logits': logits, 'gradient': gradient, 'scores': scores}

  return run


def test_logits_packing_and_token_scores_equal_t5x(expected, run):
  for part, name in (('batch', 'logits'), ('packed', 'packed_logits')):
    rows = batch(expected, part)
    found, real = run(rows), rows.weights > 0
    np.testing.assert_allclose(found['logits'][real], expected[name][real], atol=1e-4)
    if part == 'batch':
      np.testing.assert_allclose(found['scores'], expected['token_scores'] * real, atol=1e-4)
      np.testing.assert_allclose(found['scores'].sum(1), expected['score'], atol=1e-4)


def test_loss_and_gradient_equal_t5x(expected, run):
  found = run(batch(expected, 'batch'))
  np.testing.assert_allclose(found['loss'], expected['loss_sum_with_zloss'], rtol=1e-5)
  norms = {n: np.linalg.norm(g.ravel()) for n, g in as_t5x(found['gradient']).items()}
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


def adafactor_step(
  params: dict[str, np.ndarray], gradient: dict[str, np.ndarray], moments: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Our Adafactor's step 31 from T5X's second moments, on each array as T5X cuts them."""
  optimizer = optimizers.adafactor(optimizers.constant(1e-2))
  is_factored = lambda state: isinstance(state, optax.FactoredState)

  @jax.jit
  @jax.vmap
  def step(param: jax.Array, gradient: jax.Array, moment: jax.Array) -> jax.Array:
    state = jax.tree.map(
      lambda s: s._replace(count=jnp.int32(30), v=moment) if is_factored(s) else s,
      optimizer.init(param),
      is_leaf=is_factored,
    )
    return optax.apply_updates(param, optimizer.update(gradient, state, param)[0])

  stepped = {}
  for shape in {array.shape for array in params.values()}:  # arrays of a shape compile once
    names = [name for name in params if params[name].shape == shape]
    stacks = (np.stack([tree[name] for name in names]) for tree in (params, gradient, moments))
    stepped |= dict(zip(names, step(*stacks), strict=True))
  return stepped


def test_one_more_step_equals_t5x(fixture, expected, micro, run):
  gradient = as_t5x(run(batch(expected, 'next_batch'))['gradient'])
  states = t5x.arrays(fixture / 'native' / 'checkpoint_30')
  moments = {n: states[f'state/param_states/{n}/v'].read().result() for n in gradient}
  stepped = adafactor_step(as_t5x(micro.params), gradient, moments)
  assert {f'after_next_step/{name}' for name in stepped} == {
    name for name in expected if name.startswith('after_next_step/')
  }
  for name, after in stepped.items():
    np.testing.assert_allclose(gradient[name], expected[f'next_grad/{name}'], atol=1e-4)
    np.testing.assert_allclose(after, expected[f'after_next_step/{name}'], atol=1e-5)


def test_what_is_written_is_what_t5x_wrote(fixture, micro, tmp_path):
  original = fixture / 'native' / 'checkpoint_30'
  found = {name: array.read().result() for name, array in t5x.arrays(original).items()}
  prefix = 'state/param_states/'
  slots = {n.removeprefix(prefix): a for n, a in found.items() if n.startswith(prefix)}
  place = t5x.write(tmp_path, micro.params, step=30, slots=slots)
  assert place == tmp_path / 'checkpoint_30'

  again = {name: array.read().result() for name, array in t5x.arrays(place).items()}
  assert {n: a.dtype for n, a in again.items()} == {n: a.dtype for n, a in found.items()}
  jax.tree.map(np.testing.assert_array_equal, again, found)
  index = [
    serialization.msgpack_restore((d / 'checkpoint').read_bytes()) for d in (original, place)
  ]
  assert json.dumps(index[0], sort_keys=True, default=repr) == json.dumps(
    index[1], sort_keys=True, default=repr
  )
  folders = [sorted(found.name for found in d.glob('*.*')) for d in (original, place)]
  assert folders[0] == folders[1]
  for folder in folders[0]:
    zarr = [json.loads((d / folder / '.zarray').read_text()) for d in (original, place)]
    assert zarr[0] == zarr[1]


def test_new_optimizer_slots_are_those_that_t5x_has(fixture, micro, tmp_path):
  tree = json.loads((fixture / 'tree.json').read_text())
  arrays = t5x.arrays(t5x.write(tmp_path, micro.params, step=30))
  assert {name: [*array.shape] for name, array in arrays.items() if name in tree} == {
    name: leaf['shape'] for name, leaf in tree.items()
  }


# What is written here in the same formats.


def write_orbax(path: pathlib.Path, target: Mapping[str, np.ndarray], step: int = 5) -> None:
  """As T5X's Orbax checkpoints are, by Orbax."""
  tree = {
    'target': traverse_util.unflatten_dict(dict(target), sep='/'),
    'state': {'step': np.int32(step)},
  }
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(path / 'state', tree)


def write_native(path: pathlib.Path, target: Mapping[str, np.ndarray], version: int = 3) -> None:
  """As T5X's native checkpoints are, written by hand and wholly inline."""
  path.mkdir(parents=True)
  tree = {
    'target': traverse_util.unflatten_dict(dict(target), sep='/'),
    'state': {'step': np.asarray(5, np.int32), 'param_states': {}},
  }
  content = serialization.msgpack_serialize({'version': version, 'optimizer': tree})
  (path / 'checkpoint').write_bytes(content)


def plain(config: t5.Config, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Our parameters from T5X's names of plain T5, one by one and without a table."""
  heads = (config.num_heads, config.head_dim)
  ours = {'embedding': theirs['token_embedder/embedding']}
  if not config.logits_via_embedding:
    ours['unembedding'] = theirs['decoder/logits_dense/kernel'].T
  inner = {'wi_0': 'wi_0', 'wi_1': 'wi_1'} if len(config.mlp_activations) == 2 else {'wi_0': 'wi'}
  for stack, num in (
    ('encoder', config.num_encoder_layers),
    ('decoder', config.num_decoder_layers),
  ):
    gather = lambda name, stack=stack, num=num: np.stack(
      [theirs[f'{stack}/layers_{i}/{name}'] for i in range(num)]
    )
    own = 'attention' if stack == 'encoder' else 'self_attention'
    attentions = {'self': (f'pre_{own}_layer_norm', own)}
    if stack == 'decoder':
      attentions['cross'] = ('pre_cross_attention_layer_norm', 'encoder_decoder_attention')
    ours[f'{stack}_bias/table'] = theirs[f'{stack}/relpos_bias/rel_embedding'].T
    ours[f'{stack}_norm/scale'] = theirs[f'{stack}/{stack}_norm/scale']
    ours[f'{stack}/mlp_norm/scale'] = gather('pre_mlp_layer_norm/scale')
    for here, there in {**inner, 'wo': 'wo'}.items():
      ours[f'{stack}/mlp/{here}/kernel'] = gather(f'mlp/{there}/kernel')
    for here, (norm, there) in attentions.items():
      ours[f'{stack}/{here}_norm/scale'] = gather(f'{norm}/scale')
      for part in ('query', 'key', 'value'):
        kernel = gather(f'{there}/{part}/kernel')
        ours[f'{stack}/{here}_attention/{part}/kernel'] = kernel.reshape(num, -1, *heads)
      kernel = gather(f'{there}/out/kernel')
      ours[f'{stack}/{here}_attention/out/kernel'] = kernel.reshape(num, *heads, -1)
  return ours


def shapes(config: t5.Config) -> dict[str, tuple[int, ...]]:
  """All names and shapes of plain T5, from the format's description."""
  E, M, J = config.emb_dim, config.mlp_dim, config.num_heads * config.head_dim
  found: dict[str, tuple[int, ...]] = {'token_embedder/embedding': (config.vocab_size, E)}
  if not config.logits_via_embedding:
    found['decoder/logits_dense/kernel'] = (E, config.vocab_size)
  inner = ('wi_0', 'wi_1') if len(config.mlp_activations) == 2 else ('wi',)
  per_stack = {
    'encoder': (config.num_encoder_layers, ('attention',), ('attention', 'mlp')),
    'decoder': (
      config.num_decoder_layers,
      ('self_attention', 'encoder_decoder_attention'),
      ('self_attention', 'cross_attention', 'mlp'),
    ),
  }
  for stack, (num, attentions, norms) in per_stack.items():
    buckets = config.relative_attention_num_buckets
    found[f'{stack}/relpos_bias/rel_embedding'] = (config.num_heads, buckets)
    found[f'{stack}/{stack}_norm/scale'] = (E,)
    for layer in (f'{stack}/layers_{i}' for i in range(num)):
      found |= {f'{layer}/pre_{norm}_layer_norm/scale': (E,) for norm in norms}
      found |= {f'{layer}/mlp/{wi}/kernel': (E, M) for wi in inner}
      found[f'{layer}/mlp/wo/kernel'] = (M, E)
      for attention in attentions:
        found |= {f'{layer}/{attention}/{p}/kernel': (E, J) for p in ('query', 'key', 'value')}
        found[f'{layer}/{attention}/out/kernel'] = (J, E)
  return found


def random_arrays(config: t5.Config, dtype: Any = np.float32) -> dict[str, np.ndarray]:
  random = np.random.RandomState(0)
  return {
    name: random.standard_normal(shape).astype(dtype) for name, shape in shapes(config).items()
  }


def scanned(
  config: t5.Config, theirs: Mapping[str, np.ndarray], *, layers: Mapping[str, str]
) -> dict[str, np.ndarray]:
  """The arrays as the scanned variant keeps them: all layers on axis 1, the heads apart."""
  found, groups = {}, {}
  for name, array in theirs.items():
    stack, _, rest = name.partition('/')
    if rest == 'relpos_bias/rel_embedding':
      num = getattr(config, f'num_{stack}_layers')
      found[f'{stack}/{layers[stack]}/{rest}'] = np.stack([array] * num, 1)
    elif rest.startswith('layers_'):
      heads = (config.num_heads, config.head_dim)
      if rest.endswith('out/kernel'):
        array = array.reshape(*heads, -1)
      elif 'attention/' in rest:
        array = array.reshape(-1, *heads)
      groups.setdefault(f'{stack}/{layers[stack]}/{rest.partition("/")[2]}', []).append(array)
    else:
      found[name] = array
  return found | {name: np.stack(arrays, 1) for name, arrays in groups.items()}


@pytest.mark.parametrize('config', [TINY, TINY_1_0], ids=['1.1', '1.0'])
def test_t5_1_0_and_1_1_are_read_from_either_layout(config, tmp_path):
  theirs = random_arrays(config)
  write_orbax(tmp_path / 'checkpoint_5', theirs)
  write_native(tmp_path / 'native' / 'checkpoint_5', theirs)
  for path in (tmp_path / 'checkpoint_5', tmp_path / 'native' / 'checkpoint_5'):
    loaded = load(path)
    assert loaded.config == config
    want = plain(config, theirs)
    assert flat(loaded.params).keys() == want.keys()
    jax.tree.map(np.testing.assert_array_equal, flat(loaded.params), want)


@pytest.mark.parametrize(
  'layers',
  [{'encoder': 'encoder', 'decoder': 'decoder'}, {'encoder': 'layers', 'decoder': 'layers'}],
  ids=['now', 'formerly'],
)
@pytest.mark.parametrize('config', [TINY, TINY_1_0], ids=['1.1', '1.0'])
def test_the_scanned_variant_is_the_same_model_if_its_layers_share_positions(
  config, layers, tmp_path
):
  config = dataclasses.replace(config, num_decoder_layers=3)
  theirs = random_arrays(config)
  stored = scanned(config, theirs, layers=layers)
  kernel = f'decoder/{layers["decoder"]}/self_attention/out/kernel'
  assert stored[kernel].shape == (2, 3, 6, 16)
  write_native(tmp_path / 'checkpoint_5', stored)
  loaded = load(tmp_path / 'checkpoint_5')
  assert loaded.config == config
  jax.tree.map(np.testing.assert_array_equal, flat(loaded.params), plain(config, theirs))


def test_scanned_layers_with_positions_of_their_own_are_refused(tmp_path):
  stored = scanned(TINY, random_arrays(TINY), layers={'encoder': 'encoder', 'decoder': 'decoder'})
  stored['decoder/decoder/relpos_bias/rel_embedding'][0, 1, 3] += 1
  write_native(tmp_path / 'checkpoint_5', stored)
  message = r'decoder/decoder/relpos_bias/rel_embedding of layers 1 differs from that of layer 0'
  with pytest.raises(CheckpointError, match=message):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


def test_the_decoder_only_example_is_refused_by_its_relative_positions(tmp_path):
  stored = {
    name.replace('token_embedder', 'decoder/token_embedder'): array
    for name, array in random_arrays(TINY).items()
    if not name.startswith('encoder') and 'cross' not in name and 'encoder_' not in name
  }
  write_native(tmp_path / 'checkpoint_5', stored)
  with pytest.raises(CheckpointError, match=r'decoder-only example.*relpos_bias/rel_embedding'):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


@pytest.mark.parametrize('write', [write_native, write_orbax])
def test_bfloat16_and_float32_are_read_as_either(write, tmp_path):
  theirs = random_arrays(TINY)
  mixed = {  # T5X stores one type; files that were put together by hand need not
    name: array.astype(jnp.bfloat16) if 'kernel' in name else array
    for name, array in theirs.items()
  }
  write(tmp_path / 'checkpoint_5', mixed)
  exact = {name: array.astype(np.float32) for name, array in mixed.items()}
  wide = flat(load(tmp_path / 'checkpoint_5').params)
  jax.tree.map(np.testing.assert_array_equal, wide, plain(TINY, exact))
  narrow = flat(load(tmp_path / 'checkpoint_5', dtype='bfloat16').params)
  assert {leaf.dtype for leaf in narrow.values()} == {jnp.dtype('bfloat16')}
  want = plain(TINY, {name: array.astype(jnp.bfloat16) for name, array in theirs.items()})
  jax.tree.map(np.testing.assert_array_equal, narrow, want)


@pytest.mark.parametrize(('dtype', 'config'), [('float32', TINY), ('bfloat16', TINY_1_0)])
def test_writing_and_reading_gives_the_same_bits(dtype, config, tmp_path):
  theirs = {name: array.astype(dtype) for name, array in random_arrays(config).items()}
  write_native(tmp_path / 'a' / 'checkpoint_5', theirs)
  first = load(tmp_path / 'a' / 'checkpoint_5', dtype=dtype)
  place = t5x.write(tmp_path / 'b', first.params, step=7, dtype=dtype)
  stored = {
    name.removeprefix('target/'): array.read().result()
    for name, array in t5x.arrays(place).items()
    if name.startswith('target/')
  }
  assert stored.keys() == theirs.keys()
  assert {array.dtype for array in stored.values()} == {np.dtype(dtype)}
  jax.tree.map(np.testing.assert_array_equal, stored, theirs)
  types = {array.dtype.name for name, array in t5x.arrays(place).items() if '/param_' in name}
  assert types == {'float32'}  # the optimiser's state is not cast
  again = load(place, dtype=dtype)
  assert again.config == config
  jax.tree.map(np.testing.assert_array_equal, again.params, first.params)


def test_parameters_go_straight_to_where_the_mesh_has_them(tmp_path):
  theirs = random_arrays(TINY)
  write_orbax(tmp_path / 'checkpoint_5', theirs)
  params = load(tmp_path / 'checkpoint_5', mesh=(2, 2, 2)).params
  kernel = params['decoder']['self_attention']['query']['kernel']
  assert {piece.data.shape for piece in kernel.addressable_shards} == {(2, 8, 1, 6)}
  assert len(kernel.sharding.device_set) == 8
  jax.tree.map(np.testing.assert_array_equal, flat(params), plain(TINY, theirs))


def test_only_the_pieces_that_a_device_needs_are_asked_for(tmp_path, monkeypatch):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  weights = t5x.open_checkpoint(tmp_path / 'checkpoint_5').weights
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
  slots = t5x._fresh_slots((rows, columns))
  assert {name: slot.shape for name, slot in slots.items()} == {
    'v_row': (v_row,),
    'v_col': (v_col,),
    'v': v if isinstance(v, tuple) else (v,),
    'm': (1,),
  }
  assert {slot.dtype for slot in slots.values()} == {np.dtype('float32')}


def test_large_arrays_are_written_in_pieces_that_divide_them(monkeypatch):
  assert t5x._chunks((32128, 512), 4) == [32128, 512]  # 62.75 MiB
  assert t5x._chunks((32128, 4096), 4) == [4016, 4096]  # 62.75 MiB of 502
  assert t5x._chunks((48, 96), 4) == [48, 96]
  monkeypatch.setattr(t5x, 'CHUNK_BYTES', 40)
  assert t5x._chunks((6, 15), 2) == [3, 5]
  assert t5x._chunks((13, 7), 4) == [1, 7]  # thirteen has no half


# What is not right is said.


def test_all_arrays_that_do_not_fit_are_named(tmp_path):
  theirs = random_arrays(TINY)
  theirs['decoder/adapter/kernel'] = np.zeros((2, 2), np.float32)
  for layer in range(2):
    del theirs[f'decoder/layers_{layer}/mlp/wo/kernel']
  theirs['encoder/encoder_norm/scale'] = np.zeros(3, np.float32)
  theirs['encoder/layers_1/mlp/wi_0/kernel'] = np.zeros((16, 20), np.int32)
  write_native(tmp_path / 'checkpoint_5', theirs)
  with pytest.raises(CheckpointError) as error:
    load(tmp_path / 'checkpoint_5')
  for part in (
    'missing: decoder/layers_{0-1}/mlp/wo/kernel',
    'decoder/adapter/kernel',
    'encoder/encoder_norm/scale is (3,), expected (16,)',
    'encoder/layers_1/mlp/wi_0/kernel (int32)',
  ):
    assert part in str(error.value)


def test_what_is_no_t5_says_what_it_is(tmp_path):
  write_native(tmp_path / 'checkpoint_5', {'decoder/layers_0/kernel': np.zeros(3, np.float32)})
  with pytest.raises(
    CheckpointError, match=r'lacks token_embedder/embedding.*holds decoder/layers_0'
  ):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


def test_a_run_directory_is_answered_with_its_checkpoints(tmp_path):
  write_native(tmp_path / 'checkpoint_5', random_arrays(TINY))
  with pytest.raises(CheckpointError, match=r'Give a checkpoint_N: checkpoint_5\.'):
    t5x.open_checkpoint(tmp_path)
  with pytest.raises(CheckpointError, match=r'Give a checkpoint_N\.'):
    t5x.open_checkpoint(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'model_checkpoint_path: "model.ckpt-1000"\n', 'belongs to TensorFlow'),
    (b'\x80\x04\x95\x1a\x00\x00', 'is damaged'),  # a pickle
    (b'', 'is damaged'),
    (serialization.msgpack_serialize({'params': {}}), 'KeyError..version'),
    (serialization.msgpack_serialize({'version': 2, 'optimizer': {}}), 'version 2 and 3 is expect'),
  ],
)
def test_a_file_of_another_kind_is_named(content, message, tmp_path):
  (tmp_path / 'checkpoint_5').mkdir()
  (tmp_path / 'checkpoint_5' / 'checkpoint').write_bytes(content)
  with pytest.raises(CheckpointError, match=message):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  folder = tmp_path_factory.mktemp('original')
  write_native(folder / 'inline' / 'checkpoint_5', random_arrays(TINY))
  return t5x.write(folder, load(folder / 'inline' / 'checkpoint_5').params, step=5)


@pytest.fixture
def written(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'checkpoint_5')


def test_a_folder_that_was_not_copied_is_named(written):
  shutil.rmtree(written / 'target.decoder.layers_1.mlp.wo.kernel')
  message = 'not whole. Missing or damaged: target/decoder/layers_1/mlp/wo/kernel'
  with pytest.raises(CheckpointError, match=message):
    t5x.open_checkpoint(written)


@pytest.mark.parametrize('content', [None, b'not gzip'])
def test_a_lost_or_damaged_piece_is_an_error_and_not_zeros(content, written):
  piece = written / 'target.decoder.logits_dense.kernel' / '0.0'
  piece.unlink() if content is None else piece.write_bytes(content)
  with pytest.raises(CheckpointError, match='decoder/logits_dense/kernel is damaged'):
    load(written)


def test_a_damaged_orbax_store_is_an_error(tmp_path):
  write_orbax(tmp_path / 'checkpoint_5', random_arrays(TINY))
  (tmp_path / 'checkpoint_5' / 'state' / 'manifest.ocdbt').write_bytes(b'cut off')
  with pytest.raises(CheckpointError, match='state is damaged'):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


@pytest.mark.parametrize('path', ['../../elsewhere', '/etc/passwd', '..', ''])
def test_arrays_outside_the_checkpoint_are_not_touched(path, tmp_path):
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': path}, 'metadata': {}}
  tree = {'target': {'token_embedder': {'embedding': spec}}}
  content = serialization.msgpack_serialize({'version': 3, 'optimizer': tree})
  (tmp_path / 'checkpoint_5').mkdir()
  (tmp_path / 'checkpoint_5' / 'checkpoint').write_bytes(content)
  with pytest.raises(CheckpointError, match='target/token_embedder/embedding is in'):
    t5x.open_checkpoint(tmp_path / 'checkpoint_5')


def test_a_checkpoint_is_found_wherever_it_was_written(written, tmp_path):
  index = written / 'checkpoint'
  tree = serialization.msgpack_restore(index.read_bytes())
  spec = tree['optimizer']['target']['token_embedder']['embedding']
  # On Google's storage, by an old TensorStore.
  spec['path'] = spec['kvstore'].pop('path')
  spec['kvstore'] |= {'driver': 'gcs', 'bucket': 't5x-dummy-bucket'}
  index.write_bytes(serialization.msgpack_serialize(tree))
  shutil.move(written, tmp_path / 'moved')
  assert t5x.open_checkpoint(tmp_path / 'moved').model['vocab_size'] == 24


def test_orbax_without_ocdbt_is_read(tmp_path):
  theirs = random_arrays(TINY)
  for name, array in theirs.items():
    folder = tmp_path / 'checkpoint_5' / 'state' / f'target.{name.replace("/", ".")}'
    kvstore = {'driver': 'file', 'path': f'{folder}/'}
    spec = {'driver': 'zarr', 'kvstore': kvstore, 'metadata': {'shape': [*array.shape]}}
    store = tensorstore.open(spec, dtype=array.dtype, create=True).result()
    store.write(array).result()
  assert configs.from_description(t5x.open_checkpoint(tmp_path / 'checkpoint_5').model) == TINY


def test_nothing_is_overwritten_and_half_a_checkpoint_is_none(written, tmp_path):
  params = load(written).params
  with pytest.raises(CheckpointError, match='is there already'):
    t5x.write(tmp_path, params, step=5)
  (written / 'checkpoint').unlink()
  with pytest.raises(CheckpointError, match='is not a checkpoint of T5X'):
    t5x.open_checkpoint(written)
  t5x.write(tmp_path, params, step=5)
  jax.tree.map(np.testing.assert_array_equal, load(written).params, params)


def test_what_t5x_cannot_hold_is_not_written(tmp_path):
  _, params = testing.split(testing.build(testing.TINY_DECODER))
  with pytest.raises(CheckpointError, match='without a name there: blocks/attention/key/kernel'):
    t5x.write(tmp_path, params, step=1)
  with pytest.raises(CheckpointError, match="dtype='int8' cannot be written"):
    t5x.write(tmp_path, params, step=1, dtype='int8')
  assert not list(tmp_path.iterdir())
