"""The script of the page with a chain of three models, in Node, with an imaginary document."""

import json
import shutil
import subprocess

import pytest

from cascades.serving import page_routes, response_forms, status
from tests.serving.chain_test import SURE, UNSURE, Chain, routed

SCRIPT = """
const fs = require('fs'), vm = require('vm');
const [folder, given] = process.argv.slice(2), {state, cascade} = JSON.parse(given);
const elements = {}, texts = {};
const anything = () => new Proxy(function () {}, {
  get: (target, key) => key in target ? target[key] : key === Symbol.toPrimitive ? () => 0
    : key === Symbol.iterator ? [][Symbol.iterator] : key === 'value' ? '' : key === 'options' ? []
    : key === 'children' ? [] : key === 'clientWidth' ? 300 : anything(),
  set: (target, key, value) => { target[key] = value; return true; }, apply: () => anything(),
});
const context = vm.createContext({
  document: {
    getElementById: (id) => elements[id] ??= new Proxy({}, {
      get: (_, key) => (texts[id] ??= {})[key] ?? (key === 'options' ? [] : key === 'value' ? ''
        : key === 'children' ? [] : anything()),
      set: (_, key, value) => { (texts[id] ??= {})[key] = value; return true; },
    }),
    createElement: anything, createElementNS: anything, addEventListener: () => 0, hidden: false,
  },
  location: {search: ''}, setInterval: () => 0, addEventListener: () => 0, URLSearchParams, console,
  Option: function () {}, AbortController, TextEncoder, TextDecoder, Infinity,
  fetch: async (url) => ({ok: true, json: async () => url.startsWith('readyz')
    ? {ready: true, reasons: []} : state}),
});
for (const name of ['charts.js', 'app.js']) {
  vm.runInContext(fs.readFileSync(`${folder}/${name}`, 'utf8'), context);
}
setTimeout(() => {
  const run = (code) => vm.runInContext(code, context);
  context.cascade = cascade;
  process.stdout.write(JSON.stringify({
    models: texts.models?.textContent, legend: texts['large-legend']?.textContent,
    rate: texts.rate?.textContent,
    points: run('points'), verdict: run('verdict(cascade, {})'),
    levels: run('cascade.levels.map(decided)'),
  }));
}, 50);
"""


def test_the_script_shows_each_level_of_a_chain(tmp_path):
  if not shutil.which('node'):
    pytest.skip('there is no node')
  chain = Chain(UNSURE, UNSURE, SURE)
  recent = status.Recent()
  exchanges = [chain.ask()[1], Chain(SURE, SURE, SURE).ask()[1]]
  begun = Chain(UNSURE, SURE, SURE, policy=routed('8b')).ask()[1]
  for exchange in (*exchanges, begun):
    recent.record(exchange)
  state = status.status(
    recent, time=0.0, models={name: name for name in chain.models}, policy=chain.cascade.policy
  )
  given = {'state': state, 'cascade': response_forms.cascade(exchanges[0], ())}
  (tmp_path / 'page.js').write_text(SCRIPT)
  done = subprocess.run(
    ['node', str(tmp_path / 'page.js'), str(page_routes.FOLDER), json.dumps(given)],
    capture_output=True, text=True, check=True, timeout=60,
  )  # fmt: skip
  shown = json.loads(done.stdout)
  assert shown['models'] == '1b → 8b → 70b, decided by average'
  assert shown['legend'] == 'a later model'
  assert shown['verdict'] == '▲ The 70b model answered'
  assert [line[:4] for line in shown['levels']] == ['1b: ', '8b: ']
  assert shown['levels'][0].endswith('deferred from 0.5, deferred')
  first, second, third = shown['points']
  assert (first['author'], first['small']['tokens'], first['large']['tokens']) == ('large', 3, 6)
  assert (second['author'], second['large']) == ('small', None)
  assert (third['score'], third['small']) == (None, None)  # it began at a later model
  assert shown['rate'] == '50 %'
