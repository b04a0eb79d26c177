import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import features, sources, superglue_files, textfiles
from cascades.tasks.sources import Sources
from cascades.tasks.superglue_files import DATASETS

LABELED = [name for name in DATASETS if name != 'record']
TEXTS = [name for name in DATASETS if name not in ('multirc', 'record')]


def examples(config, split, places):
  return list(sources.read(DATASETS[config], split, places, lambda _, example: [example]))


def samples(config):
  file = sources.SAMPLES / f'super_glue/{config}.jsonl'
  return [json.loads(line) for line in file.read_text(encoding='utf8').split('\n') if line]


def written(folder, config, lines):
  """A data directory whose official training file holds these lines."""
  file = folder / DATASETS[config].files['train']
  file.parent.mkdir()
  file.write_text('\n'.join(map(json.dumps, lines)), encoding='utf8')
  return Sources(folder)


def test_a_passage_with_questions_becomes_one_example_an_answer(hand_written):
  found = examples('multirc', 'train', Sources(hand_written))
  assert [tuple(example['idx'].values()) for example in found] == [
    (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 3), (0, 1, 4), (1, 2, 5), (1, 2, 6)
  ]  # fmt: skip
  assert [example['label'] for example in found] == [1, 0, 1, 1, 0, 1, 0]
  assert found[5] == {
    'paragraph': 'Two hens and a goose live in the yard.',
    'question': 'Which birds live in the <b>yard</b>?',
    'answer': 'Hens',
    'idx': {'paragraph': 1, 'question': 2, 'answer': 5},
    'label': 1,
  }


def test_a_passage_with_queries_becomes_one_example_a_query(hand_written):
  first, second = examples('record', 'train', Sources(hand_written))
  assert first['entities'] == second['entities'] == ['Karin Lund', 'Lund', 'Ostby']
  assert (first['answers'], second['answers']) == (['Karin Lund', 'Lund'], ['Ostby'])
  assert first['query'] == 'Steel became dearer, @placeholder said.'
  assert first['idx'] == {'passage': 7, 'query': 3}
  assert second['idx'] == {'passage': 7, 'query': 4}


def test_wsc_as_it_is_and_as_tfds_mends_it(hand_written):
  found = {
    config: [example['span1_text'] for example in examples(config, 'train', Sources(hand_written))]
    for config in ('wsc', 'wsc.fixed')
  }
  assert found['wsc'] == ['The clerk', 'The clerk', 'Ole']
  assert found['wsc.fixed'] == ['the clerk', 'the clerk', 'Ole']
  (validation,) = examples('wsc.fixed', 'validation', Sources(hand_written))
  assert validation['span1_text'] == 'the shelf'
  assert validation['text'] == 'The cup fell from the shelf since it was loose.'


def test_a_span_at_a_capital_word_gets_a_capital_and_lines_become_spaces():
  text = {'text': 'Old Anna Lind went.', 'span2_text': 'went', 'span2_index': 3}
  (found,) = superglue_files.wsc_fixed({**text, 'span1_text': 'anna\nLind', 'span1_index': 1})
  assert (found['span1_text'], found['span2_text']) == ('Anna Lind', 'went')


@pytest.mark.parametrize('config', LABELED)
def test_a_row_without_a_label_has_minus_one(config, hand_written, tmp_path):
  sample = {key: value for key, value in samples(config)[0].items() if key != 'label'}
  (found,) = examples(config, 'train', written(tmp_path, config, [sample]))
  assert found == {**sample, 'label': -1}


def test_a_query_of_the_test_file_has_no_answers(hand_written):
  (found,) = examples('record', 'test', Sources(hand_written))
  assert found['answers'] == []


@pytest.mark.parametrize('label', [True, 1, 'True'])
def test_the_first_release_of_boolq_calls_the_label_answer(label, tmp_path):
  line = {'question': 'q', 'passage': 'p', 'answer': label}
  (found,) = examples('boolq', 'train', written(tmp_path, 'boolq', [line]))
  assert found == {'question': 'q', 'passage': 'p', 'idx': -1, 'label': 1}


@pytest.mark.parametrize('config', DATASETS)
def test_a_file_with_the_names_of_tfds_needs_no_numbers(config, tmp_path):
  sample = {key: value for key, value in samples(config)[0].items() if key != 'idx'}
  (found,) = examples(config, 'train', written(tmp_path, config, [sample]))
  numbers = found.pop('idx')
  assert found == sample
  assert set(numbers.values() if isinstance(numbers, dict) else [numbers]) == {-1}


