"""Sums over blocks against the whole at once, their gradient, and what they cost."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cascades import losses
from cascades.models import quantization
from cascades.runtime import partitioning
from cascades.teachers import Logits, to_top_k
from cascades.training import blockwise

B, T, V, D = 8, 6, 24, 16
LOSSES = ('xent', 'cat_xent', 'cat_xent_l', 'cat_xent_s', 'dist', 'cat_dist', 'cat_dist_l',
          'cat_dist_s')  # fmt: skip
# Of each divergence the teacher: hidden states of a large model, answers of a cache, or none.
TAUGHT = [
  *((f'distillspec_{name}', 'beside') for name in ('fkl', 'rkl', 'jsd', 'tvd', 'skew_fkl',
                                                   'skew_rkl')),
  ('cat_gatekeeper', 'beside'), ('gatekeeper', 'none'), ('adaspec', 'cached'),
  *((f'distillspec_{name}', 'cached') for name in ('fkl', 'jsd', 'tvd')),
]  # fmt: skip


def draw(dtype='float32', width=T, depth=D):
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  table, large_table = normal(V, depth), normal(V, 2 * depth)
  hidden, hidden_large = (normal(B, width, d).astype(dtype) for d in (depth, 2 * depth))
  targets = jnp.asarray(rng.integers(0, V, (B, width)))
  weights = jnp.asarray(rng.random((B, width)) < 0.8, jnp.float32)
  return table, hidden, large_table, (hidden_large, targets, weights)


def taught(teacher, **sizes):
  """`draw` with answers of a cache, or nothing, in place of the large model's hidden states."""
  table, hidden, large_table, (hidden_large, *rest) = draw(**sizes)
  if teacher == 'beside':
    return table, hidden, large_table, (hidden_large, *rest)
  answers = to_top_k(read(hidden_large, large_table), k=3)._replace(reference=jnp.ones((B, T)))
  return table, hidden, None, (answers if teacher == 'cached' else None, *rest)


def read(hidden, table):
  return (hidden @ table.astype(hidden.dtype).T).astype(jnp.float32)


def totals_of(loss, table, hidden, large_table, rows):
  answers, targets, weights = rows
  if large_table is not None:
    answers = Logits(read(answers, large_table))
  teachers = () if answers is None else (answers,)
  total, tokens = loss(read(hidden, table), teachers, targets, weights)
  return {'loss': total, 'tokens': tokens}


def blocked(of, **options):
  """`of` over blocks of the tokens with a weight."""

  def total(table, hidden, frozen, rows):
    return blockwise.sum_blocks(of, table, hidden, frozen, rows, rows[2] != 0, **options)

  return total


def both(of, table, hidden, frozen, rows):
  """Totals and the gradients to table and hidden, of twice the loss."""

  def objective(table, hidden):
    totals = of(table, hidden, frozen, rows)
    return 2 * totals['loss'], totals

  return jax.grad(objective, (0, 1), has_aux=True)(table, hidden)


@pytest.mark.parametrize('name', [*LOSSES, 'distillspec_jsd'])
def test_blocks_add_up_to_the_whole_and_so_do_their_gradients(name):
  of = functools.partial(totals_of, getattr(losses, name))
  arrays = draw()
  (table, hidden), totals = jax.jit(functools.partial(both, of))(*arrays)
  in_blocks = blocked(of, length=2)
  (table_, hidden_), totals_ = jax.jit(functools.partial(both, in_blocks))(*arrays)
  np.testing.assert_allclose(table_, table, atol=1e-4)
  np.testing.assert_allclose(hidden_, hidden, atol=1e-5)
  for key, value in totals.items():
    np.testing.assert_allclose(totals_[key], value, rtol=1e-6)
    np.testing.assert_allclose(in_blocks(*arrays)[key], value, rtol=1e-6)  # without a gradient


