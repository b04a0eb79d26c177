"""Answers of other systems become tables, or are refused by file and line."""

import contextlib
import gzip
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from cascades import metrics
from cascades.predictions import __main__ as command
from cascades.predictions import checks, imported, shards
from cascades.predictions.imported import Source
from cascades.predictions.importers import columns, lm_eval, openai
from tests import real_data

FORMATS = real_data.DATA / 'table_formats'
ROOT = pathlib.Path(__file__).parents[2]
OLD_TABLES = ROOT / 'tests/golden/before_move/work/predictions/small/test'
LABELS = {
  'labels': str(FORMATS / 'labels.jsonl'), 'label_columns': 'id,inputs=question,targets=accept',
}  # fmt: skip
JUDGED = {'metric': 'exact_match', 'task': 'facts', 'split': 'test', 'parameters': 10**9}
NAMES = {
  'lm_eval_samples': 'lm-eval',
  'openai_chat_logprobs': 'openai-chat',
  'openai_completions_logprobs': 'openai-completions',
  'vllm_batch_output': 'batch',
}
needs_formats = pytest.mark.skipif(not FORMATS.exists(), reason=f'{FORMATS} is absent')


def source(name, **options):
  format = next(value for start, value in NAMES.items() if name.startswith(start))
  labels = {} if format == 'lm-eval' else LABELS
  return Source(format, str(FORMATS / f'{name}.jsonl'), **labels, **options)


def written(given, directory, **options):
  imported.write(given, directory, **{**JUDGED, **options})
  (table,) = shards.read(directory)
  return table


@needs_formats
@pytest.mark.parametrize('name', NAMES)
def test_both_models_of_every_format_are_right_where_their_makers_say(name, tmp_path):
  metric = None if name.startswith('lm_eval') else 'exact_match'
  small = written(source(name), tmp_path / 'small', metric=metric)
  large = written(source(f'{name}.large'), tmp_path / 'large', metric=metric)
  (right,), (large_right,) = (t.statistics.values() for t in (small, large))
  assert right[:, 0].tolist() == [1, 1, 0, 0, 1]
  assert large_right[:, 0].tolist() == [1, 1, 1, 1, 0]
  unsure = -small.column('confidence') if metric is None else -small.logprobs.min(axis=1)
  assert set(np.argsort(-unsure)[:2]) == {2, 3}


@needs_formats
@pytest.mark.parametrize(('name', 'line', 'sentence', 'options'), [
  ('openai_chat_logprobs.odd', 3, '2 choices; .* --choice=0', {}),
  ('openai_chat_logprobs.odd', 1, 'no log-probabilities, and 4 of 5 answers have', {'choice': 0}),
  ('openai_completions_logprobs.odd', 1, 'no log-probabilities, and 4 of 5', {}),
  ('vllm_batch_output.odd', 2, "request 'q2' failed: \"This model's maximum context", {}),
], ids=str)  # fmt: skip
def test_odd_lines_are_named(name, line, sentence, options):
  with pytest.raises(ValueError, match=rf'{name}.jsonl, line {line}: {sentence}'):
    imported.read(source(name, **options))


@needs_formats
def test_odd_answers_are_read_where_nothing_is_mixed(tmp_path):
  chat = imported.read(source('openai_chat_logprobs.odd', choice=0, ignore_logprobs=True))
  assert [answer.prediction for answer in chat[3:]] == ['I cannot help.', 'Océ']
  assert [answer.is_cut_off for answer in chat] == [False] * 4 + [True]
  completions = imported.read(source('openai_completions_logprobs.odd', ignore_logprobs=True))
  assert [answer.prediction for answer in completions] == ['Mercury', '8', 'Venus', '13', '']
  by_filter = {
    name: [answer.id for answer in imported.read(source('lm_eval_samples.odd', filter=name))]
    for name in ('none', 'maj@3')
  }
  assert by_filter == {'none': ['0', '1', '2', '3'], 'maj@3': ['4']}
  with pytest.raises(ValueError, match='filters flexible-extract, strict-match: take one'):
    imported.read(source('lm_eval_samples.generate'))
  strict = imported.read(source('lm_eval_samples.generate', filter='strict-match'))
  assert strict[0].prediction == '29'


