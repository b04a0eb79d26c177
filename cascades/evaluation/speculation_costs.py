"""Costs of a point of `speculate`: modeled seconds, best drafts, tokens and FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cascades import bootstrap, speculative, target_distributions
from cascades.bootstrap import Estimate
from cascades.target_distributions import RULES
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


def planned_drafts(
  latency: Mapping[str, Any], manifest: Mapping[str, Any], acceptance: float
) -> dict[str, int]:
  """Number of drafts of least modeled time at an acceptance, by size of batch.

  At most as many as steps were measured for, and 0 where the large model alone is faster and the
  rule can do without drafts; empty for points that draft nothing, or without measured steps.
  """
  point, steps = manifest['point'], latency.get('steps', {})
  drafting = steps.get(DRAFTER if 'shortlist' in manifest.get(SMALL, {}) else SMALL, {})
  if point['gamma'] is None or math.isnan(acceptance):
    return {}
  lossless = RULES[point['rule']].target is target_distributions.large
  planned = {}
  for size, by_width in steps.get(LARGE, {}).items():
    large = [by_width[width] / by_width['1'] for width in sorted(by_width, key=int)]
    if len(large) < 2 or '1' not in drafting.get(size, {}):
      continue
    planned[size] = speculative.best_gamma(
      acceptance, drafting[size]['1'] / by_width['1'], most=len(large) - 1,
      least=int(not lossless), large=large, last_draft=float(not lossless),
    )  # fmt: skip
  return planned


def relative_length(
  lengths: np.ndarray, alone: np.ndarray, counts: np.ndarray, confidence: float
) -> Estimate:
  """Tokens over those of the large model alone, with an interval of resampled rows [R, N]."""
  pairs = np.stack([lengths, alone], axis=1)
  own, reference = bootstrap.totals(counts, pairs).T
  return bootstrap.estimate(lengths.sum() / alone.sum(), own / reference, confidence=confidence)


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
