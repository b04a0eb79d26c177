"""The training program: what it leaves, what it refuses, and that resuming is exact."""

import functools
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cascades import losses, train
from cascades.checkpoints import store
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Corpus, Data
from cascades.models import decoder, lora
from cascades.models.abstract import abstract_model
from cascades.runtime import locking, partitioning, stopping
from cascades.tasks import local
from cascades.tokenizers import vocabularies
from cascades.training import metrics_log, optimizers, setup, train_step
from tests import testing, tiny
from tests.runtime.progress_test import read_events


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  """A large model trained with validation, as every run with a large model below needs one."""
  directory = tmp_path_factory.mktemp('large')
  validation = train.Validation(every=3, rows=20, decoded_rows=10)
  settings = tiny.settings(
    directory, small=tiny.LARGE, validation=validation, provenance=lambda: {'config': 'X = 1'}
  )
  return directory, tiny.train(**settings)


def final_state(directory, step=6):
  """All arrays of a checkpoint as they lie on disk."""
  import orbax.checkpoint as ocp

  return ocp.StandardCheckpointer().restore(directory / 'run' / f'checkpoint_{step}' / 'state')


def test_a_run_leaves_what_it_promises(large):
  directory, history = large
  run = directory / 'run'
  assert {path.name for path in run.iterdir()} == {
    'checkpoint_4', 'checkpoint_6', 'config.gin', 'metrics.jsonl', 'model-info.txt', 'model.json',
    'settings.json', 'train', 'vocabulary.json',
  }  # fmt: skip
  assert (run / 'config.gin').read_text() == 'X = 1'
  assert 'trained: ' in (run / 'model-info.txt').read_text()
  assert 'decoder/mlp/wo/kernel' in (run / 'model-info.txt').read_text()
  assert store.read_description(run)['vocabulary'] == tiny.VOCABULARY.fingerprint
  assert [set(values) for values in history] == [
    {'loss', 'accuracy', 'row_accuracy', 'grad_norm'} | (VALIDATED if step in (3, 4, 6) else set())
    for step in (2, 3, 4, 6)
  ]


VALIDATED = {'validation/loss', 'validation/accuracy', 'validation/row_accuracy'}


def test_every_line_is_in_the_metrics_and_in_the_event_file(large):
  directory, history = large
  metrics = metrics_log.read(directory / 'run')
  assert list(metrics) == [2, 3, 4, 6]
  assert [
    {name: metrics[step][name] for name in values}
    for step, values in zip((2, 3, 4, 6), history, strict=True)
  ] == history
  events = read_events(directory / 'run' / 'train')
  logged = {(step, name): value for step, name, value in events}
  for step, values in zip((2, 3, 4, 6), history, strict=True):
    for name, value in values.items():
      np.testing.assert_allclose(logged[step, name], value, rtol=1e-6)
    assert logged[step, 'lr'] == pytest.approx(1e-2)
    assert logged[step, 'tokens_per_second'] > 0
    assert logged[step, 'seconds_left'] >= 0


def test_the_loss_falls(large):
  _, history = large
  assert history[-1]['loss'] < history[0]['loss']


