import math

import pytest

from cascades.runtime import ranges


def test_numbers_in_the_range_pass():
  ranges.check({'A': 1, 'B': 2.0, 'C': None}, least=1, integer=True)
  ranges.check({'A': 1e-9}, above=0, below=1)


@pytest.mark.parametrize(
  ('value', 'options', 'message'),
  [
    (0, {'least': 1, 'integer': True}, "A=0 must be a whole number at least 1."),
    (1.5, {'least': 1, 'integer': True}, 'A=1.5 must be a whole number at least 1.'),
    (0.0, {'above': 0, 'below': 1}, 'A=0.0 must be a finite number above 0 and below 1.'),
    (math.nan, {'least': 0}, 'A=nan must be a finite number at least 0.'),
    (-math.inf, {}, 'A=-inf must be a finite number.'),
    ('fast', {'least': 0}, "A='fast' must be a finite number at least 0."),
    (True, {'least': 1}, 'A=True must be a finite number at least 1.'),
  ],
)  # fmt: skip
def test_others_are_named_with_what_is_allowed(value, options, message):
  with pytest.raises(ValueError, match='A=') as error:
    ranges.check({'A': value}, **options)
  assert str(error.value) == message
