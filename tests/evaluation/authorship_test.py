from __future__ import annotations

import numpy as np
import pytest

from cascades.evaluation import authorship


def flags(text):
  return [letter == 'S' for letter in text]


@pytest.mark.parametrize(
  ('answers', 'expected'),
  [
    (['LSSLSL'], [1, 1 / 2, 0]),
    (['LSSSLL'], [1 / 2, 1, 1]),  # a full block, then one whose first draft is rejected
    (['LSS'], [1, 1, np.nan]),  # ends within a block
    (['L'], [np.nan] * 3),
    (['LLL', 'LSL'], [1 / 3, 0, np.nan]),
  ],
)
def test_acceptance_by_position_equals_counts_by_hand(answers, expected):
  shares = authorship.acceptance_by_position(map(flags, answers), 3, max_tokens=9)
  np.testing.assert_allclose(shares, expected)


def test_drafts_that_would_exceed_the_longest_answer_are_not_made():
  shares = authorship.acceptance_by_position([flags('LSL')], 3, max_tokens=3)
  np.testing.assert_array_equal(shares, [1, np.nan, np.nan])
