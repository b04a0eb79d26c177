"""The training step against a naive one, and the same step on every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from cascades import losses, masks
from cascades.models import t5
from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.teachers import Logits
from cascades.training import optimizers, train_step
from cascades.types import Batch
from tests import testing

B, S, T, V = 16, 6, 7, 24
SMALL = t5.T5Config(
  V, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
)
LARGE = t5.T5Config(
  V, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=2, num_decoder_layers=2
)
ONE = functools.cache(lambda: partitioning.make_mesh(devices=jax.devices()[:1]))


def batches(count):
  """Targets of unequal length that depend on the source, so that there is something to learn."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    encoder = rng.integers(3, V, (B, S))
    targets = np.concatenate([encoder[:, ::-1], encoder[:, :1]], 1)
    weights = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(np.float32)
    inputs = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    yield Batch(inputs, targets, weights, encoder)


@functools.cache
def initial(config, seed):
  """Parameters on one device; compiling an initialization for every mesh would take longest."""
  with partitioning.use(ONE()):
    return init_params(config, seed, abstract_model(config)[1])


@functools.cache
def build(config, mesh, seed):
  with partitioning.use(mesh):
    graph, abstract = abstract_model(config)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return train_step.ModelDef(graph, V), jax.device_put(initial(config, seed), shardings)


def setup(mesh, *, loss=losses.cat_dist, optimizer=None, small=SMALL, **options):
  """A placed state, the large model's parameters, and the compiled step."""
  optimizer = optimizer or optimizers.adafactor(optimizers.constant(1e-2))
  definition, params = build(small, mesh, 0)
  large, large_params = build(LARGE, mesh, 1)
  init = functools.partial(train_step.init_state, optimizer=optimizer, seed=0)
  shapes = partitioning.like_parameters(jax.eval_shape(init, params), params)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  state = jax.jit(init, out_shardings=shardings)(params)
  step = functools.partial(
    train_step.train_step,
    small=definition, large=large, loss=loss, optimizer=optimizer, **options,
  )  # fmt: skip
  compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
  return state, train_step.Frozen(large_params), compiled


def take(mesh, count=1, **options):
  """`count` steps on `mesh`; the last state and every step's metrics."""
  with partitioning.use(mesh):
    state, large, step = setup(mesh, **options)
    history = []
    for batch in batches(count):
      state, metrics = step(state, large, partitioning.place_batch(batch))
      history.append(jax.device_get(metrics))
    return jax.device_get(state), history


SGD = optax.sgd(0.1)


@pytest.fixture(scope='module')
def plain():
  """One step of plain gradient descent, from which every variant must not differ."""
  return take(ONE(), optimizer=SGD)


@pytest.mark.parametrize('config', [testing.TINY_T5, testing.TINY_EVERYTHING])
@pytest.mark.parametrize('optimizer', [optimizers.adafactor, optimizers.adamw])
def test_the_state_comes_out_as_it_went_in_so_that_the_step_compiles_once(config, optimizer):
  optimizer = optimizer(optimizers.cosine(1e-3, total_steps=9))
  batch = next(batches(1))
  batch = batch if isinstance(config, t5.T5Config) else batch._replace(encoder=None)
  with partitioning.use(ONE()):
    graph, _ = abstract_model(config)
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(config.build(jax.random.key(0)))))
    before = jax.eval_shape(lambda params: train_step.init_state(params, optimizer, 0), params)
    step = functools.partial(
      train_step.train_step,
      small=train_step.ModelDef(graph, V), large=None, loss=losses.xent, optimizer=optimizer,
    )  # fmt: skip
    after, _ = jax.eval_shape(step, before, train_step.Frozen(), batch)
  kinds = lambda state: jax.tree.map(lambda x: (x.shape, str(x.dtype), x.weak_type), state)
  assert kinds(after) == kinds(before)


def assert_trees_close(actual, expected, atol):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), actual, expected)


