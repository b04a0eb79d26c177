import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import local
from cascades.tasks.task import Row
from cascades.tasks.textfiles import MalformedLineError


def jsonl(tmp_path, *lines, name='rows.jsonl', **settings):
  path = tmp_path / name
  text = ''.join((line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines)
  path.write_text(text)
  return local.local_jsonl('mine', {'train': path}, **settings)


def tsv(tmp_path, text, **settings):
  path = tmp_path / 'rows.tsv'
  path.write_text(text)
  return local.local_tsv('mine', {'train': path}, **settings)


def rows(task, split='train'):
  return list(task.rows(split))


def test_a_line_is_a_row_numbered_by_its_line(tmp_path):
  task = jsonl(tmp_path, {'inputs': 'a', 'targets': 'b'}, '', {'inputs': '', 'targets': 'd'})
  assert rows(task) == [Row('mine/train/1', 'a', ('b',)), Row('mine/train/3', '', ('d',))]


def test_several_targets_are_all_right(tmp_path):
  (row,) = rows(jsonl(tmp_path, {'inputs': 'a', 'targets': ['b', 'c']}))
  assert row.answers == ('b', 'c')
  assert row.targets == 'b'


def test_a_line_may_bring_its_own_id(tmp_path):
  task = jsonl(tmp_path, *({'id': i, 'inputs': 'a', 'targets': 'b'} for i in (7, 'seven')))
  assert [row.id for row in rows(task)] == ['7', 'seven']


@pytest.mark.parametrize('null', [None, '', '  '])
def test_null_is_no_id_so_that_the_number_serves(tmp_path, null):
  task = jsonl(tmp_path, *({'id': null, 'inputs': 'a', 'targets': 'b'} for _ in range(2)))
  assert [row.id for row in rows(task)] == ['mine/train/1', 'mine/train/2']
  table = tsv(tmp_path, 'id\tinputs\ttargets\n\ta\tb\n5\ta\tb\n', columns=None)
  assert [row.id for row in rows(table)] == ['mine/train/2', '5']


@pytest.mark.parametrize('value', [True, 1.5, float('nan'), [1], {}])
def test_an_id_that_is_neither_text_nor_whole_number_is_refused(tmp_path, value):
  with pytest.raises(MalformedLineError, match=r"line 1: 'id' has .*, expected a text or a whole"):
    rows(jsonl(tmp_path, {'id': value, 'inputs': 'a', 'targets': 'b'}))


@pytest.mark.parametrize('value', ['a\nb', 'a\0', 'a\u2028', 'x' * 1001])
def test_an_id_that_is_no_short_line_is_refused(tmp_path, value):
  with pytest.raises(MalformedLineError, match=r"line 1: 'id' has .*, expected at most 1,000 char"):
    rows(jsonl(tmp_path, {'id': value, 'inputs': 'a', 'targets': 'b'}))


def test_options_give_the_label(tmp_path):
  line = {'inputs': 'a', 'targets': 'no', 'options': ['yes', 'no']}
  (row,) = rows(jsonl(tmp_path, line))
  assert (row.options, row.label) == (('yes', 'no'), 1)


def test_options_of_the_task_hold_for_lines_without_their_own(tmp_path):
  lines = [{'inputs': 'a', 'targets': 'yes'}, {'inputs': 'a', 'targets': 'b', 'options': ['b']}]
  found = rows(jsonl(tmp_path, *lines, options=('no', 'yes')))
  assert [(row.options, row.label) for row in found] == [(('no', 'yes'), 1), (('b',), 0)]


def test_an_empty_list_of_options_is_none(tmp_path):
  (row,) = rows(jsonl(tmp_path, {'inputs': 'a', 'targets': 'b', 'options': []}))
  assert (row.options, row.label) == ((), None)


def test_keys_and_metrics_can_be_named(tmp_path):
  task = jsonl(
    tmp_path,
    {'q': 'a', 'a': 'b', 'choices': ['b', 'c'], 'no': 4},
    inputs_key='q', targets_key='a', options_key='choices', id_key='no', metrics=['bleu'],
  )  # fmt: skip
  assert rows(task) == [Row('4', 'a', ('b',), ('b', 'c'), 0)]
  assert task.metrics == ('bleu',)


def test_without_a_targets_key_rows_are_only_to_be_predicted(tmp_path):
  (row,) = rows(jsonl(tmp_path, {'inputs': 'a'}, targets_key=None, options=('x', 'y')))
  assert (row.answers, row.label) == ((), -1)


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    ('{"inputs": "a"', 'not JSON'),
    ('["a", "b"]', 'expected a JSON object, found an array'),
    ({'input': 'a', 'targets': 'b'}, "there is no 'inputs'; the line has 'input', 'targets'"),
    ({'inputs': 'a'}, "there is no 'targets'; the line has 'inputs'; set targets_key=None for"),
    ('{"inputs": "a", "inputs": "b", "targets": "c"}', "the key 'inputs' occurs twice"),
    ('{"x": {"y": 1, "y": 1}}', "the key 'y' occurs twice"),
    ('{"inputs": 1e999}', "'inputs' has inf, expected a string"),
    ('{"inputs": ' + '9' * 5000 + '}', 'Exceeds the limit'),
    ({'inputs': 'a', 'targets': 'b', 'options': 0}, "'options' is 0, expected a string or"),
    ({}, "there is no 'inputs'; the line has no keys"),
    ({'inputs': 3, 'targets': 'b'}, "'inputs' has 3, expected a string"),
    ({'inputs': 'a', 'targets': None}, "'targets' is None, expected a string or a list"),
    ({'inputs': 'a', 'targets': ['b', 1]}, "'targets' has 1, expected a string"),
    ({'inputs': 'a', 'targets': ''}, "'targets' is empty"),
    ({'inputs': 'a', 'targets': ' \t'}, "'targets' is empty"),
    ({'inputs': 'a', 'targets': []}, "'targets' is empty"),
    ({'inputs': 'a', 'targets': ['b', '']}, "'targets' is empty"),
    ({'inputs': 'a', 'targets': 'b', 'options': 'bc'}, "'options' is 'bc', expected a string or"),
    ({'inputs': 'a', 'targets': 'b', 'options': ['c']}, "'b' is not one of the options"),
    ('{"inputs": "\\ud800", "targets": "b"}', "'inputs' has half a surrogate pair"),
  ],
)
def test_a_malformed_line_names_file_line_and_reason(tmp_path, line, reason):
  task = jsonl(tmp_path, {'inputs': 'fine', 'targets': 'fine'}, line)
  with pytest.raises(MalformedLineError) as caught:
    rows(task)
  assert 'rows.jsonl, line 2: ' in str(caught.value)
  assert reason in str(caught.value)


