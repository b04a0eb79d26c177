"""Costs of a point of `speculate`: modeled seconds, and FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cascades.types import Predictions

SMALL, LARGE, DRAFTER, SEQUENTIAL = 'small', 'large', 'drafter', 'token_'


def modeled_seconds(
  latency: Mapping[str, Any], manifest: Mapping[str, Any], calls: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Mean seconds per answer, from calls times measured steps; none that lack a measurement.

  A model's first call reads the prompt. Drafts are steps of the small model with its shortlist,
  where it has one.
  """
  steps, prompts = latency.get('steps', {}), latency.get('prompts', {})
  point = manifest['point']
  if 'shortlist' in manifest.get(SMALL, {}):
    calls = {DRAFTER if model == SMALL else model: own for model, own in calls.items()}
  widths = {SMALL: '1', DRAFTER: '1', LARGE: str((point['gamma'] or 0) + 1)}
  return {
    size: sum(
      float(np.mean((own > 0) * prompts[model][size]))
      + float(np.mean(np.maximum(own - 1, 0))) * steps[model][size][widths[model]]
      for model, own in calls.items()
    )
    for size in steps.get(LARGE, {})
    if all(
      widths[m] in steps.get(m, {}).get(size, {}) and size in prompts.get(m, {}) for m in calls
    )
  }


def flops(table: Predictions, point: Mapping[str, Any], calls: Mapping[str, np.ndarray]) -> float:
  """Mean FLOPs of an answer; a token cascade's large model is charged for all tokens if called."""
  own = float(table.manifest['flops_per_token'])
  if point['rule'] == SMALL and point['gamma'] is None:
    return float(calls[SMALL].mean()) * own
  small = float(table.manifest.get('small', {}).get('flops_per_token', 0.0))
  # The first call reads the prompt, and gives one token as those of a model alone do.
  read = np.minimum(calls[LARGE], 1) + np.maximum(calls[LARGE] - 1, 0) * ((point['gamma'] or 0) + 1)
  if point['rule'].startswith(SEQUENTIAL) and point['gamma'] is None:
    read = np.where(calls[LARGE] > 0, table.lengths, 0)
  return float(calls[SMALL].mean()) * small + float(read.mean()) * own
