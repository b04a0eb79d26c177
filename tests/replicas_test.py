"""Programs that run several times at once and divide their shards, and those that are lost."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from cascades.runtime import claims
from cascades.training import teacher_cache
from launch import local
from tests import killing, tiny

ROOT = pathlib.Path(__file__).parents[1]
FAST = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'  # compilation


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp('trained')
  tiny.train(**tiny.settings(directory, train_steps=30, save_every=30))
  return directory


def content(folder):
  """Files of a table or cache by name; the command names the directory itself."""
  by_name: dict[str, Any] = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
  for name in [name for name in by_name if name.endswith('manifest.json')]:
    manifest = json.loads(by_name[name])
    by_name[name] = {
      key: value for key, value in manifest.items() if key not in ('command', 'config')
    }
  return by_name


def replica(program: str, arguments: tuple[Any, ...], barrier: Any, log: str) -> None:
  """A program in a process of its own, which waits for the others after its first shard."""
  with open(log, 'w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  os.environ['XLA_FLAGS'] = FAST
  import logging

  from cascades.runtime import claims

  logging.basicConfig(format='%(message)s', level=logging.INFO, force=True)
  release, waited = claims.Claims._release, []

  def release_together(self: Any) -> None:
    if not waited and self._claim and re.search(r'\d{5}\.claim', self._claim.name):
      waited.append(True)
      barrier.wait(100)
    release(self)

  claims.Claims._release = release_together
  folder, output, changes = arguments
  getattr(tiny, program)(**settings(folder, output, **changes))


def together(program, folder, count, *arguments):
  """Logs of replicas that all succeed."""
  logs = [folder / f'{program}-{number}.log' for number in range(count)]
  barrier = killing.FORKS.Barrier(count)
  processes = [
    killing.FORKS.Process(target=replica, args=(program, arguments, barrier, str(log)))
    for log in logs
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join(120)
  text = [log.read_text() for log in logs]
  assert [process.exitcode for process in processes] == [0] * count, text
  return text


def settings(trained, output, **changes):
  return {
    'checkpoint_path': str(trained / 'run'),
    **({'infer_output_dir': str(output)} if output else {}),
    'task': tiny.task(trained),
    'task_feature_lengths': tiny.LENGTHS,
    'batch_size': 8,
    'shard_rows': 2,
    'mesh': tiny.one_device,
    'records_dir': str(trained / 'records'),
  } | changes


SPLITS = {'splits': ('test', 'validation'), 'embeddings': ('answer',)}


@pytest.mark.parametrize('more', [{}, pytest.param(SPLITS, marks=pytest.mark.slow)], ids=len)
def test_two_replicas_write_the_tables_of_one(trained, tmp_path, more):
  """Byte for byte, with what lies beside them; each log counts the rows of both."""
  outputs = [tmp_path / name for name in ('one', 'two')]
  for count, output in enumerate(outputs, 1):
    text = together('infer', tmp_path, count, trained, output, more)
  for split in more.get('splits', ('test',)):
    alone, divided = (content(output / split) for output in outputs)
    assert alone == divided
    marked = [name for name in divided if name.endswith('.COMPLETED')]
    assert len(marked) == 16 * (1 + len(more.get('embeddings', ())))
  assert sum('of them by other programs' in log for log in text) == 2, text
  assert all('32/32' in log for log in text)


@pytest.mark.slow
def test_two_replicas_write_the_teacher_cache_of_one(trained, tmp_path):
  places = []
  for count in (1, 2):
    given = {'directory': str(tmp_path / f'cache-{count}'), 'top_k': 3}
    together('cache_teacher', tmp_path, count, trained, None, given)
    places.append(teacher_cache.location(tmp_path / f'cache-{count}', 'backwards', 'train'))
  alone, divided = map(content, places)
  assert alone == divided
  assert not claims.claimed(places[1])


TASK = """from __gin__ import dynamic_registration
from cascades.tasks import local
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {lengths}
local.local_jsonl.name = 'backwards'
local.local_jsonl.splits = {splits}
"""


def command(trained, program, *bindings):
  task = trained / 'task.gin'
  if not task.exists():
    task.write_text(TASK.format(splits=tiny.write_rows(trained), lengths=tiny.LENGTHS))
  return [
    *(sys.executable, '-m', f'cascades.{program}', f'--gin_file=runs/{program}.gin'),
    *(f'--gin_file={task}', f'--gin.RECORDS_DIR={trained}/records', '--gin.BATCH_SIZE=8'),
    *bindings,
  ]


def start(words, log):
  with log.open('wb') as file:
    return subprocess.Popen(
      words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
      env={**local.environment(os.environ), 'XLA_FLAGS': FAST},
    )  # fmt: skip


def claim_of(pid, folder):
  """The claim that a process holds."""
  for path in folder.glob('.*.claim-*') if folder.exists() else ():
    try:
      if json.loads(path.read_bytes())['pid'] == pid:
        return path.name
    except (OSError, ValueError):
      continue
  return None


def wait(condition, seconds=120):
  deadline = time.monotonic() + seconds
  while not (result := condition()):
    assert time.monotonic() < deadline
    time.sleep(0.002)
  return result


@pytest.mark.slow
def test_of_four_replicas_a_killed_one_and_a_frozen_one_lose_their_shards_to_the_others(
  trained, tmp_path
):
  """The table is that of one process; what the frozen one writes when it wakes is the same."""
  infer = lambda name: command(
    trained, 'infer', f'--gin.CHECKPOINT_PATH={trained}/run',
    f'--gin.INFER_OUTPUT_DIR={tmp_path}/{name}', '--gin.SHARD_ROWS=1', '--gin.LEASE=3.0',
    "--gin.SPLITS=['train']", '--gin.BATCH_SIZE=1',
  )  # fmt: skip
  assert start(infer('one'), tmp_path / 'one.log').wait(120) == 0
  folder = tmp_path / 'four' / 'train'
  logs = [tmp_path / f'{number}.log' for number in range(4)]
  replicas = [start(infer('four'), log) for log in logs]
  try:
    killed, frozen = replicas[1], replicas[2]
    shard = re.compile(r'\.backwards-predict\.jsonl')
    held = lambda pid: shard.match(claim_of(pid, folder) or '')
    wait(lambda: held(killed.pid))
    killed.send_signal(signal.SIGKILL)

    def freeze():
      if not held(frozen.pid):
        return False
      frozen.send_signal(signal.SIGSTOP)
      if held(frozen.pid):  # still, now that it has stopped
        return True
      frozen.send_signal(signal.SIGCONT)
      return False

    wait(freeze)
    text = lambda: [log.read_text() for log in logs]
    assert [replicas[0].wait(200), replicas[3].wait(200)] == [0, 0], text()
    alone, divided = content(tmp_path / 'one' / 'train'), content(folder)
    assert alone == divided
    assert len(divided) == 2 * 64 + 1
    assert any('which another program has left' in log for log in text())
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(60) == 0, text()[2]
    assert content(folder) == divided
    assert killed.wait(1) == -signal.SIGKILL
  finally:
    for process in replicas:
      process.kill()


@pytest.mark.slow
def test_replicas_of_the_launcher_write_the_cache_and_the_sweep_of_one(trained, tmp_path):
  own = {
    'cache_teacher': [f'--gin.CHECKPOINT_PATH={trained}/run', '--gin.TOP_K=3'],
    'speculate': [
      f'--gin.SMALL_CHECKPOINT_PATH={trained}/run', f'--gin.LARGE_CHECKPOINT_PATH={trained}/run',
      "--gin.RULES={'opt': [0.1]}", '--gin.TOKEN_CASCADES={}', '--gin.GAMMAS=(1,)',
      '--gin.LATENCY_BATCHES=(8,)', '--gin.LATENCY_ROWS=8', '--gin.LATENCY_TURNS=1',
    ],
  }  # fmt: skip
  output = {'cache_teacher': 'TEACHER_CACHE', 'speculate': 'SPECULATE_OUTPUT_DIR'}
  for program, bindings in own.items():
    for name in ('one', 'two'):
      folder = tmp_path / program / name
      words = command(
        trained, program, *bindings, f'--gin.{output[program]}={folder}', '--gin.SHARD_ROWS=4'
      )
      if name == 'one':
        assert start(words, tmp_path / 'one.log').wait(200) == 0
        continue
      launcher = [sys.executable, '-m', 'launch.local', '--replicas=2', f'--logs={tmp_path}/logs']
      done = subprocess.run(
        [*launcher, '--', *words[2:]], cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, 'XLA_FLAGS': FAST}, check=False,
      )  # fmt: skip
      assert done.returncode == 0, done.stdout + done.stderr
      assert 'replica 0: ' in done.stdout
      assert 'replica 1: ' in done.stdout
    folders = lambda name, program=program: sorted(
      {path.parent for path in (tmp_path / program / name).rglob('*manifest.json')}
    )
    alone, divided = folders('one'), folders('two')
    assert [path.name for path in alone] == [path.name for path in divided]
    assert alone
    for one, two in zip(alone, divided, strict=True):
      assert content(one) == content(two)
  assert (tmp_path / 'speculate' / 'two' / 'report.html').exists()
