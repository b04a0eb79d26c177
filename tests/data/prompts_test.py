import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import batches, converters, corpus, materialize, prompts
from cascades.runtime import partitioning
from cascades.tasks.task import Row, both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import spelling, tiny_task

LENGTHS = {'inputs': 16, 'targets': 8}
BYTES = vocabularies.bytes_vocabulary()
architectures = pytest.mark.parametrize(
  'convert', [converters.encoder_decoder, converters.decoder_only]
)


@pytest.fixture(scope='module')
def classified(tmp_path_factory):
  """Rows with options of unequal lengths."""
  rows = [
    Row(f'{i}', 'q' * i, ('yes',), ('no', 'yes', 'perhaps')[: 2 + i % 2], 1) for i in range(7)
  ]
  task = tiny_task(rows, name='classified')
  return materialize.materialize(task, 'train', both(BYTES), tmp_path_factory.mktemp('records'))


def text(prompt, row):
  return BYTES.decode(prompt.tokens[row, : prompt.length[row]].tolist())


@architectures
def test_prompts_hold_the_inputs_of_their_rows(tiny_records, convert):
  grouped = {}
  settings = {'convert': convert, 'lengths': LENGTHS}
  lengths = prompts.prompt_lengths(tiny_records, **settings)
  for bucket in prompts.buckets(lengths, range(37), batch_size=8):
    prompt = prompts.read_prompts(tiny_records, bucket, batch_size=8, **settings)
    assert prompt.tokens.shape == (8, bucket.width)
    for i, index in enumerate(bucket.indices.tolist()):
      assert prompt.length[i] == lengths[index]
      grouped[index] = text(prompt, i)
  assert grouped == {i: row.inputs for i, row in enumerate(spelling(37))}


def test_a_prompt_by_hand_for_each_architecture(tiny_records):
  # Row 2 of the tiny task spells 'opqr'.
  expected = {
    converters.encoder_decoder: [*BYTES.encode(spelling(3)[2].inputs), 1],
    converters.decoder_only: [0, *BYTES.encode(spelling(3)[2].inputs), 1],
  }
  for convert, tokens in expected.items():
    bucket = prompts.Bucket(np.array([2]), 16)
    prompt = prompts.read_prompts(
      tiny_records, bucket, convert=convert, lengths=LENGTHS, batch_size=1
    )
    assert prompt.tokens[0, : prompt.length[0]].tolist() == tokens


def test_a_bucket_short_of_a_batch_repeats_its_last_prompt(tiny_records):
  bucket = prompts.Bucket(np.array([3, 4]), 16)
  prompt = prompts.read_prompts(
    tiny_records, bucket, convert=converters.decoder_only, lengths=LENGTHS, batch_size=4
  )
  assert prompt.tokens.shape == (4, 16)
  np.testing.assert_array_equal(prompt.tokens[2:], prompt.tokens[[1, 1]])
  np.testing.assert_array_equal(prompt.length[2:], prompt.length[[1, 1]])


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 40))
def test_batches_shrink_to_few_shapes(rows, multiple, blocks):
  batch_size = multiple * blocks
  rows = min(rows, batch_size)
  shape = prompts.padded_rows(rows, batch_size, multiple=multiple)
  assert rows <= shape <= min(batch_size, max(2 * rows, multiple))
  assert shape % multiple == 0
  shapes = {prompts.padded_rows(n + 1, batch_size, multiple=multiple) for n in range(batch_size)}
  assert len(shapes) <= 1 + blocks.bit_length()


@architectures
def test_three_prompts_do_not_make_a_batch_of_256(tiny_records, convert):
  task = tiny_task(spelling(3))
  bytes_, lengths = vocabularies.bytes_vocabulary(), LENGTHS
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    read = corpus.Corpus(task, bytes_, convert.__name__, lengths)
    (bucket,) = read.buckets(tiny_records, range(3), batch_size=256)
    assert read.prompts(tiny_records, bucket, batch_size=256).tokens.shape == (4, 16)
    (scored,) = read.candidates(tiny_records, range(3), batch_size=256)
    assert (len(scored.rows), len(scored.batch.targets)) == (3, 4)


@given(
  st.lists(st.integers(1, 70), min_size=1, max_size=50),
  st.integers(1, 9),
  st.lists(st.sampled_from([8, 16, 32, 64]), unique=True),
)
def test_buckets_hold_every_row_once_and_every_prompt_whole(lengths, batch_size, widths):
  grouped = prompts.buckets(
    np.array(lengths), range(len(lengths)), batch_size=batch_size, widths=sorted(widths)
  )
  indices = np.concatenate([bucket.indices for bucket in grouped])
  assert sorted(indices.tolist()) == list(range(len(lengths)))
  for bucket in grouped:
    longest = max(lengths[i] for i in bucket.indices)
    assert len(bucket.indices) <= batch_size
    assert bucket.width >= longest
    assert bucket.width == longest or bucket.width in widths


