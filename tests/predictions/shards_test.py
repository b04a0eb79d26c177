import json
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from etils import epath
from etils.epath import gpath
from hypothesis import given, settings

from cascades.evaluation import pooling
from cascades.predictions import alignment, markers, shards
from tests import object_store, synthetic_tables

SHARD = 'a-predict.jsonl-00000-of-00002'


@pytest.fixture
def folder(tmp_path):
  """A complete table of five rows in two shards."""
  synthetic_tables.write(tmp_path, 'a', synthetic_tables.records('a', size=5))
  return tmp_path


def rewrite(folder, change, name=SHARD):
  """Changes a shard's text and lets its marker agree."""
  path = folder / name
  lines = change(path.read_text('utf-8').splitlines())
  data = ''.join(f'{line}\n' for line in lines).encode()
  markers.write(epath.Path(path), data, rows=2 if name == SHARD else 3, fingerprint='')


def edit(**changes):
  """A change of the second row's aux."""

  def change(lines):
    row = json.loads(lines[1])
    row['aux'].update(changes)
    return [lines[0], json.dumps(row)]

  return change


def test_files_are_named_as_t5x_names_them(folder):
  assert sorted(path.name for path in folder.iterdir()) == [
    'a-predict.jsonl-00000-of-00002',
    'a-predict.jsonl-00000-of-00002.COMPLETED',
    'a-predict.jsonl-00001-of-00002',
    'a-predict.jsonl-00001-of-00002.COMPLETED',
    'a-predict.manifest.json',
  ]


def test_what_was_written_is_read_in_order(folder):
  records = synthetic_tables.records('a', size=5)
  (table,) = shards.read(folder)
  assert (table.task, table.split) == ('a', 'test')
  assert list(table.ids) == [f'a-{i}' for i in range(5)]
  assert list(table.predictions) == [row['prediction'] for row in records]
  assert [list(targets) for targets in table.targets] == [row['aux']['targets'] for row in records]
  for row, logprobs, mask in zip(records, table.logprobs, table.mask, strict=True):
    np.testing.assert_array_equal(logprobs[mask], row['aux']['token_logprobs'])
  expected = [row['aux']['statistics']['accuracy'] for row in records]
  np.testing.assert_array_equal(table.statistics['accuracy'], expected)
  assert table.manifest['vocabulary'] == 'f00d'


def test_answers_without_tokens_and_tables_without_any_are_read(tmp_path):
  records = synthetic_tables.records('a', size=2)
  for row in records:
    row['aux'].update(tokens=[], token_logprobs=[], length=0)
  synthetic_tables.write(tmp_path, 'a', records)
  (table,) = shards.read(tmp_path)
  assert table.mask.shape == (2, 1)
  assert not table.mask.any()


def test_groups_are_read_if_the_rows_have_them(folder, tmp_path_factory):
  assert not shards.read(folder)[0].groups
  records = synthetic_tables.records('a', size=5)
  for row, group in zip(records, 'ppqqq', strict=True):
    row['aux']['group'] = group
  other = tmp_path_factory.mktemp('grouped')
  synthetic_tables.write(other, 'a', records)
  assert ''.join(shards.read(other)[0].groups) == 'ppqqq'


@settings(deadline=None)
@given(st.lists(st.text(), min_size=3, max_size=3))
def test_any_text_survives_the_trip(tmp_path_factory, texts):
  folder = tmp_path_factory.mktemp('table')
  records = synthetic_tables.records('a', size=1)
  records[0]['inputs']['inputs_pretokenized'] = texts[0]
  records[0]['prediction'] = texts[1]
  records[0]['aux'].update(id=texts[2], targets=texts)
  synthetic_tables.write(folder, 'a', records, shards=1)
  (table,) = shards.read(folder)
  assert (table.inputs[0], table.predictions[0], table.ids[0]) == tuple(texts)
  assert list(table.targets[0]) == texts


def test_half_a_surrogate_pair_survives_and_the_file_stays_utf8(tmp_path):
  records = synthetic_tables.records('a', size=1)
  records[0]['prediction'] = 'x\ud800y\u2028z'
  synthetic_tables.write(tmp_path, 'a', records, shards=1)
  (tmp_path / 'a-predict.jsonl-00000-of-00001').read_text('utf-8')
  assert shards.read(tmp_path)[0].predictions == ['x\ud800y\u2028z']


@pytest.mark.parametrize('task', ['glue/cola', '../escape', 'a b:c', '日本', '%2F', 'x-predict'])
def test_a_task_may_have_any_name(tmp_path, task):
  synthetic_tables.write(tmp_path, task, synthetic_tables.records(task, size=3))
  assert [table.task for table in shards.read(tmp_path)] == [task]
  assert {path.parent for path in tmp_path.rglob('*')} == {tmp_path}


