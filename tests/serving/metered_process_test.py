"""Real processes: the page and the log of a server, and a log on a disk that is really full."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest

from cascades.predictions import __main__ as predictions
from cascades.predictions import shards
from tests import testing
from tests.serving.local_model_test import VOCABULARIES, write_run
from tests.serving.page_test import browser, needs_browser  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow
FULL = """
import pathlib, sys, time
from cascades.serving.metering import Log, LogOptions
from tests.serving.example_exchanges import exchange, leg

MOUNT = pathlib.Path(sys.argv[1])

def wait(condition):
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)

log = Log(MOUNT / 'log', LogOptions(text=True, required=True))
log.record(exchange(id='0'))
wait(lambda: log.written == 1)
filler = (MOUNT / 'filler').open('wb', buffering=0)
try:
  while filler.write(bytes(1 << 12)):
    pass
except OSError as error:
  print('full:', error)
log.record(exchange(leg(text='x' * 9000), id='1'))
wait(lambda: log.failure)
print('refusal:', log.refusal)
(path,) = (MOUNT / 'log' / 'small').iterdir()
print('lines:', path.read_bytes().count(b'\\n'), path.read_bytes().endswith(b'\\n'))
filler.truncate(0)
wait(lambda: log.written == 2)
log.close()
print('after:', log.lost, [path.name[-6:] for path in (MOUNT / 'log' / 'small').iterdir()])
"""


def test_a_log_on_a_full_disk_has_whole_lines_and_goes_on_when_there_is_room(tmp_path):
  if not shutil.which('unshare'):
    pytest.skip('there is no unshare to make a file system with')
  script = f'mount -t tmpfs -o size=64k tmpfs {tmp_path} && exec "$@"'
  namespace = ['unshare', '--user', '--map-root-user', '--mount', 'sh', '-c', script, 'sh']
  if subprocess.run([*namespace, 'true'], check=False, capture_output=True).returncode:
    pytest.skip('this machine lets nobody mount a file system of their own')
  done = subprocess.run(
    [*namespace, sys.executable, '-c', FULL, str(tmp_path)],
    capture_output=True, text=True, check=False, timeout=120,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
  shown = dict(line.split(': ', 1) for line in done.stdout.splitlines())
  assert 'No space left on device' in shown['full']
  assert 'No space left on device' in shown['refusal']
  assert shown['lines'] == '1 True'
  assert shown['after'] == "0 ['.jsonl']"


@needs_browser
def test_the_page_of_a_real_server_answers_and_its_log_is_a_table(
  tmp_path,
  browser,  # noqa: F811
):
  for name in ('small', 'large'):
    write_run(tmp_path / name, testing.CONFIGS['t5'], VOCABULARIES['t5'])
  arguments = {
    'SMALL': tmp_path / 'small', 'LARGE': tmp_path / 'large', 'THRESHOLD': -9.0, 'PORT': 0,
    'MAX_TOKENS': 8, 'MAX_PROMPT': 16, 'SLOTS': 2, 'LOG_DIR': tmp_path / 'log', 'LOG_TEXT': True,
    'STOP_EARLY': False,
  }  # fmt: skip
  command = [sys.executable, '-m', 'cascades.serve', '--gin_file=runs/serve.gin']
  with subprocess.Popen(
    [*command, *(f'--gin.{name}={value}' for name, value in arguments.items())],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  ) as process:  # fmt: skip
    try:
      url = next(match[1] for line in process.stdout if (match := re.search(r'at (http\S+)', line)))
      end = time.monotonic() + 120
      while httpx.get(f'{url}/readyz').status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
      page = browser.new_page()
      page.goto(f'{url}/?prompt=abc')
      page.wait_for_selector('#models:not(:empty)')
      page.focus('#prompt')
      page.keyboard.press('Enter')
      page.wait_for_selector('#facts dt')
      author = page.text_content('#author')
      answer = page.text_content('#answer')
      page.close()
    finally:
      process.send_signal(signal.SIGTERM)
      process.communicate(timeout=60)
  assert process.returncode == 0
  assert author == '▲ The large model answered'
  for role in ('small', 'large'):
    (path,) = (tmp_path / 'log' / role).glob('*.jsonl')
    target = str(tmp_path / 'tables' / role / 'test')
    words = ['import', '--format=log', '--filter=both', '--parameters=1000', str(path), target]
    assert predictions.main(words) == 0
  (table,) = shards.read(tmp_path / 'tables' / 'large' / 'test')
  assert table.inputs == ['abc']
  assert table.predictions[0].split() == answer.split()
