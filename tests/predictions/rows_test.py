import json
import re

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cascades.predictions import rows


def build(**changes):
  settings = {
    'id': 'a-1',
    'inputs': 'h i',
    'targets': ['HH AY1', 'HH IY1'],
    'answer': 'HH AY1',
    'tokens': [5, 9, 1],
    'logprobs': np.array([-0.1, -0.25, 0.0], np.float32),
    'statistics': {'accuracy': [1, 1]},
  }
  return rows.build(**{**settings, **changes})


def edited(path, value, **changes):
  record = build(**changes)
  *parents, last = path.split('.')
  parent = record
  for name in parents:
    parent = parent[name]
  parent[last] = value
  return record


def test_a_row_has_t5x_keys_first_and_the_cascades_under_aux():
  record = build()
  assert list(record) == ['inputs', 'prediction', 'aux']
  assert record['inputs'] == {'inputs_pretokenized': 'h i', 'targets_pretokenized': 'HH AY1'}
  assert record['prediction'] == 'HH AY1'
  assert record['aux'] == {
    'scores': pytest.approx(-0.35),
    'id': 'a-1',
    'targets': ['HH AY1', 'HH IY1'],
    'tokens': [5, 9, 1],
    'token_logprobs': [-0.1, -0.25, 0.0],
    'length': 3,
    'statistics': {'accuracy': [1.0, 1.0]},
  }


def test_a_row_that_was_built_is_read_again_from_json():
  parsed = rows.parse(json.loads(json.dumps(build())), 'predict')
  assert parsed == rows.PredictionRow(
    id='a-1',
    inputs='h i',
    targets=['HH AY1', 'HH IY1'],
    prediction='HH AY1',
    logprobs=[-0.1, -0.25, 0.0],
    statistics={'accuracy': [1.0, 1.0]},
    tokens=[5, 9, 1],
  )


@given(st.lists(st.floats(-(2.0**100), 0, width=32), max_size=9))
def test_log_probabilities_keep_all_digits_of_float32(values):
  record = build(logprobs=values, tokens=[0] * len(values))
  back = np.array(rows.parse(record, 'predict').logprobs, np.float32)
  np.testing.assert_array_equal(back, np.array(values, np.float32))


def test_minus_infinity_is_the_lowest_float32():
  record = build(logprobs=[-0.1, -np.inf, -1], answer=-np.inf)
  assert record['aux']['token_logprobs'][1] == rows.LOWEST == -3.4028235e38
  assert record['score'] == rows.LOWEST
  json.dumps(record, allow_nan=False)
  assert rows.parse(record, 'score').logprobs[1] == rows.LOWEST


def test_a_given_answer_is_scored_and_options_are_ranked():
  record = build(answer=-1.5, correct=[True, False, True])
  assert list(record) == ['inputs', 'score', 'aux']
  assert record['aux']['correct'] == [1, 0, 1]
  assert rows.parse(record, 'score').prediction == 'HH AY1'
  ranked = build(answer=-1.5, options=['no', 'yes'], option_scores=[-2, -1])
  assert rows.parse(ranked, 'score').prediction == 'yes'


def test_the_lengths_of_options_are_kept_and_choose_another_best_option():
  options = {'options': ['no', 'not at all'], 'option_scores': [-2, -3]}
  ranked = build(answer=-2.0, **options, option_lengths=np.array([1, 2]))
  assert ranked['aux']['option_lengths'] == [1, 2]
  assert rows.parse(json.loads(json.dumps(ranked)), 'score').prediction == 'no'
  assert rows.best_option([-2, -3]) == 0
  assert rows.best_option([-2, -3], [1, 2]) == 1
  assert rows.best_option([-2, -4], [1, 2]) == 0  # of equals, the first
  assert 'option_lengths' not in build(answer=-2.0, **options)['aux']


