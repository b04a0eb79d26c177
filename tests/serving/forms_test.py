"""Requests and responses in OpenAI's form, read by the official client's types."""

import json
import re

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from cascades.serving import request_forms, response_forms
from cascades.serving.exchanges import (
  Exchange,
  Leg,
  LevelDecision,
  Message,
  ModelError,
  Question,
  Token,
)
from cascades.serving.refusals import Refusal, of_error
from cascades.serving.request_forms import ChatRequest, CompletionRequest
from cascades.serving.response_forms import CHAT, COMPLETIONS, Head

CHAT_BODY = {'model': 'cascade', 'messages': [{'role': 'user', 'content': 'a b'}]}
TEXT_BODY = {'model': 'cascade', 'prompt': 'a b'}


def parsed(form=ChatRequest, most=64, **changes):
  body = (CHAT_BODY if form is ChatRequest else TEXT_BODY) | changes
  return request_forms.parse(json.dumps(body).encode(), form, most)


def test_the_defaults_are_greedy_and_bounded():
  asked = parsed()
  assert asked.question == Question((Message('user', 'a b'),), max_tokens=64)
  assert parsed(CompletionRequest).question == Question('a b', max_tokens=64)
  assert (asked.stream, asked.usage, asked.logprobs, asked.ignored) == (False, False, False, ())


def test_every_field_of_a_chat_reaches_the_question():
  asked = parsed(
    messages=[
      {'role': 'developer',
       'content': [{'type': 'text', 'text': 'be '}, {'type': 'text', 'text': 'kind'}]},
      {'role': 'assistant', 'content': None, 'refusal': 'no', 'tool_calls': None},
    ],
    max_tokens=9, max_completion_tokens=7, temperature=0.5, top_p=0.9, seed=3, stop=['x', 'y'],
    logprobs=True, top_logprobs=4, stream=True, stream_options={'include_usage': True},
    n=1, presence_penalty=0, logit_bias={}, tools=[], response_format={'type': 'text'},
    cascade={'provisional': True},
  )  # fmt: skip
  prompt = (Message('system', 'be kind'), Message('assistant', 'no'))
  assert asked.question == Question(prompt, 7, 0.5, 0.9, 3, ('x', 'y'), 4)
  assert asked.stream
  assert asked.usage
  assert asked.logprobs
  assert asked.provisional
  assert not asked.ignored


def test_a_completion_has_one_prompt_and_lists_alternatives():
  asked = parsed(CompletionRequest, prompt=['a b'], logprobs=0, stop='x', max_tokens=3)
  assert asked.question == Question('a b', 3, stop=('x',))
  assert asked.logprobs
  assert parsed(CompletionRequest, logprobs=5).question.alternatives == 5


def test_fields_without_effect_are_named():
  asked = parsed(
    user='u', metadata={'a': 'b'}, top_p=0.5, top_logprobs=2, stream_options={}, store=False
  )
  assert asked.ignored == ('user', 'metadata', 'store', 'top_p', 'top_logprobs', 'stream_options')
  named = parsed(messages=[{'role': 'user', 'content': 'a', 'name': 'n'}], stream=True,
                 stream_options={'include_obfuscation': True})  # fmt: skip
  assert named.ignored == ('stream_options.include_obfuscation', 'messages[0].name')


