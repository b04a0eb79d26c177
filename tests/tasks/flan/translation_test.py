import pytest

from cascades.tasks import sources
from cascades.tasks.flan import translation, wording
from cascades.tasks.flan.definition import PromptFields

TASKS = {task.name: task for task in translation.TASKS}
OTHER = {
  'para_crawl_enes': ('es', 'Spanish'),
  'wmt14_enfr': ('fr', 'French'),
  'wmt16_translate_csen': ('cs', 'Czech'),
  'wmt16_translate_deen': ('de', 'German'),
  'wmt16_translate_fien': ('fi', 'Finnish'),
  'wmt16_translate_roen': ('ro', 'Romanian'),
  'wmt16_translate_ruen': ('ru', 'Russian'),
  'wmt16_translate_tren': ('tr', 'Turkish'),
}
DISTINCT = {'para_crawl_enes': 162, 'wmt14_enfr': 181, 'wmt16': 181}


def samples(task, part):
  everything = sources.Sources(sample=True)
  return list(sources.read(task.dataset, part, everything, lambda _, example: [example]))


def prompts(task, examples):
  templates = wording.templates(task.group)
  rows = [fields for example in examples for fields in task.preprocess(example)]
  return [wording.render(templates[i % 10], fields) for i, fields in enumerate(rows)]


def test_slices_are_those_of_the_table_in_its_order():
  assert list(TASKS) == list(OTHER)
  for name, (code, _) in OTHER.items():
    task = TASKS[name]
    assert task.metrics == ('bleu', 'chrf')
    assert set(task.dataset.features) == {'en', code}
    slices = (task.train, task.validation, task.test, task.rows)
    if name == 'para_crawl_enes':
      assert slices == ('train[:30000]', 'train[-1200:-1000]', 'train[-1000:]', 30_000)
    else:
      assert slices == ('train[:30000]', 'validation[:200]', 'test', 30_000)


def test_builders_name_the_other_language_first_except_in_para_crawl():
  assert [task.dataset.builder for task in translation.TASKS] == [
    'para_crawl/enes',
    'wmt14_translate/fr-en',
    *(f'wmt16_translate/{code}-en' for code in ('cs', 'de', 'fi', 'ro', 'ru', 'tr')),
  ]
  assert {task.group for task in translation.TASKS[2:]} == {'wmt16'}


@pytest.mark.parametrize('name', TASKS)
def test_a_pair_gives_both_sentences_and_their_languages(name):
  code, language = OTHER[name]
  (fields,) = TASKS[name].preprocess({'en': 'Yes.', code: 'Ŷes.'})
  texts = {'lang1': 'English', 'lang2': language, 'sent1': 'Yes.', 'sent2': 'Ŷes.'}
  assert fields == PromptFields(texts, ('Ŷes.',))


@pytest.mark.parametrize('pair', [('', 'a'), ('a', ''), (' ', 'a'), ('a', '\t')])
def test_a_pair_with_an_empty_side_is_left_out(pair):
  assert list(TASKS['wmt14_enfr'].preprocess(dict(zip(('en', 'fr'), pair, strict=True)))) == []


@pytest.mark.parametrize('name', TASKS)
def test_every_sample_row_but_the_half_empty_one_forms(name):
  task = TASKS[name]
  for part in (task.train, task.validation, task.test):
    examples = samples(task, part)
    assert len([row for ex in examples for row in task.preprocess(ex)]) == len(examples) - 1 >= 8


@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_of_200_prompts_as_many_are_distinct_as_the_paper_counts(name):
  code, _ = OTHER[name]
  task = TASKS[name]
  worded = prompts(task, [{'en': f'English {i}', code: f'foreign {i}'} for i in range(200)])
  assert len(worded) == 200
  assert len({prompt for prompt, _ in worded}) == DISTINCT[task.group]


def test_of_200_real_prompts_as_many_are_distinct(real_data):
  source, target = (
    (real_data / 'wmt' / f'newstest2021.en-ru.{side}').read_text(encoding='utf-8').split('\n')
    for side in ('src.en', 'ref.A.ru')
  )
  pairs = [{'en': en, 'ru': ru} for en, ru in zip(source, target, strict=True)][:200]
  worded = prompts(TASKS['wmt16_translate_ruen'], pairs)
  assert len({prompt for prompt, _ in worded}) == 181
  for (prompt, (answer,)), pair in zip(worded, pairs, strict=True):
    assert answer in (pair['en'].strip(), pair['ru'].strip())
    assert answer not in prompt


@pytest.mark.parametrize('group', DISTINCT)
def test_templates_read_either_way_as_often(group):
  """The prompt shows one sentence and the other is wanted; a constant prompt shows none."""
  task = next(task for task in translation.TASKS if task.group == group)
  fields = PromptFields(
    {'lang1': 'English', 'lang2': 'Spanish', 'sent1': 'ONE', 'sent2': 'TWO'}, ('TWO',)
  )
  wanted = []
  for template in wording.templates(task.group):
    prompt, (answer,) = wording.render(template, fields)
    shown = 'TWO' if answer == 'ONE' else 'ONE'
    assert answer not in prompt
    assert template.answerable == (shown in prompt)
    wanted.append(answer if template.answerable else '')
  assert abs(wanted.count('ONE') - wanted.count('TWO')) <= 1
  assert wanted.count('') == {162: 2, 181: 1}[DISTINCT[group]]