def test_a_step_is_the_gradient_of_the_mean_over_valid_tokens(plain):
  mesh = ONE()
  with partitioning.use(mesh):
    small, params = build(SMALL, mesh, 0)
    large, large_params = build(LARGE, mesh, 1)
  batch = next(batches(1))

  def logits(definition, params):
    model = definition.bind(params)
    return model.readout(model.hidden(batch))

  def objective(params, large_params):
    total, count = losses.cat_dist(
      logits(small, params), logits(large, large_params), batch.targets, batch.weights
    )
    return total / count

  value, gradient = jax.jit(jax.value_and_grad(objective))(params, large_params)
  expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
  state, (metrics,) = plain
  assert_trees_close(state.params, expected, 1e-6)
  np.testing.assert_allclose(metrics['objective'], value, rtol=1e-5)
  np.testing.assert_allclose(metrics['grad_norm'], optax.global_norm(gradient), rtol=1e-5)
  assert state.step == 1


@pytest.mark.parametrize('options', [{'microbatches': 4}, {'block_length': 3}], ids=str)
def test_microbatches_and_blocks_change_nothing(plain, options):
  # Microbatches have unequal numbers of valid tokens: sums must be added before they are divided.
  state, (metrics,) = take(ONE(), optimizer=SGD, **options)
  assert_trees_close(state.params, plain[0].params, 1e-6)
  assert_trees_close(metrics, plain[1][0], 2e-4)


@pytest.mark.parametrize(
  ('normalizer', 'count'),
  [
    (train_step.examples, lambda totals: B),
    (train_step.kept_tokens, lambda totals: totals['tokens'] - totals['neither']),
    (0.25, lambda totals: 0.25),
  ],
)
def test_a_normalizer_divides_the_same_sums(plain, normalizer, count):
  _, (metrics,) = take(ONE(), optimizer=SGD, normalizer=normalizer)
  ratio = metrics['tokens'] / count(metrics)
  np.testing.assert_allclose(metrics['objective'], ratio * plain[1][0]['objective'], rtol=1e-5)
  norms = [history[0]['grad_norm'] for history in ([metrics], plain[1])]
  np.testing.assert_allclose(norms[0], ratio * norms[1], rtol=1e-5)


@pytest.mark.parametrize('normalizer', [0.0, -2.0, float('nan')])
def test_a_constant_normalizer_is_positive(normalizer):
  with pytest.raises(ValueError, match='divide by a positive number'):
    take(ONE(), optimizer=SGD, normalizer=normalizer)


def test_agreement_partitions_the_valid_tokens(plain):
  metrics = plain[1][0]
  counted = sum(metrics[name] for name in ('both', 'only_small', 'only_large', 'neither'))
  assert counted == metrics['tokens'] == next(batches(1)).weights.sum()


@pytest.mark.slow
def test_dropout_follows_the_step_and_the_seed():
  dropping = SMALL.__class__(**{**vars(SMALL), 'dropout_rate': 0.5})
  mesh = ONE()
  with partitioning.use(mesh):
    state, large, step = setup(mesh, small=dropping, optimizer=optax.sgd(0.0))
    batch = next(batches(1))
    start = jax.device_get(state)
    norms = []
    for number in (0, 0, 1):
      again = start._replace(step=jnp.asarray(number, jnp.int32))
      norms.append(float(step(jax.device_put(again), large, batch)[1]['grad_norm']))
  assert norms[0] == norms[1] != norms[2]


def test_without_a_large_model_the_step_reports_accuracy_alone():
  mesh = ONE()
  with partitioning.use(mesh):
    small, params = build(SMALL, mesh, 0)
    state = train_step.init_state(params, SGD, 0)
    step = functools.partial(
      train_step.train_step, small=small, large=None, loss=losses.xent, optimizer=SGD
    )
    _, metrics = jax.jit(step)(state, train_step.Frozen(), next(batches(1)))
  assert 'correct' in metrics
  assert 'both' not in metrics
  with pytest.raises(ValueError, match='no large model is given: normalize by valid_tokens'):
    train_step.kept_tokens(metrics)


