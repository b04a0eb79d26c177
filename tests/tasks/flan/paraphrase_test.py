import pytest

from cascades.tasks.flan import paraphrase, wording
from cascades.tasks.flan.definition import PromptFields
from tests.tasks.flan import sample_rows
from tests.tasks.flan.sample_rows import preprocess

TASKS = {task.name: task for task in paraphrase.TASKS}
PAIR = {'sentence1': 'It rains.', 'sentence2': 'Rain falls.'}
SCALE = ('0', '1', '2', '3', '4', '5')


def test_the_tasks_are_in_the_order_of_the_table():
  assert list(TASKS) == ['glue_mrpc', 'glue_qqp', 'paws_wiki', 'stsb']


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_slices_of_the_published_splits_have_the_rows_of_the_table(task):
  assert sample_rows.slice_size(task, task.train) == task.rows
  assert sample_rows.slice_size(task, task.validation) == (100 if task.name == 'stsb' else 200)


@pytest.mark.parametrize(
  ('name', 'label', 'index'),
  [
    ('glue_mrpc', 'not_equivalent', 0),
    ('glue_mrpc', 'equivalent', 1),
    ('paws_wiki', 'different_meaning', 0),
    ('paws_wiki', 'paraphrase', 1),
  ],
)
def test_two_sentences_mean_the_same_or_not(name, label, index):
  expected = PromptFields(PAIR, (('no', 'yes')[index],), ('no', 'yes'), index)
  assert preprocess(TASKS[name], **PAIR, label=label) == [expected]
  assert preprocess(TASKS[name], **PAIR, label=index) == [expected]


def test_two_questions_are_duplicates_or_not():
  texts = {'question1': 'Why?', 'question2': 'How come?'}
  for label, answers, index in (
    ('not_duplicate', ('no',), 0),
    ('duplicate', ('yes',), 1),
    (-1, (), -1),
  ):
    assert preprocess(TASKS['glue_qqp'], **texts, label=label) == [
      PromptFields(texts, answers, ('no', 'yes'), index)
    ]


@pytest.mark.parametrize(
  ('similarity', 'answer'),
  [(0, '0'), (0.4, '0'), (0.5, '0'), (1.5, '2'), (2.5, '2'), (3.5, '4'), (4.75, '5'), (5.0, '5')],
)
def test_a_similarity_is_rounded_with_a_half_to_the_even_side(similarity, answer):
  assert preprocess(TASKS['stsb'], **PAIR, label=similarity) == [
    PromptFields(PAIR, (answer,), SCALE, int(answer))
  ]
  assert answer == f'{similarity:.0f}'  # C's printf, which TensorFlow's as_string follows


def test_a_similarity_of_minus_one_is_no_label():
  assert preprocess(TASKS['stsb'], **PAIR, label=-1.0) == [PromptFields(PAIR, (), SCALE, -1)]


@pytest.mark.parametrize('similarity', [-0.6, 5.2, 7, float('nan'), float('inf')])
def test_a_similarity_off_the_scale_is_refused(similarity):
  with pytest.raises(ValueError, match='not from 0 to 5'):
    preprocess(TASKS['stsb'], **PAIR, label=similarity)


@pytest.mark.parametrize('name', ['glue_mrpc', 'glue_qqp', 'paws_wiki'])
@pytest.mark.parametrize('label', ['maybe', 2, -2])
def test_a_label_outside_the_set_is_refused(name, label):
  row = dict.fromkeys(TASKS[name].dataset.features, 'Some text.')
  with pytest.raises(ValueError, match='is none of'):
    preprocess(TASKS[name], **{**row, 'label': label})


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_hand_written_rows_have_every_class(task):
  assert sample_rows.answers(task) == (set(SCALE) if task.name == 'stsb' else {'no', 'yes'})


@pytest.mark.parametrize('name', ['glue_qqp', 'stsb'])
def test_hand_written_rows_without_a_label_are_in_the_test_split_alone(name):
  labels = {
    split: [row.label for row in sample_rows.samples(TASKS[name], split)]
    for split in ('train', 'validation', 'test')
  }
  assert [split for split in labels if -1 in labels[split]] == ['test']


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_a_prompt_that_can_be_answered_shows_both_texts(task):
  for fields, prompt in sample_rows.prompts(task):
    assert all(text.strip() in prompt for text in fields.texts.values())


def test_the_reversed_wording_asks_for_a_pair_of_a_given_similarity():
  template = sample_rows.reversed_wording('stsb')
  prompt, targets = wording.render(template, PromptFields(PAIR, ('3',), SCALE, 3))
  assert '3' in prompt
  assert targets == ('It rains.\nRain falls.',)
