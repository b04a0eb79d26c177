"""The file `policy.json` of a chain of any number of models, and of where a prompt begins in it.

    {"version": 2, "models": {"1b": {...}, "8b": {...}, "70b": {...}},
     "levels": [{"decider": {...}, "thresholds": {"all tasks": 0.3}}, {...}, null],
     "router": {"file": "router.policy.json", "sha256": ...}, "expected": [{...}], ...}

The models are asked in their order. The first is the one that the router chooses for the prompt,
without a router the first of all. An answer is final if its level is null or its score is below the
threshold; else the next model is asked, and after the last one nobody answers. A threshold of null
never defers. Version 1 (`policy`) is a chain of two with promises; a routing policy
(`routing_policy`) is a chain whose levels are all null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from etils import epath

from cascades.evaluation import policy as policies
from cascades.evaluation import pooling, routing_policy
from cascades.evaluation.policy import (
  CostAxis,
  DeciderEntry,
  MetricEntry,
  Policy,
  Promise,
  Threshold,
)  # fmt: skip
from cascades.evaluation.routing_policy import RoutingPolicy
from cascades.predictions import rows
from cascades.predictions.rows import Finite, Positive, Share
from cascades.runtime import files

VERSION = 2


class ChainLevel(msgspec.Struct, frozen=True):
  """Decision about the answers of one model: a decider, and its threshold by task.

  `entries` are the rows of the calibration that reached the level, for monitors: their scores, and
  quality and cost from this level on.
  """

  decider: DeciderEntry
  thresholds: Annotated[dict[str, Finite | None], msgspec.Meta(min_length=1)]
  entries: list[Threshold] = []

  def threshold_of(self, task: str) -> float:
    """Threshold of a task, or the one of all; inf never defers.

    Raises:
      ValueError: The policy was calibrated on other tasks.
    """
    name = task if task in self.thresholds else pooling.POOLED
    if name not in self.thresholds:
      raise ValueError(
        f'The policy has thresholds of {", ".join(self.thresholds)}, and none of task {task!r}: '
        'calibrate on it, or choose tasks with TASKS.'
      )
    value = self.thresholds[name]
    return np.inf if value is None else value


class RouterFile(msgspec.Struct, frozen=True):
  """Routing policy that lies beside a policy, and its digest."""

  file: str
  sha256: str


class Expected(msgspec.Struct, frozen=True):
  """Promises of one task, or of all, and means on the rows that thresholds were tested on."""

  task: str
  rows: Positive
  promises: list[Promise]
  quality: Finite
  cost: Finite
  shares: dict[str, Share]
  unanswered: Share


class ChainPolicy(msgspec.Struct, frozen=True):
  """Contents of the file."""

  version: int
  models: Annotated[dict[str, dict[str, Any]], msgspec.Meta(min_length=1)]
  levels: list[ChainLevel | None]
  router: RouterFile | None
  metric: MetricEntry
  cost_axis: CostAxis
  expected: list[Expected]
  data: dict[str, Any]
  method: str
  provenance: dict[str, str]
  unanswered_quality: Finite | None = None  # of a row that nobody answers

  @property
  def tasks(self) -> tuple[str, ...]:
    """Tasks that have a threshold at each level that decides."""
    levels = [level.thresholds for level in self.levels if level]
    names = dict.fromkeys(
      [pooling.POOLED, *(t for own in levels for t in own), *self.data['tasks']]
    )
    return tuple(
      name for name in names if all(name in own or pooling.POOLED in own for own in levels)
    )


def read(path: epath.PathLike) -> ChainPolicy:
  """Reads the policy of a chain.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged or of another version, naming the field and the value.
  """
  path = epath.Path(path)
  try:
    content = json.loads(path.read_bytes(), parse_constant=rows.refuse_constant)
    if not isinstance(content, dict) or content.get('version') != VERSION:
      raise ValueError(f'version: expected {VERSION} of a chain')
    policy: ChainPolicy = rows.convert(content, ChainPolicy)
    _check(policy)
  except (ValueError, OverflowError, RecursionError) as error:
    raise ValueError(
      f'{path} is not the policy of a chain that can be read: {error}. Calibrate again to write it '
      'anew.'
    ) from error
  return policy


def _check(policy: ChainPolicy) -> None:
  if len(policy.levels) != len(policy.models):
    raise ValueError(f'levels: {len(policy.levels)} of {len(policy.models)} models')
  for name in policy.models:
    files.component(name, 'a model')
  for number, level in enumerate(policy.levels[:-1]):
    if level is None and policy.router is None:
      raise ValueError(
        f'levels: {[*policy.models][number]!r} answers all that reaches it, so that the models '
        'after it are never asked'
      )
  if not isinstance(policy.data.get('tasks'), dict):
    raise ValueError('data: expected "tasks", found none')
  for level in filter(None, policy.levels):
    policies.check_entries(level.entries)
    for entry in level.entries:
      if entry.task not in level.thresholds or entry.value != level.threshold_of(entry.task):
        raise ValueError(f'levels: the entry of {entry.task!r} has another threshold')
    if absent := [t for t in policy.data['tasks'] if t not in policy.tasks]:
      raise ValueError(f'thresholds: {[*level.thresholds]} leaves out {", ".join(absent)}')


AnyPolicy = Policy | ChainPolicy | RoutingPolicy


def read_any(path: epath.PathLike) -> AnyPolicy:
  """Reads a policy of any form.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged or of another version, naming the field and the value.
  """
  path = epath.Path(path)
  try:
    content = json.loads(path.read_bytes()) if path.exists() else {}
  except (ValueError, RecursionError):
    content = {}  # which `policy.read` refuses, with the reason
  if isinstance(content, dict):
    if content.get('version') == VERSION:
      return read(path)
    if isinstance(content.get('router'), str):
      return routing_policy.read(path)[0]
  return policies.read(path)


class Form(NamedTuple):
  """Any policy as a chain.

  Attributes:
    names: Models in order; None for a policy of two, which may have any names.
    levels: Decision about the answers of each; None where they are final.
    routing: File of the routing policy; None begins with the first model.
  """

  names: tuple[str, ...] | None
  levels: Sequence[ChainLevel | None]
  routing: epath.Path | None


def form(policy: AnyPolicy, path: epath.PathLike) -> Form:
  """Form of a policy.

  Args:
    policy: The policy.
    path: Its file, beside which a router lies.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: The router has changed, or names models that the chain has not.
  """
  path = files.absolute(path)
  if isinstance(policy, Policy):
    thresholds = {entry.task: entry.threshold for entry in policy.thresholds}
    return Form(None, [ChainLevel(policy.decider, thresholds, policy.thresholds), None], None)
  if isinstance(policy, RoutingPolicy):
    names = routing_policy.read(path)[1].pool.names
    models = tuple(filter(None, names))
    return Form(models, [None] * len(models), path)
  if policy.router is None:
    return Form((*policy.models,), policy.levels, None)
  routing = path.parent / files.component(policy.router.file, 'the router of a policy')
  if not routing.exists():
    raise FileNotFoundError(f'{routing} does not exist; {path} routes by it: lay it beside.')
  if policies.file_digest(str(routing)) != policy.router.sha256:
    raise ValueError(f'{routing} has changed since {path} was written: calibrate again.')
  names = routing_policy.read(routing)[1].pool.names
  if unknown := [name for name in names if name and name not in policy.models]:
    raise ValueError(
      f'{routing} chooses among {", ".join(filter(None, names))}, and the chain has no '
      f'{", ".join(unknown)}: fit the router on models of the chain.'
    )
  return Form((*policy.models,), policy.levels, routing)


def write(path: epath.PathLike, policy: ChainPolicy, *, overwrite: bool) -> None:
  """Writes a policy atomically. Raises FileExistsError if another one would be replaced."""
  policies.write(path, policy, overwrite=overwrite, read=read)
