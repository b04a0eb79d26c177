"""The log of exchanges: tables that evaluation reads, and failures that no request notices."""

import errno
import json
import os
import time

import numpy as np
import pytest

from cascades import costs, deferral
from cascades.calibrate import calibrate
from cascades.evaluate import evaluate
from cascades.evaluation.calibration import Demands
from cascades.evaluation.compare import compare
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.predictions import __main__ as predictions
from cascades.predictions import rows, shards
from cascades.runtime import files
from cascades.serving import exchange_rows, metering
from cascades.serving.exchanges import Question, Shadow
from cascades.serving.metering import Log, LogOptions
from tests import synthetic_tables
from tests.serving.example_exchanges import NOON, exchange, leg, replayed

DEADLINE = 20.0


def wait(condition):
  end = time.monotonic() + DEADLINE
  while not condition():
    assert time.monotonic() < end, 'the log did not get there'
    time.sleep(0.005)


def logged(directory, *exchanges, **options):
  log = Log(directory, LogOptions(**options), clock=lambda: NOON)
  for each in exchanges:
    log.record(each)
  log.close()
  assert log.lost == 0
  return log


def lines(directory, stream='small'):
  return [json.loads(line) for path in sorted((directory / stream).glob('*.jsonl'))
          for line in path.read_text().splitlines()]  # fmt: skip


def test_the_log_read_back_has_the_curve_the_costs_and_the_author_shares(tmp_path, capsys):
  small, large = (
    synthetic_tables.records('a', size=60, skill=skill, seed=seed)
    for skill, seed in ((0.0, 1), (1.6, 9))
  )
  served = synthetic_tables.table('a', size=60, skill=0.0, seed=1)
  score = deferral.DECIDERS['average'].score(served)
  threshold = float(np.median(score))
  exchanges = replayed(small, large, score, threshold, (0.25, 4.0))
  logged(tmp_path / 'log', *exchanges, text=True)
  labels = tmp_path / 'labels.jsonl'
  label = [
    {'id': row['aux']['id'], 'targets': row['aux']['targets'], 'inputs': ''} for row in small
  ]
  labels.write_text('\n'.join(map(json.dumps, label)))
  for role in ('small', 'large'):
    (path,) = (tmp_path / 'log' / role).glob('*.jsonl')
    assert not predictions.main(
      [
        'import', '--format=log', '--filter=both', f'--labels={labels}', '--parameters=1000',
        '--task=a', str(path), str(tmp_path / 'tables' / role / 'test'),
      ]
    ), capsys.readouterr()  # fmt: skip
  tables = [shards.read(tmp_path / 'tables' / role / 'test') for role in ('small', 'large')]
  originals = [
    [synthetic_tables.table('a', size=60, skill=skill, seed=seed)]
    for skill, seed in ((0.0, 1), (1.6, 9))
  ]
  scores = {'average': deferral.DECIDERS['average'].score}
  curve, expected = (
    compare({'s': cheap}, dear, scores=scores, settings=Settings(resamples=10)).at('s').curve
    for cheap, dear in (tables, originals)
  )
  np.testing.assert_allclose(curve.quality, expected.quality)
  np.testing.assert_allclose(curve.deferral_rate, expected.deferral_rate)
  np.testing.assert_allclose(curve.threshold, expected.threshold, rtol=1e-6)
  own = [costs.per_row(table, 'dollars') for (table,) in tables]
  written = [original[0].lengths for original in originals]
  np.testing.assert_allclose(own[0], 0.25 * written[0])
  np.testing.assert_allclose(own[1], 4.0 * written[1])
  authors = [row['aux']['author'] for row in lines(tmp_path / 'log')]
  assert authors.count('large') == (score >= threshold).sum()
  assert tables[0][0].manifest['model'] == {'name': 'the small model'}


def tables(tmp_path, name, *options, **log_options):
  """Directories of the tables of both models, imported from a log of 60 exchanges."""
  small, large = (
    synthetic_tables.records('a', size=60, skill=skill, seed=seed)
    for skill, seed in ((0.0, 1), (1.6, 9))
  )
  exchanges = replayed(small, large, np.linspace(0, 1, 60), 0.5, (0.25, 4.0))
  logged(tmp_path / name, *exchanges, **log_options)
  for role in ('small', 'large'):
    (path,) = (tmp_path / name / role).glob('*.jsonl')
    target = str(tmp_path / name / 'tables' / role / 'test')
    words = ['import', '--format=log', '--filter=both', '--parameters=9', '--task=a', *options]
    assert not predictions.main([*words, path.as_posix(), target])
  return [str(tmp_path / name / 'tables' / role) for role in ('small', 'large')]


