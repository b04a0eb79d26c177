"""Tables of predictions as sharded JSON lines: the answers of one model to one split of a task.

A directory holds one split, in files with T5X's names:

    {task}-{mode}.jsonl-00000-of-00004             rows (see `rows`), in the split's order
    {task}-{mode}.jsonl-00000-of-00004.COMPLETED   written after it: count, size, digest
    {task}-{mode}.manifest.json                    written last: origin of the table
    {task}-{mode}.begun.json                       the same of a table that is being written

A table without a manifest is unfinished; a shard that differs from its marker is written again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote, unquote

import msgspec
from etils import epath

from cascades.predictions import columns, markers, rows
from cascades.predictions.rows import Finite, JsonRow, Mode, Positive, PredictionRow
from cascades.runtime import files, origins
from cascades.types import Predictions

VERSION = 1
MOST_DEFECTS = 3  # shards that an error names
_MANIFEST, _BEGUN = 'manifest.json', 'begun.json'


class _TableManifest(msgspec.Struct):
  """Required keys of a manifest; others are kept as they are."""

  version: int
  task: str
  split: str
  mode: str
  rows: Positive
  shards: Positive
  model: dict[str, Any]
  parameters: Positive
  flops_per_token: Annotated[float, msgspec.Meta(gt=0, le=rows.HIGHEST)]
  checkpoint: str
  step: int
  vocabulary: str
  decoding: dict[str, Any]
  precision: str
  metrics: Annotated[list[str], msgspec.Meta(min_length=1)]
  config: str
  baselines: dict[str, dict[str, Finite]] = {}


def shard_name(task: str, mode: Mode, index: int, count: int) -> str:
  """File name of a shard."""
  return f'{stem(task, mode)}.jsonl-{index:05d}-of-{count:05d}'


def shard_rows(total: int, index: int, count: int) -> range:
  """Rows of the split that a shard holds: contiguous, and evenly distributed.

  Args:
    total: Number of rows of the split.
    index: Index of the shard.
    count: Number of shards.
  """
  return range(total * index // count, total * (index + 1) // count)


def begin(
  directory: epath.PathLike,
  origin: Mapping[str, Any],
  *,
  fingerprint: str,
  overwrite: bool,
  setting: str = 'INFER_OUTPUT_DIR',
) -> None:
  """Make room for a table: an unfinished one of the same origin is resumed, another is refused.

  Writes a file in any case, so that a directory that cannot be written to is noticed.

  Args:
    directory: Directory of the split.
    origin: Model, settings and data of the table, with `task` and `mode`, as JSON.
    fingerprint: Identifies them.
    overwrite: True removes a table of another origin.
    setting: Name of the setting that gives the directory, for messages.

  Raises:
    ValueError: naming the differences, if the directory holds a table of another origin.
    OSError: if the directory cannot be written to.
  """
  directory, name = epath.Path(directory), stem(origin['task'], origin['mode'])
  marker = directory / f'{name}.{_BEGUN}'
  different = _differences(directory, name, origin, fingerprint)
  if different and not overwrite:
    raise ValueError(
      f'{directory} holds answers to {origin["task"]} (mode {origin["mode"]}) of another origin: '
      f'{"; ".join(different)}. Name another {setting}, or replace them with OVERWRITE=True.'
    )
  if different:
    table = [path for path in directory.iterdir() if path.name.startswith(f'{name}.')]
    # Without its manifest a table is unfinished, whenever this is interrupted.
    for path in sorted(table, key=lambda path: path.name != f'{name}.{_MANIFEST}'):
      path.unlink()
  files.write(marker, _json({**origin, 'fingerprint': fingerprint}, indent=2) + b'\n')


def _differences(
  directory: epath.Path, name: str, origin: Mapping[str, Any], fingerprint: str
) -> list[str]:
  """Differences from the table of this name in the directory, if there is one."""
  path = _origin_file(directory, name)
  if not path.exists():  # perhaps unfinished, of a version that did not write its origin first
    written = markers.fingerprints(directory, f'{name}.jsonl-*')
    return [] if written <= {fingerprint} else ['an unfinished table of unknown origin']
  try:
    stored = {'alternatives': 0} | _flat(json.loads(path.read_bytes()))  # older ones have none
    expected = _flat(json.loads(_json(origin)))
  except (ValueError, AttributeError) as error:
    return [f'{path.name} is damaged ({error})']
  if stored.get('checkpoint_identity') == expected.get('checkpoint_identity'):
    expected['checkpoint'] = stored.get('checkpoint')  # the same one elsewhere
  different = origins.differences(stored, expected, [key for key in expected if key in stored])
  same_path = stored.get('checkpoint') == origin.get('checkpoint')
  if not different and same_path and stored.get('fingerprint', '') != fingerprint:
    return ['its rows, or their tokens, are others']
  return different


def stored_origin(directory: epath.PathLike, task: str, mode: Mode) -> Mapping[str, Any]:
  """Origin of the table that a directory has, as JSON; empty if there is none, or it is damaged."""
  path = _origin_file(epath.Path(directory), stem(task, mode))
  try:
    return dict(json.loads(path.read_bytes())) if path.exists() else {}
  except (ValueError, TypeError):
    return {}


def _origin_file(directory: epath.Path, name: str) -> epath.Path:
  """File with the origin of a table, be it unfinished or finished."""
  begun, manifest = (directory / f'{name}.{suffix}' for suffix in (_BEGUN, _MANIFEST))
  return begun if begun.exists() else manifest


def _flat(origin: Mapping[str, Any]) -> dict[str, Any]:
  """Single fields of the model and of the decoding."""
  flat: dict[str, Any] = {}
  for key, value in origin.items():
    flat |= {f'{key} {k}': v for k, v in value.items()} if isinstance(value, dict) else {key: value}
  return flat


def write_shard(
  directory: epath.PathLike,
  task: str,
  mode: Mode,
  index: int,
  count: int,
  records: Iterable[JsonRow],
  *,
  fingerprint: str = '',
) -> None:
  """Write a shard, then its marker.

  Args:
    directory: Directory of the split.
    task: Name of the task.
    mode: Mode of the table.
    index: Index of the shard.
    count: Number of shards.
    records: Rows of the shard, from `rows.build`.
    fingerprint: Identifies the model, settings and data that the rows were computed from.

  Raises:
    ValueError: if a row is invalid; no file is written then.
  """
  lines = []
  for record in records:
    rows.parse(record, mode)
    lines.append(_json(record) + b'\n')
  data = b''.join(lines)
  path = epath.Path(directory) / shard_name(task, mode, index, count)
  markers.write(path, data, rows=len(lines), fingerprint=fingerprint)


def completed_shards(
  directory: epath.PathLike, task: str, mode: Mode, count: int, *, total: int, fingerprint: str = ''
) -> set[int]:
  """Indices of the shards that a resumed run can keep.

  A shard is complete if it equals its marker in size, digest, number of rows and fingerprint.

  Args:
    directory: Directory of the split.
    task: Name of the task.
    mode: Mode of the table.
    count: Number of shards.
    total: Number of rows of the split.
    fingerprint: Identifies the model, settings and data of the run.
  """
  paths = [epath.Path(directory) / shard_name(task, mode, index, count) for index in range(count)]
  return {
    index
    for index, path in enumerate(paths)
    if not markers.defect(path, rows=len(shard_rows(total, index, count)), fingerprint=fingerprint)
  }


def write_manifest(directory: epath.PathLike, manifest: Mapping[str, Any]) -> None:
  """Complete a table.

  Args:
    directory: Directory of the split.
    manifest: Origin of the table, with at least the keys of `_TableManifest` but for the version.

  Raises:
    ValueError: if a shard is missing or damaged, or a required key is missing or of another type.
  """
  manifest = {'version': VERSION, **manifest}
  _check_manifest(manifest)
  path = epath.Path(directory) / manifest_name(manifest['task'], manifest['mode'])
  _check_shards(path.parent, manifest)
  files.write(path, _json(manifest, indent=2) + b'\n')
  (path.parent / path.name.replace(_MANIFEST, _BEGUN)).unlink(missing_ok=True)


def read(
  directory: epath.PathLike, *, task: str | None = None, mode: Mode = 'predict'
) -> list[Predictions]:
  """Tables of one mode in a directory, sorted by task.

  Args:
    directory: Directory of a split, as `python -m cascades.infer` writes it.
    task: Name of the only task to read; None reads all.
    mode: Mode of the tables.

  Raises:
    FileNotFoundError: if there is no such directory or table, or a table is unfinished.
    ValueError: if a shard is damaged or a row invalid, naming file, line, field and value.
  """
  directory = epath.Path(directory)
  return [
    columns.of_rows(_read_rows(directory, manifest), manifest)
    for manifest in _manifests(directory, task, mode)
  ]


def read_rows(
  directory: epath.PathLike, *, task: str, mode: Mode = 'predict'
) -> tuple[Mapping[str, Any], list[PredictionRow]]:
  """Manifest and rows of one table, with the tokens of its answers.

  The arguments are those of `read`, as are the errors.
  """
  directory = epath.Path(directory)
  (manifest,) = _manifests(directory, task, mode)
  return manifest, _read_rows(directory, manifest)


def _manifests(directory: epath.Path, task: str | None, mode: Mode) -> list[Mapping[str, Any]]:
  """Manifests of the tables of one mode, or that of one task."""
  if not directory.exists():
    raise FileNotFoundError(
      f'{directory} does not exist; it should hold what `python -m cascades.infer` wrote.'
    )
  names = sorted(path.name for path in directory.iterdir())
  shards = [re.fullmatch(rf'(.+)-{mode}\.jsonl-\d{{5}}-of-\d{{5}}', name) for name in names]
  begun = {unquote(shard[1]) for shard in shards if shard}
  manifests = {
    manifest['task']: manifest
    for name in names
    if name.endswith(f'-{mode}.manifest.json')
    for manifest in [_load_manifest(directory / name)]
  }
  requested = {task} if task is not None else begun | set(manifests)
  if unfinished := sorted((requested & begun) - set(manifests)):
    raise FileNotFoundError(
      f'{directory}: inference of {", ".join(map(repr, unfinished))} (mode {mode}) has not '
      'finished: there is no manifest. Rerun the same command to resume it.'
    )
  if not requested or not requested <= set(manifests):
    raise FileNotFoundError(
      f'{directory} holds no table of mode {mode!r}{"" if task is None else f" of task {task!r}"}; '
      f'it has tables of: {", ".join(sorted(manifests)) or "no task"}.'
    )
  return [manifests[name] for name in sorted(requested)]


def _read_rows(directory: epath.Path, manifest: Mapping[str, Any]) -> list[PredictionRow]:
  _check_shards(directory, manifest)
  task, mode, count = manifest['task'], manifest['mode'], manifest['shards']
  table: list[PredictionRow] = []
  seen: set[str] = set()
  for index in range(count):
    path = directory / shard_name(task, mode, index, count)
    for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], start=1):
      try:
        row = rows.decode(line, mode)
        _check_consistent(row, table[0] if table else row, manifest['metrics'])
        if row.id in seen:
          raise ValueError(f'id {row.id!r} occurs twice')
      except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f'{path}, line {number}: {error}') from error
      seen.add(row.id)
      table.append(row)
  return table


def _check_consistent(row: PredictionRow, first: PredictionRow, metrics: Sequence[str]) -> None:
  """Raise ValueError unless the row has the columns of the first one."""
  if set(row.statistics) != set(metrics):
    raise ValueError(f'statistics of {sorted(row.statistics)}, but the manifest lists {metrics}')
  for name, values in row.statistics.items():
    if len(values) != len(first.statistics[name]):
      raise ValueError(
        f'{len(values)} statistics of {name}, but {len(first.statistics[name])} in the first row'
      )
  if (row.group is None) != (first.group is None):
    raise ValueError(f'group is {row.group!r}, but {first.group!r} in the first row')


def _load_manifest(path: epath.Path) -> Mapping[str, Any]:
  try:
    manifest = json.loads(path.read_bytes(), parse_constant=rows.refuse_constant)
    _check_manifest(manifest)
    if path.name != (expected := manifest_name(manifest['task'], manifest['mode'])):
      raise ValueError(f'the table that it describes has its manifest in {expected}')
  except (ValueError, OverflowError, RecursionError) as error:
    raise ValueError(f'{path}: {error}') from error
  return manifest


def _check_manifest(manifest: Any) -> None:
  version = rows.convert(manifest, _TableManifest).version
  if version != VERSION:
    raise ValueError(f'version: expected {VERSION} of the format, found {version}')


def _check_shards(directory: epath.Path, manifest: Mapping[str, Any]) -> None:
  count, defects = manifest['shards'], []
  for index in range(count):
    path = directory / shard_name(manifest['task'], manifest['mode'], index, count)
    total = len(shard_rows(manifest['rows'], index, count))
    if defect := markers.defect(path, rows=total, fingerprint=manifest.get('fingerprint', '')):
      defects.append(f'{path.name} {defect}')
    if len(defects) == MOST_DEFECTS:  # a manifest may claim any number of shards
      break
  if defects:
    more = ' or more' if len(defects) == MOST_DEFECTS else ''
    raise ValueError(
      f'{directory}: {len(defects)}{more} of {count} shards are not complete: '
      f'{"; ".join(defects)}. Rerun inference with the same settings to write them.'
    )


def manifest_name(task: str, mode: Mode) -> str:
  """File name of a manifest."""
  return f'{stem(task, mode)}.{_MANIFEST}'


def stem(task: str, mode: Mode) -> str:
  """Beginning of the names of a table's files; the task's name is percent-encoded."""
  return f'{quote(task, safe="")}-{mode}'


def _json(value: Any, *, indent: int | None = None) -> bytes:
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
  # Half a surrogate pair cannot be encoded; its backslash escape is the JSON for it.
  return text.encode('utf-8', 'backslashreplace')