def test_an_echoed_prompt_is_taken_off():
  listed = {
    'tokens': ['Q', ':', ' A', ' B'], 'token_logprobs': [None, -3.0, -0.5, -9999.0],
    'top_logprobs': [None, {':': -3.0}, {' A': -0.5, ' C': -2.0}, {' D': -1.0, ' E': -1.5}],
  }  # fmt: skip
  record = {
    'choices': [{'text': 'Q: A B', 'logprobs': listed, 'finish_reason': 'length'}],
    'usage': {'prompt_tokens': 2, 'completion_tokens': 2},
  }
  answer = openai.completion(record)
  assert (answer.inputs, answer.prediction, answer.is_cut_off) == ('Q:', 'A B', True)
  # -9999 stands for "below all that are listed", the last of which has -1.5.
  assert answer.logprobs == [-0.5, -1.5]
  assert answer.details.alternatives == [[-0.5, -2.0], [-1.0, -1.5]]


def test_the_confidence_in_a_choice_is_its_share():
  record = {
    'doc_id': 3, 'target': '[0, 1]', 'acc': 1.0,
    'arguments': {'a': {'0': 'p', '1': ' x'}, 'b': {'0': 'p', '1': ' y'}},
    'resps': [[['-1.0', 'False']], [[str(-1 - np.log(3)), 'False']]],
  }  # fmt: skip
  answer = lm_eval.sample(record)
  assert (answer.id, answer.prediction, answer.targets) == ('3', 'x', ['x', 'y'])
  assert answer.details.columns['confidence'] == pytest.approx(0.75)


def rows_file(folder, *lines, name='rows.jsonl'):
  path = folder / name
  path.write_text('\n'.join(json.dumps(line) if isinstance(line, dict) else line for line in lines))
  return str(path)


def test_named_columns_of_csv_need_no_texts(tmp_path):
  path = rows_file(tmp_path, 'qid,conf,ok,usd', '7,0.5,yes,0.1', 'x,0.25,0.5,', name='a.csv')
  table = written(
    Source('columns', path, columns='id=qid,confidence=conf,correct=ok,dollars=usd'),
    tmp_path / 'test', metric=None,
  )  # fmt: skip
  assert list(table.ids) == ['7', 'x']
  assert table.statistics['accuracy'].tolist() == [[1, 1], [0.5, 1]]
  assert table.column('confidence').tolist() == [0.5, 0.25]
  np.testing.assert_array_equal(table.columns['dollars'], [0.1, np.nan])
  text = '\n'.join(checks.describe(tmp_path / 'test'))
  assert 'dollars (50.0% of the rows)' in text
  assert 'not average' in text
  assert 'no token_logprobs' in text


def test_another_table_is_not_replaced_unless_asked_for(tmp_path):
  path = rows_file(tmp_path, {'a': '1', 'ok': 1}, {'a': '2', 'ok': 0})
  given = Source('columns', path, columns='id=a,correct=ok')
  written(given, tmp_path / 'test', metric=None)
  written(given, tmp_path / 'test', metric=None)  # the same one
  rows_file(tmp_path, {'a': '1', 'ok': 0})
  with pytest.raises(FileExistsError, match=r"another table of task 'facts'.*--overwrite"):
    written(given, tmp_path / 'test', metric=None)
  assert len(shards.read(tmp_path / 'test')[0].ids) == 2
  assert len(written(given, tmp_path / 'test', metric=None, overwrite=True).ids) == 1