@given(st.lists(st.tuples(st.floats(-1e30, 0), st.integers(1, 99)), min_size=1, max_size=9))
def test_no_option_is_likelier_per_token_than_the_best(options):
  scores, lengths = zip(*options, strict=True)
  best = rows.best_option(scores, lengths)
  assert all(scores[best] / lengths[best] >= score / length for score, length in options)


def test_a_row_may_belong_to_a_group():
  assert 'group' not in build()['aux']
  record = build(details=rows.Details(group='passage 3, question 7'))
  assert record['aux']['group'] == 'passage 3, question 7'
  assert rows.parse(record, 'predict').group == 'passage 3, question 7'


def test_rounding_above_zero_is_cut_off():
  assert rows.parse(build(logprobs=[1e-6, -1, -1]), 'predict').logprobs[0] == 0


def test_numbers_of_tokens_are_null_where_unknown():
  by_token = {
    'small_logprobs': np.array([np.nan, -np.inf, -0.1], np.float32),
    'drafted': np.array([False, True, False]),
  }
  aux = build(details=rows.Details(by_token=by_token))['aux']
  assert aux['small_logprobs'] == [None, rows.LOWEST, -0.1]
  assert json.dumps(aux['drafted']) == '[0, 1, 0]'
  parsed = rows.decode(
    json.dumps(build(details=rows.Details(by_token=by_token))).encode(), 'predict'
  )
  assert parsed.by_token == {name: aux[name] for name in by_token}


@pytest.mark.parametrize(
  ('record', 'reason'),
  [
    ([], 'Expected `object`, got `array`, found []'),
    ({'inputs': {}}, 'inputs: Object missing required field `inputs_pretokenized`, found {}'),
    (edited('inputs', 'text'), "inputs: Expected `object`, got `str`, found 'text'"),
    (edited('prediction', 3), 'prediction: Expected `str`, got `int`, found 3'),
    (edited('aux.id', 3), 'aux.id: Expected `str`, got `int`, found 3'),
    (edited('aux.targets', []), 'aux.targets: Expected `array` of length >= 1, found []'),
    (edited('aux.targets', ['a', 1]), 'aux.targets[1]: Expected `str`, got `int`, found 1'),
    (
      edited('aux.token_logprobs', [0, 0.5, 0]),
      'aux.token_logprobs[1]: Expected `float` <= 0.0001',
    ),
    (
      edited('aux.token_logprobs', [-1, float('nan'), 0]),
      'aux.token_logprobs[1]: Expected `float`',
    ),
    (edited('aux.token_logprobs', [-1, True, 0]), 'Expected `float`, got `bool`, found True'),
    (edited('aux.token_logprobs', [-1, '0', 0]), "Expected `float`, got `str`, found '0'"),
    (edited('aux.token_logprobs', [-1.0]), "{'length': 3, 'token_logprobs': 1, 'tokens': 3}"),
    (edited('aux.tokens', [1, 2]), "'tokens': 2}; all must be the number of tokens"),
    (edited('aux.length', 2), "{'length': 2, "),
    (edited('aux.length', 3.0), 'aux.length: Expected `int`, got `float`, found 3.0'),
    (edited('aux.correct', [1]), "'correct': 1}; all must be"),
    (edited('aux.correct', None), 'aux.correct: Expected `array`, got `null`, found None'),
    (edited('aux.drafted', [1]), "'drafted': 1}; all must be the number of tokens"),
    (edited('aux.drafted', [0, 1, 2]), 'aux.drafted[2]: Expected `int` <= 1, found 2'),
    (edited('aux.small_logprobs', [None, 0.5, 0]), 'aux.small_logprobs[1]: Expected `float` <='),
    (edited('aux.small_calls', -1), 'aux.small_calls: Expected `float` >= 0.0, found -1'),
    (edited('aux.statistics', [1]), 'aux.statistics: Expected `object`, got `array`, found [1]'),
    (
      edited('aux.statistics', {'a': [float('inf')]}),
      'aux.statistics[...][0]: Expected `float` <=',
    ),
    (edited('aux.statistics', {'a': 1}), "Expected `array`, got `int`, found {'a': 1}"),
    (edited('aux.group', 3), 'aux.group: Expected `str`, got `int`, found 3'),
    (edited('aux.group', None), 'aux.group: Expected `str`, got `null`, found None'),
  ],
)
def test_an_invalid_row_is_refused_by_field_and_value(record, reason):
  with pytest.raises(ValueError, match=re.escape(reason)):
    rows.parse(record, 'predict')
  line = json.dumps(record)
  if 'NaN' in line or 'Infinity' in line:
    reason = 'is not a number; log-probabilities and statistics must be finite'
  with pytest.raises(ValueError, match=re.escape(reason)):
    rows.decode(line.encode(), 'predict')


