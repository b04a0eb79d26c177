"""JSON lines of metrics: every report once, whatever a run goes through."""

import json
import math
import struct

import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from cascades.runtime import files, progress
from cascades.training import metrics_log
from cascades.training.metrics_log import METRICS, MetricsLog


@pytest.fixture
def run(tmp_path):
  return epath.Path(tmp_path)


def write(run, steps, *, first_step=0, **values):
  with MetricsLog(run, first_step=first_step) as log:
    for step in steps:
      log.write(step, {'loss': 1.0 / step, **values})


def test_a_report_is_a_line_and_an_event(run):
  with MetricsLog(run) as log:
    log.write(5, {'loss': 0.5, 'validation/loss': 0.25})
    lines = (run / METRICS).read_text().splitlines()  # before the run has ended
  assert [json.loads(line) for line in lines] == [{'step': 5, 'loss': 0.5, 'validation/loss': 0.25}]
  assert metrics_log.read(run) == {5: {'loss': 0.5, 'validation/loss': 0.25}}
  assert progress.read_events(run / 'train') == [(5, 'loss', 0.5), (5, 'validation/loss', 0.25)]


def test_steps_that_are_taken_again_are_logged_once(run):
  write(run, [2, 4, 6, 7], attempt=1.0)
  write(run, [6, 8], first_step=4, attempt=2.0)
  attempts = {step: values['attempt'] for step, values in metrics_log.read(run).items()}
  assert attempts == {2: 1.0, 4: 1.0, 6: 2.0, 8: 2.0}
  assert len((run / METRICS).read_text().splitlines()) == 4


def test_a_line_that_was_cut_costs_no_other(run):
  write(run, [2, 4])
  with open(run / METRICS, 'a') as file:
    file.write('{"step": 6, "lo')
  assert list(metrics_log.read(run)) == [2, 4]
  write(run, [6], first_step=4)
  assert list(metrics_log.read(run)) == [2, 4, 6]


def test_lines_after_a_full_disk_are_whole(run, monkeypatch):
  with MetricsLog(run) as log:
    log.write(2, {'loss': 1.0})
    with monkeypatch.context() as patched:
      opened = files.open_local
      patched.setattr(files, 'open_local', lambda *given: Torn(opened(*given)))
      with pytest.raises(OSError, match='no space left'):
        log.write(4, {'loss': 1.0})
    log.write(6, {'loss': 1.0})
  assert list(metrics_log.read(run)) == [2, 6]


class Torn:
  """A file on a disk that is full after ten more characters."""

  def __init__(self, file):
    self.file = file

  def __getattr__(self, name):
    return getattr(self.file, name)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.file.close()

  def write(self, data):
    self.file.write(data[:10])
    raise OSError('no space left')


def test_what_json_has_no_number_for_comes_back(run):
  write(run, [1], loss=math.nan, grad_norm=math.inf)
  json.loads((run / METRICS).read_text(), parse_constant=pytest.fail)
  values = metrics_log.read(run)[1]
  assert math.isnan(values['loss'])
  assert values['grad_norm'] == math.inf


def test_a_run_without_lines_is_read_from_its_event_files_and_continued(run):
  with progress.Events(run / 'train') as events:
    for step, loss in ((2, 1.0), (4, 0.5), (6, 9.0)):
      events.write(step, {'loss': loss})
  with progress.Events(run / 'train', first_step=4) as events:
    events.write(6, {'loss': 0.25})
  assert metrics_log.read(run) == {2: {'loss': 1.0}, 4: {'loss': 0.5}, 6: {'loss': 0.25}}
  write(run, [6], first_step=4)
  assert list(metrics_log.read(run)) == [2, 4, 6]
  assert (run / METRICS).exists()


def test_a_folder_that_is_no_run_has_no_metrics(run):
  assert metrics_log.read(run / 'nowhere') == {}


def as_tensorboard_shows(directory):
  """Steps of each curve: a start at a step drops what came before of that step or later."""
  shown = []
  for file in sorted(directory.iterdir()):
    data = file.read_bytes()
    while len(data) >= 12 and len(data) >= 16 + (length := struct.unpack('<Q', data[:8])[0]):
      event = event_pb2.Event.FromString(data[12 : 12 + length])
      if event.session_log.status == event_pb2.SessionLog.SessionStatus.START:
        shown = [(step, tag) for step, tag in shown if step < event.step]
      shown += [(event.step, value.tag) for value in event.summary.value]
      data = data[16 + length :]
  return {tag: [step for step, name in shown if name == tag] for _, tag in shown}


def test_curves_hold_every_step_once_after_resumes_and_kills(run):
  """Also the checkpoint's own point; a kill at 24 leaves 22 and 24, which are taken again."""
  values = {'validation/loss': 2.0}
  write(run, [5, 10, 15, 20, 22, 24], **values)
  (torn,) = (run / 'train').iterdir()
  torn.write_bytes(torn.read_bytes()[:-7])  # killed while it wrote
  write(run, [22, 24, 30], first_step=20, **values)
  write(run, [35], first_step=30, **values)
  write(run, [21, 25], first_step=20, **values)  # back to an earlier checkpoint
  expected = [5, 10, 15, 20, 21, 25]
  assert as_tensorboard_shows(run / 'train') == {'loss': expected, 'validation/loss': expected}
  assert list(metrics_log.read(run)) == expected
