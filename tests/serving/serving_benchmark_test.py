"""The benchmark of serving on a tiny model: it measures what it names, whatever the speed."""

import pytest

from benchmarks import serving
from cascades.serving.slots import Room
from tests import testing, tiny
from tests.serving.local_model_test import write_run

pytestmark = pytest.mark.slow


def test_a_served_model_is_measured_in_process_and_over_http(tmp_path):
  write_run(tmp_path / 'run', testing.TINY_DECODER, tiny.VOCABULARY)
  texts = serving.spelled_words(6)
  room = Room(slots=2, max_prompt=16, max_tokens=4, max_waiting=6)
  measured = {
    row.what: row for row in serving.measure(str(tmp_path / 'run'), texts, room, [1, 2], turns=1)
  }
  assert measured['answers that are not those of infer'].met
  assert {name for name, row in measured.items() if row.bar is not None} == {
    'answers that are not those of infer',
    'decision, of the small answer',
    'HTTP adds to a request',
  }
  for way in ('sequential', '1 at a time', '2 at a time', 'HTTP, 1 at a time', 'HTTP, 2 at a time'):
    assert measured[f'{way}: throughput'].value > 0
    assert measured[f'{way}: latency, 95 %'].value >= measured[f'{way}: latency, 50 %'].value > 0
