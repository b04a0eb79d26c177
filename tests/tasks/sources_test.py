import json
import logging
import subprocess
import sys

import pytest

from cascades.tasks import sources, tfds_directories
from cascades.tasks.datasets import Dataset
from cascades.tasks.sources import Sources
from cascades.tasks.task import Row

DATASET = Dataset(
  builder='letters/small',
  version='1.0.0',
  sizes={'train': 2},
  features={'text': str},
  files={'train': 'Letters/train.jsonl'},
)


def form(number, example):
  if example['text'] == 'refused':
    raise ValueError('this text is refused')
  return [Row(f'letters/{number}', example['text'], ('yes',))]


def write(folder, name='train.jsonl', rows=({'text': 'a'}, {'text': 'b'})):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))


def read(where, part='train', dataset=DATASET):
  return list(sources.read(dataset, part, where, form))


def nowhere(tmp_path):
  return tmp_path / 'no_tfds'


@pytest.mark.parametrize('folder', ['Letters', 'suite/Letters'])
@pytest.mark.parametrize('name', ['train.jsonl', 'train_part.jsonl'])
def test_the_official_file_is_found_below_the_data_directory(tmp_path, folder, name):
  write(tmp_path / folder, name)
  rows = read(Sources(tmp_path, nowhere(tmp_path)))
  assert [row.id for row in rows] == ['letters/0', 'letters/1']


def test_the_whole_file_is_preferred_to_a_part_of_it(tmp_path):
  write(tmp_path / 'Letters', 'train_part.jsonl', [{'text': 'part'}])
  write(tmp_path / 'suite' / 'Letters', 'train.jsonl', [{'text': 'whole'}])
  assert [row.inputs for row in read(Sources(tmp_path, nowhere(tmp_path)))] == ['whole']


def letters(count):
  return [{'text': chr(97 + i)} for i in range(count)]


@pytest.mark.parametrize(
  ('part', 'expected'),
  [
    ('train', 'abcdefghij'), ('train[:3]', 'abc'), ('train[-2:]', 'ij'), ('train[:-7]', 'abc'),
    ('train[3:5]', 'de'), ('train[-5:-3]', 'fg'), ('train[:30000]', 'abcdefghij'),
  ],
)  # fmt: skip
def test_a_slice_is_taken_by_row_number_and_capped_at_what_there_is(tmp_path, part, expected):
  write(tmp_path / 'Letters', rows=letters(10))
  rows = read(Sources(tmp_path, nowhere(tmp_path)), part)
  assert ''.join(row.inputs for row in rows) == expected
  assert [row.id for row in rows] == [f'letters/{ord(c) - 97}' for c in expected]


def test_a_slice_without_rows_is_an_error_that_says_what_there_should_be(tmp_path):
  write(tmp_path / 'Letters')
  with pytest.raises(ValueError, match=r'has no rows for train\[5:\] .* published with 2 rows'):
    read(Sources(tmp_path, nowhere(tmp_path)), 'train[5:]')


@pytest.mark.parametrize('part', ['train[', 'train[1]', '[:3]', 'train[:x]', ''])
def test_what_is_no_slice_is_refused(part):
  with pytest.raises(ValueError, match='is not a split or a slice'):
    sources.parse_slice(part)


def test_files_that_are_ordered_by_class_are_read_in_a_fixed_shuffled_order(tmp_path):
  write(tmp_path / 'Letters', rows=letters(20))
  where, dataset = Sources(tmp_path, nowhere(tmp_path)), DATASET._replace(ordered=True)
  whole = [row.inputs for row in read(where, 'train', dataset)]
  assert whole != sorted(whole)
  assert sorted(whole) == [row['text'] for row in letters(20)]
  parts = [
    row.inputs for part in ('train[:-5]', 'train[-5:]') for row in read(where, part, dataset)
  ]
  assert parts == whole


def test_files_may_have_tfds_names_and_be_several(tmp_path):
  for i, text in enumerate('ab'):
    write(tmp_path / 'letters' / 'small', f'train-0{i}.jsonl', [{'text': text}])
  assert [row.inputs for row in read(Sources(tmp_path, nowhere(tmp_path)))] == ['a', 'b']


def test_a_row_that_the_formatter_refuses_names_the_file_and_the_row(tmp_path):
  write(tmp_path / 'Letters', rows=[{'text': 'a'}, {'text': 'refused'}])
  with pytest.raises(ValueError, match=r'train\.jsonl, row 1 of split train: this text is refused'):
    read(Sources(tmp_path, nowhere(tmp_path)))


def test_refused_rows_can_be_passed_over_and_are_counted(tmp_path, caplog):
  write(tmp_path / 'Letters', rows=[{'text': 'refused'}, {'text': 'a'}, {'no': 1}])
  rows = read(Sources(tmp_path, nowhere(tmp_path), malformed='skip'))
  assert [row.inputs for row in rows] == ['a']
  assert 'Skipped 1 rows that cannot be used. First: ' in caplog.text
  assert 'Skipped 1 malformed lines' in caplog.text


