import json

import pytest

from cascades.tasks import features, sources
from cascades.tasks.flan import summarization, wording
from cascades.tasks.flan.definition import PromptFields

TASKS = {task.name: task for task in summarization.TASKS}
CUT = ('train[:-600]', 'train[-600:-500]', 'train[-500:]')
SLICES = {
  'aeslc': ('train', 'validation[-200:]', 'test', 14_436),
  'cnn_dailymail': ('train[:30000]', 'validation[:200]', 'test', 30_000),
  'gigaword': ('train[:30000]', 'validation[:200]', 'test', 30_000),
  'multi_news': ('train[:30000]', 'validation[:200]', 'test', 30_000),
  'newsroom': ('train[:30000]', 'validation[:200]', 'test', 30_000),
  'samsum': ('train', 'validation[:200]', 'test', 14_732),
  'xsum': ('train[:30000]', 'validation[:200]', 'test', 30_000),
  'ag_news_subset': ('train[:30000]', 'train[-200:]', 'test', 30_000),
  'opinion_abstracts_rotten_tomatoes': (*CUT, 3131),
  'opinion_abstracts_idebate': (*CUT, 1659),
  'wiki_lingua_english_en': ('train[:30000]', 'validation[:200]', 'test', 30_000),
}
DROPPED = {
  'aeslc': 2,
  'gigaword': 3,
  'opinion_abstracts_rotten_tomatoes': 1,
  'opinion_abstracts_idebate': 1,
}


def samples(name, split):
  everything = sources.Sources(sample=True)
  return list(sources.read(TASKS[name].dataset, split, everything, lambda _, example: [example]))


def formed(name, **example):
  return list(TASKS[name].preprocess(example))


def test_slices_and_rows_are_those_of_the_table_in_its_order():
  found = {t.name: (t.train, t.validation, t.test, t.rows) for t in summarization.TASKS}
  assert found == SLICES
  assert list(found) == list(SLICES)


@pytest.mark.parametrize('name', [name for name, task in TASKS.items() if task.rows < 30_000])
def test_the_rows_of_a_small_slice_follow_from_the_published_split(name):
  task = TASKS[name]
  split, start, stop = sources.parse_slice(task.train)
  assert len(range(task.dataset.sizes[split])[start:stop]) == task.rows


@pytest.mark.parametrize('name', TASKS)
def test_every_sample_row_forms_or_is_left_out_by_rule(name):
  examples = samples(name, 'train')
  rows = [row for example in examples for row in TASKS[name].preprocess(example)]
  assert len(rows) == len(examples) - DROPPED.get(name, 0) >= 8
  for row in rows:
    assert len(row.answers) == 1
    assert row.answers[0].strip()


@pytest.mark.parametrize('name', ['cnn_dailymail', 'multi_news', 'newsroom', 'xsum'])
def test_one_sample_row_is_longer_than_most_models_read(name):
  lengths = [max(map(len, example.values())) for example in samples(name, 'train')]
  assert sum(length > 2500 for length in lengths) == 1


def test_an_email_is_one_line_without_the_line_ends_of_its_file():
  fields = formed('aeslc', email_body='Hi,\n\nwe moved.\n', subject_line='New office\n')
  assert fields == [PromptFields({'body': 'Hi,  we moved.'}, ('New office',))]


@pytest.mark.parametrize(('body', 'subject'), [('\n', 'a\n'), ('a\n', '\n'), ('', '')])
def test_an_email_without_text_or_subject_is_left_out(body, subject):
  assert formed('aeslc', email_body=body, subject_line=subject) == []


def test_a_headline_is_kept_as_it_is():
  fields = formed('gigaword', document='oil fell .', summary='oil falls')
  assert fields == [PromptFields({'document': 'oil fell .'}, ('oil falls',))]


@pytest.mark.parametrize(
  ('document', 'summary'), [('UNK fell', 'oil'), ('oil', 'UNK'), ('#.# percent', 'oil'), ('a', '#')]
)
def test_a_headline_with_a_mask_is_left_out(document, summary):
  assert formed('gigaword', document=document, summary=summary) == []


def test_a_chat_loses_its_attachments_but_not_its_hearts():
  dialogue = 'A: <file_photo>\r\nB: I <3 it > yours\r\nA: <file_gif> see'
  fields = formed('samsum', dialogue=dialogue, summary='B loves it.')
  assert fields == [
    PromptFields({'dialogue': 'A:  \nB: I <3 it > yours\nA:   see'}, ('B loves it.',))
  ]