def test_tables_are_sorted_and_chosen_by_task_and_mode(tmp_path):
  for task in ('b', 'a'):
    synthetic_tables.write(tmp_path, task, synthetic_tables.records(task, size=3))
  assert [table.task for table in shards.read(tmp_path)] == ['a', 'b']
  assert [table.task for table in shards.read(tmp_path, task='b')] == ['b']
  with pytest.raises(
    FileNotFoundError, match=r"no table of mode 'predict' of task 'c'; .*: a, b\."
  ):
    shards.read(tmp_path, task='c')
  with pytest.raises(
    FileNotFoundError, match=r"no table of mode 'score'; it has tables of: no task"
  ):
    shards.read(tmp_path, mode='score')


def test_scores_of_given_answers_are_another_mode(tmp_path):
  records = synthetic_tables.records('a', size=3)
  for row in records:
    del row['prediction']
    row['score'] = -1.0
  synthetic_tables.write(tmp_path, 'a', records, mode='score')
  (table,) = shards.read(tmp_path, mode='score')
  assert table.predictions == [row['inputs']['targets_pretokenized'] for row in records]


@given(st.integers(0, 50), st.integers(1, 9))
def test_shards_hold_every_row_once_and_are_even(total, count):
  shard_ranges = [shards.shard_rows(total, index, count) for index in range(count)]
  assert [i for shard_records in shard_ranges for i in shard_records] == list(range(total))
  assert max(map(len, shard_ranges)) - min(map(len, shard_ranges)) <= 1


def test_only_whole_shards_of_the_same_origin_count_as_completed(tmp_path):
  records = synthetic_tables.records('a', size=9)

  def completed(**options):
    settings = {'total': 9, 'fingerprint': 'model 7', **options}
    return shards.completed_shards(tmp_path, 'a', 'predict', 3, **settings)

  assert completed() == set()
  for index in (0, 2):
    shard_records = [records[i] for i in shards.shard_rows(9, index, 3)]
    shards.write_shard(tmp_path, 'a', 'predict', index, 3, shard_records, fingerprint='model 7')
  assert completed() == {0, 2}
  assert completed(fingerprint='model 8') == set()
  assert completed(total=12) == set()
  path = tmp_path / 'a-predict.jsonl-00002-of-00003'
  content = path.read_bytes()
  path.write_bytes(content[:-9])
  assert completed() == {0}
  path.write_bytes(content)
  assert completed() == {0, 2}
  (tmp_path / f'{path.name}.COMPLETED').write_text('{"rows":')
  assert completed() == {0}
  (tmp_path / f'{path.name}.COMPLETED').unlink()
  assert completed() == {0}


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path):
  records = synthetic_tables.records('a', size=10)
  straight, resumed = tmp_path / 'straight', tmp_path / 'resumed'
  synthetic_tables.write(straight, 'a', records, shards=4)
  for stop in (1, 3, 4):
    done = shards.completed_shards(resumed, 'a', 'predict', 4, total=10)
    for index in sorted(set(range(stop)) - done):
      shard_records = [records[i] for i in shards.shard_rows(10, index, 4)]
      shards.write_shard(resumed, 'a', 'predict', index, 4, shard_records)
    if stop < 4:
      with pytest.raises(ValueError, match=f'{4 - stop}( or more)? of 4 shards are not complete'):
        shards.write_manifest(resumed, synthetic_tables.manifest('a', records, shards=4))
      with pytest.raises(FileNotFoundError, match=r"inference of 'a' .* has not finished"):
        shards.read(resumed)
  shards.write_manifest(resumed, synthetic_tables.manifest('a', records, shards=4))
  for path in straight.iterdir():
    assert path.read_bytes() == (resumed / path.name).read_bytes()
  assert len(list(straight.iterdir())) == len(list(resumed.iterdir()))


