"""Stages: commands that are not run again once they have finished."""

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

from cascades.runtime import environment, files

ROOT = pathlib.Path(__file__).parents[1]


def program(
  words: Sequence[str], *, python: str = sys.executable, is_replica: bool = False
) -> list[str]:
  """Command line of `cascades.NAME flags...` for a Python interpreter."""
  if not words or not re.fullmatch(r'cascades(\.\w+)+', words[0]):
    raise app.UsageError(
      f'found {" ".join(words[:1]) or "nothing"!r} instead of a program: name it after two dashes, '
      'as in -- cascades.train --gin_file=...'
    )
  if not is_replica and not has_process_flags(words[0]):
    raise app.UsageError(
      f'{words[0]} runs in one process and needs no launcher: run `python -m {words[0]} ...`.'
    )
  return [python, '-m', *words]


def has_process_flags(program: str) -> bool:
  """True for programs that run as one of several processes of `jax.distributed`."""
  return program.rpartition('.')[2] not in environment.ONE_PROCESS


class Stage(NamedTuple):
  """A program of `cascades`, its settings, and the name that marks it as finished."""

  name: str
  program: str
  gin_files: Sequence[str]
  bindings: Mapping[str, str]

  def words(self) -> list[str]:
    """Arguments of `python -m`."""
    return [
      f'cascades.{self.program}',
      *(f'--gin_file={file}' for file in self.gin_files),
      *(f'--gin.{name}={value}' for name, value in self.bindings.items()),
    ]


def run(stage: Stage, directory: epath.PathLike, start: Callable[[list[str]], int]) -> int | None:
  """Run a stage unless it has finished before.

  Args:
    stage: Stage to run.
    directory: Folder with the markers of finished stages.
    start: Runs the arguments of a command, and returns its exit code.

  Returns:
    The exit code, or None, without calling `start`, if the stage has finished before.

  Raises:
    ValueError: The finished stage had another command or other recipes.
  """
  marker = epath.Path(directory) / '.finished' / stage.name.replace(' ', '-')
  fingerprint = _fingerprint(stage)
  if marker.exists():
    if marker.read_text() != fingerprint:
      raise ValueError(
        f'{stage.name} finished under another recipe or command than that of '
        f'{", ".join(stage.gin_files)}: remove {directory} or give another output directory.'
      )
    return None
  code = start(stage.words())
  if code == 0:
    files.write(marker, fingerprint)
  return code


def _fingerprint(stage: Stage) -> str:
  """Digest of the command, its recipes, and everything that they include."""
  digest = hashlib.sha256(shlex.join(stage.words()).encode())
  left, seen = list(stage.gin_files), set()
  while left:
    name = left.pop(0)
    candidates = [folder / name for folder in (pathlib.Path(), ROOT / 'gin_configs', ROOT)]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None or path in seen:  # the program reports a missing file
      continue
    seen.add(path)
    digest.update(path.read_bytes())
    left += re.findall(r"""^include\s+['"](.+?)['"]""", path.read_text(), re.MULTILINE)
  return digest.hexdigest()
