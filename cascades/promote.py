"""Follow the log of a server, and promote or roll back its policy as audited rows come in.

    python -m cascades.promote --gin_file=runs/promote.gin --gin.LOG_DIR=log
      --gin.POLICY=policy.json --gin.MARGIN=0.05

Reads the exchanges that `serve` with AUDIT_SHARE let both models answer. Every so many of them it
calibrates a candidate on some, compares it with the policy in force on the others, and replaces
POLICY if the comparison says so; a server reads the file again by itself. A policy that proves to
be worse than the one before on later rows is rolled back. Beside POLICY, in NAME.promotion/, are
all policies so far, the journal of all decisions, and the rows. A killed run is resumed by the same
command. With ONCE it ends after the rows that there are.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from etils import epath

from cascades import __version__
from cascades import metrics as metric_library
from cascades.evaluation import calibration, promotions
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import Demands, Judged
from cascades.evaluation.policy import MetricEntry, Policy, Threshold
from cascades.evaluation.promotions import Caution, Look, Reign
from cascades.predictions import alignment, columns, imported, rows
from cascades.predictions.importers import columns as importing
from cascades.promotion import Verdict
from cascades.reporting import escaping
from cascades.runtime import files, locking, progress, ranges
from cascades.serving.audited import AuditedRows
from cascades.types import Predictions

log = logging.getLogger(__name__)

CHANGES = ('promoted', 'rolled back')
IN_EFFECT = 'in effect'
METHOD = (
  'fixed-sequence testing of all thresholds on a part of the audited rows of a server, as in '
  '`calibrate`, with the deltas spent over looks; promoted by a comparison on the other part'
)


@dataclasses.dataclass(frozen=True)
class Followed:
  """The log and the policy.

  Attributes:
    log: Folder of the log of a server of two models.
    policy: Policy of this server, which is replaced.
    labels: File of right answers by id, JSON lines, CSV or TSV, which is read anew at each look;
      None takes the answers of the large model for right.
    label_columns: Names in that file, as `import` takes them.
    metric: Metric of the promises; None for that of the policy.
    surrogate: Judge a corpus metric by its mean over single examples.
    seconds: Pause between two readings of the log.
    once: End after the rows that there are.
  """

  log: str
  policy: str
  labels: str | None = None
  label_columns: str = 'id,inputs,targets'
  metric: str | None = None
  surrogate: bool = False
  seconds: float = 10.0
  once: bool = False

  def __post_init__(self) -> None:
    ranges.check({'POLL_SECONDS': self.seconds}, least=0)


def promote(
  followed: Followed,
  demands: Demands,
  caution: Caution = Caution(),
  *,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Follows a log until it is ended, or to its end with `once`.

  Args:
    followed: The log and the policy.
    demands: Promises of every policy that is promoted.
    caution: Care with which policies are replaced.
    provenance: Function that says how a policy was made.

  Raises:
    FileNotFoundError: There is no log, or no policy to begin with.
    ValueError: A file is damaged, or the policy has a threshold for each of several tasks.
    BlockingIOError: Another process follows for the same policy.
  """
  path = files.absolute(followed.policy)
  folder = path.parent / f'{path.stem}.promotion'
  with locking.held(folder):
    audited = AuditedRows(followed.log, folder)
    journal = Journal(folder, path)
    journal.begin()
    last = time.monotonic()
    while True:
      added = audited.read()
      while len(audited) >= journal.rows + caution.every:
        _look(followed, demands, caution, audited, journal, provenance)
      if followed.once:
        break
      if added and time.monotonic() - last > progress.SECONDS_BETWEEN_LINES:
        last = time.monotonic()
        log.info('%d audited rows; looks again at %d', len(audited), journal.rows + caution.every)
      time.sleep(followed.seconds)
    log.info('%d audited rows; the next look is at %d', len(audited), journal.rows + caution.every)


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
    name, before = state['policy'], state['before'] if result.reign.before is not None else None
    if result.decision == 'promoted':
      assert policy is not None
      content = msgspec.json.format(msgspec.json.encode(policy), indent=2) + b'\n'
      name, before = self._store(content), name
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