def test_buckets_compile_few_shapes():
  lengths = np.arange(1, 513)
  grouped = prompts.buckets(lengths, range(512), batch_size=8)
  assert {bucket.width for bucket in grouped} == {16, 32, 64, 128, 256, 512}
  assert sum(bucket.width * 8 for bucket in grouped) < 0.4 * 512 * 512 * 2


def test_buckets_take_only_the_rows_asked_for():
  (bucket,) = prompts.buckets(np.array([9, 1, 5, 7]), [3, 1], batch_size=4)
  assert bucket.indices.tolist() == [1, 3]
  assert bucket.width == 16


def test_no_rows_make_no_buckets():
  assert prompts.buckets(np.array([3, 4]), np.zeros(0, int), batch_size=2) == []


@architectures
def test_scoring_the_targets_reads_what_evaluation_reads(tiny_records, convert):
  settings = {'convert': convert, 'lengths': LENGTHS, 'batch_size': 8}
  scored = list(prompts.score_batches(tiny_records, range(37), **settings))
  evaluated = list(batches.evaluation_batches(tiny_records, **settings))
  assert len(scored) == len(evaluated)
  for scoring, batch in zip(scored, evaluated, strict=True):
    for actual, expected in zip(scoring.batch, batch, strict=True):
      np.testing.assert_array_equal(actual, expected)
  assert np.concatenate([batch.rows for batch in scored]).tolist() == list(range(37))
  assert not np.concatenate([batch.candidates for batch in scored]).any()


@architectures
def test_every_option_of_every_row_is_scored_in_order(classified, convert):
  scored = list(
    prompts.score_batches(
      classified, [4, 1, 2], convert=convert, lengths=LENGTHS, batch_size=4,
      candidates=prompts.given_options,
    )
  )  # fmt: skip
  assert [scoring.batch.targets.shape[0] for scoring in scored] == [4, 4]
  rows = np.concatenate([batch.rows for batch in scored])
  candidates = np.concatenate([batch.candidates for batch in scored])
  assert rows.tolist() == [4, 4, 1, 1, 1, 2, 2]
  assert candidates.tolist() == [0, 1, 0, 1, 2, 0, 1]
  texts = [
    BYTES.decode(targets[weights == 1].tolist())
    for scoring in scored
    for targets, weights in zip(scoring.batch.targets, scoring.batch.weights, strict=True)
  ]
  assert texts == ['no', 'yes', 'no', 'yes', 'perhaps', 'no', 'yes', '']


def test_a_row_without_options_cannot_be_ranked(tiny_records):
  with pytest.raises(ValueError, match='Row row-0 has no options to rank'):
    list(
      prompts.score_batches(
        tiny_records, [0], convert=converters.decoder_only, lengths=LENGTHS, batch_size=1,
        candidates=prompts.given_options,
      )
    )  # fmt: skip


def test_any_answers_can_be_scored(tiny_records):
  # As a model's own greedy outputs are, to check their log-probabilities by teacher forcing.
  generated = {'row-0': [50, 51], 'row-1': [60]}
  (scored,) = prompts.score_batches(
    tiny_records, [0, 1], convert=converters.encoder_decoder, lengths=LENGTHS, batch_size=2,
    candidates=lambda record: [np.array(generated[record.row.id])],
  )  # fmt: skip
  assert scored.batch.targets[:, :3].tolist() == [[50, 51, 1], [60, 1, 0]]


def test_scored_answers_that_are_trimmed_are_counted(classified, caplog):
  list(
    prompts.score_batches(
      classified, range(7), convert=converters.decoder_only, lengths={'inputs': 9, 'targets': 7},
      batch_size=4, candidates=prompts.given_options,
    )
  )  # fmt: skip
  # 'perhaps' has seven tokens, and its end of sequence would be the eighth.
  assert '3 scored answers are longer than' in caplog.text


def test_prompts_longer_than_the_model_are_trimmed_and_counted(tiny_records, caplog):
  lengths = {'inputs': 4, 'targets': 8}
  widths = prompts.prompt_lengths(tiny_records, convert=converters.encoder_decoder, lengths=lengths)
  longer = int((tiny_records.lengths[:, 0] > 3).sum())  # an end of sequence takes one position
  assert widths.max() == 4
  assert f'{longer} of 37 prompts are longer than 4 tokens and are trimmed' in caplog.text
  caplog.clear()
  prompts.prompt_lengths(
    tiny_records, convert=converters.encoder_decoder, lengths={'inputs': 99, 'targets': 8}
  )
  assert not caplog.text
