"""Names of tensors in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def summarize(names: Iterable[str]) -> str:
  """Joins names, grouping those that differ in their first number: `layers.{0-3,7}.weight`."""
  groups: dict[str, list[int]] = {}
  for name in names:
    number = re.search(r'\d+', name)
    template = re.sub(r'\d+', '{}', name, count=1)
    groups.setdefault(template, []).extend([int(number[0])] if number else [])
  return ', '.join(
    template.replace('{}', _ranges(numbers) if len(numbers) > 1 else str(numbers[0]), 1)
    if numbers
    else template
    for template, numbers in groups.items()
  )


def _ranges(numbers: Sequence[int]) -> str:
  runs: list[list[int]] = []
  for number in sorted(set(numbers)):
    if runs and number == runs[-1][-1] + 1:
      runs[-1][1:] = [number]
    else:
      runs.append([number])
  return '{' + ','.join('-'.join(map(str, run)) for run in runs) + '}'