def _look(
  followed: Followed,
  demands: Demands,
  caution: Caution,
  audited: AuditedRows,
  journal: Journal,
  provenance: Callable[[], Mapping[str, str]],
) -> None:
  """Look at the rows of the next step, and write what comes of it."""
  journal.check_policy()
  assert journal.policy is not None
  count, reign = journal.rows + caution.every, journal.reign
  start = max(reign.start, count - caution.window)
  if reign.before is not None:
    start = min(start, reign.since)
  pairs = dict(enumerate(audited.rows(start, count), start))
  labels = _labels(followed)
  labeled = {i: pair for i, pair in pairs.items() if labels is None or pair['id'] in labels}
  if len(labeled) < 2:
    unchanged = Look('unchanged', f'{len(labeled)} rows have labels', reign)
    journal.write(unchanged, count, None, {'labeled': len(labeled)})
    return
  tables = _tables(journal.policy, list(labeled.values()), labels)
  judged = _judged(journal.policy, tables, followed, demands)
  finite = np.isfinite(judged.score)
  judged = promotions.select(judged, finite)
  ids = np.array(tables[0].ids, dtype=object)[finite]
  held_back = np.array([promotions.is_held_back(id, caution.held_back) for id in ids], bool)
  numbers = np.array([*labeled])[finite]
  result = promotions.look(
    reign, judged, numbers, held_back, count=count, demands=demands, caution=caution
  )
  policy = None
  if result.decision == 'promoted':
    assert result.entry is not None
    policy = _policy(journal.policy, result.entry, tables, followed, demands, provenance)
  described = {
    'labeled': len(labeled),
    'candidate': result.entry and result.entry.threshold,
    'compared': _described(result.verdict),
    'watched': _described(result.watch),
  }
  journal.write(result, count, policy, described)


def _described(verdict: Verdict | None) -> dict[str, Any] | None:
  return verdict and verdict._asdict()


def _labels(followed: Followed) -> dict[str | None, Sequence[str] | None] | None:
  """Right answers by id; None if the large model gives them."""
  if followed.labels is None:
    return None
  names = importing.parse(followed.label_columns)
  answers = (importing.answer(row, names) for _, row in imported.lines(followed.labels))
  return {answer.id: answer.targets for answer in answers}


def _tables(
  policy: Policy,
  pairs: Sequence[Mapping[str, Any]],
  labels: Mapping[str | None, Sequence[str] | None] | None,
) -> tuple[Predictions, Predictions]:
  """Tables of both models."""
  if labels is not None and any(pair['small']['aux']['text'] == 'digest' for pair in pairs):
    raise ValueError(
      'The log holds digests of the texts, so that LABELS cannot judge the answers: leave LABELS '
      'out, to take the answers of the large model for right, or serve with LOG_TEXT=True.'
    )
  task = next(iter(policy.data['tasks']), 'log')
  tables = []
  for role in ('small', 'large'):
    parsed = []
    for pair in pairs:
      right = [pair['large']['prediction']] if labels is None else labels[pair['id']]
      parsed.append(rows.parse(pair[role], 'predict')._replace(targets=list(right or ())))
    described = {'task': task, 'split': 'log', 'mode': 'predict', 'metrics': ()}
    tables.append(columns.of_rows(parsed, policy.models[role] | described))
  return tables[0], tables[1]


def _judged(
  policy: Policy,
  tables: tuple[Predictions, Predictions],
  followed: Followed,
  demands: Demands,
) -> Judged:
  """Both tables with scores, quality and costs."""
  metric = metric_library.by_name(followed.metric or policy.metric.name)
  small, large = (alignment.judge(table, metric) for table in tables)
  return calibration.judged(
    [small], [large], metric, policies.stored_decider(policy), surrogate=followed.surrogate,
    by_task=False, cost_axis=demands.cost_axis,
  )[0]  # fmt: skip


def _policy(
  policy: Policy,
  entry: Threshold,
  tables: tuple[Predictions, Predictions],
  followed: Followed,
  demands: Demands,
  provenance: Callable[[], Mapping[str, str]],
) -> Policy:
  """The policy in force with another threshold; models, decider and tasks stay."""
  metric = metric_library.by_name(followed.metric or policy.metric.name)
  small, large = map(policies.fingerprint, tables)
  described = {'rows': len(tables[0].ids), 'small': small, 'large': large}
  return msgspec.structs.replace(
    policy,
    metric=MetricEntry(metric.name, followed.surrogate, metric.higher_is_better),
    cost_axis=demands.cost_axis,
    thresholds=[msgspec.structs.replace(entry, task=policy.thresholds[0].task)],
    data={'split': 'log', 'tasks': dict.fromkeys(policy.data['tasks'], described)},
    method=METHOD,
    provenance={'lm-cascades': __version__, **provenance()},
  )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.promote')