@pytest.mark.parametrize(
  ('label', 'answers'),
  [(0, ('World',)), (1, ('Sports',)), (2, ('Business',)), (3, ('Science/Tech',)), (-1, ())],
)
def test_a_news_items_section_is_the_option_of_its_label(label, answers):
  (fields,) = formed('ag_news_subset', title='T', description='D', label=label)
  options = ('World', 'Sports', 'Business', 'Science/Tech')
  assert fields == PromptFields({'title': 'T', 'description': 'D'}, answers, options, label)


def test_a_label_outside_the_sections_is_an_error():
  with pytest.raises(ValueError, match='the label is 4'):
    formed('ag_news_subset', title='T', description='D', label=4)


def test_samples_have_every_section_and_an_unlabeled_row_that_is_not_trained_on():
  labels = [example['label'] for example in samples('ag_news_subset', 'train')]
  assert set(labels) == {0, 1, 2, 3}
  assert -1 in [example['label'] for example in samples('ag_news_subset', 'test')]


def test_real_news_items_have_the_section_that_their_label_names(real_data):
  lines = (real_data / 'flan_tasks' / 'ag_news.official_test.jsonl').read_text().split('\n')
  items = [json.loads(line) for line in lines if line]
  assert len(items) == 7600
  dataset = TASKS['ag_news_subset'].dataset
  assert dataset.sizes['test'] == 7600
  for item in items:
    title, _, description = item['input'].partition('. ')
    label = item['target'].replace('Science/Technology', 'Sci/Tech')
    example = {'title': title, 'description': description, 'label': label}
    (fields,) = formed('ag_news_subset', **features.encode(dataset.features, example))
    assert item['options'][fields.label] == item['target']
    assert item['target'].startswith(fields.answers[0])


def test_reviews_are_numbered_and_no_more_than_ten():
  reviews = [f'r{i}' for i in range(12)]
  (fields,) = formed(
    'opinion_abstracts_rotten_tomatoes',
    _movie_name='the_last_act',
    _critic_consensus='Good.',
    _critics={'value': reviews},
  )
  assert fields.texts['movie'] == 'the last act'
  assert fields.texts['first_review'] == 'r0'
  assert fields.texts['reviews'].split('\n') == [f'{i + 1}. r{i}' for i in range(10)]
  assert fields.answers == ('Good.',)


def test_arguments_are_numbered_and_no_more_than_ten():
  (fields,) = formed(
    'opinion_abstracts_idebate',
    _debate_name='This House would nap',
    _claim='Naps help.',
    _argument_sentences={'value': list('abcdefghijkl')},
  )
  assert fields.texts['debate'] == 'This House would nap'
  assert fields.texts['arguments'].startswith('1. a\n2. b\n')
  assert fields.texts['arguments'].endswith('\n10. j')
  assert fields.answers == ('Naps help.',)


def test_a_film_or_claim_of_which_nothing_is_said_is_left_out():
  none = {'value': []}
  film = {'_movie_name': 'm', '_critic_consensus': 'c', '_critics': none}
  assert formed('opinion_abstracts_rotten_tomatoes', **film) == []
  claim = {'_debate_name': 'd', '_claim': 'c', '_argument_sentences': none}
  assert formed('opinion_abstracts_idebate', **claim) == []


def test_a_headline_is_a_field_of_its_own_beside_the_article():
  (fields,) = formed('newsroom', title='T', text='A.\n"B."', summary='S')
  assert fields == PromptFields({'title': 'T', 'text': 'A.\n"B."'}, ('S',))


@pytest.mark.parametrize('name', TASKS)
def test_no_prompt_that_can_be_answered_shows_the_summary(name):
  if TASKS[name].metrics == ('accuracy',):
    return
  for template in wording.templates(TASKS[name].group):
    texts = dict.fromkeys(template.fields, 'text')
    prompt, (target,) = wording.render(template, PromptFields(texts, ('SUMMARY',)))
    if template.answerable:
      assert 'SUMMARY' not in prompt
      assert target == 'SUMMARY'


@pytest.mark.parametrize(('split', 'file'), [('train', 'train'), ('validation', 'dev')])
def test_newsrooms_official_files_are_read_as_they_are(tmp_path, split, file):
  row = {'title': 'T', 'text': 'A', 'summary': 'S', 'archive': 'dropped', 'density': 1.5}
  (tmp_path / 'newsroom').mkdir()
  (tmp_path / 'newsroom' / f'{file}.jsonl').write_text(json.dumps(row) + '\n')
  task = TASKS['newsroom']
  where = sources.Sources(tmp_path)
  rows = list(sources.read(task.dataset, f'{split}[:1]', where, lambda _, ex: task.preprocess(ex)))
  assert rows == [PromptFields({'title': 'T', 'text': 'A'}, ('S',))]
