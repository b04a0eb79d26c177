"""Memory that the process has freed and the C library has not returned."""

from __future__ import annotations

import ctypes


def trim_heap() -> None:
  """Return freed memory to the system, where the C library can (glibc).

  XLA's compiler frees a few hundred MiB that glibc keeps for later requests. The buffers of a
  program are mapped by themselves and reuse none of it.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)