def test_a_finished_run_is_left_alone(large):
  directory, _ = large

  def contents():
    files = [path for path in (directory / 'run').rglob('*') if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

  before = contents()
  assert tiny.train(**tiny.settings(directory, small=tiny.LARGE)) == []
  assert contents() == before


def test_a_run_that_is_continued_with_other_settings_is_refused_and_left_alone(
  large, tmp_path, caplog
):
  shutil.copytree(large[0] / 'run', tmp_path / 'run')
  changes = {'small': tiny.LARGE, 'train_steps': 7, 'batch_size': 8, 'save_every': 9}
  changed = tiny.settings(tmp_path, provenance=lambda: {'config': 'X = 2'}, **changes)
  for finished in ({}, {'train_steps': 6}):
    with pytest.raises(ValueError, match=r'to step 6 .*: BATCH_SIZE is 16 there and 8 here'):
      tiny.train(**changed | finished)
  assert (tmp_path / 'run' / 'config.gin').read_text() == 'X = 1'
  tiny.train(**changed, on_changed_settings=stopping.go_on)
  assert 'BATCH_SIZE is 16 there and 8 here' in caplog.text
  assert (tmp_path / 'run' / 'config-1-6.gin').read_text() == 'X = 1'
  assert (tmp_path / 'run' / 'config.gin').read_text() == 'X = 2'


@pytest.mark.slow
def test_another_large_model_is_refused_and_the_same_one_elsewhere_is_not(large, tmp_path):
  for name in ('here', 'moved', 'longer'):
    shutil.copytree(large[0] / 'run', tmp_path / name)
  metadata = tmp_path / 'longer' / 'checkpoint_6' / '_CHECKPOINT_METADATA'
  metadata.write_text(metadata.read_text().replace('{', '{ ', 1))
  settings = tiny.settings(tmp_path, loss=losses.cat_xent, train_steps=1)
  tiny.train(**settings, large_checkpoint_path=str(tmp_path / 'here'))
  assert tiny.train(**settings, large_checkpoint_path=str(tmp_path / 'moved')) == []
  with pytest.raises(ValueError, match=r'LARGE_CHECKPOINT_PATH is .*here \(step 6, .*longer \('):
    tiny.train(**settings, large_checkpoint_path=str(tmp_path / 'longer'))


def test_cat_with_the_large_model_logs_the_shares_of_agreement(large, tmp_path):
  settings = tiny.settings(
    tmp_path, loss=losses.cat_dist, large_checkpoint_path=str(large[0] / 'run'), train_steps=2
  )
  (values,) = tiny.train(**settings)
  shares = [values[name] for name in ('both', 'only_small', 'only_large', 'neither')]
  assert sum(shares) == pytest.approx(1.0)
  assert 'frozen: ' in (tmp_path / 'run' / 'model-info.txt').read_text()


@pytest.mark.slow
def test_samples_of_the_small_model_are_judged_by_the_large_one(large, tmp_path):
  settings = tiny.settings(
    tmp_path, loss=losses.cat_dist, large_checkpoint_path=str(large[0] / 'run'), train_steps=2,
    sources=AnswerSources(fixed_fraction=0),
  )  # fmt: skip
  (values,) = tiny.train(**settings)
  assert (values['data/on_policy'], values['data/fixed'], values['data/sample_age']) == (1, 0, 0)
  assert 0 < values['loss'] < 10
  assert metrics_log.read(tmp_path / 'run')[2]['data/on_policy'] == 1


@pytest.mark.slow
def test_a_decoder_learns_from_packs_in_bfloat16_and_goes_on_from_its_checkpoint(tmp_path):
  small = decoder.DecoderConfig(
    vocab_size=24, emb_dim=16, num_heads=2, num_kv_heads=1, num_layers=1, head_dim=8, mlp_dim=32,
    dtype='bfloat16',
  )  # fmt: skip
  settings = tiny.settings(
    tmp_path, small=small, pack_length=32, batch_size=4, microbatches=2, log_every=10,
    optimizer=optimizers.adamw, train_steps=30,
  )  # fmt: skip
  straight = tiny.train(**settings | {'model_dir': str(tmp_path / 'straight')})
  tiny.train(**settings | {'train_steps': 20})
  resumed = tiny.train(**settings)
  assert resumed == straight[-len(resumed) :]
  assert straight[-1]['loss'] < straight[0]['loss']


def test_weights_of_another_run_start_with_a_fresh_optimizer_and_step(large, tmp_path):
  settings = tiny.settings(
    tmp_path,
    small=tiny.LARGE,
    initial_checkpoint_path=str(large[0] / 'run'),
    learning_rate=optimizers.constant(0.0),
    optimizer=optax.sgd,
    train_steps=1,
  )
  tiny.train(**settings)
  jax.tree.map(
    np.testing.assert_array_equal,
    final_state(tmp_path, 1)['params'],
    final_state(large[0], 6)['params'],
  )


# -- adapters --------------------------------------------------------------------------------------


def logits(path, dtype='float32'):
  """Logits of a run, read as plain weights, as every program but training reads it."""
  with partitioning.use(tiny.one_device()):
    graph, like = abstract_model(tiny.LARGE, dtype=dtype)
    model = train_step.ModelDef(graph, 24).bind(store.restore_params(path, like))
  batch = testing.batch(tiny.LARGE)
  return np.asarray(model.readout(model.hidden(batch)))


@pytest.fixture(scope='module')
def adapted(large, tmp_path_factory):
  """Adapters beside the large model in eight bits, trained by CAT beside it in eight bits."""
  directory = tmp_path_factory.mktemp('adapted')
  settings = tiny.settings(
    directory, small=tiny.LARGE, adapters=lora.LoraConfig(rank=2, dtype='int8'), large_dtype='int8',
    initial_checkpoint_path=str(large[0] / 'run'), large_checkpoint_path=str(large[0] / 'run'),
    loss=losses.cat_xent, validation=train.Validation(every=3, rows=16, decoded_rows=8),
    optimizer=optimizers.adamw,
  )  # fmt: skip
  return directory, settings, tiny.train(**settings)


@pytest.mark.slow
def test_a_run_of_adapters_holds_them_and_its_base_and_nothing_else(large, adapted):
  directory, _, history = adapted
  state = final_state(directory)
  weights = sum(leaf.size for leaf in jax.tree.leaves(final_state(large[0])['params']))
  assert sum(leaf.size for leaf in jax.tree.leaves(state['params'])) < weights / 4
  assert state['params']['decoder']['mlp']['wo']['kernel']['down'].shape == (1, 64, 2)
  assert 'embedding' not in state['params']
  assert history[-1]['validation/loss'] < history[1]['validation/loss']


@pytest.mark.slow
def test_other_programs_read_a_run_of_adapters_as_plain_weights(large, adapted, tmp_path):
  base, learned = (logits(run / 'run') for run in (large[0], adapted[0]))
  assert np.abs(learned - base).max() > 0.05
  settings = tiny.settings(
    tmp_path, large_checkpoint_path=str(adapted[0] / 'run'), loss=losses.cat_dist, train_steps=2
  )
  (values,) = tiny.train(**settings)
  assert values['loss'] > 0


@pytest.mark.slow
def test_adapters_go_on_bit_by_bit_without_the_run_that_they_started_from(adapted, tmp_path):
  settings = adapted[1] | {'model_dir': str(tmp_path / 'run')}
  tiny.train(**settings | {'train_steps': 4})
  history = tiny.train(**settings | {'initial_checkpoint_path': str(tmp_path / 'gone')})
  assert history == adapted[2][-len(history) :]
  jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(adapted[0]))


