"""The loop with a toy step: what is called when, and that nothing bad is saved."""

import contextlib
import gc
import itertools
import math
import weakref

import numpy as np

from cascades.training import loop


def totals(loss=2.0, tokens=4.0, correct=3.0, grad_norm=1.0, applied=1.0):
  return {
    'loss': loss, 'tokens': tokens, 'correct': correct, 'grad_norm': grad_norm, 'applied': applied,
  }  # fmt: skip


class Story:
  """Runs the loop and writes down what it does. The state counts its steps."""

  def __init__(self, *, start=0, total=10, every=(4, 0, 5), refused=(), stop_at=None):
    self.events = []
    nothing = {'loss': math.nan, 'applied': 0.0}
    self.history = loop.run(
      start,
      lambda state, batch: (state + 1, totals(**(nothing if batch in refused else {}))),
      lambda state, step: step,
      start=start,
      total=total,
      intervals=loop.Intervals(*every),
      report=lambda step, values, tokens: self.events.append(('report', step, tokens)),
      validate=lambda state: self.events.append(('validate', state)) or {'validation/loss': 0.5},
      save=lambda step, state, values: self.events.append(('save', step, state)),
      on_rejected=lambda step, sums: self.events.append(('refuse', step)),
      asked_to_stop=lambda step: step == stop_at,
      profile=lambda number: contextlib.nullcontext(),
    )


def test_every_interval_and_the_last_step_are_reported_and_saved():
  story = Story()
  assert story.events == [
    ('report', 1, 4.0),
    ('report', 4, 12.0),
    ('report', 5, 4.0),
    ('save', 5, 5),
    ('report', 8, 12.0),
    ('report', 10, 8.0),
    ('save', 10, 10),
  ]


def test_a_first_step_that_is_logged_reports_its_tokens_once():
  assert Story(every=(1, 0, 0), total=2).events == [
    ('report', 1, 4.0),
    ('report', 1, 0.0),
    ('report', 2, 4.0),
    ('save', 2, 2),
  ]


def test_intervals_of_zero_are_the_last_step_only():
  assert Story(every=(0, 0, 0), total=12).events == [
    ('report', 1, 4.0),
    ('report', 12, 44.0),
    ('save', 12, 12),
  ]


def test_a_line_comes_at_step_ten_and_after_the_first_minute(monkeypatch):
  story = Story(every=(100, 0, 0), total=30)
  assert [event[1] for event in story.events if event[0] == 'report'] == [1, 10, 30]
  assert Story(start=4, every=(100, 0, 0), total=40).events[1] == ('report', 10, 20.0)
  assert Story(start=20, every=(100, 0, 0), total=40).events[1] == ('report', 40, 76.0)
  assert [
    values.get('skipped') for values in Story(every=(20, 0, 0), total=20, refused=(3,)).history
  ] == [1, 1]
  seconds = itertools.count(0, 25)  # a step takes 25 s
  monkeypatch.setattr(loop.time, 'monotonic', lambda: next(seconds))
  story = Story(every=(100, 0, 0), total=9)
  assert [event[1] for event in story.events if event[0] == 'report'] == [1, 3, 9]


def test_the_sums_of_a_long_interval_are_not_held():
  """And refused steps are told in time."""
  held = weakref.WeakSet()

  class Sums(dict):
    __hash__ = object.__hash__

  def step(state, batch):
    held.add(sums := Sums(totals(applied=float(batch != 150))))
    return state + 1, sums

  refused = []
  history = loop.run(
    0,
    step,
    lambda state, number: number,
    start=0,
    total=1001,
    intervals=loop.Intervals(0, 0, 0),
    report=lambda *_: gc.collect(),
    validate=lambda _: {},
    save=lambda *_: None,
    on_rejected=lambda number, sums: refused.append((number, len(held))),
    asked_to_stop=lambda _: len(held) > 3 * loop.STEPS_PER_FETCH,
    profile=lambda _: contextlib.nullcontext(),
  )
  assert len(history) == 1
  assert history[0]['loss'] == 0.5
  assert history[0]['skipped'] == 1
  assert refused[0][0] == 150
  assert refused[0][1] <= 3 * loop.STEPS_PER_FETCH


