"""Options of a server, as settings give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from cascades.runtime import ranges
from cascades.serving import decisions, keys
from cascades.serving.budgets import Ceilings
from cascades.serving.decisions import DecisionRule
from cascades.serving.exchanges import Role
from cascades.serving.keys import ApiKey
from cascades.serving.members import Drafts, MemberOptions
from cascades.serving.metering import LogOptions


@dataclasses.dataclass(frozen=True)
class ServedModels:
  """The two models, in this process or behind URLs.

  Attributes:
    small: Run directory or URL of the model that answers first.
    large: The same of the model that answers what is deferred; None abstains then.
    small_name: Name of the small model in responses; None for that of its directory or URL.
    large_name: The same of the large one.
    small_endpoint: Fields of a URL: api, key_variable, system, fields, logprobs.
    large_endpoint: The same of the large model.
    small_prices: Dollars per token, as DOLLARS of `evaluate`; without them nothing has a price.
    large_prices: The same of the large model.
    seconds: Longest time of an answer.
    failures: Failures in a row after which a model is left alone.
    pause: Seconds for which it is left alone.
    drafting: Fields of `Drafting`, with which the small model drafts answers of a large one in this
      process; None lets the large model write alone.
  """

  small: str
  large: str | None = None
  small_name: str | None = None
  large_name: str | None = None
  small_endpoint: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  large_endpoint: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  small_prices: Mapping[str, float] = dataclasses.field(default_factory=dict)
  large_prices: Mapping[str, float] = dataclasses.field(default_factory=dict)
  seconds: float = 120.0
  failures: int = 5
  pause: float = 30.0
  drafting: Mapping[str, Any] | None = None

  def __post_init__(self) -> None:
    ranges.check({'ANSWER_SECONDS': self.seconds, 'BREAKER_PAUSE': self.pause}, above=0)
    ranges.check({'BREAKER_FAILURES': self.failures}, least=1, integer=True)

  def members(self) -> list[MemberOptions]:
    """Options of each model, the small one first."""
    roles: list[Role] = ['small', 'large'] if self.large is not None else ['small']
    if self.drafting is not None and roles == ['small']:
      raise ValueError(
        'DRAFTING is for a LARGE model, and there is none: give one, or leave it out.'
      )
    return [
      MemberOptions(
        role=role,
        path=getattr(self, role),
        name=getattr(self, f'{role}_name'),
        endpoint=getattr(self, f'{role}_endpoint'),
        prices=getattr(self, f'{role}_prices'),
        seconds=self.seconds,
        failures=self.failures,
        pause=self.pause,
        drafts=Drafts(self.small, self.drafting)
        if role == 'large' and self.drafting is not None
        else None,
      )
      for role in roles
    ]


@dataclasses.dataclass(frozen=True)
class Deciding:
  """The rule between the models.

  Attributes:
    policy: File that `calibrate` wrote; None for `decider` and `threshold`.
    decider: Name of a deferral score, or the NAME.json of a learned one.
    threshold: Score from which the large model answers.
    task: Task of requests that name none, in a policy with thresholds by task.
    alternatives: Number of most likely tokens at each position that the score reads.
    shadow: Another policy, whose decisions are logged and have no effect.
    reload_seconds: Time between looks at the files of the policies.
    allow_other_models: Serve other models than the policy was calibrated with.
  """

  policy: str | None = None
  decider: str | None = None
  threshold: float | None = None
  task: str | None = None
  alternatives: int = 0
  shadow: str | None = None
  reload_seconds: float = 2.0
  allow_other_models: bool = False

  def __post_init__(self) -> None:
    ranges.check({'ALTERNATIVES': self.alternatives}, least=0, most=20, integer=True)
    ranges.check({'RELOAD_SECONDS': self.reload_seconds}, above=0)
    if (self.policy is None) == (self.threshold is None):
      raise ValueError(
        'Give either POLICY, a file that `python -m cascades.calibrate` wrote, or THRESHOLD, the '
        'score from which the large model answers.'
      )
    if self.policy is not None and self.decider is not None:
      raise ValueError('POLICY names its decider: leave DECIDER out.')

  def rule(self) -> DecisionRule:
    """The rule. Raises OSError or ValueError if there is none that can be run."""
    if self.policy is not None:
      return decisions.from_policy(self.policy, task=self.task, alternatives=self.alternatives)
    name = self.decider or 'average'
    assert self.threshold is not None
    return decisions.from_threshold(name, self.threshold, alternatives=self.alternatives)

  def shadow_rule(self) -> DecisionRule:
    """The rule of the shadow."""
    assert self.shadow is not None
    return decisions.from_policy(
      self.shadow, task=self.task, alternatives=self.alternatives, setting='SHADOW'
    )


@dataclasses.dataclass(frozen=True)
class Metering:
  """Clients, logs and budgets.

  Attributes:
    name: Name of the cascade among models.
    keys: File of keys; None for none.
    keys_variable: Environment variable that holds keys; None for none.
    log_dir: Directory of the log of exchanges; None for no log.
    log: Options of the log.
    ceilings: Budgets of a request and a day.
    budget_file: File in which the spending of the day is stored; None forgets it at the end.
  """

  name: str = 'cascade'
  keys: str | None = None
  keys_variable: str | None = None
  log_dir: str | None = None
  log: LogOptions = dataclasses.field(default_factory=LogOptions)
  ceilings: Ceilings = dataclasses.field(default_factory=Ceilings)
  budget_file: str | None = None

  def clients(self) -> tuple[ApiKey, ...]:
    """Keys of clients. Raises OSError or ValueError if they cannot be read."""
    files = keys.read(self.keys) if self.keys else ()
    return (*files, *(keys.from_environment(self.keys_variable) if self.keys_variable else ()))
