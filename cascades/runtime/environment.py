"""The environment of the programs: variables for JAX, namesakes, and the checkout."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import warnings
from collections.abc import Sequence
from importlib import metadata

# Programs that run in one process and have no flags for several.
ONE_PROCESS = (
  'evaluate', 'calibrate', 'plan', 'speculate', 'browse_tasks', 'rank', 'route', 'serve', 'stream',
  'memorize',
)  # fmt: skip

# Programs that divide their work by shards: the same command may run several times at once.
REPLICATED = ('infer', 'cache_teacher', 'speculate')


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


def asks_for_help(arguments: Sequence[str]) -> bool:
  """True if a program is to describe itself instead of running."""
  return not {'--help', '-h', '-help', '--helpfull'}.isdisjoint(arguments)


def end_on_interrupt() -> None:
  """Let Ctrl-C end the process with a line, for the time in which modules are imported.

  An exception there ends in a stack, or is lost in a callback of the garbage collector.
  """
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def raise_on_interrupt() -> None:
  """Let Ctrl-C raise KeyboardInterrupt again, where `end_on_interrupt` changed that."""
  if signal.getsignal(signal.SIGINT) is _end:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: object) -> None:
  del number, frame
  os.write(2, b'interrupted before anything was done; rerun the same command.\n')
  os._exit(130)


def warn_of_namesake() -> None:
  """Warn if another project's distribution `cascades` is installed, which has this import name.

  Installed after this package it replaces `cascades/__init__.py`, and either shadows the other.
  """
  try:
    namesake = metadata.distribution('cascades')
  except metadata.PackageNotFoundError:
    return
  modules = {path.as_posix() for path in namesake.files or () if path.suffix == '.py'}
  # Earlier installations of this project, which had that name, list this module or none.
  if modules and 'cascades/cli.py' not in modules:
    warnings.warn(
      f'{namesake.locate_file("")} also holds another project with the import name `cascades`, '
      f'version {namesake.version}: remove it with `pip uninstall cascades`, then install '
      'lm-cascades, the distribution of this package, again.',
      stacklevel=2,
    )


def has_accelerator(devices: pathlib.Path = pathlib.Path('/dev')) -> bool:
  """True if a TPU (accel, vfio) or a GPU is attached to this machine."""
  names = ('accel*', 'vfio/[0-9]*', 'nvidia[0-9]*', 'nvidiactl', 'kfd', 'dxg')
  return any(any(devices.glob(name)) for name in names)


def commit() -> str:
  """Commit of the checkout, with `+` if it has changes; empty outside a checkout."""
  here = pathlib.Path(__file__).parent
  command = ['git', '-C', str(here), 'describe', '--always', '--dirty=+', '--abbrev=12']
  try:
    described = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
  except (OSError, subprocess.SubprocessError):
    return ''
  return described.stdout.strip()
