import os
import threading

import numpy as np
import pytest

from cascades.inference import stream_files
from cascades.inference.stream_files import CheckpointPace, SeenIds, StreamRow


def test_ids_are_new_once_wherever_they_are_stored(monkeypatch):
  monkeypatch.setattr(stream_files, 'LEAST_SORTED', 16)
  rng, seen, known = np.random.default_rng(0), SeenIds(), set()
  for identity in map(str, rng.integers(400, size=2000)):
    assert seen.add(identity) == (identity not in known)
    known.add(identity)
  assert len(seen._recent) < len(known) // 2


def test_a_repeated_id_is_left_out_and_named_and_rows_without_one_are_numbered():
  rows = [StreamRow('a', id='x'), None, StreamRow('b'), StreamRow('c', id='x'), StreamRow('d')]
  repeated = []
  pairs = list(stream_files.identified(rows, lambda *pair: repeated.append(pair)))
  assert [pair and pair[0] for pair in pairs] == ['x', None, '2', '4']
  assert repeated == [(3, 'x')]


def test_checkpoints_take_their_share_of_the_time_at_most():
  """A query takes 1 second and a checkpoint 5: every 10 queries at first, then every 50."""
  now, spent, written = 0.0, 0.0, []
  pace = CheckpointPace(10, 0.1, clock=lambda: now)
  for done in range(1, 201):
    now += 1
    if pace.due(done):
      with pace.measured():
        now += 5
        spent += 5
      written.append(done)
  assert written == [10, 60, 110, 160]
  assert spent / now <= 0.1


@pytest.mark.parametrize('text', [b'', b'{"inputs": "a"}\n', b'\n{"inputs": "a"}\n{"inputs": "b"}'])
def test_standard_input_gives_the_rows_of_a_file(text, tmp_path, monkeypatch):
  (tmp_path / 'rows').write_bytes(text)
  reading, writing = os.pipe()
  read = os.read
  monkeypatch.setattr(os, 'read', lambda descriptor, size: read(reading, min(size, 7)))
  thread = threading.Thread(target=lambda: (os.write(writing, text), os.close(writing)))
  thread.start()
  arrived = list(stream_files.rows('-'))
  thread.join()
  os.close(reading)
  assert [row for row in arrived if row] == list(stream_files.rows(str(tmp_path / 'rows')))
