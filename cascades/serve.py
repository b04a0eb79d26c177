"""Serve a cascade of two or more models behind OpenAI's API.

    python -m cascades.serve --gin_file=runs/serve.gin --gin.POLICY=policy.json
      --gin.SMALL=runs/small --gin.LARGE=http://host:8000/v1#model

Each request is answered by the small model, and, where the policy defers, by the large one; or by
the models of a longer chain, MODELS, in their order. A model is a run directory or the URL of an
OpenAI-compatible server. A policy file that changes takes effect. SIGTERM finishes what is running
and exits with code 0. With --dry_run the program prints its plan and ends. Needs the extra `serve`;
see docs/serving.md.
"""

from __future__ import annotations

import asyncio
import logging

from cascades.reporting import escaping
from cascades.serving.calls import Conduct
from cascades.serving.members import LocalOptions
from cascades.serving.options import Deciding, Metering, ServedModels
from cascades.serving.service import HttpLimits, Listening

log = logging.getLogger(__name__)


def serve(
  models: ServedModels,
  deciding: Deciding,
  *,
  local: LocalOptions = LocalOptions(),
  conduct: Conduct = Conduct(),
  limits: HttpLimits = HttpLimits(),
  address: Listening = Listening(),
  metering: Metering = Metering(),
  dry_run: bool = False,
) -> None:
  """Serve a cascade until SIGTERM or Ctrl-C.

  Args:
    models: The models, in order.
    deciding: The policy between them.
    local: Memory and types of models in this process.
    conduct: Behavior where the policy says nothing, such as while a model is down.
    limits: Limits of requests.
    address: Address and connections.
    metering: Clients, logs and budgets.
    dry_run: Print the plan and end.

  Raises:
    ValueError: A setting is wrong, or the policy is for other models.
    OSError: A file or the address cannot be used.
    ImportError: The extra `serve` is not installed.
  """
  members = models.members()
  roles = [member.role for member in members]
  policy = deciding.read().of(roles)
  shadow = deciding.read_shadow().of(roles) if deciding.shadow else None
  for member in members:
    member.check_measured(policy)
  lines = [
    *(f'policy: {line}' for line in policy.lines()),
    *(f'shadow: {line}' for line in (shadow.lines() if shadow else [])),
    f'if a model cannot answer: {conduct.degrade}',
    f'requests that all models answer, for the log: {conduct.audit_share:.3g} of all',
    f'answers of at most {limits.max_tokens} tokens, {limits.concurrency} requests at once',
    f'clients: {", ".join(key.name for key in metering.clients()) or "any, without a key"}',
    f'log: {metering.log_dir or "none"}',
    f'address: {address.host}, port {address.port}',
  ]
  if dry_run:
    lines = [*(line for member in members for line in member.plan(local)), *lines]
    print(escaping.lines('\n'.join(lines)))
    return
  try:
    from cascades.serving import operation
  except ModuleNotFoundError as error:
    raise ImportError(
      f'The server needs the extra `serve` ({error}): pip install "lm-cascades[serve]", or, in a '
      "checkout, pip install '.[serve]'."
    ) from error
  for line in lines:
    log.info('%s', line)
  with operation.bind(address) as listener:
    asyncio.run(
      operation.operate(
        members, local, deciding, (policy, shadow),
        conduct=conduct, limits=limits, metering=metering, address=address, listener=listener,
      )
    )  # fmt: skip


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.serve')