def test_adapters_without_weights_to_stand_beside_are_refused(tmp_path):
  refused('INITIAL_CHECKPOINT_PATH is None', tmp_path, adapters=lora.LoraConfig())


@pytest.mark.slow
def test_adapters_of_another_rank_are_refused(adapted):
  refused('lora rank is 2 there and 4 here', adapted[0],
          small=tiny.LARGE, adapters=lora.LoraConfig(rank=4, dtype='int8'))  # fmt: skip


# -- refusals --------------------------------------------------------------------------------------


def refused(message, directory, **changes):
  """The run fails with one sentence and leaves every file as it was."""
  settings = tiny.settings(directory, **changes)
  before = {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}
  with pytest.raises((ValueError, FloatingPointError), match=message) as raised:
    tiny.train(**settings)
  assert '\n' not in str(raised.value)
  for path, content in before.items():
    assert path.read_bytes() == content
  return raised.value


def data(directory):
  task = tiny.task(directory)
  return Data(task=task, lengths=tiny.LENGTHS, batch_size=8, records_dir=str(directory / 'records'))


def claimed(directory):
  return (directory / 'run' / 'model.json').exists()


def test_a_large_model_of_another_vocabulary_is_refused(large, tmp_path):
  other = vocabularies.bytes_vocabulary()
  bytewise = tiny.SMALL.__class__(**{**vars(tiny.SMALL), 'vocab_size': 259})
  path = str(large[0] / 'run')
  error = refused(
    'they must be the same', tmp_path, small=bytewise, vocabulary=other, large_checkpoint_path=path
  )
  assert other.fingerprint[:12] in str(error)
  assert tiny.VOCABULARY.fingerprint[:12] in str(error)
  assert not claimed(tmp_path)  # the corrected command may have the directory
  refused('must be the same', tmp_path / '.', small=bytewise, vocabulary=other,
          initial_checkpoint_path=path)  # fmt: skip


def test_a_model_smaller_than_its_vocabulary_is_refused(tmp_path):
  refused('259: give the model at least as many, VOCAB_SIZE=259', tmp_path,
          vocabulary=vocabularies.bytes_vocabulary())  # fmt: skip


def test_a_directory_of_another_model_is_refused(large):
  refused('belongs to another run', large[0], train_steps=9)


def test_weights_of_another_shape_are_refused(large, tmp_path):
  refused('checkpoint of another model: params/decoder', tmp_path,
          initial_checkpoint_path=str(large[0] / 'run'))  # fmt: skip


def test_a_large_model_of_given_sizes_needs_its_weights(tmp_path):
  refused('name its LARGE_CHECKPOINT_PATH', tmp_path, large=tiny.LARGE)
  assert not claimed(tmp_path)


