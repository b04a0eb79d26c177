"""Rates with a clock of our own; lines; event files read back without TensorFlow."""

import struct

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from cascades import progress


def meter(total, *times):
  return progress.Meter(total, iter(times).__next__)


def test_rates_are_those_since_the_last_update_and_eta_since_the_first():
  one = meter(100, 50.0, 60.0, 65.0)
  assert one.update(1, 999) is None  # compiling counts in no rate
  assert one.update(21, 400) == progress.Rates(2.0, 40.0, 79 * 10 / 20)
  assert one.update(41, 400) == progress.Rates(4.0, 80.0, 59 * 15 / 40)


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


def read_events(directory):
  """The scalars of all event files: records are length, its checksum, bytes, their checksum."""
  found = []
  for path in sorted(epath.Path(directory).iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
      data = data[16 + length :]
  return found


def test_events_are_written_where_tensorboard_reads_them(tmp_path):
  with progress.Events(tmp_path / 'train') as events:
    events.write(5, {'loss': 0.5, 'validation/loss': 0.25})
    assert read_events(tmp_path / 'train')  # there before the run has ended
  assert read_events(tmp_path / 'train') == [(5, 'loss', 0.5), (5, 'validation/loss', 0.25)]
