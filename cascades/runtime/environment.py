"""Environment variables for JAX. It reads them when it is imported, so they are set before."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re


def prepare() -> None:
  """Set what JAX and XLA read at import; variables that the user has set are left alone.

  The compilation cache goes to ~/.cache/cascades/jax. Several virtual CPU devices in one process
  starve XLA's thread pool unless `NPROC` tells it of more cores. libtpu on a machine without a TPU
  prints errors and locks itself against other processes and users, so JAX is told to use the CPU.
  """
  cache = pathlib.Path.home() / '.cache' / 'cascades' / 'jax'
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
  virtual = re.search(r'host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', ''))
  if virtual:
    os.environ.setdefault('NPROC', str(4 * int(virtual[1])))
  if importlib.util.find_spec('libtpu') and not has_accelerator():
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')


def has_accelerator(devices: pathlib.Path = pathlib.Path('/dev')) -> bool:
  """True if a TPU (accel, vfio) or a GPU is attached to this machine."""
  names = ('accel*', 'vfio/[0-9]*', 'nvidia[0-9]*', 'nvidiactl', 'kfd', 'dxg')
  return any(any(devices.glob(name)) for name in names)
