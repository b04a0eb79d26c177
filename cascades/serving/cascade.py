"""The cascade: the small model answers, its answer gets a score, and the large one answers if it
must.

    small model --pieces--> score --below the threshold--> the small answer
                               \\--else----------------> the large answer

The small answer is kept back until it is accepted, unless the client can replace text. Where the
score of a growing answer has a bound, the small model is stopped as soon as no continuation can be
accepted. A decider of prompts decides before any model answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import Literal, NamedTuple, TypeAlias, get_args

from cascades.runtime import ranges
from cascades.serving import refusals
from cascades.serving.budgets import NOTHING, Ledger
from cascades.serving.decisions import DecisionRule, Evidence, Verdict
from cascades.serving.early_deferral import LeastScore
from cascades.serving.exchanges import Exchange, ModelError, Question, Role, Shadow
from cascades.serving.keys import ANONYMOUS, ApiKey
from cascades.serving.legs import Account, Delta, Member, OpenLeg
from cascades.serving.refusals import Refusal

Degrade: TypeAlias = Literal['keep', 'refuse', 'wait']
Recorder: TypeAlias = Callable[[Exchange], None]

FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0  # seconds between tries of the large model
FAILED = 'large model failed'
ABSTAINED = 'abstained'


@dataclasses.dataclass(frozen=True)
class Conduct:
  """Behavior of a cascade where a policy says nothing.

  Attributes:
    degrade: Reaction if the policy defers and the large model cannot answer: 'keep' answers with
      the small one's text, 'refuse' with an error, 'wait' tries again for `wait_seconds`.
    wait_seconds: Longest wait for the large model.
    stop_early: Stop the small model as soon as no continuation can be accepted.
    provisional: Stream the small answer before it is accepted, unless a request says otherwise.
  """

  degrade: Degrade = 'keep'
  wait_seconds: float = 30.0
  stop_early: bool = True
  provisional: bool = False

  def __post_init__(self) -> None:
    if self.degrade not in get_args(Degrade):
      raise ValueError(f'DEGRADE={self.degrade!r:.80} is none of {", ".join(get_args(Degrade))}.')
    ranges.check({'WAIT_SECONDS': self.wait_seconds}, above=0)


class Replaced(NamedTuple):
  """All text before is void."""


Event: TypeAlias = Delta | Replaced | Exchange
Stage: TypeAlias = Callable[[], AsyncGenerator[Delta | Replaced, None]]


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


class ServedCascade:
  """Answers requests with two models and a rule between them.

  Attributes:
    rule: The rule, which may be replaced at any time; a request keeps the one that it began with.
    shadow: Another rule whose decisions are recorded, and have no effect.
  """

  def __init__(
    self,
    small: Member,
    large: Member | None,
    rule: DecisionRule,
    *,
    conduct: Conduct = Conduct(),
    record: Recorder | None = None,
    shadow: DecisionRule | None = None,
    ledger: Ledger | None = None,
  ):
    """Prepares a cascade.

    Args:
      small: Model that is asked first.
      large: Model that is asked if the rule defers; None abstains then.
      rule: Decides between them.
      conduct: Behavior where the rule says nothing.
      record: Called with each exchange at its end, whatever the end.
      shadow: Rule that is tried out.
      ledger: Budgets that answers are charged to; None for none.
    """
    self.small, self.large = small, large
    self.rule, self.shadow = rule, shadow
    self.conduct, self.ledger = conduct, ledger
    self._record = record or (lambda _: None)

  def member(self, role: Role) -> Member:
    """Model of a role."""
    member = self.small if role == 'small' else self.large
    if member is None:
      raise Refusal(404, 'There is no large model.', code='model_not_found', param='model')
    return member

  async def answer(self, call: Call) -> AsyncGenerator[Event, None]:
    """Answer a request: text as it may be passed on, then the exchange.

    Closing the generator cancels the models.

    Raises:
      Refusal: There is no answer.
    """
    run = _Run(self, call)
    try:
      async with contextlib.aclosing(run.events()) as events:
        async for event in events:
          yield event
      run.status = 200
      exchange = run.exchange()
      yield exchange
    except (ModelError, ValueError) as error:
      refusal = refusals.of_error(error, run.last_role)
      run.status = refusal.status
      raise refusal from error
    except Refusal as refusal:
      run.status = refusal.status
      raise
    except Exception:
      run.status = 500
      raise
    finally:
      self._record(run.exchange())


class _Run:
  """A request on its way through the cascade.

  A stage is one model's turn. It yields text, and names the stage that follows.
  """

  def __init__(self, cascade: ServedCascade, call: Call):
    self._cascade, self._call = cascade, call
    self._rule, self._shadow_rule = cascade.rule, cascade.shadow
    self._time, self._began = time.time(), time.monotonic()
    named = call.task if call.task in self._rule.thresholds else None
    self._task: str = named or self._rule.task
    self._legs: list[OpenLeg] = []
    self._author: Role | None = None
    self._decision: Verdict | None = None
    self._shadow: Shadow | None = None
    self._next: Stage | None = None
    self._is_shown = False  # the client has text that may become void
    self._deadline: float | None = None  # of tries of the large model
    self._pause = FIRST_WAIT
    self._flag = ''
    self.status = refusals.CLIENT_CLOSED  # until another one is known

  @property
  def last_role(self) -> Role:
    """Role of the model that was asked last."""
    return self._legs[-1].role if self._legs else 'small'

  def exchange(self) -> Exchange:
    """Record of the request so far."""
    decision = self._decision
    return Exchange(
      id=self._call.id,
      time=self._time,
      key=self._call.key.name,
      task=self._task,
      question=self._call.question,
      legs=tuple(leg.closed() for leg in self._legs),
      author=self._author,
      score=decision.score if decision else None,
      threshold=decision.threshold if decision else None,
      deferred=self._deferred,
      flag=self._flag or (decision.flag if decision else ''),
      decision_seconds=decision.seconds if decision else 0.0,
      seconds=time.monotonic() - self._began,
      status=self.status,
      shadow=self._shadow,
    )

  async def events(self) -> AsyncGenerator[Delta | Replaced, None]:
    """Text of the answer."""
    self._next = self._first_stage()
    while (stage := self._next) is not None:
      self._next = None
      async with contextlib.aclosing(stage()) as events:
        async for event in events:
          yield event

  def _first_stage(self) -> Stage:
    rule = self._rule
    if self._call.role is not None:
      return functools.partial(self._one_model, self._call.role)
    if rule.decider.before_answer:
      self._decision = rule.decide(self._call.question, self._task, None)
      self._compare(None)
      return self._large if self._deferred else functools.partial(self._one_model, 'small')
    if rule.thresholds[self._task] == math.inf:  # nothing that it says can be deferred
      return functools.partial(self._one_model, 'small')
    return self._small

  async def _one_model(self, role: Role) -> AsyncGenerator[Delta, None]:
    """The answer of a model, whatever it is."""
    leg = self._open(role)
    async with contextlib.aclosing(leg.pieces()) as pieces:
      async for piece in pieces:
        self._author = role
        yield Delta(piece.text, piece.tokens)
    if self._call.role is None and self._decision is None:
      self._decide(leg)

  async def _small(self) -> AsyncGenerator[Delta, None]:
    """The small answer, if it is accepted, or provisionally; and the decision."""
    wish, conduct = self._call.provisional, self._cascade.conduct
    is_provisional = self._call.live and (conduct.provisional if wish is None else wish)
    leg, bound = self._open('small'), self._bound()
    threshold = self._rule.thresholds[self._task]
    async with contextlib.aclosing(leg.pieces()) as pieces:
      async for piece in pieces:
        least = max(map(bound.add, piece.tokens), default=-math.inf) if bound else -math.inf
        if least >= threshold and not leg.finish:
          self._decision, self._next = Verdict(least, threshold), self._large
          return
        if is_provisional:
          self._is_shown = True
          yield Delta(piece.text, piece.tokens)
    self._decide(leg)
    if self._deferred:
      self._next = self._large
      return
    self._author = 'small'
    if not is_provisional:
      yield leg.delta()

  async def _large(self) -> AsyncGenerator[Delta | Replaced, None]:
    """The large answer, as it is written, or whole where nobody waits for its beginning."""
    if self._cascade.large is None:
      self._flag = ABSTAINED
      if self._is_shown:
        yield Replaced()
      return
    leg = self._open('large')
    try:
      async with contextlib.aclosing(leg.pieces()) as pieces:
        async for piece in pieces:
          if self._call.live:
            if self._is_shown:
              self._is_shown = False
              yield Replaced()
            self._author = 'large'
            yield Delta(piece.text, piece.tokens)
    except (ModelError, ValueError) as error:
      await self._degrade(error)
      return
    self._author = 'large'
    if not self._call.live:
      yield leg.delta()

  async def _degrade(self, error: ModelError | ValueError) -> None:
    """Choose what follows a large model that failed, or raise its error."""
    conduct, now = self._cascade.conduct, time.monotonic()
    if self._author == 'large':  # the client has the beginning of its answer
      raise error
    if conduct.degrade == 'keep':
      self._flag, self._next = FAILED, self._small_instead
      return
    self._deadline = self._deadline or now + conduct.wait_seconds
    self._pause = max(self._pause, getattr(error, 'retry_after', None) or 0.0)
    is_too_late = now + self._pause > self._deadline
    if conduct.degrade == 'refuse' or isinstance(error, ValueError) or is_too_late:
      self._flag = FAILED
      raise error
    await asyncio.sleep(self._pause)
    self._pause = min(2 * self._pause, LONGEST_WAIT)
    self._next = self._large

  async def _small_instead(self) -> AsyncGenerator[Delta | Replaced, None]:
    """The small answer in the place of a large one; asked for again if it is not complete."""
    complete = [leg for leg in self._legs if leg.role == 'small' and leg.finish]
    leg = complete[0] if complete else self._open('small')
    if not complete:
      async with contextlib.aclosing(leg.pieces()) as pieces:
        async for _ in pieces:
          pass
    self._author = 'small'
    if self._is_shown:
      yield Replaced()
    yield leg.delta()

  @property
  def _deferred(self) -> bool:
    return self._decision is not None and self._decision.deferred

  def _open(self, role: Role) -> OpenLeg:
    question = self._call.question
    if role == 'small':
      tops = [rule.alternatives for rule in (self._rule, self._shadow_rule) if rule]
      question = question._replace(alternatives=max(question.alternatives, *tops))
    leg = OpenLeg(role, self._cascade.member(role), question, self._account())
    self._legs.append(leg)
    return leg

  def _account(self) -> Account | None:
    """Budget of the next answer; one that cannot be counted has been reserved whole."""
    if self._cascade.ledger is None:
      return None
    before = NOTHING
    for leg in self._legs:
      before = before.plus(leg.spent() or NOTHING)
    return Account(self._cascade.ledger, self._call.key, before)

  def _bound(self) -> LeastScore | None:
    """Bound of the score, if the small model may be stopped by it."""
    most = self._call.question.max_tokens
    if not self._cascade.conduct.stop_early or self._shadow_rule is not None or most is None:
      return None
    return self._rule.least_score(most)

  def _decide(self, leg: OpenLeg) -> None:
    evidence = leg.evidence()
    self._decision = self._rule.decide(self._call.question, self._task, evidence)
    self._compare(evidence)

  def _compare(self, evidence: Evidence | None) -> None:
    """Record the decision of the shadow, if it can decide from this."""
    shadow = self._shadow_rule
    if shadow is None or self._shadow or (evidence is None and not shadow.decider.before_answer):
      return
    task = self._task if self._task in shadow.thresholds else shadow.task
    decision = shadow.decide(self._call.question, task, evidence)
    self._shadow = Shadow(decision.score, decision.threshold, decision.deferred)
