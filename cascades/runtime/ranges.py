"""Ranges of settings, which config objects check when they are made."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping


def check(
  settings: Mapping[str, float | None],
  *,
  least: float | None = None,
  above: float | None = None,
  most: float | None = None,
  below: float | None = None,
  integer: bool = False,
) -> None:
  """Check that numbers are finite and in a range; None, where a setting may be that, passes.

  Args:
    settings: Numbers by the names that users give them, such as macros.
    least: Smallest number allowed.
    above: Number that all must exceed.
    most: Largest number allowed.
    below: Number that all must be less than.
    integer: Allow whole numbers only.

  Raises:
    ValueError: A number is outside; the message names it and the range.
  """
  limits = [
    f'{word} {limit:g}'
    for word, limit in (('at least', least), ('above', above), ('at most', most), ('below', below))
    if limit is not None
  ]
  expected = f'a {"whole" if integer else "finite"} number {" and ".join(limits)}'.rstrip()
  for name, value in settings.items():
    if value is None:
      continue
    fits = (
      isinstance(value, numbers.Real)
      and not isinstance(value, bool)
      and math.isfinite(value)
      and (not integer or value == int(value))
      and (least is None or value >= least)
      and (above is None or value > above)
      and (most is None or value <= most)
      and (below is None or value < below)
    )
    if not fits:
      raise ValueError(f'{name}={value!r} must be {expected}.')
