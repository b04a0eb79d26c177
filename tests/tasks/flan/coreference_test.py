import json

import pytest

from cascades.tasks.flan import coreference, wording
from cascades.tasks.flan.definition import PromptFields
from cascades.tasks.sources import Sources
from tests.tasks.flan import sample_rows
from tests.tasks.flan.sample_rows import preprocess

TASKS = {task.name: task for task in coreference.TASKS}
WSC273 = coreference.WSC273
TEXT = 'Ann called Bo as she was late.'


def test_the_tasks_are_in_the_order_of_the_table():
  assert list(TASKS) == ['definite_pronoun_resolution', 'winogrande', 'wsc']


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_slices_of_the_published_splits_have_the_rows_of_the_table(task):
  assert sample_rows.slice_size(task, task.train) == task.rows
  assert sample_rows.slice_size(task, task.validation) == (50 if task.name == 'wsc' else 200)


@pytest.mark.parametrize(('label', 'index'), [(0, 0), (1, 1), ('1', 1)])
def test_a_pronoun_is_answered_by_one_of_two_candidates(label, index):
  assert preprocess(
    TASKS['definite_pronoun_resolution'],
    sentence=TEXT,
    pronoun='she',
    candidates=['Ann', 'Bo'],
    label=label,
  ) == [
    PromptFields(
      {'sentence': TEXT, 'pronoun': 'she'}, (('Ann', 'Bo')[index],), ('Ann', 'Bo'), index
    )
  ]


@pytest.mark.parametrize(('label', 'index'), [('1', 0), ('2', 1), (0, 0)])
def test_the_sentence_goes_on_after_its_blank_with_an_option(label, index):
  options = ("Ann's bus was late.", "Bo's bus was late.")
  assert preprocess(
    TASKS['winogrande'],
    sentence="Ann called Bo as _'s bus was late.",
    option1='Ann',
    option2='Bo',
    label=label,
  ) == [PromptFields({'context': 'Ann called Bo as'}, (options[index],), options, index)]


def test_a_sentence_without_a_label_has_no_answer():
  (fields,) = preprocess(TASKS['winogrande'], sentence='_ ran.', option1='A', option2='B', label=-1)
  assert fields == PromptFields({'context': ''}, (), ('A ran.', 'B ran.'), -1)


def test_a_sentence_without_a_blank_is_refused():
  with pytest.raises(ValueError, match='there is no blank'):
    preprocess(TASKS['winogrande'], sentence='Ann ran.', option1='A', option2='B', label='1')


@pytest.mark.parametrize(('label', 'index'), [(True, 1), (False, 0)])
def test_a_pronoun_stands_for_a_phrase_or_not(label, index):
  spans = {'span1_text': 'Ann', 'span1_index': 0, 'span2_text': 'she', 'span2_index': 4, 'idx': 3}
  assert preprocess(TASKS['wsc'], text=TEXT, **spans, label=label) == [
    PromptFields(
      {'text': TEXT, 'noun': 'Ann', 'pronoun': 'she'}, (('no', 'yes')[index],), ('no', 'yes'), index
    )
  ]


WINOGRAD = {
  'text': TEXT,
  'option1_normalized': 'Ann',
  'option2_normalized': 'Bo',
  'pronoun_start': 17,
  'pronoun_end': 20,
  'pronoun_text': 'she',
}


@pytest.mark.parametrize('label', [0, 1])
def test_a_text_goes_on_after_its_pronoun_with_an_option(label):
  options = ('Ann was late.', 'Bo was late.')
  assert preprocess(WSC273, **WINOGRAD, label=label) == [
    PromptFields({'context': 'Ann called Bo as'}, (options[label],), options, label)
  ]


def test_no_space_comes_between_an_option_and_the_full_stop():
  row = {**WINOGRAD, 'text': 'Ann called Bo. It was she.', 'pronoun_start': 22, 'pronoun_end': 25}
  (fields,) = preprocess(WSC273, **row, label=0)
  assert fields.options == ('Ann.', 'Bo.')


def test_a_pronoun_that_is_not_at_its_place_is_refused():
  with pytest.raises(ValueError, match="'he ' stands where 'she' should"):
    preprocess(WSC273, **{**WINOGRAD, 'pronoun_start': 18, 'pronoun_end': 21}, label=0)


@pytest.mark.parametrize(
  ('task', 'row'),
  [
    (WSC273, WINOGRAD),
    (TASKS['winogrande'], {'sentence': '_ ran.', 'option1': 'A', 'option2': 'B'}),
    (
      TASKS['definite_pronoun_resolution'],
      {'sentence': TEXT, 'pronoun': 'she', 'candidates': ['Ann', 'Bo']},
    ),
  ],
)
def test_a_label_outside_the_set_is_refused(task, row):
  with pytest.raises(ValueError, match=r'is none of|expected an index of'):
    preprocess(task, **row, label=2)


@pytest.mark.parametrize(
  ('task', 'split'),
  [
    (TASKS['definite_pronoun_resolution'], 'train'),
    (TASKS['winogrande'], 'train_xl'),
    (WSC273, 'test'),
  ],
)
def test_hand_written_rows_have_both_places_of_the_answer(task, split):
  rows = sample_rows.samples(task, split)
  assert {row.label for row in rows} == {0, 1}
  assert all(row.answers == (row.options[row.label],) for row in rows)


def test_a_hand_written_sentence_without_a_label_is_in_the_test_split():
  assert -1 in {row.label for row in sample_rows.samples(TASKS['winogrande'], 'test')}


@pytest.mark.parametrize(
  'task', [TASKS['definite_pronoun_resolution'], TASKS['winogrande'], WSC273]
)
def test_a_prompt_shows_the_texts_and_both_options(task):
  for fields, prompt in sample_rows.prompts(task):
    assert all(text in prompt for text in fields.texts.values())
    assert wording.options_text(fields.options) in prompt


def test_real_sentences_with_their_blank_filled(real_data):
  file = real_data / 'flan_tasks' / 'winogrande.official_validation.jsonl'
  rows = [json.loads(line) for line in file.read_text().split('\n') if line]
  assert len(rows) == TASKS['winogrande'].dataset.sizes['validation']
  for row in rows:
    first, second = row['options']
    (fields,) = preprocess(
      TASKS['winogrande'], sentence=row['input'], option1=first, option2=second, label=row['label']
    )
    assert f'{fields.texts["context"]} {fields.answers[0]}'.split() == (
      row['input'].replace('_', row['target']).split()
    )


def test_real_pronouns(real_data):
  task = TASKS['wsc']
  found = sample_rows.formed(task, task.train, Sources(real_data / 'superglue'))
  official = (real_data / 'superglue' / 'WSC' / 'train.jsonl').read_text().split('\n')
  assert len(found) == task.rows
  for fields, line in zip(found, official, strict=False):
    row = json.loads(line)
    assert fields.answers == ('yes' if row['label'] else 'no',)
    assert fields.texts == {
      'text': row['text'],
      'noun': row['target']['span1_text'],
      'pronoun': row['target']['span2_text'],
    }
