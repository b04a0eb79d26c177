"""What cannot be used is an error with file and line, or skipped and counted where that is allowed.

The readers' own tests have the finer cases; here they come through the tasks that use them.
"""

import functools
import gzip
import json
import logging
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import catalog, sources
from cascades.tasks import features as features_lib


class Case(NamedTuple):
  """A task, where its file lies, a row of it, and the field that holds text there."""

  task: str
  file: str
  row: dict
  field: str


CASES = (
  Case(
    'superglue_rte',
    'RTE/train.jsonl',
    {'premise': 'All swim.', 'hypothesis': 'Some swim.', 'label': 'entailment', 'idx': 4},
    'premise',
  ),
  Case(
    'flan_snli',
    'snli/train.jsonl',
    {'premise': 'All swim.', 'hypothesis': 'Some swim.', 'label': 0},
    'hypothesis',
  ),
  Case(
    'flan_squad_v1',
    'squad/v1.1/train.jsonl',
    {
      'title': 'Seas',
      'context': 'It is salty.',
      'question': 'How?',
      'answers': {'text': ['salty']},
    },
    'question',
  ),
  Case('c4_causal_lm', 'c4-train.00000-of-01024.json', {'text': 'A page.'}, 'text'),
  Case('wmt22_en_ja', 'wmt22_translate/en-ja/train.jsonl', {'en': 'Yes.', 'ja': 'はい。'}, 'ja'),
  Case('stream_isear', 'online_cascade/isear.jsonl', {'text': 'It was dark.', 'label': 5}, 'text'),
)
LABELED = [case for case in CASES if 'label' in case.row]
# A line of a stream that is left out would put its rows and its expert's labels out of step.
SKIPPING = [case for case in CASES if not case.task.startswith('stream')]


def named(cases):
  return pytest.mark.parametrize('case', cases, ids=[case.task for case in cases])


def write(folder, case, *lines, ending=''):
  """Lines of bytes, or rows, as the case's file."""
  written = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
  content = b''.join(line + b'\n' for line in written)
  file = folder / f'{case.file}{ending}'
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(gzip.compress(content) if ending == '.gz' else content)
  return file


def rows(folder, task, malformed='error', split='train'):
  where = {'data_dir': str(folder), 'tfds_data_dir': str(folder / 'no_tfds')}
  return list(catalog.get(task, **where, malformed=malformed).rows(split))


def refused(file, place, reason):
  """Raises unless a ValueError says where and why."""
  return pytest.raises(ValueError, match=f'{re.escape(str(file))}{place}.*{reason}')


def replaced(value):
  return lambda case: case.row | {case.field: value}


def encoded(encoding):
  text = lambda case: json.dumps(case.row | {case.field: 'café'}, ensure_ascii=False)
  return lambda case: text(case).encode(encoding)


DAMAGED = {
  'Latin-1': (encoded('latin-1'), 'not UTF-8: byte 0xe9'),
  'UTF-16': (encoded('utf-16'), 'not UTF-8: byte 0xff'),
  'no JSON': (lambda case: json.dumps(case.row)[:-1].encode(), 'not JSON: Expecting'),
  'no object': (lambda case: [case.row], 'expected a JSON object, found an array'),
  'deep': (lambda case: b'[' * 100_000, 'not usable JSON: nested too deeply'),
  'deep field': (
    lambda case: json.dumps(replaced('@')(case)).replace('"@"', '[' * 900 + ']' * 900).encode(),
    'expected text|nested too deeply',
  ),
  'missing field': (
    lambda case: {key: value for key, value in case.row.items() if key != case.field},
    'there is no field',
  ),
  'number': (replaced(7), 'has 7, expected text'),
  'null': (replaced(None), 'has None, expected text'),
  'list': (replaced(['a']), r"has \['a'\], expected text"),
  'half a surrogate pair': (replaced('\ud83d'), 'has half a surrogate pair'),
}


@named(CASES)
@pytest.mark.parametrize('kind', DAMAGED)
def test_a_line_that_cannot_be_used_is_named(tmp_path, case, kind):
  damage, reason = DAMAGED[kind]
  file = write(tmp_path, case, case.row, damage(case), case.row)
  with refused(file, ', line 2: ', reason):
    rows(tmp_path, case.task)


