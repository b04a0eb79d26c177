import json

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
  place = record
  for name in parents:
    place = place[name]
  place[last] = value
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


def test_what_is_built_is_parsed_again_after_a_trip_through_json():
  parsed = rows.parse(json.loads(json.dumps(build())), 'predict')
  assert parsed == rows.Parsed(
    id='a-1',
    inputs='h i',
    targets=['HH AY1', 'HH IY1'],
    prediction='HH AY1',
    logprobs=[-0.1, -0.25, 0.0],
    statistics={'accuracy': [1.0, 1.0]},
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
  record = build(group='passage 3, question 7')
  assert record['aux']['group'] == 'passage 3, question 7'
  assert rows.parse(record, 'predict').group == 'passage 3, question 7'


def test_rounding_above_zero_is_cut_off():
  assert rows.parse(build(logprobs=[1e-6, -1, -1]), 'predict').logprobs[0] == 0


@pytest.mark.parametrize(
  ('record', 'reason'),
  [
    ([], "no 'inputs' in"),
    ({'inputs': {}}, "no 'aux' in"),
    (edited('inputs', 'text'), 'inputs must be a dict'),
    (edited('prediction', 3), 'prediction must be a str, found 3'),
    (edited('aux.id', 3), 'id must be a str, found 3'),
    (edited('aux.targets', []), 'one or more texts'),
    (edited('aux.targets', ['a', 1]), 'one or more texts'),
    (edited('aux.token_logprobs', [0, 0.5, 0]), '0.5 is no log-probability'),
    (edited('aux.token_logprobs', [-1, float('nan'), 0]), 'finite numbers'),
    (edited('aux.token_logprobs', [-1, True, 0]), 'finite numbers'),
    (edited('aux.token_logprobs', [-1, '0', 0]), 'finite numbers'),
    (edited('aux.token_logprobs', [-1.0]), 'equally many'),
    (edited('aux.tokens', [1, 2]), 'equally many'),
    (edited('aux.length', 2), 'equally many'),
    (edited('aux.length', 3.0), 'length must be a int'),
    (edited('aux.correct', [1]), 'equally many'),
    (edited('aux.statistics', [1]), 'statistics must be a dict'),
    (edited('aux.statistics', {'a': [float('inf')]}), 'a must hold finite numbers'),
    (edited('aux.statistics', {'a': 1}), 'a must be a list'),
    (edited('aux.group', 3), 'group must be a str, found 3'),
    (edited('aux.group', None), 'group must be a str, found None'),
  ],
)
def test_what_is_no_row_is_refused_with_the_reason(record, reason):
  with pytest.raises(ValueError, match=reason):
    rows.parse(record, 'predict')


@pytest.mark.parametrize(
  ('record', 'reason'),
  [
    (build(), "no 'score' in"),
    (edited('score', 'x', answer=-1.0), 'score must be a number'),
    (edited('aux.options', ['a'], answer=-1.0), "no 'option_scores'"),
    (build(answer=-1.0, options=['a', 'b'], option_scores=[-1]), '2 options have 1 scores'),
    (build(answer=-1.0, options=['a', 2], option_scores=[-1, -2]), 'options must be texts'),
    (
      build(answer=-1.0, options=['a'], option_scores=[-1], option_lengths=[2, 3]),
      r'option_lengths must be 1 counts of tokens, found \[2, 3\]',
    ),
    (
      build(answer=-1.0, options=['a', 'b'], option_scores=[-1, -1], option_lengths=[2, 0]),
      'option_lengths must be 2 counts of tokens',
    ),
  ],
)
def test_what_is_no_scored_row_is_refused_with_the_reason(record, reason):
  with pytest.raises(ValueError, match=reason):
    rows.parse(record, 'score')


def test_tokens_are_needed():
  record = build()
  del record['aux']['tokens']
  with pytest.raises(ValueError, match='equally many'):
    rows.parse(record, 'predict')
