"""Learned deciders of a comparison: fitted on another split of the same directories."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from cascades import deferral, learned_deferral
from cascades.evaluation import pooling
from cascades.evaluation.compare import task_metric
from cascades.evaluation.tables import Tables
from cascades.learned_deferral import METHODS, Fitted, LeakError, Recipe
from cascades.predictions import alignment
from cascades.types import Decider, Metric, Predictions

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Learned:
  """Deciders that are learned for a comparison.

  Attributes:
    methods: Names in `learned_deferral.METHODS`.
    recipes: Recipes of your own by name.
    split: Split of the same directories that they are fitted on.
  """

  methods: Sequence[str] = ()
  recipes: Mapping[str, Recipe] = dataclasses.field(default_factory=dict)
  split: str = 'validation'

  def __post_init__(self) -> None:
    if unknown := [name for name in self.methods if name not in METHODS]:
      raise ValueError(f'LEARNED names {unknown[0]!r:.80}; the methods are {", ".join(METHODS)}.')

  @property
  def by_name(self) -> dict[str, Recipe]:
    """All recipes by name."""
    return {name: METHODS[name] for name in self.methods} | dict(self.recipes)

  @property
  def embeddings(self) -> list[str]:
    """Names of the embeddings that are read."""
    reads = dict.fromkeys(name for recipe in self.by_name.values() for name in recipe.reads)
    prefix = deferral.EMBEDDINGS
    return [name.removeprefix(prefix) for name in reads if name.startswith(prefix)]

  def fit(
    self,
    tables: Tables,
    reports: Sequence[Mapping[str, Sequence[Predictions]]],
    metric: Metric | str | None = None,
  ) -> dict[str, dict[str, Fitted]]:
    """Fits every recipe for every small model, over all tasks.

    Rows that are also in the report, or in the split that rules of chains are chosen on, as real
    data repeat questions across splits, are left out.

    Args:
      tables: Locations of the tables of the report.
      reports: Small models' tables of the report, and of other rows to leave out.
      metric: Metric, or its name; None for the first of each table.

    Returns:
      Fitted deciders by recipe and small model.

    Raises:
      LeakError: The report is of the split, or of the rows, to fit on.
      ValueError: A recipe cannot be fitted, or a table is missing.
    """
    if not self.by_name:
      return {}
    if self.split == tables.split:
      raise LeakError(
        f'LEARNED_SPLIT and SPLITS are both {self.split!r}: what is learned on rows says nothing '
        'on the same rows. Fit on another split, such as validation or train.'
      )
    small, large = dataclasses.replace(
      tables, split=self.split, embeddings=self.embeddings, require_targets=True
    ).read()
    metrics = [task_metric(metric, table) for table in large]
    large_quality = _quality(large, metrics)
    flops = {f'{deferral.EMBEDDINGS}{name}': tables.flops_of(name) for name in self.embeddings}
    fitted: dict[str, dict[str, Fitted]] = {name: {} for name in self.by_name}
    for model, own in small.items():
      pooled = pooling.pool(own)
      rows = learned_deferral.unshared(pooled, *(pooling.pool(other[model]) for other in reports))
      if len(rows) < len(pooled.ids):
        log.info(
          '%d of %d rows of split %s are also in the report or in that of FIT_SPLIT, and nothing '
          'is learned from them.',
          *(len(pooled.ids) - len(rows), len(pooled.ids), self.split),
        )
      selected, quality = alignment.select(pooled, rows), _quality(own, metrics)[rows]
      for name, recipe in self.by_name.items():
        computing = sum(flops.get(read, 0.0) for read in recipe.reads)
        fitted[name][model] = learned_deferral.fit(
          name, recipe, selected, quality, large_quality[rows], flops=computing
        )
    return fitted


def fit_on_half(
  name: str,
  tables: Tables,
  small: Sequence[Predictions],
  large: Sequence[Predictions],
  metric: Metric,
) -> tuple[Fitted, list[Predictions], list[Predictions]]:
  """Fits a decider on half the rows of each task, without those whose inputs the others repeat.

  Args:
    name: Name in `METHODS`.
    tables: Locations of the tables, for the FLOPs of the features.
    small: The small model's tables.
    large: The large model's tables of the same rows.
    metric: Metric that judges the answers.

  Returns:
    The decider, and both models' tables of the other rows.
  """
  generator = np.random.default_rng(0)
  halves = [np.split(generator.permutation(len(t.ids)), [len(t.ids) // 2]) for t in small]
  (own, rest), (other, other_rest) = (
    [
      [alignment.select(t, np.sort(half[i]).tolist()) for t, half in zip(each, halves, strict=True)]
      for i in (0, 1)
    ]
    for each in (small, large)
  )
  pooled = pooling.pool(own)
  rows = learned_deferral.unshared(pooled, pooling.pool(rest))
  metrics, recipe = [metric] * len(own), METHODS[name]
  computing = sum(
    tables.flops_of(read.removeprefix(deferral.EMBEDDINGS))
    for read in recipe.reads
    if read.startswith(deferral.EMBEDDINGS)
  )
  learned = learned_deferral.fit(
    name, recipe, alignment.select(pooled, rows), _quality(own, metrics)[rows],
    _quality(other, metrics)[rows], flops=computing,
  )  # fmt: skip
  return learned, rest, other_rest


def deciders(
  fitted: Mapping[str, Mapping[str, Fitted]], report: Mapping[str, Sequence[Predictions]]
) -> dict[str, Decider]:
  """One decider for each recipe, which scores each small model's tables by its own arrays.

  Args:
    fitted: Fitted deciders by recipe and small model.
    report: Small models' tables, by which the model of a table is told.
  """
  return {name: _by_model(name, own, report) for name, own in fitted.items()}


def _by_model(
  name: str, fitted: Mapping[str, Fitted], report: Mapping[str, Sequence[Predictions]]
) -> Decider:
  own = {model: value.decider() for model, value in fitted.items()}

  def score(table: Predictions) -> np.ndarray:
    for model, tables in report.items():
      # Selecting, judging and pooling rows keep the manifest, of the first task if pooled.
      if any(table.manifest is other.manifest for other in tables):
        return own[model].score(table)
    raise ValueError(
      f'{name!r} was fitted for the tables of {", ".join(report)}, and this one of task '
      f'{table.task!r}, split {table.split!r}, is another.'
    )

  first = next(iter(own.values()))
  flops = float(np.mean([decider.flops for decider in own.values()]))
  return Decider(name, score, first.reads, flops)


def _quality(tables: Sequence[Predictions], metrics: Sequence[Metric]) -> np.ndarray:
  """Quality of each answer over its scale, the higher the better."""
  columns = []
  for table, metric in zip(tables, metrics, strict=True):
    statistics = alignment.judge(table, metric).statistics[metric.name]
    share = metric.finalize(statistics) / metric.scale
    columns.append(share if metric.higher_is_better else 1.0 - share)
  return np.concatenate(columns)