@pytest.mark.parametrize(('line', 'sentence'), [
  ('{"a": 1', 'line 2: no valid JSON'),
  ('[1]', r'line 2: expected an object, found \[1\]'),
  ({'a': '1', 'ok': 1}, "line 2: id '1' stands in line 1 too"),
  ({'a': '2', 'ok': 'maybe'}, "line 2: correct: expected a finite number, found 'maybe'"),
  ({'a': '2', 'ok': 7}, 'line 2: correct: expected a number from 0 to 1'),
  ({'a': None, 'ok': 1}, 'line 2: no value of a; the row has a, ok'),
  ('{"a": "2", "ok": NaN}', 'line 2: no valid JSON: NaN is not a number'),
  ('{"a": "2", "ok": 1' + '0' * 400 + '}', 'line 2: correct: expected'),
], ids=str)  # fmt: skip
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, line, sentence):
  path = rows_file(tmp_path, {'a': '1', 'ok': 1}, line)
  with pytest.raises(ValueError, match=sentence):
    written(Source('columns', path, columns='id=a,correct=ok'), tmp_path / 'test')
  assert not (tmp_path / 'test').exists()


def test_files_that_are_no_text_or_empty_are_named(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(b'\xff\xfe{}')
  (tmp_path / 'b.jsonl').write_text('')
  (tmp_path / 'c.jsonl.gz').write_bytes(gzip.compress(b'{}')[:-9])
  for name, sentence in (
    ('a', 'no file of UTF-8 text'),
    ('b', 'holds no answer'),
    ('c', 'no file'),
  ):
    (path,) = tmp_path.glob(f'{name}.*')
    with pytest.raises(ValueError, match=f'{path.name}.*{sentence}'):
      imported.read(Source('batch', str(path)))


def test_labels_go_by_id_or_by_order_and_none_may_be_missing(tmp_path):
  answers = rows_file(tmp_path, {'id': 'b', 'prediction': 'y'}, {'id': 'a', 'prediction': 'x'})
  labels = rows_file(
    tmp_path, {'id': 'a', 'inputs': '?', 'targets': ['x', 'z']}, name='labels.jsonl'
  )
  given = Source('columns', answers, columns='id,prediction', labels=labels)
  with pytest.raises(ValueError, match=r"labels.jsonl has no label of 1 of 2 answers, such as 'b'"):
    imported.read(given)
  given = Source('columns', answers, columns='prediction', labels=labels)
  with pytest.raises(ValueError, match=r'2 answers without ids.*has 1 labels'):
    imported.read(given)


@pytest.mark.parametrize(('line', 'sentence'), [
  ({'a': '3', 'ok': 1, 'c': 1.5}, r'line 2: aux.confidence: Expected `float` <= 1.0, found 1.5'),
  ({'a': '3', 'ok': 1, 'l': [0.7]}, r'line 2: aux.token_logprobs\[0\]: Expected `float` <= 0.0001'),
  ({'a': '3', 'ok': 1, 'l': [1e308]}, r'line 2: aux.token_logprobs\[0\]: .*found inf'),
  ({'a': '3', 'c': 0.5}, 'line 2: judged by nothing, but no metric judges every answer'),
], ids=str)  # fmt: skip
def test_a_bad_row_leaves_the_table_that_it_would_replace(tmp_path, line, sentence):
  path = rows_file(tmp_path, {'a': '1', 'ok': 1, 'c': 0.5, 'l': [-1.0]})
  given = Source('columns', path, columns='id=a,correct=ok,confidence=c,logprobs=l',
                 ignore_logprobs='l' not in line)  # fmt: skip
  written(given, tmp_path / 'test', metric=None)
  rows_file(tmp_path, {'a': '2', 'ok': 0, 'c': 0.5, 'l': [-1.0]}, line)
  with pytest.raises(ValueError, match=sentence):
    written(given, tmp_path / 'test', metric=None, overwrite=True)
  assert list(shards.read(tmp_path / 'test')[0].ids) == ['1']


@pytest.mark.parametrize('failing', ['write_shard', 'write_manifest'])
def test_a_write_that_fails_leaves_the_table_that_it_would_replace(tmp_path, monkeypatch, failing):
  path = rows_file(tmp_path, {'a': '1', 'ok': 1})
  given = Source('columns', path, columns='id=a,correct=ok')

  def ids():
    (table,) = shards.read(tmp_path / 'test')
    return [*table.ids]

  def full(*arguments, **options):
    if failing == 'write_manifest' or arguments[3] == arguments[4] - 1:
      raise OSError(28, 'No space left on device')
    write(*arguments, **options)

  write = getattr(shards, failing)
  written(given, tmp_path / 'test', metric=None)
  for old, new in (('1', '2'), ('2', '3'), ('3', '4')):
    rows_file(tmp_path, {'a': new, 'ok': 0}, {'a': f'{new}b', 'ok': 0})
    monkeypatch.setattr(shards, failing, full)
    with pytest.raises(OSError, match='No space left'):
      written(given, tmp_path / 'test', metric=None, overwrite=True)
    monkeypatch.undo()
    assert ids()[0] == old
    written(given, tmp_path / 'test', metric=None, overwrite=True)
    assert ids() == [new, f'{new}b']
  names = {file.name.partition('jsonl-')[2][6:14] for file in (tmp_path / 'test').iterdir()}
  assert names - {''} in ({'of-00001'}, {'of-00002'})  # nothing of the tables before remains


def test_answers_without_targets_get_no_quality(tmp_path):
  path = rows_file(tmp_path, {'a': '1', 'ok': 1}, {'a': '2', 'ok': 0})
  given = Source('columns', path, columns='id=a,correct=ok')
  table = written(given, tmp_path / 'test')  # by exact match, whose targets are absent
  assert table.manifest['unlabelled'] == 2
  assert '  metrics: exact_match' in checks.describe(tmp_path / 'test')


def test_a_named_column_that_no_row_has_is_an_error(tmp_path):
  path = rows_file(tmp_path, {'a': '1', 'ok': 1}, {'a': '2', 'ok': 0, 'c': 0.5})
  imported.read(Source('columns', path, columns='id=a,correct=ok,confidence=c'))
  with pytest.raises(ValueError, match=r'has no column okk, .* it has a, c, ok'):
    imported.read(Source('columns', path, columns='id=a,correct=okk'))


def test_alternatives_that_are_no_object_are_named():
  listed = {'tokens': ['a'], 'token_logprobs': [-1.0], 'top_logprobs': ['a']}
  with pytest.raises(ValueError, match="top_logprobs: expected dict, found 'a'"):
    openai.completion({'choices': [{'text': 'a', 'logprobs': listed}]})


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from([
      'choices', 'message', 'content', 'logprobs', 'logprob', 'top_logprobs', 'text', 'tokens',
      'token_logprobs', 'usage', 'prompt_tokens', 'custom_id', 'response', 'body', 'error',
      'doc_id', 'acc', 'resps', 'filtered_resps', 'arguments', 'target', 'metadata', 'a', 'b',
    ]), inner, max_size=6,
  ),
  max_leaves=12,
)  # fmt: skip


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(['choices', 'custom_id', 'response', 'doc_id', 'acc',
       'resps', 'arguments', 'target', 'usage', 'a', 'b']), json_values))  # fmt: skip
