import json
import re

import pytest

from cascades.tasks import sources, superglue
from cascades.tasks.features import encode
from cascades.tasks.flan import others, wording
from cascades.tasks.flan.definition import PromptFields
from cascades.tasks.sources import Sources

TASKS = {task.name: task for task in others.TASKS}
SAMPLES = Sources(sample=True)


def formed(name, **fields):
  task = TASKS[name]
  return list(task.preprocess(encode(task.dataset.features, fields)))


def sampled(name, split='train'):
  task = TASKS[name]
  return list(
    sources.read(task.dataset, split, SAMPLES, lambda _, example: task.preprocess(example))
  )


def real_lines(real_data, *names):
  file = real_data.joinpath(*names)
  if not file.exists():
    pytest.skip(f'{file} is absent')
  return [json.loads(line) for line in file.read_text().split('\n') if line]


def test_the_tasks_stand_in_the_tables_order():
  assert list(TASKS) == [
    'math_dataset', 'quac', 'coqa', 'wic', 'cola', 'trec', 'record', 'cosmos_qa'
  ]  # fmt: skip


def test_items_are_numbered_from_one():
  assert others.numbered(['Who?', 'Where?']) == '1. Who?\n2. Where?'


def test_an_equation_is_answered_by_its_solution():
  assert formed('math_dataset', question='Solve 2*x = 4 for x.', answer='2') == [
    PromptFields({'question': 'Solve 2*x = 4 for x.'}, ('2',))
  ]


def test_hand_written_equations_are_solved():
  for fields in sampled('math_dataset'):
    left, right, unknown = re.fullmatch(
      r'Solve (.+) = (.+) for (\w)\.', fields.texts['question']
    ).groups()
    value = {unknown: int(fields.answers[0])}
    assert eval(left, {}, value) == eval(right, {}, value), fields


def quac(answer, **fields):
  texts = {'background': 'A singer.', 'context': 'She sang. CANNOTANSWER', 'question': 'What?'}
  return formed('quac', **texts | fields, orig_answer={'text': answer, 'answer_start': 0})


def test_quac_texts_lose_the_mark_of_questions_that_have_no_answer():
  texts = {'background': 'A singer.', 'context': 'She sang.', 'question': 'What?'}
  assert quac('She sang.') == [PromptFields(texts, ('She sang.',))]
  assert quac('sang. CANNOTANSWER') == [PromptFields(texts, ('sang.',))]


def test_quac_leaves_out_questions_without_answer():
  assert quac('CANNOTANSWER') == []
  assert quac('') == []


def test_coqa_asks_the_whole_conversation_at_once():
  conversation = {'story': 'Ann came.', 'questions': ['Who?', 'Did she go?']}
  assert formed('coqa', **conversation, answers={'input_text': ['Ann', 'no']}) == [
    PromptFields({'story': 'Ann came.', 'questions': '1. Who?\n2. Did she go?'}, ('1. Ann\n2. no',))
  ]
  with pytest.raises(ValueError, match='2 questions and 1 answers'):
    formed('coqa', **conversation, answers={'input_text': ['Ann']})


def test_wic_says_whether_a_word_keeps_its_meaning():
  texts = {'sentence1': 'By the bank.', 'sentence2': 'The bank lends.', 'word': 'bank'}
  places = {'start1': 7, 'end1': 11, 'start2': 4, 'end2': 8, 'idx': 0}
  options = ('different meanings', 'the same meaning')
  for label in (0, 1):
    assert formed('wic', **texts, **places, label=label) == [
      PromptFields(texts, (options[label],), options, label)
    ]


def test_cola_judges_a_sentence():
  options = ('unacceptable', 'acceptable')
  texts = {'sentence': 'Ann to be go.'}
  assert formed('cola', **texts, label=0) == [PromptFields(texts, ('unacceptable',), options, 0)]
  assert formed('cola', **texts, label='acceptable') == [
    PromptFields(texts, ('acceptable',), options, 1)
  ]
  assert formed('cola', **texts, label=-1) == [PromptFields(texts, (), options, -1)]
  with pytest.raises(ValueError, match="label 2 of 'label'"):
    formed('cola', **texts, label=2)


def test_cosmos_qa_chooses_among_four_texts():
  row = {'context': 'It rained.', 'question': 'Why?'}
  answers = {f'answer{i}': text for i, text in enumerate('wxyz')}
  for label in range(4):
    for written in (label, str(label)):
      assert formed('cosmos_qa', **row, **answers, label=written) == [
        PromptFields(row, ('wxyz'[label],), ('w', 'x', 'y', 'z'), label)
      ]
  assert formed('cosmos_qa', **row, **answers, label=-1)[0].answers == ()


def record(query, entities, answers):
  return formed(
    'record',
    passage='Ann met Bo (森).\n@highlight\nThey met\n@highlight\nIn May',
    query=query,
    entities=entities,
    answers=answers,
    idx={'passage': 0, 'query': 0},
  )


