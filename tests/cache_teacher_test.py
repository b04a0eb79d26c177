"""The teacher cache end to end: it holds what the large model says, and trains as that does."""

import dataclasses
import functools
import itertools
import pathlib
import shutil

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from cascades import divergences, losses, masks, train
from cascades.checkpoints import store
from cascades.data.corpus import Corpus
from cascades.models import configs, decoder
from cascades.runtime import partitioning
from cascades.settings import checking, reading
from cascades.teachers import Logits, to_top_k
from cascades.tokenizers import vocabularies
from cascades.training import cached_teacher, teacher_cache
from tests import testing, tiny
from tests.losses_test import example
from tests.train_test import final_state

# Fewer entries than the small model's 24: both are cut to them.
DECODER = decoder.DecoderConfig(
  vocab_size=22, emb_dim=16, num_heads=2, num_kv_heads=1, num_layers=1, head_dim=8, mlp_dim=32
)
LENGTHS = {'targets': 8, 'inputs': 8}


def scaled(config, scale):
  graph, params = testing.split(testing.build(config))
  return graph, jax.tree.map(lambda leaf: scale * leaf, params)


def make_run(directory, config, scale=1.0):
  """A run of random weights, some of whose first choices are right."""
  _, params = scaled(config, scale)
  description = {
    'model': configs.describe(config),
    'vocabulary': tiny.VOCABULARY.fingerprint,
    'vocabulary_size': tiny.VOCABULARY.size,
  }
  store.make(directory, params, description, {'written': 'for a test'})
  vocabularies.save(tiny.VOCABULARY, directory)
  return str(directory)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  return tmp_path_factory.mktemp('home')


@pytest.fixture(scope='module')
def large(home):
  return make_run(home / 'large', tiny.LARGE)


def settings(home, **changes):
  return {
    'task': tiny.task(home), 'task_feature_lengths': LENGTHS, 'batch_size': 8, 'shard_rows': 24,
    'mesh': tiny.one_device, 'records_dir': str(home / 'records'),
  } | changes  # fmt: skip


def make(home, large, name, **changes):
  directory = str(home / name)
  tiny.cache_teacher(checkpoint_path=large, directory=directory, **settings(home, **changes))
  return directory


def place(directory, split='train'):
  return teacher_cache.location(directory, 'backwards', split)


@pytest.fixture(scope='module')
def first_choices(home, large):
  return make(home, large, 'first')


def test_the_manifest_says_what_was_run_on_what(first_choices, large):
  manifest = teacher_cache.read_manifest(place(first_choices, 'validation'))
  assert manifest['checkpoint'] == large
  assert (manifest['step'], manifest['rows'], manifest['shards']) == (0, 32, 2)
  assert (manifest['precision'], manifest['weights'], manifest['top_k']) == (
    'float32', 'float32', None
  )  # fmt: skip
  assert manifest['bytes_per_token'] == 4
  assert manifest['tokens'] == sum(
    teacher_cache.CachedAnswers.open(place(first_choices, 'validation')).rows['tokens']
  )


# -- training --------------------------------------------------------------------------------------


def run(home, name, **changes):
  """Two epochs; the values of the last line, and the last state."""
  options = {
    'train_steps': 8, 'save_every': 8, 'log_every': 8, 'optimizer': optax.sgd,
    'loss': losses.cat_xent,
  }  # fmt: skip
  (home / name).mkdir()
  settings = tiny.settings(home, **options | changes) | {'model_dir': str(home / name / 'run')}
  return tiny.train(**settings)[-1], final_state(home / name, 8)


SHARES = ('both', 'only_small', 'only_large', 'neither', 'accuracy')


def assert_alike(run, other):
  """The same tokens count, exactly. Two programs may add in another order, in the last bit."""
  (values, state), (others, same) = run, other
  assert {n: v for n, v in values.items() if n.split('/')[-1] in SHARES} == {
    n: v for n, v in others.items() if n.split('/')[-1] in SHARES
  }
  assert values == pytest.approx(others, rel=1e-5)
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), state, same)


def test_cat_xent_from_a_cache_counts_the_same_tokens_and_learns_the_same(
  home, large, first_choices
):
  small = dataclasses.replace(tiny.SMALL, dropout_rate=0.0)
  beside = run(home, 'beside', small=small, large_checkpoint_path=large)
  assert_alike(run(home, 'from_cache', small=small, teacher_cache=first_choices), beside)
  assert min(beside[0]['only_large'], beside[0]['neither']) > 0


