"""SuperGLUE in T5's text form. Wang et al. 2019, https://arxiv.org/abs/1905.00537."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from cascades.tasks import sources as sources_lib
from cascades.tasks import superglue_preprocessors as preprocessors
from cascades.tasks.datasets import Dataset
from cascades.tasks.superglue_files import DATASETS
from cascades.tasks.task import Mixture, Task


class SuperGlueTask(NamedTuple):
  """A row of the table of tasks.

  Attributes:
    dataset: the data set.
    preprocess: converts examples to rows.
    description: one line.
    metrics: names in `cascades.metrics`.
    sizes: published numbers of rows where they differ from the data set's.
  """

  dataset: Dataset
  preprocess: preprocessors.RowPreprocessor
  description: str
  metrics: tuple[str, ...] = ('accuracy',)
  sizes: Mapping[str, int] = {}


def _classify(name: str, *fields: str) -> preprocessors.RowPreprocessor:
  return preprocessors.classify(name, fields, DATASETS[name].features['label'])


TASKS: Mapping[str, SuperGlueTask] = MappingProxyType(
  {
    'boolq': SuperGlueTask(
      DATASETS['boolq'],
      _classify('boolq', 'passage', 'question'),
      'A passage and a question -> True or False. Clark et al. 2019.',
    ),
    'cb': SuperGlueTask(
      DATASETS['cb'],
      _classify('cb', 'hypothesis', 'premise'),
      'A premise and a hypothesis -> entailment, contradiction, neutral. De Marneffe et al. 2019.',
      ('accuracy', 'macro_f1[entailment|contradiction|neutral]'),
    ),
    'copa': SuperGlueTask(
      DATASETS['copa'],
      preprocessors.copa,
      'A premise, and two causes or effects -> choice1 or choice2. Roemmele et al. 2011.',
    ),
    'multirc': SuperGlueTask(
      DATASETS['multirc'],
      preprocessors.multirc,
      'A paragraph, a question and an answer -> False or True. Khashabi et al. 2018.',
      ('accuracy', 'f1[True|False]'),
    ),
    'record': SuperGlueTask(
      DATASETS['record'],
      preprocessors.record,
      'A passage, its entities and a query -> the entity that is left out. Zhang et al. 2018.',
      ('exact_match', 'token_f1'),
      {'train': 138_854},  # answers
    ),
    'rte': SuperGlueTask(
      DATASETS['rte'],
      _classify('rte', 'hypothesis', 'premise'),
      'A premise and a hypothesis -> entailment or not_entailment. The RTE challenges, 2005-2011.',
    ),
    'wic': SuperGlueTask(
      DATASETS['wic'],
      _classify('wic', 'sentence1', 'sentence2', 'word'),
      'Two sentences and a word -> True if it means the same. Pilehvar, Camacho-Collados 2019.',
    ),
    'wsc': SuperGlueTask(
      DATASETS['wsc.fixed'],
      preprocessors.wsc,
      'A text with a *pronoun* and a candidate -> True if it refers to it. Levesque et al. 2012.',
    ),
    'wsc_referent': SuperGlueTask(
      DATASETS['wsc.fixed'],
      preprocessors.wsc_referent,
      'A text with a *pronoun* -> whom or what it refers to. WSC as T5 trains it.',
      ('wsc_referent',),
      {'train': 259},  # where the candidate is right
    ),
  }
)
NAMES = tuple(TASKS)
LARGEST_RATE = 1 << 16


def task(config_name: str, sources: sources_lib.Sources) -> Task:
  """Makes the task `superglue_<config_name>`.

  Args:
    config_name: one of NAMES.
    sources: where to look for data sets.
  """
  dataset, preprocess, description, metrics, sizes = TASKS[config_name]
  origin = sources_lib.DatasetSource(dataset, {split: split for split in dataset.sizes}, sources)
  return Task(
    name=f'superglue_{config_name}',
    splits=tuple(dataset.sizes),
    read=lambda split: origin.read(split, functools.partial(preprocess, split)),
    fingerprint=origin.fingerprint,
    metrics=metrics,
    description=description,
    suite='superglue',
    sizes={**dataset.sizes, **sizes},
    origin=origin,
  )


def mixture(
  sources: sources_lib.Sources | None = None, *, largest_rate: int = LARGEST_RATE
) -> Mixture:
  """Makes the mixture of the benchmark's eight tasks, at the rates of their rows.

  WSC is a classification. ReCoRD would be three rows of four, so no task has a rate above
  `largest_rate`.
  """
  where = sources or sources_lib.Sources()
  tasks = (task(name, where) for name in NAMES if name != 'wsc_referent')
  return Mixture(
    'superglue',
    tuple(dataclasses.replace(t, rate=min(t.sizes['train'], largest_rate)) for t in tasks),
  )


def _maker(name: str) -> Callable[..., Task]:
  """Makes a function of this name, for gin."""

  def make(
    data_dir: str | None = None, tfds_data_dir: str | None = None, allow_download: bool = False
  ) -> Task:
    return task(name, sources_lib.Sources(data_dir, tfds_data_dir, allow_download))

  make.__name__ = make.__qualname__ = name
  make.__doc__ = TASKS[name].description
  return make


boolq = _maker('boolq')
cb = _maker('cb')
copa = _maker('copa')
multirc = _maker('multirc')
record = _maker('record')
rte = _maker('rte')
wic = _maker('wic')
wsc = _maker('wsc')
wsc_referent = _maker('wsc_referent')
