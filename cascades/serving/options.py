"""Options of a server, as settings give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cascades.runtime import files, ranges
from cascades.serving import keys, served_policy
from cascades.serving.budgets import Ceilings
from cascades.serving.exchange_rows import UNANSWERED
from cascades.serving.exchanges import PAIR, Role
from cascades.serving.keys import ApiKey
from cascades.serving.members import Drafts, MemberOptions
from cascades.serving.metering import LogOptions
from cascades.serving.served_policy import ServedPolicy


@dataclasses.dataclass(frozen=True)
class ServedModels:
  """The models, in this process or behind URLs: two, or any number of named ones.

  Attributes:
    small: Run directory or URL of the model that answers first; None for named ones.
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
    models: Run directories or URLs of any number of models by name, in order.
    endpoints: Fields of the URLs among them, by name.
    prices: Dollars per token, by name.
    drafting: Fields of `Drafting`, with which the small model drafts answers of a large one in this
      process; None lets the large model write alone.
  """

  small: str | None = None
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
  models: Mapping[str, str] = dataclasses.field(default_factory=dict)
  endpoints: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  prices: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  drafting: Mapping[str, Any] | None = None

  def __post_init__(self) -> None:
    ranges.check({'ANSWER_SECONDS': self.seconds, 'BREAKER_PAUSE': self.pause}, above=0)
    ranges.check({'BREAKER_FAILURES': self.failures}, least=1, integer=True)
    if (self.small is None) == (not self.models):
      raise ValueError(
        'Give either SMALL and LARGE, or MODELS, a longer chain: {"1b": "runs/1b", "8b": ...}.'
      )
    pair = (self.large, self.small_name, self.large_name, self.drafting)
    options = (
      self.small_endpoint, self.large_endpoint, self.small_prices, self.large_prices
    )  # fmt: skip
    if self.models and (any(value is not None for value in pair) or any(options)):
      raise ValueError(
        'With MODELS, options of models are given in ENDPOINTS and PRICES, and none of LARGE, '
        'SMALL_..., LARGE_... and DRAFTING: leave them out.'
      )
    for setting, given in (('ENDPOINTS', self.endpoints), ('PRICES', self.prices)):
      if unknown := sorted(set(given) - set(self.models)):
        raise ValueError(
          f'{setting} names {", ".join(map(repr, unknown))}, and MODELS has '
          f'{", ".join(map(repr, self.models)) or "none"}.'
        )
    for name in self.models:
      files.component(name, 'a model')
      if name == UNANSWERED:
        raise ValueError(f'MODELS names {name!r}, a folder of the log: choose another name.')

  def members(self) -> list[MemberOptions]:
    """Options of each model, in order."""
    if self.models:
      return [
        MemberOptions(
          role=name,
          path=path,
          name=name,
          endpoint=self.endpoints.get(name, {}),
          prices=self.prices.get(name, {}),
          seconds=self.seconds,
          failures=self.failures,
          pause=self.pause,
          in_models=True,
        )
        for name, path in self.models.items()
      ]
    roles: Sequence[Role] = PAIR if self.large is not None else PAIR[:1]
    assert self.small is not None
    if self.drafting is not None and len(roles) == 1:
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
  """The policy between the models.

  Attributes:
    policy: File that `calibrate` or `route` wrote; None for `decider` and `threshold`.
    decider: Name of a deferral score, or the NAME.json of a learned one.
    threshold: Score from which the next model answers; one for each model but the last, if there
      are more than two.
    task: Task of requests that name none, in a policy with thresholds by task.
    alternatives: Number of most likely tokens at each position that the score reads.
    shadow: Another policy, whose decisions are logged and have no effect.
    reload_seconds: Time between looks at the files of the policies.
    allow_other_models: Serve other models than the policy was calibrated with.
  """

  policy: str | None = None
  decider: str | None = None
  threshold: float | Sequence[float] | None = None
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
        'Give either POLICY, a file that `python -m cascades.calibrate` or `route` wrote, or '
        'THRESHOLD, the score from which the next model answers.'
      )
    if self.policy is not None and self.decider is not None:
      raise ValueError('POLICY names its decider: leave DECIDER out.')

  def read(self) -> ServedPolicy:
    """The policy. Raises OSError or ValueError if there is none that can be run."""
    if self.policy is not None:
      return served_policy.from_file(self.policy, task=self.task, alternatives=self.alternatives)
    name = self.decider or 'average'
    assert self.threshold is not None
    return served_policy.from_threshold(name, self.threshold, alternatives=self.alternatives)

  def read_shadow(self) -> ServedPolicy:
    """The policy of the shadow."""
    assert self.shadow is not None
    return served_policy.from_file(
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
    stored = keys.read(self.keys) if self.keys else ()
    return (*stored, *(keys.from_environment(self.keys_variable) if self.keys_variable else ()))
