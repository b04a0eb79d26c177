"""Samples beyond the first choices: what a teacher cache holds of the tail of a distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades import divergences, losses
from cascades.data.corpus import Corpus
from cascades.runtime import partitioning
from cascades.teachers import Logits, TopK, to_top_k
from cascades.training import cached_teacher, teacher_cache
from cascades.training.answer_format import AnswerFormat
from tests import tiny
from tests.cache_teacher_test import LENGTHS, contents, make, make_run, place
from tests.teachers_test import random_logits

GRID = 2048  # offsets at equal distances, whose mean stands for the expectation


def cross_entropy(small, teachers, targets):
  del targets
  return teachers[0].cross_entropy(jax.nn.log_softmax(small))


UNBIASED = {
  'cross-entropy': cross_entropy,
  'forward KL': divergences.forward_kl,
  'total variation': divergences.total_variation,
}


def every_offset(large, *, k, samples):
  """The reduced logits [V] of one token, for each offset of a grid."""
  offsets = (jnp.arange(GRID) + 0.5) / GRID
  repeated = jnp.broadcast_to(large, (GRID, len(large)))
  return to_top_k(repeated, k=k, samples=samples, offsets=offsets)


@functools.partial(jax.jit, static_argnames=('name', 'k', 'samples'))
def values_and_slopes(large, small, *, name, k, samples):
  """Of a loss with samples by every offset, and of all logits."""
  targets = jnp.zeros((), int)

  def each(teacher):
    loss = lambda x: UNBIASED[name](x, (teacher,), targets)
    return jax.value_and_grad(loss)(small)

  return jax.vmap(each)(every_offset(large, k=k, samples=samples)), each(Logits(large))


def test_a_sample_stands_for_all_others_in_a_hand_worked_example():
  large, small = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.25, 0.15, 0.6]))
  second, third = (to_top_k(large, k=1, samples=1, offsets=jnp.array(u)) for u in (0.59, 0.61))
  assert (second.sample_ids.tolist(), third.sample_ids.tolist()) == ([1], [2])
  np.testing.assert_allclose(np.exp(second.sample_logprobs), [0.6], rtol=1e-6)
  for teacher, r in ((second, 0.15 / 0.3), (third, 0.6 / 0.2)):
    value = divergences.forward_kl(small, (teacher,), jnp.array(0))
    np.testing.assert_allclose(value, 0.5 * np.log(2) - 0.5 * np.log(r), rtol=1e-5)
  for teacher, rejected in ((second, 0.25 + 0.5 * 0.5), (third, 0.25)):
    value = divergences.total_variation(small, (teacher,), jnp.array(0))
    np.testing.assert_allclose(value, rejected, rtol=1e-5)
  expected = -0.5 * np.log(0.25) - 0.5 * np.log(0.15)
  np.testing.assert_allclose(second.cross_entropy(small), expected, rtol=1e-5)


@pytest.mark.parametrize('name', UNBIASED)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1), (3, 2)]), st.floats(0.1, 3.0))
def test_values_and_gradients_are_those_of_all_logits_on_average(name, seed, sizes, scale):
  large, small = (jnp.asarray(random_logits((), seed=seed + i, scale=scale)) for i in range(2))
  (values, slopes), (exact, slope) = values_and_slopes(
    large, small, name=name, k=sizes[0], samples=sizes[1]
  )
  # Beside the jumps of a step function at V - k tokens, a grid's mean is the integral.
  tolerance = 8 * float(np.ptp(values)) / GRID + 1e-4
  np.testing.assert_allclose(values.mean(), exact, atol=tolerance)
  tolerance = 8 * np.ptp(np.asarray(slopes), axis=0).max() / GRID + 1e-4
  np.testing.assert_allclose(slopes.mean(0), slope, atol=tolerance)
  if name != 'total variation':  # whose gradient jumps where P = Q
    tail = to_top_k(large, k=sizes[0]).tail
    assert (np.abs(slopes - slope).sum(-1) <= 2 * tail + 1e-5).all()


def test_values_of_equal_models_are_0_whatever_is_drawn():
  logits = jnp.asarray(random_logits(()))
  for name in ('forward KL', 'total variation'):
    (values, _), _ = values_and_slopes(logits, logits, name=name, k=2, samples=1)
    np.testing.assert_allclose(values, 0, atol=1e-5)


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('name', UNBIASED)
@pytest.mark.parametrize(
  'large', [[-np.inf, 0, 1, -np.inf], [0, 1, -1e9, -1e9], [200, 0, 0, 0], [91, 0, 0, 0]], ids=str
)
def test_tails_without_mass_leave_values_and_gradients_finite(large, name, dtype):
  for k, offset in ((1, 0.0), (2, 0.999)):
    teacher = to_top_k(jnp.array(large), k=k, dtype=dtype, samples=1, offsets=jnp.array(offset))
    for small in (jnp.zeros(4), jnp.array([0.0, 50.0, -300.0, -jnp.inf])):
      loss = lambda x, teacher=teacher: UNBIASED[name](x, (teacher,), jnp.array(0))
      value, slope = jax.value_and_grad(loss)(jnp.maximum(small, -1e9))
      assert np.isfinite(value)
      assert np.isfinite(slope).all()


def test_the_excess_leaves_samples_alone():
  large, small = (jnp.asarray(random_logits((5,), seed=seed)) for seed in range(2))
  without = to_top_k(large, k=3)._replace(reference=jnp.arange(5.0))
  sampled = to_top_k(large, k=3, samples=2, offsets=jnp.full(5, 0.3))
  sampled = sampled._replace(reference=jnp.arange(5.0))
  targets = jnp.zeros(5, int)
  excess = [divergences.excess(small, (teacher,), targets) for teacher in (without, sampled)]
  np.testing.assert_array_equal(*excess)


@pytest.mark.parametrize(
  'form', [divergences.reverse_kl, divergences.jensen_shannon, divergences.skew_forward_kl,
           divergences.skew_reverse_kl]
)  # fmt: skip
def test_other_divergences_are_those_without_samples(form):
  large, small = (jnp.asarray(random_logits((5,), seed=seed)) for seed in range(2))
  without = to_top_k(large, k=3)
  sampled = to_top_k(large, k=3, samples=2, offsets=jnp.full(5, 0.3))
  targets = jnp.zeros(5, int)
  np.testing.assert_array_equal(form(small, (sampled,), targets), form(small, (without,), targets))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1, exclude_max=True, width=32), st.floats(0.1, 60.0))
def test_a_first_choice_is_never_drawn(seed, offset, scale):
  large = jnp.asarray(random_logits((4,), seed=seed, scale=scale))
  answer = to_top_k(large, k=3, samples=5, offsets=jnp.full(4, offset))
  own = np.asarray(answer.sample_ids)[:, :, None] == np.asarray(answer.ids)[:, None, :]
  assert not own.any()
  assert ((answer.sample_ids >= 0) & (answer.sample_ids < 7)).all()


def test_a_power_of_the_distribution_has_no_samples_of_it():
  answer = to_top_k(jnp.asarray(random_logits((4,))), k=3, samples=2, offsets=jnp.zeros(4))
  assert answer.tempered(1.0, 7) is answer
  assert answer.tempered(0.5, 7).sample_ids is None


@pytest.mark.parametrize('short', [True, False], ids=['two bytes', 'four bytes'])
@pytest.mark.parametrize('dtype', ['uint8', 'float16', 'bfloat16', 'float32'])
def test_samples_come_back_from_their_records(dtype, short):
  form = AnswerFormat(3, dtype, short_ids=short, samples=2)
  size = {'uint8': 1, 'float16': 2, 'bfloat16': 2, 'float32': 4}[dtype] + (2 if short else 4)
  assert form.record.itemsize == 5 * size + 4
  answers = form.reduce(jnp.asarray(random_logits((6,))), jnp.linspace(0, 0.9, 6))
  back = form.unpack(form.pack(answers))
  assert isinstance(back, TopK)
  np.testing.assert_array_equal(back.sample_ids, answers.sample_ids)
  np.testing.assert_allclose(
    np.asarray(back.sample_logprobs, np.float32),
    np.asarray(answers.sample_logprobs, np.float32),
    atol=0.03,
  )


# -- in a cache ------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A folder, and the run of a large model in it."""
  home = tmp_path_factory.mktemp('home')
  return home, make_run(home / 'large', tiny.LARGE)


