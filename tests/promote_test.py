"""The program that follows a server's log: its files, its journal, and what kills leave of them."""

import asyncio
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from cascades import promote
from cascades.calibrate import calibrate
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import Demands
from cascades.evaluation.promotions import Caution
from cascades.promote import Followed
from cascades.runtime import files
from cascades.serving import served_policy
from cascades.serving.live_policy import LivePolicy
from cascades.serving.metering import Log, LogOptions
from cascades.serving.promotion_journal import CHANGES
from tests import calibrate_test
from tests.serving.example_exchanges import Token, exchange, leg

CAUTION = Caution(every=400, window=800)
DEMANDS = Demands(margin=0.2)


def exchanges(size, *, slope, seed):
  """Audits of a small model that agrees with the large one the more rarely, the less sure it is."""
  generator = np.random.default_rng(seed)
  for i in range(size):
    score = generator.random()
    agrees = generator.random() < 1 - slope * score
    tokens = [Token(b'x', -score, id=7)]
    yield exchange(
      leg(text='yes' if agrees else 'no', tokens=tokens, generated_tokens=1),
      leg('large', 'yes', tokens=tokens, generated_tokens=1),
      id=f'{seed}-{i}', is_audit=True,
    )  # fmt: skip


def record(directory, stream, *, text=True):
  log = Log(directory, LogOptions(text=text))
  for each in stream:
    log.record(each)
  log.close()


def begin(root):
  """Policy that defers more than its promise needs."""
  split = calibrate_test.write(root, 'validation', tasks=('words',))
  calibrate(split, str(root / 'policy.json'), Demands(quality=0.75), metric='accuracy')
  return policies.read(root / 'policy.json')


def follow(root, *, demands=DEMANDS, caution=CAUTION, **changes):
  followed = Followed(str(root / 'log'), str(root / 'policy.json'), once=True, **changes)
  promote.promote(followed, demands, caution)


def journal(root):
  """Decisions without their times."""
  lines = (root / 'policy.promotion' / 'decisions.jsonl').read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k != 'time'} for line in lines]


@pytest.fixture(scope='module')
def origin(tmp_path_factory):
  """Policy and log of a server whose small model is good first, and bad later."""
  root = tmp_path_factory.mktemp('origin')
  begin(root)
  record(root / 'log', exchanges(400, slope=0.4, seed=1))
  record(root / 'log', exchanges(800, slope=1.5, seed=2))
  return root


def copied(origin, root):
  for path in [origin / 'policy.json', *(origin / 'log').rglob('*.jsonl')]:
    target = root / path.relative_to(origin)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(path.read_bytes())
  return root


@pytest.fixture(scope='module')
def done(origin, tmp_path_factory):
  root = copied(origin, tmp_path_factory.mktemp('done'))
  follow(root)
  return root


def test_a_policy_is_promoted_and_rolled_back_and_every_one_is_stored(origin, done):
  entries = journal(done)
  decisions = [entry['decision'] for entry in entries]
  assert decisions[:3] == ['taken over', 'promoted', 'in effect']
  assert decisions[3:5] == ['rolled back', 'in effect']
  assert entries[3]['policy'] == entries[0]['policy']
  assert 'breaks its promise of margin' in entries[3]['why']
  assert [entry['rows'] for entry in entries if entry['decision'] in ('unchanged', *CHANGES)
          ] == [400, 800, 1200]  # fmt: skip
  first = entries[decisions.index('promoted')]
  assert first['compared']['gain'] > 0.01 < first['compared']['rows']
  folder = done / 'policy.promotion'
  assert (folder / '0000.json').read_bytes() == (origin / 'policy.json').read_bytes()
  assert (done / 'policy.json').read_bytes() == (folder / entries[-1]['policy']).read_bytes()
  before, after = (policies.read(folder / name) for name in ('0000.json', first['policy']))
  assert (before.models, before.decider) == (after.models, after.decider)
  assert after.thresholds[0].threshold == first['candidate'] > before.thresholds[0].value
  assert after.thresholds[0].promises[0].name == 'margin'


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_write_comes_out_as_if_it_had_not_been(
  origin, done, tmp_path, monkeypatch
):
  writes = {'left': 0}

  def dying(function):
    def write(*arguments):
      writes['left'] -= 1
      if not writes['left']:
        raise KeyboardInterrupt
      function(*arguments)

    return write

  monkeypatch.setattr(files, 'write', dying(files.write))
  monkeypatch.setattr(files, 'append', dying(files.append))
  for number in (1, 2, 3, 4, 5, 6, 7, 8):
    root = copied(origin, tmp_path / str(number))
    writes['left'] = number
    with pytest.raises(KeyboardInterrupt):
      follow(root)
    follow(root)
    assert journal(root) == journal(done)
    assert (root / 'policy.json').read_bytes() == (done / 'policy.json').read_bytes()


