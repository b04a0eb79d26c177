"""The file `policy.json`: models, decider, thresholds, and what they promise.

    {"version": 1, "models": {"small": {...}, "large": {...}}, "decider": {"name": ..., ...},
     "metric": ..., "thresholds": [{"task": "all tasks", "threshold": 0.3, "promises": [...], ...}],
     "data": {...}, "method": ..., "provenance": {...}}

A threshold of null never defers; rows defer whose score is at least the threshold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeAlias

import msgspec
import numpy as np
from etils import epath

from cascades import deferral, drift
from cascades.costs import Axis
from cascades.evaluation import fitted, pooling
from cascades.predictions import rows
from cascades.predictions.rows import HIGHEST, Finite, Positive, Share
from cascades.runtime import files
from cascades.types import Decider, Predictions

VERSION = 1
MONITORED = ('scores', 'deferrals above', 'deferrals below', 'quality')
# Keys of a manifest by which two tables are of the same model.
IDENTITY = ('checkpoint_identity', 'parameters', 'vocabulary', 'flops_per_token', 'precision')

CostAxis: TypeAlias = Axis
Probability = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Level = Annotated[float, msgspec.Meta(ge=-HIGHEST, le=HIGHEST)]


class Interval(msgspec.Struct, frozen=True):
  """Value on the rows, and an interval that is exact for every number of rows."""

  value: Finite
  low: Finite
  high: Finite


class Promise(msgspec.Struct, frozen=True):
  """A demand that was certified.

  `loss` and `level` are those of the test, a mean loss of at most `level` per row; `demanded` and
  `observed` are in the unit of the demand.
  """

  name: str
  demanded: Finite
  delta: Probability
  observed: Finite
  loss: Finite
  level: Level
  test: str


class Threshold(msgspec.Struct, frozen=True):
  """Threshold of one task, or of all, with what is expected there and the scores that were seen."""

  task: str
  threshold: Finite | None
  rows: Positive
  promises: list[Promise]
  deferral_rate: Interval
  quality: Interval
  cost: Finite
  edges: list[Finite]
  ties: list[Share]
  gaps: list[Annotated[int, msgspec.Meta(ge=0)]]
  cost_interval: Interval | None = None  # of `cost`, where costs have a bound
  rules: Positive = 1  # that the rows were chosen by, with the threshold

  @property
  def value(self) -> float:
    """The threshold as a number; inf never defers."""
    return np.inf if self.threshold is None else self.threshold


class DeciderEntry(msgspec.Struct, frozen=True):
  """Decider by name, with what it reads and costs; `fitted` is the file of a learned one."""

  name: str
  reads: list[str]
  flops: Finite
  fitted: str | None = None
  digest: str | None = None


class MetricEntry(msgspec.Struct, frozen=True):
  """Metric of the promises; a surrogate is its mean over examples, in units of its scale."""

  name: str
  surrogate: bool
  higher_is_better: bool


class Policy(msgspec.Struct, frozen=True):
  """Contents of the file."""

  version: int
  models: dict[str, dict[str, Any]]
  decider: DeciderEntry
  metric: MetricEntry
  cost_axis: CostAxis
  thresholds: Annotated[list[Threshold], msgspec.Meta(min_length=1)]
  data: dict[str, Any]
  method: str
  provenance: dict[str, str]

  def threshold_of(self, task: str) -> Threshold:
    """Threshold of a task: its own, or the one of all tasks.

    Raises:
      ValueError: The policy was calibrated on other tasks.
    """
    by_task = {entry.task: entry for entry in self.thresholds}
    entry = by_task.get(task) or by_task.get(pooling.POOLED)
    if entry is None or task not in self.data['tasks']:
      raise ValueError(
        f'The policy was calibrated on {", ".join(self.data["tasks"])}, and promises nothing about '
        f'task {task!r}: calibrate on it, or choose tasks with TASKS.'
      )
    return entry


def read(path: epath.PathLike) -> Policy:
  """Reads a policy.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: The file is damaged or of another version, naming the field and the value.
  """
  path = epath.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f'{path} does not exist; POLICY is a file that `python -m cascades.calibrate` wrote.'
    )
  try:
    content = json.loads(path.read_bytes(), parse_constant=rows.refuse_constant)
    version = content.get('version') if isinstance(content, dict) else None
    if version == 2:
      raise ValueError('version: 2 is the policy of a chain, and this one must be of two models')
    if version != VERSION:
      raise ValueError(f'version: expected {VERSION} of a policy, found {version!r:.80}')
    policy: Policy = rows.convert(content, Policy)
    _check(policy)
  except (ValueError, OverflowError, RecursionError) as error:
    raise ValueError(
      f'{path} is not a policy that can be read: {error}. Calibrate again to write it anew.'
    ) from error
  return policy


def _check(policy: Policy) -> None:
  if missing := {'small', 'large'} - set(policy.models):
    raise ValueError(f'models: no entry for {", ".join(sorted(missing))}')
  if not isinstance(policy.data.get('tasks'), dict):
    raise ValueError('data: expected "tasks", found none')
  check_entries(policy.thresholds)


def check_entries(entries: Sequence[Threshold]) -> None:
  """Raise ValueError if the scores of an entry are not those of its rows."""
  for entry in entries:
    if not len(entry.edges) == len(entry.ties) == len(entry.gaps) - 1:
      raise ValueError(f'thresholds: {entry.task!r} needs as many edges as ties, and one gap more')
    if not entry.rows + 1 == sum(entry.gaps) or entry.edges != sorted(entry.edges):
      raise ValueError(f'thresholds: the edges or gaps of {entry.task!r} are not of its rows')


def write(
  path: epath.PathLike,
  policy: msgspec.Struct,
  *,
  overwrite: bool,
  read: Callable[[epath.PathLike], msgspec.Struct] = read,
) -> None:
  """Writes a policy atomically.

  Args:
    path: File to write.
    policy: The policy.
    overwrite: True to replace anything.
    read: Reads a policy of this form.

  Raises:
    FileExistsError: The file holds another policy, or something else, and `overwrite` is False.
  """
  path = epath.Path(path)
  content = msgspec.json.format(msgspec.json.encode(policy), indent=2) + b'\n'
  check_output(path, policy, overwrite=overwrite, read=read)
  files.write(path, content)


def check_output(
  path: epath.PathLike,
  policy: msgspec.Struct | None,
  *,
  overwrite: bool,
  read: Callable[[epath.PathLike], msgspec.Struct] = read,
) -> None:
  """Refuse to replace another policy, or a file that is none.

  Args:
    path: File to write.
    policy: Policy to write; None if it is not known yet, so that only other files are refused.
    overwrite: True to replace anything.
    read: Reads a policy of its form.

  Raises:
    FileExistsError: The file holds something else.
  """
  path = epath.Path(path)
  if overwrite or not path.exists():
    return
  try:
    present = read(path)
  except ValueError as error:
    raise FileExistsError(
      f'{path} exists and is no policy ({error}). Name another POLICY, or replace it with '
      'OVERWRITE=True.'
    ) from error
  if policy is None:
    return
  stored, new = (msgspec.to_builtins(content) for content in (present, policy))
  if different := [key for key in new if key != 'provenance' and stored[key] != new[key]]:
    raise FileExistsError(
      f'{path} holds another policy: {", ".join(different)} differ. Name another POLICY, or '
      'replace it with OVERWRITE=True.'
    )


def describe_model(name: str, table: Predictions) -> dict[str, Any]:
  """Entry of a model: its name, and what identifies it in the manifest of a table."""
  keys = ('checkpoint', 'step', *IDENTITY)
  return {'name': name} | {key: table.manifest[key] for key in keys if key in table.manifest}


def check_model(role: str, stored: Mapping[str, Any], table: Predictions) -> None:
  """Raise ValueError if a table was written by another model than the policy is for."""
  for key in IDENTITY:
    value = table.manifest.get(key)
    if key in stored and value is not None and stored[key] != value:
      raise ValueError(
        f'The policy is for a {role} model with {key} {stored[key]!r:.60}, and the table of task '
        f'{table.task!r} was written by a model with {value!r:.60}: a promise holds for the models '
        'that it was calibrated with. Calibrate again.'
      )


def fingerprint(table: Predictions) -> str:
  """Digest of ids, prompts, answers, log-probabilities and judgements of a table."""
  digest = hashlib.sha256()
  for texts in (table.ids, table.inputs, table.predictions):
    digest.update(json.dumps(list(texts)).encode())
  digest.update(np.ascontiguousarray(table.token_logprobs, float).tobytes())
  for name in sorted(table.statistics):
    digest.update(name.encode() + np.ascontiguousarray(table.statistics[name], float).tobytes())
  return digest.hexdigest()


def decider(name: str, *, digest: str | None = None) -> Decider:
  """Decider of a name, or a learned one of a file.

  Args:
    name: Name of a decider, or path of the NAME.json of a learned one.
    digest: Digest that the file must have, as `file_digest` gives it; None to accept any.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: There is no such decider, or the file is damaged or has another digest.
  """
  if name in deferral.DECIDERS:
    return deferral.DECIDERS[name]
  if not name.endswith('.json'):
    raise ValueError(
      f'There is no decider {name!r:.80}; DECIDER can be {", ".join(deferral.DECIDERS)}, or the '
      'NAME.json of a learned one.'
    )
  learned = fitted.read(files.absolute(name)).decider()
  if digest is not None and file_digest(name) != digest:
    raise ValueError(f'{name} is not the decider of the policy, but another: calibrate again.')
  return learned


def file_digest(name: str) -> str:
  """Digest of the file of a learned decider, which holds that of its arrays."""
  return hashlib.sha256(files.absolute(name).read_bytes()).hexdigest()


class WithDecider(Protocol):
  """A policy of two models, or the level of a chain."""

  @property
  def decider(self) -> DeciderEntry: ...


def stored_decider(policy: WithDecider) -> Decider:
  """Decider of a policy, or of a level."""
  entry = policy.decider
  return decider(entry.fitted or entry.name, digest=entry.digest)


def describe_decider(name: str) -> DeciderEntry:
  """Entry of a decider, for a name as `decider` takes it."""
  chosen, learned = decider(name), name not in deferral.DECIDERS
  return DeciderEntry(
    chosen.name,
    list(chosen.reads),
    chosen.flops,
    str(files.absolute(name)) if learned else None,
    file_digest(name) if learned else None,
  )


def monitor(entry: Threshold, *, alpha: float) -> drift.Monitor:
  """Monitors of a stream of rows under a threshold, with at most `alpha` false alarms in all.

  They watch MONITORED. The deferral rate may be anywhere in a band around the observed one that
  holds for all thresholds at once (Dvoretzky, Kiefer and Wolfowitz, with Massart's constant), or
  up to the promised one. Quality may be as promised, or above. Where one of several rules chose the
  rows, as those that reach a later level of a chain, no monitor of any of the rules may err.

  Args:
    entry: Threshold of a policy.
    alpha: Largest probability of any false alarm, ever.
  """
  each = alpha / len(MONITORED) / entry.rules
  band = float(np.sqrt(np.log(4 / each) / (2 * entry.rows)))  # misses with each/2
  levels = {'deferrals above': entry.deferral_rate.value + band}
  levels['deferrals below'] = 1 - entry.deferral_rate.value + band
  for promise in entry.promises:
    if promise.name == 'deferral rate':
      levels['deferrals above'] = promise.level
    if promise.name == 'quality':
      levels['quality'] = promise.level
  bounded = [min(max(levels.get(name, 1.0), 1e-6), 1 - 1e-6) for name in MONITORED[1:]]
  return drift.Monitor(
    np.array(entry.edges),
    np.array(entry.ties),
    np.array(entry.gaps),
    np.array(bounded),
    np.array([each, each / 2, each / 2, each]),
  )


def scores(policy: Policy, tables: Sequence[Predictions]) -> list[np.ndarray]:
  """Deferral scores of the rows of tables of the small model."""
  return [stored_decider(policy).score(table) for table in tables]
