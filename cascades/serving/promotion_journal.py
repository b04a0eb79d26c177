"""Decisions about the policies of a server, and the policies, in files that a kill leaves whole."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from etils import epath

from cascades.evaluation import policy as policies
from cascades.evaluation.policy import Policy
from cascades.evaluation.promotions import Look, Reign
from cascades.reporting import escaping
from cascades.runtime import files

log = logging.getLogger(__name__)

CHANGES = ('promoted', 'rolled back')
IN_EFFECT = 'in effect'


class Journal:
  """Decisions, and the policies that they are about.

  A change is written before POLICY is replaced, and followed by a line that says so: without it the
  replacement is made up for. A POLICY that somebody else has replaced is taken over.

  Attributes:
    rows: Number of audited rows at the last look.
    reign: The policy in force.
    policy: Its contents.
  """

  def __init__(self, folder: epath.Path, path: epath.Path):
    """Reads the journal of a policy, if there is one.

    Args:
      folder: Folder of the journal.
      path: POLICY.
    """
    self._folder, self._path = folder, path
    self._file = folder / 'decisions.jsonl'
    self._entries: list[dict[str, Any]] = []
    for line in self._file.read_text().splitlines() if self._file.exists() else []:
      try:
        self._entries.append(json.loads(line))
      except ValueError:  # a kill has cut it, so that the decision is made anew
        continue
    self.rows, self.reign = 0, Reign(np.inf)
    self.policy: Policy | None = None
    if self._entries:
      self._restore()

  def begin(self) -> None:
    """Take over the policy in force, or finish a change of it."""
    if self._entries and self._entries[-1]['decision'] in CHANGES:
      self._replace()
    self.check_policy()

  def check_policy(self) -> None:
    """Take over a POLICY that was replaced by somebody else."""
    present = policies.read(self._path)
    name = self._entries[-1]['policy'] if self._entries else ''
    if name and self._path.read_bytes() == (self._folder / name).read_bytes():
      return
    if len(present.thresholds) != 1:
      raise ValueError(
        f'POLICY={self._path} has thresholds of {len(present.thresholds)} tasks: a policy with one '
        'threshold can be promoted; calibrate without BY_TASK.'
      )
    self.policy, threshold = present, present.thresholds[0].value
    self.reign = Reign(threshold, since=self.rows, start=self.reign.start)
    why = 'POLICY was replaced by hand' if name else 'the first policy'
    self._append('taken over', why, self._store(self._path.read_bytes()), None, {})

  def write(
    self, result: Look, count: int, policy: Policy | None, numbers: Mapping[str, Any]
  ) -> None:
    """Write a decision, and replace POLICY if it is a change.

    Args:
      result: The decision.
      count: Number of rows that it rests on.
      policy: The policy that is promoted.
      numbers: What else the journal tells.
    """
    state = self._entries[-1]
    watched = result.reign.before is not None
    name, before = state['policy'], state['before'] if watched else None
    if result.decision == 'promoted':
      assert policy is not None
      content = msgspec.json.format(msgspec.json.encode(policy), indent=2) + b'\n'
      name, before = self._store(content), name if watched else None
    elif result.decision == 'rolled back':
      name, before = state['before'], None
    self.rows, self.reign = count, result.reign
    self._append(result.decision, result.why, name, before, numbers)
    if result.decision in CHANGES:
      self._replace()

  def _replace(self) -> None:
    """Put the policy of the last decision into effect."""
    last = self._entries[-1]
    files.write(self._path, (self._folder / last['policy']).read_bytes())
    self._restore()
    self._append(IN_EFFECT, '', last['policy'], last['before'], {})

  def _restore(self) -> None:
    last = self._entries[-1]
    self.rows = last['rows']
    stored = last['reign']
    self.policy = policies.read(self._folder / last['policy'])
    before = last['before'] and policies.read(self._folder / last['before']).thresholds[0].value
    self.reign = Reign(self.policy.thresholds[0].value, before, **stored)

  def _store(self, content: bytes) -> str:
    """Store a policy under the next number."""
    numbers = [int(entry['policy'].removesuffix('.json')) for entry in self._entries]
    name = f'{max(numbers, default=-1) + 1:04d}.json'
    files.write(self._folder / name, content)
    return name

  def _append(
    self, decision: str, why: str, name: str, before: str | None, numbers: Mapping[str, Any]
  ) -> None:
    reign = {key: getattr(self.reign, key) for key in ('since', 'start', 'looks')}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    entry = {'time': now, 'rows': self.rows, 'decision': decision, 'why': why, 'policy': name,
             'before': before, 'reign': reign, **numbers}  # fmt: skip
    files.append(self._file, json.dumps(entry))
    self._entries.append(entry)
    if decision != IN_EFFECT:
      report = log.warning if decision == 'rolled back' or 'breaks' in why else log.info
      report('row %d: %s (%s): %s', self.rows, decision, name, escaping.visible(why))
