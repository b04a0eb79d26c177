"""Rates with a clock of our own; lines; event files read back without TensorFlow."""

import pytest

from cascades.runtime import progress
from cascades.runtime.progress import read_events


def meter(total, *times):
  return progress.Meter(total, iter(times).__next__)


def test_rates_are_those_since_the_last_update_and_eta_since_the_first():
  one = meter(100, 50.0, 60.0, 65.0)
  assert one.update(1, 999) is None  # compiling counts in no rate
  assert one.update(21, 400) == progress.Rates(2.0, 40.0, 79 * 10 / 20)
  assert one.update(41, 400) == progress.Rates(4.0, 80.0, 59 * 15 / 40)


def test_a_first_step_that_is_logged_at_once_has_no_rates():
  one = meter(100, 50.0, 51.0, 61.0)
  assert one.update(40, 999) is None
  assert one.update(40, 0) is None
  assert one.update(50, 400) == progress.Rates(1.0, 40.0, pytest.approx(50 * 11 / 10))


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.4, '0 s'), (59, '59 s'), (61, '1:01'), (3600, '1:00:00'), (360_061, '4 d 04:01')],
)
def test_durations_read_well(seconds, text):
  assert progress.format_duration(seconds) == text


@pytest.mark.parametrize(
  ('count', 'text'), [(9.5, '9.5'), (950, '950'), (12_345, '12.3k'), (4.56e6, '4.56M'), (7e9, '7G')]
)
def test_counts_read_well(count, text):
  assert progress.format_count(count) == text


def test_a_line_names_every_number():
  rates = progress.Rates(5.123, 12_345.0, 156.2)
  line = progress.format_line(7, 1000, {'loss': 0.81234, 'lr': 1e-5}, rates)
  assert line == ('step    7/1000  loss 0.8123  lr 1.00e-05  12.3k tok/s  5.12 step/s  ETA 2:36')
  assert progress.format_line(1, 2, {}, None, unit='row') == 'row 1/2'


def test_events_are_written_where_tensorboard_reads_them(tmp_path):
  with progress.Events(tmp_path / 'train') as events:
    events.write(5, {'loss': 0.5, 'validation/loss': 0.25})
    assert read_events(tmp_path / 'train')  # there before the run has ended
  assert read_events(tmp_path / 'train') == [(5, 'loss', 0.5), (5, 'validation/loss', 0.25)]


def test_half_an_event_is_not_read(tmp_path):
  with progress.Events(tmp_path) as events:
    events.write(1, {'loss': 0.5})
    events.write(2, {'loss': 0.25})
  (file,) = tmp_path.iterdir()
  whole = file.read_bytes()
  for cut in (1, 5, 30):
    file.write_bytes(whole[:-cut])
    assert read_events(tmp_path) == [(1, 'loss', 0.5)]
  assert read_events(tmp_path / 'nothing') == []


@pytest.mark.parametrize(
  ('count', 'text'),
  [
    (512, '512 B'),
    (1536, '1.5 KiB'),
    (257 << 20, '257 MiB'),
    (1010 << 20, '1010 MiB'),
    (16 << 30, '16 GiB'),
  ],
)
def test_bytes_read_well(count, text):
  assert progress.format_bytes(count) == text


def test_the_start_of_the_process_is_before_that_of_this_test():
  first = progress.seconds_since_start()
  assert 0 < first <= progress.seconds_since_start() < 1e6


def test_notes_end_a_line():
  rates = progress.Rates(1.0, 1.0, 1.0)
  line = progress.format_line(1, 2, {}, rates, notes=['MFU 41.0%', 'memory 1 GiB'])
  assert line.endswith('ETA 1 s  MFU 41.0%  memory 1 GiB')
