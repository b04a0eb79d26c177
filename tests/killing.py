"""Runs of their own processes, to be killed: forked from one that has imported everything.

JAX reads its environment when it is first asked for devices, which happens in the child.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pathlib
import re
import signal
import socket
import sys
import time
from typing import Any, NamedTuple

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['tests.tiny', 'cascades.train', 'cascades.cli'])
SAVED_EVERY = 2


class Topology(NamedTuple):
  processes: int
  devices: int  # of each


class Run:
  """A run that is going on; what process 0 says is in `log`."""

  def __init__(
    self,
    directory: pathlib.Path,
    topology: Topology,
    *,
    steps: int,
    pause: float = 0.05,
  ):
    directory.mkdir(exist_ok=True)
    self._number = len(list(directory.glob('*.log')))
    self.directory = directory
    self.log = directory / f'{self._number}-0.log'
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    self.processes = [
      FORKS.Process(
        target=_train,
        args=(directory, topology, index, port, directory / f'{self._number}-{index}.log'),
        kwargs={'steps': steps, 'pause': pause},
      )
      for index in range(topology.processes)
    ]
    for process in self.processes:
      process.start()

  def said(self) -> str:
    return self.log.read_text() if self.log.exists() else ''

  def wait_for(self, pattern: str, *, seconds: float = 240) -> None:
    """Until process 0 has said it."""
    self._wait(lambda: re.search(pattern, self.said()), pattern, seconds)

  def newest(self) -> int:
    """The step of the newest checkpoint, or 0."""
    names = [path.name for path in (self.directory / 'run').glob('checkpoint_*')]
    return max([int(name[11:]) for name in names if name[11:].isdigit()], default=0)

  def wait_for_checkpoint(self, step: int, *, seconds: float = 240) -> None:
    self._wait(lambda: self.newest() >= step, f'checkpoint {step}', seconds)

  def wait_for_writing(self, *, seconds: float = 240) -> None:
    """Until a checkpoint is being written."""
    run = self.directory / 'run'
    self._wait(lambda: list(run.glob('*.orbax-checkpoint-tmp*')), 'a write', seconds)

  def _wait(self, condition: Any, what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
      assert time.monotonic() < deadline, f'no {what} in {seconds} s: {self.said()}'
      assert any(process.is_alive() for process in self.processes), (
        f'ended without {what}: {self.said()}'
      )
      time.sleep(0.002)

  def send(self, number: int, *, to: int = 0) -> None:
    os.kill(self.processes[to].pid, number)

  def kill(self) -> None:
    for index in range(len(self.processes)):
      self.send(signal.SIGKILL, to=index)
    self.codes()

  def codes(self, *, seconds: float = 240) -> list[int]:
    """How all processes end."""
    for process in self.processes:
      process.join(seconds)
      if process.is_alive():
        process.kill()
        raise AssertionError(f'a process of the run hangs: {self.said()}')
    return [process.exitcode for process in self.processes]

  def finish(self) -> str:
    codes = self.codes()
    assert codes == [0] * len(codes), self.said()
    return self.said()


def _train(
  directory: pathlib.Path,
  topology: Topology,
  index: int,
  port: int,
  log: pathlib.Path,
  *,
  steps: int,
  pause: float,
) -> None:
  """What each process does."""
  with log.open('w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.stdout = open(1, 'w', buffering=1, closefd=False)  # noqa: SIM115
  sys.stderr = open(2, 'w', buffering=1, closefd=False)  # noqa: SIM115
  os.environ['XLA_FLAGS'] = (
    f'--xla_force_host_platform_device_count={topology.devices} '
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  )
  logging.basicConfig(stream=sys.stdout, format='%(message)s', level=logging.INFO, force=True)
  import jax

  from cascades import cli
  from cascades.runtime import partitioning
  from tests import tiny

  if topology.processes > 1:
    jax.distributed.initialize(
      f'localhost:{port}', topology.processes, index,
      heartbeat_timeout_seconds=10, shutdown_timeout_seconds=30,
    )  # fmt: skip

  def slowly(tree: Any) -> None:
    jax.block_until_ready(tree)
    time.sleep(pause)  # so that there is a moment to kill it in

  partitioning.wait_on_virtual_devices = slowly
  half = 2 if topology.devices > 1 else 1
  settings = tiny.settings(
    directory,
    train_steps=steps,
    log_every=1,
    save_every=SAVED_EVERY,
    mesh=lambda: partitioning.make_mesh(fsdp=half, tensor=half),
  )
  with cli.ending('cascades.train'):
    tiny.train(**settings)
