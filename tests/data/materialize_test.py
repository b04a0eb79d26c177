import concurrent.futures
import contextlib
import errno
import json
import logging
import multiprocessing
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from etils import epath

from cascades.data import materialize, records
from cascades.tasks.task import Row, both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import ROOT, spelling, tiny_task

BYTES = both(vocabularies.bytes_vocabulary())


def write(folder, rows=None, *, name='tiny', fingerprint='one', **settings):
  task = tiny_task(spelling(11) if rows is None else rows, name=name, fingerprint=fingerprint)
  return materialize.materialize(
    task, 'train', settings.pop('vocabulary', BYTES), folder, **settings
  )


def test_records_hold_text_and_tokens_of_every_row(tmp_path):
  written = write(tmp_path, rows_per_shard=4)
  assert len(written) == 11
  for row, record in zip(spelling(11), written.read(range(11)), strict=True):
    assert record.row == row
    assert record.inputs.tolist() == BYTES.inputs.encode(row.inputs)
    assert record.targets.tolist() == BYTES.targets.encode(row.targets)


def test_tokens_can_be_read_without_text_in_any_order(tmp_path):
  written = write(tmp_path)
  order = np.array([7, 0, 7, 10])
  for index, (inputs, targets) in zip(order, written.tokens(order), strict=True):
    assert inputs.tolist() == BYTES.inputs.encode(spelling(11)[index].inputs)
    assert targets.tolist() == BYTES.targets.encode(spelling(11)[index].targets)


def test_the_manifest_describes_the_split(tmp_path):
  written = write(tmp_path, [Row('1', 'ab', ('c',)), Row('2', 'd', ())]).manifest
  assert (written.task, written.split) == ('tiny', 'train')
  assert written.identity['definition'] == '1'
  assert (written.rows, written.unlabeled) == (2, 1)
  assert [list(shard.tokens) for shard in written.shards] == [[3, 1]]
  assert (written.bos_id, written.inputs_eos_id, written.eos_id) == (0, 1, 1)
  assert written.identity['vocabulary'] == BYTES.inputs.fingerprint


def test_complete_records_are_read_not_written_again(tmp_path, monkeypatch):
  first = write(tmp_path)
  monkeypatch.setattr(materialize, '_write', lambda *_: pytest.fail('written again'))
  assert write(tmp_path).directory == first.directory


def test_any_change_of_what_went_in_gets_a_directory_of_its_own(tmp_path):
  symbols = both(vocabularies.symbols(['a']))
  directories = {
    write(tmp_path).directory,
    write(tmp_path, fingerprint='two').directory,
    write(tmp_path, name='other').directory,
    write(tmp_path, vocabulary=symbols).directory,
    write(tmp_path, vocabulary=BYTES._replace(targets=symbols.targets)).directory,
  }
  assert len(directories) == 5


def test_the_directory_names_task_and_split(tmp_path):
  directory = write(tmp_path).directory
  assert directory.parent == tmp_path / 'tiny'
  assert directory.name.startswith('train-')


def test_nothing_temporary_is_left(tmp_path):
  written = write(tmp_path)
  assert [path.name for path in (tmp_path / 'tiny').iterdir()] == [written.directory.name]
  assert sorted(path.name for path in written.directory.iterdir()) == [
    '00000.array_record', '00000.json', '00000.lengths.npy', '00000.tokens', 'manifest.json',
  ]  # fmt: skip


def test_an_incomplete_directory_is_written_again(tmp_path):
  directory = write(tmp_path).directory
  (directory / 'manifest.json').unlink()
  (directory / '00000.tokens').write_bytes(b'')
  assert len(write(tmp_path)) == 11


@pytest.mark.parametrize('left', ['manifest.json', '00000.json', '.00000.json.' + 'a' * 32])
@pytest.mark.parametrize('content', ['', '[]', '{"name": "00000"}', '["', '{"task": "tiny"}'])
def test_nothing_that_an_interrupted_write_leaves_is_in_the_way(
  tmp_path, monkeypatch, left, content
):
  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(type(epath.Path(tmp_path)), 'rename', killed)
    with pytest.raises(KeyboardInterrupt):
      write(tmp_path)
  (partial,) = (tmp_path / 'tiny').iterdir()
  (partial / left).write_text(content)
  written = write(tmp_path)
  assert [record.row for record in written.read(range(11))] == spelling(11)
  assert [path.name for path in (tmp_path / 'tiny').iterdir()] == [written.directory.name]
  assert not [path for path in written.directory.iterdir() if path.name.startswith('.')]


