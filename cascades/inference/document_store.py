"""Vectors of encoded documents on disk, memory-mapped, written in pieces that a killed run keeps.

    manifest.json        version, ranker, dtype, width, digest of the documents, and for each piece
                         its documents, token vectors, and the size and SHA-256 of its files
    ids.json             ids of the documents, in order
    vectors-00000.npy    token vectors of consecutive documents, one after the other, [tokens, W]
    lengths-00000.npy    number of token vectors of each document
    scales-00000.npy     for int8: the scale of each vector

Padding is not stored: its vectors are 0. NumPy's format is read without pickles.
Axes: N documents, L token vectors of a document, W width.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cascades.models.rankers import Encoded
from cascades.runtime import files, progress

log = logging.getLogger(__name__)

MANIFEST, IDS = 'manifest.json', 'ids.json'
VERSION = 1
DTYPES = ('float32', 'float16', 'int8')
PIECE = 2048  # documents


class StoreError(ValueError):
  """A store that is missing, unfinished, damaged, or of another ranker or other documents."""


class _Piece(msgspec.Struct):
  documents: int
  tokens: int
  files: dict[str, tuple[int, str]]  # size and SHA-256 by name


class _StoreManifest(msgspec.Struct):
  version: int
  ranker: str  # `Ranker.identity`
  documents: str  # SHA-256 of ids and texts
  count: int
  dtype: str
  width: int
  length: int  # most vectors of a document
  pieces: list[_Piece]


class DocumentStore(NamedTuple):
  """Open store. `vectors`, `lengths` and `scales` hold an array for each piece.

  Attributes:
    ids: Ids of the documents.
    length: Most vectors of a document; texts are padded to it.
    vectors: Memory-mapped token vectors.
    starts: First vector of each document in its piece, and the end of the last.
    scales: Scales of int8 vectors; empty for floats.
    bytes_per_document: Mean bytes of vectors, scales and lengths.
  """

  ids: tuple[str, ...]
  length: int
  vectors: tuple[np.ndarray, ...]
  starts: tuple[Int[np.ndarray, 'n1'], ...]
  scales: tuple[np.ndarray, ...]
  bytes_per_document: float

  def take(self, indices: Sequence[int] | Int[np.ndarray, 'n']) -> Encoded:
    """Vectors of documents by index, float32 and padded with 0."""
    width = self.vectors[0].shape[1]
    vectors = np.zeros((len(indices), self.length, width), np.float32)
    lengths = np.zeros(len(indices), np.int64)
    firsts = np.cumsum([0, *(len(starts) - 1 for starts in self.starts)])  # of each piece
    for row, index in enumerate(indices):
      piece = int(np.searchsorted(firsts, index, side='right')) - 1
      own = int(index - firsts[piece])
      begin, end = self.starts[piece][own : own + 2]
      lengths[row] = end - begin
      vectors[row, : end - begin] = self.vectors[piece][begin:end]
      if self.scales:
        vectors[row, : end - begin] *= self.scales[piece][begin:end, None]
    return Encoded(vectors, np.arange(self.length) < lengths[:, None])


def documents_digest(documents: Mapping[str, str]) -> str:
  """SHA-256 of ids and texts in their order."""
  digest = hashlib.sha256()
  for name, text in documents.items():
    digest.update(json.dumps([name, text]).encode())
  return digest.hexdigest()


def quantize(
  vectors: Float[np.ndarray, 'n W'],
) -> tuple[Int[np.ndarray, 'n W'], Float[np.ndarray, 'n']]:
  """int8 vectors and their float16 scales: v ~ scale * int8, the largest number of each at 127."""
  scales = (np.abs(vectors).max(-1) / 127).astype(np.float16)
  exact = np.where(scales > 0, scales, 1).astype(np.float32)
  values = np.clip(np.rint(vectors / exact[:, None]), -127, 127).astype(np.int8)
  return values, scales


def write(
  directory: epath.PathLike,
  documents: Mapping[str, str],
  encode: Callable[[Sequence[str]], Encoded],
  *,
  ranker: str,
  dtype: str = 'float16',
  overwrite: bool = False,
) -> None:
  """Encodes documents into a store; pieces that it has already are kept.

  Args:
    directory: Folder of the store.
    documents: Texts by id.
    encode: Vectors of texts.
    ranker: Identity of what encodes.
    dtype: Name in `DTYPES`.
    overwrite: Replace a store of another ranker, or of other documents.

  Raises:
    StoreError: The folder holds another store.
  """
  if dtype not in DTYPES:
    raise ValueError(f'DTYPE={dtype!r:.80} is none of {", ".join(DTYPES)}.')
  folder = files.absolute(directory)
  expected = _StoreManifest(
    VERSION, ranker, documents_digest(documents), len(documents), dtype, 0, 0, []
  )
  manifest = expected
  if (folder / MANIFEST).exists() and not overwrite:
    manifest = _read_manifest(folder)
    _compare(folder, manifest, expected, ('version', 'ranker', 'documents', 'dtype'))
  texts = list(documents.values())
  done = next(
    (n for n, piece in enumerate(manifest.pieces) if _defect(folder, piece, digest=True)),
    len(manifest.pieces),
  )
  manifest.pieces = manifest.pieces[:done]
  files.write(folder / IDS, json.dumps([*documents]))
  if done:
    log.info('%s: %d documents are encoded already', folder, sum(_documents(manifest)))
  batches = [texts[begin : begin + PIECE] for begin in range(0, len(texts), PIECE)]
  counting = progress.Counted('document', sum(map(len, batches[done:])), lambda n: (n, 0))
  for _ in counting(_encoded(folder, manifest, batches, done, encode)):
    pass
  log.info(
    '%s: %d documents, %s for each', folder, len(texts),
    progress.format_bytes(_bytes_per_document(manifest)),
  )  # fmt: skip


def _encoded(
  folder: epath.Path, manifest: _StoreManifest, batches: Sequence[Sequence[str]], done: int,
  encode: Callable[[Sequence[str]], Encoded],
) -> Any:  # fmt: skip
  """Writes the missing pieces, and gives the number of documents after each."""
  for number, texts in enumerate(batches[done:], done):
    encoded = encode(texts)
    flat = np.asarray(encoded.vectors)[np.asarray(encoded.mask)]
    arrays = {'lengths': np.asarray(encoded.mask).sum(1).astype(np.uint16)}
    if manifest.dtype == 'int8':
      arrays['vectors'], arrays['scales'] = quantize(flat)
    else:
      arrays['vectors'] = flat.astype(manifest.dtype)
    piece = _Piece(len(texts), len(flat), {})
    for name, array in arrays.items():
      content = io.BytesIO()
      np.save(content, array, allow_pickle=False)
      data = content.getvalue()
      file = f'{name}-{number:05}.npy'
      files.write(folder / file, data)
      piece.files[file] = (len(data), hashlib.sha256(data).hexdigest())
    manifest.width, manifest.length = flat.shape[1], encoded.mask.shape[1]
    manifest.pieces.append(piece)
    files.write(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
    yield len(texts)


def open_store(
  directory: epath.PathLike, *, ranker: str | None = None, digest: bool = True
) -> DocumentStore:
  """Opens a finished store.

  Args:
    directory: Folder of the store.
    ranker: Identity of the ranker that reads it; None accepts any.
    digest: Verify the content of all files, and not their sizes alone.

  Raises:
    StoreError: The store is missing, unfinished, damaged, or of another ranker.
  """
  folder = files.absolute(directory)
  if not (folder / MANIFEST).exists():
    raise StoreError(f'STORE={directory} holds no {MANIFEST}: make it with MODE=encode first.')
  manifest = _read_manifest(folder)
  if ranker is not None and manifest.ranker != ranker:
    raise StoreError(
      f'{folder} holds documents that another ranker encoded ({manifest.ranker}, and MODEL_DIR is '
      f'{ranker}): encode them again with this one, in another STORE.'
    )
  for piece in manifest.pieces:
    if defect := _defect(folder, piece, digest=digest):
      raise StoreError(f'{folder}: {defect}. Repair it with the command of MODE=encode.')
  if (count := sum(_documents(manifest))) != manifest.count:
    raise StoreError(
      f'{folder} is unfinished: {count} of {manifest.count} documents. Finish it with the command '
      'of MODE=encode.'
    )
  names = [sorted(piece.files) for piece in manifest.pieces]  # lengths, perhaps scales, vectors
  load = lambda name: np.load(folder / name, mmap_mode='r', allow_pickle=False)
  try:
    ids = tuple(json.loads((folder / IDS).read_text()))
    lengths = [np.asarray(load(own[0]), np.int64) for own in names]
    vectors = tuple(load(own[-1]) for own in names)
    scales = tuple(np.asarray(load(own[1])) for own in names if len(own) == 3)
  except (OSError, ValueError) as error:
    raise StoreError(f'{folder} cannot be read: {error}. Encode the documents again.') from error
  if len(ids) != manifest.count:
    raise StoreError(f'{folder}: {IDS} has {len(ids)} ids of {manifest.count}: encode again.')
  starts = tuple(np.append(0, np.cumsum(own)) for own in lengths)
  return DocumentStore(ids, manifest.length, vectors, starts, scales, _bytes_per_document(manifest))


def _read_manifest(folder: epath.Path) -> _StoreManifest:
  try:
    return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_StoreManifest)
  except msgspec.DecodeError as error:
    raise StoreError(
      f'{folder / MANIFEST} is damaged or of another version ({error}): encode the documents again '
      'in another STORE.'
    ) from error


def _compare(
  folder: epath.Path, actual: _StoreManifest, expected: _StoreManifest, fields: Sequence[str]
) -> None:
  for name in fields:
    if getattr(actual, name) != getattr(expected, name):
      raise StoreError(
        f'{folder} holds a store of another {name} ({getattr(actual, name)}, and not '
        f'{getattr(expected, name)}): choose another STORE, or replace it, OVERWRITE=True.'
      )


def _defect(folder: epath.Path, piece: _Piece, *, digest: bool) -> str | None:
  for name, (size, sha256) in piece.files.items():
    path = folder / files.component(name, 'a file of a store')
    length = path.stat().length if path.exists() else None
    if length != size:
      return f'{name} {"is missing" if length is None else f"has {length} of {size} bytes"}'
    if digest and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
      return f'{name} has other content than was written'
  return None


def _documents(manifest: _StoreManifest) -> list[int]:
  return [piece.documents for piece in manifest.pieces]


def _bytes_per_document(manifest: _StoreManifest) -> float:
  per_token = manifest.width * np.dtype(manifest.dtype).itemsize
  per_token += 2 * (manifest.dtype == 'int8')  # its scale
  tokens = sum(piece.tokens for piece in manifest.pieces)
  return tokens * per_token / max(sum(_documents(manifest)), 1) + 2  # its length
