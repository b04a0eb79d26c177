"""Measures of repetition on planted answers: a rule that keeps loops is seen to keep them."""

import numpy as np
import pytest

from cascades.predictions import columns, rows
from experiments import repetition

LOOP, TEXT = [1, 2, 3, 4] * 10, list(range(100, 140))


def table(answers):
  """Table of (tokens, log-probabilities)."""
  built = [
    rows.PredictionRow(str(i), '', [''], '', list(logprobs), {}, tokens=tokens)
    for i, (tokens, logprobs) in enumerate(answers)
  ]
  manifest = {'task': 'planted', 'split': 'test', 'metrics': []}
  return columns.of_rows(built, manifest)


@pytest.fixture(scope='module')
def answers():
  """Ten loops, of likely repeats after an unlikely start, and ten texts in between."""
  random = np.random.default_rng(0)
  planted = []
  for _ in range(10):
    loop = np.where(repetition.occurrences(LOOP) > 0, -0.01, -3.0) - random.random(40) / 100
    planted += [(LOOP, loop), (TEXT, -1.0 - random.random(40) / 100)]
  verdicts = [(tokens, tokens is TEXT) for tokens, _ in planted]
  return repetition.collect([table(planted)], [verdicts])


def test_a_length_normalized_rule_keeps_loops_that_new_tokens_catch(answers):
  every = np.ones(20, bool)
  detected = repetition.detection(answers, answers.looping, every)
  assert answers.looping.tolist() == [True, False] * 10
  assert detected['average'].value == 0.0
  assert detected['new tokens'].value == detected['repeated share'].value == 1.0
  assert detected['length'].value == 0.5
  better = repetition.difference(answers, ('new tokens', 'average'), answers.wrong == 1, every)
  assert better.value == 1.0
  assert repetition.remaining(answers, 'average', 0.5) == 1.0
  assert repetition.remaining(answers, 'new tokens', 0.5) == 0.0


def test_confidence_rises_with_occurrences(answers):
  by_occurrence = repetition.confidence_by_occurrence(answers)
  assert by_occurrence[1].value == pytest.approx(-0.015, abs=0.01)
  assert by_occurrence[0].value < -1
  assert repetition.rise(answers).value == pytest.approx(2.99, abs=0.02)


def test_new_tokens_are_the_average_where_nothing_repeats(answers):
  texts = ~answers.looping
  np.testing.assert_allclose(answers.scores['new tokens'][texts], answers.scores['average'][texts])


@pytest.mark.parametrize(
  ('answer', 'right'),
  [('It is the Onion.', True), ('bulb onion, I think', True), ('Onionskin', False), ('', False)],
)
def test_an_alias_is_named_by_its_words(answer, right):
  assert repetition.names_an_alias(answer, ['Onion', 'Bulb onion']) is right


@pytest.mark.parametrize(
  ('answer', 'right'),
  [
    ('9 * 2 = $18.', True),
    ('so 1,800 / 100 = 18', True),
    ('18 is more than 17', False),
    ('', False),
  ],
)
def test_a_number_is_the_last_of_the_answer(answer, right):
  assert repetition.ends_with_the_number(answer, ['18']) is right


def test_the_figure_is_drawn(answers, tmp_path):
  repetition.draw(answers, tmp_path / 'figure.png')
  assert (tmp_path / 'figure.png').stat().st_size > 1000
