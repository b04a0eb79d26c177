import base64
import hashlib
import html.parser
import json
import re

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from cascades import deferral, metrics
from cascades.evaluation.compare import compare
from cascades.evaluation.comparison import Settings
from cascades.reporting import escaping, report
from cascades.reporting.report import Report
from tests import synthetic_tables

HOSTILE = [
  '<script>alert(1)</script>',
  '"><img src=x onerror=alert(1)>',
  "' onmouseover='alert(1)",
  '</pre></details></td></table><h1>',
  '{{ 7 * 7 }}{% for x in y %}',
  '<!-- ',
  '&lt;b&gt; &amp;',
  '\x1b]0;title\x07\x1b[2J',
  '\x9b31m\x00\x7f',
  '\u202egnp.exe\u2066',
  'half \ud83d of a pair',
  'javascript:alert(1)',
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text())


class Page(html.parser.HTMLParser):
  """The elements of a page, and its text."""

  def __init__(self, page):
    super().__init__()
    self.elements, self.text = [], ''
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, tuple(name for name, _ in attributes)))

  def handle_endtag(self, tag):
    self.elements.append((f'/{tag}', ()))

  def handle_data(self, data):
    self.text += data


def page_of(text, *, name='model', other='base', interactive=False):
  """A report with that text wherever something comes from outside."""
  small = synthetic_tables.table('a', size=8)
  large = synthetic_tables.table('a', size=8, skill=2, seed=1)
  manifest = {**small.manifest, 'config': text, 'checkpoint': text, 'model': {text: text}}
  fields = {
    'ids': [f'{i}{text}' for i in range(8)],
    'inputs': [text] * 8,
    'targets': [[text]] * 8,
    'predictions': [text] * 8,
    'manifest': manifest,
    'task': f'task {text}',
  }
  small, large = small._replace(**fields), large._replace(**fields)
  comparison = compare(
    {name: [small], other: [small]},
    [large],
    scores={f'score {text}': deferral.as_score(deferral.average)},
    metric=metrics.accuracy,
    settings=Settings(resamples=5),
  )
  return report.render(
    comparison,
    {'curves': b'<svg/>', 'separation': b'<svg/>'},
    Report(title=f'title {text}', examples=3, interactive=interactive),
    {'config': f'# {text}', 'command': f'# {text}'},
  )


PLAIN = Page(page_of('plain', name='model plain'))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts)
def test_no_text_from_outside_changes_the_structure_of_the_page(text):
  page = page_of(text, name=f'model {text}')
  parsed = Page(page)
  assert parsed.elements == PLAIN.elements
  assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]', page)
  shown = escaping.shorten(text, report.MAX_CHARACTERS)
  assert parsed.text.count(shown) >= 10 if shown.strip() else True
  page.encode()


@pytest.mark.parametrize('text', HOSTILE)
def test_hostile_text_is_shown_as_text(text):
  assert Page(page_of(text)).text.count(escaping.visible(text)) >= 20


def test_the_page_needs_nothing_else():
  page = page_of('plain')
  tags = {tag for tag, _ in Page(page).elements}
  assert not tags & {'script', 'link', 'iframe', 'object', 'base', 'form'}
  assert set(re.findall(r'(?:src|href)="([^#][^,]*),', page)) == {'data:image/svg+xml;base64'}
  assert 'default-src &#39;none&#39;' in page
  assert '@import' not in page
  assert 'url(' not in page


def test_the_scripts_of_an_interactive_page_are_the_ones_that_its_policy_names():
  page = page_of('plain', interactive=True)
  policy = re.search('Security-Policy" content="(.*?)"', page)[1].replace('&#39;', "'")
  scripts = re.findall('<script>(.*?)</script>', page, re.DOTALL)
  digests = [hashlib.sha256(text.encode()).digest() for text in scripts]
  sources = ' '.join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
  assert policy == (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {sources}"
  )
  assert len(scripts) == page.count('<script') - 1 == 3
  assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="(?!data:)', page)


def test_data_of_a_script_cannot_end_it():
  value = {'</script><!--': '&amp;\u2028\'"\\'}
  text = report.as_script_data(value)
  assert not set(text) & set('<>&\u2028')
  assert json.loads(text) == value


def test_figures_are_shown_with_captions_and_the_headline_first():
  page = page_of('plain')
  captions = re.findall('<figcaption>(.*?)</figcaption>', page)
  assert captions == [report.CAPTIONS['curves'], report.CAPTIONS['separation']]


def test_lines_of_a_configuration_stay_lines():
  assert 'A = 1\nB = 2\n' in page_of('A = 1\nB = 2')


