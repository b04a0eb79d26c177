import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import converters as layouts
from cascades.data import materialize
from cascades.data.converters import Layout
from cascades.tasks.task import both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import spelling, tiny_task

LENGTHS = {'inputs': 4, 'targets': 3}
START, EOS = 0, 1


def layout(convert, lengths=LENGTHS, start=(START,), ends=(EOS,)):
  return Layout(convert, lengths, *(np.array(ids, np.int32) for ids in (start, ends, ends)))


def assemble(made, *rows, width=None):
  return layouts.assemble(
    [[made.example(np.array(p), np.array(a)) for p, a in row] for row in rows],
    width=width or made.width,
    encoder_width=made.encoder_width,
  )


def test_encoder_decoder_by_hand():
  batch = assemble(layout(layouts.encoder_decoder), [([11, 12], [21])])
  assert batch.encoder.tolist() == [[11, 12, EOS, 0]]
  assert batch.inputs.tolist() == [[START, 21, 0]]
  assert batch.targets.tolist() == [[21, EOS, 0]]
  assert batch.weights.tolist() == [[1, 1, 0]]


def test_decoder_only_by_hand():
  batch = assemble(layout(layouts.decoder_only), [([11, 12], [21])])
  assert batch.encoder is None
  assert batch.inputs.tolist() == [[START, 11, 12, EOS, 21, 0, 0]]
  assert batch.targets.tolist() == [[11, 12, EOS, 21, EOS, 0, 0]]
  assert batch.weights.tolist() == [[0, 0, 0, 1, 1, 0, 0]]


def test_packed_rows_by_hand():
  examples = [([11], [21]), ([12, 13], [22])]
  batch = assemble(layout(layouts.decoder_only), examples, width=10)
  assert batch.inputs.tolist() == [[START, 11, EOS, 21, START, 12, 13, EOS, 22, 0]]
  assert batch.targets.tolist() == [[11, EOS, 21, EOS, 12, 13, EOS, 22, EOS, 0]]
  assert batch.weights.tolist() == [[0, 0, 1, 1, 0, 0, 0, 1, 1, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 2, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]]


def test_without_a_first_input_the_prompt_is_the_left_context():
  batch = assemble(layout(layouts.decoder_only, start=()), [([11], [21])])
  assert batch.inputs.tolist() == [[11, EOS, 21, 0, 0, 0]]
  assert batch.targets.tolist() == [[EOS, 21, EOS, 0, 0, 0]]
  assert batch.weights.tolist() == [[0, 1, 1, 0, 0, 0]]


def test_a_language_model_without_ends_predicts_every_token_of_its_chunk():
  made = layout(layouts.decoder_only, {'inputs': 0, 'targets': 3}, ends=())
  assert made.width == 3
  batch = assemble(made, [([], [21, 22, 23, 24])])
  assert batch.inputs.tolist() == [[START, 21, 22]]
  assert batch.targets.tolist() == [[21, 22, 23]]
  assert batch.weights.tolist() == [[1, 1, 1]]


def test_an_encoder_decoder_needs_a_first_input():
  with pytest.raises(ValueError, match='The decoder has no first input'):
    layout(layouts.encoder_decoder, start=())


def test_the_end_of_sequence_survives_trimming():
  batch = assemble(layout(layouts.encoder_decoder), [([11, 12, 13, 14, 15], [21, 22, 23])])
  assert batch.encoder.tolist() == [[11, 12, 13, EOS]]
  assert batch.targets.tolist() == [[21, 22, EOS]]


def test_an_empty_row_is_padding():
  batch = assemble(layout(layouts.encoder_decoder), [([11], [21])], [], [])
  assert batch.weights.sum(axis=1).tolist() == [2, 0, 0]
  assert not batch.encoder[1:].any()
  assert not batch.inputs[1:].any()
  assert batch.segments.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_a_batch_of_padding_alone_has_its_shape():
  batch = assemble(layout(layouts.decoder_only), [], [])
  assert batch.inputs.shape == batch.weights.shape == (2, 7)
  assert not batch.weights.any()


def test_arrays_have_the_types_that_models_read():
  batch = assemble(layout(layouts.encoder_decoder), [([11], [21])])
  assert batch.weights.dtype == np.float32
  others = (batch.inputs, batch.targets, batch.encoder, batch.segments, batch.positions)
  assert {array.dtype for array in others} == {np.dtype(np.int32)}


def test_an_unpacked_batch_has_no_segments():
  batch = layouts.unpacked(assemble(layout(layouts.decoder_only), [([11], [21])]))
  assert batch.segments is None
  assert batch.positions is None