def test_a_row_that_cannot_be_written_leaves_no_file(tmp_path):
  bad = synthetic_tables.records('a', size=2)
  bad[1]['aux']['token_logprobs'][0] = float('nan')
  with pytest.raises(ValueError, match=r'token_logprobs\[0\]: Expected `float`.*found nan'):
    shards.write_shard(tmp_path, 'a', 'predict', 0, 1, bad)
  assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match='does not exist; it should hold what'):
    shards.read(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  ('damage', 'reason'),
  [
    (lambda folder: (folder / SHARD).unlink(), f'{SHARD} is missing'),
    (lambda folder: (folder / f'{SHARD}.COMPLETED').unlink(), f'{SHARD} has no .COMPLETED marker'),
    (lambda folder: (folder / SHARD).write_bytes(b'{}\n'), 'has bytes 3, but its marker has'),
    (lambda folder: (folder / f'{SHARD}.COMPLETED').write_text('x'), 'unreadable marker'),
  ],
)
def test_a_damaged_shard_is_named(folder, damage, reason):
  damage(folder)
  with pytest.raises(ValueError, match=f'1 of 2 shards are not complete: .*{reason}'):
    shards.read(folder)


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'shards': 10**9}, 'of 1000000000 shards are not complete: .*-of-1000000000 is missing'),
    ({'shards': 10**30}, 'manifest.json: '),
    ({'shards': 0}, 'shards: Expected `int` >= 1, found 0'),
    ({'rows': -1}, 'rows: Expected `int` >= 1, found -1'),
    ({'flops_per_token': -2.0}, 'flops_per_token: Expected `float` > 0.0, found -2.0'),
    ({'metrics': []}, 'metrics: Expected `array` of length >= 1'),
    ({'version': 7}, 'version: expected 1 of the format, found 7'),
    ({'task': 'b'}, 'has its manifest in b-predict.manifest.json'),
    ({'mode': 'score'}, 'has its manifest in a-score.manifest.json'),
  ],
)
def test_a_manifest_that_cannot_be_true_is_refused_at_once(folder, changes, reason):
  path = folder / 'a-predict.manifest.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  with pytest.raises(ValueError, match=reason):
    shards.read(folder)


def test_an_infinite_cost_in_a_manifest_is_refused(folder):
  path = folder / 'a-predict.manifest.json'
  path.write_text(
    re.sub('"flops_per_token": [0-9.]+', '"flops_per_token": 1e999', path.read_text())
  )
  with pytest.raises(ValueError, match='flops_per_token: '):
    shards.read(folder)


def test_another_row_count_than_the_manifests_is_refused(folder):
  path = folder / 'a-predict.manifest.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'rows': 6}))
  with pytest.raises(ValueError, match='has rows 3, but its marker has 2'):
    shards.read(folder)


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    (lambda lines: [lines[0], lines[1][:-5]], 'line 2: Expecting'),
    (lambda lines: [lines[0], lines[1].replace('-0.', 'NaN, -0.', 1)], 'line 2: NaN is not a num'),
    (lambda lines: [lines[0], '[' * 100000], 'line 2: .*recursion'),
    (lambda lines: [lines[0], '[]'], 'line 2: Expected `object`, got `array`'),
    (lambda lines: [lines[0], lines[0]], "line 2: id 'a-0' occurs twice"),
    (edit(id='a-4'), r"00001-of-00002, line 3: id 'a-4' occurs twice"),
    (edit(statistics={'bleu': [1.0]}), r"line 2: statistics of \['bleu'\], but the manifest lists"),
    (edit(statistics={'accuracy': [1.0]}), 'line 2: 1 statistics of accuracy, but 2 in the first'),
    (edit(group='q'), "line 2: group is 'q', but None in the first row"),
    (
      edit(length=1),
      r"line 2: aux has {'length': 1, 'token_logprobs': 9, .*all must be the number of",
    ),
    (
      edit(token_logprobs=[10**400], tokens=[1], length=1),
      r'line 2: aux.token_logprobs\[0\]: Number out of range, found 1000',
    ),
  ],
)
def test_a_malformed_row_is_named_by_file_and_line(folder, change, reason):
  rewrite(folder, change)
  with pytest.raises(ValueError, match=reason):
    shards.read(folder)


@pytest.mark.parametrize(
  ('name', 'value', 'reason'),
  [
    ('version', 2, 'version: expected 1 of the format, found 2'),
    ('rows', 0, 'rows: Expected `int` >= 1, found 0'),
    ('parameters', -5, 'parameters: Expected `int` >= 1, found -5'),
    ('metrics', [], 'metrics: Expected `array` of length >= 1, found []'),
    ('metrics', [1], 'metrics[0]: Expected `str`, got `int`, found 1'),
    ('config', None, 'config: Expected `str`, got `null`, found None'),
    ('decoding', 'greedy', "decoding: Expected `object`, got `str`, found 'greedy'"),
    ('flops_per_token', 'many', "flops_per_token: Expected `float`, got `str`, found 'many'"),
  ],
)
def test_a_manifest_that_says_too_little_is_neither_written_nor_read(folder, name, value, reason):
  path = folder / 'a-predict.manifest.json'
  manifest = {**json.loads(path.read_text()), name: value}
  with pytest.raises(ValueError, match=re.escape(reason)):
    shards.write_manifest(folder, manifest)
  path.write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match=f'manifest.json: {re.escape(reason)}'):
    shards.read(folder)


