"""A live server, a second process that promotes its policy, and one that takes the policy back."""

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import time
from concurrent import futures

import httpx
import pytest

from tests import promote_test, testing
from tests.serving.local_model_test import VOCABULARIES, write_run
from tests.serving.program_test import settings, started

NEVER_SURE = -1e9  # threshold that defers every answer


def free_port():
  with socket.socket() as bound:
    bound.bind(('127.0.0.1', 0))
    return bound.getsockname()[1]


@contextlib.contextmanager
def promoting(root):
  """The program in a process of its own, until it is ended."""
  command = [
    sys.executable, '-m', 'cascades.promote', '--gin_file=runs/promote.gin',
    f'--gin.LOG_DIR={root / "log"}', f'--gin.POLICY={root / "policy.json"}', '--gin.MARGIN=0.2',
    '--gin.EVERY=100', '--gin.WINDOW=400', '--gin.POLL_SECONDS=0.2',
  ]  # fmt: skip
  with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
    try:
      yield process
    finally:
      process.kill()


def ask(server, numbers):
  """Answers to prompts that differ, of which each is audited."""
  client = server.openai(timeout=60.0)

  def complete(number):
    letters = ' '.join('abcd'[number // 4**place % 4] for place in range(5))
    return client.completions.create(model='cascade', prompt=letters, max_tokens=4).cascade

  with futures.ThreadPoolExecutor(4) as pool:
    return list(pool.map(complete, numbers))


def until_promoted(server, author):
  """Waits until the server gives the answers of a model in most cases."""
  deadline = time.monotonic() + 60
  while (told := ask(server, [0])[0])['author'] != author:
    assert time.monotonic() < deadline
    time.sleep(0.2)
  return told


@pytest.mark.slow  # starts four processes
def test_a_live_server_takes_over_a_promoted_policy_and_the_one_before_it(tmp_path):
  """The large model agrees with the small one first, and is replaced by another later."""
  for name in ('small', 'large'):
    write_run(tmp_path / name, testing.CONFIGS['t5'], VOCABULARIES['t5'])
  other = dataclasses.replace(testing.CONFIGS['t5'], mlp_dim=24)  # and so of other weights
  write_run(tmp_path / 'other', other, VOCABULARIES['t5'])
  promote_test.begin(tmp_path)
  path = tmp_path / 'policy.json'
  content = json.loads(path.read_text())
  content['thresholds'][0]['threshold'] = NEVER_SURE
  path.write_text(json.dumps(content))
  port = free_port()
  behind = lambda name: settings(
    tmp_path, LARGE=None, SMALL=tmp_path / name, SMALL_NAME='behind', PORT=port
  )  # fmt: skip
  front = settings(
    tmp_path, LARGE=f'http://127.0.0.1:{port}/v1#behind', LARGE_ENDPOINT={'api': 'completions'},
    POLICY=path, THRESHOLD=None, ALLOW_OTHER_MODELS=True, RELOAD_SECONDS=0.2, AUDIT_SHARE=1.0,
    LOG_DIR=tmp_path / 'log', LOG_SYNC_SECONDS=0.1, BREAKER_PAUSE=1.0,
  )  # fmt: skip
  with started(behind('large')) as large, started(front) as server, promoting(tmp_path):
    assert {told['author'] for told in ask(server, range(20))} == {'large'}
    ask(server, range(20, 110))
    until_promoted(server, 'small')
    promoted = json.loads(path.read_text())['thresholds'][0]['threshold']
    assert promoted is None or promoted > NEVER_SURE
    large.end()
    with started(behind('other')):
      ask(server, range(200, 330))
      until_promoted(server, 'large')
      assert json.loads(path.read_text())['thresholds'][0]['threshold'] == NEVER_SURE
    assert not httpx.get(f'{server.url}/readyz').json()['notes'].get('POLICY')
  decisions = [entry['decision'] for entry in promote_test.journal(tmp_path)]
  assert [d for d in decisions if d in ('promoted', 'rolled back')] == ['promoted', 'rolled back']
