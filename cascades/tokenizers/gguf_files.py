"""GGUF, llama.cpp's file format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Only what the package `gguf` (the extra of that name) leaves open. Imports nothing of ours.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # an extra that only some runs need
  import gguf

_STRING, _ARRAY = 8, 9


def read(path: os.PathLike[str]) -> gguf.GGUFReader:
  """The file's fields, and its tensors, which stay on disk until they are used."""
  try:
    reader = _reader()(path)
  except FileNotFoundError:
    raise
  except (ValueError, IndexError, KeyError, OSError, struct.error) as error:
    raise ValueError(f'{os.fspath(path)} is not a whole GGUF file: {error}.') from error
  parts = field(reader, 'split.count', 1)
  if parts > 1:
    raise ValueError(
      f'{os.fspath(path)} is one of {parts} parts: join them with `llama-gguf-split --merge`.'
    )
  return reader


def field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
  """A field as plain Python; `default` if the file lacks it."""
  found = reader.get_field(name)
  return default if found is None else found.contents()


def required(reader: gguf.GGUFReader, name: str) -> Any:
  """A field that every such file has."""
  found = field(reader, name)
  if found is None:
    raise ValueError(f"The GGUF file lacks {name}: convert the model again with today's llama.cpp.")
  return found


def _reader() -> type[gguf.GGUFReader]:
  """The package's reader, made fast enough for the arrays of a vocabulary.

  It goes through them number by number: for 262,144 tokens that is twenty seconds, this is one.
  """
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      'GGUF files are read with the package gguf: pip install "cascades[gguf]".'
    ) from error

  class Reader(gguf.GGUFReader):
    @property
    def data(self) -> Any:
      return self._memory

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
      self._memory: Any = np.asarray(mapped)  # slices of a np.memmap are slow to make

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
      if raw_type != _ARRAY or self.byte_order != 'I':
        return super()._get_field_parts(orig_offs, raw_type)
      kind, count = struct.unpack_from('<IQ', self._memory, orig_offs)
      numbers = self.gguf_scalar_to_np.get(gguf.GGUFValueType(kind))
      types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(kind)]
      start = orig_offs + 12
      if numbers is not None:
        whole = self._get(start, numbers, count)
        return 12 + whole.nbytes, [whole], [0], types
      if kind != _STRING:
        return super()._get_field_parts(orig_offs, raw_type)
      parts = []
      for _ in range(count):
        (size,) = struct.unpack_from('<Q', self._memory, start)
        parts.append(self._memory[start + 8 : start + 8 + size])
        start += 8 + size
      return start - orig_offs, parts, list(range(count)), types

  return Reader
