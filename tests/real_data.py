"""Real rows, at $CASCADES_TEST_DATA or beside the checkout."""

from __future__ import annotations

import os
import pathlib

import pytest

DATA = pathlib.Path(
  os.environ.get('CASCADES_TEST_DATA', pathlib.Path(__file__).parents[2] / 'shared' / 'data')
)


def real(name: str) -> pathlib.Path:
  """A file or folder there; the test that asks is skipped where it is absent."""
  path = DATA / name
  if not path.exists():
    pytest.skip(f'{path} is not there; set CASCADES_TEST_DATA to a folder that has it')
  return path
