"""Shared code of remote launchers: external tools, and the package to install.

`--dry_run` prints every command as a shell takes it, and runs none.
"""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from absl import app, flags

from launch.stages import ROOT

NAME = flags.DEFINE_string('name', None, 'Name of the machine or job: a-z, 0-9, and dashes.')
PROJECT = flags.DEFINE_string('project', None, 'Cloud project; the default of the tool if None.')
ZONE = flags.DEFINE_string('zone', None, 'Zone; the default of the tool if None.')
KEEP = flags.DEFINE_boolean('keep', False, 'Do not delete the machine or workload at the end.')
DRY_RUN = flags.DEFINE_boolean('dry_run', False, 'Print the commands and run none.')
ENV = flags.DEFINE_multi_string('env', [], 'NAME=value in the environment of the program; repeat.')
VERSION = flags.DEFINE_string(
  'version', None, 'Released version to install; by default a wheel of this checkout.'
)
EXTRAS = flags.DEFINE_list('extras', ['gcs'], 'Extras of the package to install.')
BACKOFF = flags.DEFINE_float(
  'backoff', 30.0, 'Seconds before the first retry when there is no capacity.'
)
ATTEMPTS = flags.DEFINE_integer('attempts', 50, 'Maximum number of attempts.', lower_bound=1)

LONGEST_WAIT = 600.0  # seconds
# Not a quota, which waiting does not raise.
STOCKOUT = re.compile(r'RESOURCE_EXHAUSTED|no more capacity|not enough resources|stockout', re.I)
QUOTA = re.compile(r'quota', re.I)


class Answer(NamedTuple):
  """Exit code and output of a command, stderr included."""

  code: int
  text: str


Execute: TypeAlias = Callable[[Sequence[str]], Answer]


def execute(command: Sequence[str]) -> Answer:
  """Run a command, and print its output as it is written."""
  print(f'$ {shlex.join(command)}', flush=True)
  try:
    child = subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{command[0]} is not on PATH: install it, or list the commands with --dry_run.'
    ) from error
  lines = []
  try:
    for line in child.stdout or ():
      print(f'  {line}', end='', flush=True)
      lines.append(line)
    return Answer(child.wait(), ''.join(lines))
  except BaseException:
    child.terminate()
    child.wait()
    raise


def rehearse(command: Sequence[str]) -> Answer:
  """Print a command, and answer like one that succeeds without output."""
  print(shlex.join(command), flush=True)
  return Answer(0, '')


def executor() -> Execute:
  return rehearse if DRY_RUN.value else execute


def until_capacity(create: Callable[[], Answer]) -> Answer:
  """Repeat a request with growing waits while there is no capacity; other errors are final."""
  for attempt in range(1, ATTEMPTS.value + 1):
    answer = create()
    out_of_stock = STOCKOUT.search(answer.text) and not QUOTA.search(answer.text)
    if answer.code == 0 or not out_of_stock or attempt == ATTEMPTS.value:
      break
    seconds = min(BACKOFF.value * 2 ** (attempt - 1), LONGEST_WAIT)
    print(f'no capacity; trying again in {seconds:g} s.', flush=True)
    time.sleep(seconds)
  return answer


def checked(answer: Answer, what: str) -> Answer:
  """Raises RuntimeError for a command that failed."""
  if answer.code:
    raise RuntimeError(
      f'{what} failed with exit code {answer.code}; its output: {answer.text[-2000:]}'
    )
  return answer


def location() -> list[str]:
  """--zone and --project, if given."""
  given = (('zone', ZONE.value), ('project', PROJECT.value))
  return [f'--{name}={value}' for name, value in given if value]


def named() -> str:
  """Value of --name; clouds accept lower case only."""
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,48}[a-z0-9])?', NAME.value or ''):
    raise app.UsageError(
      f'--name is {NAME.value!r}: it must have letters a-z, digits and dashes, at most 50, and '
      'begin with a letter.'
    )
  return NAME.value


def environment() -> list[str]:
  """Prefix of a command that sets its environment; output is unbuffered for the log."""
  for setting in ENV.value:
    if not re.match(r'\w+=', setting):
      raise app.UsageError(f'--env={setting!r} must be NAME=value.')
  return ['env', 'PYTHONUNBUFFERED=1', *ENV.value]


class Package(NamedTuple):
  """Files to copy, and the requirement to install in their folder, quoted for a shell."""

  files: Sequence[pathlib.Path]
  requirement: str


def package(run: Execute) -> Package:
  """Package to install: the version of --version, or a wheel of this checkout."""
  constraints = ROOT / 'constraints.txt'
  extras = f'[{",".join(EXTRAS.value)}]' if EXTRAS.value else ''
  if VERSION.value:
    return Package([constraints], shlex.quote(f'lm-cascades{extras}=={VERSION.value}'))
  directory = pathlib.Path(tempfile.mkdtemp(prefix='cascades-wheel-'))
  build = ['pip', 'wheel', '--quiet', '--no-deps', f'--wheel-dir={directory}', str(ROOT)]
  checked(run([sys.executable, '-m', *build]), 'building the wheel')
  version = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']
  wheel = directory / f'lm_cascades-{version}-py3-none-any.whl'
  return Package([wheel, constraints], f'"lm-cascades{extras} @ file://$PWD/{wheel.name}"')