def test_a_policy_of_a_labeled_log_is_compared_with_a_log_of_digests(tmp_path, capsys):
  labels = tmp_path / 'labels.jsonl'
  rows_of_task = synthetic_tables.records('a', size=60)
  labels.write_text(
    '\n'.join(
      json.dumps({'id': row['aux']['id'], 'targets': row['aux']['targets'], 'inputs': ''})
      for row in rows_of_task[:50]
    )
  )
  small, large = tables(tmp_path, 'plain', f'--labels={labels}', text=True)
  assert len(shards.read(f'{small}/test')[0].ids) == 50  # those with labels
  path = str(tmp_path / 'policy.json')
  calibrate(Tables([small], large, split='test'), path, Demands(margin=0.9))
  small, large = tables(tmp_path, 'digests')
  report = str(tmp_path / 'report')
  assert evaluate(Tables([small], large, split='test'), report, policy=path) is None
  (outcome,) = json.loads((tmp_path / 'report' / 'promises.json').read_text())
  assert outcome['rows'] == 60
  capsys.readouterr()


def test_a_row_of_the_log_is_a_row_of_a_table(tmp_path):
  logged(tmp_path, exchange(leg(), leg('large', dollars=None)), text=True)
  row = rows.decode((tmp_path / 'small' / '2026-11-30-0000.jsonl').read_bytes(), 'predict')
  assert (row.id, row.inputs, row.prediction) == ('x-1', 'c a t', 'K AE1 T')
  assert row.columns == {
    'prompt_tokens': 5, 'generated_tokens': 2, 'seconds': 0.2, 'dollars': 0.001,
  }  # fmt: skip
  assert row.logprobs == [-0.1, -0.4]
  assert row.tokens == [7, 7]
  (small,), (large,) = lines(tmp_path), lines(tmp_path, 'large')
  assert small['aux']['discarded_tokens'] == 2
  assert small['aux']['author'] == 'large'
  assert small['aux']['answered'] == 'both'
  assert 'dollars' not in large['aux']


def test_an_exchange_in_which_no_model_was_asked_is_logged_too(tmp_path):
  refused = exchange()._replace(legs=(), author=None, status=429, decisions=())
  logged(tmp_path, refused)
  (row,) = lines(tmp_path, 'unanswered')
  assert (row['aux']['status'], row['aux']['author'], row['aux']['threshold']) == (429, None, None)
  assert not lines(tmp_path)


def test_texts_are_digests_unless_asked_for(tmp_path):
  secrets = exchange(leg(text='a secret', error='a secret was refused'), leg('large', 'a secret'))
  logged(tmp_path, secrets, secrets._replace(question=Question('another')))
  content = b''.join(path.read_bytes() for path in tmp_path.rglob('*.jsonl')).decode()
  assert not [text for text in ('secret', 'c a t', 'another') if text in content]
  first, second = lines(tmp_path)
  assert first['prediction'] == lines(tmp_path, 'large')[0]['prediction'] == second['prediction']
  assert first['inputs'] != second['inputs']
  assert set(first['aux']['tokens']) == {-1}
  assert first['aux']['failed']


def test_digests_of_two_starts_differ_so_that_no_table_of_texts_reverses_them(tmp_path):
  logged(tmp_path, exchange())
  logged(tmp_path, exchange())
  first, second = lines(tmp_path)
  assert first['prediction'] != second['prediction']


def test_digests_cannot_be_judged_by_labels(tmp_path, capsys):
  logged(tmp_path / 'log', exchange())
  (path,) = (tmp_path / 'log' / 'small').glob('*.jsonl')
  (tmp_path / 'labels.jsonl').write_text('{"id": "x-1", "inputs": "", "targets": "K"}')
  command = ['import', '--format=log', '--parameters=9', str(path), str(tmp_path / 'test')]
  assert predictions.main([*command, f'--labels={tmp_path}/labels.jsonl']) == 1
  assert 'LOG_TEXT=True' in capsys.readouterr().err
  assert predictions.main(command) == 0
  assert '1 rows have no target' in capsys.readouterr().out


