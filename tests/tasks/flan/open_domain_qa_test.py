import json

import pytest

from cascades.tasks import sources
from cascades.tasks.features import encode
from cascades.tasks.flan import open_domain_qa, wording
from cascades.tasks.flan.definition import PromptFields
from cascades.tasks.sources import Sources

TASKS = {task.name: task for task in open_domain_qa.TASKS}
SAMPLES = Sources(sample=True)


def formed(name, **fields):
  task = TASKS[name]
  return list(task.preprocess(encode(task.dataset.features, fields)))


def sampled(name, split='train'):
  task = TASKS[name]
  return list(
    sources.read(task.dataset, split, SAMPLES, lambda _, example: task.preprocess(example))
  )


def real_rows(real_data, name):
  file = real_data / 'flan_tasks' / f'{name}.jsonl'
  if not file.exists():
    pytest.skip(f'{file} is absent')
  return [json.loads(line) for line in file.read_text().split('\n') if line]


def test_the_tasks_stand_in_the_tables_order_and_arc_shares_its_templates():
  assert list(TASKS) == ['trivia_qa', 'natural_questions', 'arc_challenge', 'arc_easy']
  groups = [task.group for task in TASKS.values()]
  assert groups == ['trivia_qa', 'natural_questions', 'arc', 'arc']


def test_trivia_qa_teaches_the_value_and_accepts_its_aliases():
  answer = {'normalized_value': '4', 'normalized_aliases': ['four', '4', '4 strings']}
  assert formed('trivia_qa', question='How many?', answer=answer) == [
    PromptFields({'question': 'How many?'}, ('4', 'four', '4 strings'))
  ]


def test_trivia_qas_test_questions_have_no_answer():
  answer = {'normalized_value': '<unk>', 'normalized_aliases': []}
  assert formed('trivia_qa', question='Who?', answer=answer) == [
    PromptFields({'question': 'Who?'}, ())
  ]
  assert sum(not fields.answers for fields in sampled('trivia_qa', 'test')) == 1
  assert all(fields.answers for fields in sampled('trivia_qa'))


@pytest.mark.parametrize(
  'question', ['who sang it', 'who sang it?', 'who sang it ?', 'who sang it??']
)
def test_a_natural_question_ends_with_one_mark(question):
  assert formed('natural_questions', question=question, answer=['Ann', 'Ann Lo', 'Ann']) == [
    PromptFields({'question': 'who sang it?'}, ('Ann', 'Ann Lo'))
  ]


def test_no_template_doubles_the_mark_of_a_natural_question():
  for template in wording.templates('natural_questions'):
    assert '{question}?' not in template.inputs + template.targets


@pytest.mark.parametrize('name', ['arc_challenge', 'arc_easy'])
def test_arc_chooses_by_letter(name):
  choices = {'text': ['w', 'x', 'y', 'z'], 'label': ['A', 'B', 'C', 'D']}
  for label, letter in enumerate('ABCD'):
    assert formed(name, question='Q?', choices=choices, answerKey=letter) == [
      PromptFields({'question': 'Q?'}, ('wxyz'[label],), ('w', 'x', 'y', 'z'), label)
    ]


@pytest.mark.parametrize('name', ['arc_challenge', 'arc_easy'])
def test_arc_leaves_out_rows_without_four_choices(name):
  for texts in ('xyz', 'vwxyz'):
    assert formed(name, question='Q?', choices={'text': list(texts)}, answerKey='A') == []


def test_a_letter_beyond_the_choices_is_an_error():
  choices = {'text': ['w', 'x', 'y', 'z']}
  with pytest.raises(ValueError, match='label is 4, expected an index of 4 options'):
    formed('arc_easy', question='Q?', choices=choices, answerKey='E')
  with pytest.raises(ValueError, match="label '1' of 'answerKey'"):
    formed('arc_easy', question='Q?', choices=choices, answerKey='1')


@pytest.mark.parametrize(
  ('name', 'rows', 'labels'),
  [
    ('trivia_qa', 9, {None}),  # of ten, one is for the test split
    ('natural_questions', 9, {None}),
    ('arc_challenge', 7, {0, 1, 2, 3}),  # of nine
    ('arc_easy', 7, {0, 1, 2, 3}),  # of nine
  ],
)
def test_hand_written_rows_have_every_class(name, rows, labels):
  found = sampled(name)
  assert len(found) == rows
  assert {fields.label for fields in found} == labels


@pytest.mark.parametrize('name', TASKS)
def test_every_template_words_every_hand_written_row(name):
  for template in wording.templates(TASKS[name].group):
    for fields in sampled(name, 'test' if 'test' in TASKS[name].dataset.sizes else 'train'):
      prompt, answers = wording.render(template, fields)
      assert prompt
      assert bool(answers) == bool(fields.answers)


@pytest.mark.parametrize(
  ('name', 'split', 'kept'),
  [
    ('arc_challenge', 'train', 1117),
    ('arc_challenge', 'test', 1165),
    ('arc_easy', 'train', 2241),
    ('arc_easy', 'test', 2365),
  ],
)
def test_real_arc_rows_are_answered_by_their_target(real_data, name, split, kept):
  rows = real_rows(real_data, f'{name}.{split}')
  assert len(rows) == TASKS[name].dataset.sizes[split]
  count = 0
  for row in rows:
    key = 'ABCDE'[row['label']]
    found = formed(name, question=row['input'], choices={'text': row['options']}, answerKey=key)
    assert len(found) == (len(row['options']) == 4)
    assert all(fields.answers == (row['target'],) for fields in found)
    count += len(found)
  assert count == kept


def test_real_trivia_questions_accept_every_alias_once(real_data):
  for row in real_rows(real_data, 'triviaqa_small.eval'):
    answer = {'normalized_value': row['target'], 'normalized_aliases': row['aliases']}
    (fields,) = formed('trivia_qa', question=row['input'], answer=answer)
    assert fields.answers[0] == row['target']
    assert sorted(fields.answers) == sorted({row['target'], *row['aliases']})
