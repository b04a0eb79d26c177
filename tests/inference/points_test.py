import pytest

from cascades.inference import points
from cascades.inference.points import DecodingPoint
from cascades.target_distributions import RULES, SEQUENTIAL, named


def test_a_grid_has_all_combinations_beside_either_model_alone():
  grid = points.grid(
    {'opt': [0.25], 'lossless': None}, {'chow': [0.5]}, gammas=(1, 3), temperatures=(0.0, 0.5)
  )
  names = [point.name for point in grid]
  assert names[:7] == [
    'small-temperature0',
    'large-temperature0',
    'token_chow-alpha0.5-temperature0',
    'opt-alpha0.25-gamma1-temperature0',
    'opt-alpha0.25-gamma3-temperature0',
    'lossless-gamma1-temperature0',
    'lossless-gamma3-temperature0',
  ]
  assert names[7:] == [name.replace('temperature0', 'temperature0.5') for name in names[:7]]
  assert [point.both for point in grid[:7]] == [False] * 2 + [True] * 5


def test_the_rules_large_and_small_are_other_points_than_either_model_alone():
  grid = points.grid({'large': None, 'small': None}, {}, gammas=(2,), temperatures=(1.0,))
  assert [point.both for point in grid] == [False, False, True, True]
  assert DecodingPoint('large', 1.0, gamma=2).name == 'large-gamma2-temperature1'


@pytest.mark.parametrize('rule', RULES)
def test_usual_alphas_of_every_rule_are_in_its_range_and_differ(rule):
  grid = points.grid({rule: None}, {}, gammas=(1,), temperatures=(0.0,))[2:]
  assert len(grid) == (1 if RULES[rule].alphas is None else 5)
  for point in grid:
    named(rule, point.alpha or 0.0)


def test_a_rule_that_reads_the_large_model_is_no_token_cascade():
  for rule in RULES.keys() - SEQUENTIAL.keys():
    with pytest.raises(ValueError, match=f'TOKEN_CASCADES has {rule!r}, which .* give .* in RULES'):
      points.grid({}, {rule: None}, gammas=(1,), temperatures=(0.0,))