@named(SKIPPING)
@pytest.mark.parametrize('kind', DAMAGED)
def test_a_line_that_cannot_be_used_is_skipped_on_demand_and_counted(tmp_path, caplog, case, kind):
  damage, _ = DAMAGED[kind]
  file = write(tmp_path, case, case.row, damage(case), case.row)
  assert len(rows(tmp_path, case.task, 'skip')) == 2
  assert f'Skipped 1 malformed lines of {file}. First: {file}, line 2: ' in caplog.text


@named(LABELED)
@pytest.mark.parametrize('label', [9, -2, 'perhaps', None, 0.5, [0], {}, math.nan])
def test_a_label_outside_the_set_is_named(tmp_path, case, label):
  file = write(tmp_path, case, case.row, case.row | {'label': label})
  with refused(file, ', line 2: ', 'the label .* is none of'):
    rows(tmp_path, case.task)


@named(CASES)
@pytest.mark.parametrize('malformed', ['error', 'skip'])
def test_a_truncated_gzip_file_is_named_whatever_may_be_skipped(tmp_path, case, malformed):
  file = write(tmp_path, case, *[case.row] * 1000, ending='.gz')
  file.write_bytes(file.read_bytes()[:-20])
  with refused(file, ' is truncated or not a gzip file', ''):
    rows(tmp_path, case.task, malformed)


@named(CASES)
def test_an_empty_file_is_an_error(tmp_path, case):
  file = write(tmp_path, case, b'', b'  ')
  with refused(file, '', 'no (rows|pair) for'):
    rows(tmp_path, case.task)


@named(CASES)
def test_separators_of_other_kinds_than_a_line_feed_are_text(tmp_path, case):
  text = 'a\u2028b\u2029c\u0085d'
  write(tmp_path, case, json.dumps(replaced(text)(case), ensure_ascii=False).encode())
  (row,) = rows(tmp_path, case.task)
  # C4 has its text alone in the prompt, and a translation is the answer.
  assert text in row.inputs + row.targets


@named(LABELED)
def test_a_row_that_its_form_refuses_is_named_by_its_number(tmp_path, case, monkeypatch):
  """Which is all that there is of a row of a TFDS directory."""
  write(tmp_path, case, case.row, case.row)
  dataset = catalog.get(case.task).origin.dataset

  def form(number, _):
    if number == 1:
      raise ValueError('it reads badly')
    return ['fine']

  where = functools.partial(sources.Sources, tmp_path, tmp_path / 'no_tfds')
  with refused(tmp_path / case.file, ', row 1 of split train: ', 'it reads badly'):
    list(sources.read(dataset, 'train', where(), form))
  assert list(sources.read(dataset, 'train', where(malformed='skip'), form)) == ['fine']


def test_rows_that_a_form_leaves_out_are_counted(tmp_path, caplog):
  case = CASES[1]
  write(tmp_path, case, case.row, case.row | {'label': -1})
  with caplog.at_level(logging.INFO):
    assert len(rows(tmp_path, case.task)) == 1
  assert 'snli, train[:30000]: the task leaves out 1 of 2 rows' in caplog.text


@pytest.mark.parametrize(
  ('lines', 'reason'),
  [
    (['a\tb', 'a'], 'line 2: 1 tab-separated columns, expected two'),
    (['a\tb', 'a\tb\tc'], 'line 2: 3 tab-separated columns, expected two'),
    (['a\tb', 'caf\udce9\tb'], 'line 2: not UTF-8: byte 0xe9'),
  ],
)
def test_a_pair_that_is_none_is_named_or_skipped(tmp_path, caplog, lines, reason):
  file = tmp_path / 'wmt22' / 'en-ja' / 'train.tsv'
  file.parent.mkdir(parents=True)
  file.write_bytes('\n'.join(lines).encode(errors='surrogateescape'))
  with refused(file, ', ', reason):
    rows(tmp_path, 'wmt22_en_ja')
  assert [row.targets for row in rows(tmp_path, 'wmt22_en_ja', 'skip')] == ['b']
  assert f'1 malformed ones of {file}. First: {file}, {reason}' in caplog.text