def test_training_keeps_the_tokens_that_any_of_two_cached_models_predicts(home, first_choices):
  middle = make(home, make_run(home / 'middle', tiny.SMALL, scale=0.5), 'middle_cache')
  both = [middle, first_choices]
  once = {'train_steps': 1, 'log_every': 1, 'save_every': 1, 'validation': train.Validation(1)}
  (home / 'of_two').mkdir()
  settings = tiny.settings(home, teacher_cache=both, loss=losses.cat_xent, **once)
  (values,) = tiny.train(**settings | {'model_dir': str(home / 'of_two' / 'run')})
  corpus = Corpus(tiny.task(home), tiny.VOCABULARY, 'encoder_decoder', LENGTHS,
                  str(home / 'records'))  # fmt: skip
  caches = cached_teacher.load_all(both, corpus, loss=losses.cat_xent, vocab_size=24)
  (batch,) = itertools.islice(corpus.training(0, batch_size=16, seed=0, teacher=caches.answers), 1)
  valid = batch.weights > 0
  right = [(teacher.top1() == batch.targets)[valid] for teacher in batch.teachers]
  assert 0 < right[0].mean() < (right[0] | right[1]).mean()
  later = values['both'] + values['only_large']
  assert later == pytest.approx((right[0] | right[1]).mean(), rel=1e-5)
  assert values['validation/neither'] < 1


@pytest.fixture(scope='module')
def packs(home):
  """Packed runs of a small model with more entries than the large one: settings, one beside it."""
  large = make_run(home / 'large_decoder', DECODER)
  alike = {
    'small': decoder.DecoderConfig(**{**vars(DECODER), 'vocab_size': 24}),
    'pack_length': 32, 'batch_size': 4, 'seed': 3, 'validation': train.Validation(rows=20),
  }  # fmt: skip
  return large, alike, run(home, 'packs_beside', **alike, large_checkpoint_path=large)


@pytest.mark.slow
def test_packs_and_cut_vocabularies_train_from_a_cache_as_beside_the_large_model(home, packs):
  large, alike, beside = packs
  directory = make(home, large, 'decoder')
  assert_alike(run(home, 'packs', **alike, teacher_cache=directory), beside)
  assert min(beside[0]['only_large'], beside[0]['validation/only_large']) > 0


def test_without_the_validation_split_the_plain_loss_is_validated(home, packs):
  large, alike, _ = packs
  directory = make(home, large, 'train_only', splits=['train'])
  values, _ = run(home, 'unvalidated', **alike, teacher_cache=directory)
  validated = {name for name in values if name.startswith('validation/')}
  assert validated == {'validation/loss', 'validation/accuracy', 'validation/row_accuracy'}
  assert values['validation/loss'] == pytest.approx(np.log(22), abs=0.5)  # of all tokens


def test_a_cache_of_another_checkpoint_than_the_one_named_is_refused(home, large, first_choices):
  other = make_run(home / 'other_t5', tiny.LARGE)
  named = functools.partial(tiny.settings, home, teacher_cache=first_choices, loss=losses.cat_xent)
  with pytest.raises(ValueError, match=r"checkpoint_identity is '.* there and '.* here"):
    tiny.train(**named(large_checkpoint_path=other) | {'model_dir': str(home / 'refused')})
  corpus = Corpus(tiny.task(home), tiny.VOCABULARY, 'encoder_decoder', LENGTHS,
                  str(home / 'records'))  # fmt: skip
  cached_teacher.load(first_choices, corpus, loss=losses.cat_xent, vocab_size=24, checkpoint=large)


# -- against the large model's logits --------------------------------------------------------------


