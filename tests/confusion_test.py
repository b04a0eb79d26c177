import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import f1_score

from cascades import confusion, curves, metrics
from tests import multirc

LABELS = ['yes', 'no', 'maybe']
answers = st.sampled_from([*LABELS, 'nonsense', ''])
pairs = st.lists(st.tuples(st.sampled_from(LABELS), answers), min_size=1, max_size=12)


def sums(metric, rows):
  return sum(metric.statistics([target], answer) for target, answer in rows)


def finished(metric, rows):
  return float(metric.finalize(sums(metric, rows)))


def test_f1_agrees_with_a_number_worked_by_hand():
  rows = [('yes', 'yes'), ('yes', 'yes'), ('yes', 'no'), ('no', 'yes'), ('no', 'yes'), ('no', 'no')]
  metric = confusion.f1('yes')
  np.testing.assert_array_equal(sums(metric, rows), [2, 2, 1])  # tp, fp, fn
  assert finished(metric, rows) == pytest.approx(4 / 7)
  assert finished(metric, [(' yes', 'yes\n')]) == 1


def test_an_answer_that_is_no_label_is_wrong_if_the_labels_are_known():
  np.testing.assert_array_equal(confusion.f1('yes').statistics(['yes'], 'x'), [0, 0, 1])
  np.testing.assert_array_equal(confusion.f1('yes').statistics(['no'], 'x'), [0, 0, 0])
  with_others = confusion.f1('yes', 'no')
  np.testing.assert_array_equal(with_others.statistics(['yes'], 'x'), [0, 0, 1])
  np.testing.assert_array_equal(with_others.statistics(['no'], 'x'), [0, 1, 0])
  np.testing.assert_array_equal(with_others.statistics(['no'], 'no'), [0, 0, 0])


@given(pairs)
def test_f1_equals_scikit_learn(rows):
  targets, given_answers = zip(*rows, strict=True)
  value = finished(confusion.f1('yes'), rows)
  binary = [[text == 'yes' for text in column] for column in (targets, given_answers)]
  assert value == pytest.approx(f1_score(*binary, zero_division=0))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(['True', 'False', 'x'])), min_size=1))
def test_f1_with_invalid_answers_equals_scikit_learn_on_the_opposite_of_the_target(rows):
  """F1a of MultiRC as T5 computes it."""
  value = finished(confusion.f1('True', 'False'), [(str(target), text) for target, text in rows])
  read = [{'True': True, 'False': False}.get(text, not target) for target, text in rows]
  assert value == pytest.approx(f1_score([target for target, _ in rows], read, zero_division=0))


@given(pairs)
def test_macro_f1_and_the_f1_of_each_class_equal_scikit_learn(rows):
  targets, given_answers = zip(*rows, strict=True)
  metric = confusion.macro_f1(*LABELS)
  expected = f1_score(targets, given_answers, labels=LABELS, average=None, zero_division=0)
  np.testing.assert_allclose(confusion.f1_by_class(sums(metric, rows)), expected)
  assert finished(metric, rows) == pytest.approx(expected.mean())


def test_macro_f1_agrees_with_a_number_worked_by_hand():
  rows = [('yes', 'yes'), ('yes', 'no'), ('no', 'no'), ('no', 'nonsense')]
  # yes: tp 1, fn 1; no: tp 1, fp 1, fn 1; maybe: never.
  expected = np.array([2 / 3, 2 / 4, 0])
  metric = confusion.macro_f1('yes', 'no', 'maybe')
  np.testing.assert_allclose(confusion.f1_by_class(sums(metric, rows)), expected)
  assert finished(metric, rows) == pytest.approx(expected.mean())


def test_many_sums_are_finished_at_once():
  counts = np.random.default_rng(0).integers(0, 9, size=(4, 5, 9)).astype(float)
  every = confusion.mean_f1(counts)
  assert every.shape == (4, 5)
  assert confusion.f1_by_class(counts).shape == (4, 5, 3)
  for index in np.ndindex(4, 5):
    assert every[index] == pytest.approx(float(confusion.mean_f1(counts[index])))


def test_f1s_are_found_by_a_name_that_holds_their_classes():
  for name in ('f1[True]', 'f1[yes|no]', "macro_f1[Yes|No|It's impossible to say]"):
    assert metrics.by_name(name).name == name
  target = ["It's impossible to say"]
  statistics = metrics.by_name("macro_f1[Yes|No|It's impossible to say]").statistics(
    target, target[0]
  )
  np.testing.assert_array_equal(statistics, [0, 0, 0, 0, 0, 0, 1, 0, 0])
  with pytest.raises(ValueError, match=r"no metric 'macro_f1'.*macro_f1\[A\|B\|...\]"):
    metrics.by_name('macro_f1')


@pytest.mark.parametrize('name', ['f1[]', 'f1[a|a]', 'macro_f1[a||b]', 'macro_f1[a| b]'])
def test_classes_without_a_name_of_their_own_are_refused(name):
  with pytest.raises(ValueError, match='distinct names of classes'):
    metrics.by_name(name)


def test_a_target_outside_the_classes_is_an_error_and_a_missing_one_is_not():
  for metric in (confusion.macro_f1('yes', 'no'), confusion.f1('yes', 'no')):
    with pytest.raises(ValueError, match=r"target 'maybe' is none of the classes \['yes', 'no'\]"):
      metric.statistics(['maybe'], 'yes')
    assert not (0 * metric.statistics([''], '')).any()


def test_curves_of_f1a_on_real_rows_equal_scikit_learn_at_each_threshold():
  targets, _ = multirc.rows()
  generator = np.random.default_rng(0)
  small, large = (multirc.guesses(targets, right, generator) for right in (0.6, 0.85))
  score = generator.integers(0, 20, size=len(targets)).astype(float)
  metric = metrics.by_name('f1[True|False]')
  small_statistics, large_statistics = (
    np.stack(
      [metric.statistics([target], text) for target, text in zip(targets, side, strict=True)]
    )
    for side in (small, large)
  )
  curve = curves.deferral_curve(
    score, small_statistics, large_statistics, metric.finalize, lambda rate: rate
  )
  truth = np.array([target == 'True' for target in targets])
  for threshold, quality in zip(curve.threshold, curve.quality, strict=True):
    mixed = [b if r >= threshold else a for a, b, r in zip(small, large, score, strict=True)]
    read = [
      {'True': 1, 'False': 0}.get(text, 1 - label) for text, label in zip(mixed, truth, strict=True)
    ]
    assert quality == pytest.approx(f1_score(truth, read))
  assert len(curve.quality) == 21
