"""The laws of `types.LanguageModel`, for every model."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

from cascades.types import Batch, Prompt
from tests import testing

NAMES = {
  'vocab',
  'embed',
  'mlp',
  'heads',
  'kv_heads',
  'head_dim',
  'layers',
  'relpos_buckets',
  'norm',
}
ENCODER, DECODER = testing.TINY_T5, testing.TINY_EVERYTHING

each = pytest.mark.parametrize('config', testing.CONFIGS.values(), ids=testing.CONFIGS)
both = pytest.mark.parametrize('config', [ENCODER, DECODER], ids=['t5', 'everything'])


@functools.cache
def _functions(config):
  """Teacher-forced logits, prefill and extend, compiled as programs do: pure, over plain dicts."""
  graphdef, params = testing.split(testing.build(config))

  def logits(params, batch, key=None):
    model = nnx.merge(graphdef, params)
    return model.readout(model.hidden(batch, key))

  prefill = lambda params, prompt, room: nnx.merge(graphdef, params).prefill(prompt, room)
  extend = lambda params, tokens, cache: nnx.merge(graphdef, params).extend(tokens, cache)
  bind = lambda function: functools.partial(function, params)
  return (
    bind(jax.jit(logits)),
    bind(jax.jit(prefill, static_argnums=2)),
    bind(jax.jit(extend)),
  )


def _close(got, expected, atol=2e-5):
  np.testing.assert_allclose(np.float32(got), np.float32(expected), atol=atol)


@functools.cache
def _ragged(config):
  """Prompts of different lengths, what follows them, and its teacher-forced logits row by row."""
  logits, *_ = _functions(config)
  lengths, rest = [6, 3, 5], np.asarray(testing.tokens((3, 4), seed=5))
  tokens = np.asarray(testing.tokens((3, 6), seed=4)) * (np.arange(6) < np.array(lengths)[:, None])
  expected = []
  for length, prompt, targets in zip(lengths, tokens, rest, strict=True):
    if config.architecture == 'encoder_decoder':
      batch = Batch(np.append(0, targets)[None], None, None, prompt[None])
      expected.append(logits(batch)[0])
    else:
      row = np.concatenate([prompt[:length], targets, np.zeros(6 - length, int)])
      expected.append(logits(Batch(row[None], None, None))[0, length - 1 : length + 4])
  prompt = Prompt(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32))
  return prompt, jnp.asarray(rest), np.asarray(expected)


@each
def test_prefill_and_extend_one_by_one_equal_teacher_forcing(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  logits, cache = prefill(prompt, 8)
  _close(logits, expected[:, 0])
  for i in range(4):
    before = cache.length
    logits, cache = extend(rest[:, i : i + 1], cache)
    _close(logits[:, 0], expected[:, i + 1])
    np.testing.assert_array_equal(cache.length, before + 1)


@each
def test_extend_in_blocks_equals_teacher_forcing(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  cache = prefill(prompt, 8)[1]
  first, cache = extend(rest[:, :1], cache)
  block, cache = extend(rest[:, 1:], cache)
  _close(jnp.concatenate([first, block], 1), expected[:, 1:])


@each
def test_shortening_the_cache_rejects_tokens(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  start = prefill(prompt, 8)[1]
  # Each row keeps another number of right tokens; what follows them is wrong.
  kept = jnp.asarray([0, 2, 1])
  drafts = jnp.where(jnp.arange(3) < kept[:, None], rest[:, :3], 3)
  _, cache = extend(drafts, start)
  cache = cache._replace(length=start.length + kept)
  logits, _ = extend(jnp.take_along_axis(rest, kept[:, None] + jnp.arange(1), 1), cache)
  _close(logits[:, 0], np.stack([expected[b, k + 1] for b, k in enumerate(kept)]))


@both
def test_longer_padding_and_other_rows_change_nothing(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  wider = Prompt(jnp.pad(prompt.tokens, ((0, 2), (0, 5))), jnp.pad(prompt.length, (0, 2)))
  order = jnp.asarray([4, 2, 0, 1, 3])
  logits, cache = prefill(Prompt(wider.tokens[order], wider.length[order]), 5)
  _close(logits[jnp.asarray([2, 3, 1])], expected[:, 0])
  logits, _ = extend(jnp.pad(rest, ((0, 2), (0, 0)))[order], cache)
  _close(logits[jnp.asarray([2, 3, 1])], expected[:, 1:])
  assert jnp.isfinite(logits).all()


@each
def test_what_comes_later_changes_nothing_before(config):
  logits, *_ = _functions(config)
  batch = testing.batch(config)
  changed = batch._replace(inputs=batch.inputs.at[:, 3:].set(7))
  _close(logits(changed)[:, :3], logits(batch)[:, :3], 1e-6)
  assert jnp.abs(logits(changed)[:, 3:] - logits(batch)[:, 3:]).max() > 1e-3


def _packed(config):
  """Two examples of lengths 3 and 4 packed into one row, then padding; and each alone."""
  a, b = testing.tokens((1, 3), 1), testing.tokens((1, 4), 2)
  source_a, source_b = testing.tokens((1, 5), 3), testing.tokens((1, 4), 4)
  pad = jnp.zeros((1, 2), jnp.int32)
  segments = jnp.asarray([[1] * 3 + [2] * 4 + [0] * 2])
  positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 0, 0]])
  row = Batch(jnp.concatenate([a, b, pad], 1), None, None, None, segments, positions)
  if config.architecture == 'decoder_only':
    return row, Batch(a, None, None), Batch(b, None, None)
  encoder = jnp.concatenate([source_a, source_b, pad], 1)
  encoder_segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 2])
  row = row._replace(encoder=encoder, encoder_segments=encoder_segments)
  return row, Batch(a, None, None, source_a), Batch(b, None, None, source_b)


@each
def test_packed_neighbours_change_nothing(config):
  logits, *_ = _functions(config)
  row, a, b = _packed(config)
  packed = logits(row)[0]
  _close(packed[:3], logits(a)[0])
  _close(packed[3:7], logits(b)[0])
  # Positions that do not restart only shift; distances within an example stay.
  _close(logits(row._replace(positions=None))[0, :7], packed[:7])
  alone = row._replace(segments=None, encoder_segments=None)
  assert jnp.abs(logits(alone)[0, 3:7] - packed[3:7]).max() > 1e-3


@both
def test_bfloat16_activations_stay_close(config):
  batch = testing.batch(config)
  low = testing.build(dataclasses.replace(config, dtype='bfloat16'))
  hidden = jax.jit(low.hidden)(batch)
  assert hidden.dtype == jnp.bfloat16
  logits = low.readout(hidden)
  assert logits.dtype == jnp.float32
  expected = _functions(config)[0](batch)
  difference = jnp.abs(logits - expected)
  assert 1e-5 < difference.mean() < 0.04 * jnp.abs(expected).max()


@both
def test_every_parameter_learns_and_padding_of_the_vocabulary_does_not(config):
  graphdef, params = testing.split(testing.build(config))
  batch = testing.batch(config)

  @jax.jit
  @jax.grad
  def gradient(params):
    model = nnx.merge(graphdef, params)
    logprobs = jax.nn.log_softmax(model.readout(model.hidden(batch)))
    return jnp.take_along_axis(logprobs, batch.targets[..., None], -1).mean()

  gradients = gradient(params)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    each_layer = np.abs(leaf).reshape(leaf.shape[0], -1).max(1)
    sparse = any(key.key in ('embedding', 'table') for key in path)  # not every row is read
    assert each_layer.max() > 0 if sparse else (each_layer > 0).all(), path
  if not config.logits_via_embedding:
    unread = sorted(set(range(testing.VOCAB)) - set(np.unique(batch.inputs)) - {0})
    unread = [token for token in unread if batch.encoder is None or token not in batch.encoder]
    assert (gradients['embedding'][np.array(unread)] == 0).all()


@both
def test_dropout_is_a_function_of_its_key(config):
  config = dataclasses.replace(config, dropout_rate=0.2)
  logits, *_ = _functions(config)
  batch, keys = testing.batch(config), jax.random.split(jax.random.key(0), 2)
  first = logits(batch, keys[0])
  np.testing.assert_array_equal(first, logits(batch, keys[0]))
  assert jnp.abs(first - logits(batch, keys[1])).max() > 0.01
  plain = _functions(dataclasses.replace(config, dropout_rate=0.0))[0](batch)
  _close(logits(batch), plain, 1e-6)


@both
def test_recomputation_changes_neither_loss_nor_gradients(config):
  batch = testing.batch(config)

  def gradients(policy):
    variant = dataclasses.replace(config, remat_policy=policy, dropout_rate=0.1)
    graphdef, params = testing.split(testing.build(variant))
    loss = lambda params: (nnx.merge(graphdef, params).hidden(batch, jax.random.key(3)) ** 2).mean()
    return jax.jit(jax.value_and_grad(loss))(params)

  expected = gradients('none')
  for policy in ('elementwise', 'full'):
    jax.tree.map(_close, gradients(policy), expected)


@each
def test_every_axis_of_every_parameter_has_a_known_name(config):
  model = nnx.eval_shape(lambda: config.build(jax.random.key(0)))
  for path, leaf in nnx.to_flat_state(nnx.state(model)):
    names = leaf.get_metadata('out_sharding')
    assert len(names) == len(leaf.shape), path
    assert set(names) <= NAMES, path
    assert leaf.dtype == jnp.float32


@both
def test_a_model_on_a_mesh_answers_as_on_one_device(config):
  rules = (
    ('batch', ('data', 'fsdp')),
    ('vocab', 'tensor'),
    ('mlp', 'tensor'),
    ('heads', 'tensor'),
    ('kv_heads', 'tensor'),
    ('embed', 'fsdp'),
    ('activation_heads', 'tensor'),
    ('activation_mlp', 'tensor'),
    ('activation_vocab', 'tensor'),
  )
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(AxisType.Auto,) * 3)
  model, batch = testing.build(config), testing.batch(config, rows=4)
  expected = _functions(config)[0](batch)
  graphdef, state = nnx.split(model)
  with jax.set_mesh(mesh), nnx.logical_axis_rules(rules):
    specs = nnx.get_partition_spec(state)
    placed = jax.tree.map(
      lambda leaf, spec: jax.device_put(leaf, jax.NamedSharding(mesh, spec)), state, specs
    )

    def logits(params, batch):
      model = nnx.merge(graphdef, params)
      return model.readout(model.hidden(batch))

    got = jax.jit(logits)(nnx.to_pure_dict(placed), batch)
    assert got.sharding.spec == jax.P(('data', 'fsdp'), None, 'tensor')
  _close(got, expected)


@both
def test_the_initial_model_is_near_uniform_and_not_flat(config):
  model = config.build(jax.random.key(0))
  logits = jax.jit(lambda batch: model.readout(model.hidden(batch)))(testing.batch(config))
  assert 0.02 < logits.std() < 3.0
