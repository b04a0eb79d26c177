"""The HTTP application behind a real socket: the official client, faults, limits, and the end."""

import asyncio
import contextlib
import functools
import hashlib
import inspect
import json
import logging
import socket

import httpx
import openai
import pytest

from cascades.serving.calls import Conduct
from cascades.serving.exchanges import ModelError
from cascades.serving.keys import ApiKey, KeyLimits
from cascades.serving.listening import bind
from cascades.serving.service import HttpLimits, Listening, Service
from tests.serving.fake_models import rule
from tests.serving.running import LARGE, SURE, UNSURE, serving

HI = [{'role': 'user', 'content': 'hi'}]
CHAT = {'model': 'cascade', 'messages': HI}


def asynchronous(test):
  """The test in an event loop, with a bound on its time."""

  @functools.wraps(test)
  def run(*arguments, **named):
    asyncio.run(asyncio.wait_for(test(*arguments, **named), 20))

  run.__signature__ = inspect.signature(test)
  return run


async def eventually(condition, seconds=3.0):
  async with asyncio.timeout(seconds):
    while not condition():
      await asyncio.sleep(0.01)


def endless(count=2000):
  return [('x', -0.1)] * count


@asynchronous
async def test_the_official_client_chats_and_completes():
  async with serving(UNSURE) as running:
    client = running.openai()
    chat = await client.chat.completions.create(
      model='cascade', messages=HI, logprobs=True, top_logprobs=2, user='u', temperature=0
    )
    assert chat.choices[0].message.content == 'large'
    assert [t.token for t in chat.choices[0].logprobs.content] == ['la', 'rge']
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2
    assert chat.usage.total_tokens == 8
    assert chat.cascade['author'] == 'large'
    assert chat.cascade['discarded_tokens'] == 4
    assert chat.cascade['ignored'] == ['user']
    text = await client.completions.create(model='cascade', prompt='hi', logprobs=1, max_tokens=2)
    assert text.choices[0].text == 'large'
    assert text.choices[0].logprobs.text_offset == [0, 2]
    assert text.choices[0].finish_reason == 'length'
    raw = await client.chat.completions.with_raw_response.create(model='cascade', messages=HI)
    assert raw.headers['cache-control'] == 'no-store'


