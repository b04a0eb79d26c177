"""Tasks and mixtures by name: those of this package, and those that users register with SeqIO.

A suite's module is imported when one of its names is requested; none of them reads data or imports
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cascades.tasks import textfiles
from cascades.tasks.sources import Sources
from cascades.tasks.task import Mixture, Task


def _suite(module: str, attribute: str, *arguments: Any) -> Callable[[Sources], Task | Mixture]:
  def make(sources: Sources) -> Task | Mixture:
    suite = importlib.import_module(f'cascades.tasks.{module}')
    return getattr(suite, attribute)(*arguments, sources)

  return make


def _cmudict(_: Sources) -> Task:
  from cascades.tasks import cmudict

  return cmudict.task()


@functools.cache
def tasks() -> Mapping[str, Callable[[Sources], Task | Mixture]]:
  """Functions that make the tasks of this package, by name, suite by suite."""
  from cascades.tasks import streams, superglue, wmt22
  from cascades.tasks.flan import suite as flan

  return {
    'cmudict_g2p': _cmudict,
    **{f'superglue_{name}': _suite('superglue', 'task', name) for name in superglue.NAMES},
    **{f'wmt22_{a}_{b}': _suite('wmt22', 'task', (a, b)) for a, b in wmt22.PAIRS},
    **{name: _suite('flan.suite', 'task', name) for name in flan.DEFINITIONS},
    **{f'c4_{name}': _suite('c4', name) for name in ('span_corruption', 'prefix_lm', 'causal_lm')},
    **{name: _suite('streams', 'task', name) for name in streams.NAMES},
  }


@functools.cache
def mixtures() -> Mapping[str, Callable[[Sources], Task | Mixture]]:
  """Functions that make the mixtures of this package, by name."""
  from cascades.tasks.flan import suite as flan

  return {
    'superglue': _suite('superglue', 'mixture'),
    'wmt22': _suite('wmt22', 'mixture'),
    **{name: _suite('flan.suite', 'mixture', name) for name in flan.SUITES},
  }


def names() -> tuple[str, ...]:
  """Names of the tasks of this package."""
  return tuple(tasks())


def mixture(
  rates: Mapping[str, int | None], *, name: str = 'mixture', sources: Sources | None = None
) -> Mixture:
  """Makes a mixture of tasks, each at a rate.

  Args:
    rates: relative number of training rows of each task, by name; None takes the task's own rate,
      which is FLAN's or its number of training rows.
    name: name of the mixture.
    sources: where to look for data sets.

  Returns:
    The mixture.

  Raises:
    ValueError: if there is no task of one of the names.
  """
  tasks_at_rates = []
  for task_name, rate in rates.items():
    if task_name not in tasks():
      raise ValueError(f'There is no task {task_name!r}.{_suggestion(task_name, tasks())}')
    task = tasks()[task_name](sources or Sources())
    assert isinstance(task, Task)
    tasks_at_rates.append(task if rate is None else dataclasses.replace(task, rate=rate))
  return Mixture(name, tuple(tasks_at_rates))


def get(
  name: str,
  data_dir: str | None = None,
  tfds_data_dir: str | None = None,
  allow_download: bool = False,
  *,
  sample: bool = False,
  malformed: textfiles.Malformed = 'error',
  allow_remote: bool = False,
) -> Task | Mixture:
  """Finds a task or mixture by name.

  Other names are looked up among the tasks registered with SeqIO, if SeqIO has been imported.

  Args:
    name: name of a task or mixture.
    data_dir: folder of official files.
    tfds_data_dir: folder of prepared TFDS data sets; None for $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    allow_download: let TFDS download missing data sets.
    sample: read the hand-written rows that ship with each task.
    malformed: 'error' stops at rows that cannot be used, 'skip' skips and counts them.
    allow_remote: accept folders such as gs://...

  Returns:
    The task or mixture; its data are read later.

  Raises:
    ValueError: if there is no task or mixture of this name.
  """
  if not name:
    raise ValueError(
      'No task is named: give MIXTURE_OR_TASK_NAME, or a TASK such as @local.local_jsonl().'
    )
  sources = Sources(data_dir, tfds_data_dir, allow_download, sample, malformed, allow_remote)
  makers = {**tasks(), **mixtures()}
  if name in makers:
    return makers[name](sources)
  if 'seqio' in sys.modules:
    from cascades.tasks import seqio_tasks

    if name in seqio_tasks.names():
      return seqio_tasks.from_seqio(name)
  raise ValueError(
    f'There is no task {name!r}.{_suggestion(name, makers)} '
    f'`python -m cascades.browse_tasks list` shows all {len(makers)}; a task of your own is a '
    '`local_jsonl`, a `local_tsv`, or a SeqIO task whose module is imported.'
  )


def _suggestion(name: str, names: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, names, 3, 0.5)
  return f' Did you mean {" or ".join(near)}?' if near else ''