def test_answers_that_were_cut_short_are_logged_and_not_imported(tmp_path, capsys):
  short = exchange(leg(finish=None), leg('large'), id='x-2')
  logged(tmp_path / 'log', exchange(), short)
  assert [row['aux']['answered'] for row in lines(tmp_path / 'log')] == ['small', 'large']
  (path,) = (tmp_path / 'log' / 'small').glob('*.jsonl')
  command = ['import', '--format=log', '--parameters=9', str(path), str(tmp_path / 'test')]
  assert predictions.main(command) == 0
  assert shards.read(tmp_path / 'test')[0].ids == ['x-1']
  assert predictions.main([*command, '--filter=both']) == 1
  assert 'holds no answer' in capsys.readouterr().err
  assert predictions.main([*command, '--filter=all']) == 1


def test_what_another_policy_would_have_done_is_logged(tmp_path):
  logged(tmp_path, exchange(shadow=Shadow(0.25, np.inf, np.False_, 'small')), exchange(id='x-2'))
  first, second = lines(tmp_path)
  assert first['aux']['shadow'] == {
    'score': 0.25,
    'threshold': None,
    'deferred': False,
    'author': 'small',
  }
  assert 'shadow' not in second['aux']


def test_a_row_without_all_log_probabilities_has_none():
  partial = [*leg().tokens, leg().tokens[0]._replace(logprob=None)]
  ((_, row),) = exchange_rows.of_exchange(exchange(leg(tokens=partial)))
  assert row['aux']['token_logprobs'] == row['aux']['tokens'] == []


def test_alternatives_are_sorted():
  tokens = [t._replace(alternatives=((b'b', -2.0), (b'a', -0.1))) for t in leg().tokens]
  ((_, row),) = exchange_rows.of_exchange(exchange(leg(tokens=tokens)))
  assert row['aux']['top_logprobs'] == [[-0.1, -2.0]] * 2


def test_half_a_surrogate_pair_is_logged(tmp_path):
  logged(tmp_path / 'plain', exchange(leg(text='\ud83d')), text=True)
  logged(tmp_path / 'digest', exchange(leg(text='\ud83d')))
  assert lines(tmp_path / 'plain')[0]['prediction'] == '\ud83d'


