"""The laws of `types.LanguageModel`, for every model."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
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
ENCODER = dataclasses.replace(testing.TINY_T5, dropout_rate=0.2)
DECODER = dataclasses.replace(testing.TINY_EVERYTHING, dropout_rate=0.2)

# T5X's scanned T5, and its decoder-only example as a causal and as a prefix model.
PER_LAYER = dataclasses.replace(testing.TINY_T5, relative_bias_per_layer=True)
RELATIVE = dataclasses.replace(
  testing.TINY_DECODER, query_scale=1.0, logit_scale=0.25, relative_attention_num_buckets=8
)
PREFIX = dataclasses.replace(
  RELATIVE, relative_bias_per_layer=True, bidirectional_prompt=True, window_pattern=(4, None)
)

both = pytest.mark.parametrize('config', [ENCODER, DECODER], ids=['t5', 'decoder'])
every = pytest.mark.parametrize(
  'config',
  [ENCODER, DECODER, PER_LAYER, RELATIVE, PREFIX],
  ids=['t5', 'decoder', 'per layer', 'relative', 'prefix'],
)


@functools.cache
def _functions(config):
  """Teacher-forced logits, prefill and extend, compiled as programs do: pure, over plain dicts."""
  graphdef, params = testing.split(testing.build(config))

  def logits(params, batch, key=None):
    model = nnx.merge(graphdef, params)
    return model.readout(model.hidden(batch, key))

  prefill = lambda params, prompt, max_len: nnx.merge(graphdef, params).prefill(prompt, max_len)
  extend = lambda params, tokens, cache: nnx.merge(graphdef, params).extend(tokens, cache)
  bind = lambda function: functools.partial(function, params)
  return (
    bind(jax.jit(logits)),
    bind(jax.jit(prefill, static_argnums=2)),
    bind(jax.jit(extend)),
  )


@functools.cache
def _gradients(config):
  """Loss and gradients with dropout."""
  graphdef, params = testing.split(testing.build(config))
  batch, key = testing.batch(config), jax.random.key(3)

  def loss(params):
    model = nnx.merge(graphdef, params)
    logprobs = jax.nn.log_softmax(model.readout(model.hidden(batch, key)))
    return -jnp.take_along_axis(logprobs, batch.targets[..., None], -1).mean()

  return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(params))


def _close(got, expected, atol=2e-5):
  np.testing.assert_allclose(np.float32(got), np.float32(expected), atol=atol)


@functools.cache
def _ragged(config):
  """Prompts of different lengths, tokens that follow them, and teacher-forced logits by row."""
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
      targets = (np.arange(10) >= length - 1) * 1.0
      expected.append(logits(Batch(row[None], None, targets[None]))[0, length - 1 : length + 4])
  prompt = Prompt(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32))
  return prompt, jnp.asarray(rest), np.asarray(expected)


@every
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


@both
def test_extend_in_blocks_equals_teacher_forcing(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  first, cache = extend(rest[:, :1], prefill(prompt, 8)[1])
  block, cache = extend(rest[:, 1:], cache)
  _close(jnp.concatenate([first, block], 1), expected[:, 1:])


@both
def test_shortening_the_cache_rejects_tokens(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  start = prefill(prompt, 8)[1]
  # Each row keeps another number of right tokens; what follows them is wrong.
  accepted = jnp.asarray([0, 2, 1])
  drafts = jnp.where(jnp.arange(3) < accepted[:, None], rest[:, :3], 3)
  _, cache = extend(drafts, start)
  cache = cache._replace(length=start.length + accepted)
  logits, _ = extend(jnp.take_along_axis(rest, accepted[:, None], 1), cache)
  _close(logits[:, 0], np.stack([expected[b, n + 1] for b, n in enumerate(accepted)]))


def _running(config):
  """A batch that has read two tokens after its prompts, and prompt 1 alone with less capacity."""
  _, prefill, extend = _functions(config)
  prompt, rest, _ = _ragged(config)
  _, running = extend(rest[:, :2], prefill(prompt, 8)[1])
  _, single = prefill(Prompt(prompt.tokens[1:2, :4], prompt.length[1:2]), 3)
  return running, single


_insert = jax.jit(lambda cache, row, other, other_row=0: cache.insert(row, other, other_row))


@both
@pytest.mark.parametrize('row', [0, 2])
def test_an_inserted_row_decodes_as_it_does_alone(config, row):
  extend = _functions(config)[2]
  _, rest, expected = _ragged(config)
  running, single = _running(config)
  cache = _insert(running, row, single)  # the row had read more tokens, which must stay hidden
  for i in range(3):
    tokens = rest[:, i : i + 1]
    logits, cache = extend(tokens.at[row].set(rest[1, i]), cache)
    alone, single = extend(tokens[1:2], single)
    _close(logits[row, 0], alone[0, 0])
    _close(logits[row, 0], expected[1, i + 1])
  assert cache.length[row] == single.length[0]


@both
def test_insertion_changes_no_other_row(config):
  extend = _functions(config)[2]
  _, rest, expected = _ragged(config)
  running, single = _running(config)
  inserted = _insert(running, 1, single)
  before, _ = extend(rest[:, 2:3], running)
  after, _ = extend(rest[:, 2:3], inserted)
  others = np.array([0, 2])
  np.testing.assert_array_equal(after[others], before[others])
  np.testing.assert_array_equal(inserted.length[others], running.length[others])
  _close(after[others, 0], expected[others, 3])
  assert jnp.abs(after[1] - before[1]).max() > 1e-3


@both
@pytest.mark.parametrize('first', [1, 2])
def test_the_first_rows_of_a_cache_are_extended_alone(config, first):
  extend = _functions(config)[2]
  _, rest, expected = _ragged(config)
  running, _ = _running(config)
  logits, extended = extend(rest[:first, 2:3], running)
  _close(logits[:, 0], expected[:first, 3])
  np.testing.assert_array_equal(extended.length[first:], running.length[first:])
  np.testing.assert_array_equal(extended.length[:first], running.length[:first] + 1)
  _, together = extend(rest[:, 2:3], running)
  tokens = jnp.concatenate([rest[:first, 3:4], rest[first:, 2:3]])
  later, _ = extend(tokens, extended)  # the others are a token behind, and have lost nothing
  _close(later[first:, 0], expected[first:, 3])
  _close(later[:first], extend(rest[:, 3:4], together)[0][:first])


@both
def test_inserting_every_row_permutes_the_batch(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  other, order = prefill(prompt, 8)[1], np.array([2, 0, 1])
  cache = extend(rest[:, :2], other)[1]
  for row, other_row in enumerate(order):
    cache = _insert(cache, row, other, other_row)
  np.testing.assert_array_equal(cache.length, other.length[order])
  logits, _ = extend(rest[order, :1], cache)
  np.testing.assert_array_equal(logits, extend(rest[:, :1], other)[0][order])
  _close(logits[:, 0], expected[order, 1])


@both
def test_tokens_after_an_insertion_are_rejected_as_before_it(config):
  extend = _functions(config)[2]
  _, rest, expected = _ragged(config)
  running, single = _running(config)
  start = _insert(running, 0, single)
  right = rest.at[0].set(rest[1])
  read = jnp.asarray([0, 2, 2])  # of these
  _, cache = extend(jnp.full((3, 3), 3), start)  # wrong drafts
  cache = cache._replace(length=start.length)
  logits, _ = extend(jnp.take_along_axis(right, read[:, None], 1), cache)
  _close(logits[:, 0], np.stack([expected[1, 1], expected[1, 3], expected[2, 3]]))


@both
def test_a_cache_of_larger_capacity_is_not_inserted(config):
  prefill, (prompt, *_) = _functions(config)[1], _ragged(config)
  longer = prompt._replace(tokens=jnp.ones((3, 9), int))
  for other, max_len in ((prompt, 9), (longer, 8)):
    insert = lambda: prefill(prompt, 8)[1].insert(0, prefill(other, max_len)[1])  # noqa: B023
    with pytest.raises(ValueError, match='does not fit into one of'):
      jax.eval_shape(insert)


@both
def test_longer_padding_and_other_rows_change_nothing(config):
  _, prefill, extend = _functions(config)
  prompt, rest, expected = _ragged(config)
  wider = Prompt(np.pad(prompt.tokens, ((0, 2), (0, 5))), np.pad(prompt.length, (0, 2)))
  order, back = np.array([4, 2, 0, 1, 3]), np.array([2, 3, 1])
  logits, cache = prefill(Prompt(wider.tokens[order], wider.length[order]), 5)
  _close(logits[back], expected[:, 0])
  logits, _ = extend(np.pad(rest, ((0, 2), (0, 0)))[order], cache)
  _close(logits[back], expected[:, 1:])
  assert jnp.isfinite(logits).all()  # a row of length 0 too


@both
def test_what_comes_later_changes_nothing_before(config):
  logits, *_ = _functions(config)
  batch = testing.batch(config)
  changed = batch._replace(inputs=batch.inputs.at[:, 3:].set(7))
  _close(logits(changed)[:, :3], logits(batch)[:, :3], 1e-6)
  assert jnp.abs(logits(changed)[:, 3:] - logits(batch)[:, 3:]).max() > 1e-3


@both
def test_packed_neighbors_change_nothing(config):
  logits, *_ = _functions(config)
  rows = testing.batch(config, rows=2, source=5, target=4)
  expected, length = logits(rows), rows.inputs.shape[1]
  flat = lambda x: None if x is None else jnp.pad(x.reshape(1, -1), ((0, 0), (0, 2)))
  number = lambda x: None if x is None else flat(jnp.ones_like(x) * jnp.asarray([[1], [2]]))
  packed = Batch(
    inputs=flat(rows.inputs),
    targets=flat(rows.targets),
    weights=flat(rows.weights),
    encoder=flat(rows.encoder),
    segments=number(rows.inputs),
    positions=flat(jnp.tile(jnp.arange(length), 2)),
    encoder_segments=number(rows.encoder),
  )
  _close(logits(packed)[0, :-2], expected.reshape(2 * length, -1))
  # Positions that do not restart only shift: distances within an example stay.
  _close(logits(packed._replace(positions=None))[0, :-2], expected.reshape(2 * length, -1))


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
def test_every_parameter_learns_but_the_rows_of_tokens_unread(config):
  batch = testing.batch(config)
  gradients = _gradients(config)[1]
  for path, leaf in nnx.traversals.flatten_mapping(gradients, sep='/').items():
    by_row = np.abs(leaf).reshape(leaf.shape[0], -1).max(1)  # a row is a layer, or a table's
    assert (by_row > 0).any() if 'embedding' in path or 'table' in path else (by_row > 0).all(), (
      path
    )
  read = np.concatenate([x.flatten() for x in (batch.inputs, batch.encoder) if x is not None])
  unread = np.setdiff1d(np.arange(testing.VOCAB), read)
  assert len(unread) > 2
  assert (gradients['embedding'][unread] == 0).all()


@both
def test_dropout_is_a_function_of_its_key(config):
  logits, *_ = _functions(config)
  batch, keys = testing.batch(config), jax.random.split(jax.random.key(0), 2)
  first = logits(batch, keys[0])
  np.testing.assert_array_equal(first, logits(batch, keys[0]))
  assert jnp.abs(first - logits(batch, keys[1])).max() > 0.01
  assert jnp.abs(first - logits(batch)).max() > 0.01


def test_recomputation_changes_neither_loss_nor_gradients():
  got = _gradients(dataclasses.replace(DECODER, remat_policy='full'))
  jax.tree.map(_close, got, _gradients(DECODER))


@both
def test_every_axis_of_every_parameter_has_a_known_name(config):
  model = nnx.eval_shape(lambda: config.build(jax.random.key(0)))
  for path, leaf in nnx.to_flat_state(nnx.state(model)):
    names = leaf.get_metadata('out_sharding')
    assert len(names) == len(leaf.shape), path
    assert set(names) <= NAMES, path
    assert leaf.dtype == jnp.float32


@both
def test_a_model_on_a_mesh_answers_as_on_one_device(config):
  batch = testing.batch(config, rows=4)
  expected = _functions(config)[0](batch)
  _, params = testing.split(testing.build(config))
  with partitioning.use(partitioning.make_mesh(2, 2, 2)):
    graphdef, abstract = abstract_model(config)
    placed = jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), params, abstract)

    def logits(params, batch):
      model = nnx.merge(graphdef, params)
      return model.readout(model.hidden(batch))

    got = jax.jit(logits)(placed, batch)
  assert got.sharding.spec == jax.P(('data', 'fsdp'), None, 'tensor')
  _close(got, expected)


def test_a_new_model_is_near_uniform_but_not_flat():
  initialize = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(ENCODER.build(key))))
  params = initialize(jax.random.key(0))
  logits = _functions(ENCODER)[0].func(params, testing.batch(ENCODER))
  assert 0.02 < logits.std() < 3.0
