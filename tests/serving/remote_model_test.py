"""A model behind a URL: what is sent, what is read, and every way in which a server can fail."""

import asyncio
import json

import pytest

from cascades.inference.endpoints import Address, Endpoint
from cascades.serving import remote_model
from cascades.serving.exchanges import Message, ModelError, Question, Token
from cascades.serving.remote_model import RemoteModel, body_of
from tests.serving import scripted_server
from tests.serving.scripted_server import DONE, USAGE, delta, event, head

GOOD = [
  head(),
  delta(''),
  delta('a', logprob=-0.5),
  delta('é', logprob=-0.25),
  delta(None, 'stop'),
  USAGE,
  DONE,
]
QUESTION = Question('hi', max_tokens=4)


def ask(parts, question=QUESTION, *, seconds=5.0, **endpoint):
  async def run():
    async with scripted_server.running() as script:
      script.parts = parts
      model = RemoteModel(Address(script.url, 'mine'), Endpoint(**endpoint), seconds=seconds)
      try:
        pieces = [piece async for piece in model.answer(question)]
      finally:
        await model.aclose()
      return pieces, script.requests

  return asyncio.run(run())


def test_an_answer_arrives_piece_by_piece_with_its_counts():
  pieces, ((_, body),) = ask(GOOD)
  assert [piece.text for piece in pieces] == ['a', 'é', '']
  assert pieces[0].tokens == (Token(b'a', -0.5, ((b'a', -0.5),)),)
  assert pieces[1].tokens[0].content == 'é'.encode()
  last = pieces[-1]
  assert (last.finish, last.prompt_tokens, last.cached_tokens, last.generated_tokens) == (
    'stop', 7, 4, 2
  )  # fmt: skip
  assert body == {
    'model': 'mine', 'messages': [{'role': 'user', 'content': 'hi'}], 'temperature': 0.0,
    'stream': True, 'stream_options': {'include_usage': True}, 'max_tokens': 4, 'logprobs': True,
  }  # fmt: skip


def test_bodies_have_the_form_of_their_api():
  sampled = Question('hi', 9, 0.5, 0.9, (1 << 40) + 3, ('x',), 2)
  chat = body_of(
    sampled, 'm', Endpoint(system='be kind', fields={'min_p': 0.1, 'max_tokens': None})
  )
  assert chat['messages'][0] == {'role': 'system', 'content': 'be kind'}
  assert (chat['seed'], chat['top_p'], chat['stop'], chat['top_logprobs']) == (3, 0.9, ['x'], 2)
  assert chat['min_p'] == 0.1
  assert 'max_tokens' not in chat
  text = body_of(sampled, 'm', Endpoint(api='completions', logprobs=False))
  assert text['prompt'] == 'hi'
  assert 'logprobs' not in text
  one = body_of(Question((Message('user', 'yo'),)), 'm', Endpoint(api='completions'))
  assert (one['prompt'], one['logprobs']) == ('yo', 1)
  with pytest.raises(ValueError, match='several messages'):
    body_of(
      Question((Message('system', 'a'), Message('user', 'b'))), 'm', Endpoint(api='completions')
    )


def test_completions_list_tokens_by_text():
  choice = {'text': 'ab', 'finish_reason': 'length', 'logprobs': {
    'tokens': ['a', 'b'], 'token_logprobs': [-0.1, -9999.0],
    'top_logprobs': [{'x': -3.0, 'a': -0.1}, {'y': -0.7, 'z': -0.2}],
  }}  # fmt: skip
  pieces, _ = ask([head(), event({'choices': [choice]}), DONE], api='completions')
  assert pieces[0].tokens == (
    Token(b'a', -0.1, ((b'a', -0.1), (b'x', -3.0))), Token(b'b', -0.7, ((b'z', -0.2), (b'y', -0.7)))
  )  # fmt: skip
  assert pieces[-1].finish == 'length'


def test_text_without_log_probabilities_is_a_token_without_one():
  pieces, _ = ask([head(), delta('ab'), delta('c', 'stop'), DONE])
  assert [piece.tokens for piece in pieces] == [(Token(b'ab', None),), (Token(b'c', None),), ()]


def test_a_server_that_does_not_stream_is_read_whole():
  body = {'choices': [{'message': {'content': 'ab'}, 'finish_reason': 'stop'}],
          'usage': {'prompt_tokens': 3, 'completion_tokens': 1}}  # fmt: skip
  pieces, _ = ask([head(kind='application/json'), json.dumps(body).encode()])
  assert (pieces[0].text, pieces[1].prompt_tokens) == ('ab', 3)


