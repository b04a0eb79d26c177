"""The local launcher: what it starts, what it shows, and that nothing outlives it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from absl import app

from launch import local, logs, replicas, restarting, stages

ROOT = pathlib.Path(__file__).parents[2]
# A stand-in for a program: it knows which process it is, and does what the test says.
STAND_IN = """
import os, signal, sys, time
of = lambda flag: sys.argv[sys.argv.index(flag) + 1]
index, count = int(of('--process_index')), int(of('--process_count'))
def wait_for_term(code):
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
  print('ready')
  time.sleep(60)
"""


def launch(body, directory, *, processes=2, grace=10.0):
  shown = []
  command = [sys.executable, '-c', STAND_IN + body]
  code = local.run(
    command, processes=processes, log_dir=directory, grace=grace, show=shown.append
  )  # fmt: skip
  return code, shown, [path.read_text() for path in sorted(directory.glob('process-*.log'))]


def test_every_process_knows_its_place_and_only_process_0_is_shown(tmp_path):
  body = "print(index, count, of('--coordinator_address'), os.environ['JAX_PLATFORMS'])"
  code, shown, output = launch(body, tmp_path, processes=3)
  assert code == 0
  rows = [line.split() for line in output]
  assert [row[0] for row in rows] == ['0', '1', '2']
  assert {(row[1], row[3]) for row in rows} == {('3', 'cpu')}
  (address,) = {row[2] for row in rows}
  assert address.startswith('localhost:')
  assert '\n'.join(shown) == output[0].strip()


def test_when_one_fails_the_others_are_ended_and_its_log_is_shown(tmp_path, capsys):
  body = "print('no such file')\nif index: sys.exit(3)\nwait_for_term(75)"
  began = time.monotonic()
  code, _, output = launch(body, tmp_path)
  assert code == 3
  assert 'process 1 failed' in capsys.readouterr().out
  assert time.monotonic() - began < 30  # far below the minute that process 0 would have slept
  assert 'no such file' in output[1]


def test_what_does_not_heed_term_is_killed_after_the_grace_period(tmp_path):
  body = """
if index == 0:
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  print('ready', os.getpid())
  time.sleep(60)
