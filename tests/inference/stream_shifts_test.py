import numpy as np
import pytest

from cascades.inference.online_stream import ExpertError
from cascades.inference.stream_files import StreamRow
from cascades.inference.stream_shifts import (
  MissingExpert,
  MovedLast,
  NoisyExpert,
  PoisonedExpert,
  SortedByLength,
  ordered,
  reorders,
  shifted,
)
from cascades.online_step import Query

ROWS = [
  StreamRow('a long text', category='Drama'),
  StreamRow('short', category='Comedy, Drama'),
  StreamRow('tiny', category='Horror'),
  StreamRow('a comedy'),
  StreamRow('brief', category='Drama'),
]


def test_rows_by_length_keep_their_order_where_they_are_equal():
  assert SortedByLength().order(ROWS) == [2, 1, 4, 3, 0]


def test_a_category_moves_behind_the_others_and_order_stays_within_both():
  assert MovedLast('comedy').order(ROWS) == [0, 2, 4, 1, 3]
  both = ordered([SortedByLength(), MovedLast('comedy')], ROWS)
  assert [row.inputs for row in both] == ['tiny', 'brief', 'a long text', 'short', 'a comedy']
  assert reorders([MovedLast('x')])
  assert not reorders([NoisyExpert(0.1)])


def labels(shift, count=4000, classes=4, seed=0):
  return np.array([shift.answer(1, number, classes, seed) for number in range(count)])


def test_noise_is_as_frequent_as_its_share_and_even_over_the_other_classes():
  got = labels(NoisyExpert(0.3))
  assert np.bincount(got, minlength=4) / 4000 == pytest.approx([0.1, 0.7, 0.1, 0.1], abs=0.02)
  assert (got == labels(NoisyExpert(0.3))).all()  # a resumed run sees the same
  assert (got != labels(NoisyExpert(0.3), seed=1)).any()


def test_a_drift_rises_from_its_start_to_its_share():
  wrong = labels(NoisyExpert(0.8, start=1000, ramp=2000)) != 1
  assert not wrong[:1000].any()
  assert wrong[1900:2100].mean() == pytest.approx(0.4, abs=0.1)
  assert wrong[3000:].mean() == pytest.approx(0.8, abs=0.05)
  sudden = labels(NoisyExpert(1.0, start=10), count=20) != 1
  assert sudden.tolist() == [False] * 10 + [True] * 10


def test_an_adversary_always_gives_the_next_class():
  got = labels(PoisonedExpert(0.25))
  assert set(got.tolist()) == {1, 2}
  assert (got == 2).mean() == pytest.approx(0.25, abs=0.02)
  assert PoisonedExpert(1.0).answer(3, 0, 4, 0) == 0
  assert PoisonedExpert(1.0, start=5).answer(3, 4, 4, 0) == 3


def test_answers_without_a_class_stay_without_one():
  assert NoisyExpert(1.0).answer(None, 0, 3, 0) is None
  assert PoisonedExpert(1.0).answer(None, 0, 3, 0) is None


def test_missing_answers_are_errors_of_the_expert_in_their_share():
  expert = shifted([MissingExpert(0.5)], lambda query: 1, classes=2, seed=0)
  missing = 0
  for number in range(1000):
    try:
      assert expert(Query(number, '', '')) == 1
    except ExpertError:
      missing += 1
  assert missing == pytest.approx(500, abs=60)


def test_shifts_of_the_expert_follow_one_another():
  expert = shifted([PoisonedExpert(1.0), PoisonedExpert(1.0)], lambda query: 1, classes=4, seed=0)
  assert expert(Query(0, '', '')) == 3


@pytest.mark.parametrize(
  'make',
  [lambda: NoisyExpert(1.5), lambda: PoisonedExpert(-0.1), lambda: MissingExpert(0.1, start=-1)],
)
def test_shares_out_of_range_are_refused(make):
  with pytest.raises(ValueError, match='must be'):
    make()
