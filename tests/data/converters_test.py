import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import converters, materialize
from cascades.data.converters import FeatureConverter
from cascades.tasks.task import both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import spelling, tiny_task

LENGTHS = {'inputs': 4, 'targets': 3}
START, EOS = 0, 1


def feature_converter(convert, lengths=LENGTHS, start=(START,), ends=(EOS,)):
  return FeatureConverter(
    convert, lengths, *(np.array(ids, np.int32) for ids in (start, ends, ends))
  )


def assemble(converter, *rows, width=None):
  return converters.assemble(
    [[converter.example(np.array(p), np.array(a)) for p, a in row] for row in rows],
    width=width or converter.width,
    encoder_width=converter.encoder_width,
  )


def test_encoder_decoder_by_hand():
  batch = assemble(feature_converter(converters.encoder_decoder), [([11, 12], [21])])
  assert batch.encoder.tolist() == [[11, 12, EOS, 0]]
  assert batch.inputs.tolist() == [[START, 21, 0]]
  assert batch.targets.tolist() == [[21, EOS, 0]]
  assert batch.weights.tolist() == [[1, 1, 0]]


def test_decoder_only_by_hand():
  batch = assemble(feature_converter(converters.decoder_only), [([11, 12], [21])])
  assert batch.encoder is None
  assert batch.inputs.tolist() == [[START, 11, 12, EOS, 21, 0, 0]]
  assert batch.targets.tolist() == [[11, 12, EOS, 21, EOS, 0, 0]]
  assert batch.weights.tolist() == [[0, 0, 0, 1, 1, 0, 0]]


def test_packed_rows_by_hand():
  examples = [([11], [21]), ([12, 13], [22])]
  batch = assemble(feature_converter(converters.decoder_only), examples, width=10)
  assert batch.inputs.tolist() == [[START, 11, EOS, 21, START, 12, 13, EOS, 22, 0]]
  assert batch.targets.tolist() == [[11, EOS, 21, EOS, 12, 13, EOS, 22, EOS, 0]]
  assert batch.weights.tolist() == [[0, 0, 1, 1, 0, 0, 0, 1, 1, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 2, 0]]
  assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4, 0]]


def test_without_a_first_input_the_prompt_is_the_left_context():
  batch = assemble(feature_converter(converters.decoder_only, start=()), [([11], [21])])
  assert batch.inputs.tolist() == [[11, EOS, 21, 0, 0, 0]]
  assert batch.targets.tolist() == [[EOS, 21, EOS, 0, 0, 0]]
  assert batch.weights.tolist() == [[0, 1, 1, 0, 0, 0]]


def test_a_language_model_without_ends_predicts_every_token_of_its_chunk():
  converter = feature_converter(converters.decoder_only, {'inputs': 0, 'targets': 3}, ends=())
  assert converter.width == 3
  batch = assemble(converter, [([], [21, 22, 23, 24])])
  assert batch.inputs.tolist() == [[START, 21, 22]]
  assert batch.targets.tolist() == [[21, 22, 23]]
  assert batch.weights.tolist() == [[1, 1, 1]]


def test_an_encoder_decoder_needs_a_first_input():
  with pytest.raises(ValueError, match='The decoder has no first input'):
    feature_converter(converters.encoder_decoder, start=())


def test_the_end_of_sequence_survives_trimming():
  batch = assemble(
    feature_converter(converters.encoder_decoder), [([11, 12, 13, 14, 15], [21, 22, 23])]
  )
  assert batch.encoder.tolist() == [[11, 12, 13, EOS]]
  assert batch.targets.tolist() == [[21, 22, EOS]]


def test_an_empty_row_is_padding():
  batch = assemble(feature_converter(converters.encoder_decoder), [([11], [21])], [], [])
  assert batch.weights.sum(axis=1).tolist() == [2, 0, 0]
  assert not batch.encoder[1:].any()
  assert not batch.inputs[1:].any()
  assert batch.segments.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_a_batch_of_padding_alone_has_its_shape():
  batch = assemble(feature_converter(converters.decoder_only), [], [])
  assert batch.inputs.shape == batch.weights.shape == (2, 7)
  assert not batch.weights.any()


def test_arrays_have_the_types_that_models_read():
  batch = assemble(feature_converter(converters.encoder_decoder), [([11], [21])])
  assert batch.weights.dtype == np.float32
  others = (batch.inputs, batch.targets, batch.encoder, batch.segments, batch.positions)
  assert {array.dtype for array in others} == {np.dtype(np.int32)}


def test_segments_can_be_dropped():
  batch = converters.without_segments(
    assemble(feature_converter(converters.decoder_only), [([11], [21])])
  )
  assert batch.segments is None
  assert batch.positions is None


