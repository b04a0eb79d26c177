"""A request on its way through a cascade.

A stage is one model's turn. It yields text, and names the stage that follows: the next model if the
answer is deferred, none if it is final, and the model before it if it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple, TypeAlias

from cascades.serving import decisions, refusals, shadows
from cascades.serving.budgets import NOTHING, Ledger
from cascades.serving.calls import Call, Conduct, Replaced
from cascades.serving.decisions import DecisionRule
from cascades.serving.early_deferral import LeastScore
from cascades.serving.exchanges import (
  NOBODY,
  Exchange,
  LevelDecision,
  ModelError,
  Role,
  Routed,
  Shadow,
)
from cascades.serving.keys import ANONYMOUS
from cascades.serving.legs import Account, Delta, Member, OpenLeg
from cascades.serving.prompt_counts import PromptCounts
from cascades.serving.served_policy import ServedPolicy

Shown: TypeAlias = Delta | Replaced
Stage: TypeAlias = Callable[[], AsyncGenerator[Shown, None]]

FIRST_WAIT, LONGEST_WAIT = 0.25, 5.0  # seconds between tries of a model
FAILED = '{} model failed'
ABSTAINED = 'abstained'


class Crew(NamedTuple):
  """Models and policies that a request finds when it arrives, and keeps to its end.

  Attributes:
    members: Models by role, in order.
    policy: Decides about their answers.
    shadow: Policy that is tried out; None for none.
    conduct: Behavior where the policy says nothing.
    ledger: Budgets that answers are charged to; None for none.
  """

  members: Mapping[Role, Member]
  policy: ServedPolicy
  shadow: ServedPolicy | None
  conduct: Conduct
  ledger: Ledger | None


class Passage:
  """A request on its way.

  Attributes:
    status: HTTP status of the response, once it is known.
  """

  def __init__(self, crew: Crew, call: Call, *, is_audit: bool = False):
    self._crew, self._call = crew, call
    self._policy = crew.policy
    self._time, self._began = time.time(), time.monotonic()
    self._task = call.task if call.task in self._policy.tasks else self._policy.task
    self._legs: list[OpenLeg] = []
    self._decisions: list[LevelDecision] = []
    self._is_audit = is_audit and call.role is None
    self._author: Role | None = None
    self._routed: Routed | None = None
    self._next: Stage | None = None
    self._shown: OpenLeg | None = None  # whose text the client has
    self._tried_route: Routed | None = None  # choice of the shadow's router
    self._deadline: float | None = None  # of tries of a model
    self._pause = FIRST_WAIT
    self._flag = ''
    self.status = refusals.CLIENT_CLOSED

  @property
  def last_role(self) -> Role:
    """Role of the model that was asked last."""
    return self._legs[-1].role if self._legs else self._policy.roles[0]

  @property
  def first_role(self) -> Role:
    """Role of the model that was asked first."""
    return self._legs[0].role if self._legs else self._policy.roles[0]

  def exchange(self) -> Exchange:
    """Record of the request so far."""
    call = self._call
    return Exchange(
      id=call.id,
      time=self._time,
      key=call.key.name,
      task=self._task,
      question=call.question,
      legs=tuple(leg.closed() for leg in self._legs),
      author=self._author,
      flag=self._flag or next((each.flag for each in self._decisions if each.flag), ''),
      seconds=time.monotonic() - self._began,
      status=self.status,
      decisions=tuple(self._decisions),
      roles=tuple(self._crew.members),
      routed=self._routed,
      is_audit=self._is_audit,
      shadow=self._shadow,
    )

  @functools.cached_property
  def _shadow(self) -> Shadow | None:
    """Decision of the shadow, once the models have answered."""
    shadow = self._crew.shadow
    if shadow is None or self._call.role is not None:
      return None
    return shadows.decide(shadow, self._call, self._legs, self._tried_route)

  async def events(self) -> AsyncGenerator[Shown, None]:
    """Text of the answer."""
    self._next = await self._first_stage()
    while (stage := self._next) is not None:
      self._next = None
      async with contextlib.aclosing(stage()) as events:
        async for event in events:
          yield event
    if self._is_audit:
      await self._audit()

  async def _first_stage(self) -> Stage:
    if self._call.role is not None:
      return functools.partial(self._final, self._call.role, None)
    policy, shadow = self._policy, self._crew.shadow
    text = decisions.prompt_text(self._call.question)
    counts = PromptCounts(self._crew.members, self._call.question.prompt)
    if shadow and shadow.router:
      self._tried_route = await asyncio.to_thread(shadow.router, text, counts)
    if policy.router is None:
      return self._level(0)
    self._routed = await asyncio.to_thread(policy.router, text, counts)
    if self._routed.role == NOBODY:
      return self._abstain
    return self._level(policy.roles.index(self._routed.role))

  def _level(self, level: int) -> Stage:
    """Turn of a model, or of the next one if this is decided before it answers."""
    policy = self._policy
    if level == len(policy.rules):
      return self._abstain
    role, rule = policy.roles[level], policy.rules[level]
    if rule is not None and rule.decider.before_answer:
      decision = rule.decide(role, self._call.question, self._task, None)
      self._decisions.append(decision)
      return self._level(level + 1) if decision.deferred else self._turn(role, None)
    return self._turn(role, rule)

  def _turn(self, role: Role, rule: DecisionRule | None) -> Stage:
    if rule is None or rule.thresholds[self._task] == math.inf:  # nothing can be deferred
      return functools.partial(self._final, role, rule)
    return functools.partial(self._held, role, rule)

  async def _final(self, role: Role, rule: DecisionRule | None) -> AsyncGenerator[Shown, None]:
    """The answer of a model, as it is written, or as a whole if nobody waits for its beginning.

    Args:
      role: The model.
      rule: Scores the answer, and never defers it; None does not.
    """
    leg = self._open(role)
    try:
      async with contextlib.aclosing(leg.pieces()) as pieces:
        async for piece in pieces:
          if self._call.live:
            self._author = role
            for event in self._show(leg, Delta(piece.text, piece.tokens)):
              yield event
    except (ModelError, ValueError) as error:
      await self._degrade(role, rule, error)
      return
    self._author = role
    if rule is not None:
      self._decide(leg, rule)
    if not self._call.live:
      yield leg.delta()

  async def _held(self, role: Role, rule: DecisionRule) -> AsyncGenerator[Shown, None]:
    """The answer of a model, if it is accepted, or provisionally; and the decision."""
    leg, bound = self._open(role), self._bound(rule)
    threshold = rule.thresholds[self._task]
    try:
      async with contextlib.aclosing(leg.pieces()) as pieces:
        async for piece in pieces:
          least = max(map(bound.add, piece.tokens), default=-math.inf) if bound else -math.inf
          if least >= threshold and not leg.finish:
            self._decisions.append(LevelDecision(role, least, threshold, is_bound=True))
            self._next = self._after(role)
            return
          if self._is_provisional:
            for event in self._show(leg, Delta(piece.text, piece.tokens)):
              yield event
    except (ModelError, ValueError) as error:
      await self._degrade(role, rule, error)
      return
    if self._decide(leg, rule).deferred:
      self._next = self._after(role)
      return
    self._author = role
    if not self._is_provisional:
      yield leg.delta()

  async def _abstain(self) -> AsyncGenerator[Shown, None]:
    """No answer."""
    self._flag = ABSTAINED
    if self._shown is not None:
      yield Replaced()

  async def _degrade(
    self, role: Role, rule: DecisionRule | None, error: ModelError | ValueError
  ) -> None:
    """Choose what follows a model that failed, or raise its error."""
    conduct, now = self._crew.conduct, time.monotonic()
    before = self._before(role)
    if self._author is not None or before is None:  # the client has a beginning, or nobody is left
      raise error
    self._deadline = self._deadline or now + conduct.wait_seconds
    self._pause = max(self._pause, getattr(error, 'retry_after', None) or 0.0)
    is_too_late = now + self._pause > self._deadline
    self._flag = self._flag or FAILED.format(role)
    if conduct.degrade == 'keep':
      self._next = functools.partial(self._instead, before)
      return
    if conduct.degrade == 'refuse' or isinstance(error, ValueError) or is_too_late:
      raise error
    await asyncio.sleep(self._pause)
    self._flag = ''
    self._pause = min(2 * self._pause, LONGEST_WAIT)
    self._next = self._turn(role, rule)

  def _before(self, role: Role) -> Role | None:
    """The model whose answer can be kept in the place of another one; None without any."""
    lower = self._policy.roles[: self._policy.roles.index(role)] if not self._call.role else ()
    healthy = {leg.role for leg in self._legs if not leg.error}
    asked = [other for other in lower if other in healthy]
    return asked[-1] if asked else lower[-1] if lower else None

  async def _instead(self, role: Role) -> AsyncGenerator[Shown, None]:
    """The answer of a model before the one that failed; asked for again if it is not complete."""
    complete = [leg for leg in self._legs if leg.role == role and leg.finish]
    leg = complete[-1] if complete else self._open(role)
    if not complete:
      try:
        async with contextlib.aclosing(leg.pieces()) as pieces:
          async for _ in pieces:
            pass
      except (ModelError, ValueError) as error:
        await self._degrade(role, None, error)
        return
    self._author = role
    if self._shown is not leg:
      for event in self._show(leg, leg.delta()):
        yield event

  def _show(self, leg: OpenLeg, delta: Delta) -> list[Shown]:
    """Events by which the client has text of a model, and of no other one."""
    is_void, self._shown = self._shown not in (None, leg), leg
    return [Replaced(), delta] if is_void else [delta]

  async def _audit(self) -> None:
    """Ask the models that have not answered, for the log; their failures are none of the client."""
    complete = {leg.role for leg in self._legs if leg.finish}
    for role in self._crew.members:
      if role not in complete:
        leg = self._open(role, is_audit=True)
        with contextlib.suppress(ModelError, ValueError):
          async with contextlib.aclosing(leg.pieces()) as pieces:
            async for _ in pieces:
              pass

  @property
  def _is_provisional(self) -> bool:
    wish, default = self._call.provisional, self._crew.conduct.provisional
    return self._call.live and (default if wish is None else wish)

  def _after(self, role: Role) -> Stage:
    return self._level(self._policy.roles.index(role) + 1)

  def _open(self, role: Role, *, is_audit: bool = False) -> OpenLeg:
    question = self._call.question
    rules = [each.rule_of(role) for each in (self._policy, self._crew.shadow) if each]
    tops = [rule.alternatives for rule in rules if rule]
    question = question._replace(alternatives=max(question.alternatives, *tops, 0))
    account = self._account(is_audit=is_audit)
    leg = OpenLeg(role, self._crew.members[role], question, account, is_audit=is_audit)
    self._legs.append(leg)
    return leg

  def _account(self, *, is_audit: bool) -> Account | None:
    """Budget of the next answer; one that cannot be counted has been reserved whole."""
    if self._crew.ledger is None:
      return None
    before = NOTHING
    for leg in self._legs:
      before = before.plus(leg.spent() or NOTHING)
    return Account(self._crew.ledger, ANONYMOUS if is_audit else self._call.key, before)

  def _bound(self, rule: DecisionRule) -> LeastScore | None:
    """Bound of the score, if the model may be stopped by it."""
    most = self._call.question.max_tokens
    needs_all = self._crew.shadow is not None or self._is_audit
    if not self._crew.conduct.stop_early or needs_all or most is None:
      return None
    return rule.least_score(most)

  def _decide(self, leg: OpenLeg, rule: DecisionRule) -> LevelDecision:
    decision = rule.decide(leg.role, self._call.question, self._task, leg.evidence())
    self._decisions.append(decision)
    return decision
