"""Calls of a cascade: what is asked, how it is conducted, and the events that answer it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

from cascades.runtime import ranges
from cascades.serving.exchanges import Exchange, Question, Role
from cascades.serving.keys import ANONYMOUS, ApiKey
from cascades.serving.legs import Delta

Degrade: TypeAlias = Literal['keep', 'refuse', 'wait']
Recorder: TypeAlias = Callable[[Exchange], None]


@dataclasses.dataclass(frozen=True)
class Conduct:
  """Behavior of a cascade where a policy says nothing.

  Attributes:
    degrade: Reaction if the policy asks for a model that cannot answer: 'keep' answers with the
      text of the model before it, 'refuse' with an error, 'wait' tries again for `wait_seconds`.
    wait_seconds: Longest wait for a model.
    stop_early: Stop a model as soon as no continuation can be accepted.
    provisional: Stream an answer before it is accepted, unless a request says otherwise.
    audit_share: Share of the requests, drawn at random, that all models answer, for the log.
  """

  degrade: Degrade = 'keep'
  wait_seconds: float = 30.0
  stop_early: bool = True
  provisional: bool = False
  audit_share: float = 0.0

  def __post_init__(self) -> None:
    if self.degrade not in get_args(Degrade):
      raise ValueError(f'DEGRADE={self.degrade!r:.80} is none of {", ".join(get_args(Degrade))}.')
    ranges.check({'WAIT_SECONDS': self.wait_seconds}, above=0)
    ranges.check({'AUDIT_SHARE': self.audit_share}, least=0, most=1)


class Replaced(NamedTuple):
  """All text before is void."""


Event: TypeAlias = Delta | Replaced | Exchange


class Call(NamedTuple):
  """A request to the cascade.

  Attributes:
    id: Id of the response.
    question: What is asked.
    task: Task whose threshold decides; None for the policy's own.
    role: Model that is asked whatever the policy says; None for the cascade.
    key: Key that asked.
    live: The text is passed on as it is written; False lets failures change the author to the end.
    provisional: The client can replace text; None for the server's default.
  """

  id: str
  question: Question
  task: str | None = None
  role: Role | None = None
  key: ApiKey = ANONYMOUS
  live: bool = False
  provisional: bool | None = None
