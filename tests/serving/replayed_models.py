"""Models that answer as tables of predictions say, and policies of three of them on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from etils import epath

from cascades.costs import Prices
from cascades.evaluation import pooling, router_fits, routers, routing_policy
from cascades.inference import encoders
from cascades.predictions.outcomes import OutcomeMatrix
from cascades.serving.exchanges import AnyPrompt, Piece, Question, Token
from cascades.serving.legs import Member
from cascades.types import Predictions
from tests import synthetic_tables

PROMPT_TOKENS = 7  # of prompts of tables without a column of them
NAMES = ('1b', '8b', '70b')
PRICES = {
  '1b': Prices(1e-7, 2e-7), '8b': Prices(6e-7, 9e-7), '70b': Prices(3e-6, 9e-6)
}  # fmt: skip
TOPICS = ('cats purr and sleep', 'bonds yield and mature', 'quarks spin and decay')


class Replayed:
  """A model that answers the prompts of a table as the table says."""

  def __init__(self, name: str, table: Predictions):
    self.name, self._table = name, table
    self._rows = {prompt: row for row, prompt in enumerate(table.inputs)}
    self._starts = np.cumsum(table.lengths) - table.lengths

  def count(self, prompt: AnyPrompt) -> float:
    column = self._table.columns.get('prompt_tokens')
    return PROMPT_TOKENS if column is None else float(column[self._rows[str(prompt)]])

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    row, table = self._rows[str(question.prompt)], self._table
    length = int(table.lengths[row])
    logprobs = table.token_logprobs[self._starts[row] : self._starts[row] + length]
    for number, logprob in enumerate(logprobs):
      is_last = number == length - 1
      yield Piece(
        table.predictions[row] if is_last else '',
        (Token(b'x', float(logprob)),),
        'stop' if is_last else None,
        prompt_tokens=int(self.count(question.prompt)),
        generated_tokens=number + 1,
      )


def tables(size: int = 90) -> dict[str, Predictions]:
  """Answers of three models to prompts of three topics."""
  result = {}
  for seed, (name, skill) in enumerate(zip(NAMES, (-0.5, 0.5, 2.0), strict=True)):
    table = synthetic_tables.table('t', size=size, skill=skill, seed=seed)
    texts = tuple(f'{TOPICS[i % 3]} {text}' for i, text in enumerate(table.inputs))
    columns = {'prompt_tokens': 7.0 + 40 * (np.arange(size) // 3 % 3)}  # whatever the text
    result[name] = table._replace(inputs=texts, columns=columns)
  return result


def members(answers: Mapping[str, Predictions]) -> dict[str, Member]:
  return {name: Member(Replayed(name, table), PRICES[name]) for name, table in answers.items()}


def level(threshold: float | None, name: str = 'average') -> dict[str, Any]:
  decider = {'name': name, 'reads': ['token_logprobs'], 'flops': 0.0}
  return {'decider': decider, 'thresholds': {pooling.POOLED: threshold}}


def write_chain(
  folder: Any, levels: Sequence[dict[str, Any] | None], *, routed: bool = False, **changes: Any
) -> epath.Path:
  """Policy of the three models; a routed one begins where the router of the folder says."""
  file = epath.Path(folder) / 'router.policy.json'
  router = {
    'file': file.name, 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()
  } if routed else None  # fmt: skip
  content = {
    'version': 2, 'models': {name: {'name': name} for name in NAMES}, 'levels': list(levels),
    'router': router, 'metric': {'name': 'accuracy', 'surrogate': False, 'higher_is_better': True},
    'cost_axis': 'dollars', 'expected': [], 'data': {'tasks': {'t': {}}},
    'method': '', 'provenance': {},
  } | changes  # fmt: skip
  path = epath.Path(folder) / 'policy.json'
  path.write_text(json.dumps(content))
  return path


@cache
def fitted_router(
  names: tuple[str, ...], method: str = routers.CLUSTERS, encoder: str = '', *,
  by_prompt: bool = False, by_token: bool = False,
) -> routers.ClusterRouter:  # fmt: skip
  """Router among some of the models, each of which is best at one topic.

  Args:
    names: Names of the models.
    method: Method of the router.
    encoder: Folder of the encoder of its prompts; empty for words.
    by_prompt: Costs differ by topic, most for the dearest model.
    by_token: Costs are prices of the prompt's tokens, and a hundredth.
  """
  prompts = tuple(f'{TOPICS[i % 3]} validation {i}' for i in range(60))
  quality = np.array([[float(i % 3 == m or (i + m) % 5 == 0) for m in range(3)] for i in range(60)])
  keep = [NAMES.index(name) for name in names]
  costs = np.array([1e-3, 5e-3, 2e-2])[keep]
  matrix = OutcomeMatrix(tuple(map(str, range(60))), prompts, names, quality[:, keep], costs)
  if by_prompt:
    own = costs * (1 + (np.arange(60) % 3)[:, None] * np.array([1, 2, 4])[keep])
    matrix = matrix._replace(cost=own.mean(axis=0), prompt_cost=own)
  if by_token:
    tokens = np.tile(10.0 + 40 * (np.arange(60) // 3 % 3)[:, None], len(names))
    own = tokens * costs / 20 + costs / 100
    matrix = matrix._replace(
      cost=own.mean(axis=0), prompt_cost=own, tokens=tokens, token_price=costs / 20
    )
  embedded = router_fits.by_words(prompts, prompts)
  if encoder:
    vectors = np.asarray(encoders.open_embedder(encoder)(prompts))
    embedded = router_fits.Embedded(vectors, vectors, {}, epath.Path(encoder).name)
  clusters = 11 if method == routers.NESTED else 3
  return router_fits.fit(matrix, embedded, clusters=clusters, strength=1.0, method=method)


def write_router(
  folder: Any,
  names: tuple[str, ...] = NAMES,
  abstention: float | None = None,
  price: float = 10.0,
  encoder: str = '',
  **fitted: Any,
) -> epath.Path:
  """Routing policy among some of the models."""
  path = epath.Path(folder) / 'router.json'
  routers.write(path, fitted_router(names, encoder=encoder, **fitted))
  policy = epath.Path(folder) / 'router.policy.json'
  routing_policy.write(policy, routing_policy.describe(path, price, encoder or None, abstention))
  return policy
