"""Decisions of a server: the score of a small answer, or of a prompt, against a threshold.

`evaluate` and `calibrate` score tables of many rows. Here a table has one row, the request, and the
score is the same, since deciders judge each row by itself: to the bit for the rules of `deferral`,
and to rounding for learned ones, whose matrix products round by their size.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cascades import learned_deferral
from cascades.deferral import NO_TOKENS
from cascades.evaluation import fitted, policy, pooling
from cascades.evaluation.policy import Policy, Threshold
from cascades.runtime import files
from cascades.serving.early_deferral import LEAST, LeastScore, as_stored
from cascades.serving.exchanges import Question, Role, Token
from cascades.types import Decider, Predictions

# Columns that a server knows of each answer.
COLUMNS = ('prompt_tokens', 'generated_tokens', 'seconds')
SPLIT = 'served'
IDENTITY = ('checkpoint_identity', 'parameters', 'vocabulary')  # by which policies know a model


class Evidence(NamedTuple):
  """A small answer, for its score.

  Attributes:
    text: The answer.
    tokens: Its tokens, end of sequence included.
    numbers: Numbers by names of `COLUMNS`.
  """

  text: str
  tokens: Sequence[Token]
  numbers: Mapping[str, float]


class Verdict(NamedTuple):
  """Score of a request, and what follows from it."""

  score: float
  threshold: float
  seconds: float = 0.0
  flag: str = ''

  @property
  def deferred(self) -> bool:
    """True if the large model has to answer."""
    return self.score >= self.threshold


@dataclasses.dataclass(frozen=True)
class DecisionRule:
  """A decider, and its threshold for each task.

  Attributes:
    decider: The decider.
    thresholds: Thresholds by task; inf never defers.
    task: Task of requests that name none.
    alternatives: Number of most likely tokens at each position that the score reads.
    entries: Entries of a policy by task, for the monitors of drift; none without a policy.
    digest: Digest of the file of the policy, '' without one.
    models: Models of a policy by role, as its file describes them.
  """

  decider: Decider
  thresholds: Mapping[str, float]
  task: str
  alternatives: int = 0
  entries: Mapping[str, Threshold] = dataclasses.field(default_factory=dict)
  digest: str = ''
  models: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    check(self.decider, self.alternatives)
    if self.task not in self.thresholds:
      raise ValueError(
        f'POLICY_TASK={self.task!r:.80} has no threshold; tasks with one are '
        f'{", ".join(self.thresholds)}.'
      )

  def decide(self, question: Question, task: str, evidence: Evidence | None) -> Verdict:
    """Verdict on a request, after the small answer or, without evidence, before any."""
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
    return Verdict(score, threshold, time.perf_counter() - began, flag)

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


def from_policy(
  path: str, *, task: str | None = None, alternatives: int = 0, setting: str = 'POLICY'
) -> DecisionRule:
  """DecisionRule of a policy.

  Args:
    path: The file.
    task: Task of requests that name none; None for all tasks, or the only one.
    alternatives: Number of alternatives of the tables of its calibration, if its decider reads any.
    setting: Name of the setting that names the file, for messages.

  Raises:
    OSError, ValueError: The file, or that of its decider, cannot be read or run.
  """
  location = files.absolute(path)
  stored = policy.read(location)
  entries = _entries(stored)
  if task is None:
    if pooling.POOLED not in entries and len(entries) > 1:
      raise ValueError(
        f'{setting}={path!r:.200} has thresholds of {", ".join(entries)}: name the task of '
        'requests that name none with POLICY_TASK.'
      )
    task = pooling.POOLED if pooling.POOLED in entries else next(iter(entries))
  chosen = policy.stored_decider(stored)
  if stored.decider.fitted is not None:
    chosen = _served(fitted.read(files.absolute(stored.decider.fitted)))
  return DecisionRule(
    chosen,
    {name: entry.value for name, entry in entries.items()},
    task,
    alternatives,
    entries,
    policy.file_digest(str(location)),
    stored.models,
  )


def from_threshold(decider: str, threshold: float, *, alternatives: int = 0) -> DecisionRule:
  """DecisionRule of a threshold that no policy promises anything about.

  Raises:
    ValueError: There is no such decider, or a server cannot run it.
  """
  return DecisionRule(
    policy.decider(decider), {pooling.POOLED: threshold}, pooling.POOLED, alternatives
  )


def check_models(rule: DecisionRule, described: Mapping[Role, Mapping[str, Any]]) -> None:
  """Raise ValueError if a policy was calibrated with other models than those that are served.

  Args:
    rule: Rule of the policy.
    described: Models of the server by role, as manifests describe them.
  """
  for role, own in described.items():
    entry = rule.models.get(role, {})
    for key in IDENTITY:
      if key in entry and key in own and entry[key] != own[key]:
        raise ValueError(
          f'The policy was calibrated with a {role} model of {key} {entry[key]!r:.80}, and '
          f'{role.upper()} has {own[key]!r:.80}: its promises are about the former. Calibrate with '
          'the models that are served, or serve them anyway with ALLOW_OTHER_MODELS=True.'
        )


def _entries(stored: Policy) -> dict[str, Threshold]:
  """Entries by task: those of single tasks, and the one of all."""
  names = [entry.task for entry in stored.thresholds]
  tasks = [name for name in stored.data['tasks'] if name not in names]
  pooled = pooling.POOLED in names
  return {
    **{entry.task: entry for entry in stored.thresholds},
    **{name: stored.threshold_of(name) for name in tasks if pooled},
  }


def _served(learned: learned_deferral.Fitted) -> Decider:
  """Decider that also scores prompts that it was fitted on, which users may ask again."""
  empty = {name: learned.arrays[name][:0] for name in ('fit_ids', 'fit_inputs')}
  return learned._replace(arrays={**learned.arrays, **empty}).decider()


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
