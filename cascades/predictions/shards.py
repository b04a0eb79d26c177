"""Tables of predictions as sharded JSON lines: what one model answered to one task's split.

A directory holds one split, in files that are named as T5X names them:

    {task}-{mode}.jsonl-00000-of-00004             rows (see `rows`), in the split's order
    {task}-{mode}.jsonl-00000-of-00004.COMPLETED   written after it: count, size, digest
    {task}-{mode}.manifest.json                    written last: what made the table

A table without a manifest is unfinished; a shard that differs from its marker does not count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import quote, unquote

import numpy as np
from etils import epath

from cascades.predictions import rows
from cascades.predictions.rows import Mode, Row
from cascades.runtime import files
from cascades.types import Predictions

VERSION = 1
MARKER = '.COMPLETED'
NUMBER = (int, float)
REQUIRED: Mapping[str, type | tuple[type, ...]] = {
  'version': int, 'task': str, 'split': str, 'mode': str, 'rows': int, 'shards': int,
  'model': dict, 'parameters': int, 'flops_per_token': NUMBER, 'checkpoint': str, 'step': int,
  'vocabulary': str, 'decoding': dict, 'precision': str, 'metrics': list, 'config': str,
}  # fmt: skip


def shard_name(task: str, mode: Mode, index: int, count: int) -> str:
  """A task's name may hold anything; in a file's name it is percent-encoded."""
  return f'{_stem(task, mode)}.jsonl-{index:05d}-of-{count:05d}'


def shard_rows(total: int, index: int, count: int) -> range:
  """Which of the split's rows a shard holds: contiguous, and as even as can be."""
  return range(total * index // count, total * (index + 1) // count)


def write_shard(
  directory: epath.PathLike,
  task: str,
  mode: Mode,
  index: int,
  count: int,
  records: Iterable[Row],
  *,
  fingerprint: str = '',
) -> None:
  """Writes a shard, then its marker. `fingerprint` names what the rows were computed from."""
  lines = []
  for record in records:
    rows.parse(record, mode)
    lines.append(_json(record) + b'\n')
  data = b''.join(lines)
  path = epath.Path(directory) / shard_name(task, mode, index, count)
  files.write(path, data)
  files.write(_marker(path), _json(_summary(data, len(lines), fingerprint)))


def completed_shards(
  directory: epath.PathLike, task: str, mode: Mode, count: int, *, total: int, fingerprint: str = ''
) -> set[int]:
  """The shards that a resumed run need not make again.

  One without marker, truncated or changed since, of other than its share of the split's rows, or
  made from something else (another fingerprint) does not count.
  """
  paths = [epath.Path(directory) / shard_name(task, mode, index, count) for index in range(count)]
  return {
    index
    for index, path in enumerate(paths)
    if not _defect(path, len(shard_rows(total, index, count)), fingerprint)
  }


def write_manifest(directory: epath.PathLike, manifest: Mapping[str, Any]) -> None:
  """Completes a table. Refuses while a shard or a required entry is missing."""
  manifest = {'version': VERSION, **manifest}
  _check_manifest(manifest)
  path = epath.Path(directory) / f'{_stem(manifest["task"], manifest["mode"])}.manifest.json'
  _check_shards(path.parent, manifest)
  files.write(path, _json(manifest, indent=2) + b'\n')


def read(
  directory: epath.PathLike, *, task: str | None = None, mode: Mode = 'predict'
) -> list[Predictions]:
  """All tables of one mode, or the one of `task`, sorted by task. Refuses what is incomplete."""
  directory = epath.Path(directory)
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
  wanted = {task} if task is not None else begun | set(manifests)
  if unfinished := sorted((wanted & begun) - set(manifests)):
    raise FileNotFoundError(
      f'{directory}: inference of {", ".join(map(repr, unfinished))} (mode {mode}) has not '
      'finished: there is no manifest. Run it again to continue.'
    )
  if not wanted or not wanted <= set(manifests):
    raise FileNotFoundError(
      f'{directory} holds no table of mode {mode!r}{"" if task is None else f" of task {task!r}"}; '
      f'tasks there: {", ".join(sorted(manifests)) or "none"}.'
    )
  return [_read_table(directory, manifests[name]) for name in sorted(wanted)]


def _read_table(directory: epath.Path, manifest: Mapping[str, Any]) -> Predictions:
  _check_shards(directory, manifest)
  task, mode, count = manifest['task'], manifest['mode'], manifest['shards']
  table: list[rows.Parsed] = []
  seen: set[str] = set()
  for index in range(count):
    path = directory / shard_name(task, mode, index, count)
    for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], start=1):
      try:
        row = rows.parse(json.loads(line, parse_constant=_refuse_constant), mode)
        _check_fits(row, table[0] if table else row, manifest['metrics'])
        if row.id in seen:
          raise ValueError(f'id {row.id!r} occurs twice')
      except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f'{path}, line {number}: {error}') from error
      seen.add(row.id)
      table.append(row)
  return columns(table, manifest)


