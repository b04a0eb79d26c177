import pytest

from cascades.tasks import sources
from cascades.tasks.flan import structure_to_text, wording
from cascades.tasks.flan.definition import PromptFields

TASKS = {task.name: task for task in structure_to_text.TASKS}


def samples(name, split):
  everything = sources.Sources(sample=True)
  return list(sources.read(TASKS[name].dataset, split, everything, lambda _, example: [example]))


def formed(name, feature, value, target='T.', references=()):
  example = {feature: value, 'target': target, 'references': list(references)}
  (fields,) = TASKS[name].preprocess(example)
  return fields


def test_slices_are_those_of_the_table_in_its_order():
  assert list(TASKS) == ['common_gen', 'dart', 'e2e_nlg', 'web_nlg_en']
  for name, task in TASKS.items():
    assert (task.dataset.builder, task.dataset.version) == (f'gem/{name}', '1.1.0')
    slices = (task.train, task.validation, task.test, task.rows)
    assert slices == ('train[:30000]', 'train[-200:]', 'validation', 30_000)
    assert task.dataset.sizes['train'] >= 30_200


def test_concepts_are_listed_in_their_order():
  fields = formed('common_gen', 'concepts', ['row', 'lake', 'boat'])
  assert fields == PromptFields({'concepts': 'row, lake, boat'}, ('T.',))


@pytest.mark.parametrize(
  ('tripleset', 'text'),
  [
    (['Oslo COUNTRY Norway', 'Oslo MAYOR Anna'], 'Oslo COUNTRY Norway; Oslo MAYOR Anna'),
    (['[TABLECONTEXT] [TITLE] Cup', '[TABLECONTEXT] WINNER Ilse'], 'Cup; WINNER Ilse'),
    (['Round 1 SCORE 2:1 [a]'], 'Round 1 SCORE 2:1 [a]'),
  ],
)
def test_triples_are_joined_without_the_marks_of_a_table(tripleset, text):
  assert formed('dart', 'tripleset', tripleset).texts == {'tripleset': text}


def test_attributes_lose_their_brackets():
  meaning = "name[Mr Chow's], customer rating[5 out of 5], priceRange[£20-25]"
  text = "name = Mr Chow's, customer rating = 5 out of 5, priceRange = £20-25"
  fields = formed('e2e_nlg', 'meaning_representation', meaning)
  assert fields.texts == {'meaning_representation': text}


def test_triples_of_an_encyclopedia_lose_underscores_and_bars():
  triples = ['Orla_Keane | birthPlace | Sligo', 'Orla_Keane | height | "1.7 (metres)"']
  text = 'Orla Keane, birthPlace, Sligo; Orla Keane, height, "1.7 (metres)"'
  assert formed('web_nlg_en', 'input', triples).texts == {'triples': text}


@pytest.mark.parametrize(
  ('target', 'references', 'answers'),
  [
    ('A.', [], ('A.',)),
    ('A.', ['A.', 'B.', 'A.', 'C.'], ('A.', 'B.', 'C.')),
    ('A.', ['B.'], ('A.', 'B.')),
    ('', [], ()),
  ],
)
def test_every_reference_is_right_and_the_target_is_first(target, references, answers):
  assert formed('common_gen', 'concepts', ['a'], target, references).answers == answers


@pytest.mark.parametrize('name', TASKS)
def test_every_sample_row_has_one_answer_in_training_and_some_have_several(name):
  rows = [row for example in samples(name, 'train') for row in TASKS[name].preprocess(example)]
  assert len(rows) == len(samples(name, 'train')) >= 8
  counts = [len(row.answers) for row in rows]
  assert min(counts) == 1
  assert max(counts) >= (2 if name != 'common_gen' else 3)


def test_hidden_rows_have_no_answer_and_are_not_trained_on():
  preprocess = TASKS['common_gen'].preprocess
  answers = [
    row.answers for example in samples('common_gen', 'test') for row in preprocess(example)
  ]
  assert answers.count(()) == 1
  assert all(example['target'] for example in samples('common_gen', 'train'))


@pytest.mark.parametrize('name', TASKS)
def test_one_template_goes_from_the_text_to_the_data_and_one_is_constant(name):
  templates = wording.templates(TASKS[name].group)
  others = [template for template in templates if not template.answerable]
  (back,) = (template for template in others if '{answer}' in template.inputs)
  (constant,) = (template for template in others if '{' not in template.inputs)
  (fields,) = TASKS[name].preprocess(samples(name, 'train')[4])
  prompt, answers = wording.render(back, fields)
  assert fields.answers[0] in prompt
  assert answers == tuple(fields.texts.values())
  assert wording.render(constant, fields)[1] == fields.answers