@pytest.mark.slow
def test_a_loss_weight_follows_its_schedule_also_after_a_resume():
  """Goes from distillation to cross-entropy in four updates, and in two times two."""
  mesh, schedule = ONE(), optax.linear_schedule(0.0, 1.0, transition_steps=3)
  with partitioning.use(mesh):
    state, large, step = setup(mesh, optimizer=SGD, loss=functools.partial(losses.dist, w=schedule))
    small, evaluate = build(SMALL, mesh, 0)[0], {}
    for w in range(4):
      constant = functools.partial(losses.dist, w=w / 3)
      definitions = {'small': small, 'large': build(LARGE, mesh, 1)[0]}
      evaluate[w] = functools.partial(train_step.eval_step, **definitions, loss=constant)
    saved = None
    for number, batch in enumerate(batches(4)):
      expected = jax.jit(evaluate[number])(state.params, large, batch)['loss']
      if number == 2:
        saved = jax.device_get(state)
      state, metrics = step(state, large, partitioning.place_batch(batch))
      np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
    resumed = jax.device_put(saved)
    for batch in list(batches(4))[2:]:
      resumed, _ = step(resumed, large, partitioning.place_batch(batch))
    assert step._cache_size() <= 2  # of a fresh and of a restored state, not one of each weight
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(state))


# -- every mesh ------------------------------------------------------------------------------------

MESHES = [{'data': 8}, {'data': 1, 'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}]


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, params, batch):
  model = nnx.merge(graph, params)
  return model.readout(model.hidden(batch))


def correct_bits(params, mesh):
  """Top-1 correctness of every token of a batch, and the gap between the two best logits."""
  with partitioning.use(mesh):
    graph, _ = abstract_model(SMALL)
    batch = next(batches(1))
    logits = np.asarray(_logits(graph, params, batch))
  gaps = np.diff(np.sort(logits, -1)[..., -2:], axis=-1)[..., 0]
  return np.asarray(masks.small_correct(logits, (), batch.targets)), gaps


@pytest.fixture(scope='module')
def twenty_steps():
  return take(ONE(), count=20)


@pytest.mark.parametrize(
  'shape', [*(pytest.param(m, marks=pytest.mark.slow) for m in MESHES[:2]), MESHES[2]], ids=str
)
def test_eight_devices_train_as_one_does(twenty_steps, shape):
  mesh = partitioning.make_mesh(**shape)
  state, history = take(mesh, count=20)
  expected_state, expected = twenty_steps
  names = ('objective', 'grad_norm')
  for name in names:
    np.testing.assert_allclose(
      [h[name] for h in history], [h[name] for h in expected], rtol=1e-4, err_msg=name
    )
  bits, gaps = correct_bits(state.params, ONE())
  expected_bits, expected_gaps = correct_bits(expected_state.params, ONE())
  clear = (gaps > 1e-4) & (expected_gaps > 1e-4)
  assert clear.mean() > 0.9
  np.testing.assert_array_equal(bits[clear], expected_bits[clear])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, state.params, initial(SMALL, 0))
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize('shape', MESHES[1:], ids=str)
@pytest.mark.parametrize('config', [SMALL, LARGE], ids=['small', 'large'])
def test_every_matrix_lies_as_the_rules_say_and_takes_less_room(shape, config):
  mesh = partitioning.make_mesh(**shape)
  rules = dict(partitioning.RULES)
  with partitioning.use(mesh):
    _, params = build(config, mesh, 0)
    state = jax.eval_shape(lambda: nnx.state(config.build(jax.random.key(0))))
  names = nnx.to_pure_dict(
    jax.tree.map(
      lambda v: v.get_metadata()['out_sharding'], state, is_leaf=lambda v: isinstance(v, nnx.Param)
    )
  )
  leaves = jax.tree_util.tree_leaves_with_path(params)
  names = jax.tree.leaves(names, is_leaf=lambda x: isinstance(x, tuple))
  for (path, leaf), logical in zip(leaves, names, strict=True):
    if leaf.ndim < 2:
      continue
    for dimension, (size, name) in enumerate(zip(leaf.shape, logical, strict=True)):
      axis = rules.get(name)
      if axis and size % mesh.shape[axis] == 0:
        local = leaf.addressable_shards[0].data.shape[dimension]
        assert local == size // mesh.shape[axis], (jax.tree_util.keystr(path), name)
  total = sum(leaf.nbytes for _, leaf in leaves)
  on_one = sum(leaf.addressable_shards[0].data.nbytes for _, leaf in leaves)
  assert on_one < 0.4 * total