def test_a_full_disk_is_named_with_the_file_and_harms_no_later_run(tmp_path):
  code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from tests.data.materialize_test import write
from tests.tiny_tasks import spelling
write({str(tmp_path)!r}, spelling(400))
"""
  # Without bytecode, which would be cut off like the records, and stay.
  run = [sys.executable, '-B', '-c', code]
  for most_bytes, file in ((100, 'tokens'), (20_000, 'array_record')):
    failed = subprocess.run([*run, str(most_bytes)], capture_output=True, text=True, cwd=ROOT)
    assert re.search(rf'OSError.*{tmp_path}/tiny/.*00000\.{file}', failed.stderr), failed.stderr
  assert len(write(tmp_path, spelling(400))) == 400


def test_a_directory_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
  (tmp_path / 'tiny').write_text('a file where a directory should be')
  with pytest.raises(OSError, match='tiny'):
    write(tmp_path)


def test_a_rename_that_fails_is_not_tried_for_ever(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(tmp_path)), 'rename', full)
  with pytest.raises(OSError, match='No space left'):
    write(tmp_path)


def test_an_interrupted_write_goes_on_after_the_finished_shards(tmp_path, caplog, monkeypatch):
  def interrupted():
    yield from spelling(9)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, interrupted(), rows_per_shard=4)
  (partial,) = (tmp_path / 'tiny').iterdir()
  finished = {path.name: path.read_bytes() for path in partial.glob('0000[01].*')}
  assert len(finished) == 8
  written = []
  write_shard = materialize.shards.write
  monkeypatch.setattr(
    materialize, 'Workers', lambda: contextlib.nullcontext(Inline(written, write_shard))
  )
  with caplog.at_level(logging.INFO):
    resumed = write(tmp_path, rows_per_shard=4)
  assert written == [2]
  assert 'resuming after 2 finished shards' in caplog.text
  assert {name: (resumed.directory / name).read_bytes() for name in finished} == finished
  assert [record.row for record in resumed.read(range(11))] == spelling(11)
  assert [path.name for path in (tmp_path / 'tiny').iterdir()] == [resumed.directory.name]


class Inline:
  """Workers that work here and now."""

  def __init__(self, written, function):
    self.written, self.function = written, function

  def submit(self, _, *arguments):
    self.written.append(arguments[3])
    future = concurrent.futures.Future()
    future.set_result(self.function(*arguments))
    return future


def test_processes_write_what_one_process_writes(tmp_path):
  single = write(tmp_path / 'single', spelling(50), rows_per_shard=50)
  several = write(tmp_path / 'several', spelling(50), rows_per_shard=8)
  assert len(several.manifest.shards) == 7
  for record, expected in zip(several.read(range(50)), single.read(range(50)), strict=True):
    assert record.row == expected.row
    assert np.array_equal(record.inputs, expected.inputs)
    assert np.array_equal(record.targets, expected.targets)


def test_records_that_another_version_wrote_are_in_nobodys_way(tmp_path, caplog):
  old = tmp_path / 'tiny' / 'train-0123456789abcdef'
  old.mkdir(parents=True)
  (old / records.MANIFEST).write_text('{"task": "tiny", "shards": ["0"]}')
  with caplog.at_level(logging.INFO):
    assert len(write(tmp_path)) == 11
  assert f'first time with this format. {tmp_path}/tiny has records of 1 other' in caplog.text


def test_records_of_other_definitions_are_counted_in_one_line(tmp_path, caplog):
  directories = {write(tmp_path, fingerprint=name).directory for name in ('one', 'two')}
  (tmp_path / 'tiny' / 'train-more-0123456789abcdef').mkdir()  # of a split with a longer name
  with caplog.at_level(logging.INFO):
    assert write(tmp_path, fingerprint='three').directory not in directories
  assert caplog.text.count('for the first time with this source') == 1
  assert 'has records of 2 other settings, which can be deleted' in caplog.text
  assert not caplog.text.count(str(min(directories)))


def test_joined_records_are_read_as_one(tmp_path):
  per_task = [write(tmp_path, spelling(n), name=f'task{n}') for n in (3, 5)]
  joined = records.MixtureRecords(per_task)
  assert len(joined) == 8
  expected = [*spelling(3), *spelling(5)]
  order = [7, 0, 3, 2, 7]
  assert [record.row for record in joined.read(order)] == [expected[i] for i in order]
  for i, (inputs, targets) in zip(order, joined.tokens(order), strict=True):
    assert inputs.tolist() == BYTES.inputs.encode(expected[i].inputs)
    assert targets.tolist() == BYTES.targets.encode(expected[i].targets)
  assert joined.name == 'task3, split train + task5, split train'


@pytest.mark.parametrize('name', ['00000.tokens', '00000.lengths.npy', '00000.array_record'])
@pytest.mark.parametrize('damage', ['flip', 'truncate', 'extend', 'remove'])
def test_damaged_files_are_named_set_aside_and_written_again(tmp_path, caplog, name, damage):
  file = write(tmp_path).directory / name
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  if damage == 'remove':
    file.unlink()
  else:
    damaged = {'flip': bytes(content), 'truncate': content[:-8], 'extend': content + b'12345678'}
    file.write_bytes(damaged[damage])
  with pytest.raises(ValueError, match=f'{name} has .* was written. Delete the directory'):
    records.check_content(file.parent)
  assert [record.row for record in write(tmp_path).read(range(11))] == spelling(11)
  assert f'Token records are damaged and written again: {file} has ' in caplog.text
  assert f'records are now in {file.parent}.damaged, which can be deleted' in caplog.text
  file.unlink()
  write(tmp_path)  # beside what was set aside before
  assert sorted(path.name for path in (tmp_path / 'tiny').iterdir()) == [
    file.parent.name, f'{file.parent.name}.damaged'
  ]  # fmt: skip


def opened_by_another(directory):
  """What a process opens that waits while process 0 writes."""
  opened = []
  waiting = threading.Thread(
    target=lambda: opened.append(write(directory, process_index=1, timeout=30))
  )
  waiting.start()
  write(directory)
  waiting.join(30)
  return opened[0]


def test_a_process_waits_until_damaged_records_are_written_again(tmp_path):
  (write(tmp_path).directory / 'manifest.json').write_text('')
  assert len(opened_by_another(tmp_path)) == 11


def test_very_large_files_are_checked_by_size_alone(tmp_path, monkeypatch):
  file = write(tmp_path).directory / '00000.tokens'
  content = file.read_bytes()
  file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  monkeypatch.setattr(materialize, '_CHECKED_BYTES', 10)
  write(tmp_path)
  file.write_bytes(content + b'1234')
  write(tmp_path)
  assert file.read_bytes() == content


def test_opening_notices_other_sizes_without_reading_the_files(tmp_path, monkeypatch):
  directory = write(tmp_path).directory
  with (directory / '00000.tokens').open('ab') as stream:
    stream.write(b'more')
  monkeypatch.setattr(records.textfiles, 'sha256', lambda _: pytest.fail('a file was read'))
  with pytest.raises(ValueError, match=r'00000\.tokens has \d+ bytes, but \d+ was written'):
    records.Records(directory)


def test_a_wrong_row_count_is_refused(tmp_path):
  directory = write(tmp_path).directory
  manifest = json.loads((directory / 'manifest.json').read_text())
  manifest['shards'][0]['rows'] = 12
  (directory / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='has 11 rows, but 12 was written'):
    records.Records(directory)


@pytest.mark.parametrize('rows', [11, 10**9, 10**30])
def test_a_header_that_lies_about_its_rows_fills_no_memory(tmp_path, rows):
  directory = write(tmp_path).directory
  file = directory / '00000.lengths.npy'
  header = file.read_bytes()[:128].replace(b'(11, 2)', f'({rows}, 2)'.encode())
  file.write_bytes(header[:128] + file.read_bytes()[128:])
  manifest = json.loads((directory / 'manifest.json').read_text())
  (shard,) = manifest['shards']
  shard['rows'] = rows
  shard['files'][file.name][0] = len(file.read_bytes())
  (directory / 'manifest.json').write_text(json.dumps(manifest))
  if rows == 11:
    assert len(records.Records(directory)) == 11
    return
  with pytest.raises(ValueError, match=r'00000|manifest'):
    records.Records(directory)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('name', '../../00000'),
    ('name', 0),
    ('rows', -1),
    ('rows', 1e999),
    ('tokens', [1]),
    ('tokens', [5, 6]),
    ('files', {'../x': [1, 'a']}),
    ('files', None),
  ],
)
def test_a_description_of_something_else_is_refused(tmp_path, key, value):
  directory = write(tmp_path).directory
  manifest = json.loads((directory / 'manifest.json').read_text())
  manifest['shards'][0][key] = value
  (directory / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=str(directory)):
    records.Records(directory)


@pytest.mark.parametrize('content', ['', '{}', '[]', '{"files": {}, "rows": 1}', '[' * 9999])
def test_a_manifest_of_something_else_is_refused(tmp_path, content):
  directory = write(tmp_path).directory
  (directory / 'manifest.json').write_text(content)
  with pytest.raises(ValueError, match='is not a manifest of token records'):
    records.Records(directory)


def test_a_directory_without_records_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'manifest\.json is missing'):
    records.Records(tmp_path)


def test_an_empty_split_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='tiny, split train has no rows'):
    write(tmp_path, [])
  assert not list((tmp_path / 'tiny').iterdir())


def test_two_rows_of_one_id_are_an_error(tmp_path):
  with pytest.raises(ValueError, match="two rows with the id 'same'"):
    write(tmp_path, [Row('same', 'a', ('b',)), Row('same', 'c', ('d',))])


def test_an_unknown_split_is_an_error_that_names_the_splits(tmp_path):
  with pytest.raises(ValueError, match='its splits are train, validation'):
    materialize.materialize(tiny_task(spelling(3)), 'test', BYTES, tmp_path)


def test_rows_outside_the_split_are_refused(tmp_path):
  with pytest.raises(IndexError):
    write(tmp_path).read([11])


def test_text_of_any_script_and_empty_inputs_survive(tmp_path):
  rows = [Row('1', '', ('日本\n',)), Row('2', 'Привет\u2028 мир', ('  ',), ('é', '  '), 1)]
  assert [record.row for record in write(tmp_path, rows).read([0, 1])] == rows


def test_rows_whose_tokens_are_all_empty_can_be_stored(tmp_path):
  ((inputs, targets),) = write(tmp_path, [Row('1', '', ())]).tokens([0])
  assert len(inputs) == len(targets) == 0


def test_threads_may_read_at_once(tmp_path):
  written = write(tmp_path, spelling(200), rows_per_shard=50)
  orders = [np.random.default_rng(i).integers(0, 200, 64) for i in range(20)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    results = list(pool.map(written.read, orders))
  for order, read in zip(orders, results, strict=True):
    assert [record.row.id for record in read] == [f'row-{i}' for i in order]


def write_in_process(folder, barrier):
  barrier.wait()
  return len(write(folder, spelling(300)))


def test_two_jobs_may_write_the_same_records_at_once(tmp_path):
  context = multiprocessing.get_context('spawn')
  with context.Manager() as manager, concurrent.futures.ProcessPoolExecutor(2, context) as pool:
    barrier = manager.Barrier(2)
    jobs = [pool.submit(write_in_process, tmp_path, barrier) for _ in range(2)]
    assert [job.result(timeout=60) for job in jobs] == [300, 300]
  records.check_content(write(tmp_path, spelling(300)).directory)
  assert len(list((tmp_path / 'tiny').iterdir())) == 1


def test_another_process_waits_for_the_first(tmp_path):
  assert len(opened_by_another(tmp_path)) == 11


def test_waiting_for_a_process_that_never_writes_ends_with_a_sentence(tmp_path):
  with pytest.raises(TimeoutError, match='Process 0 has not written'):
    write(tmp_path, process_index=1, timeout=0)


def test_large_splits_report_their_progress(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(materialize, '_SECONDS_BETWEEN_REPORTS', 0.0)
  with caplog.at_level(logging.INFO):
    write(tmp_path)
  assert 'tiny, split train: 11 rows tokenized, ' in caplog.text
  assert 'rows/s' in caplog.text


def test_records_are_written_and_fed_without_tensorflow(tmp_path, hand_written):
  (tmp_path / 'rows.tsv').write_text('a\tb\n')
  (tmp_path / 'rows.jsonl').write_text('{"inputs": "a", "targets": "b"}\n')
  code = f"""
import sys
from cascades.data import batches, converters, materialize, records
from cascades.tasks import catalog, local
from cascades.tasks.task import both
lengths = {{'inputs': 32, 'targets': 32}}
for task, split in (
  (catalog.get('cmudict_g2p'), 'validation'),
  (catalog.get('superglue_rte', data_dir={str(hand_written)!r}), 'train'),
  (local.local_jsonl('lines', {{'train': {str(tmp_path / 'rows.jsonl')!r}}}), 'train'),
  (local.local_tsv('cells', {{'train': {str(tmp_path / 'rows.tsv')!r}}}), 'train'),
):
  made = materialize.materialize(
    task, split, both(task.vocabulary()), {str(tmp_path / 'records')!r})
  fed = batches.train_batches(
    made, convert=converters.encoder_decoder, lengths=lengths, batch_size=8, seed=0)
  print(len(made), next(fed).inputs.shape)
assert not {{'tensorflow', 'seqio', 'tensorflow_datasets'}} & set(sys.modules)
"""
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT
  )
  assert out.stdout.split('\n')[:4] == [f'{count} (8, 32)' for count in (2558, 8, 1, 1)]