while 'ready' not in open(LOG).read(): time.sleep(0.05)
sys.exit(4)
""".replace('LOG', repr(str(tmp_path / 'process-0.log')))
  code, _, output = launch(body, tmp_path, grace=0.3)
  assert code == 4
  with pytest.raises(ProcessLookupError):
    os.kill(int(output[0].split()[1]), 0)


def test_a_killed_process_has_a_negative_code(tmp_path):
  code, _, _ = launch('if index: os.kill(os.getpid(), 9)\ntime.sleep(60)', tmp_path)
  assert code == -signal.SIGKILL


def test_lines_are_shown_as_they_are_written_and_old_ones_are_not_shown_again(tmp_path):
  path, shown = tmp_path / 'log', []
  path.write_text('before\n')
  with logs.following(path, shown.append), path.open('a') as file:
    for text in ('one\ntw', 'o\n', 'three'):
      file.write(text)
      file.flush()
      time.sleep(0.15)
    assert shown == ['one', 'two']
  assert shown == ['one', 'two', 'three']
  assert logs.last_lines(path, 2) == 'two\nthree'
  assert logs.last_lines(tmp_path / 'nothing') == ''


@pytest.mark.parametrize(
  ('codes', 'attempts', 'result'),
  [
    ([0], 1, 0),
    ([1], 1, 1),
    ([75, 75, 75, 75, 0], 3, 75),
    ([-9, -11, 0], 3, 0),
    ([-9, -9, -9, 0], 3, -9),
    ([-9, 75, -9, 2], 3, -9),
  ],
  ids=str,
)
def test_restarts_without_progress_are_few_and_wait_longer_each_time(
  codes, attempts, result, monkeypatch
):
  left, output, waits = list(codes), [], []
  monkeypatch.setattr(restarting.time, 'sleep', waits.append)
  ended = restarting.until_final(
    lambda: left.pop(0), max_restarts=2, progress=lambda: None, say=output.append
  )
  assert ended == result
  assert len(codes) - len(left) == attempts
  assert waits == [5.0, 10.0][: attempts - 1]
  assert ('not restarting it' in ' '.join(output)) == (attempts == 3 and result != 0)


def test_a_program_that_gets_on_is_restarted_always_and_at_once(monkeypatch):
  progress, codes = restarting.Progress(), [75, -9, 75, 75, -9, 75, 0]
  lines = iter(['step  10/90  loss 1', 'ended by SIGTERM after step 12, which is saved',
                'g2p test row 5/9', 'g2p test row 1/4', 'step 13/90', 'step 20/90',
                'step 90/90'])  # fmt: skip
  monkeypatch.setattr(restarting.time, 'sleep', lambda _: pytest.fail('it waits'))

  def attempt():
    progress.read('step 1/90')  # reached before
    progress.read(next(lines))
    return codes.pop(0)

  assert restarting.until_final(attempt, max_restarts=0, progress=progress.value, say=str) == 0


def test_rows_that_are_answered_again_are_no_progress():
  progress, values = restarting.Progress(), []
  for line in ('g2p test row  5/900', 'g2p test row 70/900', 'g2p test row  5/900'):
    progress.read(f'12:00:01  {line}  3 tok/s')
    values.append(progress.value())
  assert values[0] == values[1] == values[2]
  progress.read('12:00:01  g2p test row  5/400')
  assert progress.value() != values[2]


def test_an_error_comes_before_the_processes_that_it_takes_along():
  children = [subprocess.Popen(['sh', '-c', f'exit {code}']) for code in (75, 1)]
  for child in children:
    child.wait()
  assert local._wait(children) == 1


def test_codes_are_the_shells():
  def interrupted():
    raise KeyboardInterrupt

  def terminated():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)

  assert restarting.exit_code(lambda: -9) == 137
  assert restarting.exit_code(lambda: 3) == 3
  assert restarting.exit_code(interrupted) == 130
  assert restarting.exit_code(terminated) == 75


def test_a_virtual_device_count_is_not_passed_on_and_other_flags_are():
  flags = '--xla_a=1 --xla_force_host_platform_device_count=8'
  environment = local.environment({'XLA_FLAGS': flags, 'HOME': '/h', 'NPROC': '1'})
  assert environment['XLA_FLAGS'] == '--xla_a=1'
  assert environment['HOME'] == '/h'
  assert int(environment['NPROC']) >= 4


@pytest.mark.parametrize('words', [[], ['train'], ['cascades'], ['--gin_file=x']], ids=str)
def test_a_program_must_be_named(words):
  with pytest.raises(app.UsageError, match='-- cascades'):
    stages.program(words)


@pytest.mark.parametrize('program', ['evaluate', 'plan', 'browse_tasks'])
def test_programs_of_one_process_are_not_launched(program):
  with pytest.raises(app.UsageError, match=f'cascades.{program} runs in one process'):
    stages.program([f'cascades.{program}'])


@pytest.mark.parametrize(('sent', 'expected'), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_launcher_leaves_no_process_behind(tmp_path, sent, expected):
  code = (
    'import sys, pathlib; from launch import local, restarting\n'
    f'sys.exit(restarting.exit_code(lambda: local.run([sys.executable, "-c", {STAND_IN!r} + '
    '"print(os.getpid()); wait_for_term(75)"], processes=2, grace=10.0,'
    f' log_dir=pathlib.Path({str(tmp_path)!r}))))'
  )
  launcher = subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True
  )
  paths = [tmp_path / f'process-{index}.log' for index in range(2)]
  deadline = time.monotonic() + 30
  while not all(path.exists() and 'ready' in path.read_text() for path in paths):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  # As a terminal does: Ctrl-C goes to everyone, and yet the programs get their SIGTERM.
  (os.killpg if sent == signal.SIGINT else os.kill)(launcher.pid, sent)
  assert launcher.wait(30) == expected
  for path in paths:
    assert 'KeyboardInterrupt' not in path.read_text()
    with pytest.raises(ProcessLookupError):
      os.kill(int(path.read_text().split()[0]), 0)


def test_the_command_line_runs_a_program_behind_two_dashes(tmp_path):
  """Its flags are the program's own, and so is the exit code."""
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'launch.local', '--processes=2', f'--logs={tmp_path}', '--'),
      *('cascades.convert', '--help'),
    ],
    cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  output = [path.read_text() for path in tmp_path.glob('cascades-*/process-*.log')]
  assert len(output) == 2
  assert 'python -m cascades.convert --gin_file=' in ''.join(output)


def test_replicas_end_with_0_if_one_succeeds_and_with_the_first_error_if_none_does(capfd):
  command = lambda code, seconds=0: [
    'sh',
    '-c',
    f'sleep {seconds}; echo ends with {code}; exit {code}',
  ]
  assert replicas.run([command(3), command(0), command(75)]) == 0
  assert replicas.run([command(1, 0.5), command(4)]) == 4
  output = capfd.readouterr().out
  assert 'replica 1: ends with 0\n' in output
  assert 'replica 2: ends with 75\n' in output


def test_replicas_are_for_programs_that_divide_their_work():
  done = subprocess.run(
    [sys.executable, '-m', 'launch.local', '--replicas=2', '--', 'cascades.train'],
    cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
  )  # fmt: skip
  assert done.returncode == 1
  assert 'cascades.infer, cascades.cache_teacher, cascades.speculate; found' in done.stderr
