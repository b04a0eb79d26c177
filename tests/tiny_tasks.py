"""Fixtures: tiny tasks and records, and the folder of real data, which is not in the project."""

import os
import pathlib

import pytest

from cascades.data import materialize, records
from cascades.tasks.task import Row, Task, both
from cascades.tokenizers import vocabularies

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='session')
def hand_written() -> pathlib.Path:
  """A data directory with a few rows of our own words in the official layout."""
  return pathlib.Path(__file__).parent / 'tasks' / 'data' / 'superglue'


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
  """Real rows, at $CASCADES_TEST_DATA or beside the checkout."""
  folder = pathlib.Path(os.environ.get('CASCADES_TEST_DATA', ROOT.parent / 'shared' / 'data'))
  if not folder.is_dir():
    pytest.skip(f'no real data at {folder}; set CASCADES_TEST_DATA to the folder that holds it')
  return folder


def tiny_task(rows: list[Row], *, name: str = 'tiny', fingerprint: str = 'one') -> Task:
  """A task of these rows, in every split."""
  return Task(
    name=name,
    splits=('train', 'validation'),
    read=lambda _split: rows,
    fingerprint=lambda _split: fingerprint,
  )


def spelling(count: int) -> list[Row]:
  """Rows of unequal lengths: 'abc' -> 'ABC'."""
  words = [''.join(chr(97 + (i * 7 + j) % 26) for j in range(i * i % 11)) for i in range(count)]
  return [Row(f'row-{i}', word, (word.upper()[:5] or '-',)) for i, word in enumerate(words)]


@pytest.fixture(scope='session')
def tiny_records(tmp_path_factory: pytest.TempPathFactory) -> records.Records:
  """37 rows as bytes."""
  vocabulary = both(vocabularies.bytes_vocabulary())
  folder = tmp_path_factory.mktemp('records')
  return materialize.materialize(tiny_task(spelling(37)), 'train', vocabulary, folder)