def test_an_empty_side_is_skipped_in_training_and_an_error_in_a_test_set(tmp_path, caplog):
  training = tmp_path / 'wmt22' / 'en-ja'
  training.mkdir(parents=True)
  (training / 'train.tsv').write_text('a\tb\n\tc\nd\t\n')
  assert len(rows(tmp_path, 'wmt22_en_ja')) == 1
  assert 'Skipped 2 pairs with an empty side' in caplog.text
  (tmp_path / 'newstest2021.en-ja.src.en').write_text('a\n \n')
  (tmp_path / 'newstest2021.en-ja.ref.A.ja').write_text('b\nc\n')
  with refused(tmp_path / 'newstest2021.en-ja.src.en', ', line 2: ', 'a side of the pair is empty'):
    rows(tmp_path, 'wmt22_en_ja', 'skip', 'validation')


@pytest.mark.parametrize('separator', ['\u2028', '\u0085', '\x0c'])
def test_files_that_a_separator_puts_out_of_step_do_not_pair(tmp_path, separator):
  (tmp_path / 'newstest2021.en-ja.src.en').write_text(f'a{separator}b\nc\n')
  reference = tmp_path / 'newstest2021.en-ja.ref.A.ja'
  reference.write_text(f'a{separator}b\nc\n')
  assert [row.targets for row in rows(tmp_path, 'wmt22_en_ja', split='validation')] == [
    f'a{separator}b',
    'c',
  ]
  reference.write_text('a\nb\nc\n')  # as `str.splitlines` would make of it
  with pytest.raises(ValueError, match=r'\.src\.en has 2 lines and .*\.ref\.A\.ja has 3'):
    rows(tmp_path, 'wmt22_en_ja', split='validation')


@pytest.mark.parametrize('name', ['superglue_rte', 'flan_rte', 'wmt22_en_zh', 'c4_prefix_lm'])
@pytest.mark.parametrize('where', ['data_dir', 'tfds_data_dir'])
def test_remote_folders_are_refused_unless_allowed(name, where):
  with pytest.raises(ValueError, match='gs://bucket/data is a remote path'):
    catalog.get(name, **{where: 'gs://bucket/data'})
  assert catalog.get(name, **{where: 'gs://bucket/data'}, allow_remote=True).name == name


@pytest.mark.parametrize(
  ('value', 'reason'),
  [
    (10**400, 'expected a number of moderate size'),
    (True, 'expected a number'),
    ('5', 'expected a number'),
  ],
)
def test_what_is_no_number_is_refused(value, reason):
  with pytest.raises(ValueError, match=reason):
    features_lib.encode({'label': float}, {'label': value})


def test_numbers_have_the_precision_that_tfds_stores():
  (read,) = features_lib.encode({'label': float}, {'label': 3.2}).values()
  assert read == float(np.float32(3.2)) != 3.2


FUZZED = (
  'superglue_boolq', 'superglue_multirc', 'superglue_record', 'superglue_wsc', 'superglue_copa',
  'flan_squad_v1', 'flan_record', 'flan_coqa', 'flan_dart', 'flan_stsb', 'flan_hellaswag',
  'flan_arc_easy', 'flan_trivia_qa', 'c4_prefix_lm', 'wmt22_en_ja', 'stream_fever',
)  # fmt: skip
FILES = {name: f'{catalog.get(name).origin.dataset.builder}/train.jsonl' for name in FUZZED}
WRONG = st.recursive(
  st.none()
  | st.booleans()
  | st.integers()
  | st.just(10**400)
  | st.floats()
  | st.text(max_size=5)
  | st.sampled_from(['\ud800', '@placeholder', '[header]', '_', '\u2028', '{x}', 'x' * 3000]),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(['text', 'answers', 'label', 'x']), inner, max_size=3)
  ),
  max_leaves=4,
)


@functools.cache
def published_rows(task, official):
  """Hand-written rows, of which some are as official files have them."""
  dataset = catalog.get(task).origin.dataset
  if task.startswith('wmt22'):
    return [{'en': 'Yes.', 'ja': 'はい。'}]
  files = [sources.SAMPLES / f'{dataset.builder}.jsonl']
  files += [official / file for file in dataset.files.values() if (official / file).exists()]
  return [json.loads(line) for file in files for line in file.read_text().split('\n') if line]


