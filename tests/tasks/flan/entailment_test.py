import json

import pytest

from cascades.tasks.flan import entailment, wording
from cascades.tasks.flan.definition import PromptFields
from cascades.tasks.sources import Sources
from tests.tasks.flan import sample_rows
from tests.tasks.flan.sample_rows import preprocess

TASKS = {task.name: task for task in entailment.TASKS}
ROUNDS = ('anli_r1', 'anli_r2', 'anli_r3')
MATCHED = ('mnli_matched', 'mnli_mismatched')
HELD_OUT = {'cb': 50, 'wnli': 30}
UNSURE = "It's impossible to say"
UNTOLD = 'it is not possible to tell'
OWN_SAMPLES = [name for name in TASKS if name not in ('cb', 'rte')]  # these are SuperGLUE's


def test_the_tasks_are_in_the_order_of_the_table():
  assert list(TASKS) == [*ROUNDS, 'cb', 'rte', *MATCHED, 'qnli', 'wnli', 'snli']


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_slices_of_the_published_splits_have_the_rows_of_the_table(task):
  assert sample_rows.slice_size(task, task.train) == task.rows
  assert sample_rows.slice_size(task, task.validation) == HELD_OUT.get(task.name, 200)


def test_rounds_share_their_wordings_and_so_do_matched_and_mismatched():
  assert [task.group for task in TASKS.values()] == [
    'anli',
    'anli',
    'anli',
    'cb',
    'rte',
    'mnli',
    'mnli',
    'qnli',
    'wnli',
    'snli',
  ]


@pytest.mark.parametrize(
  ('names', 'texts', 'answers'),
  [
    (ROUNDS, ('context', 'hypothesis'), {'e': 'Yes', 'n': UNSURE, 'c': 'No'}),
    (
      ('cb',),
      ('premise', 'hypothesis'),
      {'entailment': 'Yes', 'contradiction': 'No', 'neutral': UNSURE},
    ),
    (('rte',), ('premise', 'hypothesis'), {'entailment': 'yes', 'not_entailment': 'no'}),
    (
      (*MATCHED, 'snli'),
      ('premise', 'hypothesis'),
      {'entailment': 'yes', 'neutral': UNTOLD, 'contradiction': 'no'},
    ),
    (('qnli',), ('question', 'sentence'), {'entailment': 'yes', 'not_entailment': 'no'}),
    (('wnli',), ('sentence1', 'sentence2'), {'not_entailment': 'no', 'entailment': 'yes'}),
  ],
)
def test_labels_in_their_order_and_what_they_are_answered_by(names, texts, answers):
  fields = {text: f'The {text}.' for text in texts}
  options = tuple(answers.values())
  for name in names:
    assert TASKS[name].dataset.features['label'] == tuple(answers)
    for index, (label, answer) in enumerate(answers.items()):
      expected = [PromptFields(fields, (answer,), options, index)]
      assert preprocess(TASKS[name], **fields, idx=0, label=label) == expected
      assert preprocess(TASKS[name], **fields, idx=0, label=index) == expected
    for label in ('perhaps', len(answers)):
      with pytest.raises(ValueError, match='is none of'):
        preprocess(TASKS[name], **fields, idx=0, label=label)


def test_the_f1_of_cb_is_over_its_answers():
  (_, f1) = TASKS['cb'].metrics
  (fields,) = preprocess(TASKS['cb'], premise='A.', hypothesis='B.', idx=0, label=0)
  assert f1 == f'macro_f1[{"|".join(fields.options)}]'


@pytest.mark.parametrize('name', [*MATCHED, 'qnli', 'wnli', 'rte'])
def test_an_unlabeled_pair_has_no_answer(name):
  texts = dict.fromkeys((*TASKS[name].dataset.features, 'idx'), 'Some text.')
  (fields,) = preprocess(TASKS[name], **{**texts, 'label': -1, 'idx': 0})
  assert (fields.answers, fields.label) == ((), -1)


def test_a_pair_that_annotators_did_not_agree_on_is_left_out():
  assert preprocess(TASKS['snli'], premise='A man.', hypothesis='A tall man.', label=-1) == []


@pytest.mark.parametrize('name', OWN_SAMPLES)
def test_hand_written_rows_have_every_class(name):
  rows = sample_rows.samples(TASKS[name], 'train')
  assert sample_rows.answers(TASKS[name]) == set(rows[0].options)
  assert all(row.answers == (row.options[row.label],) for row in rows)


def test_hand_written_rows_without_a_label_are_left_out_or_in_test_splits_alone():
  assert len(sample_rows.samples(TASKS['snli'], 'train')) == 9  # of ten
  for name, split in (('mnli_matched', 'test_matched'), ('qnli', 'test'), ('wnli', 'test')):
    assert -1 in {row.label for row in sample_rows.samples(TASKS[name], split)}
    assert -1 not in {row.label for row in sample_rows.samples(TASKS[name], TASKS[name].test)}


@pytest.mark.parametrize('name', OWN_SAMPLES)
def test_a_prompt_that_can_be_answered_shows_both_texts_and_how_to_answer(name):
  for fields, prompt in sample_rows.prompts(TASKS[name]):
    assert all(text.strip() in prompt for text in fields.texts.values())
    assert all(option in prompt for option in fields.options)


@pytest.mark.parametrize(
  ('name', 'label'), [('mnli_matched', 'neutral'), ('qnli', 'entailment'), ('snli', 'neutral')]
)
def test_reversed_wordings_ask_for_a_pair_of_a_given_verdict(name, label):
  task = TASKS[name]
  texts = {key: f'The {key}.' for key in task.dataset.features if key != 'label'}
  (fields,) = preprocess(task, **texts, label=label)
  prompt, (target,) = wording.render(sample_rows.reversed_wording(task.group), fields)
  assert fields.answers[0] in prompt
  assert all(text in target and text not in prompt for text in texts.values())


@pytest.mark.parametrize(
  ('name', 'folder', 'answers'),
  [
    ('rte', 'RTE', {'entailment': 'yes', 'not_entailment': 'no'}),
    ('cb', 'CB', {'entailment': 'Yes', 'contradiction': 'No', 'neutral': UNSURE}),
  ],
)
def test_real_pairs_have_their_verdicts(real_data, name, folder, answers):
  task = TASKS[name]
  for part, file in ((task.train, 'train'), (task.test, 'val')):
    found = sample_rows.formed(task, part, Sources(real_data / 'superglue'))
    official = (real_data / 'superglue' / folder / f'{file}.jsonl').read_text().split('\n')
    assert len(found) == sample_rows.slice_size(task, part)
    for fields, line in zip(found, official, strict=False):
      row = json.loads(line)
      assert fields.answers == (answers[row['label']],)
      assert fields.texts == {'premise': row['premise'], 'hypothesis': row['hypothesis']}
