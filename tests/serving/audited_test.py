"""The reader of a log that is being written, rotated, damaged, and read by killed processes."""

import json

import pytest

from cascades.serving.audited import AuditedRows
from cascades.serving.metering import Log, LogOptions
from tests.serving.example_exchanges import exchange, leg


def audit(name, **changes):
  return exchange(leg(), leg('large'), id=name, is_audit=True, **changes)


def written(directory, exchanges, **options):
  """Log of the exchanges of a server that has ended."""
  log = Log(directory, LogOptions(text=True, **options))
  for each in exchanges:
    log.record(each)
  log.close()


def ids(audited):
  return [row['id'] for row in audited.rows(0, 1000)]


def test_only_audits_that_both_models_answered_are_stored_in_order(tmp_path):
  failed = exchange(leg(), leg('large', finish=None, error='down'), id='c', is_audit=True)
  written(tmp_path / 'log', [audit('a'), exchange(id='b'), failed, audit('d')])
  audited = AuditedRows(tmp_path / 'log', tmp_path)
  assert audited.read() == 2
  assert (ids(audited), len(audited), audited.damaged) == (['a', 'd'], 2, 0)
  assert [row['large']['prediction'] for row in audited.rows(1, 2)] == ['K AE1 T']


def test_rotated_files_and_later_servers_are_read_once_each(tmp_path):
  names = [f'x-{i}' for i in range(12)]
  audited = None
  for start in (0, 4, 8):
    written(tmp_path / 'log', map(audit, names[start : start + 4]), file_bytes=1)
    audited = audited or AuditedRows(tmp_path / 'log', tmp_path)
    assert audited.read() == 4
    assert audited.read() == 0
  assert len([*(tmp_path / 'log' / 'small').iterdir()]) >= 3
  assert ids(audited) == ids(AuditedRows(tmp_path / 'log', tmp_path)) == names


def test_a_line_is_read_when_it_is_complete_and_a_row_waits_for_its_other_half(tmp_path):
  written(tmp_path / 'whole', [audit('a'), audit('b')])
  lines = {
    role: next((tmp_path / 'whole' / role).iterdir()).read_bytes().splitlines(keepends=True)
    for role in ('small', 'large')
  }
  for role in lines:
    (tmp_path / 'log' / role).mkdir(parents=True)
  small, large = (tmp_path / 'log' / role / '2026-11-30-0000.jsonl.open' for role in lines)
  small.write_bytes(lines['small'][0] + lines['small'][1][:50])
  large.write_bytes(b'')
  audited = AuditedRows(tmp_path / 'log', tmp_path)
  assert audited.read() == 0
  large.write_bytes(lines['large'][0] + b'{"audit": true, damaged\n' + lines['large'][1])
  audited = AuditedRows(tmp_path / 'log', tmp_path)  # killed meanwhile
  assert audited.read() == 1
  assert (ids(audited), audited.damaged) == (['a'], 1)
  small.write_bytes(b''.join(lines['small']))
  small.rename(small.parent / small.name.removesuffix('.open'))
  assert (audited.read(), ids(audited), audited.damaged) == (1, ['a', 'b'], 1)


def test_rows_that_were_stored_before_their_position_was_are_stored_once(tmp_path):
  written(tmp_path / 'log', [audit('a'), audit('b')])
  AuditedRows(tmp_path / 'log', tmp_path).read()
  (tmp_path / 'position.json').unlink()
  with (tmp_path / 'audited.jsonl').open('rb+') as file:
    file.truncate(len(file.readline()) + 10)  # the second line is cut
  audited = AuditedRows(tmp_path / 'log', tmp_path)
  assert (audited.read(), ids(audited)) == (1, ['a', 'b'])
  assert json.loads((tmp_path / 'position.json').read_bytes())['waiting'] == {}


def test_other_logs_are_refused_with_the_way_out(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'LOG_DIR=.*log does not exist.*serve'):
    AuditedRows(tmp_path / 'log', tmp_path)
  for name in ('1b', '8b', '70b'):
    (tmp_path / 'log' / name).mkdir(parents=True)
  with pytest.raises(ValueError, match='folders 1b, 70b, 8b, and the log of two models has small'):
    AuditedRows(tmp_path / 'log', tmp_path)