def test_a_large_model_of_other_sizes_than_its_checkpoint_s_is_refused(large, tmp_path):
  path, corpus = str(large[0] / 'run'), data(tmp_path).corpus(tiny.VOCABULARY, 'encoder_decoder')
  given = setup.LargeModel(tiny.LARGE, checkpoint_path=path)
  teacher, cache = train._teacher(given, tiny.SMALL, corpus, losses.cat_xent, 6)
  assert (teacher, cache) == (given, None)
  refused('emb_dim=32.* and not .*emb_dim=16', tmp_path, large=tiny.SMALL,
          large_checkpoint_path=path, loss=losses.cat_xent)  # fmt: skip


def test_a_missing_large_model_is_refused(tmp_path):
  refused('is not a run directory', tmp_path, large_checkpoint_path=str(tmp_path / 'nowhere'))


def blows_up(step):
  """A learning rate that spoils the parameters in steps 5 and 6."""
  return jax.numpy.where((step >= 4) & (step < 6), jax.numpy.nan, 1e-2)


def arrays_of(run):
  return [leaf for step in run.glob('checkpoint_*')
          for leaf in jax.tree.leaves(final_state(run.parent, int(step.name[11:])))]  # fmt: skip


def test_an_update_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
  error = refused(
    'step 5 was refused: .*update_norm nan. What is not finite of its update', tmp_path,
    learning_rate=blows_up, train_steps=8, save_every=2, log_every=100,
  )  # fmt: skip
  assert isinstance(error, FloatingPointError)
  assert store.locate(tmp_path / 'run')[1] == 4
  assert all(np.isfinite(leaf).all() for leaf in arrays_of(tmp_path / 'run'))


@pytest.mark.slow
def test_updates_that_are_not_finite_are_skipped_and_their_examples_written(tmp_path, caplog):
  """The optimizer has counted them, so that this schedule gets past its gap."""
  settings = tiny.settings(
    tmp_path, learning_rate=blows_up, train_steps=7, save_every=2, log_every=100,
    optimizer=optimizers.adamw, on_bad_step=stopping.go_on, keep=9,
  )  # fmt: skip
  history = tiny.train(**settings)
  assert [values.get('skipped') for values in history] == [None, None, 2, None]
  assert 'step 5 was refused' in caplog.text
  arrays = arrays_of(tmp_path / 'run')
  assert len(arrays) > 40
  assert all(np.isfinite(leaf).all() for leaf in arrays)
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'skipped.jsonl').open()]
  assert [(line['step'], line['update_norm']) for line in lines] == [
    (step, 'nan') for step in (5, 6)
  ]
  words = {row['id']: row['inputs'] for row in rows_of(settings['task'])}
  batches = corpus_of(settings).training(4, batch_size=16, seed=0)
  for line, batch in zip(lines, batches, strict=False):
    assert [words[name] for name in line['ids']] == [
      tiny.VOCABULARY.decode(tokens[tokens > 1]) for tokens in batch.encoder
    ]


def rows_of(task):
  return [row._asdict() for row in task.rows('train')]


def corpus_of(settings):
  return Corpus(
    settings['task'], tiny.VOCABULARY, 'encoder_decoder', tiny.LENGTHS, settings['records_dir']
  )


@pytest.mark.slow
def test_a_run_that_refuses_everything_ends_also_if_it_is_to_go_on(tmp_path):
  settings = tiny.settings(
    tmp_path, accept=lambda metrics: metrics['loss'] < 0, train_steps=200, log_every=25,
    on_bad_step=stopping.go_on,
  )  # fmt: skip
  with pytest.raises(FloatingPointError, match='Its update was not applied'):
    tiny.train(**settings)


def test_a_damaged_checkpoint_costs_its_steps_and_changes_nothing(large, tmp_path, caplog):
  """The run goes on from the one before, by name, and comes out bit by bit as if nothing were."""
  directory = tmp_path / 'damaged'
  shutil.copytree(large[0] / 'run', directory / 'run')
  settings = tiny.settings(
    tmp_path, model_dir=str(directory / 'run'), small=tiny.LARGE,
    validation=train.Validation(every=3, rows=20, decoded_rows=10),
  )  # fmt: skip
  newest = directory / 'run' / 'checkpoint_6'
  max(newest.rglob('*'), key=lambda path: path.stat().st_size).write_bytes(b'')
  history = tiny.train(**settings)
  assert 'checkpoint_6 is damaged: ' in caplog.text
  assert 'Going back to checkpoint_4.' in caplog.text
  assert history == large[1][-len(history) :]
  jax.tree.map(np.testing.assert_array_equal, final_state(directory), final_state(large[0]))


