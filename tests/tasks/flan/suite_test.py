"""The table as a whole: counts, rates, templates, the paper's subsets."""

import collections
import itertools
import string

import numpy as np
import pytest

from cascades.tasks import sources
from cascades.tasks.flan import definition, suite, wording
from cascades.tasks.sources import Sources, parse_slice

SAMPLE = Sources(sample=True)
DEFINITIONS = suite.DEFINITIONS.values()
GROUPS = sorted({one.group for one in DEFINITIONS} | {'wsc273'})


def test_there_are_69_tasks_in_the_published_clusters():
  assert len(suite.DEFINITIONS) == 69
  sizes = {name: len(tasks) for name, tasks in suite.CLUSTERS.items()}
  assert sizes == {
    'summarization': 11, 'structure to text': 4, 'reading comprehension': 6, 'open-domain QA': 4,
    'paraphrase': 4, 'sentiment': 4, 'text formatting': 3, 'common sense': 4, 'translation': 8,
    'coreference': 3, 'entailment': 10, 'others': 8,
  }  # fmt: skip


def test_the_mixture_rates_are_the_published_ones():
  rates = {task.name: task.rate for task in suite.mixture(sources=SAMPLE).tasks}
  below = {name.removeprefix('flan_'): rate for name, rate in rates.items() if rate < 3000}
  assert below == {
    'opinion_abstracts_idebate': 1659, 'arc_challenge': 919, 'arc_easy': 2051, 'copa': 350,
    'story_cloze': 1671, 'definite_pronoun_resolution': 1122, 'wsc': 504, 'cb': 200, 'rte': 2290,
    'wnli': 605,
  }  # fmt: skip
  assert len(rates) - len(below) == 59
  assert sum(rates.values()) == 188_371


def test_there_are_61_groups_of_ten_templates():
  assert len(GROUPS) == 61
  assert {len(wording.templates(group)) for group in GROUPS} == {10}
  files = {file.stem for file in wording.FOLDER.glob('*.toml')}
  assert files == set(GROUPS)


@pytest.mark.parametrize('group', GROUPS)
def test_templates_of_a_group_differ_and_name_a_field(group):
  templates = wording.templates(group)
  assert len(set(templates)) == 10
  for template in templates:
    if template.answerable:
      assert template.fields
      parsed = string.Formatter().parse(template.inputs)
      assert {name for _, name, *_ in parsed if name} - {'options_'}
  assert sum(template.answerable for template in templates) >= 7


def formed(one, count=200):
  """Examples of the sample over and over, as fields."""
  examples = [
    fields
    for _, example in sources.locate(
      one.dataset, parse_slice(one.train or one.test)[0], SAMPLE
    ).examples(0, None)
    for fields in one.preprocess(example)
  ]
  return list(itertools.islice(itertools.cycle(examples), count))


@pytest.mark.parametrize('one', DEFINITIONS, ids=lambda one: one.name)
def test_every_template_words_every_hand_written_example(one):
  templates = wording.templates(one.group)
  for fields in formed(one, 12):
    assert fields.answers or fields.label == -1
    for template in templates:
      assert template.fields <= set(fields.texts), (one.name, template)
      prompt, answers = wording.render(template, fields)
      assert prompt
      assert bool(answers) == bool(fields.answers)
      if template.answerable and template.targets == wording.ANSWER and fields.options:
        assert set(answers) <= set(fields.options) | set(fields.answers)


@pytest.mark.parametrize('one', DEFINITIONS, ids=lambda one: one.name)
def test_an_answerable_template_never_contains_the_bare_answer_alone(one):
  """What is asked for must not already stand in the prompt in place of the question."""
  for template in wording.templates(one.group):
    if template.answerable:
      assert '{answer}' not in template.inputs, template


@pytest.mark.parametrize('name', suite.PAPER_BLEU)
def test_dropping_repeated_prompts_leaves_the_papers_number_of_rows(name):
  """200 rows of distinct sentences, worded in turn: 181 prompts, or 162 for ParaCrawl."""
  one = suite.DEFINITIONS[name]
  fields = formed(one, 1)[0]
  templates = wording.templates(one.group)
  prompts = []
  for number in range(200):
    texts = {key: f'{text} {number}' for key, text in fields.texts.items()}
    prompts.append(wording.render(templates[number % 10], fields._replace(texts=texts))[0])
  assert len(set(prompts)) == suite.PAPER_BLEU[name]
  assert suite.PAPER_BLEU[name] == (162 if name == 'flan_para_crawl_enes' else 181)