def test_the_optimizer_state_is_split_with_the_parameters():
  mesh = partitioning.make_mesh(data=1, fsdp=8)
  with partitioning.use(mesh):
    state, *_ = setup(mesh, optimizer=optimizers.adamw(optimizers.constant(1e-3)))
  by_shape = {p.shape: p.sharding.spec for p in jax.tree.leaves(state.params)}
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1]
  assert moments
  for leaf in moments:
    assert leaf.sharding.spec == by_shape[leaf.shape]
  assert state.step.sharding.is_fully_replicated
  assert any(spec != PartitionSpec() and any(spec) for spec in by_shape.values())


def test_no_array_of_all_logits_is_formed():
  """Checks that with blocks of two positions no array of the step has B x T x V elements."""
  mesh = ONE()
  with partitioning.use(mesh):
    state, large, step = setup(mesh, block_length=2)
    text = step.lower(state, large, next(batches(1))).compile().as_text()
    unblocked = setup(mesh)[2].lower(state, large, next(batches(1))).compile().as_text()
  shape = f'f32[{B},{T},{V}]'
  assert shape in unblocked or f'f32[{B * T},{V}]' in unblocked
  for padded in (T, T + 1):
    assert f'f32[{B},{padded},{V}]' not in text
    assert f'f32[{B * padded},{V}]' not in text


def test_equal_answers_are_means_of_means_and_counts_stay():
  mesh = ONE()
  batch = next(batches(1))
  with partitioning.use(mesh):
    small, params = build(SMALL, mesh, 0)
    weighted = batch._replace(loss_weights=train_step.equal_answers(batch))
    totals = jax.jit(
      functools.partial(
        train_step.eval_step, small=small, large=None, loss=losses.xent, block_length=3
      )
    )(params, train_step.Frozen(), weighted)
    logits = _logits(small.graph, params, batch)
  each = losses.cross_entropy(logits, (), batch.targets) * batch.weights
  of_answers = each.sum(1) / batch.weights.sum(1)
  np.testing.assert_allclose(totals['weight'], B, rtol=1e-6)
  np.testing.assert_allclose(totals['loss'] / train_step.valid_tokens(totals), of_answers.mean(),
                             rtol=1e-5)  # fmt: skip
  assert totals['tokens'] == batch.weights.sum() != B


def test_answers_of_a_pack_weigh_the_same():
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]])
  weights = np.array([[0, 1, 1, 0, 1, 0], [1, 1, 0, 1, 1, 1]], np.float32)
  batch = Batch(segments, segments, weights, segments=segments)
  third = 1 / 3
  np.testing.assert_allclose(
    train_step.equal_answers(batch), [[0, 0.5, 0.5, 0, 1, 0], [1, 1, 0, third, third, third]]
  )


def test_eval_step_is_the_loss_without_dropout():
  mesh = ONE()
  with partitioning.use(mesh):
    small, params = build(SMALL, mesh, 0)
    large, large_params = build(LARGE, mesh, 1)
    batch = next(batches(1))
    totals = jax.jit(
      functools.partial(train_step.eval_step, small=small, large=large, loss=losses.cat_xent)
    )(params, train_step.Frozen(large_params), batch)
    logits, logits_large = (
      _logits(small.graph, params, batch),
      _logits(large.graph, large_params, batch),
    )
  total, count = losses.cat_xent(logits, logits_large, batch.targets, batch.weights)
  np.testing.assert_allclose(totals['loss'], total, rtol=1e-5)
  assert totals['tokens'] == count
  agreement = masks.count_agreement(logits, (Logits(logits_large),), batch.targets, batch.weights)
  assert totals['both'] == agreement['both']


# -- refused updates -------------------------------------------------------------------------------


def test_an_update_that_is_refused_changes_nothing_but_the_step():
  """Covers Adam, whose moments would remember a NaN for ever; the same program takes both."""
  mesh, adam = ONE(), optimizers.adamw(optimizers.constant(1e-2))
  accept = functools.partial(train_step.finite, most_grad_norm=50.0)
  with partitioning.use(mesh):
    state, large, step = setup(mesh, optimizer=adam, loss=losses.xent, accept=accept)
    good, harmful = (partitioning.place_batch(batch) for batch in batches(2))
    state, metrics = step(state, large, good)
    assert metrics['applied'] == 1
    before = jax.device_get(state)
    for weight in (jnp.nan, jnp.inf):
      state, metrics = step(state, large, harmful._replace(weights=harmful.weights * weight))
      assert metrics['applied'] == 0
    after = jax.device_get(state)
    assert (before.step, after.step) == (1, 3)
    jax.tree.map(np.testing.assert_array_equal, after._replace(step=before.step), before)
    state, metrics = step(state, large, harmful)
    assert metrics['applied'] == 1
    assert step._cache_size() == 1