def test_a_checkpoint_is_validated_before_it_is_saved():
  story = Story(every=(0, 4, 5), total=8)
  assert story.events == [
    ('report', 1, 4.0),
    ('validate', 4),
    ('report', 4, 12.0),
    ('validate', 5),
    ('report', 5, 4.0),
    ('save', 5, 5),
    ('validate', 8),
    ('report', 8, 12.0),
    ('save', 8, 8),
  ]
  assert story.history[0]['validation/loss'] == 0.5


def test_a_resumed_run_starts_behind_its_checkpoint():
  story = Story(start=6)
  assert story.events[0] == ('report', 7, 4.0)
  assert ('save', 10, 10) in story.events


def test_refused_steps_are_told_before_anything_is_saved_and_count_in_no_mean():
  story = Story(every=(100, 0, 5), refused=(3, 7, 8))
  kinds = [event[:2] for event in story.events]
  assert kinds == [
    ('report', 1),
    *(('refuse', 3), ('report', 5), ('save', 5)),
    *(('refuse', 7), ('refuse', 8), ('report', 10), ('save', 10)),
  ]
  assert [values['skipped'] for values in story.history] == [1, 2]
  assert all(values['loss'] == 0.5 for values in story.history)


def test_steps_that_were_all_refused_leave_nothing_but_their_number():
  story = Story(every=(2, 0, 0), total=4, refused=(3, 4))
  assert story.history[1] == {'skipped': 2}
  assert 'skipped' not in story.history[0]


def test_a_run_that_is_asked_to_stop_saves_that_step_without_validation_and_ends():
  story = Story(every=(4, 4, 8), stop_at=6)
  assert story.events == [
    ('report', 1, 4.0),
    ('validate', 4),
    ('report', 4, 12.0),
    ('report', 6, 8.0),
    ('save', 6, 6),
  ]


def test_batches_see_the_state_and_the_number_of_their_step():
  calls = []

  def batches(state, step):
    calls.append((state, step))
    return step

  loop.run(
    {'steps': 6},
    lambda state, batch: ({'steps': state['steps'] + 1}, totals(loss=float(batch))),
    batches,
    start=6,
    total=9,
    intervals=loop.Intervals(0, 0, 0),
    report=lambda *_: None,
    validate=lambda _: {},
    save=lambda *_: None,
    on_rejected=lambda *_: None,
    asked_to_stop=lambda _: False,
    profile=lambda _: contextlib.nullcontext(),
  )
  assert calls == [({'steps': 6}, 7), ({'steps': 7}, 8), ({'steps': 8}, 9)]


def test_means_are_over_tokens_not_over_steps():
  values = loop.means([totals(loss=1.0, tokens=1.0, correct=1.0), totals(loss=9.0, tokens=9.0)])
  assert values == {'loss': 1.0, 'accuracy': 0.4}


def test_with_a_large_model_the_shares_of_agreement_add_up():
  agreement = {'both': 2.0, 'only_small': 1.0, 'only_large': 4.0, 'neither': 1.0}
  values = loop.means([{'loss': 4.0, 'tokens': 8.0, **agreement}])
  assert values['accuracy'] == 3 / 8
  np.testing.assert_allclose(sum(values[name] for name in loop.AGREEMENT), 1.0)


def test_rows_are_right_if_all_of_their_tokens_are():
  sums = {**totals(), 'rows': 4.0, 'rows_right': 1.0}
  assert loop.means([sums, sums])['row_accuracy'] == 0.25
  assert loop.large_means([sums]) == {}
  large = {
    'loss': 4.0, 'tokens': 8.0, 'both': 2.0, 'only_small': 1.0, 'only_large': 4.0, 'neither': 1.0,
    'rows': 4.0, 'rows_right': 1.0, 'rows_right_large': 3.0,
  }  # fmt: skip
  assert loop.large_means([large]) == {'large_accuracy': 0.75, 'large_row_accuracy': 0.75}
