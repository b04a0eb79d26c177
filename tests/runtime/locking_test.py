"""One run at a time in a directory, and no lock that outlives its process."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from etils.epath import gpath

from cascades.runtime import locking

HOLD = """
import sys, time
from cascades.runtime import locking
with locking.held(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'held\n'
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_the_second_process_is_refused_and_told_who_holds_the_directory(tmp_path, holder):
  with pytest.raises(BlockingIOError) as refused, locking.held(tmp_path):
    pytest.fail('two processes hold one directory')
  message = str(refused.value)
  assert (
    f'{tmp_path} is in use by process {holder.pid} on {socket.gethostname()} since 2' in message
  )
  assert 'choose another directory' in message


def test_a_killed_process_holds_nothing(tmp_path, holder):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert (tmp_path / locking.LOCK).exists()
  with locking.held(tmp_path):
    assert f'"pid": {os.getpid()}' in (tmp_path / locking.LOCK).read_text()


def test_the_end_of_a_run_leaves_no_file_and_the_next_may_start(tmp_path):
  for _ in range(2):
    with locking.held(tmp_path / 'new'):
      assert [path.name for path in (tmp_path / 'new').iterdir()] == [locking.LOCK]
    assert not list((tmp_path / 'new').iterdir())


def test_a_lock_whose_file_was_removed_under_it_is_taken_anew(tmp_path, monkeypatch):
  """The former holder unlinks between this process's open and its flock."""
  flock, calls = locking.fcntl.flock, []

  def unlinked_first(file, how):
    if not calls:
      (tmp_path / locking.LOCK).unlink()
    calls.append(how)
    flock(file, how)

  monkeypatch.setattr(locking.fcntl, 'flock', unlinked_first)
  with locking.held(tmp_path):
    assert len(calls) == 2
    assert (tmp_path / locking.LOCK).exists()


def test_where_locks_are_not_to_be_had_the_run_starts_and_says_so(tmp_path, monkeypatch, caplog):
  def unsupported(*_):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(locking.fcntl, 'flock', unsupported)
  with locking.held(tmp_path):
    assert 'cannot be locked' in caplog.text


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
  (tmp_path / 'mine').write_text('precious')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / locking.LOCK).symlink_to(tmp_path / 'mine')
  with (
    pytest.raises(OSError, match=r'it is a symbolic link, which is not followed.*lock'),
    locking.held(tmp_path / 'run'),
  ):
    pytest.fail('the link was followed')
  assert (tmp_path / 'mine').read_text() == 'precious'


def test_a_lock_that_cannot_be_removed_hides_no_error(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise PermissionError(13, 'Permission denied', '.lock')

  def fail():
    raise ValueError('the error of the run')

  monkeypatch.setattr(gpath._GPath, 'unlink', refuse)
  with pytest.raises(ValueError, match='the error of the run'), locking.held(tmp_path):
    fail()


def test_object_stores_are_not_covered():
  with locking.held('gs://bucket/run'):
    pass
