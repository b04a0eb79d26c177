"""Tasks by name: ours, and those that a user has registered with SeqIO."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping

from cascades.tasks import cmudict, superglue
from cascades.tasks.sources import Sources
from cascades.tasks.task import Task

TASKS: Mapping[str, Callable[[Sources], Task]] = {
  'cmudict_g2p': lambda _sources: cmudict.task(),
  'superglue_boolq': lambda sources: superglue.task('boolq', sources),
  'superglue_rte': lambda sources: superglue.task('rte', sources),
}


def names() -> tuple[str, ...]:
  """The names of our own tasks."""
  return tuple(TASKS)


def get(
  name: str,
  data_dir: str | None = None,
  tfds_data_dir: str | None = None,
  allow_download: bool = False,
) -> Task:
  """The task of this name; the other arguments say where data sets lie.

  A name that is not ours is looked up among the tasks registered with SeqIO, if any program part
  has imported it: without that, there can be none.
  """
  if not name:
    raise ValueError(
      'No task is named: give MIXTURE_OR_TASK_NAME, or a TASK such as @local.local_jsonl().'
    )
  if name in TASKS:
    return TASKS[name](Sources(data_dir, tfds_data_dir, allow_download))
  if 'seqio' in sys.modules:
    from cascades.tasks import seqio_tasks

    if name in seqio_tasks.names():
      return seqio_tasks.from_seqio(name)
  near = difflib.get_close_matches(name, names(), 1, 0.4)
  raise ValueError(
    f'There is no task {name!r}.{f" Did you mean {near[0]}?" if near else ""} Ours are '
    f'{", ".join(names())}; a task of your own is a `local_jsonl`, a `local_tsv`, or a SeqIO task '
    'whose module is imported.'
  )
