import inspect
import json

import gin
import pytest

from cascades.tasks import superglue
from cascades.tasks.sources import SAMPLES, Sources

HELD = {'train': 'train', 'validation': 'val', 'test': 'test'}


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


def test_a_commitment_in_t5s_words():
  row = list(superglue.task('cb', Sources(sample=True)).rows('train'))[6]
  assert row.inputs == (
    'cb hypothesis: someone had read the letter premise: Perhaps the letter was in the desk. If '
    'Anna thought that someone had read it, she would burn it.'
  )
  assert (row.answers, row.label) == (('neutral',), 2)
  assert row.options == ('entailment', 'contradiction', 'neutral')


def test_a_word_in_two_sentences_in_t5s_words():
  row = list(superglue.task('wic', Sources(sample=True)).rows('train'))[2]
  assert row.inputs == (
    'wic sentence1: She runs the shop with her sister. sentence2: He ran the hotel for twenty '
    'years. word: run'
  )
  assert (row.answers, row.options, row.label) == (('True',), ('False', 'True'), 1)


@pytest.mark.parametrize('split', HELD)
@pytest.mark.parametrize(
  ('config', 'folder', 'first', 'second'),
  [('boolq', 'BoolQ', 'passage', 'question'), ('rte', 'RTE', 'hypothesis', 'premise')],
)
def test_every_line_of_an_official_file_is_a_row(
  hand_written, config, folder, first, second, split
):
  lines = (hand_written / folder / f'{HELD[split]}.jsonl').read_text().split('\n')
  examples = [json.loads(line) for line in lines if line]
  found = rows(config, hand_written, split)
  assert len(found) == len(examples)
  for row, example in zip(found, examples, strict=True):
    assert row.inputs == f'{config} {first}: {example[first]} {second}: {example[second]}'
    assert row.targets == str(example.get('label', ''))


def test_texts_are_not_touched(tmp_path):
  (tmp_path / 'BoolQ').mkdir()
  example = {'passage': ' two  spaces\nline ', 'question': 'q\u2028', 'idx': 0, 'label': False}
  (tmp_path / 'BoolQ/train.jsonl').write_text(json.dumps(example, ensure_ascii=False))
  (row,) = rows('boolq', tmp_path, 'train')
  assert row.inputs == 'boolq passage:  two  spaces\nline  question: q\u2028'


@pytest.mark.parametrize(
  ('config', 'split', 'ids'),
  [
    ('multirc', 'train', ['0/0/0', '0/0/1', '0/0/2', '0/1/3', '0/1/4', '1/2/5', '1/2/6']),
    ('record', 'train', ['7/3/0', '7/3/1', '7/4/0']),
    ('record', 'validation', ['0/0']),
    ('wsc', 'train', ['0', '1', '2']),
    ('wsc_referent', 'train', ['0', '2']),
  ],
)
def test_nested_files_give_rows_with_the_published_numbers(config, split, ids, hand_written):
  found = rows(config, hand_written, split)
  assert [row.id for row in found] == [f'{config}/{split}/{number}' for number in ids]


def test_a_line_whose_pronoun_is_absent_is_named_or_skipped(tmp_path, hand_written):
  (tmp_path / 'WSC').mkdir()
  content = (hand_written / 'WSC/train.jsonl').read_text()
  (tmp_path / 'WSC/train.jsonl').write_text(
    content.replace('"span2_text": "him"', '"span2_text": "hi"')
  )
  with pytest.raises(ValueError, match=r"WSC/train.jsonl, row 2 of split train: 'hi' is no whole"):
    rows('wsc', tmp_path, 'train')
  task = superglue.task('wsc', Sources(tmp_path, malformed='skip'))
  assert [row.id for row in task.rows('train')] == ['wsc/train/0', 'wsc/train/1']


