"""Stored responses: nothing is asked for twice, and nothing else is read in its stead."""

import pytest
from etils import epath

from cascades.inference import (
  answers,
  endpoints,
  responses,
)
from tests import tiny
from tests.endpoint_tables import ENDPOINT, infer, limits


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
  """Requests that differ in anything have responses of their own."""
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
  stored = responses.Responses(epath.Path(tmp_path))
  for number, (url, body) in enumerate(sent):
    assert stored.read(url, body) is None
    stored.write(responses.Response(url, body, {'choices': [number]}, 1.0))
  answered = [stored.read(url, body) for url, body in sent]
  assert [response and response.response['choices'] for response in answered] == [
    [number] for number in range(len(VARIANTS))
  ]


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
