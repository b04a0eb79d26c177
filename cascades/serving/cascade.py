"""The cascade: a model answers, its answer gets a score, and the next model answers if it must.

    model --pieces--> score --below the threshold--> its answer
                        \\--else--> the next model, or, after the last one, nobody

An answer is kept back until it is accepted, unless the client can replace text. Where the score of
a growing answer has a bound, the model is stopped as soon as no continuation can be accepted. A
decider of prompts decides before the model answers, and a router chooses which model is the first.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Mapping

from cascades.serving import refusals
from cascades.serving.budgets import Ledger
from cascades.serving.calls import Call, Conduct, Event, Recorder
from cascades.serving.exchanges import ModelError, Role
from cascades.serving.legs import Member
from cascades.serving.passage import Crew, Passage
from cascades.serving.refusals import Refusal
from cascades.serving.served_policy import ServedPolicy

_SYSTEM = random.SystemRandom()  # nobody can tell which requests are audited


class ServedCascade:
  """Answers requests with models in order and a policy between them.

  Attributes:
    members: Models by role, in order.
    policy: The policy, which may be replaced at any time; a request keeps the one that it began
      with.
    shadow: Another policy whose decisions are recorded, and have no effect.
  """

  def __init__(
    self,
    members: Mapping[Role, Member],
    policy: ServedPolicy,
    *,
    conduct: Conduct = Conduct(),
    record: Recorder | None = None,
    shadow: ServedPolicy | None = None,
    ledger: Ledger | None = None,
    draw: Callable[[], float] = _SYSTEM.random,
  ):
    """Prepares a cascade.

    Args:
      members: Models by role, in the order in which a policy without names asks them.
      policy: Decides between them.
      conduct: Behavior where the policy says nothing.
      record: Called with each exchange at its end, whatever the end.
      shadow: Policy that is tried out.
      ledger: Budgets that answers are charged to; None for none.
      draw: Draws a number from 0 to 1 for each request, which is audited below `audit_share`.

    Raises:
      ValueError: A policy is for other models.
    """
    self.members = dict(members)
    self.policy = policy.of([*members])
    self.shadow = shadow and shadow.of([*members])
    self.conduct, self.ledger = conduct, ledger
    self._record, self._draw = record or (lambda _: None), draw

  async def answer(self, call: Call) -> AsyncGenerator[Event, None]:
    """Answer a request: text as it may be passed on, then the exchange.

    Closing the generator cancels the models.

    Raises:
      Refusal: There is no answer.
    """
    crew = Crew(self.members, self.policy, self.shadow, self.conduct, self.ledger)
    passage = Passage(crew, call, is_audit=self._draw() < self.conduct.audit_share)
    try:
      async with contextlib.aclosing(passage.events()) as events:
        async for event in events:
          yield event
      passage.status = 200
      yield passage.exchange()
    except (ModelError, ValueError) as error:
      is_first = passage.last_role == passage.first_role
      refusal = refusals.of_error(error, passage.last_role, is_first=is_first)
      passage.status = refusal.status
      raise refusal from error
    except Refusal as refusal:
      passage.status = refusal.status
      raise
    except Exception:
      passage.status = 500
      raise
    finally:
      self._record(passage.exchange())
