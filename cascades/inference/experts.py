"""Experts of an online cascade: answers that were recorded, or a model behind a URL."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from cascades.inference import endpoints
from cascades.inference.answers import DecodingOptions
from cascades.inference.endpoint_answers import PARSERS
from cascades.inference.endpoint_client import Client, EndpointError, paid
from cascades.inference.endpoints import Requests
from cascades.inference.online_stream import ExpertError
from cascades.inference.responses import Responses
from cascades.online_step import Query
from cascades.predictions import shards
from cascades.runtime import files

log = logging.getLogger(__name__)

Asked = Callable[[Query], str]  # the text of the expert's answer; raises ExpertError


def recorded(answers: Mapping[str, str], source: str) -> Asked:
  """Expert whose answers are known by the id of the query.

  Args:
    answers: Texts by id.
    source: What holds them, for messages.
  """

  def ask(query: Query) -> str:
    if query.id not in answers:
      raise ExpertError(f'{source} has no answer to {query.id!r:.80}')
    return answers[query.id]

  return ask


class EndpointExpert:
  """Asks a model behind a URL; its responses are stored before they are used.

  Attributes:
    price: Dollars of the last answer, whenever it was paid; None without prices or usage.
  """

  def __init__(self, requests: Requests) -> None:
    """Prepares a client; nothing is sent.

    Raises:
      ValueError: The environment does not hold the key.
    """
    self.requests, endpoint = requests, requests.endpoint
    self._parse = PARSERS[endpoint.api]
    self._prices = endpoint.limits.priced
    self.price: float | None = None
    self.client = Client(
      requests.address.url,
      key=endpoint.key(),
      limits=endpoint.limits,
      responses=Responses(files.absolute(endpoint.responses_dir)),
    )

  def __enter__(self) -> EndpointExpert:
    return self

  def __exit__(self, *exception: object) -> None:
    self.client.__exit__(*exception)

  def __call__(self, query: Query) -> str:
    """The text of the model's answer.

    Raises:
      ExpertError: It cannot be asked, refuses the query, or its answer cannot be read.
    """
    try:
      reply = self.client.ask(self.requests.path, self.requests.body(query.text, query.number))
    except EndpointError as error:
      raise ExpertError(str(error)) from error
    if reply.refusal:
      self.price = 0.0
      return ''  # counted and paid like an answer that names no class
    self.price = paid(self._prices, reply.body) if self._prices else None
    return _text(self._parse, reply.body)


@contextlib.contextmanager
def open_expert(
  source: str | None, endpoint: endpoints.Endpoint, max_tokens: int
) -> Iterator[Asked | None]:
  """Context manager of an expert; None where the rows hold its answers.

  Args:
    source: URL of an endpoint, directory of a table of answers by id, or None.
    endpoint: Requests to an endpoint.
    max_tokens: Longest answer of an endpoint, in its tokens.
  """
  if source is None:
    yield None
  elif endpoints.is_url(source):
    jax.config.update('jax_platforms', 'cpu')  # the levels here are small
    requests = Requests(endpoints.parse(source), endpoint, DecodingOptions(), max_tokens)
    with EndpointExpert(requests) as asked:
      yield asked
  else:
    answers = {
      id_: text
      for table in shards.read(files.absolute(source))
      for id_, text in zip(table.ids, table.predictions, strict=True)
    }
    yield recorded(answers, source)


def _text(parse: Callable[[Any], Any], body: Mapping[str, Any]) -> str:
  """The text of a response, '' if it holds none."""
  plain = [{**choice, 'logprobs': None} for choice in body['choices'] if isinstance(choice, dict)]
  try:
    return str(parse({**body, 'choices': plain}).prediction)
  except (ValueError, OverflowError):
    return ''
