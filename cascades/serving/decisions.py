"""Decisions of a server: the score of an answer, or of a prompt, against a threshold.

`evaluate` and `calibrate` score tables of many rows. Here a table has one row, the request, and the
score is the same, since deciders judge each row by itself: to the bit for the rules of `deferral`,
and to rounding for learned ones, whose matrix products round by their size.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cascades.deferral import NO_TOKENS
from cascades.evaluation.policy import Threshold
from cascades.serving.early_deferral import LEAST, LeastScore, as_stored
from cascades.serving.exchanges import LevelDecision, Question, Role, Token
from cascades.types import Decider, Predictions

# Columns that a server knows of each answer.
COLUMNS = ('prompt_tokens', 'generated_tokens', 'seconds')
SPLIT = 'served'


class Evidence(NamedTuple):
  """An answer, for its score.

  Attributes:
    text: The answer.
    tokens: Its tokens, end of sequence included.
    numbers: Numbers by names of `COLUMNS`.
  """

  text: str
  tokens: Sequence[Token]
  numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class DecisionRule:
  """A decider, and its threshold for each task.

  Attributes:
    decider: The decider.
    thresholds: Thresholds by task; inf never defers.
    task: Task of requests that name none.
    alternatives: Number of most likely tokens at each position that the score reads.
    entries: Entries of a policy by task, for the monitors of drift; none without a policy.
  """

  decider: Decider
  thresholds: Mapping[str, float]
  task: str
  alternatives: int = 0
  entries: Mapping[str, Threshold] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    check(self.decider, self.alternatives)
    if self.task not in self.thresholds:
      raise ValueError(
        f'POLICY_TASK={self.task!r:.80} has no threshold; tasks with one are '
        f'{", ".join(self.thresholds)}.'
      )

  def decide(
    self, role: Role, question: Question, task: str, evidence: Evidence | None
  ) -> LevelDecision:
    """Decision after the answer of a model or, without evidence, before it."""
    began = time.perf_counter()
    threshold = self.thresholds[task]
    flag = ''
    try:
      table = _table(question, task, evidence, self.alternatives)
      score = float(self.decider.score(table)[0])
    except ValueError:  # an endpoint that gave no log-probabilities for this answer
      score, flag = NO_TOKENS, 'no score'
    if np.isnan(score):
      score, flag = NO_TOKENS, 'no score'
    return LevelDecision(role, score, threshold, time.perf_counter() - began, flag)

  def least_score(self, most_tokens: int) -> LeastScore | None:
    """Bound of the score of an answer that grows; None where there is no useful one."""
    formula = LEAST.get(self.decider.name)
    return LeastScore(formula, most_tokens) if formula else None


def check(decider: Decider, alternatives: int) -> None:
  """Raise ValueError for a decider that a server cannot run, with the reason."""
  if decider.name == 'random':
    raise ValueError(
      "DECIDER='random' scores rows by their number in a table, and a request has none: choose "
      'another decider.'
    )
  reads = set(decider.reads)
  served = {'inputs', 'token_logprobs', 'alternatives', 'two alternatives', *COLUMNS}
  if absent := sorted(reads - served):
    raise ValueError(
      f'The decider {decider.name!r} reads {", ".join(absent)}, which a server does not have of a '
      'request: calibrate a policy with another decider.'
    )
  needed = {'alternatives': 1, 'two alternatives': 2}
  least = max((needed[name] for name in reads & set(needed)), default=0)
  if alternatives < least:
    raise ValueError(
      f'The decider {decider.name!r} reads the most likely tokens at each position: set '
      f'ALTERNATIVES to the number that the tables of its calibration have, {least} or more.'
    )


def prompt_text(question: Question) -> str:
  """Prompt as one text, as tables of predictions have it: the messages of a chat by paragraphs."""
  if isinstance(question.prompt, str):
    return question.prompt
  return '\n\n'.join(message.content for message in question.prompt)


def _table(
  question: Question, task: str, evidence: Evidence | None, alternatives: int
) -> Predictions:
  """Table of one row. Log-probabilities are those that a table on disk would hold."""
  tokens = evidence.tokens if evidence else ()
  logprobs = [token.logprob for token in tokens if token.logprob is not None]
  if len(logprobs) < len(tokens):
    raise ValueError('tokens without log-probabilities')
  numbers = evidence.numbers if evidence else {}
  width = min((len(token.alternatives) for token in tokens), default=0)
  tops = [[p for _, p in token.alternatives[:alternatives]] for token in tokens]
  return Predictions(
    task=task,
    split=SPLIT,
    ids=('request',),
    inputs=(prompt_text(question),),
    targets=((),),
    predictions=(evidence.text if evidence else '',),
    token_logprobs=as_stored(logprobs),
    lengths=np.array([len(logprobs)]),
    statistics={},
    manifest={},
    columns={name: np.array([value]) for name, value in numbers.items()},
    alternatives=as_stored(tops) if tops and width >= alternatives > 0 else None,
  )
