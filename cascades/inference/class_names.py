"""Classes that answers in plain text name."""

from __future__ import annotations

from collections.abc import Sequence


def named_class(text: str, options: Sequence[str]) -> int | None:
  """Class that a text names: that of the first option which occurs in it, whatever the case.

  The whole text decides before its parts, so that 'not sad' can be an option beside 'sad'; of
  several options that occur, the one that begins first, and the longest of these.
  """
  lowered, names = text.strip().lower(), [option.lower() for option in options]
  if lowered in names:
    return names.index(lowered)
  occurrences = [
    (lowered.index(name), -len(name), number)
    for number, name in enumerate(names)
    if name in lowered
  ]
  return min(occurrences)[2] if occurrences else None