def official(config, rows):
  """The lines of the official file that has these examples."""
  rows = [{key: value for key, value in row.items() if key != '_splits'} for row in rows]
  rows = [row if row.get('label') != -1 else {**row, 'label': None} for row in rows]
  rows = [{key: row[key] for key in row if row[key] is not None} for row in rows]
  if config == 'multirc':
    return [_nested(p, rows) for p in dict.fromkeys(row['idx']['paragraph'] for row in rows)]
  if config == 'record':
    return [_with_spans(row) for row in rows]
  if config.startswith('wsc'):
    return [
      {**row, 'target': {key: row.pop(key) for key in (*row,) if 'span' in key}} for row in rows
    ]
  names = DATASETS[config].features.get('label')
  as_text = config in ('cb', 'rte')
  return [
    {**row, 'label': names[row['label']]} if as_text and 'label' in row else row for row in rows
  ]


def _nested(paragraph, rows):
  rows = [row for row in rows if row['idx']['paragraph'] == paragraph]
  questions = {}
  for row in rows:
    question = {'question': row['question'], 'idx': row['idx']['question'], 'answers': []}
    answer = {'text': row['answer'], 'idx': row['idx']['answer']}
    answer |= {'label': row['label']} if 'label' in row else {}
    questions.setdefault(row['idx']['question'], question)['answers'].append(answer)
  passage = {'text': rows[0]['paragraph'], 'questions': list(questions.values())}
  return {'idx': paragraph, 'version': 1.1, 'passage': passage}


def _with_spans(row):
  text, idx = row['passage'], row['idx']
  spans = {
    name: [
      {'start': found.start(), 'end': found.end() - 1}
      for found in re.finditer(re.escape(name), text)
    ]
    for name in row['entities']
  }
  answers = [{**span, 'text': name} for name in row['answers'] for span in spans[name]]
  query = {'query': row['query'], 'idx': idx['query'], **({'answers': answers} if answers else {})}
  entities = [span for some in spans.values() for span in some]
  passage = {'text': text, 'entities': entities[::-1]}
  return {'idx': idx['passage'], 'source': 'us', 'passage': passage, 'qas': [query]}


@pytest.mark.parametrize('config', DATASETS)
def test_samples_in_the_official_form_read_as_the_samples(config, tmp_path):
  found = examples(config, 'train', written(tmp_path, config, official(config, samples(config))))
  plain = [{key: row[key] for key in DATASETS[config].features} for row in samples(config)]
  assert found == plain


@pytest.mark.parametrize(
  ('config', 'line', 'reason'),
  [
    ('boolq', {'question': 'q'}, "there is no field 'passage'"),
    ('boolq', {'question': 'q', 'passage': 5}, "'passage' has 5, expected text"),
    ('boolq', {'question': 'q', 'passage': 'p', 'answer': 'yes'}, "the label 'yes'"),
    ('cb', {'premise': 'p', 'hypothesis': 'h', 'label': 'maybe'}, "the label 'maybe'"),
    ('rte', {'premise': 'p', 'hypothesis': 'h', 'label': True}, 'the label True'),
    ('rte', {'premise': 'p', 'hypothesis': 'h', 'label': None}, 'the label None'),
    ('rte', {'premise': 'p', 'hypothesis': 'h', 'label': 2}, 'the label 2'),
    ('wic', {'word': 'w', 'sentence1': 'a', 'sentence2': 'b'}, "no field 'start1'"),
    ('multirc', {'passage': {'text': 't'}}, "no field 'questions' beside 'text'"),
    ('multirc', {'passage': {'text': 't', 'questions': [3]}}, "'questions' has .* list of objects"),
    ('multirc', {'passage': 't'}, "no field 'paragraph'"),
    ('record', {'passage': {'text': 3, 'entities': []}, 'qas': []}, "'text' has 3, expected text"),
    ('record', {'passage': {'text': 't', 'entities': []}}, "no field 'qas'"),
    (
      'record',
      {'passage': {'text': 'Ada', 'entities': [{'start': 0, 'end': 3}]}, 'qas': []},
      'no entity from 0 through 3 in 3 characters',
    ),
    ('wsc', {'text': 't', 'target': 3}, "'target' has 3, expected an object"),
    ('wsc.fixed', {'text': 't', 'target': {'span1_text': 'x'}}, "no field 'span1_index'"),
    (
      'wsc.fixed',
      {'text': 't', 'span1_text': 'x', 'span1_index': 4, 'span2_text': 't', 'span2_index': 0},
      "the span 'x' starts at word 4 of 1",
    ),
  ],
)
def test_a_line_that_cannot_be_used_is_named_by_file_and_line(config, line, reason, tmp_path):
  with pytest.raises(ValueError, match=rf'train.jsonl, line 1: .*{reason}'):
    examples(config, 'train', written(tmp_path, config, [line]))


