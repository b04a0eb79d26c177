"""The demo's stages: in order, once each, and on from where they stopped."""

import subprocess
import types

import pytest

from launch import demo


@pytest.fixture
def launched(tmp_path, monkeypatch):
  """A launcher whose programs only note that they ran, or fail where told to."""
  ran, failing = [], set()

  def fake(command, **_):
    ran.append(command[2].removeprefix('cascades.'))
    return types.SimpleNamespace(returncode=int(len(ran) in failing))

  monkeypatch.setattr(subprocess, 'run', fake)
  monkeypatch.setattr(demo, 'DIRECTORY', types.SimpleNamespace(value=str(tmp_path / 'demo')))
  monkeypatch.setattr(demo, '_BINDINGS', types.SimpleNamespace(value=['SEED=3']))
  return ran, failing


PROGRAMS = ['train'] * 5 + ['infer'] * 5 + ['evaluate']


def test_stages_run_in_order_and_once(launched):
  ran, _ = launched
  demo.main(['demo'])
  assert ran == PROGRAMS
  demo.main(['demo'])
  assert ran == PROGRAMS


def test_an_interrupted_demo_goes_on_with_the_stage_that_failed(launched):
  ran, failing = launched
  failing.add(4)
  with pytest.raises(SystemExit, match='train dist did not finish'):
    demo.main(['demo'])
  demo.main(['demo'])
  assert ran == [*PROGRAMS[:4], *PROGRAMS[3:]]


def test_a_stage_of_another_command_is_not_taken_for_this_one(launched, monkeypatch):
  demo.main(['demo'])
  monkeypatch.setattr(demo, '_BINDINGS', types.SimpleNamespace(value=['SEED=4']))
  with pytest.raises(SystemExit, match='train large finished under another recipe'):
    demo.main(['demo'])


def test_only_losses_that_ask_the_large_model_get_one():
  stages = {stage.name: stage for stage in demo.all_stages('there', {'SEED': '3'})}
  assert 'LARGE_CHECKPOINT_PATH' not in stages['train xent'].bindings
  assert stages['train cat_xent'].bindings['LARGE_CHECKPOINT_PATH'] == 'there/large'
  assert {stages[f'train {name}'].bindings['SEED'] for name in demo.MODELS} == {'3'}
