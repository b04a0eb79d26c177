"""Reports of a training run: log lines, metrics, and descriptions in the run directory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from clu import parameter_overview
from etils import epath

from cascades.checkpoints import store
from cascades.runtime import files, progress
from cascades.tokenizers import vocabularies
from cascades.training import loop
from cascades.training import validation as validating
from cascades.training.metrics_log import MetricsLog
from cascades.training.utilization import Utilization
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


def reporter(
  total: int,
  metrics: MetricsLog,
  *,
  learning_rate: optax.Schedule,
  utilization: Callable[[progress.Rates | None], Utilization],
  check: Callable[[], None],
) -> Callable[[int, loop.Values, float], None]:
  """The `report` of `loop.run`: log lines, and the same numbers in the metrics.

  Args:
    total: the steps of the run.
    metrics: where values are written; a full disk costs a warning.
    learning_rate: of an update, from the number of updates before it.
    utilization: maps rates to the use of the devices since the last report.
    check: called at every report, and may raise.
  """
  meter = progress.Meter(total)
  prefix = validating.PREFIX

  def report(step: int, values: loop.Values, tokens: float) -> None:
    rates = meter.update(step, tokens)
    check()
    if jax.process_index() != 0:
      return
    if not values:
      log.info(
        'step %d, imports and compiling included: %.1f s', step, progress.seconds_since_start()
      )
      return
    values = values | {'lr': float(learning_rate(step - 1))}
    validation = {k[len(prefix) :]: v for k, v in values.items() if k.startswith(prefix)}
    training = {k: v for k, v in values.items() if not k.startswith(prefix)}
    resources = utilization(rates)
    log.info('%s', progress.format_line(step, total, training, rates, notes=resources.notes()))
    if validation:
      log.info('%s', progress.format_line(step, total, validation, None) + '  (validation)')
    try:
      metrics.write(step, values | (rates._asdict() if rates else {}) | resources.numbers())
    except OSError as error:  # whether a full disk ends the run is decided at the next checkpoint
      log.warning('the metrics of step %d were not written: %s.', step, error)

  return report


def describe_run(
  directory: epath.Path,
  description: Mapping[str, Any],
  vocabulary: Vocabulary,
  models: Mapping[str, Any],
) -> None:
  """Writes model.json, the vocabulary, and model-info.txt, which lists every array.

  Args:
    directory: the run directory.
    description: the contents of model.json.
    vocabulary: the models'.
    models: trees of placed arrays by role, 'trained' and 'frozen'.
  """
  totals, tables = [], []
  for role, params in models.items():
    arrays = {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    total = f'{role}: {sum(leaf.size for leaf in arrays.values()):,} parameters'
    table = parameter_overview.get_parameter_overview(arrays, include_stats='sharding')
    totals.append(total)
    tables.append(f'{total}\n{table}\n' if arrays else f'{total}\n')
  log.info('%s', '; '.join(totals))
  if jax.process_index() == 0:
    store.write_description(directory, description)
    vocabularies.save(vocabulary, directory)
    files.write(directory / 'model-info.txt', '\n'.join(tables))
