"""The interactive page in a headless Chromium: one browser for all tests of this file."""

import json
import os
import shutil

import numpy as np
import pytest
from etils import epath

from cascades import deferral, metrics
from cascades.evaluation.chain_comparison import compare_chains
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Promised, Settings
from cascades.evaluation.quantities import LARGE
from cascades.reporting import charts, outputs, report
from cascades.reporting.report import Report
from tests import synthetic_tables
from tests.reporting import report_test

CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
playwright = pytest.importorskip(
  'playwright.sync_api', reason='playwright drives the browser: pip install -e ".[dev]"'
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH; name one in CHROMIUM')
LIGHT, DARK = 'rgb(255, 255, 255)', 'rgb(13, 17, 23)'


@pytest.fixture(scope='module')
def browser():
  with playwright.sync_playwright() as driver:
    chromium = driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    yield chromium
    chromium.close()


@pytest.fixture(scope='module')
def comparison():
  """Two small models and a large one, and the chain of all three."""
  small, large = synthetic_tables.small_and_large()
  tables = {**small, LARGE.name: large}
  fit = {name: [table._replace(split='train') for table in own] for name, own in tables.items()}
  chains = compare_chains(
    tables,
    fit,
    deciders=[deferral.DECIDERS['average']],
    chains=Chains(['xent', 'cat']),
    settings=Settings(),
    metric=metrics.accuracy,
  )
  return synthetic_tables.comparison()._replace(chains=chains)


@pytest.fixture(scope='module')
def evaluation(tmp_path_factory, comparison):
  directory = tmp_path_factory.mktemp('evaluation')
  outputs.write(epath.Path(directory), comparison, Report(), {'config': 'A = 1'})
  return directory


@pytest.fixture
def show(browser):
  """Opens a page, and lets no message of the console and no request pass."""
  contexts, messages, requests = [], [], []

  def show(path, *, width=1280, scripts=True, **options):
    context = browser.new_context(
      viewport={'width': width, 'height': 844}, java_script_enabled=scripts, **options
    )
    contexts.append(context)
    page = context.new_page()
    page.on('console', lambda message: messages.append((message.type, message.text)))
    page.on('pageerror', lambda error: messages.append(('error', str(error))))
    page.on('request', lambda request: requests.append(request.url))
    page.goto(f'file://{path}')
    if scripts:
      page.wait_for_selector('html[data-ready=yes]', state='attached', timeout=20_000)
    return page

  yield show
  for context in contexts:
    context.close()
  assert [(severity, text) for severity, text in messages if severity != 'info'] == []
  assert {url.split(':')[0] for url in requests} <= {'file', 'data'}
  assert sum(url.startswith('file:') for url in requests) == len(contexts)


def numbers(page):
  return {
    name: page.locator(f'[data-value="{name}"]').first.text_content()
    for name in ('rate', 'quality', 'band', 'cost', 'threshold')
  }


def expected(cascade, index, large_flops):
  curve = cascade['curve']
  threshold = curve['threshold'][index]
  rates = np.linspace(0, 1, 101)
  low, high = (
    np.interp(curve['deferral_rate'][index], rates, cascade['band'][end]) for end in ('low', 'high')
  )
  return {
    'rate': f'{100 * curve["deferral_rate"][index]:.1f} %',
    'quality': f'{curve["quality"][index]:.4f}',
    'band': f'[{low:.4f}, {high:.4f}]',
    # A browser rounds halves up.
    'cost': f'{curve["cost"][index] / large_flops + 1e-9:.2f}',
    'threshold': 'none' if threshold is None else f'{float(f"{threshold:.4g}"):g}',
  }


def test_the_slider_moves_the_numbers_to_those_of_curves_json(show, evaluation):
  page = show(evaluation / 'report.html')
  values = json.loads((evaluation / 'curves.json').read_text())
  slider, large = page.locator('#threshold'), values['flops_per_token']['large']
  for model, score in ((0, 0), (1, 0), (1, 2)):
    page.select_option('#choose-model', str(model))
    page.select_option('#choose-score', str(score))
    cascade = values['cascades'][(model * 3 + score) * 3]  # two tasks, and all of them
    assert (cascade['task'], cascade['reachable_points']) == ('all tasks', 111)
    for index in (0, 17, 60, 110):
      slider.fill(str(index))
      assert numbers(page) == expected(cascade, index, large)
  slider.fill('60')
  slider.focus()
  page.keyboard.press('ArrowRight')
  assert numbers(page) == expected(cascade, 61, large)
  assert f'{numbers(page)["rate"]} deferred' in slider.get_attribute('aria-valuetext')


def test_a_promise_is_shown_at_its_threshold_and_nowhere_else(show, comparison, tmp_path):
  curve = comparison.at('cat', 'average').curve
  # A threshold from other rows: the one between two scores reaches the point of the higher one.
  threshold = float(curve.threshold[41:43].mean())
  promised = Promised('cat', 'average', threshold, 'quality >= 0.8 (kept with 90%) <b>')
  outputs.write(epath.Path(tmp_path), comparison._replace(promised=promised), Report(), {})
  page = show(tmp_path / 'report.html')
  shown = page.locator('p.promise')
  texts = {}
  for model in (0, 1):
    page.select_option('#choose-model', str(model))
    for index in (40, 41, 42):
      page.locator('#threshold').fill(str(index))
      texts[model, index] = shown.text_content()
  assert {at: text for at, text in texts.items() if text} == {(1, 41): promised.text}
  assert 'A policy promises at the threshold' in page.locator('#curve').text_content()


def test_dragging_the_line_of_the_chart_moves_the_threshold(show, evaluation):
  page = show(evaluation / 'report.html', width=390)
  chart, before = page.locator('#chart-curve'), numbers(page)
  chart.scroll_into_view_if_needed()
  box = chart.bounding_box()
  x = page.evaluate(
    '() => { const {roots} = JSON.parse(document.getElementById("report-data").textContent);'
    'const view = Bokeh.index.get_by_id(roots["chart-curve"]);'
    'const line = view.model.center.find((model) => model.editable);'
    'return view.frame.x_scale.compute(line.location); }'
  )
  y = box['y'] + box['height'] / 2
  page.mouse.move(box['x'] + x, y)
  page.mouse.down()
  page.mouse.move(box['x'] + x - 60, y, steps=4)
  page.mouse.up()
  after = numbers(page)
  assert float(after['cost']) < float(before['cost'])
  assert after['rate'] != before['rate']


def test_the_page_begins_with_the_headline_and_the_keyboard_with_the_skip_link(show, evaluation):
  page = show(evaluation / 'report.html')
  headline = page.locator('.headline').text_content().replace('\xa0', ' ')
  assert headline.startswith('Let xent answer 8.2 %, cat 30.0 % and the large model 61.8 %,')
  assert numbers(page)['rate'] == '86.4 %'
  page.keyboard.press('Tab')
  assert page.evaluate('document.activeElement.className') == 'skip'
  focused = []
  for _ in range(13):
    page.keyboard.press('Tab')
    focused.append(page.evaluate('document.activeElement.id'))
  assert [name for name in focused if name][:3] == ['choose-model', 'choose-score', 'threshold']
  assert page.locator('img:not([alt]), [role=img]:not([aria-label]), img[alt=""]').count() == 0


@pytest.mark.parametrize(('scheme', 'background'), [('light', LIGHT), ('dark', DARK)])
def test_a_phone_shows_the_page_without_scrolling_sideways(show, evaluation, scheme, background):
  page = show(evaluation / 'report.html', width=390, color_scheme=scheme)
  page.evaluate('document.querySelectorAll("details").forEach(d => { d.open = true; })')
  assert page.evaluate('document.documentElement.scrollWidth') == 390
  assert page.evaluate('getComputedStyle(document.body).backgroundColor') == background
  axis = page.evaluate(
    'Bokeh.documents.at(-1).roots()[0].left[0].axis_label_text_color.toLowerCase()'
  )
  assert axis == {'light': '#1f2328', 'dark': '#e6edf3'}[scheme]


def test_print_and_a_page_without_scripts_show_images_instead(show, evaluation):
  page = show(evaluation / 'report.html', color_scheme='dark')
  images, charts = page.locator('figure.static'), page.locator('.live')
  assert not images.first.is_visible()
  assert charts.first.is_visible()
  page.emulate_media(media='print')
  assert images.count() == 6
  assert all(images.nth(index).is_visible() for index in range(6))
  assert not any(charts.nth(index).is_visible() for index in range(charts.count()))
  assert page.evaluate('getComputedStyle(document.body).backgroundColor') == LIGHT
  page.set_viewport_size({'width': 718, 'height': 1000})  # A4 with the margins of a printer
  right = page.evaluate(
    'Math.max(...[...document.querySelectorAll(".numbers, figure.static img")]'
    '.map((element) => element.getBoundingClientRect().right))'
  )
  assert right <= 718
  plain = show(evaluation / 'report.html', scripts=False)
  assert plain.locator('figure.static').first.is_visible()
  assert not plain.locator('.live').first.is_visible()


def test_hostile_text_stays_text_in_every_control(show, tmp_path):
  text = ''.join(report_test.HOSTILE[:7]) + '</script>\u2028$$x^2$$ \'"'
  page_text = report_test.page_of(text, name=f'model {text}', interactive=True)
  assert page_text.count('<script') == 4 + charts.library().count('<script')
  (tmp_path / 'report.html').write_text(page_text, 'utf-8')
  page = show(tmp_path / 'report.html')
  assert page.locator('main script, main img[onerror], [onmouseover]').count() == 0
  shown = page.locator('#choose-model option').first.text_content()
  assert shown == report_test.escaping.visible(f'model {text}')
  page.select_option('#choose-model', '1')
  assert numbers(page)['rate'].endswith(' %')


def test_a_chain_of_three_models_says_who_answers_beside_its_controls(show, evaluation):
  section = show(evaluation / 'report.html').locator('#chains')
  legend = [text.strip() for text in section.locator('.live .legend li').all_text_contents()]
  for name in ('chain', 'pairs', 'oracle', 'random deferral', 'answered by cat'):
    assert name in legend
  assert section.locator('h3').first.text_content() == (
    'xent > cat > large alone, by average, in FLOPs per token'
  )
  drawn = section.page.evaluate(
    'Bokeh.documents.at(-1).roots().filter((plot) => plot.renderers.length == 3)'
    '.map((plot) => plot.renderers.map(({data_source}) => [...data_source.data.high]))'
    '.filter((stack) => stack[2].every((share) => Math.abs(share - 1) < 1e-6)).length'
  )
  assert drawn == 1


def test_the_page_is_small(evaluation):
  assert (evaluation / 'report.html').stat().st_size < 5 << 20


def test_equal_comparisons_have_equal_pages():
  pages = {report.render(synthetic_tables.comparison(), {}, Report(), {}) for _ in range(2)}
  assert len(pages) == 1