@pytest.mark.parametrize(('changes', 'message', 'param'), [
  ({'zip': 1}, 'zip: the field is not understood; leave it out.', 'zip'),
  ({'suffix': 'x'}, 'suffix: texts are continued, not filled in; leave it out.', 'suffix'),
  ({'n': 2}, 'n: invalid enum value 2: one answer is given a request.', 'n'),
  ({'tools': [{}]}, 'tools: expected array of length <= 0: tools are not called.', 'tools'),
  ({'temperature': 3}, 'temperature: expected float <= 2.0.', 'temperature'),
  ({'temperature': 'hot'}, 'temperature: expected float | null, got str.', 'temperature'),
  ({'max_tokens': 65},
   'max_tokens: expected at most 64 tokens of an answer, found 65.', 'max_tokens'),
  ({'max_tokens': 0}, 'max_tokens: expected int >= 1.', 'max_tokens'),
  ({'messages': []}, 'messages: expected array of length >= 1.', 'messages'),
  ({'messages': [{'role': 'tool', 'content': 'x'}]}, "messages[0].role: invalid enum value 'tool'.",
   'messages[0].role'),
  ({'messages': [{'role': 'user', 'content': 'x', 'y': 1}]},
   'messages[0].y: the field is not understood; leave it out.', 'messages[0].y'),
  ({'messages': [{'content': 'x'}]},
   'messages[0].role: the field is required.', 'messages[0].role'),
  ({'stop': ['a'] * 5}, 'stop: expected array of length <= 4.', 'stop'),
])  # fmt: skip
def test_what_is_wrong_is_named(changes, message, param):
  with pytest.raises(Refusal) as refusal:
    parsed(**changes)
  error = refusal.value.body['error']
  assert (refusal.value.status, error['message'], error['param']) == (400, message, param)
  assert error['type'] == 'invalid_request_error'


@pytest.mark.parametrize('body', [
  b'', b'[]', b'null', b'{', b'{"model": NaN}', b'\xff\xfe', b'{"model": "\\ud800"}',
  b'[' * 200_000, b'{"model":' * 5000, b'{"model": "m", "messages": 1e999}',
])  # fmt: skip
@pytest.mark.parametrize('form', [ChatRequest, CompletionRequest])
def test_malformed_bodies_are_refused(body, form):
  with pytest.raises(Refusal) as refusal:
    request_forms.parse(body, form, 64)
  assert refusal.value.status == 400


def exchange(author='large', **changes):
  tokens = (Token('é'.encode()[:1], -0.5, ((b'a', -0.5), (b'b', -2.0))),
            Token('é'.encode()[1:], -0.1, ((b'c', -0.1), (b'd', -3.0))),
            Token(b'', -0.1))  # fmt: skip
  small = Leg('small', 'mine', 'e', tokens[:2], 3, 0, 4, 0.0, 0.5, 0.25, 'stop')
  large = Leg('large', 'huge', 'é', tokens, 5, 2, 3, 0.0, 1.0, 2.0, 'length')
  fields = {
    'id': 'x', 'time': 0.0, 'key': '', 'task': 't', 'question': Question('q'),
    'legs': (small, large), 'author': author, 'flag': '', 'seconds': 2.0, 'status': 200,
    'decisions': (LevelDecision('small', 0.7, 0.5, 1e-4),),
  } | changes  # fmt: skip
  return tokens, Exchange(**fields)


def head(**changes):
  fields = {'id': 'x', 'created': 1, 'model': 'cascade', 'logprobs': True, 'alternatives': 1,
            'ignored': ('user',)} | changes  # fmt: skip
  return Head(**fields)


def test_a_response_is_a_chat_completion_of_the_official_client():
  tokens, done = exchange()
  body = response_forms.response(CHAT, head(), 'é', tokens, done)
  read = ChatCompletion.model_validate(json.loads(json.dumps(body)), strict=True)
  choice = read.choices[0]
  assert (choice.message.content, choice.finish_reason) == ('é', 'length')
  assert [bytes(token.bytes) for token in choice.logprobs.content] == [b'\xc3', b'\xa9']
  assert [top.token for top in choice.logprobs.content[0].top_logprobs] == ['a']
  assert (read.usage.prompt_tokens, read.usage.completion_tokens, read.usage.total_tokens) == (
    5,
    3,
    8,
  )
  assert read.usage.prompt_tokens_details.cached_tokens == 2


