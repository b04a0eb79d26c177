import json

import pytest

from cascades.tasks import sources, superglue
from cascades.tasks.features import encode
from cascades.tasks.flan import reading_comprehension, wording
from cascades.tasks.flan.definition import PromptFields
from cascades.tasks.sources import Sources

TASKS = {task.name: task for task in reading_comprehension.TASKS}
SAMPLES = Sources(sample=True)


def formed(name, **fields):
  task = TASKS[name]
  return list(task.preprocess(encode(task.dataset.features, fields)))


def sampled(name, split='train'):
  task = TASKS[name]
  return list(
    sources.read(task.dataset, split, SAMPLES, lambda _, example: task.preprocess(example))
  )


def passage(**fields):
  texts = {'title': 'Old_Bridge_(Vell)', 'context': 'It took nine years.', 'question': 'How long?'}
  return texts | fields


def test_the_tasks_stand_in_the_tables_order():
  assert list(TASKS) == ['squad_v1', 'squad_v2', 'drop', 'multirc', 'openbookqa', 'bool_q']


def test_squad_teaches_the_first_answer_and_accepts_each_once():
  answers = {'text': ['nine years', 'nine', 'nine years'], 'answer_start': [8, 8, 8]}
  assert formed('squad_v1', **passage(answers=answers)) == [
    PromptFields(
      {'title': 'Old Bridge (Vell)', 'context': 'It took nine years.', 'question': 'How long?'},
      ('nine years', 'nine'),
    )
  ]


def test_a_question_without_answer_is_called_unanswerable():
  row = passage(answers={'text': []}, is_impossible=True)
  assert formed('squad_v2', **row)[0].answers == ('unanswerable',)
  row = passage(answers={'text': ['nine']}, is_impossible=False)
  assert formed('squad_v2', **row)[0].answers == ('nine',)


def test_drop_leaves_out_dates_without_a_day_whose_answer_tfds_leaves_empty():
  row = {'passage': 'It began in 1522.', 'question': 'In which year did it begin?'}
  assert formed('drop', **row, answer='1522') == [PromptFields(row, ('1522',))]
  assert formed('drop', **row, answer='') == []


def test_multirc_judges_one_response_and_drops_the_tags_of_older_files():
  row = {
    'paragraph': '<b>Sent 1: </b>Ann came.<br><b>Sent 2: </b>Bo left.<br>',
    'question': 'Who came?',
    'answer': 'Bo',
    'idx': {'paragraph': 3, 'question': 1, 'answer': 0},
  }
  texts = {
    'paragraph': 'Sent 1: Ann came. Sent 2: Bo left.',
    'question': 'Who came?',
    'response': 'Bo',
  }
  assert formed('multirc', **row, label=False) == [PromptFields(texts, ('no',), ('no', 'yes'), 0)]
  assert formed('multirc', **row, label='True') == [PromptFields(texts, ('yes',), ('no', 'yes'), 1)]
  assert formed('multirc', **row, label=-1) == [PromptFields(texts, (), ('no', 'yes'), -1)]


def test_openbookqa_chooses_among_four_texts():
  choices = {'choice_A': 'w', 'choice_B': 'x', 'choice_C': 'y', 'choice_D': 'z'}
  row = {'question': {'stem': 'Ice', **choices}, 'fact1': 'warmth melts ice'}
  for label, letter in enumerate('ABCD'):
    assert formed('openbookqa', **row, answerKey=letter) == [
      PromptFields(
        {'fact': 'warmth melts ice', 'question': 'Ice'},
        ('wxyz'[label],),
        ('w', 'x', 'y', 'z'),
        label,
      )
    ]
  with pytest.raises(ValueError, match="label 'E' of 'answerKey'"):
    formed('openbookqa', **row, answerKey='E')


