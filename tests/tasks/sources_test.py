import json
import logging
import subprocess
import sys

import pytest

from cascades.tasks import sources
from cascades.tasks.sources import Dataset, Sources
from cascades.tasks.task import Row

DATASET = Dataset(
  builder='letters/small',
  version='1.0.0',
  files={'train': 'Letters/train.jsonl'},
  sizes={'train': 2},
)


def form(example):
  return Row(f'letters/{example["idx"]}', example['text'], ('yes',))


def write(folder, name='train.jsonl', rows=({'text': 'a', 'idx': 7}, {'text': 'b', 'idx': 9})):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))


def read(where):
  return list(sources.read(DATASET, 'train', where, form))


def nowhere(tmp_path):
  return tmp_path / 'no_tfds'


@pytest.mark.parametrize('folder', ['Letters', 'suite/Letters'])
@pytest.mark.parametrize('name', ['train.jsonl', 'train_part.jsonl'])
def test_the_official_file_is_found_below_the_data_directory(tmp_path, folder, name):
  write(tmp_path / folder, name)
  rows = read(Sources(tmp_path, nowhere(tmp_path)))
  assert [row.id for row in rows] == ['letters/7', 'letters/9']


def test_the_whole_file_is_preferred_to_a_part_of_it(tmp_path):
  write(tmp_path / 'Letters', 'train_part.jsonl', [{'text': 'part'}])
  write(tmp_path / 'suite' / 'Letters', 'train.jsonl', [{'text': 'whole'}])
  assert [row.inputs for row in read(Sources(tmp_path, nowhere(tmp_path)))] == ['whole']


def test_rows_without_an_index_are_counted_from_zero(tmp_path):
  write(tmp_path / 'Letters', rows=[{'text': 'a'}, {'text': 'b'}])
  assert [row.id for row in read(Sources(tmp_path))] == ['letters/0', 'letters/1']


def test_another_row_count_than_published_is_logged(tmp_path, caplog):
  write(tmp_path / 'Letters', rows=[{'text': 'a'}])
  with caplog.at_level(logging.INFO):
    read(Sources(tmp_path))
  assert 'has 1 rows; split train of letters/small was published with 2' in caplog.text


def test_the_backend_in_use_is_logged(tmp_path, caplog):
  write(tmp_path / 'Letters')
  with caplog.at_level(logging.INFO):
    read(Sources(tmp_path))
  assert f'reading {tmp_path}/Letters/train.jsonl' in caplog.text
  assert 'published' not in caplog.text


def test_a_row_that_cannot_be_formatted_names_file_and_line(tmp_path):
  write(tmp_path / 'Letters', rows=[{'text': 'a'}, 'not an object'])
  with pytest.raises(ValueError, match=r'train\.jsonl, line 2: expected a JSON object'):
    read(Sources(tmp_path))


def test_missing_data_is_one_error_that_names_every_place_and_the_way_out(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    read(Sources(tmp_path, nowhere(tmp_path)))
  message = str(caught.value)
  for part in (
    'split train of letters/small',
    f'{tmp_path}/[*/]Letters/train.jsonl[.gz]',
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

  def download(dataset, where):
    downloads.append(dataset.builder)
    write(where.tfds_root / dataset.builder / dataset.version, 'dataset_info.json', [])

  monkeypatch.setattr(sources, '_download', download)
  allowed = Sources(None, tmp_path, allow_download=True)
  with pytest.raises(FileNotFoundError):
    sources.locate(DATASET, 'train', Sources(None, tmp_path))
  assert downloads == []
  for _ in range(2):
    backend = sources.locate(DATASET, 'train', allowed)
    assert backend.where == tmp_path / 'letters' / 'small' / '1.0.0'
  assert downloads == ['letters/small']


def test_local_files_come_before_a_prepared_directory(tmp_path):
  write(tmp_path / 'tfds' / 'letters' / 'small' / '1.0.0', 'dataset_info.json', [])
  write(tmp_path / 'Letters')
  backend = sources.locate(DATASET, 'train', Sources(tmp_path, tmp_path / 'tfds'))
  assert backend.where == tmp_path / 'Letters' / 'train.jsonl'


def test_the_fingerprint_follows_the_file(tmp_path):
  write(tmp_path / 'Letters')
  before = sources.locate(DATASET, 'train', Sources(tmp_path)).fingerprint()
  write(tmp_path / 'Letters', rows=[{'text': 'c'}])
  assert sources.locate(DATASET, 'train', Sources(tmp_path)).fingerprint() != before
