"""Times by a clock that the tests turn, and steps of a tiny model."""

import functools
import itertools
import json

import numpy as np
import pytest

from cascades.inference import latency
from cascades.inference.answers import Answered
from cascades.types import Generation, Prompt

MASK = np.arange(4) < np.array([[3], [1], [4], [2]])
ORIGIN = {'machine': 'abacus', 'rows': 3}


class Clock:
  """Seconds that pass only while something answers."""

  def __init__(self):
    self.now, self.calls = 0.0, []

  def __call__(self):
    return self.now

  def answerer(self, name, seconds):
    """Takes `seconds` a batch, the first time for each shape 100 more, as if it compiled."""
    shapes = set()

    def answer(prompts, row_ids):
      shape = prompts.tokens.shape
      self.now += next(seconds) + 100 * (shape not in shapes)
      shapes.add(shape)
      self.calls.append(name)
      return Answered(Generation(None, None, MASK[row_ids]))

    return answer


def batch(*rows, width=4, padding=0):
  tokens = np.ones((len(rows) + padding, width), np.int32)
  row_ids = np.resize(rows, len(tokens))
  return latency.TimedBatch(Prompt(tokens, np.full(len(tokens), width)), row_ids, len(rows))


def test_turns_alternate_and_padding_and_compilation_do_not_count(tmp_path):
  clock = Clock()
  answerers = {
    'a': clock.answerer('a', itertools.chain([0.0, 0.0], itertools.cycle([2.0, 1.0]))),
    'b': clock.answerer('b', itertools.chain([0.0, 0.0], itertools.cycle([6.0]))),
  }
  batches = {2: [batch(0, 1), batch(2, padding=1, width=8)]}
  file = latency.LatencyFile(tmp_path / 'latency.json', ORIGIN, overwrite=False)
  latency.measure_answers(file, answerers, batches, turns=2, clock=clock)
  written = json.loads(file.path.read_text())
  assert {name: written[name] for name in ORIGIN} == ORIGIN
  assert written['points']['a']['2'] == {
    'turns': [1.0, 1.0], 'seconds_per_answer': 1.0, 'tokens_per_answer': 8 / 3
  }  # fmt: skip
  assert written['points']['b']['2']['turns'] == [4.0, 4.0]
  assert ''.join(clock.calls) == 'aaaa' + 'bbbb' + 'aa' + 'bb'


def test_the_median_of_the_turns_counts_and_a_second_run_adds_what_is_missing(tmp_path):
  clock, path = Clock(), tmp_path / 'latency.json'
  seconds = itertools.chain([0.0, 5.0, 1.0, 0.0, 9.0, 2.0])
  answerer = {'a': clock.answerer('a', seconds)}
  batches = {1: [batch(0)]}
  for turns in (2, 2, 3):
    file = latency.LatencyFile(path, ORIGIN, overwrite=False)
    latency.measure_answers(file, answerer, batches, turns=turns, clock=clock)
  entry = json.loads(path.read_text())['points']['a']['1']
  assert entry['turns'] == [5.0, 1.0, 9.0]
  assert entry['seconds_per_answer'] == 5.0
  assert len(clock.calls) == 5


@pytest.mark.parametrize('content', ['{"points": {', '[]', '{"points": {}}'])
def test_a_damaged_file_is_named(tmp_path, content):
  path = tmp_path / 'latency.json'
  path.write_text(content)
  with pytest.raises(ValueError, match=rf'{path} is damaged .* remove it to measure again'):
    latency.LatencyFile(path, ORIGIN, overwrite=False)


def test_times_of_another_machine_are_not_mixed(tmp_path):
  path = tmp_path / 'latency.json'
  file = latency.LatencyFile(path, ORIGIN, overwrite=False)
  file.entry('points', 'a', 1)['turns'] = [1.0]
  file.write()
  other = ORIGIN | {'machine': 'slide rule'}
  with pytest.raises(
    ValueError, match=r"machine is 'abacus' there and 'slide rule' here.*OVERWRITE"
  ):
    latency.LatencyFile(path, other, overwrite=False)
  assert latency.LatencyFile(path, ORIGIN, overwrite=False).content['points']['a']
  assert not latency.LatencyFile(path, other, overwrite=True).content['points']


def test_a_machine_that_slows_down_slows_the_steps_of_all_models_alike(monkeypatch, tmp_path):
  clock, order = Clock(), []

  def calls(name, prompts, widths, room):
    def call(width):
      slower = 3.0 if len(order) >= 15 else 1.0  # from the third turn of five on
      order.append((name, width))
      clock.now += slower * latency.STEPS * {'small': 1.0, 'large': 4.0}[name] * (1 + width)

    return {width: functools.partial(call, width) for width in (0, *widths)}

  monkeypatch.setattr(latency, '_calls', calls)
  monkeypatch.setattr(latency.time, 'perf_counter', clock)
  file = latency.LatencyFile(tmp_path / 'latency.json', ORIGIN, overwrite=False)
  models = {'small': ('small', [1]), 'large': ('large', [1, 2])}
  latency.measure_steps(file, models, {1: None}, max_tokens=4)
  turn = [('small', 0), ('small', 1), ('large', 0), ('large', 1), ('large', 2)]
  assert order == turn * (1 + latency.REPEATS)  # the first compiles
  written = json.loads(file.path.read_text())
  assert written['prompts']['large']['1'] / written['prompts']['small']['1'] == 4.0
  steps = written['steps']
  assert steps['large']['1']['1'] / steps['small']['1']['1'] == 4.0
  assert steps['large']['1']['2'] / steps['large']['1']['1'] == 1.5
  latency.measure_steps(file, models, {1: None}, max_tokens=4)
  assert len(order) == len(turn) * (1 + latency.REPEATS)  # nothing is measured twice
  costs = latency.step_costs('small', 'large', None, most=1, max_tokens=4)
  assert costs.large[0] / costs.small == 4.0
  assert len(costs.large) == 2
