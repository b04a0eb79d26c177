import json
from collections import Counter

import pytest

from cascades.tasks.flan import common_sense, wording
from cascades.tasks.flan.definition import PromptFields
from cascades.tasks.sources import Sources
from tests.tasks.flan import sample_rows
from tests.tasks.flan.sample_rows import preprocess

TASKS = {task.name: task for task in common_sense.TASKS}
HELD_OUT = {'copa': 50, 'hellaswag': 200, 'story_cloze': 200, 'piqa': 100}


def test_the_tasks_are_in_the_order_of_the_table():
  assert list(TASKS) == list(HELD_OUT)


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_slices_of_the_published_splits_have_the_rows_of_the_table(task):
  assert sample_rows.slice_size(task, task.train) == task.rows
  assert sample_rows.slice_size(task, task.validation) == HELD_OUT[task.name]


@pytest.mark.parametrize(('label', 'index'), [('choice1', 0), ('choice2', 1), (1, 1)])
def test_a_cause_or_effect_is_answered_by_the_text_of_the_choice(label, index):
  row = {'premise': 'It rained.', 'question': 'effect', 'label': label, 'idx': 0}
  choices = ('Streets were wet.', 'Clouds came.')
  assert preprocess(TASKS['copa'], **row, choice1=choices[0], choice2=choices[1]) == [
    PromptFields({'premise': 'It rained.', 'question': 'effect'}, (choices[index],), choices, index)
  ]


@pytest.mark.parametrize(('label', 'index'), [(0, 0), (1, 1), ('1', 1)])
def test_a_goal_is_answered_by_the_text_of_the_solution(label, index):
  solutions = ('Wait.', 'Run.')
  assert preprocess(TASKS['piqa'], goal='Be late.', sol1='Wait.', sol2='Run.', label=label) == [
    PromptFields({'goal': 'Be late.'}, (solutions[index],), solutions, index)
  ]


def test_tags_of_how_to_articles_become_line_breaks_in_the_context_and_go_in_the_endings():
  endings = ['[substeps] Stir.', 'Wait. [title] Eat. [step] Chew.', 'No [tags]', '']
  assert preprocess(
    TASKS['hellaswag'],
    context='[header] How to cook [title] Begin. [step] Boil water.',
    endings=endings,
    label=1,
  ) == [
    PromptFields(
      {'context': 'How to cook\nBegin.\nBoil water.'},
      ('Wait. Eat. Chew.',),
      ('Stir.', 'Wait. Eat. Chew.', 'No', ''),
      1,
    )
  ]


@pytest.mark.parametrize('label', [-1, 4, 7])
def test_a_continuation_without_a_usable_label_is_left_out(label):
  assert (
    preprocess(TASKS['hellaswag'], context='He', endings=['a', 'b', 'c', 'd'], label=label) == []
  )


def test_a_label_that_names_no_ending_is_refused():
  with pytest.raises(ValueError, match='expected an index of 2 options'):
    preprocess(TASKS['hellaswag'], context='He', endings=['a', 'b'], label=3)


@pytest.mark.parametrize(
  ('label', 'answers', 'index'), [(1, ('Up.',), 0), (2, ('Down.',), 1), (-1, (), -1)]
)
def test_endings_of_a_story_are_counted_from_one(label, answers, index):
  assert preprocess(
    TASKS['story_cloze'], context='A. B.', endings=['Up.', 'Down.'], label=label
  ) == [PromptFields({'context': 'A. B.'}, answers, ('Up.', 'Down.'), index)]


@pytest.mark.parametrize('label', [0, 3, -2])
def test_an_ending_that_is_neither_of_the_two_is_refused(label):
  with pytest.raises(ValueError, match='neither ending 1 nor ending 2'):
    preprocess(TASKS['story_cloze'], context='A.', endings=['Up.', 'Down.'], label=label)


@pytest.mark.parametrize('name', ['hellaswag', 'story_cloze', 'piqa'])
def test_hand_written_rows_have_every_place_of_the_answer(name):
  task = TASKS[name]
  rows = sample_rows.samples(task, task.train.split('[')[0])
  assert {row.label for row in rows} == set(range(len(rows[0].options)))
  assert all(row.answers == (row.options[row.label],) for row in rows)


def test_one_hand_written_continuation_is_left_out_and_one_story_has_no_label():
  assert len(sample_rows.samples(TASKS['hellaswag'], 'train')) == 8  # of nine
  stories = {
    split: [row.label for row in sample_rows.samples(TASKS['story_cloze'], split)]
    for split in ('validation', 'test')
  }
  assert [split for split in stories if -1 in stories[split]] == ['test']


@pytest.mark.parametrize('name', ['hellaswag', 'story_cloze', 'piqa'])
def test_a_prompt_that_can_be_answered_shows_the_texts_and_all_options(name):
  for fields, prompt in sample_rows.prompts(TASKS[name]):
    assert all(text.strip() in prompt for text in fields.texts.values())
    assert wording.options_text(fields.options) in prompt


def test_the_reversed_wording_asks_for_the_goal_of_a_solution():
  fields = PromptFields({'goal': 'Be late.'}, ('Wait.',), ('Wait.', 'Run.'), 0)
  prompt, targets = wording.render(sample_rows.reversed_wording('piqa'), fields)
  assert 'Wait.' in prompt
  assert 'Be late.' not in prompt
  assert targets == ('Be late.',)


def test_real_causes_and_effects(real_data):
  task = TASKS['copa']
  found = sample_rows.formed(task, task.train, Sources(real_data / 'superglue'))
  official = (real_data / 'superglue' / 'COPA' / 'train.jsonl').read_text().split('\n')
  assert len(found) == task.rows
  for fields, line in zip(found, official, strict=False):
    row = json.loads(line)
    assert fields.answers == (row['choice2' if row['label'] else 'choice1'],)
    assert fields.texts == {'premise': row['premise'], 'question': row['question']}
  assert set(Counter(fields.texts['question'] for fields in found)) == {'cause', 'effect'}


def test_real_goals_have_their_solutions(real_data):
  file = real_data / 'flan_tasks' / 'piqa.official_validation.jsonl'
  rows = [json.loads(line) for line in file.read_text().split('\n') if line]
  assert len(rows) == TASKS['piqa'].dataset.sizes['validation']
  for row in rows:
    first, second = row['options']
    (fields,) = preprocess(
      TASKS['piqa'], goal=row['input'], sol1=first, sol2=second, label=row['label']
    )
    assert fields.answers == (row['target'],)