@pytest.mark.parametrize('small', [SURE, UNSURE])
@asynchronous
async def test_the_official_client_streams(small):
  async with serving(small) as running:
    client = running.openai()
    stream = await client.chat.completions.create(
      model='cascade', messages=HI, stream=True, logprobs=True,
      stream_options={'include_usage': True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    text = ''.join(chunk.choices[0].delta.content or '' for chunk in chunks[:-1])
    assert text == ('small' if small is SURE else 'large')
    assert chunks[0].choices[0].delta.role == 'assistant'
    assert chunks[-2].choices[0].finish_reason == 'stop'
    assert chunks[-2].cascade['author'] == text
    assert chunks[-1].usage.completion_tokens == 3
    tokens = [t.token for c in chunks[:-1] if c.choices[0].logprobs
              for t in c.choices[0].logprobs.content]  # fmt: skip
    assert ''.join(tokens) == text
    stream = await client.completions.create(model='cascade', prompt='hi', stream=True)
    assert ''.join([chunk.choices[0].text async for chunk in stream]) == text


@asynchronous
async def test_models_are_listed_and_asked_by_name():
  async with serving(UNSURE) as running:
    client = running.openai()
    assert [model.id async for model in client.models.list()] == ['cascade', 'mini', 'maxi']
    assert (await client.models.retrieve('mini')).id == 'mini'
    answer = await client.chat.completions.create(model='mini', messages=HI)
    assert answer.choices[0].message.content == 'small'
    assert answer.cascade['score'] is None
    assert not running.large.questions
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'; there are cascade, mini, maxi"):
      await client.chat.completions.create(model='gpt', messages=HI)


@asynchronous
async def test_errors_are_those_that_the_official_client_knows():
  async with serving(UNSURE, conduct=Conduct(degrade='refuse')) as running:
    client = running.openai()
    with pytest.raises(openai.BadRequestError, match='n: invalid enum value 2') as refused:
      await client.chat.completions.create(model='cascade', messages=HI, n=2)
    assert refused.value.param == 'n'
    with pytest.raises(openai.BadRequestError, match='zip: the field is not understood'):
      await client.completions.create(model='cascade', prompt='x', extra_body={'zip': 1})
    running.small.errors.append(ModelError('full', 2.0))
    with pytest.raises(openai.RateLimitError) as full:
      await client.completions.create(model='cascade', prompt='x')
    assert full.value.response.headers['retry-after'] == '2'
    running.small.errors.append(ValueError('the prompt is too long'))
    with pytest.raises(openai.BadRequestError, match='the prompt is too long'):
      await client.completions.create(model='cascade', prompt='x', stream=True)
    running.large.errors.append(ModelError('down'))
    with pytest.raises(openai.InternalServerError, match='large model cannot answer now: down'):
      await client.completions.create(model='cascade', prompt='x')
    running.large.errors.append(ModelError('cut off'))
    running.large.breaks_after = 1
    stream = await client.completions.create(model='cascade', prompt='x', stream=True)
    with pytest.raises(openai.APIError, match='cut off'):
      _ = [chunk async for chunk in stream]
    assert [exchange.status for exchange in running.records] == [429, 400, 503, 503]


@asynchronous
async def test_a_client_that_gives_up_frees_the_slot():
  async with serving(endless(), limits=HttpLimits(max_tokens=2000)) as running:
    running.small.seconds = 0.01
    with pytest.raises(openai.APITimeoutError):
      await running.openai(timeout=0.2).chat.completions.create(model='cascade', messages=HI)
    await eventually(lambda: running.records)
    assert (running.records[0].status, running.small.running, running.service.running) == (
      499,
      0,
      0,
    )
    assert running.small.written < 100


@pytest.mark.parametrize('model', ['cascade', 'mini'])
@asynchronous
async def test_a_client_that_leaves_a_stream_frees_the_slot(model):
  async with serving(endless(), limits=HttpLimits(max_tokens=2000)) as running:
    running.small.seconds = 0.01
    async with running.client() as client:
      body = CHAT | {'stream': True, 'model': model}
      with contextlib.suppress(httpx.ReadTimeout):
        async with client.stream('POST', '/v1/chat/completions', json=body, timeout=0.3) as reply:
          async for _ in reply.aiter_lines():
            break
    await eventually(lambda: running.records)
    assert (running.records[0].status, running.small.running, running.service.running) == (
      499,
      0,
      0,
    )
    assert running.small.written < 100


@asynchronous
async def test_a_provisional_stream_says_when_its_text_is_void():
  async with (
    serving(UNSURE, conduct=Conduct(stop_early=False)) as running,
    running.client() as client,
  ):
    body = CHAT | {'stream': True, 'cascade': {'provisional': True}}
    reply = await client.post('/v1/chat/completions', json=body)
    data = [line.removeprefix('data: ') for line in reply.text.splitlines() if line]
    assert data[-1] == '[DONE]'
    chunks = [json.loads(each) for each in data[:-1]]
    void = [chunk.get('cascade', {}).get('replaced', False) for chunk in chunks].index(True)
    texts = [chunk['choices'][0]['delta'].get('content', '') for chunk in chunks]
    assert (''.join(texts[:void]), ''.join(texts[void:])) == ('small', 'large')


@asynchronous
async def test_what_is_no_request_is_refused_in_openais_form():
  limits = HttpLimits(max_tokens=16, body_bytes=2000, body_seconds=0.2)
  async with serving(limits=limits) as running, running.client() as client:
    path, kind = '/v1/chat/completions', {'content-type': 'application/json'}
    for content, status in [
      (b'', 400), (b'{', 400), (b'[]', 400), (b'\xff', 400), (b'[' * 1999, 400), (b' ' * 2001, 413),
      (json.dumps(CHAT | {'messages': 'x' * 3000}).encode(), 413),
    ]:  # fmt: skip
      reply = await client.post(path, content=content, headers=kind)
      assert (reply.status_code, set(reply.json())) == (status, {'error'})
    for headers in ({}, {'content-type': 'text/plain'}):
      reply = await client.post(path, content=json.dumps(CHAT).encode(), headers=headers)
      assert reply.status_code == 415
    for method, where, status in [
      ('GET', path, 405), ('POST', '/v1/models', 405), ('GET', '/v2', 404), ('OPTIONS', path, 405),
    ]:  # fmt: skip
      reply = await client.request(method, where, headers={'origin': 'https://elsewhere.example'})
      assert (reply.status_code, set(reply.json())) == (status, {'error'})
      assert not [name for name in reply.headers if name.startswith('access-control')]
    chunked = iter([b'{"model"', b' ' * 3000])

    async def body():
      for each in chunked:
        yield each

    assert (await client.post(path, content=body(), headers=kind)).status_code == 413

    async def slow():
      yield b'{'
      await asyncio.sleep(0.4)
      yield b'}'

    assert (await client.post(path, content=slow(), headers=kind)).status_code == 408
    assert running.service.running == 0
    assert (await client.post(path, json=CHAT)).status_code == 200
    assert running.service.refused == {400: 5, 413: 3, 415: 2, 408: 1}


@asynchronous
async def test_a_server_of_this_machine_is_not_called_by_other_names():
  async with serving() as running, running.client() as client:
    for name, status in [('evil.example', 421), ('', 421), ('[', 421), ('localhost:1', 200)]:
      reply = await client.get('/healthz', headers={'host': name})
      assert reply.status_code == status
  assert Listening(host='0.0.0.0').host_names is None
  assert Listening(names=['Me.example']).host_names == {'me.example'}


@asynchronous
async def test_more_requests_than_there_is_room_for_come_again():
  async with serving(endless(), limits=HttpLimits(max_tokens=20, concurrency=2)) as running:
    running.small.seconds = 0.01
    async with running.client() as client:
      post = functools.partial(client.post, '/v1/chat/completions', json=CHAT)
      replies = await asyncio.gather(*(post() for _ in range(5)))
      assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429]
      full = next(reply for reply in replies if reply.status_code == 429)
      assert full.headers['retry-after'] == '1'
      assert (await post()).status_code == 200


@asynchronous
async def test_keys_are_asked_for_and_limited():
  digest = hashlib.sha256(b'a-long-secret').digest()
  keys = [ApiKey('alice', digest, KeyLimits(requests_per_minute=1))]
  async with serving(keys=keys) as running, running.client() as client:
    for headers in ({}, {'authorization': 'Bearer wrong'}, {'authorization': 'Basic x'}):
      for method, path in [('GET', '/v1/models'), ('POST', '/v1/chat/completions')]:
        reply = await client.request(method, path, headers=headers, json=CHAT)
        assert (reply.status_code, reply.headers['www-authenticate']) == (401, 'Bearer')
    with pytest.raises(openai.AuthenticationError):
      await running.openai().chat.completions.create(model='cascade', messages=HI)
    known = running.openai(api_key='a-long-secret')
    await known.chat.completions.create(model='cascade', messages=HI)
    with pytest.raises(openai.RateLimitError, match='alice may send 1 requests a minute'):
      await known.chat.completions.create(model='cascade', messages=HI)
    assert [exchange.key for exchange in running.records] == ['alice']
    for path in ('/healthz', '/readyz', '/openapi.json'):
      assert (await client.get(path)).status_code == 200


@asynchronous
async def test_a_bug_shows_neither_clients_nor_logs_what_was_asked(caplog):
  class Broken:
    name = 'mini'

    async def answer(self, question):
      raise KeyError(question.prompt)
      yield

  async with serving() as running, running.client() as client:
    members = running.service.cascade.members
    members['small'] = members['small']._replace(model=Broken())
    with caplog.at_level(logging.INFO):
      for stream in (False, True):
        body = {'model': 'cascade', 'prompt': 'my secret', 'stream': stream}
        reply = await client.post('/v1/completions', json=body)
        assert (reply.status_code, reply.json()['error']['type']) == (500, 'server_error')
        assert 'secret' not in reply.text
    assert 'secret' not in caplog.text
    assert 'KeyError at ' in caplog.text
    assert [exchange.status for exchange in running.records] == [500, 500]


@asynchronous
async def test_readiness_names_its_reasons():
  reasons = []
  async with serving(readiness=[lambda: reasons]) as running, running.client() as client:
    assert (await client.get('/readyz')).status_code == 200
    reasons.append('the small model is dead')
    reply = await client.get('/readyz')
    assert (reply.status_code, reply.json()['reasons']) == (503, reasons)
    assert (await client.get('/healthz')).json() == {'status': 'ok'}


@asynchronous
async def test_a_shutdown_finishes_streams_and_takes_on_nothing_more():
  async with serving(endless(), limits=HttpLimits(max_tokens=60)) as running:
    running.small.seconds = 0.01
    body = CHAT | {'stream': True, 'model': 'mini'}
    async with running.client() as client:
      async with client.stream('POST', '/v1/chat/completions', json=body) as reply:
        lines = reply.aiter_lines()
        await anext(lines)
        running.server._end(15)
        rest = [line async for line in lines]
      assert rest[-2] == 'data: [DONE]'
      assert sum('"content":"x"' in line for line in rest) == 60
    assert running.records[0].status == 200
    with pytest.raises(httpx.ConnectError):
      async with running.client() as client:
        await client.get('/healthz')


@pytest.mark.parametrize('signals', [1, 2])
def test_requests_that_an_ending_server_leaves_cause_no_traceback(caplog, signals):
  body = json.dumps(CHAT | {'stream': True, 'model': 'mini'})
  head = f'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n'
  open_still = []

  async def leave():
    connections = Listening(port=0, drain_seconds=1.0)
    limits = HttpLimits(max_tokens=10_000)
    async with serving(endless(), limits=limits, connections=connections) as running:
      running.small.seconds = 0.01
      host, port = running.url.removeprefix('http://').split(':')
      reader, writer = await asyncio.open_connection(host, int(port))
      open_still.extend([reader, writer])
      writer.write(f'{head}Content-Type: application/json\r\n\r\n{body}'.encode())
      assert b'200' in await reader.readline()
      for _ in range(signals):
        running.server._end(15)

  with caplog.at_level('INFO'):
    asyncio.run(asyncio.wait_for(leave(), 10))  # which cancels what is left
  assert 'Ended' in caplog.messages
  assert 'a second signal leaves them' in caplog.text
  assert 'Traceback' not in caplog.text
  assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.slow
@asynchronous
async def test_idle_connections_are_closed_and_too_many_are_refused():
  options = Listening(port=0, connections=20, idle_seconds=0.3, drain_seconds=2.0)
  async with serving(connections=options) as running:
    host, port = running.url.removeprefix('http://').split(':')
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(60)]
    heads = await asyncio.gather(*(reader.read(12) for reader, _ in opened))
    assert heads.count(b'HTTP/1.1 503') >= 40
    assert heads.count(b'') <= 20  # closed after idle_seconds, without a word
    slow_reader, slow_writer = await asyncio.open_connection(host, int(port))
    with contextlib.suppress(ConnectionError):  # it is closed while it is written to
      for _ in range(10):  # a head that never ends
        slow_writer.write(b'G')
        await asyncio.sleep(0.05)
      assert await slow_reader.read() == b''
    assert slow_reader.at_eof() or slow_reader.exception()
    for _, writer in opened:
      writer.close()
    async with running.client() as client:
      assert (await client.post('/v1/chat/completions', json=CHAT)).status_code == 200


def test_a_port_that_is_taken_is_a_sentence():
  message = r'HOST=127.0.0.1 and PORT=\d+ cannot be listened on'
  with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(OSError, match=message):
    bind(Listening(port=taken.getsockname()[1]))


def test_responses_do_not_wait_for_acknowledgments():
  with bind(Listening(port=0)) as listener, socket.create_connection(listener.getsockname()):
    connection, _ = listener.accept()
    with connection:
      assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_names_of_models_must_differ():
  async def run():
    async with serving() as running:
      with pytest.raises(ValueError, match='must have different names'):
        Service(running.service.cascade, name='mini')
      with pytest.raises(ValueError, match='no "/"'):
        Service(running.service.cascade, name='a/b')

  asyncio.run(run())


@asynchronous
async def test_an_abstention_has_no_content():
  async with serving(UNSURE, LARGE) as running:
    cascade = running.service.cascade
    del cascade.members['large']
    cascade.policy = rule(0.5).of(['small'])
    client = running.openai()
    answer = await client.chat.completions.create(model='cascade', messages=HI)
    assert answer.choices[0].message.content is None
    assert 'not sure enough' in answer.choices[0].message.refusal
    assert answer.cascade['flag'] == 'abstained'
