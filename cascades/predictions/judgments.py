"""Texts to rank and judgments of them, in the files of BEIR and TREC.

Documents and queries are JSON lines (or CSV, TSV) with `id` or `_id`, `text` and perhaps `title`.
Judgments (qrels) are `query document grade` or TREC's `query 0 document grade`; runs are TREC's
`query Q0 document rank score tag`, or a table of query, document and, in its last column, score.
Columns are separated by tabs or spaces, and a first line without numbers is a header. All may be
packed, as .gz.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from etils import epath

from cascades.predictions.imported import lines, unpacked
from cascades.runtime import files

Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
Run: TypeAlias = Mapping[str, Mapping[str, float]]

TAG = 'cascades'  # of runs, in their last column


def texts(path: epath.PathLike, setting: str) -> dict[str, str]:
  """Texts by id, in the order of the file; a title stands before its text.

  Args:
    path: The file.
    setting: Setting that names the file, for messages.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A line has no id or text, an id repeats or has white space, or the file is empty.
  """
  location = files.absolute(path)
  if not location.is_file():
    raise FileNotFoundError(f'{setting}={path} is no file: give JSON lines of id and text.')
  by_id: dict[str, str] = {}
  for number, record in lines(str(location)):
    where = f'{path}, line {number}'
    fields = record if isinstance(record, dict) else {}
    name = str(fields.get('_id', fields.get('id', '')))
    text, title = fields.get('text'), fields.get('title') or ''
    if not name or not isinstance(text, str) or not isinstance(title, str):
      raise ValueError(f'{where}: expected `id` (or `_id`) and `text`, found {record!r:.80}.')
    if name.split() != [name]:
      raise ValueError(f'{where}: the id {name!r:.80} has white space, which separates columns.')
    if name in by_id:
      raise ValueError(f'{where}: the id {name!r:.80} stands in another line too.')
    by_id[name] = f'{title} {text}'.strip()
  if not by_id:
    raise ValueError(f'{setting}={path} has no line: expected one or more texts.')
  return by_id


def read_qrels(path: epath.PathLike) -> dict[str, dict[str, int]]:
  """Grades by query and document; above 0 is relevant.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A line cannot be read, or nothing is relevant.
  """
  qrels: dict[str, dict[str, int]] = {}
  for where, columns in _rows(path, 'QRELS'):
    if len(columns) not in (3, 4):
      raise ValueError(f'{where}: {len(columns)} columns; expected query, document and grade.')
    qrels.setdefault(columns[0], {})[columns[-2]] = int(_number(where, columns[-1], integer=True))
  if not any(grade > 0 for grades in qrels.values() for grade in grades.values()):
    raise ValueError(f'QRELS={path} has no grade above 0: nothing is relevant, nothing to measure.')
  return qrels


def read_run(path: epath.PathLike) -> dict[str, dict[str, float]]:
  """Scores by query and document.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A line cannot be read, or a document repeats.
  """
  run: dict[str, dict[str, float]] = {}
  for where, columns in _rows(path, 'a run'):
    if len(columns) not in (3, 4, 6):
      raise ValueError(
        f"{where}: {len(columns)} columns; expected TREC's six, or query, document and score."
      )
    document = columns[2] if len(columns) == 6 else columns[1]
    scores = run.setdefault(columns[0], {})
    if document in scores:
      raise ValueError(f'{where}: document {document!r:.80} stands twice for {columns[0]!r:.80}.')
    scores[document] = _number(where, columns[4 if len(columns) == 6 else -1])
  if not run:
    raise ValueError(f'{path} has no line: expected scores of documents.')
  return run


def write_run(path: epath.PathLike, ranked: Mapping[str, Sequence[tuple[str, float]]]) -> None:
  """Write TREC's six columns, with scores to the last digit.

  Args:
    path: File to write.
    ranked: Documents and scores of each query, the best first.
  """
  files.write(
    path,
    ''.join(
      f'{query} Q0 {document} {rank} {float(score)!r} {TAG}\n'
      for query, documents in ranked.items()
      for rank, (document, score) in enumerate(documents, 1)
    ),
  )


def _rows(path: epath.PathLike, name: str) -> Iterator[tuple[str, list[str]]]:
  """Columns of each line, without a header, and where the line stands."""
  location = files.absolute(path)
  if not location.is_file():
    raise FileNotFoundError(f'{path} ({name}) is no file: correct the path.')
  for number, line in enumerate(unpacked(str(location)).splitlines(), 1):
    columns = line.split('\t') if '\t' in line else line.split()
    if not columns or (number == 1 and not _is_number(columns[-2 if len(columns) == 6 else -1])):
      continue
    yield f'{path}, line {number}', columns


def _is_number(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False


def _number(where: str, text: str, *, integer: bool = False) -> float:
  if not _is_number(text) or (integer and not float(text).is_integer()):
    raise ValueError(f'{where}: {text!r:.80} is no {"integer" if integer else "finite number"}.')
  return float(text)
