"""A stand-in for gcloud or xpk: writes down what it was asked, and answers by a script.

The script is a list of [pattern, code, what it says]: the first that the command matches answers,
and is used up. What matches none succeeds and says nothing.
"""

import contextlib
import importlib
import io
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import time
from unittest import mock

from absl import app, flags
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = f"""#!{sys.executable} -SE
import json, os, pathlib, re, sys, time
here = pathlib.Path(__file__).parent
arguments = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with (here / 'calls').open('a') as file:
  print(json.dumps(arguments), file=file)
script = json.loads((here / 'script').read_text())
text = ' '.join(arguments)
for number, (pattern, code, says) in enumerate(script):
  if re.search(pattern, text):
    script.pop(number)
    (here / 'script').write_text(json.dumps(script))
    for argument in arguments:
      if argument.startswith('--output-directory='):
        (pathlib.Path(argument.partition('=')[2]) / '0.log').write_text(says)
        says = ''
    print(says, file=sys.stderr if code else sys.stdout, flush=True)
    if code == 'hang':
      time.sleep(60)
    sys.exit(code)
"""


class Fake:
  """An executable of this name in a folder of its own, the only one on PATH that has it."""

  def __init__(self, directory, name):
    self.directory = directory / 'bin'
    self.directory.mkdir()
    path = self.directory / name
    path.write_text(PROGRAM)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    self.answer([])

  def answer(self, script):
    (self.directory / 'script').write_text(json.dumps(script))

  def calls(self):
    path = self.directory / 'calls'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def environment(self):
    return {**os.environ, 'PATH': str(self.directory), 'TMPDIR': str(self.directory.parent)}

  def start(self, module, *arguments):
    return subprocess.Popen(
      [sys.executable, '-m', module, *arguments],
      cwd=ROOT, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip

  def run(self, module, *arguments):
    """Exit code and output of the launcher, in this process: starting Python takes longer."""
    stdout, main = io.StringIO(), importlib.import_module(module).main
    with (
      flagsaver.flagsaver(),
      mock.patch.dict(os.environ, self.environment()),
      contextlib.redirect_stdout(stdout),
    ):
      try:
        main(flags.FLAGS(['launch', *arguments]))
      except app.UsageError as error:
        return 1, str(error)
      except SystemExit as end:
        text = end.code if isinstance(end.code, str) else ''
        return (1 if text else end.code), stdout.getvalue() + text

  def wait_for(self, pattern):
    deadline = time.monotonic() + 30
    while not any(re.search(pattern, ' '.join(call)) for call in self.calls()):
      assert time.monotonic() < deadline
      time.sleep(0.05)
