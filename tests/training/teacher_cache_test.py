"""Answers on disk: what comes back, and that nothing damaged does."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades.teachers import Top1, TopK
from cascades.training import teacher_cache
from cascades.training.answer_format import AnswerFormat
from cascades.training.teacher_cache import CachedAnswers

IDENTITY = {
  'task': 'mine', 'checkpoint_identity': 'a' * 64, 'lengths': {'inputs': 8}, 'vocab_size': 99,
}  # fmt: skip


def answers(tokens, form, seed=0):
  """Random answers to a number of tokens."""
  rng = np.random.default_rng(seed)
  if form.top_k is None:
    return Top1(rng.integers(0, 99, tokens, dtype=np.int32))
  shape = (tokens, form.top_k)
  logprobs = -rng.exponential(3, shape)
  if form.dtype == 'uint8':  # only these can be stored
    logprobs = -((rng.integers(0, 256, shape) / 64) ** 2)
  return TopK(
    rng.integers(0, 99, shape, dtype=np.int32),
    logprobs.astype(form.abstract(1).top_logprobs.dtype),
    rng.random(tokens, np.float32),
    rng.random(tokens, np.float32) if form.reference else None,
  )


FIRST = AnswerFormat()


def write(directory, lengths, form=FIRST, *, shard_rows=3):
  """Shards of rows that have so many tokens; what was written in them."""
  count = -(-len(lengths) // shard_rows)
  manifest = {**IDENTITY, **form._asdict(), 'shards': count}
  manifest['reference_identity'] = 'r' if form.reference else None
  teacher_cache.begin(directory, manifest, {'note': 'x'}, write=True)
  written = answers(sum(lengths), form)
  records, ends = form.pack(written), np.cumsum([0, *lengths])
  for index in range(count):
    rows = range(index * shard_rows, min((index + 1) * shard_rows, len(lengths)))
    ids = [f'réf-{row}' for row in rows]
    teacher_cache.write_shard(
      directory,
      index,
      ids,
      [lengths[row] for row in rows],
      records[ends[rows.start] : ends[rows.stop]],
    )
  return written, ends


@pytest.fixture
def directory(tmp_path):
  return teacher_cache.location(tmp_path, 'mine', 'train')


KINDS = [
  AnswerFormat(),
  *(AnswerFormat(3, dtype) for dtype in ('float32', 'float16', 'bfloat16')),
  AnswerFormat(3, 'uint8', short_ids=True, reference=True),
]


@pytest.mark.parametrize('form', KINDS, ids=str)
def test_answers_come_back_as_they_were_in_any_order(directory, form):
  lengths = [2, 0, 5, 1, 4, 3, 1]
  written, ends = write(directory, lengths, form)
  answers = CachedAnswers.open(directory).read([6, 0, 4, 4, 1])
  tokens = np.concatenate([np.arange(ends[r], ends[r + 1]) for r in (6, 0, 4, 4, 1)])
  assert type(answers) is type(written)
  for column, expected in zip(*map(jax.tree.leaves, (answers, written)), strict=True):
    np.testing.assert_array_equal(column, expected[tokens])
    assert column.dtype == expected.dtype


@settings(max_examples=25)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 5), st.data())
def test_any_rows_of_any_shards_are_those_of_one_array(tmp_path_factory, lengths, shard_rows, data):
  directory = teacher_cache.location(tmp_path_factory.mktemp('any'), 'mine', 'train')
  written, ends = write(directory, lengths, shard_rows=shard_rows)
  rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=9))
  expected = [token for row in rows for token in written.ids[ends[row] : ends[row + 1]].tolist()]
  assert CachedAnswers.open(directory).read(rows).ids.tolist() == expected


def test_a_token_takes_the_bytes_that_are_reported(directory):
  assert [form.record.itemsize for form in KINDS] == [4, 28, 22, 22, 3 * 3 + 4 + 4]
  write(directory, [2, 3, 4, 5], AnswerFormat(3))
  sizes = [path.stat().length for path in sorted(directory.glob('*.answers'))]
  assert sizes == [9 * 22, 5 * 22]


def test_the_rows_of_two_tasks_are_read_as_one(tmp_path):
  directories = [teacher_cache.location(tmp_path, name, 'train') for name in ('one', 'two')]
  first, _ = write(directories[0], [1, 2, 3, 4])
  second, ends = write(directories[1], [2, 2])
  joined = CachedAnswers.join([CachedAnswers.open(directory) for directory in directories])
  np.testing.assert_array_equal(
    joined.read([5, 0]).ids, [*second.ids[ends[1] : ends[2]], first.ids[0]]
  )


def test_ids_are_kept_beside_the_answers(directory):
  write(directory, [1] * 5)
  assert teacher_cache.sample_ids(directory) == {
    0: 'réf-0', 2: 'réf-2', 3: 'réf-3', 4: 'réf-4'
  }  # fmt: skip


def test_other_answers_are_not_added_to_a_directory(directory):
  write(directory, [1])
  others = {**IDENTITY, 'checkpoint_identity': 'b' * 64, 'lengths': {'inputs': 9}}
  for doing in (True, False):
    with pytest.raises(ValueError, match='is of something else') as raised:
      teacher_cache.begin(directory, others, {}, write=doing)
  message = str(raised.value)
  assert "checkpoint_identity is 'aaaaaaaaaaaa...' there and 'bbbbbbbbbbbb...' here" in message
  assert "lengths is {'inputs': 8} there and {'inputs': 9} here" in message
  assert 'task is' not in message
  assert 'TEACHER_CACHE' in message
  teacher_cache.begin(directory, IDENTITY, {'note': 'another'}, write=True)
  assert teacher_cache.read_manifest(directory)['note'] == 'x'


def test_a_process_that_does_not_write_reads_nothing_that_another_replaces(directory, monkeypatch):
  write(directory, [2, 3, 4, 5])

  def removed(path):
    raise FileNotFoundError(path)

  monkeypatch.setattr(teacher_cache, 'read_manifest', removed)
  teacher_cache.begin(directory, {**IDENTITY, 'task': 'b'}, {}, write=False, overwrite=True)


def test_temporary_files_of_killed_writes_are_removed_before_others_are_written(directory):
  write(directory, [2, 3, 4, 5])
  left = directory / f'.00001.answers.{"a" * 32}'
  left.write_bytes(b'half')
  teacher_cache.begin(directory, teacher_cache.read_manifest(directory), {}, write=False)
  assert left.exists()
  write(directory, [2, 3, 4, 5])
  assert not left.exists()


def flip(path, index):
  content = bytearray(path.read_bytes())
  content[index] ^= 1
  path.write_bytes(bytes(content))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda d: (d / '00001.answers').write_bytes(b'12'), '00001 has 2 bytes in 00001.answers'),
    (lambda d: (d / '00001.answers').unlink(), '00001 has 0 bytes'),
    (lambda d: (d / '00001.json').unlink(), '00001 is missing'),
    (lambda d: (d / '00001.json').write_text('{'), '00001 has an unreadable description'),
    (lambda d: (d / '00001.json').write_text('[]'), '00001 has an unreadable description'),
    (lambda d: (d / '00001.json').write_text('{"../x": [1, 2]}'), '00001 has an unreadable desc'),
    (lambda d: flip(d / '00001.rows.npy', -1), '00001 is damaged in 00001.rows.npy'),
  ],
)
def test_a_shard_that_is_not_whole_is_named_before_anything_is_read(directory, damage, message):
  write(directory, [2, 3, 4, 5])
  assert teacher_cache.complete_shards(directory, 2) == {0, 1}
  damage(directory)
  with pytest.raises(ValueError, match=message) as raised:
    CachedAnswers.open(directory)
  assert 'Run the same `python -m cascades.cache_teacher` again' in str(raised.value)
  assert 'of 2 shards 1 cannot' in str(raised.value)
  assert teacher_cache.complete_shards(directory, 2) == {0}


@pytest.mark.parametrize('index', [0, 4, -1])
def test_a_flipped_bit_is_found_when_its_row_is_read(directory, index):
  write(directory, [2, 3, 4, 5])
  flip(directory / '00001.answers', index)
  opened = CachedAnswers.open(directory)
  opened.read([0, 1, 2])
  with pytest.raises(ValueError, match=r'00001.answers is damaged.* Run the same .* again'):
    opened.read([0, 3])
  assert teacher_cache.complete_shards(directory, 2) == {0}


def test_what_is_no_cache_is_said(tmp_path, directory):
  with pytest.raises(FileNotFoundError, match='holds no teacher cache'):
    CachedAnswers.open(directory)
  with pytest.raises(ValueError, match='local or mounted'):
    teacher_cache.location('gs://some/where', 'mine', 'train')
  write(directory, [1])
  (directory / teacher_cache.MANIFEST).write_text(json.dumps(IDENTITY)[:9])
  with pytest.raises(ValueError, match='is damaged'):
    teacher_cache.read_manifest(directory)
  with pytest.raises(ValueError, match="'float8': choose one of float32, float16, bfloat16"):
    AnswerFormat(2, 'float8').record  # noqa: B018


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('shards', 10**9, 'of 1000000000 shards 999999998 cannot be used .00002 is missing.'),
    ('shards', -1, 'it has no shards'),
    ('shards', '2', "shards is '2'"),
    ('top_k', [1], r'top_k is \[1\]'),
    ('dtype', None, 'dtype is None'),
  ],
)
def test_a_manifest_that_claims_other_things_is_refused_at_once(directory, key, value, message):
  write(directory, [2, 3, 4, 5])
  path = directory / teacher_cache.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  with pytest.raises(ValueError, match=message):
    CachedAnswers.open(directory)


def test_records_that_do_not_fit_their_rows_are_not_written(directory):
  with pytest.raises(ValueError, match='3 records for 2 rows of 4 tokens'):
    teacher_cache.write_shard(
      directory, 0, ['a', 'b'], [2, 2], AnswerFormat().pack(answers(3, AnswerFormat()))
    )


def test_one_byte_rounds_log_probabilities_in_steps_that_grow_with_them():
  form = AnswerFormat(4, 'uint8', short_ids=True)
  exact = np.array([[-0.01, -1.0, -9.0, -99.0]], np.float32)
  ids, tail = np.array([[0, 1, 2, 65535]], np.int32), np.zeros(1, np.float32)
  answers = form.unpack(form.pack(TopK(ids, exact, tail)))
  assert answers.ids.tolist() == ids.tolist()
  expected = [-((6 / 64) ** 2), -1, -9, -((255 / 64) ** 2)]
  np.testing.assert_allclose(answers.top_logprobs[0], expected, rtol=1e-6)
  wide = {'dtype': 'uint8', 'top_k': 22, 'vocab_size': (1 << 16) + 1}
  assert AnswerFormat.of(wide).record.itemsize == 22 * 5 + 4
  assert AnswerFormat.of(wide | {'top_k': 36, 'vocab_size': 1 << 16}).record.itemsize == 112


def test_one_byte_scales_a_probability_by_no_more_than_it_says():
  exact = -np.square(np.linspace(0, 5, 100_001, dtype=np.float32))[:, None]
  form = AnswerFormat(1, 'uint8')
  ids, tail = np.zeros(exact.shape, np.int32), np.zeros(len(exact), np.float32)
  rounded = form.unpack(form.pack(TopK(ids, exact, tail))).top_logprobs
  least = -((255 / 64) ** 2)
  share = np.abs(rounded - exact) / (np.sqrt(-exact) / 64 + 2**-14)
  assert 0.99 < share[exact >= least].max() <= 1.001  # in float32
  np.testing.assert_allclose(rounded[exact < least], least, rtol=1e-6)