def test_record_completes_a_sentence_from_a_name_on():
  assert record('Later @placeholder left.', ['Ann', 'Bo', '森'], ['Bo', '森']) == [
    PromptFields(
      {'passage': 'Ann met Bo (森).', 'query': 'Later'},
      ('Bo left.', '森 left.'),
      ('Ann left.', 'Bo left.', '森 left.'),
      1,
    )
  ]


def test_a_record_without_answers_has_no_label():
  (fields,) = record("@placeholder's hat", ['Ann', 'Bo'], [])
  assert fields.texts['query'] == ''
  assert (fields.answers, fields.options, fields.label) == ((), ("Ann's hat", "Bo's hat"), -1)


def test_an_answer_that_is_no_entity_is_accepted_though_not_an_option():
  (fields,) = record('@placeholder left', ['Ann', 'Bo'], ['Al', 'Bo'])
  assert (fields.answers, fields.label) == (('Al left', 'Bo left'), 1)
  (fields,) = record('@placeholder left', ['Ann', 'Bo'], ['Al'])
  assert (fields.answers, fields.label) == (('Al left',), -1)


def test_a_query_without_a_gap_is_an_error():
  with pytest.raises(ValueError, match=r"'Later he left\.' has no @placeholder"):
    record('Later he left.', ['Ann'], ['Ann'])


@pytest.mark.parametrize(
  ('name', 'rows', 'labels'),
  [
    ('math_dataset', 9, {None}),
    ('quac', 8, {None}),  # of ten
    ('coqa', 9, {None}),
    ('cola', 9, {0, 1}),
    ('trec', 10, {0, 1, 2, 3, 4, 5}),
    ('cosmos_qa', 8, {0, 1, 2, 3}),
  ],
)
def test_hand_written_rows_have_every_class(name, rows, labels):
  found = sampled(name)
  assert len(found) == rows
  assert {fields.label for fields in found} == labels
  assert all(fields.answers and all(fields.answers) for fields in found)


@pytest.mark.parametrize('name', ['cola', 'cosmos_qa'])
def test_one_hand_written_row_is_for_the_test_split_and_has_no_label(name):
  assert [fields.label for fields in sampled(name, 'test')].count(-1) == 1


@pytest.mark.parametrize('name', ['quac', 'coqa'])
def test_one_hand_written_prompt_is_over_long(name):
  lengths = [sum(map(len, fields.texts.values())) for fields in sampled(name)]
  assert sum(length > 2500 for length in lengths) == 1


@pytest.mark.parametrize('name', TASKS)
def test_every_template_words_every_hand_written_row(name):
  for template in wording.templates(TASKS[name].group):
    for fields in sampled(name, 'test' if 'test' in TASKS[name].dataset.sizes else 'train'):
      prompt, answers = wording.render(template, fields)
      assert prompt
      assert bool(answers) == bool(fields.answers)
      for mark in ('CANNOTANSWER', '@placeholder', '@highlight'):
        assert mark not in prompt + ''.join(answers)


def test_real_trec_questions_are_sorted_by_their_coarse_label(real_data):
  train = real_lines(real_data, 'flan_tasks', 'trec.train.jsonl')
  test = real_lines(real_data, 'flan_tasks', 'trec.test.jsonl')
  assert {'train': len(train), 'test': len(test)} == TASKS['trec'].dataset.sizes
  for row in train + test:
    (fields,) = formed('trec', **{'text': row['input'], 'label-coarse': row['fine'].split(':')[0]})
    assert fields.answers == (row['target'],)
    assert sorted(fields.options) == sorted(row['options'])


def test_real_wic_sentences_are_answered_by_their_label(real_data):
  task, count = TASKS['wic'], 0
  for line in real_lines(real_data, 'superglue', 'WiC', 'val.jsonl'):
    (example,) = superglue.DATASETS['wic'].parse(line)
    (fields,) = task.preprocess(encode(task.dataset.features, example))
    assert fields.answers == ('the same meaning' if line['label'] else 'different meanings',)
    assert fields.texts['sentence2'] == line['sentence2']
    count += 1
  assert count == 638


def test_real_record_queries_are_completed_by_entities(real_data):
  task, count = TASKS['record'], 0
  for line in real_lines(real_data, 'superglue', 'ReCoRD', 'train_fewglue32.jsonl'):
    for example in superglue.DATASETS['record'].parse(line):
      (fields,) = task.preprocess(encode(task.dataset.features, example))
      assert '@' not in fields.texts['passage'][-200:]
      assert set(fields.answers) <= set(fields.options)
      assert fields.answers[0] == fields.options[fields.label]
      spoken = {answer['text'] for answer in line['qas'][0]['answers']}
      rest = line['qas'][0]['query'].split('@placeholder')[1]
      assert set(fields.answers) == {answer + rest for answer in spoken}
      count += 1
  assert count == 32
