"""Measurements and the bars that they are held to: a table on the terminal, and JSON.

`benchmarks/results/NAME.json` holds `title`, `commit`, `machine`, `settings`, and `rows`, each with
`what`, `value`, `unit`, `bar` (such as '>= 1', or null), `met` (null without a bar), and `note`.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / 'results'


class Measured(NamedTuple):
  """A number and its bar; without a bar it is there for comparison.

  Fields: `at_least` is an inclusive lower bound, `at_most` an exclusive upper bound.
  """

  what: str
  value: float
  unit: str
  at_least: float | None = None
  at_most: float | None = None
  note: str = ''

  @property
  def met(self) -> bool | None:
    if self.at_least is not None:
      return bool(self.value >= self.at_least)
    return None if self.at_most is None else bool(self.value < self.at_most)

  @property
  def bar(self) -> str | None:
    if self.at_least is not None:
      return f'>= {_number(self.at_least)}'
    return None if self.at_most is None else f'< {_number(self.at_most)}'


def report(
  title: str,
  measured: Iterable[Measured],
  output: str | os.PathLike[str],
  settings: Mapping[str, Any],
  details: Any = None,
  where: Mapping[str, Any] | None = None,
) -> None:
  """Print the table with the machine and the commit, and write everything as JSON.

  Args:
    title: First line of the table.
    measured: Rows of the table. Those of an iterator are printed and written as they are measured.
    output: File to write, usually in `RESULTS`.
    settings: Arguments of the measurement.
    details: More to write, for benchmarks whose rows are a summary.
    where: Machine and commit of numbers that were measured earlier; None for those of now.
  """
  where = machine() if where is None else where
  settings = {name: value for name, value in settings.items() if name != 'output'}
  rows: list[dict[str, Any]] = []
  contents = {
    'title': title, 'commit': where['commit'],
    'machine': {name: value for name, value in where.items() if name != 'commit'},
    'settings': settings, 'rows': rows,
  } | ({} if details is None else {'details': details})  # fmt: skip
  print(f'{title}\n{"what":58}{"value":>14} {"unit":12}{"bar":>12}', flush=True)
  for row in measured:
    verdict = {True: 'met', False: 'MISSED', None: ''}[row.met]
    value, bar = _number(row.value), row.bar or ''
    print(f'{row.what:58}{value:>14} {row.unit:12}{bar:>12}  {verdict:8}{row.note}', flush=True)
    rows.append(
      {'what': row.what, 'value': row.value, 'unit': row.unit, 'bar': row.bar, 'met': row.met,
       'note': row.note}
    )  # fmt: skip
    if isinstance(measured, Iterator):
      _write(output, contents)
  print(', '.join(f'{name} {value}' for name, value in {**where, **settings}.items()))
  _write(output, contents)


def _write(output: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
  path = pathlib.Path(output)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(contents, indent=2, default=_plain) + '\n')


def _plain(value: Any) -> Any:
  """NumPy scalars as numbers, paths as text."""
  return value.item() if hasattr(value, 'item') else str(value)


def machine() -> dict[str, Any]:
  """Processor, load, and commit; '+' means that files other than results differ from it."""
  results = (':!benchmarks/results', ':!experiments/*.json', ':!experiments/*.png')
  changes = _git('status', '--porcelain', '--', '.', *results)
  return {
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
    'load': round(os.getloadavg()[0], 1),
    'python': platform.python_version(),
    'commit': _git('rev-parse', '--short', 'HEAD') + '+' * bool(changes),
  }


def memory(process: str = 'self') -> dict[str, int]:
  """Bytes of a process: its own ('private'), pages of files ('mapped'), and the peak.

  Mapped pages belong to the kernel's cache of files and are reclaimed when memory is short.
  """
  kibibytes = {
    line.split(':')[0]: int(line.split()[1])
    for line in pathlib.Path(f'/proc/{process}/status').read_text().splitlines()
    if line.endswith(' kB')
  }
  names = {'private': 'RssAnon', 'mapped': 'RssFile', 'peak': 'VmHWM'}
  return {name: kibibytes[field] * 1024 for name, field in names.items()}


def use_cores(count: int) -> None:
  """Restrict this process and its children to `count` cores."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _number(value: float) -> str:
  return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.machine()


def _git(*command: str) -> str:
  root = pathlib.Path(__file__).parents[1]
  try:
    done = subprocess.run(['git', *command], capture_output=True, text=True, check=True, cwd=root)
  except (OSError, subprocess.CalledProcessError):
    return ''
  return done.stdout.strip()