def test_remote_places_are_refused_unless_allowed():
  for places in ({'data_dir': 'gs://bucket/x'}, {'tfds_data_dir': 'gs://bucket/x'}):
    with pytest.raises(ValueError, match=r'is a remote path: copy it .* allow_remote=True'):
      Sources(**places)
    Sources(**places, allow_remote=True)


def test_sample_rows_serve_every_split_unless_they_name_theirs(monkeypatch, tmp_path):
  monkeypatch.setattr(sources, 'SAMPLES', tmp_path)
  write(tmp_path / 'letters', 'small.jsonl', [{'text': 'a'}, {'text': 'b', '_splits': ['test']}])
  where = Sources(sample=True)
  assert [row.inputs for row in read(where, 'train[:-200]')] == ['a']
  assert [row.inputs for row in read(where, 'test')] == ['a', 'b']


def test_another_row_count_than_published_is_logged(tmp_path, caplog):
  write(tmp_path / 'Letters', rows=[{'text': 'a'}])
  with caplog.at_level(logging.INFO):
    read(Sources(tmp_path))
  assert 'has 1 rows; split train of letters/small was published with 2' in caplog.text


def test_a_slice_from_the_end_of_a_file_of_other_length_warns_of_overlaps(tmp_path, caplog):
  write(tmp_path / 'Letters', rows=letters(3))
  read(Sources(tmp_path, nowhere(tmp_path)), 'train[-2:]')
  assert 'published with 2; slices of it may overlap' in caplog.text


def test_the_backend_in_use_is_logged(tmp_path, caplog):
  write(tmp_path / 'Letters')
  with caplog.at_level(logging.INFO):
    read(Sources(tmp_path))
  assert f'reading {tmp_path}/Letters/train.jsonl' in caplog.text
  assert 'published' not in caplog.text


def test_a_line_that_is_no_row_names_file_and_line(tmp_path):
  write(tmp_path / 'Letters', rows=[{'text': 'a'}, 'not an object'])
  with pytest.raises(ValueError, match=r'train\.jsonl, line 2: expected a JSON object'):
    read(Sources(tmp_path))


def test_missing_data_is_one_error_that_names_every_place_and_the_way_out(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    read(Sources(tmp_path, nowhere(tmp_path)))
  message = str(caught.value)
  for part in (
    'split train of letters/small',
    f'{tmp_path}/[*/] for Letters/train.jsonl[.gz]',
    'letters/small/train.jsonl[.gz]',
    f'{nowhere(tmp_path)}/letters/small/1.0.0',
    'allow_download=True',
    'data_dir',
    'tfds_data_dir',
  ):
    assert part in message
  assert '\n' not in message


def test_missing_data_is_an_error_before_tensorflow_or_the_network_is_touched(tmp_path):
  code = f"""
import socket, sys
def refuse(*_): raise AssertionError('network')
socket.socket.connect = socket.getaddrinfo = refuse
from cascades.tasks import catalog
try: next(catalog.get('superglue_boolq', tfds_data_dir={str(tmp_path)!r}).rows('train'))
except FileNotFoundError as error: print(error)
assert 'tensorflow' not in sys.modules
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert 'BoolQ/train.jsonl' in out.stdout


def test_without_a_folder_of_its_own_tfds_is_looked_for_where_it_usually_is(monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  assert Sources().tfds_root == tmp_path
  monkeypatch.delenv('TFDS_DATA_DIR')
  assert str(Sources().tfds_root).endswith('/tensorflow_datasets')
  assert Sources(tfds_data_dir=tmp_path / 'x').tfds_root == tmp_path / 'x'


def test_a_download_happens_only_when_allowed_and_only_once(monkeypatch, tmp_path):
  downloads = []

  def download(dataset, tfds_root):
    downloads.append(dataset.builder)
    write(tfds_root / dataset.builder / dataset.version, 'dataset_info.json', [])
    return tfds_root / dataset.builder / dataset.version

  monkeypatch.setattr(tfds_directories, 'download', download)
  allowed = Sources(None, tmp_path, allow_download=True)
  with pytest.raises(FileNotFoundError):
    sources.locate(DATASET, 'train', Sources(None, tmp_path))
  assert downloads == []
  for _ in range(2):
    backend = sources.locate(DATASET, 'train', allowed)
    assert backend.where == str(tmp_path / 'letters' / 'small' / '1.0.0')
  assert downloads == ['letters/small']


def test_local_files_come_before_a_prepared_directory(tmp_path):
  write(tmp_path / 'tfds' / 'letters' / 'small' / '1.0.0', 'dataset_info.json', [])
  write(tmp_path / 'Letters')
  backend = sources.locate(DATASET, 'train', Sources(tmp_path, tmp_path / 'tfds'))
  assert backend.where == str(tmp_path / 'Letters' / 'train.jsonl')


def test_the_fingerprint_follows_the_file(tmp_path):
  write(tmp_path / 'Letters')
  before = sources.locate(DATASET, 'train', Sources(tmp_path)).fingerprint()
  write(tmp_path / 'Letters', rows=[{'text': 'c'}])
  assert sources.locate(DATASET, 'train', Sources(tmp_path)).fingerprint() != before
