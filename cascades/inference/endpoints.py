"""Models behind OpenAI-compatible servers: their addresses, and the requests sent to them.

    http://localhost:8000/v1#meta-llama/Llama-3.1-8B-Instruct

names the model behind `#` at the address before it. The server tokenizes and decodes; it gives the
log-probabilities of the tokens that it writes, if it gives any, and no distribution over given
tokens: a model behind a URL answers, and neither scores given answers nor teaches.
"""

from __future__ import annotations

import dataclasses
import os
import re
import urllib.parse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from cascades import costs
from cascades.inference import responses
from cascades.inference.answers import DecodingOptions
from cascades.inference.endpoint_client import MAX_TOKENS, Limits
from cascades.predictions import imported
from cascades.runtime import ranges

Api: TypeAlias = Literal['chat', 'completions']

PATHS: Mapping[Api, str] = MappingProxyType(
  {'chat': 'chat/completions', 'completions': 'completions'}
)
# Fields of a request that other settings decide; some may be left out.
LEFT_OUT = ('temperature', 'max_tokens', 'seed')
DECIDED = (*LEFT_OUT, 'model', 'messages', 'prompt', 'logprobs', 'top_logprobs', 'top_p', 'top_k')
PRICES = tuple(field.name for field in dataclasses.fields(costs.Prices))
OF_OTHER_ANSWERS = ('n', 'best_of', 'stream', 'stream_options', 'echo', 'prompt_logprobs')


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Everything about a server but its address.

  Attributes:
    api: 'chat' sends a prompt as the user's turn, 'completions' as a text to be continued.
    parameters: Parameters of the model, or an estimate, for its FLOPs per token.
    key_variable: Name of the environment variable that holds the key; None sends none.
    system: Text of the system's turn; None sends none.
    fields: More fields of each request; None leaves one of LEFT_OUT out.
    logprobs: Request log-probabilities.
    responses_dir: Directory of the responses, which are not asked for again.
    limits: Pace, tries and budget.
  """

  api: Api = 'chat'
  parameters: float | None = None
  key_variable: str | None = None
  system: str | None = None
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  logprobs: bool = True
  responses_dir: str = responses.DIRECTORY
  limits: Limits = Limits()

  def __post_init__(self) -> None:
    if self.api not in PATHS:
      raise ValueError(f'API={self.api!r:.80} is none of {", ".join(PATHS)}.')
    ranges.check({'PARAMETERS': self.parameters}, least=1)
    if self.system is not None and self.api != 'chat':
      raise ValueError(f'SYSTEM is a turn of a chat, and API={self.api!r} has none: leave it out.')
    for name, value in self.fields.items():
      if name in DECIDED and not (name in LEFT_OUT and value is None):
        raise ValueError(
          f'REQUEST sets {name!r}, which other settings decide; of these, {", ".join(LEFT_OUT)} '
          'can be left out, with None.'
        )
      if name in OF_OTHER_ANSWERS:
        raise ValueError(f'REQUEST sets {name!r}; a table holds one whole answer a row.')
    bounds = {name: self.fields[name] for name in MAX_TOKENS if name in self.fields}
    ranges.check({f'REQUEST[{k!r}]': v for k, v in bounds.items()}, least=1, integer=True)
    if self.limits.dollars is not None and bounds and not any(bounds.values()):
      raise ValueError(
        'MAX_DOLLARS needs a largest number of tokens in each request, and REQUEST leaves it out: '
        'give max_tokens or max_completion_tokens.'
      )

  def key(self) -> str | None:
    """The key, from the environment. Messages never show what the setting or the variable holds."""
    name = self.key_variable
    if name is None:
      return None
    if not re.fullmatch(r'[A-Za-z_]\w*', name) or name not in os.environ:
      raise ValueError(
        'API_KEY_VARIABLE names no variable of the environment: give the name of one that holds '
        'the key, such as OPENAI_API_KEY, and not the key itself.'
      )
    key = os.environ[name].strip()
    if not re.fullmatch(r'[!-~]+', key):
      raise ValueError(f'{name} holds no key: it is empty, or has characters that no header takes.')
    return key


class Address(NamedTuple):
  """Address of an API, and the name of a model there."""

  url: str
  model: str

  def __str__(self) -> str:
    return f'{self.url}#{self.model}'


def is_url(path: str) -> bool:
  """True for the URL of an endpoint in the place of a run directory."""
  return bool(re.match(r'https?://', path))


def parse(path: str) -> Address:
  """Address and model of a URL.

  Raises:
    ValueError: It names no host or model, or holds a secret.
  """
  address, _, model = path.partition('#')
  try:
    split = urllib.parse.urlsplit(address)
    split.port  # noqa: B018 (raises ValueError)
  except ValueError as error:
    raise ValueError(f'CHECKPOINT_PATH is no URL of an endpoint: {error}.') from error
  if '@' in split.netloc or split.query:
    raise ValueError(
      'CHECKPOINT_PATH is a URL with a user, a password or a query, which tables and logs would '
      'show: leave it out, and name the variable with the key by API_KEY_VARIABLE.'
    )
  if not split.hostname or not model:
    raise ValueError(
      f'CHECKPOINT_PATH={path!r:.200} names no {"model" if split.hostname else "host"}: write '
      'http://host:port/v1#model, with a model that `curl http://host:port/v1/models` lists.'
    )
  return Address(address.rstrip('/'), model)


@dataclasses.dataclass(frozen=True)
class Requests:
  """The requests to a model behind a URL.

  Attributes:
    address: Address and model.
    endpoint: Form of the requests, and limits.
    options: Temperature, cuts and seed.
    max_tokens: Longest answer, in the server's tokens.
    alternatives: Number of most likely tokens at each position whose log-probabilities are
      requested.
  """

  address: Address
  endpoint: Endpoint
  options: DecodingOptions
  max_tokens: int
  alternatives: int = 0

  def __post_init__(self) -> None:
    if self.endpoint.parameters is None:
      raise ValueError(
        f'{self.address} does not say how large its model is: give its number of parameters, or '
        'your estimate, for costs in FLOPs, such as PARAMETERS=8e9.'
      )
    if self.alternatives and not self.endpoint.logprobs:
      raise ValueError(f'ALTERNATIVES={self.alternatives} needs log-probabilities: LOGPROBS=True.')

  @property
  def path(self) -> str:
    """Path below the address."""
    return PATHS[self.endpoint.api]

  @property
  def described(self) -> dict[str, Any]:
    """Model and form of the requests, for manifests."""
    parameters = int(self.endpoint.parameters or 0)
    return {
      'model': {'name': self.address.model, 'url': self.address.url, 'api': self.endpoint.api},
      'parameters': parameters,
      'flops_per_token': costs.flops_per_token(parameters),
      'checkpoint': str(self.address),
      'checkpoint_identity': str(self.address),
      'step': 0,
      'vocabulary': imported.UNKNOWN,
      'precision': imported.UNKNOWN,
      'endpoint': {
        'system': self.endpoint.system,
        'fields': dict(self.endpoint.fields),
        'logprobs': self.endpoint.logprobs,
        'prices': {name: self.endpoint.limits.prices.get(name) for name in PRICES},
      },
    }

  def body(self, prompt: str, number: int) -> dict[str, Any]:
    """Body of the request for a numbered row. Draws depend on the seed and on the number."""
    options, chat = self.options, self.endpoint.api == 'chat'
    body: dict[str, Any] = {'model': self.address.model}
    if chat:
      system = self.endpoint.system
      turns = [{'role': 'system', 'content': system}] if system is not None else []
      body['messages'] = [*turns, {'role': 'user', 'content': prompt}]
    else:
      body['prompt'] = prompt
    body |= {'max_tokens': self.max_tokens, 'temperature': options.temperature}
    body |= {k: v for k in ('top_k', 'top_p') if (v := getattr(options, k)) is not None}
    if options.temperature:
      drawn = np.random.SeedSequence((options.seed, number)).generate_state(1)[0]
      body['seed'] = int(drawn >> 1)  # servers take 31 bits
    if self.endpoint.logprobs:
      tops = {'top_logprobs': self.alternatives} if self.alternatives else {}
      body |= {'logprobs': True, **tops} if chat else {'logprobs': max(self.alternatives, 1)}
    body |= self.endpoint.fields
    return {name: value for name, value in body.items() if value is not None}
