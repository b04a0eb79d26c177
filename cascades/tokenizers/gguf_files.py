"""GGUF, llama.cpp's file format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

Read with the package `gguf` (the extra of that name), made faster and with checks.
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
  """Opens a file; its tensors stay on disk until they are used.

  Raises:
    ValueError: the file is damaged, or one of several.
    ImportError: the package `gguf` is not installed.
  """
  reader_type = _reader()
  try:
    reader = reader_type(path)
    _check_layout(reader)
  except FileNotFoundError:
    raise
  except Exception as error:  # of any type, since the package trusts what it reads
    raise ValueError(f'{os.fspath(path)} is not a complete GGUF file: {error}.') from error
  count = field(reader, 'split.count', 1)
  if count != 1:
    raise ValueError(
      f'{os.fspath(path)} is one of {count} files of a model: join them with '
      '`llama-gguf-split --merge`.'
    )
  return reader


def _check_layout(reader: gguf.GGUFReader) -> None:
  """Raises ValueError unless tensors follow each other, as llama.cpp writes and demands it."""
  end = reader.data_offset
  for tensor in reader.tensors:
    if tensor.data_offset != end:
      raise ValueError(f'tensor {tensor.name!r} begins at {tensor.data_offset}, expected {end}')
    end += -(-tensor.n_bytes // reader.alignment) * reader.alignment


def field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
  """The value of a field as plain Python; `default` if the file lacks it.

  Raises:
    ValueError: the value is damaged.
  """
  value = reader.get_field(name)
  try:
    return default if value is None else value.contents()
  except Exception as error:  # of any type, since the package trusts what it reads
    raise ValueError(f'{name!r} of the GGUF file is damaged: {error}.') from error


def required(reader: gguf.GGUFReader, name: str) -> Any:
  """The value of a field. Raises ValueError if the file lacks it."""
  value = field(reader, name)
  if value is None:
    raise ValueError(f"The GGUF file lacks {name}: convert the model again with today's llama.cpp.")
  return value


def _reader() -> type[gguf.GGUFReader]:
  """The package's reader with fast parsing of arrays.

  The original parses one element at a time: 20 s for 262,144 tokens, against 1 s here.
  """
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      'GGUF files are read with the package gguf: pip install "lm-cascades[gguf]".'
    ) from error

  class Reader(gguf.GGUFReader):
    @property
    def data(self) -> Any:
      return self._memory

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
      self._memory: Any = np.asarray(mapped)  # slicing a np.memmap is slow

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
      if raw_type != _ARRAY or self.byte_order != 'I':
        return super()._get_field_parts(orig_offs, raw_type)
      element, count = struct.unpack_from('<IQ', self._memory, orig_offs)
      numbers = self.gguf_scalar_to_np.get(gguf.GGUFValueType(element))
      types = [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType(element)]
      start = orig_offs + 12
      if numbers is not None:
        array = self._get(start, numbers, count)
        if array.size != count:
          raise ValueError(f'an array of {count} numbers, of which {array.size} are there')
        return 12 + array.nbytes, [array], [0], types
      if element != _STRING:
        return super()._get_field_parts(orig_offs, raw_type)
      strings = []
      for _ in range(count):
        (size,) = struct.unpack_from('<Q', self._memory, start)
        strings.append(self._memory[start + 8 : start + 8 + size])
        start += 8 + size
      return start - orig_offs, strings, list(range(count)), types

  return Reader
