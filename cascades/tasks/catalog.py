"""Tasks and mixtures by name: ours, and those that a user has registered with SeqIO.

A suite's module is imported when one of its names is asked for; none of them reads data or imports
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
    found = importlib.import_module(f'cascades.tasks.{module}')
    return getattr(found, attribute)(*arguments, sources)

  return make


def _cmudict(_: Sources) -> Task:
  from cascades.tasks import cmudict

  return cmudict.task()


@functools.cache
def tasks() -> Mapping[str, Callable[[Sources], Task | Mixture]]:
  """Our tasks by name, suite by suite; each is made when called."""
  from cascades.tasks import streams, superglue, wmt22
  from cascades.tasks.flan import suite as flan

  return {
    'cmudict_g2p': _cmudict,
    **{f'superglue_{name}': _suite('superglue', 'task', name) for name in superglue.NAMES},
    **{f'wmt22_{a}_{b}': _suite('wmt22', 'task', (a, b)) for a, b in wmt22.PAIRS},
    **{name: _suite('flan.suite', 'task', name) for name in flan.DEFINITIONS},
    **{f'c4_{kind}': _suite('c4', kind) for kind in ('span_corruption', 'prefix_lm', 'causal_lm')},
    **{name: _suite('streams', 'task', name) for name in streams.NAMES},
  }


@functools.cache
def mixtures() -> Mapping[str, Callable[[Sources], Task | Mixture]]:
  """Our mixtures by name."""
  from cascades.tasks.flan import suite as flan

  return {
    'superglue': _suite('superglue', 'mixture'),
    'wmt22': _suite('wmt22', 'mixture'),
    **{name: _suite('flan.suite', 'mixture', name) for name in flan.SUITES},
  }


def names() -> tuple[str, ...]:
  """The names of our own tasks."""
  return tuple(tasks())


def mixture(
  rates: Mapping[str, int | None], *, name: str = 'mixture', sources: Sources | None = None
) -> Mixture:
  """Some of our tasks, each at a rate: rows of it in the time that others have theirs.

  None is the task's own rate: FLAN's, or its number of training rows.
  """
  made = []
  for task_name, rate in rates.items():
    if task_name not in tasks():
      raise ValueError(f'There is no task {task_name!r}.{_suggestion(task_name, tasks())}')
    task = tasks()[task_name](sources or Sources())
    assert isinstance(task, Task)
    made.append(task if rate is None else dataclasses.replace(task, rate=rate))
  return Mixture(name, tuple(made))


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
  """The task or mixture of this name; the other arguments say where data sets lie.

  `sample` reads the hand-written rows that ship with each task; `malformed='skip'` passes over
  rows that cannot be used, and counts them. A name that is not ours is looked up among the tasks
  registered with SeqIO, if any program part has imported it: without that, there can be none.
  """
  if not name:
    raise ValueError(
      'No task is named: give MIXTURE_OR_TASK_NAME, or a TASK such as @local.local_jsonl().'
    )
  sources = Sources(data_dir, tfds_data_dir, allow_download, sample, malformed, allow_remote)
  ours = {**tasks(), **mixtures()}
  if name in ours:
    return ours[name](sources)
  if 'seqio' in sys.modules:
    from cascades.tasks import seqio_tasks

    if name in seqio_tasks.names():
      return seqio_tasks.from_seqio(name)
  raise ValueError(
    f'There is no task {name!r}.{_suggestion(name, ours)} '
    f'`python -m cascades.browse_tasks list` shows all {len(ours)}; a task of your own is a '
    '`local_jsonl`, a `local_tsv`, or a SeqIO task whose module is imported.'
  )


def _suggestion(name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, known, 3, 0.5)
  return f' Did you mean {" or ".join(near)}?' if near else ''
