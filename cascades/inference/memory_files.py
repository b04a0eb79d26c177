"""Files of a memory: final states of a model at target tokens, and the tokens.

    manifest.json              written first: the model, the rows, and the shards
    00000.keys.npy             [n, D] final hidden states before the readout
    00000.tokens.npy           [n] tokens that followed
    00000.rows.npy             [n] numbers of the rows that they are of
    00000.top_tokens.npy       [n, m] most probable tokens, where probabilities are stored
    00000.top_logprobs.npy     [n, m] their log-probabilities
    NAME.npy.COMPLETED         written after each file: count, size, digest
    lookups.json               written last: lookups chosen by leave-one-out, bytes, milliseconds

Arrays are in NumPy's format without pickles.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cascades.predictions import markers
from cascades.runtime import files, origins

FORMAT = 1  # raise it when the layout of a directory changes
MANIFEST, LOOKUPS, INDEX = 'manifest.json', 'lookups.json', 'index.faiss'
COMMAND = 'python -m cascades.memorize'
MODEL = ('checkpoint_identity', 'vocabulary', 'vocab_size', 'width')  # keys that a reader compares


def digest(text: str) -> str:
  """SHA-256 of a text, such as a checkpoint's identity."""
  return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(manifest: Mapping[str, Any]) -> str:
  """Digest of a manifest, which every file of the memory carries in its marker."""
  return digest(json.dumps(manifest, sort_keys=True))


def array_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the arrays of a shard."""
  stored = ('top_tokens', 'top_logprobs') if manifest['top'] else ()
  return ('keys', 'tokens', 'rows', *stored)


def begin(directory: epath.Path, identity: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any]:
  """Write or check the manifest, before any entry is computed.

  Args:
    directory: Directory of the memory.
    identity: Description of model and rows that all files have in common.
    overwrite: True to remove a memory of another identity.

  Raises:
    ValueError: naming the differences, if the directory holds another memory.
  """
  if files.is_remote(directory):
    raise ValueError(
      f'A memory cannot be in {os.fspath(directory)}: it is mapped from a local or mounted file '
      'system. Name a local directory for it.'
    )
  manifest: dict[str, Any] = json.loads(json.dumps({'format': FORMAT, **identity}))
  path = directory / MANIFEST
  if path.exists():
    different = origins.differences(read_manifest(directory), manifest)
    if different and not overwrite:
      raise ValueError(
        f'{directory} holds another memory: {"; ".join(different)}. OVERWRITE=True replaces it, or '
        'name another directory (MEMORY).'
      )
    if different:
      directory.rmtree()
  files.write(path, json.dumps(manifest, indent=2) + '\n')
  return manifest


def missing(directory: epath.Path, manifest: Mapping[str, Any]) -> list[int]:
  """Indices of the shards that are not complete; reads every byte."""
  return [index for index in range(manifest['shards']) if _defect(directory, manifest, index)]


def write_shard(
  directory: epath.Path, manifest: Mapping[str, Any], index: int, arrays: Mapping[str, np.ndarray]
) -> None:
  """Write the arrays of a shard, which have one entry for each target token of its rows."""
  for name in array_names(manifest):
    buffer = io.BytesIO()
    np.save(buffer, arrays[name], allow_pickle=False)
    markers.write(
      _path(directory, index, name), buffer.getvalue(),
      rows=len(arrays[name]), fingerprint=fingerprint(manifest),
    )  # fmt: skip


def read_manifest(directory: epath.Path) -> dict[str, Any]:
  """Read a memory's manifest.

  Raises:
    FileNotFoundError: There is no memory.
    ValueError: The manifest is damaged, or of another format.
  """
  path = directory / MANIFEST
  if not path.exists():
    raise FileNotFoundError(
      f'{directory} holds no memory: {MANIFEST} is missing. Build one with `{COMMAND}`.'
    )
  types = dict.fromkeys(('format', 'shards', 'top', 'width', 'vocab_size'), int)
  try:
    manifest: dict[str, Any] = dict(json.loads(path.read_text()))
    for key, of_type in types.items():
      if not isinstance(manifest.get(key), of_type):
        raise ValueError(f'{key} is {manifest.get(key)!r:.80}')
    if manifest['format'] != FORMAT or manifest['shards'] < 1:
      raise ValueError(f'format {manifest["format"]}, {manifest["shards"]} shards')
  except (ValueError, TypeError, RecursionError) as error:
    raise ValueError(
      f'{path} is damaged ({error}): remove the directory, and build it again with `{COMMAND}`.'
    ) from error
  return manifest


def check_model(
  directory: epath.Path, manifest: Mapping[str, Any], model: Mapping[str, Any]
) -> None:
  """Raise ValueError, naming the differences, if a memory is of another model."""
  if different := origins.differences(manifest, model, MODEL):
    raise ValueError(
      f'the memory {directory} is of another model: {"; ".join(different)}. Its keys are states of '
      f'the model that wrote it: name its checkpoint, or build a memory with `{COMMAND}`.'
    )


def read(directory: epath.Path, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Arrays of all entries by name.

  Raises:
    ValueError: A file is missing, truncated or changed.
  """
  for index in range(manifest['shards']):
    if defect := _defect(directory, manifest, index):
      raise ValueError(
        f'the memory {directory} is not complete: {defect}. Rerun the same `{COMMAND}`, which '
        'writes what is missing.'
      )
  return {
    name: np.concatenate([_load(directory, index, name) for index in range(manifest['shards'])])
    for name in array_names(manifest)
  }


def write_lookups(
  directory: epath.Path, manifest: Mapping[str, Any], lookups: Mapping[str, Any]
) -> None:
  """Complete a memory."""
  content = json.dumps({'memory': fingerprint(manifest), **lookups}, indent=2) + '\n'
  markers.write(directory / LOOKUPS, content.encode(), rows=1, fingerprint=fingerprint(manifest))


def read_lookups(directory: epath.Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
  """Chosen lookups, and the memory's size and time. Raises ValueError if it is unfinished."""
  path = directory / LOOKUPS
  if defect := markers.defect(path, rows=1, fingerprint=fingerprint(manifest)):
    raise ValueError(
      f'the memory {directory} is not finished: {LOOKUPS} {defect}. Rerun the same `{COMMAND}`.'
    )
  return dict(json.loads(path.read_text()))


def size(directory: epath.Path, arrays: Sequence[np.ndarray]) -> int:
  """Bytes that a memory takes: its arrays, and the index if there is one."""
  index = directory / INDEX
  return sum(array.nbytes for array in arrays) + (index.stat().length if index.exists() else 0)


def _path(directory: epath.Path, index: int, name: str) -> epath.Path:
  return directory / f'{index:05d}.{name}.npy'


def _load(directory: epath.Path, index: int, name: str) -> np.ndarray:
  return np.load(os.fspath(_path(directory, index, name)), mmap_mode='r', allow_pickle=False)


def _defect(directory: epath.Path, manifest: Mapping[str, Any], index: int) -> str:
  """Reason why a shard is not complete, or an empty text."""
  counts = set()
  for name in array_names(manifest):
    path = _path(directory, index, name)
    try:
      rows = int(json.loads(markers.location(path).read_bytes())['rows'])
    except (OSError, ValueError, TypeError, KeyError):
      return f'{path.name} has no readable {markers.SUFFIX} marker'
    if defect := markers.defect(path, rows=rows, fingerprint=fingerprint(manifest)):
      return f'{path.name} {defect}'
    counts.add(rows)
  return '' if len(counts) == 1 else f'arrays of shard {index:05d} differ in length'
