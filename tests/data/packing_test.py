import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import packing


def epoch(packs, number=0, seed=0):
  """The members of every pack of one epoch."""
  return packs.members(np.arange(len(packs)), np.full(len(packs), number), seed)


def best_fit_slowly(lengths, capacity):
  """Best-fit decreasing, one example after the other; how full each pack is.

  Among packs with equal room any may be taken, so that contents may differ, but not how full.
  """
  packs = []
  for length in sorted(lengths, reverse=True):
    fitting = [pack for pack in packs if sum(pack) + length <= capacity]
    if fitting:
      max(fitting, key=sum).append(length)
    else:
      packs.append([length])
  return sorted(map(sum, packs))


def test_a_plan_worked_by_hand():
  # 6 leaves 4: filled by 4. 5 + 5. 3 + 2 + 2 is what remains.
  packs = packing.plan(np.array([5, 2, 6, 4, 2, 5, 3]), 10)
  lengths = np.array([5, 2, 6, 4, 2, 5, 3])
  assert sorted(sorted(lengths[pack].tolist()) for pack in epoch(packs)) == [
    [2, 2, 3], [4, 6], [5, 5],
  ]  # fmt: skip
  assert packs.fill == pytest.approx(27 / 30)


examples = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(examples, st.integers(20, 50))
def test_the_plan_is_that_of_the_slow_oracle(lengths, capacity):
  packs = packing.plan(np.array(lengths), capacity)
  filled = sorted(int(np.array(lengths)[pack].sum()) for pack in epoch(packs))
  assert filled == best_fit_slowly(lengths, capacity)


@given(examples, st.integers(20, 50), st.integers(0, 5), st.integers(0, 2**31))
def test_every_example_is_in_one_pack_of_every_epoch_and_all_fit(lengths, capacity, number, seed):
  packs = packing.plan(np.array(lengths), capacity)
  members = epoch(packs, number, seed)
  assert sorted(np.concatenate(members).tolist()) == list(range(len(lengths)))
  assert all(0 < np.array(lengths)[pack].sum() <= capacity for pack in members)


@given(examples, st.integers(0, 2**31), st.data())
def test_a_pack_is_known_without_the_packs_before_it(lengths, seed, data):
  packs = packing.plan(np.array(lengths), 40)
  pack = data.draw(st.integers(0, len(packs) - 1))
  number = data.draw(st.integers(0, 3))
  (alone,) = packs.members(np.array([pack]), np.array([number]), seed)
  assert alone.tolist() == epoch(packs, number, seed)[pack].tolist()


def test_packs_of_several_epochs_may_be_asked_for_at_once():
  packs = packing.plan(np.arange(1, 30) % 7 + 1, 16)
  together = packs.members(np.array([3, 0, 3]), np.array([0, 5, 1]), 9)
  apart = [packs.members(np.array([p]), np.array([e]), 9)[0] for p, e in ((3, 0), (0, 5), (3, 1))]
  assert [pack.tolist() for pack in together] == [pack.tolist() for pack in apart]


def test_epochs_and_seeds_redraw_who_shares_a_pack():
  packs = packing.plan(np.full(64, 4), 16)
  drawn = {tuple(np.concatenate(epoch(packs, e, s)).tolist()) for e in range(3) for s in range(3)}
  assert len(drawn) == 9


def test_examples_of_one_length_share_packs_with_all_others():
  packs = packing.plan(np.full(8, 4), 8)
  partners = {
    next(i for i in pack.tolist() if i != 0)
    for number in range(60)
    for pack in epoch(packs, number)
    if 0 in pack
  }
  assert partners == set(range(1, 8))


@given(st.lists(examples, min_size=1, max_size=3), st.integers(0, 5), st.integers(0, 2**31))
def test_concatenated_plans_fill_their_packs_as_if_alone(tasks, number, seed):
  plans = [packing.plan(np.array(lengths), 40) for lengths in tasks]
  before = np.cumsum([0, *map(len, tasks)])
  expected = [
    (pack + start).tolist()
    for plan, start in zip(plans, before, strict=False)
    for pack in epoch(plan, number, seed)
  ]
  joined = packing.concatenate(plans)
  assert [pack.tolist() for pack in epoch(joined, number, seed)] == expected
  assert joined.fill == pytest.approx(sum(map(sum, tasks)) / (40 * len(joined)))


def test_real_lengths_pack_nearly_full():
  generator = np.random.default_rng(0)
  lengths = np.clip(generator.lognormal(3, 0.6, 20_000).astype(int), 2, 128)
  assert packing.plan(lengths, 256).fill > 0.98


def test_an_example_without_tokens_is_an_error():
  with pytest.raises(ValueError, match='Example 2 has no tokens'):
    packing.plan(np.array([3, 2, 0, 4]), 8)


def test_an_example_that_fits_no_pack_is_an_error():
  with pytest.raises(ValueError, match='An example of 12 tokens does not fit into a pack of 10'):
    packing.plan(np.array([3, 12]), 10)


def test_a_single_example_is_one_pack():
  packs = packing.plan(np.array([7]), 7)
  assert len(packs) == 1
  assert packs.fill == 1.0
  assert [pack.tolist() for pack in epoch(packs)] == [[0]]


def test_the_worked_plan_of_the_docstring_is_right():
  results = doctest.testmod(packing)
  assert results.attempted == 3
  assert not results.failed
