"""Tables of predictions that programs write shard by shard, together or one after the other."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from etils import epath

from cascades.data.records import Records
from cascades.inference import answers
from cascades.predictions import markers, rows, shards
from cascades.runtime import claims, partitioning, progress

log = logging.getLogger(__name__)

NumberedRows: TypeAlias = Iterator[tuple[int, rows.JsonRow]]


@dataclasses.dataclass(frozen=True, eq=False)
class PendingTable:
  """A table to be written: the answers to one split of one task.

  Attributes:
    directory: Directory of the split.
    split: Rows of the split.
    described: Model and settings, as JSON, with `task`, `split`, `mode` and `metrics`.
    shard_rows: Approximate number of rows of a shard.
    answer: Rows of the table for numbered rows of the split, in any order.
    judge_baselines: Quality of cheap answers, for the manifest.
    lease: Seconds of silence after which the shard of another program is taken up.
  """

  directory: epath.Path
  split: Records
  described: Mapping[str, Any]
  shard_rows: int
  answer: Callable[[Sequence[int]], NumberedRows]
  judge_baselines: Callable[[], Mapping[str, Mapping[str, float]]] = dict
  lease: float = claims.LEASE

  @property
  def shard_count(self) -> int:
    """Number of shards."""
    return -(-len(self.split) // self.shard_rows)

  @functools.cached_property
  def _origin(self) -> tuple[Mapping[str, Any], str]:
    """Description that the table is written with, and its digest with that of the data.

    The digest leaves out the path of a checkpoint that has an identity: it may be moved, or named
    by another path. Tables of earlier versions have it there, and keep both.
    """
    stored = shards.stored_origin(self.directory, *self._names)
    older = {**self.described, 'checkpoint': stored.get('checkpoint')}
    if stored.get('fingerprint') == (digest := self._digest(older)):
      return older, digest
    content = dict(self.described)
    if 'checkpoint_identity' in content:
      content.pop('checkpoint', None)
    return self.described, self._digest(content)

  def _digest(self, described: Mapping[str, Any]) -> str:
    # Without alternatives, it is that of older tables, so that these are finished and kept.
    described = {k: v for k, v in described.items() if k != 'alternatives' or v}
    content = json.dumps([described, self.split.directory.name], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()

  @property
  def fingerprint(self) -> str:
    """Digest of the model, the settings and the data."""
    return self._origin[1]

  def begin(self, *, overwrite: bool, setting: str) -> None:
    """Refuse or remove a table of another origin; see `shards.begin`."""
    data = {
      'records': self.split.directory.name,
      'rows': len(self.split),
      'shards': self.shard_count,
    }
    with claims.alone(self.directory, f'{shards.stem(*self._names)}.begun', self.lease):
      shards.begin(
        self.directory,
        {**self._origin[0], **data},
        fingerprint=self.fingerprint,
        overwrite=overwrite,
        setting=setting,
      )

  def missing(self) -> dict[int, range]:
    """Numbers of the rows of each shard that is to be written; the same on all processes."""
    task, mode, total, count = *self._names, len(self.split), self.shard_count
    done = shards.completed_shards(
      self.directory, task, mode, count, total=total, fingerprint=self.fingerprint
    )
    # All must answer the same shards, and others may see another disk than the one that writes.
    missing = np.flatnonzero(
      partitioning.from_process_0(np.array([index not in done for index in range(count)]))
    ).tolist()
    return {index: shards.shard_rows(total, index, count) for index in missing}

  def write(
    self,
    missing: dict[int, range],
    provenance: Callable[[], Mapping[str, str]],
    report: progress.Counted[tuple[int, rows.JsonRow]],
    *,
    wait: bool,
  ) -> bool:
    """Write missing shards that no other program holds, and at the end the manifest.

    Args:
      missing: Result of `missing`; shards that are written by any program are removed.
      provenance: Gives the configuration and versions that are recorded in the manifest.
      report: Counts rows.
      wait: Wait for the shards of other programs, and take up those that are lost.

    Returns:
      True if the table is finished.
    """
    task, mode = self._names
    manifest = self.directory / shards.manifest_name(task, mode)
    existed = manifest.exists()
    damaged = self._marked(missing)  # as they were not complete to begin with
    with claims.Claims(self.directory, self.lease) as claimed:

      def written(numbers: Sequence[int]) -> set[int]:
        complete = self._complete(self._marked(numbers), damaged)
        report.add(sum(len(missing[number]) for number in complete))
        return complete

      for index, numbers in claimed.shares(missing, self._shard_name, written, wait=wait):
        answered = dict(report(self.answer(numbers)))
        if jax.process_index() == 0:
          ordered = [answered[number] for number in numbers]
          shards.write_shard(
            self.directory, task, mode, index, self.shard_count, ordered,
            fingerprint=self.fingerprint,
          )  # fmt: skip
      if missing:
        return False
      finish = claimed.shares(
        {0: None},
        lambda _: manifest.name,
        lambda numbers: () if existed or not manifest.exists() else numbers,
        wait=True,
      )
      for _ in finish:
        if jax.process_index() == 0:
          self._write_manifest(provenance())
          claimed.clear(map(self._shard_name, range(self.shard_count)))
    return True

  def _write_manifest(self, provenance: Mapping[str, str]) -> None:
    described, fingerprint = self._origin
    manifest = {'config': '', **provenance, **described, 'fingerprint': fingerprint}
    # The key keeps the spelling of older tables.
    sizes = {
      'rows': len(self.split),
      'shards': self.shard_count,
      'unlabelled': self.split.manifest.unlabeled,
    }
    cheap = {'baselines': judged} if (judged := self.judge_baselines()) else {}
    shards.write_manifest(self.directory, manifest | sizes | cheap)

  def _shard_name(self, index: int) -> str:
    return shards.shard_name(*self._names, index, self.shard_count)

  def _marked(self, numbers: Iterable[int]) -> set[int]:
    """Numbers of the shards that have markers."""
    return markers.marked(self.directory, {number: self._shard_name(number) for number in numbers})

  def _complete(self, numbers: Iterable[int], damaged: Collection[int]) -> set[int]:
    """Numbers of complete shards by their sizes; by their content, if they were damaged before."""
    return {
      number
      for number in numbers
      if not markers.defect(
        self.directory / self._shard_name(number),
        rows=len(shards.shard_rows(len(self.split), number, self.shard_count)),
        fingerprint=self.fingerprint,
        digest=number in damaged,
      )
    }

  @property
  def _names(self) -> tuple[str, rows.Mode]:
    return self.described['task'], self.described['mode']


def write_all(tables: Sequence[PendingTable], provenance: Callable[[], Mapping[str, str]]) -> None:
  """Write what is missing of all tables of decoding points, with one report of progress."""
  pending = [(number, table, table.missing()) for number, table in enumerate(tables, 1)]
  total = sum(len(numbers) for _, _, missing in pending for numbers in missing.values())
  report = progress.Counted('row', total, answers.size)
  existing = [table.shard_count - len(missing) for _, table, missing in pending]
  last = None
  for wait in (False, True):
    unfinished = []
    for number, table, missing in pending:
      program = [table.described['point'][name] for name in ('rule', 'gamma', 'temperature')]
      if program != last:
        jax.clear_caches()  # an operating system maps no more than some dozen programs
      last = program
      if not table.write(missing, provenance, report, wait=wait):
        unfinished.append((number, table, missing))
        continue
      log.info(
        'table %d/%d  %s, %s, split %s: %d rows (%d of %d shards existed)',
        *(number, len(tables), table.directory.parent.name, table.described['task']),
        *(table.described['split'], len(table.split)),
        *(existing[number - 1], table.shard_count),
      )
    pending = unfinished