def test_the_key_is_sent_and_never_shown(monkeypatch):
  monkeypatch.setenv('MY_KEY', 'sk-very-secret')
  with pytest.raises(ModelError) as error:
    ask([head('401 No', 'application/json'), b'{"error": {"message": "no sk-very-secret"}}'],
        key_variable='MY_KEY')  # fmt: skip
  assert 'secret' not in str(error.value)
  assert '***' in str(error.value)
  _, ((sent, _),) = ask(GOOD, key_variable='MY_KEY')
  assert 'authorization: bearer sk-very-secret' in sent.lower()
  with pytest.raises(ValueError, match='names no variable'):
    RemoteModel(Address('http://x/v1', 'm'), Endpoint(key_variable='NOT_SET'))


FAULTS = {
  'no json': [head(), event('{"choices": ['), DONE],
  'no object': [head(), event('[1]'), DONE],
  'nan': [head(), event('{"choices": [{"delta": {"content": NaN}}]}'), DONE],
  'wrong types': [head(), event({'choices': [{'delta': {'content': 3}}]}), DONE],
  'deep': [head(), event('{"error":' * 100_000), DONE],
  'error in the stream': [head(), delta('a'), event({'error': {'message': 'out of memory'}})],
  'half closed': [head(), delta('a', logprob=-0.1)],
  'half an event': [head(), delta('a'), b'data: {"choi'],
  'done without a finish': [head(), delta('a'), DONE],
  'nothing': [],
  'half a head': [b'HTTP/1.1 200 O'],
  'no http': [b'hello\r\n\r\n'],
  'short body': [head(kind='application/json', Content_Length='1000'), b'{"choices": ['],
  'html': [head(kind='text/html'), b'<html>'],
  'empty json': [head(kind='application/json'), b'{}'],
  'a redirect': [head('302 Found', Location='http://127.0.0.1:1/')],
  'a filter': [head(), delta('a'), delta(None, 'content_filter'), DONE],
  'invalid utf-8': [head(), b'data: {"choices": "\xff"}\n\n'],
}


@pytest.mark.parametrize('fault', FAULTS)
def test_what_a_broken_server_sends_is_an_error_of_the_model(fault):
  with pytest.raises(ModelError):
    ask(FAULTS[fault])


@pytest.mark.parametrize(('status', 'retry_after'), [
  ('429 Too Many Requests', 3.0), ('500 Oops', None), ('503 Unavailable', 3.0), ('404 No', None),
])  # fmt: skip
def test_errors_of_the_server_say_when_to_try_again(status, retry_after):
  headers = {'Retry_After': '3'} if retry_after else {}
  with pytest.raises(ModelError, match='answered') as error:
    ask([head(status, 'application/json', **headers), b'{"error": {"message": "busy"}}'])
  assert error.value.retry_after == retry_after


def test_a_question_that_the_server_refuses_is_a_value_error():
  with pytest.raises(ValueError, match='prompt is too long'):
    ask(
      [head('400 Bad Request', 'application/json'), b'{"error": {"message": "prompt is too long"}}']
    )


def test_a_silent_server_is_an_error():
  with pytest.raises(ModelError, match='is silent'):
    ask([head(), delta('a'), 2.0], seconds=0.1)


def test_a_server_that_is_not_there_is_an_error():
  async def run():
    model = RemoteModel(Address('http://127.0.0.1:9/v1', 'm'), Endpoint())
    return [piece async for piece in model.answer(QUESTION)]

  with pytest.raises(ModelError):
    asyncio.run(run())


def test_a_body_that_does_not_end_is_cut(monkeypatch):
  monkeypatch.setattr(remote_model, 'MOST_BYTES', 10_000)
  with pytest.raises(ModelError, match='too long'):
    ask([head(), *[delta('a' * 500)] * 40])
  monkeypatch.setattr(remote_model, 'MOST_EVENT', 2_000)
  with pytest.raises(ModelError, match='too long'):
    ask([head(), b'data: ', *[b'a' * 500] * 8])


def test_closing_an_answer_ends_the_connection():
  async def run():
    async with scripted_server.running() as script:
      script.parts = [head(), delta('a'), delta('b'), 5.0, delta('c')]
      model = RemoteModel(Address(script.url, 'mine'), Endpoint())
      pieces = model.answer(QUESTION)
      assert (await anext(pieces)).text == 'a'
      await pieces.aclose()
      await asyncio.wait_for(script.closed.wait(), 3)
      await model.aclose()

  asyncio.run(run())
