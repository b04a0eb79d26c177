"""Serve a cascade of a small and a large model behind OpenAI's API.

    python -m cascades.serve --gin_file=runs/serve.gin --gin.POLICY=policy.json
      --gin.SMALL=runs/small --gin.LARGE=http://host:8000/v1#model

Each request is answered by the small model, and, where the policy defers, by the large one. Either
is a run directory or the URL of an OpenAI-compatible server. A policy file that changes takes
effect. SIGTERM finishes what is running and exits with code 0. With --dry_run the program prints
its plan and ends. Needs the extra `serve`; see docs/serving.md.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence

from cascades.reporting import escaping
from cascades.serving.cascade import Conduct
from cascades.serving.decisions import DecisionRule
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
    models: The small and the large model.
    deciding: The rule between them.
    local: Memory and types of models in this process.
    conduct: Behavior where the rule says nothing, such as while the large model is down.
    limits: Limits of requests.
    address: Address and connections.
    metering: Clients, logs and budgets.
    dry_run: Print the plan and end.

  Raises:
    ValueError: A setting is wrong, or the policy is for other models.
    OSError: A file or the address cannot be used.
    ImportError: The extra `serve` is not installed.
  """
  rule = deciding.rule()
  shadow = deciding.shadow_rule() if deciding.shadow else None
  members = models.members()
  members[0].check_measured(rule)
  lines = [
    *_decision_lines(rule, 'decider'),
    *(_decision_lines(shadow, 'shadow') if shadow else []),
    f'if the large model cannot answer: {conduct.degrade}',
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
        members, local, deciding, (rule, shadow),
        conduct=conduct, limits=limits, metering=metering, address=address, listener=listener,
      )
    )  # fmt: skip


def _decision_lines(rule: DecisionRule, title: str) -> Sequence[str]:
  """Lines about a rule."""
  thresholds = [
    f'{task}: {f"{value:.6g}" if math.isfinite(value) else "never"}'
    for task, value in rule.thresholds.items()
  ]
  moment = 'before any answer' if rule.decider.before_answer else 'after the small answer'
  return [
    f'{title}: {rule.decider.name}, {moment}',
    f'  defers from a score of {", ".join(thresholds)}',
  ]


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.serve')
