"""Tables of predictions that a program writes shard by shard, and that a second run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from etils import epath

from cascades.data.records import Records
from cascades.predictions import rows, shards
from cascades.runtime import partitioning

NumberedRows: TypeAlias = Iterator[tuple[int, rows.JsonRow]]


class PendingTable(NamedTuple):
  """A table to be written: the answers to one split of one task.

  Attributes:
    directory: Directory of the split.
    split: Rows of the split.
    described: Model and settings, as JSON, with `task`, `split`, `mode` and `metrics`.
    shard_rows: Approximate number of rows of a shard.
    answer: Rows of the table for numbered rows of the split, in any order.
    judge_baselines: Quality of cheap answers, for the manifest.
  """

  directory: epath.Path
  split: Records
  described: Mapping[str, Any]
  shard_rows: int
  answer: Callable[[Sequence[int]], NumberedRows]
  judge_baselines: Callable[[], Mapping[str, Mapping[str, float]]] = dict

  @property
  def shard_count(self) -> int:
    """Number of shards."""
    return -(-len(self.split) // self.shard_rows)

  @property
  def fingerprint(self) -> str:
    """Digest of the model, the settings and the data."""
    # Without alternatives, it is that of older tables, so that these are finished and kept.
    described = {k: v for k, v in self.described.items() if k != 'alternatives' or v}
    identity = json.dumps([described, self.split.directory.name], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()

  def begin(self, *, overwrite: bool, setting: str) -> None:
    """Refuse or remove a table of another origin; see `shards.begin`."""
    data = {
      'records': self.split.directory.name,
      'rows': len(self.split),
      'shards': self.shard_count,
    }
    shards.begin(
      self.directory,
      {**self.described, **data},
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
    missing: Mapping[int, range],
    provenance: Callable[[], Mapping[str, str]],
    report: Callable[[NumberedRows], NumberedRows],
  ) -> None:
    """Write the missing shards, then the manifest.

    Args:
      missing: Result of `missing`.
      provenance: Gives the configuration and versions that are recorded in the manifest.
      report: Passes rows on, and reports progress.
    """
    task, mode = self._names
    for index, numbers in missing.items():
      answered = dict(report(self.answer(numbers)))
      if jax.process_index() == 0:
        ordered = [answered[number] for number in numbers]
        shards.write_shard(
          self.directory, task, mode, index, self.shard_count, ordered, fingerprint=self.fingerprint
        )
    if jax.process_index() == 0:
      manifest = {'config': '', **provenance(), **self.described, 'fingerprint': self.fingerprint}
      # The key keeps the spelling of older tables.
      sizes = {
        'rows': len(self.split),
        'shards': self.shard_count,
        'unlabelled': self.split.manifest.unlabeled,
      }
      cheap = {'baselines': judged} if (judged := self.judge_baselines()) else {}
      shards.write_manifest(self.directory, manifest | sizes | cheap)

  @property
  def _names(self) -> tuple[str, rows.Mode]:
    return self.described['task'], self.described['mode']
