"""The page, in a real browser against a real server of imaginary models."""

import pathlib
import re

import httpx
import pytest
from starlette.responses import JSONResponse

from cascades.serving import keys, page_routes
from cascades.serving.exchanges import ModelError
from cascades.serving.metering import Log
from tests.serving.fake_models import END
from tests.serving.page_server import PageServer

CHROMIUM = pathlib.Path('/usr/bin/chromium')
TOKEN = 'a-token-of-alice-123'
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason=f'there is no {CHROMIUM}')
SURE, UNSURE = 'm a p', 'z z z'


@pytest.fixture(scope='module')
def browser():
  api = pytest.importorskip('playwright.sync_api')
  with api.sync_playwright() as playwright:
    chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=['--no-sandbox'])
    yield chromium
    chromium.close()


@pytest.fixture
def server():
  with PageServer().running() as running:
    yield running


@pytest.fixture
def page(browser, server):
  context = browser.new_context(viewport={'width': 1000, 'height': 800})
  page = context.new_page()
  page.set_default_timeout(10_000)
  page.problems = []
  page.on('console', lambda message: page.problems.append(message.text))
  page.on('pageerror', lambda error: page.problems.append(str(error)))
  page.goto(server.url)
  page.wait_for_selector('#models:not(:empty)')
  yield page
  context.close()


def fill(server, *prompts):
  for prompt in prompts:
    message = {'role': 'user', 'content': prompt}
    answer = httpx.post(
      f'{server.url}v1/chat/completions',
      json={'model': 'cascade', 'messages': [message], 'temperature': 0},
    )
    assert answer.status_code == 200


def ask(page, text):
  before = page.locator('#spoken').text_content()
  page.fill('#prompt', text)
  page.keyboard.press('Enter')
  page.wait_for_function('before => ![before, ""].includes(spoken.textContent)', arg=before)


@needs_browser
def test_a_question_is_answered_with_its_author_and_the_confidence_of_tokens(page):
  ask(page, SURE)
  assert page.text_content('#author') == '● The small model answered: runs/demo/small'
  assert page.text_content('#answer') == 'M A P'
  assert page.text_content('#spoken').endswith('runs/demo/small. M A P')
  ask(page, UNSURE)
  assert page.text_content('#author') == '▲ The large model answered: runs/demo/large'
  tokens = page.locator('#answer .token')
  assert tokens.count() == 3
  assert re.fullmatch(
    r'\d+(\.\d)? %, (below|above|\d+ to) .*', tokens.nth(0).get_attribute('title')
  )
  facts = page.inner_text('#facts')
  assert 'deferred from 0.5' in facts
  assert 'Discarded tokens\n4' in facts
  page.click('#tokens summary')
  assert page.locator('#tokens tbody tr').count() == 3
  page.wait_for_function('span.textContent.startsWith("the last 2 of 2 requests")')
  assert page.text_content('#rate') == '50 %'
  assert page.problems == []