@pytest.mark.parametrize('split', HELD)
@pytest.mark.parametrize('config', superglue.NAMES)
def test_every_hand_written_row_is_a_row_of_the_task(config, split):
  task = superglue.task(config, Sources(sample=True))
  found = list(task.rows(split))
  assert len({row.id for row in found}) == len(found) >= 6
  assert any(not row.answers for row in found) == (split == 'test')
  for row in found:
    assert row.inputs.startswith((f'{config} ', 'wsc: '))
    if config == 'copa':
      assert row.answers in ((), ('choice1', row.options[0]), ('choice2', row.options[1]))
    elif row.options:
      assert row.label == (row.options.index(row.targets) if row.answers else -1)
  named = SAMPLES / f'{task.origin.dataset.builder}.jsonl'
  assert task.origin.location(split) == str(named)


def test_the_tasks_and_how_they_are_judged():
  tasks = {name: superglue.task(name, Sources()) for name in superglue.NAMES}
  assert {name: task.metrics for name, task in tasks.items()} == {
    'boolq': ('accuracy',),
    'cb': ('accuracy', 'macro_f1[entailment|contradiction|neutral]'),
    'copa': ('accuracy',),
    'multirc': ('accuracy', 'f1[True|False]'),
    'record': ('exact_match', 'token_f1'),
    'rte': ('accuracy',),
    'wic': ('accuracy',),
    'wsc': ('accuracy',),
    'wsc_referent': ('wsc_referent',),
  }
  assert {task.name for task in tasks.values()} == {f'superglue_{name}' for name in tasks}
  assert {task.suite for task in tasks.values()} == {'superglue'}
  builders = {
    name: task.origin.dataset.builder.removeprefix('super_glue/') for name, task in tasks.items()
  }
  assert builders == {name: name for name in tasks} | {
    'wsc': 'wsc.fixed',
    'wsc_referent': 'wsc.fixed',
  }
  sizes = {name: (*task.sizes.values(),) for name, task in tasks.items()}
  assert sizes['multirc'] == (27_243, 4848, 9693)
  assert sizes['record'] == (138_854, 10_000, 10_000)
  assert sizes['wsc'] == (554, 104, 146)
  assert sizes['wsc_referent'] == (259, 104, 146)


def test_the_mixture_has_the_eight_tasks_of_the_benchmark():
  tasks = superglue.mixture(Sources(sample=True)).tasks
  expected = ['boolq', 'cb', 'copa', 'multirc', 'record', 'rte', 'wic', 'wsc']
  assert [task.name for task in tasks] == [f'superglue_{name}' for name in expected]
  assert all(next(task.rows('validation')).answers for task in tasks)


@pytest.mark.parametrize('config', superglue.NAMES)
def test_each_task_has_a_function_for_gin(config, hand_written):
  function = getattr(superglue, config)
  assert (function.__module__, function.__qualname__) == (superglue.__name__, config)
  assert list(inspect.signature(function).parameters) == [
    'data_dir', 'tfds_data_dir', 'allow_download'
  ]  # fmt: skip
  gin.clear_config()
  try:
    gin.parse_config(
      [
        'from __gin__ import dynamic_registration',
        'from cascades.tasks import superglue',
        f'superglue.{config}.data_dir = {str(hand_written)!r}',
      ]
    )
    task = gin.get_configurable(function)()
    assert f'superglue.{config}.data_dir' in gin.operative_config_str()
  finally:
    gin.clear_config()
  assert task.name == f'superglue_{config}'
  if config in ('boolq', 'multirc', 'record', 'rte', 'wsc', 'wsc_referent'):
    assert task.origin.location('train').startswith(str(hand_written))
    assert task.fingerprint('train') != task.fingerprint('validation')


