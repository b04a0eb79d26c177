"""The command `cascades`."""

import os
import subprocess
import sys

import pytest

from cascades import __main__ as command

PROGRAMS = command.programs()


def run(*arguments, home):
  return subprocess.run(
    [sys.executable, '-m', 'cascades', *arguments],
    capture_output=True,
    text=True,
    env=os.environ | {'HOME': str(home)},
    check=False,
  )


@pytest.mark.parametrize('arguments', [(), ('--help',), ('-h',)])
def test_help_lists_every_program_with_its_purpose(arguments, tmp_path):
  result = run(*arguments, home=tmp_path)
  assert result.returncode == 0
  for name, summary in PROGRAMS.items():
    assert f'  {name:14}{summary}' in result.stdout
    assert summary.endswith('.')
  assert {'train', 'infer', 'evaluate', 'browse_tasks'} <= PROGRAMS.keys()
  assert not {'cli', 'losses', '__main__'} & PROGRAMS.keys()


def test_a_program_gets_the_other_arguments(tmp_path):
  result = run('browse_tasks', 'show', 'cmudict_g2p', '-n', '1', home=tmp_path)
  assert (result.returncode, result.stderr) == (0, '')
  assert 'cmudict_g2p' in result.stdout


def test_an_error_of_a_program_is_the_command_s_error(tmp_path):
  result = run('evaluate', '--gin_file=runs/evaluate.gin', home=tmp_path)
  assert result.returncode == 1
  assert 'is required' in result.stderr


def test_a_misspelled_program_is_answered_with_the_nearest(tmp_path):
  result = run('trian', home=tmp_path)
  assert result.returncode == 2
  assert "no program 'trian'. Did you mean train?" in result.stderr


def test_what_needs_a_checkout_is_named(tmp_path):
  result = run('launch.tpu_vm', home=tmp_path)
  assert result.returncode == 1
  assert 'run `python -m launch.tpu_vm` in a checkout' in result.stderr