def test_a_response_says_who_answered_and_what_it_cost():
  tokens, done = exchange()
  said = response_forms.response(CHAT, head(), 'é', tokens, done)['cascade']
  assert said['author'] == 'large'
  assert (said['score'], said['threshold'], said['deferred'], said['task']) == (0.7, 0.5, True, 't')
  assert (said['discarded_tokens'], said['dollars']) == (4, 2.25)
  assert [(m['model'], m['generated_tokens'], m['dollars']) for m in said['models']] == [
    ('mine', 4, 0.25), ('huge', 3, 2.0)
  ]  # fmt: skip
  assert said['ignored'] == ['user']
  never = response_forms.cascade(
    exchange(decisions=(LevelDecision('small', 0.7, float('inf')),))[1], ()
  )
  assert never['threshold'] is None
  unpriced = done._replace(legs=(done.legs[0]._replace(dollars=None), done.legs[1]))
  assert response_forms.cascade(unpriced, ())['dollars'] is None


def test_a_completion_lists_tokens_with_offsets():
  tokens = (
    Token(b'ab', -0.5, ((b'ab', -0.5), (b'x', -2.0))),
    Token(b'c', float('-inf')),
    Token(b'', 0.0),
  )
  body = response_forms.response(COMPLETIONS, head(alternatives=2), 'abc', tokens, exchange()[1])
  read = Completion.model_validate(json.loads(json.dumps(body)), strict=True)
  listed = read.choices[0].logprobs
  assert (listed.tokens, listed.token_logprobs) == (['ab', 'c'], [-0.5, -9999.0])
  assert (listed.text_offset, listed.top_logprobs[0]) == ([0, 2], {'ab': -0.5, 'x': -2.0})
  chunk = response_forms.chunk(COMPLETIONS, head(), 'c', tokens[1:], 2)
  assert chunk['choices'][0]['logprobs']['text_offset'] == [2]


def test_log_probabilities_that_are_not_asked_for_or_not_known_are_null():
  tokens, done = exchange()
  body = response_forms.response(CHAT, head(logprobs=False), 'é', tokens, done)
  assert body['choices'][0]['logprobs'] is None
  body = response_forms.response(CHAT, head(), 'x', (Token(b'x', None),), done)
  assert body['choices'][0]['logprobs'] is None


@pytest.mark.parametrize(
  ('style', 'form'), [(CHAT, ChatCompletionChunk), (COMPLETIONS, Completion)]
)
def test_a_stream_is_one_of_the_official_client(style, form):
  tokens, done = exchange()
  objects = [
    *response_forms.opening(style, head()),
    response_forms.chunk(style, head(), 'é', tokens, 0),
    response_forms.replaced(style, head()),
    *response_forms.closing(style, head(), done, with_usage=True),
  ]
  read = [form.construct(**json.loads(json.dumps(each))) for each in objects]  # as the client does
  assert read[-1].choices == []
  assert read[-1].usage.completion_tokens == 3
  assert read[-2].choices[0].finish_reason == 'length'
  assert objects[-2]['cascade']['author'] == 'large'
  assert objects[-3]['cascade'] == {'replaced': True}


def test_an_abstention_is_a_refusal_in_openais_form():
  _, done = exchange(author=None, legs=(), flag='abstained')
  body = response_forms.response(CHAT, head(), None, (), done)
  message = ChatCompletion.model_validate(body).choices[0].message
  assert (message.content, message.refusal) == (None, response_forms.ABSTAINED)
  (last,) = response_forms.closing(CHAT, head(), done, with_usage=False)
  assert ChatCompletionChunk.model_validate(last).choices[0].delta.refusal == message.refusal


@pytest.mark.parametrize(('error', 'role', 'status', 'headers'), [
  (ModelError('full', 0.2), 'small', 429, {'Retry-After': '1'}),
  (ModelError('down'), 'small', 503, {}),
  (ModelError('down', 1e9), 'large', 503, {'Retry-After': '3600'}),
  (ValueError('too long'), 'large', 400, {}),
])  # fmt: skip
def test_errors_of_models_are_refusals(error, role, status, headers):
  refusal = of_error(error, role, is_first=role == 'small')
  assert (refusal.status, refusal.headers) == (status, headers)
  assert re.fullmatch('[a-z_]+', refusal.body['error']['code'])
  with pytest.raises(KeyError):
    of_error(KeyError('a bug'), role, is_first=True)