def test_tokens_that_do_not_count_are_not_read_out():
  table, hidden, large_table, (hidden_large, targets, _) = draw()
  counted = np.arange(T) % 3 == 1  # two of six: a third of three blocks of two positions
  weights = jnp.broadcast_to(jnp.asarray(counted, jnp.float32), (B, T))
  unread = jnp.where(weights[..., None] > 0, 0, jnp.nan)
  of = functools.partial(totals_of, losses.cat_dist)
  expected, totals = both(of, table, hidden, large_table, (hidden_large, targets, weights))
  rows = (hidden_large + unread, targets, weights)
  actual, totals_ = both(blocked(of, length=2), table, hidden + unread, large_table, rows)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)
  np.testing.assert_allclose(totals_['loss'], totals['loss'], rtol=1e-6)
  np.testing.assert_array_equal(actual[1][:, ~counted], 0)


def test_a_batch_of_padding_adds_nothing():
  table, hidden, large_table, (hidden_large, targets, weights) = draw()
  rows = (hidden_large, targets, jnp.zeros_like(weights))
  of = functools.partial(totals_of, losses.cat_dist)
  gradients, totals = both(blocked(of, length=2), table, hidden, large_table, rows)
  assert not any(jnp.any(x) for x in jax.tree.leaves((gradients, totals)))


def test_the_gradient_is_that_of_recomputed_blocks():
  # The usual way: a scan whose steps are checkpointed, which reads every token out twice.
  table, hidden, large_table, rows = draw()
  of = functools.partial(totals_of, losses.cat_dist)
  cut = lambda x: jnp.moveaxis(x.reshape(B, 3, 2, *x.shape[2:]), 1, 0)

  def recomputed(table, hidden):
    @jax.checkpoint
    def add(total, block):
      return total + of(table, block[0], large_table, block[1])['loss'], None

    return jax.lax.scan(add, 0.0, jax.tree.map(cut, (hidden, rows)))[0]

  expected = jax.grad(recomputed, (0, 1))(table, hidden)
  loss = lambda *trained: blocked(of, length=2)(*trained, large_table, rows)['loss']
  actual = jax.grad(loss, (0, 1))(table, hidden)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


def test_narrow_activations_get_narrow_gradients_and_the_table_its_own_type():
  of = functools.partial(totals_of, losses.cat_dist)
  arrays = draw('bfloat16', width=64)
  exact, _ = both(of, *draw(width=64))
  errors = []
  for dtype in ('float32', 'bfloat16'):
    (table, hidden), _ = both(blocked(of, length=1, gradient_dtype=dtype), *arrays)
    assert (table.dtype, hidden.dtype) == (jnp.float32, jnp.bfloat16)
    errors.append(np.abs(table - exact[0]).mean())
  assert errors[0] < errors[1] < 0.1


def products(jaxpr, times=1):
  """Number of products that have a table among their matrices, loops counted by their trips."""
  count = collections.Counter()
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      sizes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
      width = next((w for w in (D, 2 * D) if any({V, w} == {*s} for s in sizes)), None)
      count[width] += times
    inner = times * equation.params.get('length', 1)
    for parameter in equation.params.values():
      for value in parameter if isinstance(parameter, tuple) else (parameter,):
        value = getattr(value, 'jaxpr', value)
        if hasattr(value, 'eqns'):
          count += products(value, inner)
  return count


@pytest.mark.parametrize(('name', 'teacher'), [('cat_dist', 'beside'), *TAUGHT])
def test_nothing_is_read_out_twice(name, teacher):
  of = functools.partial(totals_of, getattr(losses, name))
  in_blocks = functools.partial(both, blocked(of, length=1))
  actual = products(jax.make_jaxpr(in_blocks)(*taught(teacher)).jaxpr)
  # Six blocks: logits and two gradients of the small readout, logits of the large one.
  assert actual == {D: 6 * 3} | ({2 * D: 6} if teacher == 'beside' else {})


def largest_logits(name, teacher, length):
  """The most elements of a buffer with an axis of the vocabulary, in the compiled gradient."""
  of = functools.partial(totals_of, getattr(losses, name))
  gradient = jax.jit(functools.partial(both, blocked(of, length=length)))
  arrays = taught(teacher, depth=3)  # so that both tables are smaller than a block's logits
  shapes = re.findall(r'\w+\[([\d,]+)\]', gradient.lower(*arrays).compile().as_text())
  dims = [tuple(map(int, shape.split(','))) for shape in {*shapes}]
  return max(np.prod(shape) for shape in dims if V in shape)


