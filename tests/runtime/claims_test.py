"""Claims: one holder a share, lost shares taken up, and nothing left behind."""

import collections
import json
import os
import pathlib
import threading
import time

import pytest

from cascades.runtime import claims, files
from tests import object_store

LEASE = 0.6


def names(number):
  return f'share-{number}'


def work(directory, count, written, *, lease=LEASE, wait=True, seconds=0.0):
  """Do the shares as a program does: each ends with a file."""
  folder = pathlib.Path(directory)
  done = lambda numbers: {n for n in numbers if (folder / f'{n}.txt').exists()}
  left = dict.fromkeys(range(count))
  with claims.Claims(folder, lease) as held:
    for number, _ in held.shares(left, names, done, wait=wait):
      time.sleep(seconds)
      written.append(number)
      files.write(folder / f'{number}.txt', 'x')
  return left


def left_by(directory, name, *, host='elsewhere', pid=1, number=1):
  path = directory / f'.{name}.claim-{number}'
  path.write_text(json.dumps({'host': host, 'pid': pid, 'start': '1'}))
  return path


def test_one_program_does_all_shares_in_order_and_leaves_no_claim(tmp_path):
  written = []
  assert work(tmp_path, 4, written) == {}
  assert written == [0, 1, 2, 3]
  assert sorted(path.name for path in tmp_path.iterdir()) == [f'{n}.txt' for n in range(4)]


def test_programs_at_once_do_every_share_once(tmp_path):
  written = []
  programs = [
    threading.Thread(target=work, args=(tmp_path, 30, written), kwargs={'seconds': 0.005})
    for _ in range(4)
  ]
  for program in programs:
    program.start()
  for program in programs:
    program.join(60)
  assert sorted(written) == list(range(30))
  assert len(list(tmp_path.iterdir())) == 30


def test_a_share_that_another_program_holds_is_left_over_or_waited_for(tmp_path):
  written, others = [], []
  with claims.Claims(tmp_path, LEASE) as other:
    assert other.take('share-1')
    assert list(work(tmp_path, 3, written, wait=False)) == [1]
    thread = threading.Thread(target=work, args=(tmp_path, 3, others))
    thread.start()
    time.sleep(2.5 * LEASE)  # the holder gives signs of life
    assert others == []
  thread.join(30)
  assert (written, others) == ([0, 2], [1])


def test_the_claim_of_a_silent_program_is_taken_up_after_a_lease(tmp_path, caplog):
  left_by(tmp_path, 'share-0')
  written, began = [], time.monotonic()
  with caplog.at_level('INFO', 'cascades'):
    work(tmp_path, 2, written)
  assert written == [1, 0]
  assert time.monotonic() - began >= LEASE
  assert 'taking up share-0, which another program has left' in caplog.text
  assert not claims.claimed(tmp_path)


def test_a_program_of_this_machine_that_has_ended_is_not_waited_for(tmp_path):
  left_by(tmp_path, 'share-0', host=os.uname().nodename, pid=os.getpid())  # of another start
  written, began = [], time.monotonic()
  work(tmp_path, 2, written, lease=60.0)
  assert written == [0, 1]
  assert time.monotonic() - began < 10


@pytest.mark.parametrize('content', ['', '{', '[]', '{"host": 1}'], ids=repr)
def test_a_claim_that_says_nothing_ends_after_a_lease(tmp_path, content):
  (tmp_path / '.share-0.claim-1').write_text(content)
  written = []
  work(tmp_path, 1, written)
  assert written == [0]


def test_of_those_that_see_a_lost_share_one_takes_it_up(tmp_path):
  left_by(tmp_path, 'share-0', number=3)
  taken = collections.Counter()

  def look(number):
    with claims.Claims(tmp_path, LEASE) as held:
      held.take('share-0')
      time.sleep(1.5 * LEASE)
      taken[number] += held.take('share-0')
      time.sleep(LEASE)

  threads = [threading.Thread(target=look, args=(number,)) for number in range(5)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sum(taken.values()) == 1


def test_a_program_that_was_taken_for_dead_does_not_revive_its_claim(tmp_path):
  with claims.Claims(tmp_path, LEASE) as slow:
    assert slow.take('share-0')
    (tmp_path / '.share-0.claim-1').unlink()  # by the program that took it up and finished
    time.sleep(LEASE)
    assert not claims.claimed(tmp_path)


def test_claims_of_killed_programs_on_finished_shares_are_cleared(tmp_path):
  left_by(tmp_path, 'share-0')
  left_by(tmp_path, 'share-0', number=2)
  other = left_by(tmp_path, 'else')
  with claims.Claims(tmp_path, LEASE) as held:
    held.clear(['share-0', 'share-1'])
  assert list(tmp_path.iterdir()) == [other]


def test_one_program_at_a_time_is_alone(tmp_path):
  inside, most = [], []

  def enter():
    with claims.alone(tmp_path, 'begin', LEASE):
      inside.append(1)
      most.append(len(inside))
      time.sleep(0.05)
      inside.pop()

  threads = [threading.Thread(target=enter) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] * 4


def test_programs_divide_the_shares_of_an_object_store(tmp_path, monkeypatch):
  """A share may be done twice there; all are done, and no claim is left."""
  from etils import epath
  from etils.epath import gpath

  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(tmp_path))
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  folder, written = epath.Path('gs://bucket/table'), []
  done = lambda numbers: {n for n in numbers if (folder / f'{n}.txt').exists()}

  def program():
    with claims.Claims(folder, 5.0) as held:
      for number, _ in held.shares(dict.fromkeys(range(12)), names, done, wait=True):
        time.sleep(0.02)
        written.append(number)
        files.write(folder / f'{number}.txt', 'x')

  threads = [threading.Thread(target=program) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert set(written) == set(range(12))
  assert len(written) <= 16
  assert len(list((tmp_path / 'bucket/table').iterdir())) == 12


def test_a_lease_is_positive(tmp_path):
  with pytest.raises(ValueError, match='LEASE'):
    claims.Claims(tmp_path, 0.0)
