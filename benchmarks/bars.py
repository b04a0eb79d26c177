"""What was measured, each number held against its bar: a table on the terminal, and JSON."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Measured(NamedTuple):
  """One number. Without a bar it is there to compare with."""

  what: str
  value: float
  unit: str
  at_least: float | None = None
  at_most: float | None = None
  note: str = ''

  @property
  def holds(self) -> bool | None:
    if self.at_least is not None:
      return bool(self.value >= self.at_least)
    return None if self.at_most is None else bool(self.value < self.at_most)


def report(
  title: str,
  measured: Sequence[Measured],
  output: str | os.PathLike[str],
  settings: Mapping[str, Any],
) -> None:
  """Prints the table with the machine and the commit it holds for, and writes all as JSON."""
  where = machine()
  print(f'{title}\n{"what":58}{"value":>14} {"unit":12}{"bar":>12}')
  for one in measured:
    verdict = {True: 'holds', False: 'MISSED', None: ''}[one.holds]
    print(
      f'{one.what:58}{_number(one.value):>14} {one.unit:12}{_bar(one):>12}  {verdict:8}{one.note}'
    )
  print(', '.join(f'{name} {value}' for name, value in {**where, **settings}.items()))
  path = pathlib.Path(output)
  path.parent.mkdir(parents=True, exist_ok=True)
  records = [{**one._asdict(), 'holds': one.holds} for one in measured]
  path.write_text(
    json.dumps({'machine': where, 'settings': dict(settings), 'measured': records}, indent=2)
  )


def machine() -> dict[str, Any]:
  """The processor, how busy it is with other work, and the commit, '+' if the tree differs."""
  return {
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
    'load': round(os.getloadavg()[0], 1),
    'python': platform.python_version(),
    'commit': _git('rev-parse', '--short', 'HEAD') + '+' * bool(_git('status', '--porcelain')),
  }


def memory(process: str = 'self') -> dict[str, int]:
  """Bytes of a process now: its own ('private'), and pages of files ('mapped'); and the peak.

  Mapped pages are the kernel's cache of the files, which it takes back when memory is short.
  """
  kibibytes = {
    line.split(':')[0]: int(line.split()[1])
    for line in pathlib.Path(f'/proc/{process}/status').read_text().splitlines()
    if line.endswith(' kB')
  }
  names = {'private': 'RssAnon', 'mapped': 'RssFile', 'peak': 'VmHWM'}
  return {name: kibibytes[field] * 1024 for name, field in names.items()}


def use_cores(count: int) -> None:
  """Runs this process and those that it starts on so many cores."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _bar(one: Measured) -> str:
  if one.at_least is not None:
    return f'>= {_number(one.at_least)}'
  return '' if one.at_most is None else f'< {_number(one.at_most)}'


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.machine()


def _git(*command: str) -> str:
  here = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(['git', *command], capture_output=True, text=True, check=True, cwd=here)
  except (OSError, subprocess.CalledProcessError):
    return ''
  return done.stdout.strip()
