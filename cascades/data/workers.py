"""Processes that write shards in parallel.

They are separate commands that communicate over pipes: multiprocessing would import the main
program again in each process, including JAX, or fork while JAX's threads run.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle  # between a process and its own children alone
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

_COMMAND = 'from cascades.data import workers; workers.serve()'


class Workers:
  """A pool of `count` processes, started when first needed and ended on exit."""

  def __init__(self, count: int | None = None) -> None:
    self.count = count or os.cpu_count() or 1
    self._threads = concurrent.futures.ThreadPoolExecutor(self.count)
    self._slots = threading.Semaphore(2 * self.count)  # bounds the rows that wait in memory
    self._own = threading.local()
    self._processes: list[subprocess.Popen[bytes]] = []

  def __enter__(self) -> Workers:
    return self

  def __exit__(self, *_: object) -> None:
    self._threads.shutdown(cancel_futures=True)
    for process in self._processes:
      assert process.stdin
      process.stdin.close()
      process.wait()

  def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future[Any]:
    """Calls a function of a module in a process; blocks while all processes are busy."""
    self._slots.acquire()
    future = self._threads.submit(self._call, function, arguments)
    future.add_done_callback(lambda _: self._slots.release())
    return future

  def _call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    process = self._process()
    assert process.stdin
    assert process.stdout
    try:
      pickle.dump((function, arguments), process.stdin)
      process.stdin.flush()
      returned, error = pickle.load(process.stdout)  # noqa: S301
    except (EOFError, BrokenPipeError) as lost:
      raise ChildProcessError(
        'A tokenizing process was killed (out of memory?). Rerun the same command: it resumes with '
        'the missing shards.'
      ) from lost
    if error is not None:
      raise error
    return returned

  def _process(self) -> subprocess.Popen[bytes]:
    if not hasattr(self._own, 'process'):
      self._own.process = subprocess.Popen(  # noqa: S603
        [sys.executable, '-c', _COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
      )
      self._processes.append(self._own.process)
    return self._own.process


def serve() -> None:
  """Serves calls from standard input until it is closed."""
  requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # output of libraries must not get between the replies
  while True:
    try:
      function, arguments = pickle.load(requests)  # noqa: S301
    except EOFError:
      return
    except KeyboardInterrupt:  # the terminal's, meant for the parent
      continue
    reply: tuple[Any, Exception | None]
    try:
      reply = function(*arguments), None
    except Exception as error:
      reply = None, error
    pickle.dump(reply, replies)
    replies.flush()
