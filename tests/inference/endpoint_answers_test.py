"""Rows of answers of a model behind a URL: what a server wrote, and what it refused."""

import json

import numpy as np
import pytest

from cascades import deferral
from cascades import infer as inference
from cascades.inference import (
  answers,
  trained_model,
)
from tests import openai_server
from tests.endpoint_tables import PRICES, SHARED, infer, limits, stored_rows
from tests.openai_server import status


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
    'system': 'Be brief.', 'fields': {'min_p': 0.1}, 'logprobs': True,
    'prices': dict.fromkeys(['prompt', 'generated', 'cached_prompt', 'cached_tokens', 'request']),
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


def test_rows_of_other_prices_are_not_mixed_and_are_priced_again_for_nothing(server, tmp_path):
  infer(server, tmp_path)
  asked, priced = len(server.requests), limits(prices=PRICES)
  with pytest.raises(ValueError, match=r'origin: endpoint prices is .*OVERWRITE=True'):
    infer(server, tmp_path, limits=priced)
  table = infer(server, tmp_path, limits=priced, overwrite=True)
  assert (table.column('dollars') > 0).all()
  assert len(server.requests) == asked


def test_no_model_is_loaded_or_built_for_an_endpoint(server, tmp_path, monkeypatch):
  monkeypatch.setattr(trained_model, 'load', lambda *_, **__: pytest.fail('a model is loaded'))
  monkeypatch.setattr(answers, 'Generator', lambda *_, **__: pytest.fail('a model is built'))
  monkeypatch.setattr(inference.Devices, 'use', lambda _: pytest.fail('a mesh is made'))
  infer(server, tmp_path)


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


def test_a_server_without_logprobs_gives_a_table_without(server, tmp_path, caplog):
  server.change = without_logprobs
  table = infer(server, tmp_path)
  assert not table.lengths.any()
  assert table.column('generated_tokens').all()
  assert deferral.missing(['token_logprobs'], table)
  assert caplog.text.count('gives no log-probabilities: the table has none') == 1


@pytest.mark.parametrize('resumed', [False, True])
def test_measured_and_unmeasured_answers_are_not_mixed(server, tmp_path, resumed):
  if resumed:  # the first shard has log-probabilities, and the server then gives none
    with pytest.raises(OSError, match=r'MAX_REQUESTS=8'):
      infer(server, tmp_path, limits=limits(requests=8, concurrency=1))
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