@pytest.mark.parametrize(
  ('record', 'reason'),
  [
    (build(), 'Object missing required field `score`'),
    (edited('score', 'x', answer=-1.0), "score: Expected `float`, got `str`, found 'x'"),
    (
      edited('inputs.targets_pretokenized', 3, answer=-1.0),
      'inputs.targets_pretokenized: expected the text that was scored, found 3',
    ),
    (
      edited('aux.options', ['a'], answer=-1.0),
      "one score for each of one or more options, found options ['a'] and scores UNSET",
    ),
    (
      build(answer=-1.0, options=['a', 'b'], option_scores=[-1]),
      "found options ['a', 'b'] and scores [-1.0]",
    ),
    (build(answer=-1.0, options=[], option_scores=[]), 'found options [] and scores []'),
    (
      build(answer=-1.0, options=['a', 2], option_scores=[-1, -2]),
      'aux.options[1]: Expected `str`, got `int`, found 2',
    ),
    (
      build(answer=-1.0, options=['a'], option_scores=[-1], option_lengths=[2, 3]),
      'aux.option_lengths: expected 1 counts of tokens, found [2.0, 3.0]',
    ),
    (
      build(answer=-1.0, options=['a', 'b'], option_scores=[-1, -1], option_lengths=[2, 0]),
      'aux.option_lengths[1]: Expected `float` >= 1.0, found 0',
    ),
  ],
)
def test_an_invalid_scored_row_is_refused_by_field_and_value(record, reason):
  with pytest.raises(ValueError, match=re.escape(reason)):
    rows.parse(record, 'score')


@pytest.mark.parametrize('name', ['id', 'targets', 'tokens', 'token_logprobs', 'length'])
def test_fields_are_required(name):
  record = build()
  del record['aux'][name]
  with pytest.raises(ValueError, match=f'aux: Object missing required field `{name}`'):
    rows.parse(record, 'predict')


def test_other_fields_are_ignored():
  record = edited('aux.embedding', [1, None, {'a': 'b'}]) | {'time': None}
  assert rows.parse(record, 'predict') == rows.parse(build(), 'predict')
  assert rows.decode(json.dumps(record).encode(), 'predict') == rows.parse(build(), 'predict')


@given(st.sampled_from(['predict', 'score']), st.text(), st.lists(st.floats(-1e9, 0), max_size=5))
def test_a_line_is_read_as_its_object_is(mode, text, logprobs):
  record = build(
    answer=text if mode == 'predict' else -1.0,
    inputs=text,
    logprobs=logprobs,
    tokens=[1] * len(logprobs),
    **({} if mode == 'predict' else {'options': [text, 'b'], 'option_scores': [-1, -2]}),
  )
  line = json.dumps(record, ensure_ascii=bool(len(text) % 2)).encode('utf-8', 'backslashreplace')
  assert rows.decode(line, mode) == rows.parse(record, mode)


def test_half_a_surrogate_pair_is_read():
  record = build(answer='x\ud800y')
  assert rows.decode(json.dumps(record).encode(), 'predict').prediction == 'x\ud800y'
