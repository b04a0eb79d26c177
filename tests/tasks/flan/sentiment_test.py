import gzip
import itertools
import json

import pytest

from cascades.tasks.flan import sentiment, wording
from cascades.tasks.flan.definition import PromptFields
from tests.tasks.flan import sample_rows
from tests.tasks.flan.sample_rows import preprocess

TASKS = {task.name: task for task in sentiment.TASKS}
OPTIONS = ('negative', 'positive')


def test_the_tasks_are_in_the_order_of_the_table():
  assert list(TASKS) == ['imdb_reviews', 'sentiment140', 'yelp_polarity_reviews', 'sst2']


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_slices_of_the_published_splits_have_the_rows_of_the_table(task):
  assert sample_rows.slice_size(task, task.train) == task.rows
  assert sample_rows.slice_size(task, task.validation) == 200


def test_tweets_are_sorted_by_class_where_they_are_published():
  assert [name for name, task in TASKS.items() if task.dataset.ordered] == ['sentiment140']


@pytest.mark.parametrize(
  ('name', 'text', 'labels'),
  [
    ('imdb_reviews', 'text', ('neg', 'pos')),
    ('yelp_polarity_reviews', 'text', ('1', '2')),
    ('sst2', 'sentence', ('negative', 'positive')),
  ],
)
def test_the_first_label_is_negative_and_the_second_positive(name, text, labels):
  for index, label in enumerate(labels):
    expected = [PromptFields({text: 'So it goes.'}, (OPTIONS[index],), OPTIONS, index)]
    assert preprocess(TASKS[name], **{text: 'So it goes.', 'label': label}) == expected
    assert preprocess(TASKS[name], **{text: 'So it goes.', 'label': index}) == expected
  (unlabeled,) = preprocess(TASKS[name], **{text: 'So it goes.', 'label': -1})
  assert (unlabeled.answers, unlabeled.label) == ((), -1)
  for label in ('meh', 2):
    with pytest.raises(ValueError, match='is none of'):
      preprocess(TASKS[name], **{text: 'So it goes.', 'label': label})


def test_line_breaks_of_html_become_line_breaks():
  (fields,) = preprocess(TASKS['imdb_reviews'], text='One.<br /><br />Two < 3.<br />', label='pos')
  assert fields.texts == {'text': 'One.\n\nTwo < 3.\n'}


def test_escapes_of_the_published_reviews_are_undone():
  (fields,) = preprocess(
    TASKS['yelp_polarity_reviews'], text=r'\""Fine,\"" I said.\n\nNot ""fine"" at all!', label='1'
  )
  assert fields.texts == {'text': '"Fine," I said.  Not "fine" at all!'}


@pytest.mark.parametrize(('polarity', 'index'), [(0, 0), (1, 0), (3, 1), (4, 1)])
def test_a_polarity_below_two_is_negative_and_one_above_it_positive(polarity, index):
  assert preprocess(TASKS['sentiment140'], text='@you :)', polarity=polarity) == [
    PromptFields({'text': '@you :)'}, (OPTIONS[index],), OPTIONS, index)
  ]


def test_a_neutral_tweet_is_left_out():
  assert preprocess(TASKS['sentiment140'], text='It is Monday.', polarity=2) == []


@pytest.mark.parametrize('polarity', [-1, 5])
def test_a_polarity_off_the_scale_is_refused(polarity):
  with pytest.raises(ValueError, match='not from 0 to 4'):
    preprocess(TASKS['sentiment140'], text='It is Monday.', polarity=polarity)


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_hand_written_rows_have_both_classes_and_no_escapes(task):
  assert sample_rows.answers(task) == set(OPTIONS)
  for row in sample_rows.samples(task, task.test):
    (text,) = row.texts.values()
    assert not any(escape in text for escape in ('<br', r'\n', '""'))


@pytest.mark.parametrize('name', ['imdb_reviews', 'yelp_polarity_reviews'])
def test_a_hand_written_review_is_over_long(name):
  longest = max(len(row.texts['text']) for row in sample_rows.samples(TASKS[name], 'train'))
  assert 2500 < longest < 3500


def test_neutral_tweets_are_among_the_hand_written_test_rows():
  counts = {
    split: len(sample_rows.samples(TASKS['sentiment140'], split)) for split in ('train', 'test')
  }
  assert counts == {'train': 8, 'test': 8}  # two more in the file's test rows


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_a_prompt_that_can_be_answered_shows_the_text_and_both_options(task):
  for fields, prompt in sample_rows.prompts(task):
    (text,) = fields.texts.values()
    assert text.strip() in prompt
    rest = prompt.replace(text.strip(), '')
    assert all(option in rest for option in OPTIONS)


@pytest.mark.parametrize('task', TASKS.values(), ids=TASKS)
def test_the_reversed_wording_asks_for_a_text_of_a_given_sentiment(task):
  template = sample_rows.reversed_wording(task.group)
  for fields in sample_rows.samples(task, task.train.split('[')[0]):
    prompt, targets = wording.render(template, fields)
    (text,) = fields.texts.values()
    assert fields.answers[0] in prompt
    assert targets == (text.strip(),)


def test_real_snippets_have_their_sentiments(real_data):
  file = real_data / 'flan_tasks' / 'sst2.validation.jsonl'
  rows = [json.loads(line) for line in file.read_text().split('\n') if line]
  assert len(rows) == TASKS['sst2'].dataset.sizes['validation']
  for row in rows:
    (fields,) = preprocess(TASKS['sst2'], sentence=row['input'], label=row['target'])
    assert fields.options == tuple(row['options'])
    assert fields.answers == (row['target'],)


def test_real_reviews_lose_their_html(real_data):
  with gzip.open(real_data / 'online_cascade' / 'imdb_test.jsonl.gz', 'rt') as stream:
    rows = [json.loads(line) for line in itertools.islice(stream, 2000)]
  for row in rows:
    (fields,) = preprocess(TASKS['imdb_reviews'], **row)
    assert '<br' not in fields.texts['text']
    assert fields.texts['text'].count('\n') == row['text'].count('<br />')
  assert sum(row['text'].count('<br />') for row in rows) > 1000
