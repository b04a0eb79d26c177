"""A trained run directory becomes the start of a smaller one, through the other programs."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pytest

from cascades import prune
from cascades.checkpoints import store
from cascades.models import configs, pruning
from tests import tiny

LARGE = dataclasses.replace(tiny.LARGE, num_encoder_layers=2, num_decoder_layers=2)
LAYERS = functools.partial(pruning.ends, head=1)


@pytest.fixture(scope='module')
def large(tmp_path_factory):
  folder = tmp_path_factory.mktemp('large')
  tiny.train(**tiny.settings(folder, small=LARGE, train_steps=2))
  (folder / 'run' / 'huggingface').mkdir()
  (folder / 'run' / 'huggingface' / 'config.json').write_text('{}')
  return folder / 'run'


def _prune(large, directory, **changes):
  settings = {
    'layers': LAYERS,
    'mlp_dim': 48,
    'task': tiny.task(large.parent),
    'task_feature_lengths': tiny.LENGTHS,
    'batch_size': 8,
    'task_rows': 16,
    'mesh': tiny.one_device,
    'records_dir': str(large.parent / 'records'),
  }
  prune.prune(str(large), str(directory), **tiny.arguments(prune.prune, **settings | changes))
  return directory


@pytest.mark.slow
def test_what_is_kept_is_written_down_and_can_be_trained(large, tmp_path):
  small = _prune(large, tmp_path / 'small')
  described = store.read_description(small)
  assert described['model']['mlp_dim'] == 48
  manifest = json.loads((small / store.MANIFEST).read_text())
  assert manifest['layers'] == {'encoder': [0], 'decoder': [0]}
  assert (manifest['task'], manifest['step']) == ('backwards', 2)
  assert manifest['checkpoint_identity'] == store.identity(large, 2)
  assert (small / 'huggingface' / 'config.json').exists()
  history = tiny.train(
    **tiny.settings(
      tmp_path,
      small=configs.from_description(described['model']),
      initial_checkpoint_path=str(small),
      large_checkpoint_path=str(large),
    )
  )
  assert np.isfinite([values['loss'] for values in history]).all()


def test_a_second_run_changes_nothing_and_another_choice_is_refused(large, tmp_path, caplog):
  small = _prune(large, tmp_path / 'small')
  before = store.identity(small, 0)
  _prune(large, small)
  assert store.identity(small, 0) == before
  with pytest.raises(store.CheckpointError, match='model mlp_dim is 48 there and 32 here'):
    _prune(large, small, mlp_dim=32)
  other = functools.partial(pruning.ends, head=0, tail=1)
  with pytest.raises(store.CheckpointError, match='layers encoder is'):
    _prune(large, small, layers=other)
  _prune(large, small, layers=other, overwrite=True, mlp_dim=None)
  assert json.loads((small / store.MANIFEST).read_text())['layers']['encoder'] == [1]
  with pytest.raises(store.CheckpointError, match='holds the source'):
    _prune(large, large, overwrite=True)


def test_narrowing_needs_a_task(large, tmp_path):
  with pytest.raises(ValueError, match='MLP_DIM needs TASK'):
    _prune(large, tmp_path / 'small', task=None)