def test_the_policy_of_the_page_forbids_all_that_is_foreign_or_inline(server):
  answer = httpx.get(server.url)
  policy = answer.headers['content-security-policy']
  assert policy.startswith("default-src 'self';")
  assert 'unsafe' not in policy
  assert "frame-ancestors 'none'" in policy
  assert answer.headers['x-content-type-options'] == 'nosniff'
  assert not re.findall(r'\sstyle=|\son\w+=|<style|<script(?! src)|https?://', answer.text)
  for name in re.findall(r'(?:src|href)="(page/[^"]+)"', answer.text):
    resource = httpx.get(server.url + name)
    assert resource.status_code == 200
    assert resource.headers['content-type'].startswith(
      page_routes.TYPES[name.removeprefix('page/')]
    )
  scripts = ''.join(path.read_text() for path in page_routes.FOLDER.glob('*.js'))
  assert not re.findall(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(', scripts)


def test_the_files_of_the_page_are_all_served():
  assert {path.name for path in page_routes.FOLDER.iterdir()} == set(page_routes.TYPES)


def test_status_and_metrics_are_served(server):
  fill(server, SURE, UNSURE, SURE)
  state = httpx.get(f'{server.url}v1/cascade/status?since=2').json()
  assert state['total'] == 3
  assert [point['number'] for point in state['recent']] == [3]
  assert state['levels'][0]['thresholds'] == {'all tasks': 0.5}
  for since in ('-1', 'x', '9' * 20, '²'):
    refused = httpx.get(f'{server.url}v1/cascade/status', params={'since': since})
    assert (refused.status_code, refused.json()['error']['param']) == (400, 'since')
  metrics = httpx.get(f'{server.url}metrics')
  assert metrics.headers['content-type'].startswith('text/plain; version=')
  assert 'cascade_requests_total{author="large",status="200"} 1.0' in metrics.text
  assert httpx.get(f'{server.url}page/other.js').status_code == 404


def test_status_and_metrics_ask_for_a_key_and_the_page_does_not():
  with PageServer(keys.from_environment('T', {'T': TOKEN})).running() as server:
    assert httpx.get(server.url).status_code == 200
    for path in ('v1/cascade/status', 'metrics'):
      assert httpx.get(server.url + path).status_code == 401
      headers = {'Authorization': f'Bearer {TOKEN}'}
      assert httpx.get(server.url + path, headers=headers).status_code == 200


def test_routes_need_nothing_of_the_application():
  routes = page_routes.routes(dict, bytes, respond=JSONResponse, check=str)
  assert [route.path for route in routes if 'page' not in route.path] == [
    '/', '/v1/cascade/status', '/metrics',
  ]  # fmt: skip


@needs_browser
@pytest.mark.slow
def test_a_text_of_a_model_does_not_run(page, server):
  attack = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
  server.small._says = lambda _: [(attack, -0.1), END]
  ask(page, SURE)
  assert page.text_content('#answer') == attack
  assert page.locator('#answer img, #answer script').count() == 0
  assert page.title() == 'Cascade'
  page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'top.x = 1';"
                ' document.body.append(s); }')  # fmt: skip
  assert page.evaluate('window.x') is None
  assert any('Content Security Policy' in problem for problem in page.problems)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
  ('tokens', 'text', 'shown'),
  [
    (['K', 'AE1', 'T'], 'K AE1 T', ['K', 'AE1', 'T']),
    ([' caf', b'\xc3', b'\xa9', '!'], 'caf\u00e9!', ['caf', '\u00e9', '!']),
    (['a', ' b'], 'a b', ['a', ' b']),
    (['a', 'b'], 'something else', []),
    (['a'], 'a and more', []),
    ([b'\xf0\x9f'], '', []),
  ],
)
def test_tokens_are_colored_where_they_are_those_of_the_text(page, tokens, text, shown):
  listed = [
    {
      'token': '?',
      'logprob': -0.5,
      'bytes': list(each if isinstance(each, bytes) else each.encode()),
    }
    for each in tokens
  ]
  page.evaluate('answer => render({cascade: null, ...answer})', {'text': text, 'tokens': listed})
  assert page.text_content('#answer') == text
  assert page.locator('#answer .token').all_text_contents() == shown


@needs_browser
@pytest.mark.slow
def test_letters_are_separated_for_models_of_words(page, server):
  page.check('#spell')
  ask(page, ' Map ')
  assert server.small.questions[-1].prompt[0].content == 'm a p'
  assert page.text_content('#answer') == 'M A P'


@needs_browser
@pytest.mark.slow
def test_the_slider_tells_what_another_threshold_would_have_done(page, server):
  fill(server, *[SURE] * 3, UNSURE)
  page.wait_for_function('whatNote => document.getElementById("what-note").textContent')
  assert page.text_content('#was-rate') == '25 %'
  assert page.text_content('#threshold') == '0.5 (the policy)'
  was, assumed = page.text_content('#was-cost'), page.text_content('#if-cost')
  assert was == assumed
  page.focus('#slider')
  page.keyboard.press('Home')
  assert page.text_content('#if-rate') == '100 %'
  assert '(estimated)' in page.text_content('#if-cost')
  page.keyboard.press('End')
  assert page.text_content('#threshold') == 'none deferred'
  assert page.text_content('#if-rate') == '0 %'
  assert 'estimated' not in page.text_content('#if-cost')
  assert 'none deferred, 0 % deferred' in page.get_attribute('#slider', 'aria-valuetext')
  page.click('#reset')
  assert page.text_content('#if-rate') == '25 %'
  assert page.text_content('#was-rate') == '25 %'