def assemble_slowly(converter, rows, width):
  """The same, token by token."""
  inputs, targets, segments, positions = np.zeros((4, len(rows), width), int)
  weights = np.zeros((len(rows), width))
  for r, row in enumerate(rows):
    column = 0
    for segment, (prompt, answer) in enumerate(row):
      prompt = [*prompt[: converter.lengths['inputs'] - 1], EOS]
      answer = [*answer[: converter.lengths['targets'] - 1], EOS]
      left = [START, *prompt] if converter.convert is converters.decoder_only else [START]
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
architectures = pytest.mark.parametrize(
  'convert', [converters.encoder_decoder, converters.decoder_only]
)


@architectures
@given(rows=st.lists(st.lists(st.tuples(tokens, tokens), max_size=1), min_size=1, max_size=5))
def test_assembling_equals_the_oracle(convert, rows):
  converter = feature_converter(convert)
  batch = assemble(converter, *rows)
  arrays = (batch.inputs, batch.targets, batch.weights, batch.segments, batch.positions)
  for array, expected in zip(
    arrays, assemble_slowly(converter, rows, converter.width), strict=True
  ):
    np.testing.assert_array_equal(array, expected)


@given(rows=st.lists(st.lists(st.tuples(tokens, tokens), max_size=4), min_size=1, max_size=4))
def test_assembling_packs_equals_the_oracle(rows):
  converter = feature_converter(converters.decoder_only)
  batch = assemble(converter, *rows, width=30)
  arrays = (batch.inputs, batch.targets, batch.weights, batch.segments, batch.positions)
  for array, expected in zip(arrays, assemble_slowly(converter, rows, 30), strict=True):
    np.testing.assert_array_equal(array, expected)


@architectures
@given(prompt=tokens, answer=tokens)
def test_row_lengths_are_those_of_the_rows_made(convert, prompt, answer):
  converter = feature_converter(convert)
  counts = np.array([[len(prompt), len(answer)]])
  batch = assemble(converter, [(prompt, answer)])
  assert converter.row_lengths(counts).tolist() == [int(batch.segments.sum())]
  assert converter.row_lengths(counts)[0] <= converter.width


@architectures
@given(prompt=tokens)
def test_prompt_lengths_are_those_of_the_prompts_made(convert, prompt):
  converter = feature_converter(convert)
  pieces = converter.example(np.array(prompt), np.array([21])).prompt
  padded = converters.pad([pieces], 8)
  assert converter.prompt_lengths(np.array([[len(prompt), 1]])).tolist() == padded.length.tolist()


@architectures
def test_decoding_starts_where_the_answer_does(convert):
  # A prompt is what teacher forcing reads before the first position that it scores.
  converter = feature_converter(convert)
  example = converter.example(np.array([11, 12]), np.array([21]))
  batch = assemble(converter, [([11, 12], [21])])
  prompt = converters.pad([example.prompt], 6)
  read = prompt.tokens[0, : prompt.length[0]].tolist()
  first = int(np.argmax(batch.weights[0]))
  if batch.encoder is None:
    assert read == batch.inputs[0, : first + 1].tolist()
  else:
    assert read == batch.encoder[0, : prompt.length[0]].tolist()
    assert first == 0


def test_prompts_are_padded_on_the_right():
  prompt = converters.pad([([5, 6], [1]), ([1],)], 4)
  assert prompt.tokens.tolist() == [[5, 6, 1, 0], [1, 0, 0, 0]]
  assert prompt.length.tolist() == [3, 1]


def test_trimmed_examples_are_counted_by_field():
  converter = feature_converter(converters.encoder_decoder)
  assert converter.count_trimmed(np.array([[3, 2], [4, 2], [9, 3], [0, 9]])) == (2, 2)


@pytest.mark.parametrize('lengths', [{}, {'inputs': 4}, {'inputs': 0, 'targets': 4}])
def test_wrong_lengths_are_named(lengths):
  with pytest.raises(ValueError, match="expected positive 'inputs' and 'targets'"):
    feature_converter(converters.decoder_only, lengths)


def test_lengths_of_one_keep_the_end_of_sequence_alone():
  batch = assemble(
    feature_converter(converters.decoder_only, {'inputs': 1, 'targets': 1}), [([11], [21])]
  )
  assert batch.inputs.tolist() == [[START, EOS]]
  assert batch.targets.tolist() == [[EOS, EOS]]
  assert batch.weights.tolist() == [[0, 1]]


def test_a_splits_converter_takes_the_special_ids_from_its_records(tmp_path):
  vocabulary = both(vocabularies.bytes_vocabulary())
  converter = materialize.materialize(tiny_task(spelling(2)), 'train', vocabulary, tmp_path)
  arrays = converters.feature_converter(converter, converters.decoder_only, LENGTHS)
  assert [ids.tolist() for ids in (arrays.start, arrays.inputs_end, arrays.targets_end)] == [
    [0], [1], [1],
  ]  # fmt: skip


def test_each_architecture_has_its_converter():
  assert converters.CONVERTERS['encoder_decoder'] is converters.encoder_decoder
  assert converters.CONVERTERS['decoder_only'] is converters.decoder_only


def test_the_worked_arrays_of_the_docstrings_are_right():
  results = doctest.testmod(converters)
  assert results.attempted > 5
  assert not results.failed