def test_files_rotate_together_by_size_and_by_day(tmp_path):
  now = [NOON]
  log = Log(tmp_path, LogOptions(file_bytes=1), clock=lambda: now[0])
  for number in range(3):
    now[0] = NOON + 86400 * (number // 2)
    log.record(exchange(leg(), leg('large'), id=str(number)))
    wait(lambda n=number: log.written == 2 * (n + 1))
  log.close()
  names = ['2026-11-30-0000.jsonl', '2026-11-30-0001.jsonl', '2026-12-01-0000.jsonl']
  for stream in ('small', 'large'):
    assert sorted(path.name for path in (tmp_path / stream).iterdir()) == names
  assert (tmp_path / 'small' / names[0]).stat().st_mode & 0o777 == 0o600
  assert not (tmp_path / '.lock').exists()


def test_a_new_day_ends_a_file_without_rows_of_that_day(tmp_path):
  now = [NOON]
  log = Log(tmp_path, LogOptions(), clock=lambda: now[0])
  log.record(exchange())
  wait(lambda: log.written == 1)
  now[0] += 86400
  log.record(exchange(id='x-2'))
  for name in ('2026-11-30-0000.jsonl', '2026-12-01-0000.jsonl.open'):
    wait((tmp_path / 'small' / name).exists)
  log.close()


def test_the_file_of_a_killed_server_is_completed_without_its_last_part(tmp_path):
  (tmp_path / 'small').mkdir()
  (tmp_path / 'small' / '2026-11-30-0004.jsonl.open').write_bytes(b'{"a": 1}\n{"a": 2')
  (tmp_path / 'small' / '2026-11-30-0005.jsonl.open').write_bytes(b'{"a')
  logged(tmp_path, exchange())
  assert (tmp_path / 'small' / '2026-11-30-0004.jsonl').read_bytes() == b'{"a": 1}\n'
  assert sorted(path.name for path in (tmp_path / 'small').iterdir()) == [
    '2026-11-30-0004.jsonl', '2026-11-30-0005.jsonl',
  ]  # fmt: skip


def test_two_servers_do_not_share_a_log(tmp_path):
  log = Log(tmp_path)
  with pytest.raises(BlockingIOError, match='in use by process'):
    Log(tmp_path)
  log.close()
  Log(tmp_path).close()


@pytest.fixture
def full_disk(monkeypatch):
  """A switch; while it is on, half of each write succeeds and the rest fails."""
  full, write = [False], os.write

  def written(descriptor, data):
    if not full[0]:
      return write(descriptor, data)
    if len(data) < 100:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, data[: len(data) // 2])

  monkeypatch.setattr(files.os, 'write', written)
  monkeypatch.setattr(metering, 'RETRY_SECONDS', 0.01)
  return full


def test_an_exchange_that_cannot_be_described_ends_nothing(tmp_path, caplog):
  log = Log(tmp_path)
  log.record(exchange(leg(seconds='a secret'), id='bad'))
  log.record(exchange())
  log.close()
  assert (log.lost, log.written) == (1, 1)
  assert 'not logged: ValueError' in caplog.text
  assert 'secret' not in caplog.text


def test_a_full_disk_delays_rows_and_warns_once(tmp_path, full_disk, caplog):
  log = Log(tmp_path, LogOptions(required=True, waiting=3, sync_seconds=0))
  log.record(exchange(id='0'))
  wait(lambda: log.written == 1)
  assert log.refusal == ''
  full_disk[0] = True
  log.record(exchange(id='1'))
  wait(lambda: log.failure)
  assert 'No space left' in log.refusal
  assert log.reasons() == [log.refusal] == [log.notes['LOG_DIR']]
  for number in range(2, 7):
    log.record(exchange(id=str(number)))
  assert log.lost == 2
  (path,) = (tmp_path / 'small').iterdir()
  wait(lambda: path.read_bytes().count(b'\n') == 1 and path.read_bytes().endswith(b'\n'))
  full_disk[0] = False
  wait(lambda: not log.failure and log.written == 5)
  assert log.reasons() == []
  wait(lambda: not log.notes)
  log.close()
  assert [row['aux']['id'] for row in lines(tmp_path)] == list('01234')
  assert [record.message.split(',')[0][:40] for record in caplog.records] == [
    'The log of exchanges cannot be written', 'The log of exchanges is written again; 2',
  ]  # fmt: skip


def test_a_log_that_fails_until_the_end_counts_what_is_lost(tmp_path, full_disk):
  full_disk[0] = True
  log = Log(tmp_path, LogOptions())
  for number in range(5):
    log.record(exchange(id=str(number)))
  wait(lambda: log.failure)
  assert log.refusal == ''
  log.close()
  assert log.lost == 5
  assert log.written == 0
  log.record(exchange())
  assert log.lost == 6


def test_a_folder_that_vanishes_is_made_again(tmp_path):
  log = Log(tmp_path / 'log', LogOptions(file_bytes=1), clock=lambda: NOON)
  log.record(exchange())
  path = tmp_path / 'log' / 'small' / '2026-11-30-0000.jsonl'
  wait(path.exists)
  path.unlink()
  (tmp_path / 'log' / 'small').rmdir()
  log.record(exchange(id='x-2'))
  wait(lambda: log.written == 2)
  log.close()
  assert [row['aux']['id'] for row in lines(tmp_path / 'log')] == ['x-2']


def test_large_exchanges_do_not_fill_the_memory(tmp_path, full_disk):
  full_disk[0] = True
  log = Log(tmp_path, LogOptions(waiting_bytes=100_000))
  log.record(exchange())
  wait(lambda: log.failure)
  for _ in range(10):
    log.record(exchange(leg(text='x' * 20_000)))
  assert log.lost == 8
  log.close()


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path, caplog):
  (tmp_path / 'small').mkdir()
  log = Log(tmp_path, LogOptions(), clock=lambda: NOON)
  (tmp_path / 'small' / '2026-11-30-0000.jsonl.open').symlink_to(tmp_path / 'victim')
  log.record(exchange())
  wait(lambda: log.written == 1)  # under the next number
  log.close()
  assert not (tmp_path / 'victim').exists()


def test_options_out_of_range_are_refused():
  with pytest.raises(ValueError, match='waiting=0'):
    LogOptions(waiting=0)
  with pytest.raises(ValueError, match='sync_seconds'):
    LogOptions(sync_seconds=-1)


def test_a_remote_log_is_refused():
  with pytest.raises(ValueError, match='LOG_DIR=gs://bucket/log is remote'):
    Log('gs://bucket/log')