def test_no_object_is_read_or_refused_otherwise_than_by_value_errors(record):
  parsers = [openai.chat, openai.completion, openai.batch, lm_eval.sample]
  parsers.append(lambda row: columns.answer(row, columns.parse('id=a,correct=b,logprobs=a')))
  for parse in parsers:
    with contextlib.suppress(ValueError, OverflowError):
      parse(record)


TOKEN = {'token': 'a', 'logprob': -1.0, 'top_logprobs': [{'token': 'a', 'logprob': -1.0}]}
CHAT = {
  'choices': [{'message': {'content': 'a', 'refusal': None}, 'logprobs': {'content': [TOKEN]}}],
  'usage': {'prompt_tokens': 3, 'completion_tokens': 1}, 'metadata': {'id': 'q'}, 'model': 'm',
}  # fmt: skip
LISTED = {'tokens': ['p', 'a'], 'token_logprobs': [None, -1.0], 'top_logprobs': [None, {'a': -1.0}]}
RECORDS = {
  'openai-chat': CHAT,
  'openai-completions': {
    'choices': [{'text': 'pa', 'logprobs': LISTED}], 'usage': {'prompt_tokens': 1},
  },
  'batch': {'custom_id': 'q', 'response': {'body': CHAT}, 'error': None},
  'lm-eval': {
    'doc_id': 0, 'target': '1', 'acc': 1.0, 'filter': 'none',
    'arguments': {'a': {'0': 'p', '1': ' x'}, 'b': {'0': 'p', '1': ' y'}},
    'resps': [[['-1.0', 'False']], [['-2.0', 'True']]], 'filtered_resps': None,
  },
}  # fmt: skip
LEAVES = [
  None,
  True,
  -1,
  0.5,
  10**400,
  -9999.0,
  '',
  'x',
  '\ud800',
  '-inf',
  [],
  [None],
  [[]],
  {},
  [1],
]