def test_tables_and_settings_are_on_the_page():
  text = Page(page_of('plain', name='model one')).text
  for words in ('Models', 'Comparisons', 'Paired differences', 'Thresholds', '95 % percentile'):
    assert words in text
  assert 'model one' in text
  assert '2 small models and a large one,' in text


@pytest.mark.parametrize(('weights', 'words'), [('size', 'by size'), ('uniform', 'equally')])
def test_the_header_states_metric_weights_and_intervals(weights, words):
  settings = {'weights': weights, 'resamples': 23, 'confidence': 0.8, 'seed': 17}
  comparison = synthetic_tables.comparison('phoneme_error_rate', **settings)
  text = ' '.join(Page(report.render(comparison, {}, Report(), {})).text.split())
  for sentence in (
    '2 small models and a large one, 110 examples of a (70), b (40).',
    'Metric: phoneme_error_rate (lower is better).',
    f'All tasks share one threshold and are weighted {words}.',
    '80 % percentile intervals of 23 bootstrap resamples',
    '(seed 17)',
  ):
    assert sentence in text


def test_every_table_of_predictions_has_its_manifest_on_the_page():
  comparison = synthetic_tables.comparison()
  text = Page(report.render(comparison, {}, Report(), {})).text
  for model in ('xent', 'cat', 'large alone'):
    for task in ('a', 'b'):
      assert f'{model}, {task}\n' in text
  assert text.count('checkpoint') == 6
  assert text.count('TRAIN_STEPS = 300') == 6


def test_examples_are_those_that_their_titles_promise():
  comparison = synthetic_tables.comparison()
  groups = {(group.model, group.title): group.rows for group in report.pick(comparison, 6)}
  answers = comparison.answers['cat']
  first = groups['cat', 'hardest: highest scores']
  assert [row.score for row in first] == sorted(answers.score, reverse=True)[:6]
  easiest = groups['cat', 'easiest: lowest scores']
  assert [row.score for row in easiest] == sorted(answers.score)[:6]
  missed = groups['cat', 'regretted keeps: lowest scores where the large model is better']
  assert all(row.large_quality > row.small_quality for row in missed)
  assert [row.score for row in missed] == sorted(row.score for row in missed)
  gains = answers.large_quality - answers.small_quality
  assert missed[0].score == answers.score[gains > 0].min()
  harmed = groups['cat', 'regretted deferrals: highest scores where the large model is worse']
  assert all(row.large_quality < row.small_quality for row in harmed)
  assert harmed[0].score == answers.score[gains < 0].max()
  assert list(groups) == [
    (model, title)
    for model in ('xent', 'cat')
    for title in (
      'easiest: lowest scores',
      'hardest: highest scores',
      'regretted deferrals: highest scores where the large model is worse',
      'regretted keeps: lowest scores where the large model is better',
    )
  ]


def test_an_example_shows_both_answers_beside_the_targets():
  comparison = synthetic_tables.comparison()
  row = next(report.pick(comparison, 1)).rows[0]
  answers = comparison.answers['xent']
  index = next(i for i, name in enumerate(answers.small.ids) if name.endswith(f'/{row.id}'))
  assert row.small == answers.small.predictions[index]
  assert row.large == answers.large.predictions[index]
  assert row.targets == answers.small.targets[index][0]
  assert row.prompt == answers.small.inputs[index]
  assert row.score == answers.score[index]
  assert row.small_quality == answers.small_quality[index]
  assert row.large_quality == answers.large_quality[index]


@pytest.mark.parametrize(
  ('pooled', 'tasks', 'shown'),
  [
    ('mine/7', ['mine'], '7'),
    ('mine/mine-7', ['mine', 'other'], 'mine-7'),
    ('mine/7', ['mine', 'other'], 'mine/7'),
  ],
)
def test_an_id_names_its_task_once_and_only_where_there_are_several(pooled, tasks, shown):
  assert report._short_id(pooled, tasks) == shown


def test_what_can_be_scrolled_says_so():
  page = page_of('plain')
  hinted = re.findall('<p class="hint">.*</p>\n<div class="wide" tabindex="0" role="region"', page)
  assert len(hinted) == page.count('<p class="hint">') > 5
  assert 'no-repeat local' in page  # shaded edges, where there is more


def test_long_texts_are_cut():
  cut = [text for text in Page(page_of('y' * 10_000)).text.split() if text.endswith('…')]
  assert cut
  assert {len(text) for text in cut} == {report.MAX_CHARACTERS}


def test_errors_turn_the_direction_of_what_is_better():
  comparison = synthetic_tables.comparison('phoneme_error_rate')
  groups = {group.title: group.rows for group in report.pick(comparison, 3) if group.model == 'cat'}
  for row in groups['regretted keeps: lowest scores where the large model is better']:
    assert row.large_quality < row.small_quality