def columns(table: Sequence[rows.Parsed], manifest: Mapping[str, Any]) -> Predictions:
  lengths = np.array([len(row.logprobs) for row in table])
  mask = np.arange(max(1, lengths.max())) < lengths[:, None]
  logprobs = np.zeros(mask.shape)
  logprobs[mask] = np.concatenate([row.logprobs for row in table])
  return Predictions(
    task=manifest['task'],
    split=manifest['split'],
    ids=[row.id for row in table],
    inputs=[row.inputs for row in table],
    targets=[row.targets for row in table],
    predictions=[row.prediction for row in table],
    logprobs=logprobs,
    mask=mask,
    statistics={
      name: np.array([row.statistics[name] for row in table], float) for name in manifest['metrics']
    },
    manifest=manifest,
    groups=[row.group for row in table if row.group is not None],
  )


def _check_fits(row: rows.Parsed, first: rows.Parsed, metrics: Sequence[str]) -> None:
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
    manifest = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    _check_manifest(manifest)
  except (ValueError, OverflowError, RecursionError) as error:
    raise ValueError(f'{path}: {error}') from error
  return manifest


def _check_manifest(manifest: Any) -> None:
  for name, kind in REQUIRED.items():
    rows.get(manifest, name, kind)
  if manifest['version'] != VERSION:
    raise ValueError(f'version {manifest["version"]} of the format; this program reads {VERSION}')
  for name in ('rows', 'shards', 'parameters', 'flops_per_token'):
    if not manifest[name] > 0:
      raise ValueError(f'{name} must be above 0, found {manifest[name]}')
  if not manifest['metrics'] or not all(isinstance(name, str) for name in manifest['metrics']):
    raise ValueError(f'metrics must be one or more names, found {manifest["metrics"]!r:.80}')


def _check_shards(directory: epath.Path, manifest: Mapping[str, Any]) -> None:
  count, defects = manifest['shards'], []
  for index in range(count):
    path = directory / shard_name(manifest['task'], manifest['mode'], index, count)
    total = len(shard_rows(manifest['rows'], index, count))
    if defect := _defect(path, total, manifest.get('fingerprint', '')):
      defects.append(f'{path.name} {defect}')
  if defects:
    raise ValueError(
      f'{directory}: {len(defects)} of {count} shards do not count: {"; ".join(defects[:3])}. '
      'Run inference again to make them.'
    )


def _defect(path: epath.Path, total: int, fingerprint: str) -> str:
  """Why a shard does not count, or nothing."""
  if not path.exists():
    return 'is missing'
  if not _marker(path).exists():
    return f'has no {MARKER} marker'
  try:
    marked = json.loads(_marker(path).read_bytes())
  except ValueError:
    return 'has an unreadable marker'
  expected = _summary(path.read_bytes(), total, fingerprint)
  wrong = [name for name in expected if marked.get(name) != expected[name]]
  return ', '.join(
    f'has {name} {expected[name]!r} where its marker says {marked.get(name)!r}' for name in wrong
  )


def _summary(data: bytes, total: int, fingerprint: str) -> dict[str, Any]:
  digest = hashlib.sha256(data).hexdigest()
  return {'rows': total, 'bytes': len(data), 'sha256': digest, 'fingerprint': fingerprint}


def _marker(path: epath.Path) -> epath.Path:
  return path.parent / (path.name + MARKER)


def _stem(task: str, mode: Mode) -> str:
  return f'{quote(task, safe="")}-{mode}'


def _json(value: Any, *, indent: int | None = None) -> bytes:
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
  # Half a surrogate pair cannot be encoded; its backslash escape is the JSON for it.
  return text.encode('utf-8', 'backslashreplace')


def _refuse_constant(name: str) -> NoReturn:
  raise ValueError(f'{name} is not a number; log-probabilities and statistics must be finite')