def test_an_error_about_a_million_keys_is_short(tmp_path):
  with pytest.raises(MalformedLineError) as caught:
    rows(jsonl(tmp_path, {f'key {i}' * 9: 0 for i in range(10_000)}))
  assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
  ('header', 'reason'),
  [
    ('inputs\tinputs\ttargets', "two columns have the name 'inputs'"),
    ('inputs\t\ttargets', 'column 2 of 3 has no name'),
  ],
)
def test_columns_have_distinct_names(tmp_path, header, reason):
  with pytest.raises(MalformedLineError, match=f'rows.tsv, line 1: {reason}'):
    rows(tsv(tmp_path, f'{header}\na\tb\tc\n', columns=None, malformed='skip'))
  with pytest.raises(ValueError, match=f'columns of task mine cannot be used: {reason}'):
    tsv(tmp_path, 'a\tb\tc\n', columns=header.split('\t'))


@pytest.mark.parametrize('kind', [jsonl, lambda folder, **_: tsv(folder, 'a\tb\n', columns=None)])
def test_a_file_without_rows_is_named(tmp_path, kind):
  with pytest.raises(ValueError, match=r'rows\.\w+ has no rows for split train of mine'):
    rows(kind(tmp_path))


def test_one_text_in_the_place_of_several_is_refused(tmp_path):
  for setting in ('metrics', 'options'):
    with pytest.raises(ValueError, match=f"{setting} of task mine is the text 'ab'"):
      jsonl(tmp_path, **{setting: 'ab'})


def test_a_longer_line_is_refused_or_skipped_as_the_task_says(tmp_path, caplog):
  lines = [{'inputs': 'x' * 100, 'targets': 'b'}, {'inputs': 'a', 'targets': 'b'}]
  with pytest.raises(MalformedLineError, match=r'line 1: longer than 60 bytes.*max_line_bytes'):
    rows(jsonl(tmp_path, *lines, max_line_bytes=60))
  (row,) = rows(jsonl(tmp_path, *lines, max_line_bytes=60, malformed='skip'))
  assert row.id == 'mine/train/2'
  assert len(rows(jsonl(tmp_path, *lines))) == 2


def test_malformed_lines_are_skipped_when_asked(tmp_path, caplog):
  task = jsonl(tmp_path, '{', {'inputs': 'a', 'targets': 'b'}, '[]', malformed='skip')
  assert [row.id for row in rows(task)] == ['mine/train/2']
  assert 'Skipped 2 malformed lines' in caplog.text


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=5,
)
keys = st.sampled_from(['inputs', 'targets', 'options', 'id', 'other'])


