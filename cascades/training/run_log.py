"""What a training run says of itself: lines for the terminal, events, and what its arrays are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from etils import epath

from cascades.checkpoints import store
from cascades.runtime import files, progress
from cascades.tokenizers import vocabularies
from cascades.training import loop
from cascades.training import validation as validating
from cascades.training.utilization import Used
from cascades.types import Vocabulary

log = logging.getLogger(__name__)


def reporter(
  total: int,
  events: progress.Events,
  *,
  learning_rate: optax.Schedule,
  used: Callable[[progress.Rates | None], Used],
  check: Callable[[], None],
) -> Callable[[int, loop.Values, float], None]:
  """Lines for the terminal, and the same numbers for TensorBoard. `check` may raise, or warn."""
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
    resources = used(rates)
    log.info('%s', progress.format_line(step, total, training, rates, notes=resources.notes()))
    if validation:
      log.info('%s', progress.format_line(step, total, validation, None) + '  (validation)')
    try:
      events.write(step, values | (rates._asdict() if rates else {}) | resources.numbers())
    except OSError as error:  # a full disk is judged by the next checkpoint
      log.warning('step %d is not in the event file: %s.', step, error)

  return report


def write_down(
  directory: epath.Path,
  description: Mapping[str, Any],
  vocabulary: Vocabulary,
  models: Mapping[str, Any],
) -> None:
  """model.json, the vocabulary, and model-info.txt: every array's name, shape, type and place."""
  lines = []
  for role, params in models.items():
    leaves = jax.tree_util.tree_leaves_with_path(params)
    lines.append(f'{role}: {sum(leaf.size for _, leaf in leaves):,} parameters')
    for path, leaf in leaves:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      lines.append(f'  {name}  {leaf.shape}  {leaf.dtype}  {leaf.sharding.spec}')
  log.info('%s', '; '.join(line for line in lines if not line.startswith(' ')))
  if jax.process_index() == 0:
    store.write_description(directory, description)
    vocabularies.save(vocabulary, directory)
    files.write(directory / 'model-info.txt', '\n'.join([*lines, '']))