@st.composite
def damaged(draw):
  """A valid record of a format, of which a value at any depth is another or is absent."""
  name = draw(st.sampled_from(sorted(RECORDS)))
  record = node = json.loads(json.dumps(RECORDS[name]))
  key = draw(st.sampled_from(sorted(node)))
  while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
    node = node[key]
    key = draw(st.sampled_from([*node] if isinstance(node, dict) else range(len(node))))
  if draw(st.integers(0, 3)):
    node[key] = draw(st.sampled_from(LEAVES))
  else:
    del node[key]
  return name, record


@settings(max_examples=300)
@given(damaged())
def test_a_damaged_record_becomes_a_table_or_an_error_that_names_its_line(name_and_record):
  name, record = name_and_record
  with tempfile.TemporaryDirectory() as folder:
    path = rows_file(pathlib.Path(folder), json.dumps(record))
    sentence = f'{path}, line 1: '
    try:
      written(Source(name, path), pathlib.Path(folder, 'test'), metric=None)
    except ValueError as error:
      sentence = str(error)
    assert f'{path}, line 1: ' in sentence


def test_every_name_of_a_metric_that_is_taken_over_is_ours():
  assert all(metrics.find(name) for name in lm_eval.METRICS.values())


def test_names_of_columns_are_checked():
  with pytest.raises(ValueError, match="'answer=x' does not begin with a new one of our names"):
    columns.parse('id=q,answer=x')


def test_tables_of_earlier_versions_can_be_used(capsys):
  assert command.main(['check', str(OLD_TABLES)]) == 0
  assert 'scores: average' in capsys.readouterr().out


def test_the_command_imports_checks_and_the_result_is_evaluated(tmp_path):
  for name, right, confidence in (('small', '1001', '9156'), ('large', '1111', '9999')):
    rows_file(
      tmp_path,
      *({'q': str(i), 'ok': int(r), 'c': int(c) / 10}
        for i, (r, c) in enumerate(zip(right, confidence, strict=True))),
      name=f'{name}.jsonl',
    )  # fmt: skip
  run = lambda *words: subprocess.run(
    [sys.executable, '-m', *words], cwd=tmp_path, capture_output=True, text=True, check=False,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )  # fmt: skip
  for name, size in (('small', '1e6'), ('large', '1e7')):
    done = run(
      'cascades.predictions', 'import', '--format=columns', f'--parameters={size}',
      '--columns=id=q,correct=ok,confidence=c', f'{name}.jsonl', f'tables/{name}/test',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'scores: random, confidence' in done.stdout
  refused = run('cascades.predictions', 'check', 'tables/none')
  assert (refused.returncode, refused.stderr.count('\n')) == (1, 1)
  done = run(
    'cascades.evaluate', '--gin_file=runs/evaluate.gin', '--gin.SMALL=["tables/small"]',
    '--gin.LARGE=tables/large', '--gin.EVAL_OUTPUT_DIR=report', '--gin.RESAMPLES=50',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'small' in (tmp_path / 'report' / 'summary.csv').read_text()
