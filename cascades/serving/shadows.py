"""Decisions of a policy that is tried out, on the answers that another one asked for."""

from __future__ import annotations

from collections.abc import Sequence

from cascades.serving.calls import Call
from cascades.serving.exchanges import NOBODY, LevelDecision, Role, Routed, Shadow
from cascades.serving.legs import OpenLeg
from cascades.serving.served_policy import ServedPolicy


def decide(
  policy: ServedPolicy, call: Call, legs: Sequence[OpenLeg], routed: Routed | None
) -> Shadow | None:
  """Decision that a policy would have taken; None if it cannot tell anything.

  Args:
    policy: The policy.
    call: The request.
    legs: Answers of the models that were asked.
    routed: Choice of the policy's router; None without one.
  """
  task = call.task if call.task in policy.tasks else policy.task
  complete = {leg.role: leg for leg in legs if leg.finish}
  level, taken = 0, list[LevelDecision]()
  if routed is not None:
    level = len(policy.rules) if routed.role == NOBODY else policy.roles.index(routed.role)
  author: Role | None = NOBODY
  for role, rule in list(zip(policy.roles, policy.rules, strict=True))[level:]:
    is_before = rule is not None and rule.decider.before_answer
    if rule is not None and (is_before or role in complete):
      evidence = None if is_before else complete[role].evidence()
      taken.append(rule.decide(role, call.question, task, evidence))
      if taken[-1].deferred:
        continue
    author = role if rule is None or is_before or role in complete else None
    break
  if author is None and not taken:
    return None
  first_one = taken[0] if taken else None
  return Shadow(
    first_one and first_one.score,
    first_one and first_one.threshold,
    any(decision.deferred for decision in taken),
    author,
  )
