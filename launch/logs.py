"""Log files that programs are writing: shown as they grow, and their ends."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator

from absl import flags

SECONDS_BETWEEN_LOOKS = 0.1

_DIRECTORY = flags.DEFINE_string('logs', None, 'Folder for logs; a temporary folder if None.')


def directory(name: str) -> pathlib.Path:
  """Create a new folder for the logs of `name`, in --logs."""
  if _DIRECTORY.value:
    pathlib.Path(_DIRECTORY.value).mkdir(parents=True, exist_ok=True)
  return pathlib.Path(tempfile.mkdtemp(prefix=f'{name}-', dir=_DIRECTORY.value))


@contextlib.contextmanager
def following(path: pathlib.Path, show: Callable[[str], None]) -> Iterator[None]:
  """Context manager that passes each line appended to a file to `show`.

  The file need not exist yet. Lines from before are not shown; on exit the rest is.
  """
  start = path.stat().st_size if path.exists() else 0
  ended = threading.Event()
  thread = threading.Thread(target=_follow, args=(path, start, show, ended), daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


def _follow(
  path: pathlib.Path, position: int, show: Callable[[str], None], ended: threading.Event
) -> None:
  rest = b''
  last = False
  while not last:
    last = ended.wait(SECONDS_BETWEEN_LOOKS)  # then once more: it may have grown since
    if not path.exists():
      continue
    with path.open('rb') as file:
      file.seek(position)
      data = file.read()
    position += len(data)
    *lines, rest = (rest + data).split(b'\n')
    for line in lines:
      show(line.decode(errors='replace'))
  if rest:
    show(rest.decode(errors='replace'))


def last_lines(path: pathlib.Path, count: int = 20) -> str:
  """Last `count` lines of a log, empty if there is none."""
  if not path.exists():
    return ''
  return '\n'.join(path.read_text(errors='replace').splitlines()[-count:])
