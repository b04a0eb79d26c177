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
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from cascades import __version__
from cascades import metrics as metric_library
from cascades.evaluation import calibration, promotions
from cascades.evaluation import policy as policies
from cascades.evaluation.calibration import Demands, Judged
from cascades.evaluation.policy import MetricEntry, Policy, Threshold
from cascades.evaluation.promotions import Caution, Look
from cascades.predictions import alignment, columns, imported, rows
from cascades.predictions.importers import columns as importing
from cascades.promotion import Verdict
from cascades.runtime import files, locking, progress, ranges
from cascades.serving import checkpoint_promotion
from cascades.serving.audited import AuditedRows
from cascades.serving.promotion_journal import Journal
from cascades.types import Predictions

log = logging.getLogger(__name__)

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
    candidate: Directory of a table: answers of another checkpoint of the small model to audited
      prompts that are held back. One look compares it, and the program ends.
    small_link: Symbolic link to the run directory of the small model that the server reads when it
      starts; it follows the policy that is promoted.
    export: Folder for the audited prompts with the answers of the large model: rows to train on,
      and rows to answer, which are held back.
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
  candidate: str | None = None
  small_link: str | None = None
  export: str | None = None
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
    audited, journal = AuditedRows(followed.log, folder), Journal(folder, path)
    journal.begin()
    checkpoint_promotion.follow_link(followed.small_link, journal)
    looking = _Looking(followed, demands, caution, audited, journal, provenance)
    if followed.candidate is not None:
      audited.read()
      looking.at_checkpoint(followed.candidate)
      return
    last, exported = time.monotonic(), -1
    while True:
      added = audited.read()
      if followed.export is not None and exported < len(audited):
        exported = len(audited)
        checkpoint_promotion.export(audited, followed.export, caution)
      while len(audited) >= journal.rows + caution.every:
        looking.at_rows()
      if followed.once:
        break
      if added and time.monotonic() - last > progress.SECONDS_BETWEEN_LINES:
        last = time.monotonic()
        log.info('%d audited rows; looks again at %d', len(audited), journal.rows + caution.every)
      time.sleep(followed.seconds)
    log.info('%d audited rows; the next look is at %d', len(audited), journal.rows + caution.every)


@dataclasses.dataclass(frozen=True)
class _Looking:
  """Everything that stays the same from look to look."""

  followed: Followed
  demands: Demands
  caution: Caution
  audited: AuditedRows
  journal: Journal
  provenance: Callable[[], Mapping[str, str]]

  def at_rows(self) -> None:
    """Look at the rows of the next step, and write what comes of it."""
    journal = self.journal
    journal.check_policy()
    assert journal.policy is not None
    count, reign = journal.rows + self.caution.every, journal.reign
    start = max(reign.start, count - self.caution.window)
    if reign.before is not None:
      start = min(start, reign.since)
    pairs = dict(enumerate(self.audited.rows(start, count), start))
    labels = _labels(self.followed)
    labeled = {i: pair for i, pair in pairs.items() if labels is None or pair['id'] in labels}
    if len(labeled) < 2:
      unchanged = Look('unchanged', f'{len(labeled)} rows have labels', reign)
      journal.write(unchanged, count, None, {'labeled': len(labeled)})
      return
    tables = _tables(journal.policy, list(labeled.values()), labels)
    judged = self.judged(tables)
    finite = np.isfinite(judged.score)
    judged = promotions.select(judged, finite)
    ids = np.array(tables[0].ids, dtype=object)[finite]
    held_back = np.array([promotions.is_held_back(id, self.caution.held_back) for id in ids], bool)
    numbers = np.array([*labeled])[finite]
    result = promotions.look(
      reign, judged, numbers, held_back, count=count, demands=self.demands, caution=self.caution
    )
    policy = None
    if result.decision == 'promoted':
      assert result.entry is not None
      policy = self.policy(result.entry, tables)
    described = {
      'labeled': len(labeled),
      'candidate': result.entry and result.entry.threshold,
      'compared': _described(result.verdict),
      'watched': _described(result.watch),
    }
    journal.write(result, count, policy, described)

  def at_checkpoint(self, candidate: str) -> None:
    """Compares another checkpoint with the small model in force, and writes what comes of it."""
    journal = self.journal
    assert journal.policy is not None
    labels, count = _labels(self.followed), len(self.audited)
    pairs, other = checkpoint_promotion.held_back(
      self.audited, candidate, journal.reign, self.caution, labeled=labels
    )
    small, large = _tables(journal.policy, pairs, labels)
    other = other._replace(targets=small.targets, statistics={})
    calibrating = np.array([checkpoint_promotion.calibrates(id) for id in small.ids])
    result = promotions.look_at_checkpoint(
      journal.reign,
      self.judged((small, large)),
      self.judged((other, large)),
      calibrating,
      count=count,
      demands=self.demands,
      caution=self.caution,
    )
    policy = None
    if result.entry is not None:
      policy = self.policy(result.entry, (other, large))
      models = policy.models | {'small': policies.describe_model('small', other)}
      policy = msgspec.structs.replace(policy, models=models)
    numbers = {'candidate': candidate, 'compared': _described(result.verdict)}
    journal.write(result, count, policy, numbers)
    checkpoint_promotion.follow_link(self.followed.small_link, journal)

  def judged(self, tables: tuple[Predictions, Predictions]) -> Judged:
    """Both tables with scores, quality and costs."""
    assert self.journal.policy is not None
    followed, policy = self.followed, self.journal.policy
    metric = metric_library.by_name(followed.metric or policy.metric.name)
    small, large = (alignment.judge(table, metric) for table in tables)
    return calibration.judged(
      [small], [large], metric, policies.stored_decider(policy), surrogate=followed.surrogate,
      by_task=False, cost_axis=self.demands.cost_axis,
    )[0]  # fmt: skip

  def policy(self, entry: Threshold, tables: tuple[Predictions, Predictions]) -> Policy:
    """The policy in force with another threshold; models, decider and tasks stay."""
    assert self.journal.policy is not None
    followed, policy = self.followed, self.journal.policy
    metric = metric_library.by_name(followed.metric or policy.metric.name)
    small, large = map(policies.fingerprint, tables)
    described = {'rows': len(tables[0].ids), 'small': small, 'large': large}
    return msgspec.structs.replace(
      policy,
      metric=MetricEntry(metric.name, followed.surrogate, metric.higher_is_better),
      cost_axis=self.demands.cost_axis,
      thresholds=[msgspec.structs.replace(entry, task=policy.thresholds[0].task)],
      data={'split': 'log', 'tasks': dict.fromkeys(policy.data['tasks'], described)},
      method=METHOD,
      provenance={'lm-cascades': __version__, **self.provenance()},
    )


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


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.promote')
