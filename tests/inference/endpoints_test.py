"""Tables of models behind URLs, from a server on a real socket."""

import functools
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from etils import epath

from cascades import deferral, evaluate
from cascades import infer as inference
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.inference import (
  answers,
  endpoint_client,
  endpoints,
  responses,
  trained_model,
)
from cascades.predictions import shards
from cascades.reporting import figures
from cascades.reporting.report import Report
from cascades.tasks import local
from tests import openai_server, tiny
from tests.openai_server import closed, content, silent, status, truncated

ROOT = pathlib.Path(__file__).parents[2]
TEMPORARY = tempfile.TemporaryDirectory(prefix='cascades-endpoints-')
SHARED = pathlib.Path(TEMPORARY.name)  # rows and their records
KEY = 'sk-secret-0123456789'
PRICES = {'prompt': 1e-3, 'generated': 1e-2}


@pytest.fixture
def server():
  with openai_server.running() as running:
    yield running


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(endpoint_client, 'FIRST_WAIT', 0.01)


def limits(**changes):
  return endpoint_client.Limits(**{'tries': 4, **changes})


@functools.cache
def distinct():
  """32 different words of three or four letters to be copied in capitals, backwards."""
  words = [
    ' '.join(word)
    for short_and_long in zip(*(itertools.permutations('abcde', n) for n in (3, 4)), strict=False)
    for word in short_and_long
  ]
  lines = [
    json.dumps({'id': f'test-{i}', 'inputs': word, 'targets': word[::-1].upper()})
    for i, word in enumerate(words[:32])
  ]
  (SHARED / 'test.jsonl').write_text('\n'.join(lines))
  return local.local_jsonl('words', {'test': str(SHARED / 'test.jsonl')})


def infer(server, directory, *, model='small', url=None, **changes):
  """Table of the server's answers to the 32 rows of the tiny task."""
  own = {key: changes.pop(key) for key in list(changes) if key in ENDPOINT}
  options = {'parameters': 1e6, 'responses_dir': str(directory / 'responses'), 'limits': limits()}
  tiny.infer(**{
    'checkpoint_path': f'{url or server.url}#{model}' if url or server else None,
    'infer_output_dir': str(directory / 'table'),
    'task': changes.pop('task', None) or distinct(),
    'task_feature_lengths': tiny.LENGTHS,
    'batch_size': 8,
    'shard_rows': 10,
    'records_dir': str(SHARED / 'records'),
    'endpoint': endpoints.Endpoint(**options | own),
    **changes,
  })  # fmt: skip
  (table,) = shards.read(directory / 'table' / 'test')
  return table


ENDPOINT = {'api', 'parameters', 'key_variable', 'system', 'fields', 'logprobs', 'limits'}


def stored_rows(directory):
  paths = sorted((directory / 'table' / 'test').glob('*-of-?????'))
  return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize('api', ['chat', 'completions'])
@pytest.mark.parametrize('alternatives', [0, 3])
def test_the_table_holds_what_the_server_wrote(server, tmp_path, api, alternatives):
  table = infer(server, tmp_path, api=api, alternatives=alternatives)
  assert list(table.ids) == [f'test-{number}' for number in range(32)]
  for row, prompt in enumerate(table.inputs):
    tokens, logprobs = openai_server.answer('small', prompt)
    assert table.predictions[row] == ''.join(tokens)
    np.testing.assert_allclose(table.tokens(slice(row, row + 1)), logprobs, rtol=1e-6)
    assert table.column('prompt_tokens')[row] == len(prompt.split())
    assert table.column('generated_tokens')[row] == len(tokens)
  right = [a in t for a, t in zip(table.predictions, table.targets, strict=True)]
  np.testing.assert_array_equal(table.statistics['accuracy'][:, 0], right)
  assert 5 < sum(right) < 32
  assert (table.column('seconds') > 0).all()
  if alternatives:
    np.testing.assert_allclose(table.alternatives - table.alternatives[:, :1], [[0, -1, -2]] * len(
      table.alternatives), atol=1e-6)  # fmt: skip
  assert (table.alternatives is None) == (not alternatives)
  (paths,) = {path for path, *_ in server.requests}
  assert paths == ('/v1/chat/completions' if api == 'chat' else '/v1/completions')


