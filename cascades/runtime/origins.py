"""Origins of files, compared: the one that a directory has, and the one that a program asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_FINGERPRINT = re.compile(r'\b([0-9a-f]{12})[0-9a-f]{20,}\b')


def differences(
  stored: Mapping[str, Any], expected: Mapping[str, Any], keys: Iterable[str] | None = None
) -> list[str]:
  """Differences of two origins, such as 'rows is 8 there and 9 here'.

  Args:
    stored: Origin of what is there, as JSON.
    expected: Origin of what is asked for, as JSON.
    keys: Names of the fields that are compared, by default those of `expected`.
  """
  return [
    f'{key} is {_shown(stored.get(key))} there and {_shown(expected.get(key))} here'
    for key in (expected if keys is None else keys)
    if stored.get(key) != expected.get(key)
  ]


def _shown(value: Any) -> str:
  """Text of a value; fingerprints differ in their first digits, paths and others anywhere."""
  return _FINGERPRINT.sub(r'\1...', repr(value))[:200]