@pytest.mark.parametrize(
  ('config', 'pack'), [(tiny.LARGE, None), (DECODER, 40)], ids=['t5', 'packed decoder']
)
def test_every_token_is_answered_as_the_large_model_answers_it(home, config, pack):
  """Two epochs of another seed, each token by itself: the first choice, and the bound of top-k."""
  large = make_run(home / f'exact_{config.architecture}', config)
  directory = make(home, large, f'few_{config.architecture}', splits=['train'], top_k=4,
                   dtype='float32')  # fmt: skip
  corpus = Corpus(tiny.task(home), tiny.VOCABULARY, config.architecture, LENGTHS,
                  str(home / 'records'))  # fmt: skip
  cache = cached_teacher.load(directory, corpus, loss=losses.cat_dist, vocab_size=24)
  batches = corpus.training(0, batch_size=8, seed=5, pack=pack, teacher=cache.answers)
  model = testing.build(config)

  @jax.jit
  def compare(batch):
    logits = model.readout(model.hidden(batch))
    small = jax.nn.log_softmax(jnp.sin(jnp.arange(logits.size)).reshape(logits.shape))
    online = Logits(logits)
    others = jnp.put_along_axis(small, batch.teachers[0].ids, jnp.nan, axis=-1, inplace=False)
    spread = jnp.nanmax(others, axis=-1) - jnp.nanmin(others, axis=-1)
    moved = jnp.abs(batch.teachers[0].cross_entropy(small) - online.cross_entropy(small))
    return online.top1(), moved, batch.teachers[0].tail * spread

  for batch in (next(batches) for _ in range(12 if pack is None else 6)):
    real = batch.weights > 0
    top1, moved, bound = (np.asarray(column)[real] for column in compare(batch))
    np.testing.assert_array_equal(batch.teachers[0].top1()[real], top1)
    assert (moved <= bound + 1e-5).all()
    assert moved.max() > 1e-3  # so that the bound bounds something


def test_eight_devices_answer_as_one_does(home, large, first_choices):
  mesh = lambda: partitioning.make_mesh(data=2, fsdp=2, tensor=2)
  directory = make(home, large, 'mesh', mesh=mesh, splits=['train'], top_k=2, dtype='float32')
  sharded, single = (teacher_cache.CachedAnswers.open(place(d)) for d in (directory, first_choices))
  np.testing.assert_array_equal(sharded.read(range(64)).top1(), single.read(range(64)).top1())


@pytest.fixture(scope='module')
def with_reference(home, large):
  reference = make_run(home / 'reference', tiny.LARGE, scale=0.8)
  return make(home, large, 'reference_kl', top_k=6, dtype='uint8', reference=reference,
              splits=['train'])  # fmt: skip


def test_the_divergence_of_a_reference_and_short_records_come_back(home, large, with_reference):
  manifest = teacher_cache.read_manifest(place(with_reference))
  assert manifest['bytes_per_token'] == 6 * (2 + 1) + 4 + 4
  corpus = Corpus(tiny.task(home), tiny.VOCABULARY, 'encoder_decoder', LENGTHS,
                  str(home / 'records'))  # fmt: skip
  cache = cached_teacher.load(with_reference, corpus, loss=losses.adaspec, vocab_size=24)
  batch = next(corpus.training(0, batch_size=8, seed=5, teacher=cache.answers))
  models = [nnx.merge(*scaled(tiny.LARGE, scale)) for scale in (1.0, 0.8)]
  logits, of_reference = (model.readout(model.hidden(batch)) for model in models)
  real, (answers,) = batch.weights > 0, batch.teachers
  exact = to_top_k(logits, k=6)
  np.testing.assert_array_equal(answers.ids[real], exact.ids[real])
  steps = np.abs(np.sqrt(-answers.top_logprobs) - np.sqrt(-exact.top_logprobs))[real]
  assert steps.max() <= 0.5 / 64 + 1e-5  # half a step of the byte
  expected = divergences.forward_kl(of_reference, (exact,), batch.targets)
  np.testing.assert_allclose(answers.reference[real], expected[real], rtol=1e-4)
  assert expected[real].min() > 1e-3