def assemble_slowly(made, rows, width):
  """The same, token by token."""
  inputs, targets, segments, positions = np.zeros((4, len(rows), width), int)
  weights = np.zeros((len(rows), width))
  for r, row in enumerate(rows):
    column = 0
    for segment, (prompt, answer) in enumerate(row):
      prompt = [*prompt[: made.lengths['inputs'] - 1], EOS]
      answer = [*answer[: made.lengths['targets'] - 1], EOS]
      left = [START, *prompt] if made.convert is layouts.decoder_only else [START]
      tokens = left + answer
      for position in range(len(tokens) - 1):
        inputs[r, column] = tokens[position]
        targets[r, column] = tokens[position + 1]
        weights[r, column] = position + 1 >= len(left)
        segments[r, column] = segment + 1
        positions[r, column] = position
        column += 1
  return inputs, targets, weights, segments, positions


tokens = st.lists(st.integers(3, 99), max_size=6)
converters = pytest.mark.parametrize('convert', [layouts.encoder_decoder, layouts.decoder_only])


@converters
@given(rows=st.lists(st.lists(st.tuples(tokens, tokens), max_size=1), min_size=1, max_size=5))
def test_assembling_equals_the_oracle(convert, rows):
  made = layout(convert)
  batch = assemble(made, *rows)
  found = (batch.inputs, batch.targets, batch.weights, batch.segments, batch.positions)
  for array, expected in zip(found, assemble_slowly(made, rows, made.width), strict=True):
    np.testing.assert_array_equal(array, expected)


@given(rows=st.lists(st.lists(st.tuples(tokens, tokens), max_size=4), min_size=1, max_size=4))
def test_assembling_packs_equals_the_oracle(rows):
  made = layout(layouts.decoder_only)
  batch = assemble(made, *rows, width=30)
  found = (batch.inputs, batch.targets, batch.weights, batch.segments, batch.positions)
  for array, expected in zip(found, assemble_slowly(made, rows, 30), strict=True):
    np.testing.assert_array_equal(array, expected)


@converters
@given(prompt=tokens, answer=tokens)
def test_row_lengths_are_those_of_the_rows_made(convert, prompt, answer):
  made = layout(convert)
  counts = np.array([[len(prompt), len(answer)]])
  batch = assemble(made, [(prompt, answer)])
  assert made.row_lengths(counts).tolist() == [int(batch.segments.sum())]
  assert made.row_lengths(counts)[0] <= made.width


@converters
@given(prompt=tokens)
def test_prompt_lengths_are_those_of_the_prompts_made(convert, prompt):
  made = layout(convert)
  pieces = layouts.prompt_of(made.example(np.array(prompt), np.array([21])))
  padded = layouts.pad([pieces], 8)
  assert made.prompt_lengths(np.array([[len(prompt), 1]])).tolist() == padded.length.tolist()


@converters
def test_decoding_starts_where_the_answer_does(convert):
  # A prompt is what teacher forcing reads before the first position that it scores.
  made = layout(convert)
  example = made.example(np.array([11, 12]), np.array([21]))
  batch = assemble(made, [([11, 12], [21])])
  prompt = layouts.pad([layouts.prompt_of(example)], 6)
  read = prompt.tokens[0, : prompt.length[0]].tolist()
  first = int(np.argmax(batch.weights[0]))
  if batch.encoder is None:
    assert read == batch.inputs[0, : first + 1].tolist()
  else:
    assert read == batch.encoder[0, : prompt.length[0]].tolist()
    assert first == 0


def test_prompts_are_padded_on_the_right():
  prompt = layouts.pad([([5, 6], [1]), ([1],)], 4)
  assert prompt.tokens.tolist() == [[5, 6, 1, 0], [1, 0, 0, 0]]
  assert prompt.length.tolist() == [3, 1]


def test_trimmed_examples_are_counted_by_field():
  made = layout(layouts.encoder_decoder)
  assert made.trimmed(np.array([[3, 2], [4, 2], [9, 3], [0, 9]])) == (2, 2)


@pytest.mark.parametrize('lengths', [{}, {'inputs': 4}, {'inputs': 0, 'targets': 4}])
def test_wrong_lengths_are_named(lengths):
  with pytest.raises(ValueError, match="expected positive 'inputs' and 'targets'"):
    layout(layouts.decoder_only, lengths)


def test_lengths_of_one_keep_the_end_of_sequence_alone():
  batch = assemble(layout(layouts.decoder_only, {'inputs': 1, 'targets': 1}), [([11], [21])])
  assert batch.inputs.tolist() == [[START, EOS]]
  assert batch.targets.tolist() == [[EOS, EOS]]
  assert batch.weights.tolist() == [[0, 1]]


def test_a_splits_layout_takes_the_special_ids_from_its_records(tmp_path):
  vocabulary = both(vocabularies.bytes_vocabulary())
  made = materialize.materialize(tiny_task(spelling(2)), 'train', vocabulary, tmp_path)
  found = layouts.of(made, layouts.decoder_only, LENGTHS)
  assert [ids.tolist() for ids in (found.start, found.inputs_end, found.targets_end)] == [
    [0], [1], [1],
  ]  # fmt: skip


def test_each_architecture_has_its_converter():
  assert layouts.CONVERTERS['encoder_decoder'] is layouts.encoder_decoder
  assert layouts.CONVERTERS['decoder_only'] is layouts.decoder_only