@given(st.dictionaries(keys, json_values))
def test_any_json_object_is_a_row_or_is_named(tmp_path_factory, line):
  task = jsonl(tmp_path_factory.mktemp('fuzz'), line)
  found, message = [], ''
  try:
    found = rows(task)
  except MalformedLineError as error:
    message = str(error)
  assert len(found) == 1 or 'rows.jsonl, line 1: ' in message
  for row in found:
    assert isinstance(row.inputs, str)
    assert row.answers
    assert not row.options or row.options[row.label] == row.targets


@given(st.text(), st.text().filter(str.strip))
def test_any_text_survives_json(tmp_path_factory, inputs, targets):
  task = jsonl(tmp_path_factory.mktemp('fuzz'), {'inputs': inputs, 'targets': targets})
  (row,) = rows(task)
  assert (row.inputs, row.targets) == (inputs, targets)


def test_two_columns_are_inputs_and_targets(tmp_path):
  assert rows(tsv(tmp_path, 'a b\tc\n"q"\t\\n\n')) == [
    Row('mine/train/1', 'a b', ('c',)),
    Row('mine/train/2', '"q"', ('\\n',)),
  ]


def test_columns_can_be_named_by_the_task(tmp_path):
  task = tsv(tmp_path, 'c\tx\ta\n', columns=('targets', 'note', 'inputs'), options=['b', 'c'])
  assert rows(task) == [Row('mine/train/1', 'a', ('c',), ('b', 'c'), 1)]


def test_columns_can_be_named_by_the_first_line(tmp_path):
  task = tsv(tmp_path, 'label\ttext\tid\nb\ta\t9\n', columns=None,
             inputs_key='text', targets_key='label')  # fmt: skip
  assert rows(task) == [Row('9', 'a', ('b',))]


@pytest.mark.parametrize(('line', 'found'), [('a', 1), ('a\tb\tc', 3)])
def test_a_wrong_column_count_is_named(tmp_path, line, found):
  task = tsv(tmp_path, f'a\tb\n{line}\n')
  with pytest.raises(
    MalformedLineError, match=f'line 2: {found} tab-separated columns, expected 2'
  ):
    rows(task)


def test_odd_line_separators_do_not_break_columns(tmp_path):
  (row,) = rows(tsv(tmp_path, 'one\u2028two\tthree\x0bfour\n'))
  assert (row.inputs, row.targets) == ('one\u2028two', 'three\x0bfour')


def test_gzipped_files_read_alike(tmp_path):
  path = tmp_path / 'rows.tsv.gz'
  path.write_bytes(gzip.compress(b'a\tb\n'))
  assert rows(local.local_tsv('mine', {'test': path}), 'test') == [Row('mine/test/1', 'a', ('b',))]


def test_a_missing_file_is_an_error_when_the_task_is_defined(tmp_path):
  with pytest.raises(FileNotFoundError, match='There is no file'):
    local.local_jsonl('mine', {'train': tmp_path / 'nothing.jsonl'})


def test_the_fingerprint_follows_content_and_keys(tmp_path):
  first = jsonl(tmp_path, {'inputs': 'a', 'targets': 'b'})
  before = first.fingerprint('train')
  same = jsonl(tmp_path, {'inputs': 'a', 'targets': 'b'}, name='copy.jsonl')
  other_keys = jsonl(tmp_path, {'inputs': 'a', 'targets': 'b'}, name='copy.jsonl', inputs_key='x')
  assert before == same.fingerprint('train') != other_keys.fingerprint('train')
  changed = jsonl(tmp_path, {'inputs': 'a', 'targets': 'c'})
  assert changed.fingerprint('train') != before


@pytest.mark.parametrize(
  ('file', 'count', 'label'),
  [
    ('sst2.validation', 872, 'negative'),
    ('trec.test', 500, 'numeric'),
    ('ag_news.official_test', 7600, 'Business'),
  ],
)
def test_real_rows_of_flan_tasks_read_whole(real_data, file, count, label):
  path = real_data / 'flan_tasks' / f'{file}.jsonl'
  task = local.local_jsonl('real', {'test': path}, inputs_key='input', targets_key='target')
  found = rows(task, 'test')
  assert len(found) == count
  assert found[0].targets == label
  assert all(row.options[row.label] == row.targets for row in found)


def test_real_tab_separated_rows_read_whole(real_data):
  path = real_data / 'mt_tanaka_en_ja' / 'test.tsv'
  assert len(rows(local.local_tsv('tanaka', {'test': path}), 'test')) == 500