def test_the_real_command_goes_on_after_it_was_killed(origin, done, tmp_path):
  root = copied(origin, tmp_path)
  decisions = root / 'policy.promotion' / 'decisions.jsonl'
  command = [
    sys.executable, '-m', 'cascades.promote', '--gin_file=runs/promote.gin',
    f'--gin.LOG_DIR={root / "log"}', f'--gin.POLICY={root / "policy.json"}',
    '--gin.MARGIN=0.2', '--gin.EVERY=400', '--gin.WINDOW=800', '--gin.ONCE=True',
  ]  # fmt: skip
  with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
    while not decisions.exists() and process.poll() is None:
      time.sleep(0.01)
    process.kill()
  outcome = subprocess.run(command, capture_output=True, text=True)
  assert outcome.returncode == 0, outcome.stderr
  assert journal(root) == journal(done)
  assert 'the next look is at 1600' in outcome.stdout


def test_a_second_run_decides_nothing_and_later_rows_are_looked_at_in_the_same_steps(
  origin, done, tmp_path
):
  root = copied(origin, tmp_path)
  late = [path for path in (root / 'log').rglob('*.jsonl') if path.name.endswith('-0001.jsonl')]
  contents = {path: path.read_bytes() for path in late}
  for path in late:
    path.unlink()
  follow(root)
  first = journal(root)
  follow(root)
  assert journal(root) == first
  for path, content in contents.items():
    path.write_bytes(content)
  follow(root)
  assert journal(root) == journal(done)


def test_a_policy_that_was_replaced_by_hand_is_taken_over(origin, tmp_path):
  root = copied(origin, tmp_path)
  follow(root)
  (root / 'policy.json').write_bytes((origin / 'policy.json').read_bytes() + b'\n')
  follow(root)
  last = journal(root)[-1]
  assert (last['decision'], last['why']) == ('taken over', 'POLICY was replaced by hand')
  assert last['before'] is None
  stored = root / 'policy.promotion' / last['policy']
  assert stored.read_bytes() == (root / 'policy.json').read_bytes()


def test_a_server_takes_the_promoted_policy_over(origin, tmp_path):
  root, applied = copied(origin, tmp_path), []
  path = str(root / 'policy.json')
  live = LivePolicy(path, lambda: served_policy.from_file(path), applied.append, {})
  follow(root)
  assert asyncio.run(live.look())
  assert applied[0].rules[0].thresholds


def test_logs_of_digests_are_followed_by_agreement_and_labels_need_texts(origin, tmp_path):
  (tmp_path / 'policy.json').write_bytes((origin / 'policy.json').read_bytes())
  record(tmp_path / 'log', exchanges(400, slope=0.4, seed=1), text=False)
  labels = tmp_path / 'labels.jsonl'
  labels.write_text(
    '\n'.join(
      json.dumps({'id': f'1-{i}', 'inputs': '', 'targets': ['yes' if i % 2 else 'no']})
      for i in range(300)
    )
  )
  with pytest.raises(ValueError, match='digests of the texts, so that LABELS cannot judge'):
    follow(tmp_path, labels=str(labels))
  follow(tmp_path)
  assert 'promoted' in [entry['decision'] for entry in journal(tmp_path)]


def test_labels_judge_instead_of_the_large_model_and_rows_without_one_are_left_out(
  origin, tmp_path
):
  root = copied(origin, tmp_path)
  labels = tmp_path / 'labels.jsonl'
  labels.write_text(
    '\n'.join(json.dumps({'id': f'1-{i}', 'inputs': '', 'targets': ['no']}) for i in range(150))
  )
  follow(root, labels=str(labels), demands=Demands(quality=0.5), caution=Caution(every=900))
  look = journal(root)[1]
  assert (look['decision'], look['labeled'], look['rows']) == ('unchanged', 150, 900)
  assert 'No threshold' in look['why']  # the large model is always wrong


def test_policies_of_several_thresholds_and_missing_ones_are_refused(tmp_path):
  (tmp_path / 'log').mkdir()
  with pytest.raises(FileNotFoundError, match=r'POLICY is a file that `python -m cascades.calib'):
    follow(tmp_path)
  split = calibrate_test.write(tmp_path, 'validation')
  calibrate(split, str(tmp_path / 'policy.json'), Demands(quality=0.5), by_task=True)
  with pytest.raises(ValueError, match='thresholds of 2 tasks: a policy with one threshold'):
    follow(tmp_path)