def test_each_entry_of_a_manifest_is_required(folder):
  complete = synthetic_tables.manifest('a', synthetic_tables.records('a', size=5))
  for name in complete:
    with pytest.raises(ValueError, match=f'missing required field `{name}`'):
      shards.write_manifest(folder, {k: v for k, v in complete.items() if k != name})


@pytest.fixture
def remote(tmp_path, monkeypatch):
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(tmp_path / 'bucket'))
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  return 'gs://runs/small/test'


def test_tables_live_in_object_stores_too(remote, tmp_path):
  records = synthetic_tables.records('a', size=5)
  synthetic_tables.write(remote, 'a', records)
  (table,) = shards.read(remote)
  assert list(table.ids) == [f'a-{i}' for i in range(5)]
  assert shards.completed_shards(remote, 'a', 'predict', 2, total=5) == {0, 1}
  assert (tmp_path / 'bucket/runs/small/test/a-predict.manifest.json').exists()


def test_optional_columns_are_read_selected_and_pooled(tmp_path):
  records = synthetic_tables.records('a', size=3)
  for i, row in enumerate(records):
    row['aux']['top_logprobs'] = [[-2.0, -0.5]] + [[-0.1]] * (row['aux']['length'] - 1)
    row['aux'] |= {'slice': f's{i}', 'seconds': 0.5 + i} | ({'confidence': 0.25} if i else {})
  synthetic_tables.write(tmp_path, 'a', records)
  (table,) = shards.read(tmp_path)
  assert list(table.slices) == ['s0', 's1', 's2']
  assert table.alternatives[0].tolist() == [-0.5, -2.0]
  assert table.alternatives[1].tolist() == [-0.1, -np.inf]
  np.testing.assert_array_equal(table.columns['confidence'], [np.nan, 0.25, 0.25])
  with pytest.raises(ValueError, match=r"1 of 3 rows of task 'a' have no confidence \(in the"):
    table.column('confidence')
  with pytest.raises(ValueError, match=r'3 of 3 rows .* have no dollars'):
    table.column('dollars')
  last = alignment.select(table, [2, 1])
  assert (list(last.slices), last.column('seconds').tolist()) == (['s2', 's1'], [2.5, 1.5])
  start = last.lengths[0]
  assert last.alternatives[[0, start], 1].tolist() == [-2.0, -2.0]
  (other,) = shards.read(tmp_path)
  pooled = pooling.pool([last, other._replace(columns={}, slices=())])
  assert list(pooled.slices) == ['s2', 's1', '', '', '']
  np.testing.assert_array_equal(pooled.columns['seconds'], [2.5, 1.5, np.nan, np.nan, np.nan])
  assert len(pooled.alternatives) == len(pooled.token_logprobs)


def test_numbers_of_each_token_are_read_selected_and_pooled(tmp_path):
  tables = []
  for task in 'ab':
    records = synthetic_tables.records(task, size=3)
    for i, row in enumerate(records):
      length = row['aux']['length']
      if i or task == 'b':
        row['aux'] |= {'drafted': [i % 2] * length, 'small_logprobs': [None] + [-i] * (length - 1)}
    synthetic_tables.write(tmp_path / task, task, records)
    tables += shards.read(tmp_path / task)
  first, other = tables
  a, b, c = first.lengths
  np.testing.assert_array_equal(
    first.by_token['drafted'], np.concatenate([np.full(a, np.nan), np.ones(b), np.zeros(c)])
  )
  last = alignment.select(first, [2, 1])
  expected = np.repeat([-2.0, -1.0], [c, b])
  expected[[0, c]] = np.nan
  np.testing.assert_array_equal(last.by_token['small_logprobs'], expected)
  pooled = pooling.pool([last, other])
  np.testing.assert_array_equal(
    pooled.by_token['drafted'], [*last.by_token['drafted'], *other.by_token['drafted']]
  )
  assert not pooling.pool([last._replace(by_token={}), other]).by_token


@pytest.mark.parametrize('value', [-0.1, 1.5, 'high'])
def test_a_confidence_outside_its_range_is_refused(folder, value):
  rewrite(folder, edit(confidence=value))
  with pytest.raises(ValueError, match=rf'line 2: aux.confidence: .*found {value!r}'):
    shards.read(folder)
