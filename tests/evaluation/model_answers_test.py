"""Outcome matrices of tables of predictions: rows that some models lack, costs, and bad input."""

import json

import numpy as np
import pytest

from cascades.evaluation.model_answers import ModelAnswers
from cascades.predictions import rows, shards, sidecars
from tests import synthetic_tables


def record(index, right, **changes):
  return rows.build(**{
    'id': f'q{index}', 'inputs': f'question {index}', 'targets': ['yes'],
    'answer': 'yes' if right else 'no', 'tokens': [7, 7], 'logprobs': [-0.5, -0.5],
    'statistics': {'accuracy': [float(right), 1.0]},
    'details': rows.Details(columns={'prompt_tokens': 10.0 * (index + 1)}), **changes,
  })  # fmt: skip


def write(folder, model, records, **changes):
  directory = folder / model / 'validation'
  synthetic_tables.write(directory, 'a', records, **{'split': 'validation', 'shards': 1, **changes})
  return directory


@pytest.fixture
def tables(tmp_path):
  """Tables of two models, of which the large one has not answered row 1."""
  write(tmp_path, 'small', [record(i, i == 0) for i in range(3)], flops_per_token=2.0)
  write(tmp_path, 'large', [record(i, True) for i in (2, 0)], flops_per_token=8.0)
  return {name: str(tmp_path / name) for name in ('small', 'large')}


def test_rows_that_a_model_lacks_are_missing_and_costs_are_those_of_its_rows(tables):
  matrix = ModelAnswers(tables=tables).read(with_prompts=True)
  assert matrix.ids == ('a/q0', 'a/q1', 'a/q2')
  assert matrix.prompts == ('question 0', 'question 1', 'question 2')
  assert matrix.models == ('small', 'large')
  np.testing.assert_array_equal(matrix.quality, [[1, 1], [0, np.nan], [0, 1]])
  assert matrix.cost.tolist() == [2, 8]
  flops = ModelAnswers(tables=tables, axis='flops').read()
  assert flops.cost.tolist() == [2 * (20 + 2), 8 * (20 + 2)]
  prices = {name: {'prompt': 1.0, 'generated': 3.0} for name in tables}
  dollars = ModelAnswers(tables=tables, axis='dollars', dollars=prices).read()
  assert dollars.cost.tolist() == [26, 26]
  given = ModelAnswers(tables=tables, costs={'small': 1, 'large': 5}).read()
  assert given.cost.tolist() == [1, 5]


def test_a_metric_is_a_share_of_its_scale(tmp_path):
  pair = [record(0, True), record(1, False)]
  write(tmp_path, 'm', pair)
  judged = ModelAnswers(tables={'m': str(tmp_path / 'm')}, metric='exact_match').read()
  assert judged.quality[:, 0].tolist() == [1, 0]


def test_vectors_are_those_of_the_sidecars(tables, tmp_path):
  for model, encoder in (('small', 'e'), ('large', 'e')):
    directory = tmp_path / model / 'validation'
    (table,) = shards.read(directory)
    vectors = np.array([[float(name[1:]), 1.0] for name in table.ids], np.float32)
    sidecars.write(directory, 'prompt', table, vectors, origin={'encoder': encoder})
  by_id, encoder = ModelAnswers(tables=tables).vectors()
  assert encoder == 'e'
  assert {name: v.tolist() for name, v in by_id.items()} == {f'a/q{i}': [i, 1] for i in range(3)}


@pytest.mark.parametrize(
  ('change', 'arguments', 'sentence'),
  [
    ({}, {'tables': None}, 'OUTCOMES and COSTS are needed, or TABLES'),
    ({}, {'outcomes': 'o.csv'}, 'not both'),
    ({}, {'axis': 'dollars'}, 'have no dollars'),
    ({}, {'split': 'test'}, 'test'),
    ({}, {'metric': 'perplexity'}, 'perplexity'),
    ({'inputs': 'another question'}, {}, "the prompt or the targets of 'a/q0' are not those"),
    ({'targets': ['maybe']}, {}, "the prompt or the targets of 'a/q0' are not those"),
    ({'inputs': ''}, {}, "the prompt or the targets of 'a/q0' are not those"),
  ],
)  # fmt: skip
def test_what_is_no_matrix_is_refused(tables, tmp_path, change, arguments, sentence):
  if change:
    write(tmp_path, 'large', [record(0, True, **change)])
  with pytest.raises((ValueError, OSError), match=sentence):
    ModelAnswers(**{'tables': tables, **arguments}).read(with_prompts=True)


def test_rows_without_targets_are_refused(tables, tmp_path):
  write(tmp_path, 'large', [record(0, True)], unlabelled=1)
  with pytest.raises(ValueError, match=r'1 of 1 rows of task .* no target'):
    ModelAnswers(tables=tables).read()


def test_tables_without_prompts_or_vectors_are_refused(tables, tmp_path):
  for model in tables:
    write(tmp_path, model, [record(0, True, inputs='')])
  with pytest.raises(ValueError, match='1 of 1 rows have no prompts to route by'):
    ModelAnswers(tables=tables).read(with_prompts=True)
  with pytest.raises(FileNotFoundError):
    ModelAnswers(tables=tables).vectors()
  with pytest.raises(ValueError, match='found no table: embed all prompts by one'):
    ModelAnswers().vectors()


def test_costs_are_needed_for_outcomes(tmp_path):
  (tmp_path / 'o.jsonl').write_text(json.dumps({'id': 'p', 'quality': {'m': 1}}) + '\n')
  with pytest.raises(ValueError, match='give the cost of each model'):
    ModelAnswers(outcomes=str(tmp_path / 'o.jsonl')).read()