@needs_browser
@pytest.mark.slow
def test_alarms_and_failures_are_shown(page, server):
  server.alarms = [('small', 'words', 'scores')]
  server.breaker.fail(server.breaker.enter())
  page.wait_for_selector('#alerts li >> nth=1')
  assert 'Drift of scores of small in words' in page.text_content('#alerts')
  assert 'large model is left alone' in page.text_content('#alerts')
  server.small.errors.append(ModelError('it is down'))
  page.fill('#prompt', SURE)
  page.keyboard.press('Enter')
  page.wait_for_selector('#error:not([hidden])')
  assert 'it is down' in page.text_content('#error')
  assert page.is_hidden('#result')
  ask(page, SURE)
  assert page.is_hidden('#error')


@needs_browser
@pytest.mark.slow
def test_a_server_with_keys_asks_for_one(browser):
  with PageServer(keys.from_environment('T', {'T': TOKEN})).running() as server:
    page = browser.new_page()
    page.goto(server.url)
    page.wait_for_selector('#alerts li')
    page.fill('#prompt', SURE)
    page.keyboard.press('Enter')
    page.wait_for_selector('#error:not([hidden])')
    assert page.evaluate('document.activeElement.id') == 'key'
    page.keyboard.type(TOKEN)
    page.focus('#prompt')
    ask(page, SURE)
    assert page.text_content('#answer') == 'M A P'
    assert page.evaluate('JSON.stringify([localStorage, sessionStorage])') == '[{},{}]'
    page.close()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_the_page_fits_a_phone_and_both_schemes(browser, server, scheme):
  fill(server, SURE, UNSURE, SURE)
  context = browser.new_context(viewport={'width': 320, 'height': 640}, color_scheme=scheme)
  page = context.new_page()
  page.set_default_timeout(10_000)
  page.goto(f'{server.url}?spell&prompt=jazz')
  page.keyboard.press('Enter')
  page.wait_for_selector('#facts dt')
  assert page.evaluate('document.documentElement.scrollWidth') == 320
  brightness = page.evaluate(
    'getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]'
  )
  assert (brightness < 64) == (scheme == 'dark')
  sizes = page.evaluate(
    '[...document.querySelectorAll("button, select, textarea, .check")].filter(e => e.offsetParent)'
    '.map(e => e.getBoundingClientRect().height)'
  )
  assert min(sizes) >= 44
  assert page.evaluate(CONTRAST) == []
  context.close()


# Texts whose contrast with their background is below 4.5 to 1.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const v = c[i] / 255;
    return sum + weight * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  }, 0);
  const back = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
  };
  const low = [];
  for (const node of document.querySelectorAll('main *, header *')) {
    const text = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!text || !node.offsetParent || node.disabled || node.closest('.unseen')) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(back(node))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) low.push(node.outerHTML);
  }
  return low;
}"""


@needs_browser
@pytest.mark.slow
def test_everything_can_be_reached_by_keyboard(page):
  ask(page, SURE)
  page.wait_for_selector('#slider:not([disabled])')
  page.keyboard.press('Tab')
  page.evaluate('document.activeElement.blur()')
  order = []
  for _ in range(14):
    page.keyboard.press('Tab')
    order.append(page.evaluate('document.activeElement.id || document.activeElement.textContent'))
  for name in ('prompt', 'spell', 'send', 'Options', 'Tokens as a table', 'slider', 'reset'):
    assert name in order, (name, order)
  named = page.evaluate(
    '[...document.querySelectorAll("svg[role=img]")].map(e => e.getAttribute("aria-label"))'
  )
  assert len(named) == 4
  assert all(named)


def test_readiness_tells_that_the_log_fails(tmp_path, server):
  log = Log(tmp_path)
  log.notes = server.service.notes
  log._report(OSError(28, 'No space left on device'))
  answer = httpx.get(f'{server.url}readyz')
  assert answer.status_code == 200
  assert 'No space left' in answer.json()['notes']['LOG_DIR']
  log._recover()
  assert httpx.get(f'{server.url}readyz').json()['notes'] == {}
  log.close()
