"""Texts and judgments in the files of BEIR and TREC, and what is wrong with them."""

import gzip
import json

import pytest

from cascades.predictions import judgments


def _write(path, text):
  path.write_text(text)
  return path


def test_texts_have_their_titles_and_their_order(tmp_path):
  rows = [{'_id': 'b', 'title': 'T', 'text': 'x'}, {'id': 'a', 'text': 'y', 'title': None}]
  path = _write(tmp_path / 'c.jsonl', '\n'.join(map(json.dumps, rows)))
  assert judgments.texts(path, 'DOCUMENTS') == {'b': 'T x', 'a': 'y'}
  assert [*judgments.texts(path, 'DOCUMENTS')] == ['b', 'a']
  table = _write(tmp_path / 'c.tsv', 'id\ttext\nq1\tsome words\n')
  assert judgments.texts(table, 'QUERIES') == {'q1': 'some words'}


@pytest.mark.parametrize(
  'text',
  [
    'query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n',  # BEIR
    'q1 0 d1 1\nq1 0 d2 0\n',  # TREC
    'q1 d1 1\n\nq1 d2 0\n',
  ],
)
def test_grades_are_read_from_beir_and_trec(text, tmp_path):
  expected = {'q1': {'d1': 1, 'd2': 0}}
  assert judgments.read_qrels(_write(tmp_path / 'qrels', text)) == expected
  packed = tmp_path / 'qrels.gz'
  packed.write_bytes(gzip.compress(text.encode()))
  assert judgments.read_qrels(packed) == expected


@pytest.mark.parametrize(
  'text',
  [
    'q1 Q0 d2 1 2.5 tag\nq1 Q0 d1 2 -1e-3 tag\n',
    'query_id\tpassage_id\trank\tbm25\nq1\td2\t1\t2.5\nq1\td1\t2\t-1e-3\n',
    'q1 d2 2.5\nq1 d1 -1e-3\n',
  ],
)
def test_runs_are_read_from_trec_and_tables(text, tmp_path):
  assert judgments.read_run(_write(tmp_path / 'run', text)) == {'q1': {'d2': 2.5, 'd1': -0.001}}


def test_a_run_is_written_to_the_last_digit(tmp_path):
  ranked = {'q': [('a', 0.1 + 0.2), ('b', -1e-17)], 'r': [('a', 3.0)]}
  judgments.write_run(tmp_path / 'run', ranked)
  assert (tmp_path / 'run').read_text().splitlines()[0] == f'q Q0 a 1 {0.1 + 0.2!r} cascades'
  assert judgments.read_run(tmp_path / 'run') == {q: dict(own) for q, own in ranked.items()}


@pytest.mark.parametrize(
  ('row', 'words'),
  [
    ({'text': 'x'}, 'line 1: expected `id`'),
    ({'id': 'a', 'text': 3}, 'line 1: expected `id`'),
    ([1], 'line 1: expected `id`'),
    ({'id': 'a b', 'text': 'x'}, "line 1: the id 'a b' has white space"),
  ],
)
def test_a_text_that_cannot_be_ranked_is_named(row, words, tmp_path):
  path = _write(tmp_path / 'c.jsonl', json.dumps(row))
  with pytest.raises(ValueError, match=words):
    judgments.texts(path, 'DOCUMENTS')


def test_repeated_ids_and_empty_files_are_named(tmp_path):
  row = json.dumps({'id': 'a', 'text': 'x'})
  with pytest.raises(ValueError, match="line 2: the id 'a' stands in another line too"):
    judgments.texts(_write(tmp_path / 'c.jsonl', f'{row}\n{row}'), 'DOCUMENTS')
  empty = _write(tmp_path / 'empty.jsonl', '')
  with pytest.raises(ValueError, match=r'DOCUMENTS=.* has no line'):
    judgments.texts(empty, 'DOCUMENTS')
  with pytest.raises(ValueError, match='has no line: expected scores'):
    judgments.read_run(empty)
  for read in (judgments.read_qrels, judgments.read_run):
    with pytest.raises(FileNotFoundError, match='is no file: correct the path'):
      read(tmp_path / 'absent')
  with pytest.raises(FileNotFoundError, match=r'QUERIES=.*absent is no file'):
    judgments.texts(tmp_path / 'absent', 'QUERIES')


@pytest.mark.parametrize(
  ('read', 'text', 'words'),
  [
    (judgments.read_qrels, 'q d 1\nq e high\n', "line 2: 'high' is no integer"),
    (judgments.read_qrels, 'q d 1\nq e 0.5\n', "line 2: '0.5' is no integer"),
    (judgments.read_qrels, 'q d 1\nq 1\n', 'line 2: 2 columns'),
    (judgments.read_qrels, 'q d 0\n', 'has no grade above 0'),
    (judgments.read_run, 'q d 1\nq d 2\n', "line 2: document 'd' stands twice"),
    (judgments.read_run, 'q d 1\nq e nan\n', "line 2: 'nan' is no finite number"),
    (judgments.read_run, 'q d 1\nq d e f 2\n', 'line 2: 5 columns'),
  ],
)
def test_a_line_that_cannot_be_read_is_named(read, text, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    read(_write(tmp_path / 'table', text))