def test_the_manifest_names_server_model_and_requests(server, tmp_path):
  manifest = infer(server, tmp_path, system='Be brief.', fields={'min_p': 0.1}).manifest
  assert manifest['model'] == {'name': 'small', 'url': server.url, 'api': 'chat'}
  assert manifest['checkpoint'] == f'{server.url}#small'
  assert (manifest['parameters'], manifest['flops_per_token']) == (10**6, 2e6)
  assert manifest['endpoint'] == {
    'system': 'Be brief.', 'fields': {'min_p': 0.1}, 'logprobs': True
  }  # fmt: skip
  assert manifest['precision'] == manifest['vocabulary'] == 'unknown'
  assert (manifest['refused'], manifest['cut_off']) == (0, 0)
  _, headers, sent = server.requests[0]
  assert sent == {
    'model': 'small', 'temperature': 0.0, 'max_tokens': 8, 'logprobs': True, 'min_p': 0.1,
    'messages': [{'role': 'system', 'content': 'Be brief.'},
                 {'role': 'user', 'content': sent['messages'][-1]['content']}],
  }  # fmt: skip
  assert 'Authorization' not in headers


def test_draws_have_a_seed_of_their_own_which_the_next_run_repeats():
  def seeds(seed):
    options = answers.DecodingOptions(temperature=0.7, top_p=0.9, seed=seed)
    requests = endpoints.Requests(
      endpoints.Address('http://h/v1', 'm'), endpoints.Endpoint(parameters=1), options, 8
    )
    bodies = [requests.body('x', number) for number in range(50)]
    assert all((b['temperature'], b['top_p']) == (0.7, 0.9) and 'top_k' not in b for b in bodies)
    return [b['seed'] for b in bodies]

  assert len({*seeds(0), *seeds(1)}) == 100
  assert seeds(0) == seeds(0)
  assert all(0 <= seed < 1 << 31 for seed in seeds(0))


def test_fields_can_be_left_out():
  requests = endpoints.Requests(
    endpoints.Address('http://h/v1', 'm'),
    endpoints.Endpoint(
      parameters=1,
      logprobs=False,
      fields={'temperature': None, 'max_tokens': None, 'max_completion_tokens': 9},
    ),
    answers.DecodingOptions(),
    8,
  )
  assert requests.body('x', 0) == {
    'model': 'm', 'messages': [{'role': 'user', 'content': 'x'}], 'max_completion_tokens': 9,
  }  # fmt: skip


def test_no_model_is_loaded_or_built_for_an_endpoint(server, tmp_path, monkeypatch):
  monkeypatch.setattr(trained_model, 'load', lambda *_, **__: pytest.fail('a model is loaded'))
  monkeypatch.setattr(answers, 'Generator', lambda *_, **__: pytest.fail('a model is built'))
  monkeypatch.setattr(inference.Devices, 'use', lambda _: pytest.fail('a mesh is made'))
  infer(server, tmp_path)


