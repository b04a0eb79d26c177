"""The program: its plan, its errors, and a real process that the official client asks."""

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import httpx
import openai
import pytest

from cascades import serve
from cascades.evaluation import pooling
from cascades.predictions import __main__ as predictions
from cascades.predictions import shards
from cascades.runtime.partitioning import Devices
from cascades.serving import operation, served_policy
from cascades.serving.members import LocalOptions
from cascades.serving.options import Deciding, Metering, ServedModels
from cascades.serving.service import Listening
from cascades.serving.slots import Room
from tests import testing, tiny
from tests.serving import replayed_models
from tests.serving.decisions_test import stored
from tests.serving.local_model_test import VOCABULARIES, write_run
from tests.serving.replayed_models import level

NOWHERE = 'http://127.0.0.1:9/v1'
HI = [{'role': 'user', 'content': 'a b c'}]


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two runs of random weights."""
  directory = tmp_path_factory.mktemp('runs')
  for name in ('small', 'large'):
    write_run(directory / name, testing.CONFIGS['t5'], VOCABULARIES['t5'])
  return directory


def settings(runs, **changes):
  given = {
    'SMALL': runs / 'small', 'LARGE': runs / 'large', 'THRESHOLD': 0.5, 'PORT': 0,
    'MAX_TOKENS': 8, 'MAX_PROMPT': 16, 'SLOTS': 2,
  } | changes  # fmt: skip
  return [
    '--gin_file=runs/serve.gin',
    *(f'--gin.{name}={value}' for name, value in given.items() if value is not None),
  ]


def run(runs, *, dry_run=True, address=None, metering=None, **changes):
  """The program with these models and this rule."""
  fields = {'small': str(runs / 'small'), 'large': str(runs / 'large'), 'threshold': 0.5} | changes
  of_models = {field.name for field in dataclasses.fields(ServedModels)}
  serve.serve(
    ServedModels(**{name: value for name, value in fields.items() if name in of_models}),
    Deciding(**{name: value for name, value in fields.items() if name not in of_models}),
    local=LocalOptions(
      room=Room(slots=2, max_prompt=16, max_tokens=8), devices=Devices(mesh=tiny.one_device)
    ),
    address=Listening(port=0) if address is None else address,
    metering=metering or Metering(),
    dry_run=dry_run,
  )


def test_a_dry_run_prints_the_plan_and_ends(runs, capsys, monkeypatch):
  monkeypatch.setenv('MY_KEY', 'sk-secret-0123456789')
  run(
    runs, large=f'{NOWHERE}#huge', large_endpoint={'key_variable': 'MY_KEY'},
    large_prices={'prompt': 1e-6, 'generated': 2e-6},
  )  # fmt: skip
  shown = capsys.readouterr().out
  assert '2 slots of 16 + 8 tokens' in shown
  assert f'{NOWHERE}#huge (chat, key of MY_KEY)' in shown
  assert 'dollars per token: prompt 1e-06, generated 2e-06' in shown
  assert 'goes on to large from a score of all tasks: 0.5' in shown
  assert 'secret' not in shown


def test_the_plan_says_who_drafts(runs, capsys):
  run(runs, drafting={'rule': 'lossy', 'alpha': 0.2, 'drafts': 3})
  shown = capsys.readouterr().out
  assert "small drafts 3 tokens by the rule 'lossy', alpha 0.2" in shown


@pytest.mark.parametrize(('changes', 'message'), [
  ({'threshold': None}, 'Give either POLICY, .* or THRESHOLD'),
  ({'policy': 'p', 'decider': 'sum', 'threshold': None}, 'leave DECIDER out'),
  ({'decider': 'random'}, "DECIDER='random' scores rows by their number"),
  ({'policy': '/nowhere.json', 'threshold': None}, '/nowhere.json does not exist'),
  ({'small': '/nowhere'}, '/nowhere'),
  ({'large': NOWHERE}, 'LARGE=.* names no model'),
  ({'large': f'{NOWHERE}#m', 'large_endpoint': {'key_variable': 'NOT_SET'}},
   "LARGE_ENDPOINT.'key_variable'. names no variable"),
  ({'large_endpoint': {'api': 'chat'}}, 'LARGE_ENDPOINT is for a URL'),
  ({'large': f'{NOWHERE}#m', 'large_endpoint': {'zip': 1}}, "has 'zip'; it takes api"),
  ({'small': f'{NOWHERE}#m', 'small_endpoint': {'logprobs': False}},
   'requests none: set its logprobs to True'),
  ({'small_prices': {'prompt': 1}}, 'SMALL_PRICES=.* gives no prices'),
  ({'drafting': {'zip': 1}}, "DRAFTING has 'zip'; it takes rule, alpha, drafts"),
  ({'drafting': {'rule': 'best'}}, "'best' is no rule"),
  ({'drafting': {}, 'large': f'{NOWHERE}#m'}, 'DRAFTING is for two models in this process'),
  ({'drafting': {}, 'large': None}, 'DRAFTING is for a LARGE model'),
  ({'metering': Metering(keys='/nowhere.toml')}, r'/nowhere\.toml'),
  ({'address': Listening(host='192.0.2.1'), 'dry_run': False},
   r'HOST=192\.0\.2\.1 and PORT=8080 cannot be listened on'),
])  # fmt: skip
def test_settings_that_cannot_work_are_sentences(runs, changes, message):
  with pytest.raises((ValueError, OSError), match=message):
    run(runs, **changes)


def test_a_policy_of_other_models_is_refused_unless_allowed(tmp_path):
  models = {'small': {'name': 's', 'parameters': 7}, 'large': {'name': 'l'}}
  policy = served_policy.from_file(str(stored(tmp_path, models=models)))
  policy.check_models({'small': {'parameters': 7}, 'large': {'parameters': 8}})
  with pytest.raises(
    ValueError, match='small model of parameters 7, and the one that is served has 8'
  ):
    policy.check_models({'small': {'parameters': 8}})


def test_the_log_says_what_answers_wait_for_and_when_that_is_over(monkeypatch, caplog):
  compiling = [f'the {role} model is compiling' for role in ('small', 'large')]
  turns = iter([compiling, compiling, compiling[1:], []])
  monkeypatch.setattr(operation, 'READINESS_SECONDS', 0)
  with caplog.at_level('INFO'):
    service = types.SimpleNamespace(reasons=lambda: next(turns), is_draining=False)
    asyncio.run(operation.report_readiness(service))
    assert [record.getMessage() for record in caplog.records] == [
      f'Not ready: {compiling[0]}; {compiling[1]}', f'Not ready: {compiling[1]}', 'Ready after 0 s',
    ]  # fmt: skip
    caplog.clear()
    turns, service.is_draining = iter([['it is shutting down', *compiling]]), True
    asyncio.run(operation.report_readiness(service))
  assert not caplog.records


class Process:
  """A server in a process of its own."""

  def __init__(self, arguments, **environment):
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'cascades.serve', *arguments], stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
    )  # fmt: skip
    self.lines, self.url = [], ''
    for line in self.process.stdout:
      self.lines.append(line)
      if match := re.search(r'Listening at (\S+)', line):
        self.url = match[1]
        break
    assert self.url, ''.join(self.lines)
    deadline = time.monotonic() + 120
    while httpx.get(f'{self.url}/readyz').status_code != 200:
      assert time.monotonic() < deadline
      time.sleep(0.1)

  def end(self, number=signal.SIGTERM):
    """Exit code after a signal, and what was printed."""
    self.process.send_signal(number)
    rest, _ = self.process.communicate(timeout=30)
    return self.process.returncode, ''.join(self.lines) + rest

  def openai(self, **options):
    return openai.OpenAI(base_url=f'{self.url}/v1', api_key='k' * 20, max_retries=0, **options)


@contextlib.contextmanager
def started(arguments, **environment):
  server = Process(arguments, **environment)
  try:
    yield server
  finally:
    server.process.kill()
    server.process.wait()
    server.process.stdout.close()


def models(runs, **changes):
  named = {'1b': str(runs / 'small'), '8b': str(runs / 'large'), '70b': f'{NOWHERE}#huge'}
  return {'small': None, 'large': None, 'models': named, 'threshold': (0.5, 0.25)} | changes


def test_a_dry_run_prints_the_plan_of_a_chain(runs, capsys):
  prices = {'70b': {'prompt': 1e-6, 'generated': 2e-6}}
  run(runs, **models(runs, prices=prices, endpoints={'70b': {'api': 'completions'}}))
  shown = capsys.readouterr().out
  assert '8b model: ' in shown
  assert f'70b model: {NOWHERE}#huge (completions, no key)' in shown
  assert '1b: average, after its answer, goes on to 8b from a score of all tasks: 0.5' in shown
  assert '8b: average, after its answer, goes on to 70b from a score of all tasks: 0.25' in shown
  assert 'policy: 70b: answers what reaches it' in shown


@pytest.mark.parametrize(('changes', 'message'), [
  ({'threshold': 0.5}, 'for 2 models, and the server has 1b, 8b, 70b'),
  ({'small': 'runs/small'}, 'Give either SMALL and LARGE, or MODELS'),
  ({'models': {}}, 'Give either SMALL and LARGE, or MODELS'),
  ({'large': 'runs/large'}, 'leave them out'),
  ({'drafting': {}}, 'leave them out'),
  ({'prices': {'7b': {}}}, "PRICES names '7b', and MODELS has '1b', '8b', '70b'"),
  ({'prices': {'8b': {'prompt': 1}}}, r"PRICES\['8b'\]"),
  ({'endpoints': {'8b': {'api': 'chat'}}}, r"ENDPOINTS\['8b'\] is for a URL, and MODELS\['8b'\]="),
  ({'models': {'unanswered': 'a', 'b': 'c'}}, 'a folder of the log'),
])  # fmt: skip
def test_settings_of_chains_that_cannot_work_are_sentences(runs, changes, message):
  with pytest.raises(ValueError, match=message):
    run(runs, **models(runs, **changes))


@pytest.mark.slow  # starts two servers
def test_a_real_process_serves_a_chain_of_checkpoints_and_an_endpoint(runs, tmp_path):
  replayed_models.write_router(tmp_path, ('1b', '70b'))
  path = replayed_models.write_chain(tmp_path, [level(-9.0), level(-9.0), None], routed=True)
  with started(settings(runs, MAX_PROMPT=48)) as behind:
    named = {'1b': str(runs / 'small'), '8b': str(runs / 'large'), '70b': f'{behind.url}/v1#large'}
    given = settings(
      runs, SMALL=None, LARGE=None, THRESHOLD=None, MODELS=named, POLICY=path,
      ENDPOINTS={'70b': {'api': 'completions'}}, LOG_DIR=tmp_path / 'log', LOG_TEXT=True,
      AUDIT_SHARE=1.0, RELOAD_SECONDS=0.2, MAX_PROMPT=48,
    )  # fmt: skip
    with started(given) as server:
      client = server.openai()
      assert [model.id for model in client.models.list()][-3:] == ['1b', '8b', '70b']
      expected = client.completions.create(model='8b', prompt='a b c').choices[0].text
      for prompt, begins in (('cats purr and sleep', '1b'), ('quarks spin and decay', '70b')):
        told = client.completions.create(model='cascade', prompt=prompt).cascade
        assert (told['author'], told['router']['model'], told['audit']) == ('70b', begins, True)
        assert {each['role'] for each in told['models']} == {'1b', '8b', '70b'}
      stream = client.chat.completions.create(model='cascade', messages=HI, stream=True)
      assert ''.join(c.choices[0].delta.content or '' for c in stream) == expected
      replayed_models.write_chain(tmp_path, [level(None), None, None], routed=True)
      eventually(
        lambda: client.completions.create(model='cascade', prompt='cats purr and sleep')
        .cascade['author'] == '1b'
      )  # fmt: skip
      assert 'cascade_routed_total{role="70b"}' in httpx.get(f'{server.url}/metrics').text
      code, printed = server.end()
  assert code == 0
  assert 'begins with the model that a router chooses' in printed + ''.join(server.lines)
  counts = {}
  for role in named:
    (file,) = (tmp_path / 'log' / role).glob('*.jsonl')
    target = tmp_path / 'tables' / role / 'test'
    words = ['import', '--format=log', '--filter=audit', '--parameters=1000']
    assert predictions.main([*words, str(file), str(target)]) == 0
    counts[role] = len(shards.read(target)[0].ids)
  assert len(set(counts.values())) == 1
  assert counts['8b'] >= 4


@pytest.mark.slow
def test_the_command_prints_its_plan(runs):
  command = [sys.executable, '-m', 'cascades.serve', *settings(runs), '--dry_run']
  shown = subprocess.run(command, capture_output=True, text=True, check=True)
  assert 'small model: ' in shown.stdout


@pytest.mark.slow  # starts JAX in a process, and compiles
def test_a_real_process_answers_reloads_its_policy_and_drains(runs, tmp_path):
  path = stored(tmp_path, thresholds={pooling.POOLED: 1e-6})
  with started(
    settings(
      runs, POLICY=path, THRESHOLD=None, RELOAD_SECONDS=0.2, KEYS_VARIABLE='DOOR_KEYS',
      LOG_DIR=tmp_path / 'log',
    ),
    DOOR_KEYS='alice:' + 'k' * 20,
  ) as server:  # fmt: skip
    client = server.openai()
    names = [model.id for model in client.models.list()]
    assert names == ['cascade', 'cascade/all tasks', 'cascade/t', 'small', 'large']
    answer = client.chat.completions.create(
      model='cascade', messages=HI, logprobs=True, top_logprobs=2
    )
    assert (answer.cascade['author'], answer.cascade['flag']) == ('large', '')
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    small = client.completions.create(model='small', prompt='a b c')
    assert small.choices[0].text == answer.choices[0].message.content  # their weights are equal
    stream = client.chat.completions.create(model='cascade', messages=HI, stream=True)
    assert ''.join(c.choices[0].delta.content or '' for c in stream) == small.choices[0].text
    with pytest.raises(openai.BadRequestError, match='the model reads at most 16'):
      client.completions.create(model='cascade', prompt='a ' * 40)
    with pytest.raises(openai.BadRequestError, match='frequency_penalty'):
      client.completions.create(model='cascade', prompt='a', frequency_penalty=1)
    with pytest.raises(openai.APITimeoutError):
      server.openai(timeout=1e-4).completions.create(model='cascade', prompt='a')
    assert httpx.get(f'{server.url}/v1/models').status_code == 401
    assert '<title>' in httpx.get(f'{server.url}/').text

    path.write_text('{')
    eventually(lambda: httpx.get(f'{server.url}/readyz').json()['notes'].get('POLICY'))
    assert httpx.get(f'{server.url}/readyz').status_code == 200
    stored(tmp_path, thresholds={pooling.POOLED: None})
    eventually(lambda: not httpx.get(f'{server.url}/readyz').json()['notes'])
    assert client.completions.create(model='cascade', prompt='a').cascade['author'] == 'small'
    code, printed = server.end()
  assert code == 0
  assert re.search(r'Ready after \d+ s', ''.join(server.lines) + printed), printed
  assert 'The policy before is kept' in printed
  assert 'a b c' not in printed
  (rows,) = (tmp_path / 'log' / 'small').glob('*.jsonl')
  assert len(rows.read_text().splitlines()) >= 4


def eventually(condition):
  deadline = time.monotonic() + 10
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing_that_was_begun(runs, number):
  with started(settings(runs, CONCURRENCY=40)) as server:

    async def load():
      async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:

        async def ask(index):
          body = {'model': 'cascade', 'prompt': 'a b', 'stream': index % 2 == 0}
          reply = await client.post('/v1/completions', json=body)
          return reply.status_code, reply.text

        begun = [asyncio.create_task(ask(index)) for index in range(40)]
        while len([task for task in begun if task.done()]) < 3:
          await asyncio.sleep(0.005)
        server.process.send_signal(number)
        return await asyncio.gather(*begun, return_exceptions=True)

    replies = asyncio.run(load())
    server.process.communicate(timeout=30)
  assert server.process.returncode == 0
  for reply in replies:  # each was answered whole, or never begun
    if isinstance(reply, tuple):
      status, text = reply
      assert status in (200, 503)
      assert status == 503 or '[DONE]' in text or json.loads(text)['choices'][0]['text'] is not None
    else:
      assert isinstance(reply, httpx.ConnectError | httpx.ReadError | httpx.RemoteProtocolError)
  assert sum(isinstance(reply, tuple) and reply[0] == 200 for reply in replies) >= 3
