"""The client of an endpoint: retries, pace, budgets, and servers that refuse or fail."""

import json

import numpy as np
import pytest
from etils import epath

from cascades.inference import (
  endpoint_client,
  responses,
)
from tests import openai_server
from tests.endpoint_tables import PRICES, infer, limits
from tests.openai_server import closed, content, slow, status, truncated

FAULTS = {
  'malformed JSON': content(b'{"choices": [}'),
  'not UTF-8': content(b'\xff\xfe'),
  'a list': content(b'[]'),
  'deep JSON': content(b'[' * 100_000),
  'no choices': content(b'{"error": {"message": "overloaded", "code": 502}}'),
  'empty choices': content(b'{"choices": []}'),
  'a truncated body': truncated,
  'a closed connection': closed,
  'too slow': slow(1.2),
  'too many requests': status(429),
  'a server error': status(500),
  'unavailable': status(503, **{'Retry-After': '0.01'}),
}


@pytest.mark.parametrize('name', FAULTS)
def test_a_failure_that_passes_is_tried_again(server, tmp_path, name):
  server.faults += [FAULTS[name], None, FAULTS[name]]
  seconds = 1.0 if name == 'too slow' else 10.0
  table = infer(server, tmp_path, limits=limits(seconds=seconds))
  assert len(table.ids) == 32
  assert len(server.requests) == 34 or (name == 'too slow' and len(server.requests) > 34)
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
    assert least <= endpoint_client.retry_after(header) <= most


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


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'concurrency': 0}, 'CONCURRENCY=0'), ({'tries': 1.5}, 'TRIES=1.5'),
    ({'per_minute': 0}, 'REQUESTS_PER_MINUTE=0'), ({'seconds': -1}, 'REQUEST_SECONDS=-1'),
    ({'requests': -1}, 'MAX_REQUESTS=-1'), ({'dollars': 1}, 'MAX_DOLLARS=1 needs prices'),
    ({'prices': {'prompt': 1}}, 'PRICES=.* no prices: it takes prompt,.* generated are needed'),
    ({'prices': {'prompt': 1, 'generated': 1, 'read': 1}}, 'PRICES=.* no prices: it takes prompt,'),
    ({'prices': {'prompt': -1, 'generated': 1}}, 'PRICES=.*prompt=-1'),
  ],
)  # fmt: skip
def test_limits_that_cannot_be_are_refused_by_name(options, message):
  with pytest.raises(ValueError, match=message):
    endpoint_client.Limits(**options)
