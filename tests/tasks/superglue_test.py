import json

import pytest

from cascades.tasks import superglue
from cascades.tasks.sources import Sources


def rows(config, folder, split):
  return list(superglue.task(config, Sources(folder)).rows(split))


def test_a_passage_and_question_in_t5s_words(hand_written):
  row = rows('boolq', hand_written, 'train')[0]
  assert row.id == 'boolq/train/0'
  assert row.inputs == (
    'boolq passage: Tea -- Tea is a drink prepared by pouring hot water over the leaves of a '
    'shrub. It is drunk in many countries. question: is tea made from leaves'
  )
  assert row.answers == ('True',)
  assert (row.options, row.label) == (('False', 'True'), 1)


def test_a_premise_and_hypothesis_in_t5s_words(hand_written):
  row = rows('rte', hand_written, 'train')[1]
  assert row.id == 'rte/train/1'
  assert row.inputs == (
    'rte hypothesis: The bakery sells shoes. premise: The bakery on the corner closed in May '
    'after forty years.'
  )
  assert row.answers == ('not_entailment',)
  assert (row.options, row.label) == (('entailment', 'not_entailment'), 1)


@pytest.mark.parametrize('config', ['boolq', 'rte'])
@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_every_hand_written_row_is_formatted(hand_written, config, split):
  name = superglue.CONFIGS[config].folder
  file = hand_written / name / ('val.jsonl' if split == 'validation' else f'{split}.jsonl')
  examples = [json.loads(line) for line in file.read_text().split('\n') if line]
  found = rows(config, hand_written, split)
  assert len(found) == len(examples)
  for row, example in zip(found, examples, strict=True):
    first, second = superglue.CONFIGS[config].fields
    assert row.inputs == f'{config} {first}: {example[first]} {second}: {example[second]}'
    assert row.targets == str(example.get('label', ''))


def test_unlabelled_rows_have_no_answer_and_label_minus_one(hand_written):
  for config in ('boolq', 'rte'):
    for row in rows(config, hand_written, 'test'):
      assert (row.answers, row.targets, row.label) == ((), '', -1)
      assert row.options == superglue.CONFIGS[config].labels


@pytest.mark.parametrize(
  ('label', 'target'),
  [(True, 'True'), (False, 'False'), (1, 'True'), (0, 'False'), ('True', 'True'), (-1, '')],
)
def test_files_and_tfds_write_labels_differently_and_mean_the_same(label, target):
  example = {'passage': 'p', 'question': 'q', 'idx': 3, 'label': label}
  assert superglue.form('boolq', 'train', example).targets == target


def test_the_first_release_of_boolq_calls_the_label_answer():
  example = {'passage': 'p', 'question': 'q', 'idx': 3, 'answer': True}
  assert superglue.form('boolq', 'train', example).targets == 'True'


@pytest.mark.parametrize('label', ['maybe', 2, -2, 1.5, None])
def test_a_label_outside_the_set_is_named(label):
  example = {'premise': 'p', 'hypothesis': 'h', 'idx': 3, 'label': label}
  with pytest.raises(ValueError, match='is none of'):
    superglue.form('rte', 'train', example)


@pytest.mark.parametrize('example', [{'premise': 'p'}, {'premise': 'p', 'hypothesis': 5}])
def test_a_missing_field_is_named(example):
  with pytest.raises(ValueError, match='hypothesis'):
    superglue.form('rte', 'train', example)


def test_texts_are_not_touched():
  example = {'passage': ' two  spaces\nline ', 'question': 'q\u2028', 'idx': 0, 'label': 0}
  row = superglue.form('boolq', 'train', example)
  assert row.inputs == 'boolq passage:  two  spaces\nline  question: q\u2028'


def test_the_named_tasks_take_their_places_one_by_one(hand_written):
  boolq, rte = superglue.boolq(str(hand_written)), superglue.rte(str(hand_written))
  assert (boolq.name, rte.name) == ('superglue_boolq', 'superglue_rte')
  assert next(boolq.rows('validation')).id == 'boolq/validation/0'
  assert boolq.metrics == rte.metrics == ('accuracy',)
  assert boolq.fingerprint('train') != boolq.fingerprint('validation')


@pytest.mark.parametrize(
  ('config', 'split', 'count', 'labels'),
  [
    ('boolq', 'validation', 3270, [1237, 2033]),
    ('boolq', 'test', 3245, None),
    ('boolq', 'train', 1000, None),
    ('rte', 'train', 2490, [1249, 1241]),
    ('rte', 'validation', 277, [146, 131]),
    ('rte', 'test', 3000, None),
  ],
)
def test_real_rows_have_the_published_counts(real_data, config, split, count, labels):
  found = rows(config, real_data, split)
  assert len(found) == len({row.id for row in found}) == count
  assert labels is None or [sum(row.label == i for row in found) for i in range(2)] == labels


def test_real_rows_read_as_published(real_data):
  row = rows('rte', real_data, 'validation')[0]
  assert row.inputs.startswith('rte hypothesis: Christopher Reeve had an accident. premise: Dana ')
  assert row.targets == 'not_entailment'