def test_the_papers_subsets_have_its_sizes():
  assert len(suite.PAPER_ACCURACY) == 32
  assert sum(suite.PAPER_ACCURACY.values()) == 5740
  assert len(suite.SUITES['flan2021_accuracy']) == 39
  assert len(suite.SUITES['flan2021_bleu']) == 8
  assert sum(suite.PAPER_BLEU.values()) == 1429
  assert set(suite.PAPER) <= set(suite.DEFINITIONS)


def test_the_papers_rows_come_first_in_validation_and_their_number_is_a_setting():
  task = suite.task('flan_sst2', SAMPLE, paper_rows={'flan_sst2': 4})
  assert 'paper' in task.splits
  rows = list(task.rows('paper'))
  assert [row.inputs for row in rows] == [row.inputs for row in task.rows('validation')][:4]
  assert 'paper' not in suite.task('flan_rte', SAMPLE, paper_rows={}).splits


def test_row_i_has_template_i_mod_ten():
  task = suite.task('flan_rte', SAMPLE)
  templates = wording.templates('rte')
  rows = list(task.rows('train'))
  assert [row.template for row in rows] == [i % 10 for i in range(len(rows))]
  for row, fields in zip(rows, formed(suite.DEFINITIONS['flan_rte'], len(rows)), strict=True):
    assert (row.inputs, row.answers) == wording.render(templates[row.template], fields)


def test_answerable_only_leaves_out_what_cannot_be_judged():
  """With every template the ceiling is below 100 per cent."""
  all_templates = wording.templates('wmt14_enfr')
  answerable = [template for template in all_templates if template.answerable]
  assert len(answerable) == 9
  rows = list(suite.task('flan_wmt14_enfr', SAMPLE, answerable_only=True).rows('train'))
  fields = formed(suite.DEFINITIONS['flan_wmt14_enfr'], len(rows))
  for row, one in zip(rows, fields, strict=True):
    assert row.inputs == wording.render(answerable[row.template], one)[0]


def test_options_can_be_taken_out_of_the_prompt():
  listed = list(suite.task('flan_trec', SAMPLE).rows('train'))
  bare = list(suite.task('flan_trec', SAMPLE, list_options=False).rows('train'))
  assert sum('OPTIONS:' in row.inputs for row in listed) > 0
  assert not any('OPTIONS:' in row.inputs for row in bare)
  assert [row.options for row in bare] == [row.options for row in listed]


def test_options_are_written_line_by_line():
  assert wording.options_text(('yes', 'no')) == 'OPTIONS:\n- yes\n- no'


def test_a_reversed_template_is_no_classification():
  fields = definition.PromptFields({'text': 'good'}, ('positive',), ('negative', 'positive'), 1)
  template = wording.Template('Write a {answer} review.', '{text}', answerable=False)
  row = suite._row('1', fields, template, 3, True)
  assert (row.inputs, row.answers) == ('Write a positive review.', ('good',))
  assert (row.options, row.label, row.template) == ((), None, 3)


def test_other_templates_make_other_records():
  one, other = (
    suite.task('flan_rte', SAMPLE, answerable_only=only, list_options=not only)
    for only in (False, True)
  )
  assert one.version != other.version
  assert one.fingerprint('train') == other.fingerprint('train')
  assert one.fingerprint('train') != one.fingerprint('validation')


def test_slices_of_one_split_do_not_overlap():
  """Positions in a split of its published size."""
  for one in DEFINITIONS:
    taken = collections.defaultdict(list)
    for part in (one.train, one.validation, one.test):
      split, start, stop = parse_slice(part)
      size = one.dataset.sizes.get(split, 10_000_000)
      begin, end, _ = slice(start, stop).indices(size)
      taken[split].append((begin, end))
    for spans in taken.values():
      ordered = sorted(spans)
      assert all(a[1] <= b[0] for a, b in itertools.pairwise(ordered)), one.name


def test_published_training_rows_follow_from_the_slices():
  for one in DEFINITIONS:
    split, start, stop = parse_slice(one.train)
    if split in one.dataset.sizes:
      begin, end, _ = slice(start, stop).indices(one.dataset.sizes[split])
      assert end - begin == one.rows, one.name


def test_real_rte_is_sliced_as_flan_slices_it(real_data):
  task = suite.task('flan_rte', Sources(real_data))
  counts = {split: sum(1 for _ in task.rows(split)) for split in task.splits}
  assert counts == {'train': 2290, 'validation': 200, 'test': 277, 'paper': 200}
  labels = np.array([row.label for row in task.rows('train')])
  assert 0.4 < labels.mean() < 0.6
