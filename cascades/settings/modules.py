"""Modules of each program whose functions are known in gin files and bindings without an import."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

_USUAL = (
  'cascades.losses',
  'cascades.divergences',
  'cascades.masks',
  'cascades.data.corpus',
  'cascades.models.lora',
  'cascades.metrics',
  'cascades.training.optimizers',
  'cascades.training.setup',
  'cascades.runtime.partitioning',
  'cascades.runtime.stopping',
  'cascades.training.train_step',
  'cascades.models.decoder',
  'cascades.models.t5',
  'cascades.tasks.c4',
  'cascades.tasks.catalog',
  'cascades.tasks.chats',
  'cascades.tasks.cmudict',
  'cascades.tasks.flan.suite',
  'cascades.tasks.local',
  'cascades.tasks.sources',
  'cascades.tasks.streams',
  'cascades.tasks.superglue',
  'cascades.tokenizers.vocabularies',
  'cascades.tasks.wmt22',
)
_OTHERS = {
  'cascades.evaluate': (  # starts without JAX
    'cascades.deferral', 'cascades.metrics', 'cascades.evaluation.comparison',
    'cascades.evaluation.tables', 'cascades.reporting.report',
  ),
  'cascades.calibrate': (
    'cascades.metrics', 'cascades.evaluation.calibration', 'cascades.evaluation.tables',
  ),
  'cascades.rank': (
    'cascades.ranking', 'cascades.training.optimizers', 'cascades.training.ranker',
    'cascades.training.setup',
  ),
  'cascades.route': ('cascades.evaluation.model_answers',),
  'cascades.prune': (*_USUAL, 'cascades.models.pruning'),
  'cascades.plan': ('cascades.train', *_USUAL),
  'cascades.infer': (
    'cascades.inference.answers', 'cascades.inference.trained_model', *_USUAL,
  ),
  'cascades.serve': (
    'cascades.runtime.partitioning', 'cascades.tasks.chats', 'cascades.serving.members',
  ),
  'cascades.stream': (
    'cascades.online', 'cascades.inference.fine_tuned', 'cascades.inference.generative',
    'cascades.inference.levels', 'cascades.inference.stream_shifts', 'cascades.tasks.chats',
  ),
  'cascades.speculate': ('cascades.inference.answers', *_USUAL),
  'cascades.cache_teacher': ('cascades.inference.trained_model', *_USUAL),
  'cascades.memorize': ('cascades.resmem', 'cascades.inference.trained_model', *_USUAL),
  'cascades.select': ('cascades.selection', 'cascades.inference.trained_model', *_USUAL),
}  # fmt: skip


def known(program: str, imported: Sequence[str] = ()) -> tuple[str, ...]:
  """Names of the modules that a program knows, with those that the user imports."""
  return (program, *imported, *_OTHERS.get(program, _USUAL))


def preamble(program: str, imported: Sequence[str] = ()) -> list[str]:
  """Lines of a gin file that make the modules known."""
  names = [name.rpartition('.') for name in known(program, imported)]
  imports = [f'from {a} import {b}' if a else f'import {b}' for a, _, b in names]
  return ['from __gin__ import dynamic_registration', *imports]


def functions(modules: Sequence[str]) -> Iterator[tuple[str, Any]]:
  """The public functions and classes of modules, by the names that gin gives them."""
  seen: set[int] = set()  # partials do not tell their module: the first that has one defines it
  for module in modules:
    before = frozenset(seen)
    for name, function in vars(importlib.import_module(module)).items():
      partial = isinstance(function, functools.partial)
      home = module if partial else getattr(function, '__module__', module)
      if callable(function) and name[0] != '_' and home == module and id(function) not in before:
        seen.add(id(function))
        yield f'{module.rpartition(".")[2]}.{name}', function