@pytest.fixture(scope='module')
def sampled(made):
  return make(*made, 'sampled', top_k=4, tail_samples=3, dtype='uint8')


def test_a_cache_of_samples_trains(made, sampled):
  home, _ = made
  manifest = teacher_cache.read_manifest(place(sampled))
  assert (manifest['tail_samples'], manifest['bytes_per_token']) == (3, (4 + 3) * 3 + 4)
  corpus = Corpus(tiny.task(home), tiny.VOCABULARY, 'encoder_decoder', LENGTHS,
                  str(home / 'records'))  # fmt: skip
  cache = cached_teacher.load(sampled, corpus, loss=losses.distillspec_tvd, vocab_size=24)
  batch = next(corpus.training(0, batch_size=8, seed=5, teacher=cache.answers))
  answers = jax.tree.map(lambda x: x[batch.weights > 0], batch.teachers[0])
  assert answers.sample_ids.shape[1] == 3
  assert len(np.unique(answers.sample_ids)) > 8  # of 20
  options = {'teacher_cache': sampled, 'train_steps': 2, 'loss': losses.distillspec_fkl}
  values = tiny.train(**tiny.settings(home, **options) | {'model_dir': str(home / 'run')})[-1]
  assert 0 < values['loss'] < 10


def test_the_log_says_what_lies_beyond_the_first_choices(made, caplog):
  caplog.set_level('INFO')
  make(*made, 'first_two', top_k=2, splits=['validation'])
  (said,) = (
    r.getMessage() for r in caplog.records if 'beyond the first 2 tokens' in r.getMessage()
  )
  tail = (
    teacher_cache.CachedAnswers.open(place(made[0] / 'first_two', 'validation'))
    .read(range(32))
    .tail
  )
  assert f'{tail.mean():.1%} of the probability is beyond' in said
  assert said.endswith('spread it evenly, and TAIL_SAMPLES=8 would sample it')
  caplog.clear()
  make(*made, 'nearly_all', top_k=23, splits=['validation'])
  (said,) = (r.getMessage() for r in caplog.records if 'beyond the first 23' in r.getMessage())
  assert 'TAIL_SAMPLES' not in said


