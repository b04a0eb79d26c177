"""Looks at simulated logs: what is promoted, what is not, and what is rolled back."""

import numpy as np
import pytest

from cascades import metrics
from cascades.evaluation import promotions
from cascades.evaluation.calibration import Demands, Judged
from cascades.evaluation.promotions import Caution, Reign

CAUTION = Caution(every=200, window=2000)
QUALITY = Demands(quality=0.8)
LARGE = 0.95  # share of right answers of the large model
# Scores are uniform, and one of score s is right with probability 1 - slope * s: below t small
# answers are right in t - slope * t^2 / 2 of all rows, and the rest in .95 (1 - t). For a slope of
# 1 that is .8 at t = .6; for one of .5 at .881; for one of 1.5 at .482.
BEST = {1.0: 0.6, 0.5: 0.8810, 1.5: 0.4818}


def rows(generator, size, slope):
  score = generator.random(size)
  right = (generator.random(size) < 1 - slope * score).astype(float)
  large = (generator.random(size) < LARGE).astype(float)
  costs = np.ones(size), np.full(size, 9.0)
  return Judged('a', score, right, large, *costs, metrics.accuracy, 1.0)


def joined(*pieces):
  columns = ('score', 'small', 'large', 'small_cost', 'large_cost')
  return pieces[0]._replace(
    **{name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in columns}
  )


def followed(stream, reign, *, demands=QUALITY, caution=CAUTION):
  """Looks at a stream, from the start of the reign on."""
  size = len(stream.score)
  held_back = np.array(
    [promotions.is_held_back(f'{stream.score[i]}', caution.held_back) for i in range(size)]
  )
  number, looks = np.arange(size), []
  for count in range(reign.since + caution.every, size + 1, caution.every):
    seen = number < count
    looks.append(
      promotions.look(
        reign, promotions.select(stream, seen), number[seen], held_back[seen],
        count=count, demands=demands, caution=caution,
      )
    )  # fmt: skip
    reign = looks[-1].reign
  return looks, reign


def quality(threshold, slope):
  """Quality of a threshold in the population."""
  return threshold - slope * threshold**2 / 2 + LARGE * (1 - threshold)


@pytest.mark.parametrize(('slope', 'threshold'), BEST.items())
def test_the_best_thresholds_of_these_populations_keep_the_promise_to_the_last_digit(
  slope, threshold
):
  assert quality(threshold, slope) == pytest.approx(0.8, abs=1e-4)


def false_promotions(streams, size):
  """Streams whose policy in force cannot be bettered, and is replaced all the same."""
  return sum(
    any(look.decision != 'unchanged' for look in followed(
      rows(np.random.default_rng(seed), size, 1.0), Reign(BEST[1.0])
    )[0])
    for seed in range(streams)
  )  # fmt: skip


def test_noise_is_promoted_more_rarely_than_the_levels_allow():
  # Every cheaper policy breaks the promise: at most .1 for the certificate and .05 for the gain.
  assert false_promotions(200, 400) <= 0.15 * 200


@pytest.mark.slow
def test_noise_is_promoted_more_rarely_than_the_levels_allow_over_many_looks():
  assert false_promotions(200, 2000) <= 0.15 * 200


def test_a_small_model_that_has_become_better_is_trusted_with_more():
  looks, reign = followed(rows(np.random.default_rng(1), 1600, 0.5), Reign(BEST[1.0]))
  promoted = [look for look in looks if look.decision == 'promoted']
  assert promoted
  assert all(look.verdict.choice == 'better' for look in promoted)
  assert promoted[0].verdict.gain > CAUTION.least_gain
  assert 'gains' in promoted[0].why
  assert BEST[1.0] < reign.threshold <= BEST[0.5]


def test_a_promise_that_is_broken_since_the_stream_has_drifted_is_kept_again():
  looks, reign = followed(rows(np.random.default_rng(0), 1600, 1.5), Reign(BEST[1.0]))
  first = next(look for look in looks if look.decision == 'promoted')
  assert first.verdict.choice == 'repairs'
  assert 'breaks its promise of quality' in first.why
  assert reign.threshold <= BEST[1.5]


def test_a_policy_that_turned_bad_is_rolled_back_and_its_old_rows_are_forgotten():
  generator = np.random.default_rng(3)
  good, bad = rows(generator, 400, 0.5), rows(generator, 1200, 1.5)
  reign = Reign(0.85, before=0.4, since=400)
  looks, after = followed(joined(good, bad), reign)
  back = [look for look in looks if look.decision == 'rolled back']
  assert len(back) == 1
  assert looks.index(back[0]) <= 2
  assert back[0].watch.choice == 'repairs'
  assert back[0].reign.threshold == 0.4
  assert back[0].reign.before is None
  assert back[0].reign.start == 400
  assert after.threshold <= BEST[1.5]


def test_a_good_policy_is_not_rolled_back_and_not_watched_for_ever():
  generator = np.random.default_rng(4)
  caution = Caution(every=200, window=600, least_gain=0.3)
  reign = Reign(0.55, before=0.4)
  looks, after = followed(rows(generator, 1000, 1.0), reign, caution=caution)
  assert [look.decision for look in looks] == ['unchanged'] * 5
  assert [look.watch is not None for look in looks] == [True] * 3 + [False] * 2
  assert after.before is None


def test_a_promise_of_the_deferral_rate_makes_candidates_compete_in_quality():
  # Of 30 % deferrals at most, .7 is best; one of .95 wastes most of them.
  looks, reign = followed(
    rows(np.random.default_rng(5), 1600, 1.0), Reign(0.95), demands=Demands(deferral_rate=0.3)
  )
  first = next(look for look in looks if look.decision == 'promoted')
  assert first.verdict.choice == 'better'
  assert 0.7 <= reign.threshold < 0.95


def test_a_broken_promise_that_no_candidate_can_keep_is_said_and_changes_nothing():
  stream = rows(np.random.default_rng(6), 800, 1.9)._replace(large=np.zeros(800))
  looks, reign = followed(stream, Reign(0.9))
  assert {look.decision for look in looks} == {'unchanged'}
  assert reign.threshold == 0.9
  assert 'the policy in force breaks its promise of quality; No threshold' in looks[-1].why


def test_the_sides_of_rows_depend_on_their_ids_alone():
  ids = [f'request-{i}' for i in range(2000)]
  sides = [promotions.is_held_back(id, 0.3) for id in ids]
  assert sides == [promotions.is_held_back(id, 0.3) for id in ids]
  assert 0.25 < np.mean(sides) < 0.35
  assert all(promotions.is_held_back(id, 0.6) for id, side in zip(ids, sides, strict=True) if side)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'alpha': 0.0}, 'ALPHA=0.0 must lie between 0 and 1'),
    ({'held_back': 1.0}, r'HELD_BACK=1.0 must lie'),
    ({'every': 0}, 'EVERY'),
    ({'window': 100}, 'WINDOW=100 must hold the rows of a look, EVERY=200'),
  ],
)
def test_settings_out_of_range_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    Caution(**changes)