@pytest.mark.parametrize('length', [1, T])  # in one block the logits of all tokens show
@pytest.mark.parametrize(('name', 'teacher'), TAUGHT)
def test_no_buffer_has_more_logits_than_a_block(name, teacher, length):
  assert largest_logits(name, teacher, length) == length * B * V


def test_a_table_that_is_not_trained_gets_no_gradient_and_none_is_computed():
  table, hidden, large_table, rows = draw()
  of = functools.partial(totals_of, losses.cat_dist)
  fixed = functools.partial(both, blocked(of, length=1, trains_table=False))
  assert products(jax.make_jaxpr(fixed)(table, hidden, large_table, rows).jaxpr) == {
    D: 6 * 2, 2 * D: 6
  }  # fmt: skip
  (of_table, of_hidden), totals = fixed(table, hidden, large_table, rows)
  (_, expected), expected_totals = both(blocked(of, length=1), table, hidden, large_table, rows)
  assert not of_table.any()
  np.testing.assert_allclose(of_hidden, expected, atol=1e-6)
  assert totals == expected_totals


def test_tables_in_eight_bits_reach_the_blocks_as_they_are():
  table, hidden, large_table, rows = draw()
  narrow = quantization.quantize(large_table, (1,))

  def of(table, hidden, large_table, rows):
    assert large_table.values.dtype == jnp.int8
    assert large_table.scale.dtype == jnp.float32
    wide = quantization.dequantize(large_table, jnp.float32)
    return totals_of(losses.cat_dist, table, hidden, wide, rows)

  total = blocked(of, length=2)(table, hidden, narrow, rows)['loss']
  wide = quantization.dequantize(narrow, jnp.float32)
  expected = totals_of(losses.cat_dist, table, hidden, wide, rows)['loss']
  np.testing.assert_allclose(total, expected, rtol=1e-6)


def moved_in_loops(text):
  """The most elements that a collective of a computation other than the outermost one moves."""
  most, inside = 0, False
  for line in text.splitlines():
    if line and line[0] not in ' }':
      inside = not line.startswith('ENTRY')
    if inside and re.search(r' (all-gather|all-reduce|reduce-scatter)\(', line):
      shapes = re.findall(r'\w\[([\d,]+)\]', line.partition(' = ')[2])
      most = max([most, *(np.prod([*map(int, shape.split(','))]) for shape in shapes)])
  return most


MESHES = [{'data': 8}, {'data': 1, 'fsdp': 8}, {'data': 2, 'fsdp': 2, 'tensor': 2}]


def uneven():
  """Three tokens of the first row count, two and one of the next, none of the others."""
  table, hidden, large_table, (hidden_large, targets, _) = draw()
  weights = jnp.asarray(np.arange(T) < 3 - np.arange(B)[:, None], jnp.float32)
  return table, hidden, large_table, (hidden_large, targets, weights)


def compiled(mesh):
  """The blocked gradient, with rows and tables placed; on the mesh that is in use."""
  of = functools.partial(totals_of, losses.cat_dist)
  table, hidden, large_table, rows = uneven()
  put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
  tables = [put(x, 'tensor', 'fsdp') for x in (table, large_table)]
  hidden, rows = jax.tree.map(lambda x: put(x, ('data', 'fsdp')), (hidden, rows))
  arrays = tables[0], hidden, tables[1], rows
  return jax.jit(functools.partial(both, blocked(of, length=2))).lower(*arrays).compile(), arrays


@pytest.mark.parametrize('shape', MESHES, ids=str)
def test_rows_on_several_devices_add_up_and_no_block_moves_a_table(shape):
  expected, totals = both(functools.partial(totals_of, losses.cat_dist), *uneven())
  mesh = partitioning.make_mesh(**shape)
  with partitioning.use(mesh):
    program, arrays = compiled(mesh)
    actual, totals_ = program(*arrays)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), actual, expected)
  np.testing.assert_allclose(totals_['loss'], totals['loss'], rtol=1e-5)
  table = V * D // mesh.shape['tensor']
  assert moved_in_loops(program.as_text()) < table
  if 'fsdp' in shape:
    with jax.set_mesh(mesh):  # without the rules XLA decides, and moves tables that are split
      assert moved_in_loops(compiled(mesh)[0].as_text()) >= table