FAULTS = {
  'malformed JSON': content(b'{"choices": [}'),
  'not UTF-8': content(b'\xff\xfe'),
  'a list': content(b'[]'),
  'deep JSON': content(b'[' * 100_000),
  'no choices': content(b'{"error": {"message": "overloaded", "code": 502}}'),
  'empty choices': content(b'{"choices": []}'),
  'a truncated body': truncated,
  'a closed connection': closed,
  'too slow': silent(0.6),
  'too many requests': status(429),
  'a server error': status(500),
  'unavailable': status(503, **{'Retry-After': '0.01'}),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_failure_that_passes_is_tried_again(server, tmp_path, name):
  server.faults += [FAULTS[name], None, FAULTS[name]]
  seconds = 0.3 if name == 'too slow' else 10.0
  table = infer(server, tmp_path, limits=limits(seconds=seconds))
  assert len(table.ids) == 32
  assert len(server.requests) == 34
  assert table.predictions[0]


@pytest.mark.parametrize('name', ['malformed JSON', 'a truncated body', 'a server error'])
def test_a_failure_that_stays_ends_the_run_with_a_sentence_and_answers_are_kept(
  server, tmp_path, name
):
  server.faults += [None] * 15 + [FAULTS[name]] * 40
  with pytest.raises(OSError, match=r'failed in 2 tries of one request.*rerun the same command'):
    infer(server, tmp_path, limits=limits(tries=2))
  asked = len(server.requests)
  server.faults.clear()
  infer(server, tmp_path)
  assert len(server.requests) - asked == 32 - 15


def test_the_wait_that_the_server_asks_for_is_kept_by_all_requests(server, tmp_path, monkeypatch):
  waits = []
  monkeypatch.setattr(endpoint_client.Pace, 'pause', lambda self, seconds: waits.append(seconds))
  server.faults += [status(429, **{'Retry-After': '0.2'})]
  infer(server, tmp_path)
  assert waits == [0.2]
  for header, least, most in (
    ('7', 7, 7), ('Wed, 21 Oct 2015 07:28:00 GMT', 0, 0), ('nan', 0, 0), ('x', 0, 0), ('', 0, 0),
    ('Wed, 21 Oct 2115 07:28:00 GMT', 1e9, 1e10), ('-3', 0, 0),
  ):  # fmt: skip
    assert least <= endpoint_client._pause(header) <= most


def test_a_wait_of_hours_ends_the_run(server, tmp_path):
  server.faults += [status(429, **{'Retry-After': '7200'})]
  with pytest.raises(OSError, match=r'It asks to wait 2:00:00: rerun'):
    infer(server, tmp_path)


def test_pauses_and_rates_space_requests(monkeypatch):
  now = [100.0]
  slept = []

  class Ended:
    def wait(self, seconds):
      slept.append(round(seconds, 6))

  monkeypatch.setattr(endpoint_client.time, 'monotonic', lambda: now[0])
  pace = endpoint_client.Pace(30, Ended())
  for _ in range(3):
    pace.wait()
  assert slept == [2.0, 4.0]
  pace.pause(60)
  pace.wait()
  assert slept[-1] == 60.0


STOPS = {
  'unauthorized': (status(401, 'bad'), r'401: bad \(a key is expected\).*API_KEY_VARIABLE'),
  'forbidden': (status(403), 'answered 403'),
  'no such model': (status(404, 'The model `small` does not exist'), '404: The model.*is wrong'),
  'no money': (status(402), 'answered 402: no.*rerun'),
  'no quota': (status(429, 'insufficient_quota'), '429: insufficient_quota'),
  'moved': (lambda h: openai_server.send(h, 301, b'', {'Location': 'http://x/'}), 'answered 301'),
}  # fmt: skip


@pytest.mark.parametrize('name', STOPS)
def test_a_server_that_refuses_the_client_ends_the_run_at_once(server, tmp_path, name):
  fault, message = STOPS[name]
  server.faults += [fault] * 100
  with pytest.raises(OSError, match=message) as error:
    infer(server, tmp_path, limits=limits(concurrency=2))
  assert '\n' not in str(error.value)
  assert len(server.requests) <= 4
  assert not list((tmp_path / 'table').rglob('*-of-*'))


def test_a_server_that_does_not_run_is_named_in_a_sentence(tmp_path):
  with openai_server.running() as server:
    url = server.url
  with pytest.raises(OSError, match=rf'{url} cannot be reached .*: start the server, or correct'):
    infer(None, tmp_path, url=url)


def test_a_row_that_is_refused_has_no_answer_and_defers_first(server, tmp_path):
  server.faults += [None] * 3 + [status(400, 'maximum context length is 8192 tokens')]
  table = infer(server, tmp_path, alternatives=2, limits=limits(concurrency=1))
  (row,) = [row for row in stored_rows(tmp_path) if 'refused' in row['aux']]
  number = list(table.ids).index(row['aux']['id'])
  assert row['aux']['refused'] == '400: maximum context length is 8192 tokens'
  assert (table.predictions[number], table.lengths[number]) == ('', 0)
  assert table.manifest['refused'] == 1
  assert table.alternatives is not None
  for name in ('average', 'minimum', 'entropy', 'margin'):
    decider = deferral.DECIDERS[name]
    scores = decider.score(table)
    assert np.flatnonzero(scores == scores.max()).tolist() == [number]
  assert len(server.requests) == 32  # a refusal is not tried again


NO_TEXT = {
  'a call of a tool': {'content': None, 'tool_calls': [{}]},
  'a list': {'content': [{'type': 'text'}]},
}


@pytest.mark.parametrize('name', NO_TEXT)
def test_a_response_without_text_is_a_refused_row(server, tmp_path, name):
  fifth = json.loads((SHARED / 'test.jsonl').read_text().splitlines()[4])

  def change(response, request):
    if request['messages'][-1]['content'] == fifth['inputs']:
      response['choices'][0]['message'] |= NO_TEXT[name]
    return response

  server.change = change
  table = infer(server, tmp_path, limits=limits(prices=PRICES))
  refused = [row['aux'] for row in stored_rows(tmp_path) if 'refused' in row['aux']]
  assert [aux['id'] for aux in refused] == ['test-4']
  assert refused[0]['dollars'] > 0  # it was paid for
  assert table.manifest['refused'] == 1


def test_a_server_that_refuses_every_row_ends_the_run(server, tmp_path):
  server.faults += [status(400, 'unknown field temperature')] * 100
  with pytest.raises(OSError, match=r'refuses every row, 8 so far: 400: unknown field temperature'):
    infer(server, tmp_path, limits=limits(concurrency=1))
  assert not list((tmp_path / 'table').rglob('*-of-*'))


def test_a_server_that_refuses_logprobs_names_the_setting(server, tmp_path):
  server.faults += [status(400, '`logprobs` is not supported with this model')] * 100
  with pytest.raises(OSError, match=r'`logprobs` is not supported.*LOGPROBS=False'):
    infer(server, tmp_path)
  server.faults.clear()
  table = infer(server, tmp_path, logprobs=False, overwrite=True)
  assert not table.lengths.any()
  assert 'logprobs' not in server.requests[-1][2]


def without_logprobs(response, request=None):
  response['choices'][0]['logprobs'] = None
  return response


def test_a_server_without_logprobs_gives_a_table_without(server, tmp_path, capsys):
  server.change = without_logprobs
  table = infer(server, tmp_path)
  assert not table.lengths.any()
  assert table.column('generated_tokens').all()
  assert deferral.missing(['token_logprobs'], table)


@pytest.mark.parametrize('resumed', [False, True])
def test_measured_and_unmeasured_answers_are_not_mixed(server, tmp_path, resumed):
  if resumed:  # the first shard has log-probabilities, and the server then gives none
    with pytest.raises(OSError, match=r'MAX_REQUESTS=15'):
      infer(server, tmp_path, limits=limits(requests=15, concurrency=1))
    server.change = without_logprobs
  else:
    server.change = lambda response, _: (
      without_logprobs(response) if len(server.requests) > 20 else response
    )
  with pytest.raises(OSError, match=r"gave no log-probabilities for row 'test-.*LOGPROBS=False"):
    infer(server, tmp_path)


BAD_LOGPROBS = {
  'a text': 'many', 'no list': {'content': 3}, 'no number': {'content': [{'logprob': 'x'}]},
  'above 0': {'content': [{'logprob': 3.0}]}, 'infinite': {'content': [{'logprob': -1e999}]},
}  # fmt: skip


@pytest.mark.parametrize('name', BAD_LOGPROBS)
def test_logprobs_that_cannot_be_read_end_the_run_with_a_sentence(server, tmp_path, name):
  def change(response, request):
    response['choices'][0]['logprobs'] = BAD_LOGPROBS[name]
    return response

  server.change = change
  with pytest.raises(
    OSError, match=r"answered row 'test-.* with numbers that cannot be read: .*LOG"
  ):
    infer(server, tmp_path)


def test_tokens_may_hold_a_part_of_a_character(server, tmp_path):
  def change(response, request):
    choice = response['choices'][0]
    choice['message']['content'] = 'né \ud83d'
    choice['logprobs'] = {
      'content': [
        {'token': 'n', 'logprob': -0.1, 'bytes': [110], 'top_logprobs': []},
        {'token': '�', 'logprob': -0.2, 'bytes': [195], 'top_logprobs': []},
        {'token': '\udca9', 'logprob': -0.3, 'bytes': [169], 'top_logprobs': []},
      ]
    }
    return response

  server.change = change
  table = infer(server, tmp_path)
  assert set(table.predictions) == {'né \ud83d'}
  assert set(table.lengths) == {3}


def test_llama_cpp_lists_the_tokens_of_completions_as_in_a_chat(server, tmp_path):
  def change(response, request):
    chat = openai_server.body('/chat/completions', {
      **request, 'messages': [{'content': request['prompt']}], 'logprobs': True, 'top_logprobs': 1,
    })  # fmt: skip
    response['choices'][0]['logprobs'] = chat['choices'][0]['logprobs']
    return response

  server.change = change
  table = infer(server, tmp_path, api='completions')
  assert (table.lengths == table.column('generated_tokens')).all()


def test_cut_off_answers_are_counted(server, tmp_path):
  def change(response, request):
    response['choices'][0]['finish_reason'] = 'length'
    return response

  server.change = change
  assert infer(server, tmp_path).manifest['cut_off'] == 32


def test_a_run_that_is_repeated_asks_nothing_and_writes_nothing_else(server, tmp_path):
  infer(server, tmp_path)
  asked = len(server.requests)
  files = {path: path.read_bytes() for path in (tmp_path / 'table').rglob('*') if path.is_file()}
  infer(server, tmp_path)
  for path in (tmp_path / 'table').rglob('*-00001-of-*'):
    path.unlink()
  infer(server, tmp_path)  # a lost shard is made of stored responses
  assert len(server.requests) == asked
  assert {path: path.read_bytes() for path in files} == files


def test_equal_prompts_get_the_same_response(server, tmp_path):
  table = infer(server, tmp_path, task=tiny.task(tmp_path), limits=limits(concurrency=16))
  assert len(server.requests) == len(set(table.inputs)) < 32
  infer(server, tmp_path, task=tiny.task(tmp_path), temperature=1.0, overwrite=True)
  assert len(server.requests) == len(set(table.inputs)) + 32  # but draws of their own


VARIANTS = [
  {}, {'url': 'http://h/v2'}, {'model': 'n'}, {'prompt': 'y'}, {'system': 'x'}, {'max_tokens': 9},
  {'fields': {'min_p': 0.1}}, {'logprobs': False}, {'alternatives': 1}, {'temperature': 1.0},
  {'temperature': 1.0, 'seed': 1}, {'temperature': 1.0, 'top_p': 0.5}, {'api': 'completions'},
]  # fmt: skip


def test_responses_are_stored_by_everything_that_matters(tmp_path):
  """Only one of several requests that differ in anything finds a response."""
  sent = []
  for variant in VARIANTS:
    options = {k: v for k, v in variant.items() if k in ('temperature', 'seed', 'top_p')}
    requests = endpoints.Requests(
      endpoints.Address(variant.get('url', 'http://h/v1'), variant.get('model', 'm')),
      endpoints.Endpoint(
        **{'parameters': 1, **{k: v for k, v in variant.items() if k in ENDPOINT}}
      ),
      answers.DecodingOptions(**options),
      variant.get('max_tokens', 8),
      variant.get('alternatives', 0),
    )
    body = requests.body(variant.get('prompt', 'x'), 0)
    sent.append((f'{requests.address.url}/{requests.path}', body))
  for url, body in sent:
    stored = responses.Responses(epath.Path(tmp_path) / str(sent.index((url, body))))
    stored.write(responses.Response(url, body, {'choices': []}, 1.0))
    assert [stored.read(*other) is not None for other in sent] == [
      other == (url, body) for other in sent
    ]
    assert sum(other == (url, body) for other in sent) == 1


def test_another_model_is_another_origin(server, tmp_path):
  infer(server, tmp_path)
  with pytest.raises(ValueError, match=r"checkpoint is 'http.*' there and 'http.*' here"):
    infer(server, tmp_path, model='large')


def test_a_damaged_response_is_asked_for_again(server, tmp_path):
  infer(server, tmp_path)
  asked = len(server.requests)
  path = next(iter(sorted((tmp_path / 'responses').rglob('*.json'))))
  path.write_bytes(path.read_bytes()[:30])
  infer(server, tmp_path, overwrite=True, shard_rows=5)
  assert len(server.requests) == asked + 1


@pytest.mark.parametrize('concurrency', [1, 5])
def test_a_budget_of_requests_is_kept_and_what_was_paid_for_is_resumed(
  server, tmp_path, concurrency
):
  server.faults += [None, status(500)]
  options = limits(requests=12, concurrency=concurrency)
  with pytest.raises(OSError, match=r'MAX_REQUESTS=12 requests are sent.*rerun the same command'):
    infer(server, tmp_path, limits=options)
  assert len(server.requests) == 12
  assert len(list((tmp_path / 'responses').rglob('*.json'))) == 11
  infer(server, tmp_path)
  assert len(server.requests) - 12 == 32 - 11


def test_a_budget_of_money_is_never_exceeded(server, tmp_path):
  server.delay = 0.01
  options = limits(dollars=1.0, prices=PRICES, concurrency=3)
  with pytest.raises(OSError, match=r'MAX_DOLLARS=1 does not cover another request.*spent.*rerun'):
    infer(server, tmp_path, limits=options)
  paid = [json.loads(p.read_text())['response'] for p in (tmp_path / 'responses').rglob('*.json')]
  spent = sum(endpoint_client.paid(options.priced, body) for body in paid)
  assert 0.6 < spent <= 1.0
  assert server.most_at_once > 1
  table = infer(server, tmp_path, limits=limits(prices=PRICES))
  expected = 1e-3 * table.column('prompt_tokens') + 1e-2 * table.column('generated_tokens')
  np.testing.assert_allclose(table.column('dollars'), expected, rtol=1e-6)


def test_prices_charge_cached_tokens_as_the_server_reports_them():
  prices = endpoint_client.Limits(prices={**PRICES, 'cached_prompt': 1e-4, 'request': 5.0}).priced
  usage = {'prompt_tokens': 100, 'completion_tokens': 10}
  assert endpoint_client.paid(prices, {'usage': usage}) == pytest.approx(5.2)
  usage |= {'prompt_tokens_details': {'cached_tokens': 60}}
  assert endpoint_client.paid(prices, {'usage': usage}) == pytest.approx(5 + 0.04 + 0.006 + 0.1)
  assert endpoint_client.paid(prices, {}) is None


def test_a_response_that_was_lost_counts_as_paid(server, tmp_path):
  """The server may have billed what never arrived; one that refused at once did not."""
  spent = []
  for fault in (status(500), closed):
    server.faults += [fault]
    stored = responses.Responses(epath.Path(tmp_path / fault.__name__))
    options = limits(prices=PRICES)
    with endpoint_client.Client(server.url, key=None, limits=options, responses=stored) as client:
      request = {'model': 'small', 'max_tokens': 100, 'messages': [{'content': 'a b'}]}
      client.ask('chat/completions', request)
      spent.append(client.budget.dollars)
  answered = 2 * 1e-3 + 2 * 1e-2
  assert spent[0] == pytest.approx(answered)
  assert spent[1] > answered + 100 * 1e-2


def test_requests_are_sent_together_up_to_the_limit(server, tmp_path):
  server.delay = 0.02
  infer(server, tmp_path, limits=limits(concurrency=4))
  assert server.most_at_once == 4


def test_the_key_is_sent_and_written_nowhere(server, tmp_path, monkeypatch, caplog, capsys):
  monkeypatch.setenv('MY_KEY', KEY)
  repeated = status(400, f'Bearer {KEY} is not welcome in row 3')
  server.change = lambda response, _: {**response, 'echo': f'Bearer {KEY}'}
  server.faults += [None, repeated, status(500, KEY)]
  infer(server, tmp_path, key_variable='MY_KEY', limits=limits(concurrency=1))
  server.faults += [status(401, f'Incorrect API key provided: {KEY}')] * 9
  with pytest.raises(OSError, match=r'401: .*\*\*\* \(the key is not accepted\)') as error:
    infer(server, tmp_path, model='large', overwrite=True, key_variable='MY_KEY')
  assert {headers['Authorization'] for _, headers, _ in server.requests} == {f'Bearer {KEY}'}
  written = [path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()]
  assert len(written) > 20
  assert not [data for data in written if KEY.encode() in data]
  output = capsys.readouterr()
  assert KEY not in str(error.value) + caplog.text + output.out + output.err


@pytest.mark.parametrize('value', ['', ' ', 'two words', 'line\nfeed', 'ключ'])
def test_a_key_that_no_header_takes_is_refused_without_showing_it(monkeypatch, value):
  monkeypatch.setenv('MY_KEY', value)
  with pytest.raises(ValueError, match='MY_KEY holds no key') as error:
    endpoints.Endpoint(key_variable='MY_KEY').key()
  assert not value.strip() or value not in str(error.value)


def test_a_key_in_the_place_of_its_variable_is_not_shown():
  for name in (KEY, 'NO_SUCH_VARIABLE'):
    with pytest.raises(ValueError, match='API_KEY_VARIABLE names no variable') as error:
      endpoints.Endpoint(key_variable=name).key()
    assert name not in str(error.value)


def test_addresses_are_read_and_secrets_in_them_refused():
  assert endpoints.parse('http://h:1/v1/#meta/llama:8b') == ('http://h:1/v1', 'meta/llama:8b')
  assert endpoints.is_url('https://api.openai.com/v1#m')
  assert not endpoints.is_url('gs://b/run')
  for path, message in (
    ('http://h/v1', 'names no model'), ('http:///v1#m', 'names no host'),
    ('http://h:port/v1#m', 'no URL'), (f'http://u:{KEY}@h/v1#m', 'a user, a password'),
    (f'http://h/v1?key={KEY}#m', 'a query'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message) as error:
      endpoints.parse(path)
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'api': 'responses'}, "API='responses' is none of chat, completions"),
    ({'parameters': 0}, 'PARAMETERS=0 must be'),
    ({'system': 'x', 'api': 'completions'}, 'SYSTEM is a turn of a chat'),
    ({'fields': {'temperature': 1}}, "REQUEST sets 'temperature', which other settings decide"),
    ({'fields': {'model': None}}, "REQUEST sets 'model'"),
    ({'fields': {'n': 2}}, "REQUEST sets 'n'; a table holds one"),
    ({'fields': {'stream': True}}, "REQUEST sets 'stream'"),
  ],
)
def test_settings_that_cannot_be_are_refused_by_name(options, message):
  with pytest.raises(ValueError, match=message):
    endpoints.Endpoint(**options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'concurrency': 0}, 'CONCURRENCY=0'), ({'tries': 1.5}, 'TRIES=1.5'),
    ({'per_minute': 0}, 'REQUESTS_PER_MINUTE=0'), ({'seconds': -1}, 'REQUEST_SECONDS=-1'),
    ({'requests': -1}, 'MAX_REQUESTS=-1'), ({'dollars': 1}, 'MAX_DOLLARS=1 needs prices'),
    ({'prices': {'prompt': 1}}, 'PRICES=.* gives no prices'),
    ({'prices': {'prompt': -1, 'generated': 1}}, 'PRICES=.*prompt=-1'),
  ],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused_by_name(options, message):
  with pytest.raises(ValueError, match=message):
    endpoint_client.Limits(**options)


