"""Outcome matrices of files: what is missing stays missing, and what is wrong is named."""

import gzip
import json

import numpy as np
import pytest

from cascades.predictions import outcomes
from tests import real_data

CSV = 'id,small,large\na,0,1\nb,,0.5\n'


def write(folder, name, text):
  path = folder / name
  path.write_bytes(gzip.compress(text.encode()) if name.endswith('.gz') else text.encode())
  return path


@pytest.mark.parametrize('name', ['o.csv', 'o.csv.gz'])
def test_an_empty_cell_is_no_answer(tmp_path, name):
  path = write(tmp_path, name, CSV)
  prompts = write(tmp_path, 'p.jsonl', '{"id": "b", "text": "B"}\n{"id": "a", "prompt": "A"}\n')
  costs = write(tmp_path, 'c.csv', 'model,cost\nlarge,3\nsmall,1e-1\nother,x\n')
  matrix = outcomes.read(path, prompts=prompts, costs=costs)
  assert matrix[:3] == (('a', 'b'), ('A', 'B'), ('small', 'large'))
  np.testing.assert_array_equal(matrix.quality, [[0, 1], [np.nan, 0.5]])
  np.testing.assert_array_equal(matrix.losses, [[1, 0], [np.nan, 0.5]])
  np.testing.assert_array_equal(matrix.cost, [0.1, 3])
  own = matrix.select(np.array([1]), [1])
  assert own[:3] == (('b',), ('B',), ('large',))
  assert (own.quality.tolist(), own.cost.tolist()) == ([[0.5]], [3.0])


def test_json_lines_give_the_same_matrix_with_their_prompts(tmp_path):
  lines = [
    {'id': 'a', 'prompt': 'A', 'quality': {'small': 0, 'large': 1}},
    {'id': 'b', 'prompt': 'B', 'quality': {'large': 0.5}},
  ]
  path = write(tmp_path, 'o.jsonl', '\n'.join(map(json.dumps, lines)))
  matrix = outcomes.read(path, costs={'small': 1, 'large': 2})
  assert matrix.prompts == ('A', 'B')
  np.testing.assert_array_equal(matrix.quality, [[0, 1], [np.nan, 0.5]])


@pytest.mark.parametrize(
  ('text', 'costs', 'sentence'),
  [
    ('id,a\nx,2\n', {'a': 1}, "line 2: the quality of model 'a' is '2'; expected a number from 0"),
    ('id,a\nx,nan\n', {'a': 1}, "'nan'; expected a number from 0 to 1, or nothing where it did"),
    ('id,a\nx,1\nx,0\n', {'a': 1}, "line 3: the id 'x' stands in another line too"),
    ('id,a,b\nx,1,\n', {'a': 1, 'b': 1}, "model 'b' has no answer; leave its column out"),
    ('name,a\nx,1\n', {'a': 1}, 'line 2: no `id`; expected one in every line'),
    ('id\nx\n', {}, 'holds no outcome: expected a column of qualities for each model'),
    ('id,a\nx,1\n', {'b': 1}, "1 of 1 models have no cost, such as 'a': give the costs of all"),
    ('id,a\nx,1\n', {'a': -1}, "Model 'a' costs -1; a cost is a finite number of 0 or more"),
    ('id,a\nx,1\n', {'a': 'dear'}, "Model 'a' costs 'dear'; a cost is a finite number"),
    ('id,a,a\nx,1,1\n', {'a': 1}, "names the column 'a' twice"),
  ],
)
def test_a_file_that_is_no_matrix_is_refused_by_line_and_model(tmp_path, text, costs, sentence):
  path = write(tmp_path, 'o.csv', text)
  with pytest.raises(ValueError, match=sentence):
    outcomes.read(path, costs=costs)


def test_prompts_that_are_absent_are_counted(tmp_path):
  path, prompts = write(tmp_path, 'o.csv', CSV), write(tmp_path, 'p.jsonl', '{"id":"a","text":"A"}')
  with pytest.raises(ValueError, match=r"has no prompt of 1 of 2 rows of .*, such as 'b'"):
    outcomes.read(path, prompts=prompts, costs={'small': 1, 'large': 1})
  write(tmp_path, 'p.jsonl', '{"id": "a"}')
  with pytest.raises(ValueError, match='line 1: expected `id` and `prompt`'):
    outcomes.read(path, prompts=prompts, costs={'small': 1, 'large': 1})


def test_a_real_matrix_has_its_models_and_its_gaps():
  folder = real_data.real('routing_css')
  names = (folder / 'models.csv').read_text().splitlines()[1:]
  costs = {line.split(',')[0]: 1.0 for line in names}
  matrix = outcomes.read(folder / 'scores.csv.gz', prompts=folder / 'prompts.jsonl.gz', costs=costs)
  assert matrix.quality.shape == (6202, 13)
  scored = {line.split(',')[0]: int(line.split(',')[2]) for line in names}
  counted = np.isfinite(matrix.quality).sum(axis=0).tolist()
  assert dict(zip(matrix.models, counted, strict=True)) == scored