WRONG = (None, True, -1, 7, 0.5, '', 'x', [], [3], ['x'], {}, {'text': 'x'}, [{'start': 0}])


def damaged(value, draw):
  """The value with one of its parts lost or of another kind."""
  if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
    return draw(st.sampled_from(WRONG))
  keys = sorted(value) if isinstance(value, dict) else range(len(value))
  key, changed = draw(st.sampled_from(keys)), value.copy()
  if draw(st.integers(0, 5)) == 0:
    del changed[key]
  else:
    changed[key] = damaged(value[key], draw)
  return changed


@given(st.data(), st.sampled_from(sorted(DATASETS)))
def test_a_damaged_line_is_read_or_refused(data, config):
  dataset = DATASETS[config]
  line = damaged(data.draw(st.sampled_from(official(config, samples(config)))), data.draw)
  try:
    fields = textfiles.json_object(json.dumps(line))
    found = [features.encode(dataset.features, example) for example in dataset.parse(fields)]
  except ValueError:
    return
  assert all(set(example) == set(dataset.features) for example in found)


@pytest.mark.parametrize('config', DATASETS)
def test_the_hand_written_rows_have_the_names_of_tfds_and_every_class(config):
  rows, dataset = samples(config), DATASETS[config]
  assert 8 <= len(rows) <= 12
  for row in rows:
    splits = row.pop('_splits', ['train', 'validation', 'test'])
    assert features.encode(dataset.features, row) == row
    unlabeled = row.get('label') == -1 or row.get('answers') == []
    assert splits == (['test'] if unlabeled else ['train', 'validation', 'test'])
  if 'label' in dataset.features:
    assert {row['label'] for row in rows} == set(range(-1, len(dataset.features['label'])))


def test_the_hand_written_rows_have_the_hard_cases():
  def texts(config):
    return json.dumps(samples(config), ensure_ascii=False)

  groups = [row['idx']['question'] for row in samples('multirc')]
  assert len(set(groups)) < len(groups)
  assert max(len(row['answers']) for row in samples('record')) > 1
  assert all('@placeholder' in row['query'] for row in samples('record'))
  for config, mark in (('record', '\\n@highlight\\n'), ('multirc', '<br>'), ('wsc', 'him,')):
    assert mark in texts(config)
  for config in ('boolq', 'multirc', 'record', 'rte'):
    assert max(map(len, map(str, samples(config)))) > 3000
  for config in TEXTS:
    assert '\\"' in texts(config) or not texts(config).isascii()


@pytest.mark.parametrize('config', DATASETS)
@pytest.mark.parametrize('split', ['train', 'validation', 'test'])
def test_real_files_have_the_published_rows(config, split, real_data):
  partial = {'boolq': 1000, 'record': 32}
  if config == 'record' and split != 'train':
    pytest.skip('the real data hold no ReCoRD but 32 training rows')
  if config == 'multirc' and split == 'train':
    pytest.skip('counted with its groups, since it is large')
  expected = partial.get(config) if split == 'train' else None
  found = examples(config, split, Sources(real_data))
  assert len(found) == (expected or DATASETS[config].sizes[split])
  assert split != 'test' or all(example['label'] == -1 for example in found)
  assert split == 'test' or all(example.get('label', 0) >= 0 for example in found)


def test_every_real_span_of_the_mended_wsc_is_in_its_text_but_two(real_data):
  apart = [
    example[f'{span}_text']
    for split in ('train', 'validation', 'test')
    for example in examples('wsc.fixed', split, Sources(real_data))
    for span in ('span1', 'span2')
    if example[f'{span}_text'] not in example['text']
  ]
  assert len(apart) == 2