@st.composite
def damaged(draw, row):
  """A row in which one or two values, at any depth, are gone or something else."""
  row = json.loads(json.dumps(row))
  for _ in range(draw(st.integers(1, 2))):
    places = list(inside(row))
    if not places:
      break
    at, key = draw(st.sampled_from(places))
    if draw(st.integers(0, 3)):
      at[key] = draw(WRONG)
    else:
      del at[key]
  return row


def inside(value):
  """Every place in nested objects and lists: what holds it, and its key there."""
  keys = list(value) if isinstance(value, dict) else range(len(value))
  for key in keys:
    yield value, key
    if isinstance(value[key], dict | list):
      yield from inside(value[key])


VALUES = (
  None, True, 0, -1, 7, 10**20, 10**400, 0.5, math.nan, '', ' ', 'x', '\ud800', '@placeholder',
  '[header]', '_', '{x}', [], [[]], [None], ['x'], [{'text': 'x'}], {}, {'text': []}, {'x': 1},
)  # fmt: skip
# Streams leave out nothing, so that one line would end the reading; their forms are simple.
TABLED = [n for n in catalog.names() if catalog.get(n).suite in ('superglue', 'flan2021', 'c4')]


def damages(row):
  """The row with each value at any depth gone, or one of VALUES."""
  for number in range(len(list(inside(row)))):
    for value in VALUES:
      copy = json.loads(json.dumps(row))
      at, key = list(inside(copy))[number]
      at[key] = value
      yield copy
    copy = json.loads(json.dumps(row))
    at, key = list(inside(copy))[number]
    del at[key]
    yield copy


@pytest.mark.parametrize(
  ('task', 'split'),
  [
    ('superglue_record', 'validation'),  # in training rows are formed in another way
    ('superglue_wsc_referent', 'validation'),
    *(
      pytest.param(task, 'train', marks=() if task in FUZZED else pytest.mark.slow)
      for task in TABLED
    ),
  ],
)
def test_any_value_of_another_kind_in_any_place_is_read_or_skipped(
  tmp_path, hand_written, monkeypatch, task, split
):
  whole = sources.parse_slice
  monkeypatch.setattr(sources, 'parse_slice', lambda part: (whole(part)[0], 0, None))
  of = catalog.get(task).origin
  name = split if split in of.splits else of.splits[0]
  case = Case(task, f'{of.dataset.builder}/{name}.jsonl', {}, '')
  write(tmp_path, case, *(d for row in published_rows(task, hand_written) for d in damages(row)))
  assert refusal(tmp_path, task, 'skip', split) == ''


def refusal(folder, task, malformed, split='train'):
  """What the error says that reading raises; empty if all that comes is text."""
  try:
    for row in rows(folder, task, malformed, split):
      ''.join((row.inputs, *row.answers, *row.options)).encode()
  except ValueError as error:
    return str(error)
  return ''


@given(st.sampled_from(FUZZED), st.data())
def test_no_damaged_row_escapes_without_its_file(tmp_path_factory, hand_written, task, data):
  some = st.sampled_from(published_rows(task, hand_written)).flatmap(damaged)
  lines = data.draw(st.lists(some | WRONG, min_size=1, max_size=3))
  folder = tmp_path_factory.mktemp('fuzz')
  file = write(folder, Case(task, FILES[task], {}, ''), *lines)
  for malformed in ('error', 'skip'):
    message = refusal(folder, task, malformed)
    assert not message or str(file) in message


@given(st.sampled_from(FUZZED), st.binary(max_size=100), st.sampled_from(['', '.gz']))
def test_no_bytes_escape_without_their_file(tmp_path_factory, task, content, ending):
  folder = tmp_path_factory.mktemp('fuzz')
  file = write(folder, Case(task, FILES[task], {}, ''), ending=ending)
  file.write_bytes(content)
  for malformed in ('error', 'skip'):
    message = refusal(folder, task, malformed)
    assert not message or str(file) in message
