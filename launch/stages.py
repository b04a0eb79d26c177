"""Stages: one command of a program each, that is not run again once it has finished."""

from __future__ import annotations

import hashlib
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from absl import app
from etils import epath

from cascades.runtime import files

ROOT = pathlib.Path(__file__).parents[1]


def program(words: Sequence[str], *, python: str = sys.executable) -> list[str]:
  """The command of `cascades.NAME flags...`, run by this Python or another."""
  if not words or not re.fullmatch(r'cascades(\.\w+)+', words[0]):
    raise app.UsageError(
      f'found {" ".join(words[:1]) or "nothing"!r} where a program was expected: say which behind '
      'two dashes, as in -- cascades.train --gin_file=...'
    )
  return [python, '-m', *words]


class Stage(NamedTuple):
  """A program of `cascades`, its settings, and the name under which its end is remembered."""

  name: str
  program: str
  gin_files: Sequence[str]
  bindings: Mapping[str, str]

  def words(self) -> list[str]:
    """What stands behind `python -m`."""
    return [
      f'cascades.{self.program}',
      *(f'--gin_file={file}' for file in self.gin_files),
      *(f'--gin.{name}={value}' for name, value in self.bindings.items()),
    ]


def run(stage: Stage, directory: epath.PathLike, start: Callable[[list[str]], int]) -> int | None:
  """The stage's exit code, and None, without calling `start`, if it has finished before.

  Raises ValueError if what finished was another command, or the same with other recipes.
  """
  marker = epath.Path(directory) / '.finished' / stage.name.replace(' ', '-')
  fingerprint = _fingerprint(stage)
  if marker.exists():
    if marker.read_text() != fingerprint:
      raise ValueError(
        f'{stage.name} finished under another recipe or command than {", ".join(stage.gin_files)} '
        f'says now: remove {directory}, or give another output directory.'
      )
    return None
  code = start(stage.words())
  if code == 0:
    files.write(marker, fingerprint)
  return code


def _fingerprint(stage: Stage) -> str:
  """Changes with the command, and with what its recipes and all that they include say."""
  digest = hashlib.sha256(shlex.join(stage.words()).encode())
  left, seen = list(stage.gin_files), set()
  while left:
    name = left.pop(0)
    places = [folder / name for folder in (pathlib.Path(), ROOT / 'gin_configs', ROOT)]
    path = next((place for place in places if place.is_file()), None)
    if path is None or path in seen:  # the program itself says what it cannot find
      continue
    seen.add(path)
    digest.update(path.read_bytes())
    left += re.findall(r"""^include\s+['"](.+?)['"]""", path.read_text(), re.MULTILINE)
  return digest.hexdigest()
