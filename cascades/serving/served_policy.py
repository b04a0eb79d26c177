"""Policies that a server runs: the decision about each model's answers, and where requests begin.

Every form of policy is a chain: of two models, of more, or one whose levels are all final and whose
router chooses the model.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from cascades import learned_deferral
from cascades.evaluation import chain_policy, fitted, policy, pooling
from cascades.evaluation.chain_policy import ChainLevel, ChainPolicy
from cascades.evaluation.policy import Policy, Threshold
from cascades.evaluation.routers import TokenCounts
from cascades.inference import prompt_routing
from cascades.runtime import files
from cascades.serving.decisions import DecisionRule
from cascades.serving.exchanges import PAIR, Role, Routed
from cascades.types import Decider

IDENTITY = ('checkpoint_identity', 'parameters', 'vocabulary')  # by which policies know a model

PromptRouter: TypeAlias = Callable[[str, TokenCounts], Routed]


@dataclasses.dataclass(frozen=True)
class ServedPolicy:
  """Decisions about the answers of a chain of models, and the choice of the first one.

  Attributes:
    rules: Decision about the answers of each model in order; None where they are final.
    task: Task of requests that name none.
    roles: Models in order.
    named: True if the roles are names of models, and not only the order of any models.
    router: Chooses the model that is asked first by the prompt and its tokens; None begins with the
      first one.
    models: Models as the file describes them, by role.
    digest: Digest of the file, '' without one.
  """

  rules: tuple[DecisionRule | None, ...]
  task: str
  roles: tuple[Role, ...] = PAIR
  named: bool = False
  router: PromptRouter | None = None
  models: Mapping[Role, Mapping[str, object]] = dataclasses.field(default_factory=dict)
  digest: str = ''

  @property
  def tasks(self) -> tuple[str, ...]:
    """Tasks that have thresholds."""
    return next((tuple(rule.thresholds) for rule in self.rules if rule), (self.task,))

  @property
  def entries(self) -> Mapping[tuple[Role, str], Threshold]:
    """Entries by model and task, for the monitors of drift; none without a calibration."""
    return {
      (role, task): entry
      for role, rule in zip(self.roles, self.rules, strict=True)
      if rule
      for task, entry in rule.entries.items()
    }

  def rule_of(self, role: Role) -> DecisionRule | None:
    """Decision about the answers of a model; None where they are final."""
    return self.rules[self.roles.index(role)]

  def of(self, roles: Sequence[Role]) -> ServedPolicy:
    """The policy for the models of a server.

    A policy without names is for models in the order of the server. The first model alone abstains
    where a policy of two defers.

    Raises:
      ValueError: The policy is for other models.
    """
    if self.named:
      if set(self.roles) != set(roles):
        raise ValueError(
          f'The policy is for the models {", ".join(self.roles)}, and the server has '
          f'{", ".join(roles)}: name the same ones in MODELS.'
        )
      return self
    count = len(roles)
    if count > len(self.rules) or count not in (1, len(self.rules)):
      raise ValueError(
        f'The policy is for {len(self.rules)} models, and the server has {", ".join(roles)}.'
      )
    models = {role: self.models.get(old, {}) for role, old in zip(roles, self.roles, strict=False)}
    return dataclasses.replace(
      self, rules=self.rules[:count], roles=tuple(roles), named=True, models=models
    )

  def check_models(self, described: Mapping[Role, Mapping[str, Any]]) -> None:
    """Raise ValueError if the policy was calibrated with other models than those that are served.

    Args:
      described: Models of the server by role, as manifests describe them.
    """
    for role, own in described.items():
      entry = self.models.get(role, {})
      for key in IDENTITY:
        if key in entry and key in own and entry[key] != own[key]:
          raise ValueError(
            f'The policy was calibrated with a {role} model of {key} {entry[key]!r:.80}, and the '
            f'one that is served has {own[key]!r:.80}: its promises are about the former. '
            'Calibrate with the models that are served, or serve them anyway with '
            'ALLOW_OTHER_MODELS=True.'
          )

  def lines(self) -> list[str]:
    """Lines about the policy for a plan."""
    lines = ['begins with the model that a router chooses'] if self.router else []
    for number, (role, rule) in enumerate(zip(self.roles, self.rules, strict=True)):
      is_last = number == len(self.rules) - 1
      if rule is None:
        lines.append(f'{role}: answers what reaches it')
        continue
      moment = 'before any answer' if rule.decider.before_answer else 'after its answer'
      after = 'abstains' if is_last else f'goes on to {self.roles[number + 1]}'
      scores = ', '.join(
        f'{task}: {f"{value:.6g}" if math.isfinite(value) else "never"}'
        for task, value in rule.thresholds.items()
      )
      lines.append(f'{role}: {rule.decider.name}, {moment}, {after} from a score of {scores}')
    return lines


def from_file(
  path: str, *, task: str | None = None, alternatives: int = 0, setting: str = 'POLICY'
) -> ServedPolicy:
  """Policy of a file of any form.

  Args:
    path: The file.
    task: Task of requests that name none; None for all tasks, or the only one.
    alternatives: Number of alternatives of the tables of its calibration, if a decider reads any.
    setting: Name of the setting that names the file, for messages.

  Raises:
    OSError, ValueError: The file, or that of a decider or router, cannot be read or run.
  """
  location = files.absolute(path)
  stored = chain_policy.read_any(location)
  form = chain_policy.form(stored, location)
  tasks = _tasks(stored)
  if task is None:
    if pooling.POOLED not in tasks and len(tasks) > 1:
      raise ValueError(
        f'{setting}={path!r:.200} has thresholds of {", ".join(tasks)}: name the task of '
        'requests that name none with POLICY_TASK.'
      )
    task = pooling.POOLED if pooling.POOLED in tasks else tasks[0]
  return ServedPolicy(
    tuple(_rule(level, tasks, task, alternatives) for level in form.levels),
    task,
    form.names or PAIR,
    form.names is not None,
    None if form.routing is None else _router(str(form.routing)),
    {} if not isinstance(stored, Policy | ChainPolicy) else stored.models,
    policy.file_digest(str(location)),
  )


def _tasks(stored: chain_policy.AnyPolicy) -> tuple[str, ...]:
  """Tasks with thresholds, and, where all tasks have one, those of the calibration."""
  if isinstance(stored, ChainPolicy):
    return stored.tasks or (pooling.POOLED,)
  if not isinstance(stored, Policy):
    return (pooling.POOLED,)
  names = [entry.task for entry in stored.thresholds]
  return tuple(dict.fromkeys([*names, *(stored.data['tasks'] if pooling.POOLED in names else ())]))


def _rule(
  level: ChainLevel | None,
  tasks: Sequence[str],
  task: str,
  alternatives: int,
) -> DecisionRule | None:
  if level is None:
    return None
  by_task = {entry.task: entry for entry in level.entries}
  pooled = by_task.get(pooling.POOLED)
  entries = {name: entry for name in tasks if (entry := by_task.get(name, pooled))}
  thresholds = {name: level.threshold_of(name) for name in tasks}
  decider = policy.decider(level.decider.fitted or level.decider.name, digest=level.decider.digest)
  if level.decider.fitted is not None:
    decider = _of_any_prompt(fitted.read(files.absolute(level.decider.fitted)))
  return DecisionRule(decider, thresholds, task, alternatives, entries)


def _of_any_prompt(learned: learned_deferral.Fitted) -> Decider:
  """Decider that also scores prompts that it was fitted on, which users may ask again."""
  empty = {name: learned.arrays[name][:0] for name in ('fit_ids', 'fit_inputs')}
  return learned._replace(arrays={**learned.arrays, **empty}).decider()


def _router(path: str) -> PromptRouter:
  """Router of a routing policy, warmed up by a prompt."""
  choose = prompt_routing.open_policy(path)

  def router(prompt: str, counts: TokenCounts) -> Routed:
    began = time.perf_counter()
    (choice,) = choose([prompt], counts)
    return Routed(choice.model, choice.predicted_loss, choice.drift, time.perf_counter() - began)

  router('warm-up', {})
  return router


def from_threshold(
  decider: str, threshold: float | Sequence[float], *, alternatives: int = 0
) -> ServedPolicy:
  """Policy of thresholds that nothing is promised about, one for each model but the last.

  Raises:
    ValueError: There is no such decider, or a server cannot run it.
  """
  thresholds = [threshold] if isinstance(threshold, int | float) else list(threshold)
  rules = [
    DecisionRule(policy.decider(decider), {pooling.POOLED: value}, pooling.POOLED, alternatives)
    for value in thresholds
  ]
  roles = PAIR if len(rules) == 1 else tuple(str(number) for number in range(len(rules) + 1))
  return ServedPolicy((*rules, None), pooling.POOLED, roles)
