"""Audited exchanges of the log of a server, followed while it is written.

    FOLDER/audited.jsonl   {"id": ..., "small": row, "large": row}, one line for each exchange that
                           was drawn for an audit and that both models answered to the end
    FOLDER/position.json   {"positions": {role: [file, bytes read]}, "waiting": {id: {role: row}},
                           "damaged": lines that are no JSON}

Both rows of an exchange are in files of their own, and may arrive at different times. A line is
read once it is complete, and an exchange stored once, however often the process is killed: the
position follows the rows that were stored, and ids that are stored already are left out.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from typing import Any

from etils import epath

from cascades.predictions.importers import serving
from cascades.runtime import files
from cascades.serving.exchanges import PAIR
from cascades.serving.metering import OPEN

log = logging.getLogger(__name__)

MARK = b'"audit": true'  # in each row of an audit; within texts its quotes are escaped
MOST_WAITING = 1000  # exchanges of which a row is missing; the oldest are given up


class AuditedRows:
  """Audited exchanges so far, in the order in which they were complete."""

  def __init__(self, directory: epath.PathLike, folder: epath.PathLike):
    """Opens the store.

    Args:
      directory: LOG_DIR of a server of two models.
      folder: Folder of the store, local, which one process at a time uses.

    Raises:
      FileNotFoundError: There is no such log.
      ValueError: The log is one of other models than a small and a large one.
    """
    self._log, self._folder = files.absolute(directory), files.absolute(folder)
    if not self._log.is_dir():
      raise FileNotFoundError(
        f'LOG_DIR={self._log} does not exist: it is the folder that `python -m cascades.serve` '
        'writes with LOG_DIR.'
      )
    folders = {path.name for path in self._log.iterdir() if path.is_dir()}
    if folders and not folders.issuperset(PAIR):
      raise ValueError(
        f'LOG_DIR={self._log} has folders {", ".join(sorted(folders))}, and the log of two models '
        f'has {" and ".join(PAIR)}: policies of longer chains are calibrated by hand.'
      )
    self._store = self._folder / 'audited.jsonl'
    self._position_file = self._folder / 'position.json'
    self._positions: dict[str, tuple[str, int]] = {}
    self._waiting: dict[str, dict[str, Any]] = {}
    self.damaged = 0
    if self._position_file.exists():
      stored = json.loads(self._position_file.read_bytes())
      self._positions = {role: (name, at) for role, (name, at) in stored['positions'].items()}
      self._waiting, self.damaged = stored['waiting'], stored['damaged']
    self._ids = {row['id'] for row in self._complete()}
    self._waiting = {name: row for name, row in self._waiting.items() if name not in self._ids}

  def __len__(self) -> int:
    return len(self._ids)

  def read(self) -> int:
    """Store the exchanges that are new in the log; their number."""
    before = self._positions.copy(), self.damaged
    pairs = []
    for role in PAIR:
      for record in self._new(role):
        name = record['aux']['id']
        if name in self._ids:
          continue
        rows = self._waiting.setdefault(name, {})
        rows[role] = record
        if len(rows) == len(PAIR):
          del self._waiting[name]
          self._ids.add(name)
          pairs.append({'id': name} | rows)
    for name in list(self._waiting)[: max(0, len(self._waiting) - MOST_WAITING)]:
      del self._waiting[name]
    if pairs:
      with files.open_local(self._store, 'ab') as file:
        file.write(b''.join(json.dumps(pair).encode() + b'\n' for pair in pairs))
    if before != (self._positions, self.damaged):
      position = {
        'positions': self._positions, 'waiting': self._waiting, 'damaged': self.damaged
      }  # fmt: skip
      files.write(self._position_file, json.dumps(position) + '\n')
    return len(pairs)

  def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
    """Exchanges by their number from 0."""
    if not self._store.exists():
      return []
    with self._store.open('rb') as file:
      return [json.loads(line) for line in itertools.islice(file, start, stop)]

  def _complete(self) -> list[dict[str, Any]]:
    """All exchanges; a line that a kill has cut is removed."""
    if not self._store.exists():
      return []
    with files.open_local(self._store, 'rb+') as file:
      data = file.read()
      end = data.rfind(b'\n') + 1
      file.truncate(end)
    return [json.loads(line) for line in data[:end].splitlines()]

  def _new(self, role: str) -> Iterator[Any]:
    """Rows of audits in complete lines behind the position, which moves on."""
    folder = self._log / role
    names = {path.name.removesuffix(OPEN) for path in folder.glob('*.jsonl*')}
    last, at = self._positions.get(role, ('', 0))
    for name in sorted(name for name in names if name >= last):
      offset = at if name == last else 0
      try:
        data = _tail(folder / name, offset)
      except FileNotFoundError:  # renamed while we looked, or removed: the next time tells
        return
      end = data.rfind(b'\n') + 1
      for line in data[:end].split(b'\n'):
        if MARK in line and (record := self._parsed(line, folder / name)) is not None:
          yield record
      self._positions[role] = (name, offset + end)

  def _parsed(self, line: bytes, path: epath.Path) -> Any:
    """Row of an exchange that both models answered to the end; None for another."""
    try:
      record = json.loads(line)
      if serving.exchange(record, answered='audit', judged=False) is not None:
        return record
    except (ValueError, KeyError, TypeError) as error:
      self.damaged += 1
      log.warning('%s: a damaged line is left out, %d in all (%s)', path, self.damaged, error)
    return None


def _tail(path: epath.Path, offset: int) -> bytes:
  """Content of a file of the log, complete or not, from an offset on."""
  opened = path.parent / f'{path.name}{OPEN}'
  with (path if path.exists() else opened).open('rb') as file:
    file.seek(offset)
    return file.read()