def test_an_unbounded_answer_has_no_highest_price():
  bounded = limits(dollars=1, prices=PRICES)
  endpoints.Endpoint(limits=bounded, fields={'max_tokens': None, 'max_completion_tokens': 9})
  with pytest.raises(ValueError, match='MAX_DOLLARS needs a largest number of tokens'):
    endpoints.Endpoint(limits=bounded, fields={'max_tokens': None})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'mode': 'score'}, 'MODE=score: for a checkpoint'),
    ({'embeddings': ('answer',)}, 'EMBEDDINGS: for'),
    ({'which': 'best', 'weights': 'int8'}, 'WHICH, WEIGHTS: for'),
    ({'parameters': None}, 'PARAMETERS=8e9'),
    ({'logprobs': False, 'alternatives': 2}, 'ALTERNATIVES=2 needs log-probabilities'),
  ],
)
def test_what_the_api_cannot_give_is_refused_before_anything_is_sent(
  server, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    infer(server, tmp_path, **changes)
  assert not server.requests


def test_settings_of_an_endpoint_are_not_dropped_for_a_checkpoint(tmp_path):
  with pytest.raises(ValueError, match='settings of an endpoint are for a URL'):
    infer(None, tmp_path, checkpoint_path=str(tmp_path))


@pytest.mark.parametrize('url', ['http://h:1/v1#m', 'https://h/v1'])
def test_programs_that_need_parameters_say_what_an_api_cannot_give(url, tmp_path):
  with pytest.raises(ValueError, match=r'URL of an endpoint.*no probabilities of given'):
    tiny.cache_teacher(
      checkpoint_path=url, directory=str(tmp_path), task=tiny.task(tmp_path),
      task_feature_lengths=tiny.LENGTHS, batch_size=8, mesh=tiny.one_device,
    )  # fmt: skip
  with pytest.raises(ValueError, match='URL of an endpoint'):
    tiny.train(**tiny.settings(tmp_path, large_checkpoint_path=url))


def test_the_command_answers_and_both_models_are_evaluated(server, tmp_path, monkeypatch):
  infer(server, tmp_path, fields={'min_p': 0.1}, limits=limits(prices=PRICES))
  result = subprocess.run(
    [
      sys.executable, '-m', 'cascades.infer', '--gin_file=runs/infer.gin',
      '--gin.TASK=@local.local_jsonl()', '--gin.local.local_jsonl.name=words',
      f"--gin.local.local_jsonl.splits={{'test': '{SHARED}/test.jsonl'}}",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}", '--gin.BATCH_SIZE=8',
      f'--gin.CHECKPOINT_PATH={server.url}#large', '--gin.INFER_OUTPUT_DIR=large',
      '--gin.PARAMETERS=2e7', '--gin.API_KEY_VARIABLE=MY_KEY', "--gin.REQUEST={'min_p': 0.1}",
      "--gin.PRICES={'prompt': 1e-3, 'generated': 1e-1}", '--gin.MAX_DOLLARS=100',
      '--gin.REQUESTS_PER_MINUTE=60000',
    ],
    capture_output=True, text=True, cwd=tmp_path, check=False,
    env={**os.environ, 'HOME': str(tmp_path), 'PYTHONPATH': str(ROOT), 'MY_KEY': KEY},
  )  # fmt: skip
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stderr == ''
  assert re.search(r'32 rows in .*large/test .*, 32 requests, \$11\.\d', result.stdout)
  assert '/32' in result.stdout
  assert '$' in next(line for line in result.stdout.splitlines() if ' ETA ' in line)
  written = [path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()]
  assert not [data for data in written if KEY.encode() in data]
  assert KEY not in result.stdout + result.stderr

  monkeypatch.setattr(figures, 'draw', lambda _: {})
  evaluate.evaluate(
    Tables({'small': str(tmp_path / 'table')}, str(tmp_path / 'large')),
    str(tmp_path / 'report'),
    settings=Settings(resamples=10),
    report=Report(interactive=False),
    chains=Chains(axes=['dollars', 'seconds']),
  )
  curves = json.loads((tmp_path / 'report' / 'curves.json').read_text())
  assert 'dollars' in json.dumps(curves)