def test_samples_depend_on_the_row_alone(made, sampled):
  other = make(*made, 'batches_of_three', top_k=4, tail_samples=3, dtype='uint8',
               batch_size=3, splits=['train'])  # fmt: skip
  mesh = lambda: partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  sharded = make(*made, 'sharded', top_k=4, tail_samples=3, dtype='uint8', mesh=mesh,
                 splits=['train'])  # fmt: skip
  expected = teacher_cache.CachedAnswers.open(place(sampled)).read(range(64))
  for directory in (other, sharded):
    read = teacher_cache.CachedAnswers.open(place(directory)).read(range(64))
    # Sums in another order may move a point over the border of two tokens.
    assert (read.sample_ids == expected.sample_ids).mean() > 0.99


def test_an_interrupted_cache_of_samples_is_completed(made, sampled):
  before = contents(sampled)
  for path in place(sampled).glob('00001.*'):
    path.unlink()
  assert contents(make(*made, 'sampled', top_k=4, tail_samples=3, dtype='uint8')) == before


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'top_k': 4, 'dtype': 'uint8'}, 'tail_samples is 3 there and None here'),
    ({'tail_samples': 3}, 'TAIL_SAMPLES asks for samples beyond the first choices, and TOP_K=None'),
    ({'top_k': 24, 'tail_samples': 3}, 'TOP_K=24 stores all entries, and TAIL_SAMPLES=3 asks'),
    ({'top_k': 4, 'tail_samples': 0}, 'TAIL_SAMPLES'),
  ],
  ids=str,
)
def test_settings_that_do_not_fit_are_refused(made, sampled, changes, message):
  before = contents(sampled)
  with pytest.raises(ValueError, match=message):
    make(*made, 'sampled', **changes)
  assert contents(sampled) == before
