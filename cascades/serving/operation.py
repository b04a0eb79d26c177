"""Operation of a server, from the opening of its models to their end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cascades.serving import app, decisions, listening
from cascades.serving.budgets import Ledger
from cascades.serving.cascade import Conduct, ServedCascade
from cascades.serving.decisions import DecisionRule
from cascades.serving.exchanges import Role
from cascades.serving.live_policy import LivePolicy
from cascades.serving.members import LocalOptions, MemberOptions, OpenMember
from cascades.serving.metering import Log
from cascades.serving.monitoring import Monitoring
from cascades.serving.options import Deciding, Metering
from cascades.serving.service import HttpLimits, Listening, Service

bind = listening.bind


async def operate(
  members: Sequence[MemberOptions],
  local: LocalOptions,
  deciding: Deciding,
  rules: tuple[DecisionRule, DecisionRule | None],
  *,
  conduct: Conduct,
  limits: HttpLimits,
  metering: Metering,
  address: Listening,
  listener: socket.socket,
) -> None:
  """Serve until a signal, and finish what is running.

  Args:
    members: The models, the small one first.
    local: Memory and types of models in this process.
    deciding: Files of policies.
    rules: The rule and the shadow, as they were read.
    conduct: Behavior where the rule says nothing.
    limits: Limits of requests.
    metering: Clients, logs and budgets.
    address: Connections.
    listener: Socket of the address.

  Raises:
    ValueError: The policy is for other models.
    OSError: A model cannot be opened, or the log not be written.
  """
  async with contextlib.AsyncExitStack() as stack:
    opened: dict[Role, OpenMember] = {}
    for member in members:
      opened[member.role] = await stack.enter_async_context(member.opened(local))
    check = functools.partial(_check, members[0], opened, deciding)
    rule, shadow = rules
    check(rule)
    log = Log(metering.log_dir, metering.log) if metering.log_dir else None
    if log is not None:
      stack.callback(log.close)
    monitoring = Monitoring(rule, {role: each.breaker for role, each in opened.items()}, log)
    cascade = ServedCascade(
      opened['small'].member,
      opened['large'].member if 'large' in opened else None,
      rule,
      conduct=conduct,
      record=monitoring.record,
      shadow=shadow,
      ledger=Ledger(metering.ceilings, metering.budget_file),
    )
    service = Service(
      cascade,
      name=metering.name,
      limits=limits,
      keys=metering.clients(),
      readiness=[*(each.reasons for each in opened.values()), *([log.reasons] if log else [])],
      barrier=lambda: log.refusal if log else '',
    )
    if log is not None:
      log.notes = service.notes
    for live in _policies(deciding, cascade, monitoring, service, check):
      task = asyncio.create_task(live.watch(deciding.reload_seconds))
      stack.callback(task.cancel)
    web = app.build(service, routes=monitoring.routes(service), names=address.host_names)
    server = listening.server(web, address, listener, on_exit=service.drain)
    await server.serve([listener])


def _check(
  small: MemberOptions, opened: Mapping[Role, OpenMember], deciding: Deciding, rule: DecisionRule
) -> None:
  """Raise ValueError for a rule that is not one of these models."""
  small.check_measured(rule)
  if not deciding.allow_other_models:
    described: dict[Role, Mapping[str, Any]] = {role: o.described for role, o in opened.items()}
    decisions.check_models(rule, described)


def _policies(
  deciding: Deciding,
  cascade: ServedCascade,
  monitoring: Monitoring,
  service: Service,
  check: Callable[[DecisionRule], None],
) -> list[LivePolicy]:
  """Files of policies to watch."""

  def read(rule: Callable[[], DecisionRule]) -> DecisionRule:
    new = rule()
    check(new)
    return new

  def decide_by(rule: DecisionRule) -> None:
    cascade.rule = rule
    monitoring.watch(rule)

  def try_out(rule: DecisionRule) -> None:
    cascade.shadow = rule

  lives = []
  if deciding.policy is not None:
    own = functools.partial(read, deciding.rule)
    lives.append(LivePolicy(deciding.policy, own, decide_by, service.notes))
  if deciding.shadow is not None:
    own = functools.partial(read, deciding.shadow_rule)
    lives.append(LivePolicy(deciding.shadow, own, try_out, service.notes, setting='SHADOW'))
  return lives