def test_bool_q_says_yes_for_true():
  row = {'title': 'Quince', 'passage': 'A fruit.', 'question': 'is a quince a fruit'}
  assert formed('bool_q', **row, answer=True) == [PromptFields(row, ('yes',), ('no', 'yes'), 1)]
  assert formed('bool_q', **row, answer=False) == [PromptFields(row, ('no',), ('no', 'yes'), 0)]
  assert type(formed('bool_q', **row, answer=True)[0].label) is int


@pytest.mark.parametrize(
  ('name', 'rows', 'labels'),
  [
    ('squad_v1', 9, {None}),
    ('squad_v2', 10, {None}),
    ('drop', 9, {None}),  # of ten
    ('openbookqa', 9, {0, 1, 2, 3}),
    ('bool_q', 9, {0, 1}),
  ],
)
def test_hand_written_rows_have_every_class(name, rows, labels):
  found = sampled(name)
  assert len(found) == rows
  assert {fields.label for fields in found} == labels
  assert all(fields.answers and all(fields.answers) for fields in found)


def test_hand_written_passages_hold_their_answers_and_one_is_over_long():
  for name in ('squad_v1', 'squad_v2'):
    found = sampled(name)
    for fields in found:
      for answer in fields.answers:
        assert answer == 'unanswerable' or answer in fields.texts['context']
    assert max(len(fields.texts['context']) for fields in found) > 2500
  answers = {fields.answers for fields in sampled('squad_v2')}
  assert ('unanswerable',) in answers
  assert len(answers) > 1


@pytest.mark.parametrize('name', TASKS)
def test_every_template_words_every_hand_written_row(name):
  for template in wording.templates(TASKS[name].group):
    for fields in sampled(name):
      prompt, answers = wording.render(template, fields)
      assert prompt
      assert bool(answers) == bool(fields.answers)
      assert '<b' not in prompt


def test_real_multirc_rows_are_answered_by_their_label(real_data):
  file = real_data / 'superglue' / 'MultiRC' / 'val.jsonl'
  if not file.exists():
    pytest.skip(f'{file} is absent')
  task, parse = TASKS['multirc'], superglue.DATASETS['multirc'].parse
  targets = []
  for line in file.read_text().split('\n')[:20]:
    questions = json.loads(line)['passage']['questions']
    answers = [answer for question in questions for answer in question['answers']]
    examples = list(parse(json.loads(line)))
    for answer, example in zip(answers, examples, strict=True):
      (fields,) = task.preprocess(encode(task.dataset.features, example))
      assert fields.texts['response'] == answer['text'].strip()
      assert fields.answers == (('no', 'yes')[answer['label']],)
      targets += fields.answers
  assert min(targets.count('no'), targets.count('yes')) > 100


def test_real_openbookqa_rows_are_answered_by_their_target(real_data):
  file = real_data / 'flan_tasks' / 'openbookqa.test.jsonl'
  if not file.exists():
    pytest.skip(f'{file} is absent')
  rows = [json.loads(line) for line in file.read_text().split('\n') if line]
  assert len(rows) == TASKS['openbookqa'].dataset.sizes['test']
  for row in rows:
    choices = {
      f'choice_{letter}': text for letter, text in zip('ABCD', row['options'], strict=True)
    }
    (fields,) = formed(
      'openbookqa',
      question={'stem': row['input'], **choices},
      fact1='',
      answerKey='ABCD'[row['label']],
    )
    assert fields.answers == (row['target'],)
    assert fields.options == tuple(row['options'])


def test_real_bool_q_passages_are_formed(real_data):
  file = real_data / 'superglue' / 'BoolQ' / 'val.jsonl'
  if not file.exists():
    pytest.skip(f'{file} is absent')
  rows = [json.loads(line) for line in file.read_text().split('\n') if line]
  assert len(rows) == TASKS['bool_q'].dataset.sizes['validation']
  for row in rows[:500]:
    text = {'title': 'T', 'passage': row['passage'], 'question': row['question']}
    truth = row.get('label', row.get('answer'))
    (fields,) = formed('bool_q', **text, answer=truth)
    assert fields.answers == (('no', 'yes')[truth],)
    assert not fields.texts['question'].endswith('?')  # the templates add it