@pytest.fixture
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.mark.usefixtures('fresh_gin')
def test_a_divergence_crosses_with_a_mask_on_the_command_line_and_trains(home, with_reference):
  bindings = [
    'LOSS=distillspec_jsd', 'losses.distillspec_jsd.token_loss=@divergences.jensen_shannon',
    'divergences.jensen_shannon.beta=0.1',
    'losses.distillspec_jsd.token_mask=@masks.either_correct',
    'MODEL_DIR=run', 'setup.Step.learning_rate=@optimizers.constant()',
  ]  # fmt: skip
  checking.finish(reading.configure('cascades.train', ['recipes/demo_small.gin'], bindings))
  crossed = gin.get_configurable('setup.Step')().loss  # reads its bindings when it is called
  small, large, targets, weights = example()
  expected = losses.distillspec_jsd(
    small, large, targets, weights, token_mask=masks.either_correct,
    token_loss=functools.partial(divergences.jensen_shannon, beta=0.1),
  )  # fmt: skip
  assert crossed(small, large, targets, weights) == expected
  alike = {'small': dataclasses.replace(tiny.SMALL, dropout_rate=0.0), 'validation': None}
  options = alike | {'teacher_cache': with_reference, 'train_steps': 2}
  values = tiny.train(**tiny.settings(home, **options, loss=crossed) | {
    'model_dir': str(home / 'crossed')
  })[-1]  # fmt: skip
  assert 0 < values['loss'] < np.log(24)
  adaspec = tiny.train(**tiny.settings(home, **options, loss=losses.adaspec) | {
    'model_dir': str(home / 'adaspec')
  })[-1]  # fmt: skip
  assert 0 < adaspec['loss'] < np.log(24)


def test_a_reference_needs_log_probabilities_and_the_same_vocabulary(home, large):
  with pytest.raises(ValueError, match='TOP_K=None stores first choices alone'):
    make(home, large, 'refused', reference=large)
  other = make_run(home / 'wider', dataclasses.replace(tiny.LARGE, vocab_size=25))
  with pytest.raises(ValueError, match='vocabulary has 25 entries'):
    make(home, large, 'refused', reference=other, top_k=3)


# -- made in parts ---------------------------------------------------------------------------------


def contents(directory):
  return {
    path.relative_to(directory): path.read_bytes()
    for path in pathlib.Path(directory).rglob('*')
    if path.is_file()
  }


def test_an_interrupted_cache_is_refused_and_then_finished(home, large, first_choices, monkeypatch):
  write, written = teacher_cache.write_shard, []

  def interrupted(directory, index, *rest):
    if index == 1:
      raise KeyboardInterrupt
    write(directory, index, *rest)

  monkeypatch.setattr(teacher_cache, 'write_shard', interrupted)
  with pytest.raises(KeyboardInterrupt):
    make(home, large, 'parts')
  started = tiny.settings(home, teacher_cache=str(home / 'parts'), loss=losses.cat_xent)
  with pytest.raises(
    ValueError, match=r'is not complete: of 3 shards 2 cannot be used \(00001 is miss'
  ):
    tiny.train(**started | {'model_dir': str(home / 'early')})
  assert not (home / 'early' / 'model.json').exists()

  def noted(directory, index, *rest):
    written.append((directory.name, index))
    write(directory, index, *rest)

  monkeypatch.setattr(teacher_cache, 'write_shard', noted)
  directory = make(home, large, 'parts')
  assert written == [('train', 1), ('train', 2), ('validation', 0), ('validation', 1)]
  assert contents(directory) == contents(first_choices)

  damaged = place(directory) / '00001.answers'
  damaged.write_bytes(damaged.read_bytes()[:-1] + b'\x7f')
  written.clear()
  make(home, large, 'parts')
  assert written == [('train', 1)]
  assert contents(directory) == contents(first_choices)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'top_k': 3}, 'top_k is None there and 3 here'),
    ({'weights': 'bfloat16'}, "weights is 'float32' there and 'bfloat16' here"),
    (
      {'task_feature_lengths': {'inputs': 8, 'targets': 7}},
      "there and .*'targets': 7} here",
    ),
    ({'large': 'other'}, 'checkpoint_identity is '),
    ({'top_k': 0}, 'TOP_K is 0; it must be from 1 to 24'),
    ({'top_k': 25}, 'TOP_K is 25; it must be'),
    ({'splits': ['tset']}, 'has no split'),
  ],
  ids=str,
)
def test_a_directory_of_other_answers_is_left_as_it_is(
  home, large, first_choices, tmp_path, changes, message
):
  before = contents(first_choices)
  if 'large' in changes:
    large = make_run(tmp_path / 'other', tiny.LARGE)
  options = {name: value for name, value in changes.items() if name != 'large'}
  with pytest.raises(ValueError, match=message):
    make(home, large, 'first', **options)
  assert contents(first_choices) == before


def test_other_answers_are_replaced_when_that_is_asked_for(home, large, first_choices, tmp_path):
  shutil.copytree(first_choices, home / 'replaced')
  directory = make(home, large, 'replaced', top_k=3, overwrite=True)
  assert contents(directory) == contents(make(home, large, 'few', top_k=3))
