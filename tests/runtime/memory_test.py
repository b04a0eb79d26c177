"""Freed memory goes back to the system."""

import ctypes
import pathlib

import pytest

from cascades.runtime import memory

PIECES, SIZE = 50_000, 1 << 10  # far below the size that glibc maps by itself


def resident():
  """Bytes of this process in memory."""
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='the C library is not glibc'
)
def test_freed_pieces_below_one_in_use_are_returned():
  library = ctypes.CDLL(None)
  library.malloc.restype = library.memset.restype = ctypes.c_void_p
  library.malloc.argtypes = [ctypes.c_size_t]
  library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
  library.free.argtypes = [ctypes.c_void_p]
  pieces = [library.malloc(SIZE) for _ in range(PIECES)]
  for piece in pieces:
    library.memset(piece, 1, SIZE)
  for piece in pieces[:-1]:  # the last one keeps the top of the heap
    library.free(piece)
  before = resident()
  memory.trim_heap()
  assert before - resident() > 0.8 * PIECES * SIZE
  library.free(pieces[-1])


def test_another_c_library_is_left_alone(monkeypatch):
  monkeypatch.setattr(memory.ctypes, 'CDLL', lambda _: object())
  memory.trim_heap()