def test_the_same_run_twice_is_bitwise_equal(large, tmp_path):
  settings = tiny.settings(
    tmp_path, small=tiny.LARGE, validation=train.Validation(every=3, rows=20, decoded_rows=10)
  )
  assert tiny.train(**settings) == large[1]
  jax.tree.map(np.testing.assert_array_equal, final_state(tmp_path), final_state(large[0]))


@pytest.mark.slow
@pytest.mark.parametrize('devices', [2, 1])
def test_a_run_goes_on_on_fewer_devices(eight, tmp_path, devices):
  """8 -> 2 -> 1: the same state to the order in which floats are added."""
  directory, history = eight
  shutil.copytree(directory / 'run', tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'checkpoint_6')
  mesh = lambda: partitioning.make_mesh(fsdp=min(2, devices), devices=jax.devices()[:devices])
  resumed = tiny.train(**tiny.settings(tmp_path, mesh=mesh))
  assert [set(values) for values in resumed] == [set(history[-1])]
  np.testing.assert_allclose(resumed[-1]['loss'], history[-1]['loss'], rtol=1e-5)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
  jax.tree.map(close, final_state(tmp_path)['params'], final_state(directory)['params'])


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
  directory = tmp_path_factory.mktemp('eight')
  mesh = lambda: partitioning.make_mesh(fsdp=2, tensor=2)
  return directory, tiny.train(**tiny.settings(directory, mesh=mesh))


def test_a_directory_that_another_run_holds_is_refused(tmp_path):
  with locking.held(tmp_path / 'run'):
    error = refused_by_the_lock(tmp_path)
  assert f'is in use by process {os.getpid()} on ' in str(error)


def refused_by_the_lock(directory):
  with pytest.raises(BlockingIOError) as raised:
    tiny.train(**tiny.settings(directory))
  return raised.value


def test_a_batch_that_does_not_split_over_the_mesh_is_refused(tmp_path):
  refused('does not split over 8 devices', tmp_path, batch_size=12, mesh=partitioning.make_mesh)


@pytest.mark.slow
def test_a_ruined_checkpoint_leaves_the_one_before_it_and_says_so(tmp_path, caplog):
  """A finite update of step 4 that leaves parameters from which no step can be taken."""
  ruinous = lambda step: jnp.where(step == 3, 1e17, 1e-2)
  settings = tiny.settings(
    tmp_path, learning_rate=ruinous, train_steps=4, save_every=2, keep=1,
    optimizer=functools.partial(optimizers.adafactor, multiply_by_parameter_scale=False),
    validation=train.Validation(every=4),
  )  # fmt: skip
  tiny.train(**settings)
  assert re.search('validation loss of step 4 is (nan|inf)', caplog.text)
  assert sorted(path.name for path in (tmp_path / 'run').glob('checkpoint_*')) == [
    'checkpoint_2', 'checkpoint_4',
  ]  # fmt: skip
  settings['train_steps'] = 6
  with pytest.raises(FloatingPointError, match=r'remove that folder, .* from checkpoint_2\.'):
    tiny.train(**settings)
  shutil.rmtree(tmp_path / 'run' / 'checkpoint_4')
  with pytest.raises(FloatingPointError, match='validation loss of step 4'):
    tiny.train(**settings | {'on_nan_validation': stopping.stop})
  assert store.locate(tmp_path / 'run')[1] == 2  # nothing was saved after it


@pytest.mark.slow
def test_a_large_model_that_is_no_better_is_said_once(large, tmp_path, caplog):
  tiny.train(
    **tiny.settings(
      tmp_path, small=tiny.LARGE, initial_checkpoint_path=str(large[0] / 'run'),
      large_checkpoint_path=str(large[0] / 'run'), learning_rate=optimizers.constant(0.0),
      train_steps=2, validation=train.Validation(every=1),
    )
  )  # fmt: skip
  assert caplog.text.count('THE LARGE MODEL IS NOT BETTER') == 1
  assert 'no threshold can gain here' in caplog.text  # it is the small model itself
  values = metrics_log.read(tmp_path / 'run')[2]
  for name in ('accuracy', 'row_accuracy'):
    assert values[f'validation/large_{name}'] == values[f'validation/{name}']


@pytest.mark.slow
def test_a_task_without_a_validation_split_is_trained_without(tmp_path):
  paths = tiny.write_rows(tmp_path)
  task = local.local_jsonl('backwards', {'train': paths['train']})
  settings = tiny.settings(tmp_path, task=task, train_steps=1)
  with pytest.raises(ValueError, match=r'backwards has train.*VALIDATE_EVERY=0'):
    tiny.train(**settings, validation=train.Validation())
  tiny.train(**settings, validation=train.Validation(every=0))
