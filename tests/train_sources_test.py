"""Training on answers of all three sources: by tables and samples, and through an early end."""

import dataclasses
import functools
import json
import logging
import os
import signal

import jax
import numpy as np
import pytest

from cascades import losses
from cascades.data.answer_sources import AnswerSources
from cascades.runtime import stopping
from cascades.training import metrics_log
from tests import tiny
from tests.starts_test import MODEL, Newcomer, quiet
from tests.train_test import final_state

pytestmark = pytest.mark.slow

SEED = 31  # all sources come among its first four steps, and after them


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
  """Settings of a run beside a large model, whose own answers are the table."""
  directory = tmp_path_factory.mktemp('large')
  tiny.train(**tiny.settings(directory, small=tiny.LARGE, train_steps=2))
  tiny.infer(
    checkpoint_path=str(directory / 'run'),
    infer_output_dir=str(directory / 'answers'),
    task=tiny.task(directory),
    task_feature_lengths=tiny.LENGTHS,
    batch_size=32,
    splits=('train',),
    temperature=1.0,
    mesh=tiny.one_device,
    records_dir=str(directory / 'records'),
  )
  sources = AnswerSources(
    fixed_fraction=0.3, on_policy_fraction=0.5, large_answers=str(directory / 'answers'),
    sample_every=2,
  )  # fmt: skip
  return tiny.settings(
    directory, loss=losses.dist, large_checkpoint_path=str(directory / 'run'), sources=sources,
    train_steps=8, log_every=1, seed=SEED,
  )  # fmt: skip


class Terminate(logging.Handler):
  """Sends SIGTERM when step 3 is logged."""

  def emit(self, record):
    if record.getMessage().startswith('step 3/'):
      os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_ended_amid_its_samples_resumes_bit_by_bit(settings, tmp_path, caplog):
  """It ends after the last step of these samples, and the resumed run draws the next ones."""
  caplog.set_level(logging.INFO, 'cascades')
  settings['model_dir'] = str(tmp_path / 'straight' / 'run')
  history = tiny.train(**settings)
  sources, count = settings['sources'], settings['train_steps']
  drawn = [sources.of_step(SEED, step) for step in range(count)]
  assert {*drawn[:4]} == {*drawn[4:]} == {'fixed', 'on_policy', 'target_generated'}
  assert [next(name for name in {*drawn} if values[f'data/{name}']) for values in history] == drawn
  assert [values.get('data/sample_age') for values in history] == [
    step % 2 if source == 'on_policy' else None for step, source in enumerate(drawn)
  ]
  assert (
    metrics_log.read(tmp_path / 'straight' / 'run')[1]['data/fixed'] == history[0]['data/fixed']
  )

  settings['model_dir'] = str(tmp_path / 'ended' / 'run')
  logger, handler = logging.getLogger('cascades.training.run_log'), Terminate()
  logger.addHandler(handler)
  try:
    with pytest.raises(stopping.Preempted) as ended:
      tiny.train(**settings)
  finally:
    logger.removeHandler(handler)
  assert 'ended by SIGTERM after step 4, which is saved' in ended.value.message
  assert tiny.train(**settings) == history[4:]
  states = [final_state(tmp_path / name, count) for name in ('straight', 'ended')]
  jax.tree.map(np.testing.assert_array_equal, *states)

  settings |= {'sources': dataclasses.replace(sources, sample_every=1), 'train_steps': 12}
  with pytest.raises(ValueError, match=r'SAMPLE_EVERY is 2 there and 1 here'):
    tiny.train(**settings)


def test_the_commands_of_the_documentation_train_on_answers_of_both_models(tmp_path):
  newcomer = Newcomer(tmp_path)
  assert quiet(newcomer.train('runs/large'))
  answers = ('--gin.INFER_OUTPUT_DIR=runs/large/answers', "--gin.SPLITS=['train']")
  assert quiet(
    newcomer.run(
      'infer', '--gin_file=runs/infer.gin', *newcomer.data, '--gin.CHECKPOINT_PATH=runs/large',
      *answers, '--gin.TEMPERATURE=1',
    )
  )  # fmt: skip
  train = functools.partial(
    newcomer.run, 'train', '--gin_file=runs/train.gin', *newcomer.data, *MODEL,
    '--gin.TRAIN_STEPS=12', '--gin.BATCH_SIZE=8', '--gin.LEARNING_RATE=1e-3',
    '--gin.VALIDATE_EVERY=0', '--gin.LARGE_CHECKPOINT_PATH=runs/large',
    '--gin.LOSS=@losses.cat_dist', '--gin.FIXED_FRACTION=0.3', '--gin.ON_POLICY_FRACTION=0.5',
    '--gin.SAMPLE_TEMPERATURE=0.7',
  )  # fmt: skip
  refused = train('--gin.MODEL_DIR=runs/small')
  assert refused.returncode == 1
  assert 'leave 0.35 of the steps to answers of the large model' in refused.stderr
  assert 'LARGE_ANSWERS' in refused.stderr
  trained = train('--gin.MODEL_DIR=runs/small', '--gin.LARGE_ANSWERS=runs/large/answers')
  assert quiet(trained)
  assert 'data/on_policy' in trained.stdout
  (entry,) = json.loads((tmp_path / 'runs' / 'small' / 'settings.json').read_text())
  assert entry['settings']['SAMPLER']['temperature'] == 0.7
  assert entry['settings']['LARGE_ANSWERS']['identity']
  misspelled = train('--gin.MODEL_DIR=runs/other', '--gin.FIXED_FRACTION=often')
  assert misspelled.returncode == 1
  assert 'FIXED_FRACTION' in misspelled.stderr
