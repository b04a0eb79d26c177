"""Operation of a server, from the opening of its models to their end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from cascades.serving import app, listening
from cascades.serving.budgets import Ledger
from cascades.serving.calls import Conduct
from cascades.serving.cascade import ServedCascade
from cascades.serving.exchanges import Role
from cascades.serving.live_policy import LivePolicy
from cascades.serving.members import LocalOptions, MemberOptions, OpenMember
from cascades.serving.metering import Log
from cascades.serving.monitoring import Monitoring
from cascades.serving.options import Deciding, Metering
from cascades.serving.served_policy import ServedPolicy
from cascades.serving.service import HttpLimits, Listening, Service

log = logging.getLogger(__name__)

bind = listening.bind
READINESS_SECONDS = 0.5  # between two looks at what answers wait for


async def operate(
  members: Sequence[MemberOptions],
  local: LocalOptions,
  deciding: Deciding,
  policies: tuple[ServedPolicy, ServedPolicy | None],
  *,
  conduct: Conduct,
  limits: HttpLimits,
  metering: Metering,
  address: Listening,
  listener: socket.socket,
) -> None:
  """Serve until a signal, and finish what is running.

  Args:
    members: The models in order.
    local: Memory and types of models in this process.
    deciding: Files of policies.
    policies: The policy and the shadow, as they were read.
    conduct: Behavior where the policy says nothing.
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
    check = functools.partial(_check, members, opened, deciding)
    policy, shadow = policies
    check(policy)
    roles = [*opened]
    rows = Log(metering.log_dir, metering.log, roles=roles) if metering.log_dir else None
    if rows is not None:
      stack.callback(rows.close)
    monitoring = Monitoring(policy, {role: each.breaker for role, each in opened.items()}, rows)
    cascade = ServedCascade(
      {role: each.member for role, each in opened.items()},
      policy,
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
      readiness=[*(each.reasons for each in opened.values()), *([rows.reasons] if rows else [])],
      barrier=lambda: rows.refusal if rows else '',
    )
    if rows is not None:
      rows.notes = service.notes
    stack.callback(asyncio.create_task(report_readiness(service)).cancel)
    for live in _policies(deciding, cascade, monitoring, service, check):
      task = asyncio.create_task(live.watch(deciding.reload_seconds))
      stack.callback(task.cancel)
    web = app.build(service, routes=monitoring.routes(service), names=address.host_names)
    server = listening.server(web, address, listener, on_exit=service.drain)
    await server.serve([listener])


async def report_readiness(service: Service) -> None:
  """Log what the first answers wait for, such as programs that compile, until they need not."""
  start, told = time.monotonic(), ''
  while (reasons := '; '.join(service.reasons())) and not service.is_draining:
    if reasons != told:
      log.info('Not ready: %s', reasons)
    told = reasons
    await asyncio.sleep(READINESS_SECONDS)
  if not reasons:
    log.info('Ready after %.0f s', time.monotonic() - start)


def _check(
  members: Sequence[MemberOptions],
  opened: Mapping[Role, OpenMember],
  deciding: Deciding,
  policy: ServedPolicy,
) -> ServedPolicy:
  """The policy for these models. Raises ValueError if it is for others."""
  policy = policy.of([*opened])
  for member in members:
    member.check_measured(policy)
  if not deciding.allow_other_models:
    policy.check_models({role: each.described for role, each in opened.items()})
  return policy


def _policies(
  deciding: Deciding,
  cascade: ServedCascade,
  monitoring: Monitoring,
  service: Service,
  check: Callable[[ServedPolicy], ServedPolicy],
) -> list[LivePolicy]:
  """Files of policies to watch."""

  def read(policy: Callable[[], ServedPolicy]) -> ServedPolicy:
    return check(policy())

  def decide_by(policy: ServedPolicy) -> None:
    cascade.policy = policy
    monitoring.watch(policy)

  def try_out(policy: ServedPolicy) -> None:
    cascade.shadow = policy

  lives = []
  if deciding.policy is not None:
    own = functools.partial(read, deciding.read)
    lives.append(LivePolicy(deciding.policy, own, decide_by, service.notes))
  if deciding.shadow is not None:
    own = functools.partial(read, deciding.read_shadow)
    lives.append(LivePolicy(deciding.shadow, own, try_out, service.notes, setting='SHADOW'))
  return lives
