"""Run directories in an object store: train, infer and evaluate with every path on `gs://`."""

import os

import pytest
from etils.epath import gpath
from orbax.checkpoint._src.path import gcs_utils

from cascades import evaluate
from cascades.checkpoints import store
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from tests import object_store, tiny
from tests.runtime.progress_test import read_events

BUCKET = 'gs://some-bucket'


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  root = tmp_path / 'cloud'
  (root / 'some-bucket').mkdir(parents=True)
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(root))
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  monkeypatch.setattr(gcs_utils, 'get_bucket', lambda name: None)
  with object_store.serve(root) as environment:
    for name, value in environment.items():
      monkeypatch.setitem(os.environ, name, value)
    yield root / 'some-bucket'


def test_the_whole_job_runs_in_an_object_store(bucket, tmp_path):
  common = {'task': tiny.task(tmp_path), 'records_dir': str(tmp_path / 'records')}
  for name, config in (('large', tiny.LARGE), ('small', tiny.SMALL)):
    settings = tiny.settings(tmp_path, small=config, model_dir=f'{BUCKET}/{name}', train_steps=4)
    tiny.train(**settings)
    tiny.infer(
      checkpoint_path=f'{BUCKET}/{name}',
      infer_output_dir=f'{BUCKET}/{name}/predictions',
      task_feature_lengths=tiny.LENGTHS,
      mesh=tiny.one_device,
      batch_size=16,
      **common,
    )
  comparison = evaluate.evaluate(
    Tables({'small': f'{BUCKET}/small/predictions'}, f'{BUCKET}/large/predictions'),
    f'{BUCKET}/evaluation',
    settings=Settings(resamples=50),
  )
  assert comparison.cascades
  assert '<html' in (bucket / 'evaluation' / 'report.html').read_text()
  assert (bucket / 'large' / 'checkpoint_4' / 'commit_success.txt').exists()
  assert read_events(f'{BUCKET}/large/train')
  # A longer run goes on from the checkpoint in the store, and removes only an unfinished one.
  for name in ('checkpoint_5/state', 'huggingface', 'damaged_checkpoint_2'):
    (bucket / 'small' / name).mkdir(parents=True)
    (bucket / 'small' / name / 'file').write_text('something')
  settings = tiny.settings(tmp_path, model_dir=f'{BUCKET}/small', train_steps=6)
  history = tiny.train(**settings)
  assert len(history) == 1
  assert store.locate(f'{BUCKET}/small')[1] == 6
  steps = {step for step, _, _ in read_events(f'{BUCKET}/small/train')}
  assert {4, 6} <= steps
  names = {path.name for path in (bucket / 'small').iterdir()}
  assert {'huggingface', 'damaged_checkpoint_2', 'checkpoint_4', 'checkpoint_6'} <= names
  assert 'checkpoint_5' not in names
