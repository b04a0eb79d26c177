"""Samples of the model that is trained: exact batches, no gradient, and bitwise resumption."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from cascades.data import converters
from cascades.data.answer_sources import AnswerSources, Unanswered
from cascades.data.corpus import Data
from cascades.models import decoder
from cascades.runtime import partitioning
from cascades.training import loop, on_policy, optimizers, setup, train_step
from cascades.types import Generation
from tests import testing, tiny

DECODER = decoder.DecoderConfig(
  vocab_size=24, emb_dim=16, num_heads=2, num_kv_heads=1, num_layers=1, head_dim=8, mlp_dim=32
)
CONFIG = dataclasses.replace(tiny.SMALL, dropout_rate=0.0)  # compiles faster
EOS = tiny.VOCABULARY.eos_id
SEED, BATCH = 31, 8
STEP = setup.Step(learning_rate=optimizers.constant(0.1), optimizer=optax.sgd)
MIXED = AnswerSources(fixed_fraction=0.5)
ON_POLICY = AnswerSources(fixed_fraction=0)


class Run:
  """A run of the small model alone on a mesh, as `train` assembles it."""

  def __init__(self, corpus, mesh):
    self.corpus, self.mesh = corpus, mesh
    self.sampler = functools.cache(
      lambda sources: on_policy.sampler(corpus, sources, self.abstract, None)
    )
    _, params = testing.split(testing.build(CONFIG))
    with partitioning.use(mesh):
      self.abstract = setup.abstract_run(
        setup.SmallModel(CONFIG), setup.LargeModel(), STEP.transform
      )
      self.step = setup.on_batches(
        setup.compiled_step(self.abstract, STEP), train_step.Frozen(), lambda *_: None
      )
      self.start = jax.device_get(train_step.init_state(params, STEP.transform, SEED))

  def place(self, state):
    return jax.device_put(state, setup.shardings(self.abstract.state))

  def batches(self, sources, start=0):
    stream = self.corpus.training(start, batch_size=BATCH, seed=SEED, sources=sources)
    return on_policy.batches(stream, self.sampler(sources), every=sources.sample_every)

  def train(self, sources, *, state=None, start=0, total=6):
    """The state before each step and the last one, and the batches."""
    with partitioning.use(self.mesh):
      state, take = self.place(state or self.start), self.batches(sources, start)
      states, taken = [jax.device_get(state)], []
      for number in range(start + 1, total + 1):
        taken.append(jax.device_get(take(state, number)))
        state, _ = self.step(state, taken[-1])
        states.append(jax.device_get(state))
    return states, taken


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  directory = tmp_path_factory.mktemp('rows')
  data = Data(
    task=tiny.task(directory), lengths=tiny.LENGTHS, batch_size=BATCH,
    records_dir=str(directory / 'records'),
  )  # fmt: skip
  return data.corpus(tiny.VOCABULARY, 'encoder_decoder')


@pytest.fixture(scope='module')
def run(corpus):
  return Run(corpus, tiny.one_device())


@pytest.fixture(scope='module')
def straight(run):
  """Runs of six steps that nothing happens to; each is made once."""
  return functools.cache(run.train)


def same(first, second):
  jax.tree.map(np.testing.assert_array_equal, first, second)


def differ(first, second):
  return not all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


def answers(batch):
  """The tokens that count, row by row."""
  pairs = zip(batch.targets, batch.weights, strict=True)
  return [targets[weights > 0].tolist() for targets, weights in pairs]


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('config', [tiny.SMALL, DECODER], ids=['t5', 'decoder'])
def test_a_sampled_batch_is_the_one_that_the_host_assembles(config):
  """Answers that end, are cut at the budget, and are of an empty prompt, which has none."""
  convert = converters.CONVERTERS[config.architecture]
  prompts, replies = [[5, 6, 7, 1], [8, 1], [9, 4, 1]], [[3, 4, EOS], [5, 6, 7, 8], [EOS]]
  examples = [convert((p,), (r,), ([0],)) for p, r in zip(prompts, replies, strict=True)]
  encoder_width = 5 if config.architecture == 'encoder_decoder' else None
  width = 7 if encoder_width else 12
  expected = converters.assemble(
    [*([e] for e in examples), []], width=width, encoder_width=encoder_width
  )
  context = converters.pad([*(e.context for e in examples), ()], 1 if encoder_width else 6)
  encoder = encoder_width and converters.pad([*(e.prompt for e in examples), ()], encoder_width)
  lengths = np.array([[3], [4], [1], [0]])
  tokens = converters.pad([*((r,) for r in replies), ()], 4).tokens
  tokens = np.where(np.arange(4) < lengths, tokens, 17)  # what stands behind the end is not read
  answer = Generation(tokens, np.zeros((4, 4)), np.arange(4) < lengths)
  batch = on_policy.teacher_forced(Unanswered(context, encoder or None), answer, 7)
  same(converters.without_segments(expected), batch)


def test_samples_end_with_their_end_of_sequence_or_at_the_budget(run):
  _, taken = run.train(AnswerSources(fixed_fraction=0, sample_tokens=4), total=3)
  tokens = [row for batch in taken for row in answers(batch)]
  assert all(EOS not in row[:-1] for row in tokens)
  assert {len(row) for row in tokens if row[-1] != EOS} == {4}
  assert any(row[-1] == EOS for row in tokens)


def test_only_entries_that_both_models_have_are_sampled(run, straight):
  small = run.abstract.small._replace(vocab_size=5)
  narrow = run.abstract._replace(small=small)
  with partitioning.use(run.mesh):
    stream = run.corpus.training(0, batch_size=BATCH, seed=SEED, sources=ON_POLICY)
    sample = on_policy.sampler(run.corpus, ON_POLICY, narrow, None)
    (batch,) = jax.device_get(sample(run.place(run.start), partitioning.place_batch(next(stream))))
  assert batch.targets.max() < 5 <= straight(ON_POLICY)[1][0].targets.max()


def test_steps_of_the_task_alone_take_the_batches_as_they_are(run):
  _, taken = run.train(AnswerSources(), total=2)
  stream = run.corpus.training(0, batch_size=BATCH, seed=SEED)
  for batch, expected in zip(taken, stream, strict=False):
    same(batch, expected)


def test_samples_change_with_the_parameters_and_are_new_in_every_epoch(straight, run):
  """Oracle 7(d) of DistillSpec; that tables do not is seen where they are read."""
  states, taken = straight(ON_POLICY)
  with partitioning.use(run.mesh):
    take = run.batches(ON_POLICY)
    sampled = [
      jax.device_get(take(run.place(states[0]._replace(step=states[number - 1].step)), number))
      for number in range(1, 4)
    ]
  same(sampled[0], taken[0])
  for old, new in zip(sampled[1:], taken[1:], strict=False):
    same(old.encoder, new.encoder)
    assert differ(old.targets, new.targets)


def test_no_gradient_reaches_the_parameters_through_samples(run):
  """Oracle 7(e) of DistillSpec: the gradient is that of the same answers as constants."""
  with partitioning.use(run.mesh):
    state = run.place(run.start)
    stream = run.corpus.training(0, batch_size=BATCH, seed=SEED, sources=ON_POLICY)
    rows = partitioning.place_batch(next(stream))
    sample = run.sampler(ON_POLICY)

    def loss(params, batch):
      return jnp.sum(params['embedding'][batch.targets] ** 2 * batch.weights[..., None])

    def through(params):
      return loss(params, sample(state._replace(params=params), rows)[0])

    constant = sample(state, rows)[0]
    both = lambda params: (jax.grad(through)(params), jax.grad(loss)(params, constant))
    gradients = jax.jit(both)(state.params)
  same(*map(jax.device_get, gradients))
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[0])) > 0


# -- blocks of steps -------------------------------------------------------------------------------


def test_steps_of_a_block_take_their_samples_from_its_first_model(straight, run):
  sources = AnswerSources(fixed_fraction=0, sample_every=3)
  states, taken = straight(sources)
  with partitioning.use(run.mesh):
    for begin in (0, 3):
      take, state = run.batches(sources, begin), run.place(states[begin])
      for number in range(begin, begin + 3):
        same(jax.device_get(take(state, number + 1)), taken[number])
    stale = run.batches(sources, 3)
    assert differ(jax.device_get(stale(run.place(states[0]), 4)).targets, taken[3].targets)


@pytest.mark.parametrize('every', [1, 3])
def test_a_run_with_samples_resumes_bit_by_bit(straight, run, every):
  """At every step that can have a checkpoint: the key and the step say all."""
  sources = dataclasses.replace(MIXED, sample_every=every)
  states, taken = straight(sources)
  drawn = [sources.of_step(SEED, step) for step in range(6)]
  assert {*drawn[:3]} == {*drawn[3:]} == {'fixed', 'on_policy'}
  for start in range(every, 6, every):
    resumed, batches = run.train(sources, state=states[start], start=start)
    same(resumed, states[start:])
    same(batches, taken[start:])


def test_sampling_is_one_program(run):
  sources = dataclasses.replace(MIXED, sample_every=2)
  compiled = []

  def count(event, _seconds, **_):
    compiled.append(event.endswith('backend_compile_duration'))

  with partitioning.use(run.mesh):
    sample = on_policy.sampler(run.corpus, sources, run.abstract, None)
    state = run.place(run.start)
    stream = run.corpus.training(1, batch_size=BATCH, seed=SEED, sources=sources)
    blocks = [list(itertools.islice(stream, rows)) for rows in (1, 2, 2, 2)]
    calls = []
    jax.monitoring.register_event_duration_secs_listener(count)
    for rows in blocks:
      on_policy.answered(rows, 2, lambda rows: calls.append(rows) or sample(state, rows))
    jax.monitoring.unregister_event_duration_listener(count)
  assert len(calls) > 2
  assert sum(compiled) == 1


def test_eight_devices_sample_what_one_does(straight, corpus):
  every = 3
  sources = dataclasses.replace(ON_POLICY, sample_every=every)
  mesh = partitioning.make_mesh(2, 2, 2)
  states, taken = straight(sources)
  other = Run(corpus, mesh)
  with partitioning.use(mesh):
    take, state = other.batches(sources), other.place(states[0])
    batches = [take(state, number) for number in range(1, every + 1)]
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(batches)} == {
      PartitionSpec(partitioning.BATCH)
    }
    assert partitioning.place_batch(batches[0]).targets is batches[0].targets
  same(jax.device_get(batches), taken[:every])


# -- logs and settings -----------------------------------------------------------------------------


def test_the_source_of_each_step_and_the_age_of_samples_are_logged():
  sources = dataclasses.replace(MIXED, sample_every=4)
  step = on_policy.noted(lambda state, batch: (state, {'loss': 1.0, 'tokens': 2.0, 'correct': 1.0}),
                         sources, SEED, start=2)  # fmt: skip
  sums = [step(None, None)[1] for _ in range(6)]
  drawn = [sources.of_step(SEED, number) for number in range(2, 8)]
  ages = [age for age, source in zip((0, 1, 0, 1, 2, 3), drawn, strict=True)
          if source == 'on_policy']  # fmt: skip
  values = loop.means(sums)
  assert values['data/on_policy'] == pytest.approx(len(ages) / 6)
  assert values['data/fixed'] == pytest.approx(1 - len(ages) / 6)
  assert values['data/target_generated'] == 0
  assert values['data/sample_age'] == pytest.approx(np.mean(ages))
  plain = lambda state, batch: (state, {})
  assert on_policy.noted(plain, AnswerSources(), SEED, start=0) is plain


@pytest.mark.parametrize(
  ('sources', 'changes', 'message'),
  [
    (MIXED, {'pack_length': 32}, 'PACK_LENGTH=32 packs .* FIXED_FRACTION=0.5 replaces'),
    (MIXED, {'teacher_cache': 'x'}, "TEACHER_CACHE='x' .* Name it as LARGE_CHECKPOINT_PATH, with"),
    (MIXED, {'checkpoint_path': None}, 'ON_POLICY_FRACTION=1 .* name it as LARGE_CHECKPOINT_PATH'),
    (MIXED, {'steps': 5}, 'LARGE_STEPS=5 ends the large model before TRAIN_STEPS=12'),
    (dataclasses.replace(MIXED, sample_tokens=9), {}, 'SAMPLE_TOKENS=9 is more than the 8 tokens'),
    (dataclasses.replace(MIXED, sample_every=4), {}, 'SAVE_EVERY=6 is not divisible by SAMPLE_EV'),
    (dataclasses.replace(MIXED, sample_every=3), {'train_steps': 10}, 'TRAIN_STEPS=10 is not div'),
  ],
)  # fmt: skip
def test_sources_that_do_not_fit_a_run_are_refused(sources, changes, message):
  pack = changes.pop('pack_length', None)
  data = Data(lengths=tiny.LENGTHS, batch_size=8, sources=sources, pack_length=pack)
  schedule = setup.Schedule(train_steps=changes.pop('train_steps', 12), save_every=6)
  with pytest.raises(ValueError, match=message):
    on_policy.check(data, setup.LargeModel(**{'checkpoint_path': 'y'} | changes), schedule)


def test_runs_of_the_task_alone_fit_everything():
  data = Data(lengths=tiny.LENGTHS, batch_size=8, pack_length=32)
  on_policy.check(data, setup.LargeModel(teacher_cache='x'), setup.Schedule(train_steps=7))