def test_a_rate_that_is_no_number_moves_no_parameter():
  """Also of a single one: embeddings move with a finite rate, all else with none."""
  rates = {'embedding': 1e-2, 'rest': jnp.nan}
  label = lambda path, _: 'embedding' if 'embedding' in jax.tree_util.keystr(path) else 'rest'
  optimizer = optax.partition(
    {name: optimizers.adamw(lambda _, rate=rate: rate)
     for name, rate in rates.items()},
    functools.partial(jax.tree_util.tree_map_with_path, label),
  )  # fmt: skip
  mesh = ONE()
  with partitioning.use(mesh):
    state, large, step = setup(mesh, optimizer=optimizer, loss=losses.xent)
    before = jax.device_get(state)
    state, metrics = step(state, large, partitioning.place_batch(next(batches(1))))
  after = jax.device_get(state)
  assert metrics['applied'] == 0
  assert np.isnan(metrics['update_norm'])

  def compared(path, old, new):
    assert np.isfinite(new).all()
    assert (label(path, None) == 'rest') == np.array_equal(old, new), path

  jax.tree_util.tree_map_with_path(compared, before.params, after.params)


@pytest.mark.parametrize(
  ('changed', 'accepted'),
  [
    ({}, True),
    ({'grad_norm': 3.0}, True),
    ({'grad_norm': 3.1}, False),
    ({'loss': float('nan')}, False),
    ({'grad_norm': float('nan')}, False),
    ({'loss': float('inf')}, False),
    ({'grad_norm': 2e19}, False),  # its square overflows
  ],
)
def test_what_is_not_finite_or_a_spike_is_refused(changed, accepted):
  metrics = {'loss': 1.0, 'grad_norm': 1.0} | changed
  arrays = {name: jnp.float32(value) for name, value in metrics.items()}
  assert train_step.finite(arrays, most_grad_norm=3.0) == accepted


@pytest.mark.parametrize(
  ('packed', 'sizes'), [(False, (1, 1, 1)), (True, (2, 2, 2))], ids=['one', 'eight, packed']
)
def test_a_row_is_right_if_all_of_its_tokens_are(packed, sizes):
  """Rows of the task: of packed ones, each segment is a row."""
  batch = next(batches(1))
  segments = np.where(np.arange(T) < 3, 1, 2) * (batch.weights > 0).astype(np.int32)
  if packed:
    batch = batch._replace(segments=segments, encoder_segments=np.ones_like(batch.encoder))

  def answer(definition, params):
    logits = lambda params: (model := definition.bind(params)).readout(model.hidden(batch))
    return np.argmax(jax.jit(logits)(params), -1)

  with partitioning.use(ONE()):
    small, large = (
      answer(*build(config, ONE(), seed)) for seed, config in enumerate((SMALL, LARGE))
    )
  # A few rows that one model predicts, and one but for a token.
  targets = np.array(batch.targets)
  targets[:4], targets[4:6] = small[:4], large[4:6]
  targets[3, 0] += 1
  batch = batch._replace(targets=targets)
  mesh = partitioning.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
  with partitioning.use(mesh):
    (definition, params), (large_definition, large_params) = (
      build(config, mesh, seed) for seed, config in enumerate((SMALL, LARGE))
    )
    step = functools.partial(
      train_step.eval_step, small=definition, large=large_definition, loss=losses.xent,
      block_length=3,
    )  # fmt: skip
    totals = jax.device_get(
      jax.jit(step)(params, train_step.Frozen(large_params), partitioning.place_batch(batch))
    )
  numbers = segments if packed else (batch.weights > 0).astype(int)
  rows = [(i, numbers[i] == n) for i in range(B) for n in (1, 2) if (numbers[i] == n).any()]
  right = lambda answers: sum((answers[i] == targets[i])[places].all() for i, places in rows)
  assert totals['rows'] == len(rows)
  assert totals['rows_right'] == right(small) >= 3
  assert totals['rows_right_large'] == right(large) >= 2
