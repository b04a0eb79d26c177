"""The page of routers: its numbers, texts from outside, and a price that moves."""

import contextlib
import os
import shutil

import numpy as np
import pytest

from cascades.evaluation import router_pool, router_trials
from cascades.reporting import router_charts, router_report
from tests.evaluation.router_pool_test import STRENGTH, charged, outcome_matrix

CHROMIUM = os.environ.get('CHROMIUM') or shutil.which('chromium') or shutil.which('google-chrome')
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def evaluate(matrix, method, unseen):
  foreign = tuple('<script>alert(1)</script>\u202e ' + text for text in matrix.prompts)
  matrix = matrix._replace(prompts=foreign, models=('</script>', *matrix.models[1:]))
  draws = list(router_trials.draws(matrix, trials=2, unseen=unseen, clusters=3, seed=0))
  trials = router_trials.run(draws, 2, STRENGTH, method=method)
  return router_pool.describe(matrix, draws[0], method=method, strength=STRENGTH), trials


@pytest.fixture(scope='module')
def evaluated():
  return evaluate(outcome_matrix(), 'clusters', 1.0)


@pytest.fixture(scope='module')
def page(evaluated):
  return router_report.render(*evaluated, SVG)


def test_texts_from_outside_are_escaped(page):
  assert '<script>alert' not in page
  assert '\u202e' not in page
  assert '&lt;script&gt;alert(1)&lt;/script&gt;\\u202e' in page
  assert '<td>&lt;/script&gt;' in page


def test_the_page_says_the_sign_test_and_every_model_that_joins(evaluated, page):
  pool, trials = evaluated
  area = [np.mean([n.area for n in trials.numbers[name]]) for name in ('clusters', 'ZeroRouter')]
  assert f'in 2 of 2 trials and the smaller in 0: {area[0]:.4f} against {area[1]:.4f}' in page
  first = pool.joined[0]
  (row,) = (r for r in router_report.joins(pool).rows if r[3].text == f'{first.without:.4f}')
  assert row[0].text == pool.models[first.model]
  assert row[6].text == f'{first.every - first.without:+.4f}'
  clusters = router_report.clusters(pool).rows
  assert sum(int(row[2].text) for row in clusters) == len(pool.position)


def test_models_that_answer_have_colors_of_their_own(evaluated):
  pool, _ = evaluated
  shades = router_charts.colors(pool)
  answered = [shade for shade, own in zip(shades, pool.shares.T, strict=True) if own.any()]
  assert len(set(answered)) == len(answered)
  assert router_charts.FAINT not in answered


@contextlib.contextmanager
def opened(page, folder):
  """The page in a browser, without an error of its scripts."""
  playwright = pytest.importorskip('playwright.sync_api')
  (folder / 'report.html').write_text(page)
  with playwright.sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
    tab = browser.new_page()
    errors = []
    tab.on('pageerror', lambda error: errors.append(str(error)))
    tab.goto(f'file://{folder}/report.html')
    tab.wait_for_selector('html[data-ready=yes]')
    yield tab
    assert not errors
    browser.close()


def shown(tab, name):
  return tab.locator(f'[data-value="{name}"]').first.inner_text()


def shades(tab):
  return tab.evaluate(
    'Bokeh.documents.at(-1).roots().flatMap((r) => [...r.references()])'
    ".find((m) => m.name === 'prompts').data.shade"
  )


@pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH; name one in CHROMIUM')
def test_the_price_moves_by_slider_and_by_dragging_the_line(evaluated, page, tmp_path):
  pool, _ = evaluated
  with opened(page, tmp_path) as tab:
    tab.locator('#price').fill('0')
    assert shown(tab, 'share') == '12.5 %'
    assert shown(tab, 'quality') == f'{pool.quality[-1]:.4f}'
    tab.locator('#price').press('End')
    assert shown(tab, 'lambda') == '0'
    assert shown(tab, 'quality') == f'{pool.quality[0]:.4f}'
    own = [router_charts.colors(pool)[model] for model in pool.chosen[0]]
    assert list(shades(tab)) == own
    tab.evaluate(
      'Bokeh.documents.at(-1).roots().flatMap((r) => [...r.references()])'
      ".find((m) => m.name === 'price line').location = 0"
    )
    assert shown(tab, 'share') == '12.5 %'


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='no chromium on PATH; name one in CHROMIUM')
def test_a_learned_map_with_costs_by_prompt_colors_each_prompt_at_every_price(tmp_path):
  pool, trials = evaluate(charged(outcome_matrix()), 'learned map', 0.75)
  page = router_report.render(pool, trials, SVG)
  assert 'The router of METHOD=&#39;learned map&#39; has the larger area than ZeroRouter' in page
  colors, order = router_charts.colors(pool), np.argsort(-pool.price, kind='stable')
  with opened(page, tmp_path) as tab:
    assert len(order) > 3
    for index in (0, 1, len(order) // 2, len(order) - 1):
      at = order[index]
      tab.locator('#price').fill(str(index))
      assert list(shades(tab)) == [colors[model] for model in pool.chosen[at]]
      assert shown(tab, 'quality') == f'{pool.quality[at]:.4f}'
      assert shown(tab, 'cost') == f'{float(f"{pool.cost[at]:.3g}"):g}'