@pytest.mark.parametrize(
  ('config', 'split', 'count', 'labels'),
  [
    ('boolq', 'train', 1000, [376, 624]),
    ('boolq', 'validation', 3270, [1237, 2033]),
    ('cb', 'train', 250, [115, 119, 16]),
    ('cb', 'validation', 56, [23, 28, 5]),
    ('copa', 'train', 400, [195, 205]),
    ('copa', 'validation', 100, [55, 45]),
    ('rte', 'train', 2490, [1249, 1241]),
    ('rte', 'validation', 277, [146, 131]),
    ('wic', 'train', 5428, [2714, 2714]),
    ('wic', 'validation', 638, [319, 319]),
    ('wsc', 'train', 554, [295, 259]),
    ('wsc', 'validation', 104, [66, 38]),
    *((config, 'test', None, []) for config in ('boolq', 'cb', 'copa', 'rte', 'wic', 'wsc')),
  ],
)
def test_real_rows_have_the_published_counts(real_data, config, split, count, labels):
  found = rows(config, real_data, split)
  expected = superglue.DATASETS[config].sizes[split] if count is None else count
  assert len(found) == len({row.id for row in found}) == expected
  assert [sum(row.label == i for row in found) for i in range(len(labels))] == labels
  assert len({row.options for row in found}) == 1 or config == 'copa'


@pytest.mark.parametrize(
  ('split', 'count', 'questions', 'distinct'),
  [('train', 27_243, 5131, 27_237), ('validation', 4848, 953, 4847), ('test', 9693, 1820, 9690)],
)
def test_real_answers_are_grouped_by_question(real_data, split, count, questions, distinct):
  found = rows('multirc', real_data, split)
  assert len(found) == len({row.id for row in found}) == count
  assert len({row.group for row in found}) == questions
  assert len({row.inputs for row in found}) == distinct  # of validation what the paper counts
  assert not any('<br>' in row.inputs or '<b>' in row.inputs for row in found)


def test_real_queries_have_an_entity_for_an_answer(real_data):
  found = rows('record', real_data, 'train')
  assert len(found) == len({row.id for row in found}) == 44
  assert len({row.group for row in found}) == len({row.inputs for row in found}) == 32
  for row in found:
    assert row.options[row.label] == row.targets
    assert set(row.answers) <= set(row.options)
    assert '@placeholder' in row.inputs
    assert '@highlight' not in row.inputs


@pytest.mark.parametrize(
  ('split', 'distinct'), [('train', 552), ('validation', 101), ('test', 146)]
)
def test_every_real_pronoun_is_marked_where_its_index_says(real_data, split, distinct):
  found = rows('wsc', real_data, split)
  texts = [row.inputs.removeprefix('wsc text: ').partition(' candidate: ')[0] for row in found]
  lines = (real_data / f'superglue/WSC/{HELD[split]}.jsonl').read_text().split('\n')
  for text, line in zip(texts, filter(None, lines), strict=True):
    target = json.loads(line)['target']
    before, pronoun, after = text.split('*')
    assert (before + pronoun + after, pronoun) == (json.loads(line)['text'], target['span2_text'])
    assert abs(before.count(' ') - target['span2_index']) <= (split == 'validation')
  assert len({row.inputs for row in found}) == distinct


def test_real_referents_are_taught_only_where_they_are_right(real_data):
  assert len(rows('wsc_referent', real_data, 'train')) == 259
  found = rows('wsc_referent', real_data, 'validation')
  assert (len(found), sum(row.targets.startswith('other than ') for row in found)) == (104, 66)


def test_real_rows_read_as_published(real_data):
  lines = (real_data / 'superglue/RTE/val.jsonl').read_text().split('\n')
  for row, line in zip(rows('rte', real_data, 'validation'), filter(None, lines), strict=True):
    example = json.loads(line)
    assert row.inputs == f'rte hypothesis: {example["hypothesis"]} premise: {example["premise"]}'
    assert row.targets == example['label']


def test_the_mixture_has_the_published_rows_as_rates_and_caps_record():
  rates = {task.name: task.rate for task in superglue.mixture(Sources(sample=True)).tasks}
  assert rates == {
    'superglue_boolq': 9427, 'superglue_cb': 250, 'superglue_copa': 400,
    'superglue_multirc': 27_243, 'superglue_record': 65_536, 'superglue_rte': 2490,
    'superglue_wic': 5428, 'superglue_wsc': 554,
  }  # fmt: skip
  assert max(t.rate for t in superglue.mixture(largest_rate=1000).tasks) == 1000
