"""Findings of a comparison in words: the first lines of a report."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cascades.evaluation.comparison import Cascade, Comparison
from cascades.evaluation.quantities import LARGE
from cascades.reporting import operating_point, summary


def sentences(comparison: Comparison) -> list[str]:
  """Says whether deferral can gain for each model and axis, and which models cheap answers beat."""
  return [
    *(_gain(comparison, comparison.at(model)) for model in comparison.flops),
    *operating_point.of_other_axes(comparison),
    *_baselines(comparison),
  ]


def _gain(comparison: Comparison, cascade: Cascade) -> str:
  show = summary.quality(comparison)
  sign = 1 if comparison.metric.higher_is_better else -1
  curve = sign * cascade.curve.quality
  small, large = cascade.curve.quality[0], cascade.curve.quality[-1]
  names = f'the large model ({show(large)}) is not better than {cascade.model} ({show(small)})'
  best = int(np.argmax(curve))
  at = f'{summary.percent(cascade.curve.deferral_rate[best])} deferred'
  peak = f'{show(cascade.curve.quality[best])} with {at}'
  by = f'{cascade.score!r}'
  if curve[-1] <= curve[0] and best == 0:
    return (
      f'Alone, {names}, and no threshold can gain here: let {cascade.model} answer everything, or '
      'train a better large model first.'
    )
  if curve[-1] <= curve[0]:
    return (
      f'Alone, {names}. Deferral by {by} can gain only where the two err on different examples: at '
      f'best {peak}, a threshold that was chosen on these same rows.'
    )
  if best == len(curve) - 1:
    cost = summary.amount(comparison.large_flops)
    return (
      f'The large model alone ({show(large)} at {cost} FLOPs per token) lies above every cascade '
      f'with {cascade.model} ({show(small)} alone): deferral by {by} saves cost, not errors.'
    )
  gain = f'reaches at best {peak}, a threshold that was chosen on these same rows.'
  if curve[best] == curve[-1]:
    gain = f'reaches the quality of the large model with {at} and never exceeds it.'
  return (
    f'The large model alone reaches {show(large)}, {cascade.model} {show(small)}; deferral by {by} '
    f'{gain}'
  )


def _baselines(comparison: Comparison) -> Iterator[str]:
  """Cheap answers that a model does not beat."""
  show = summary.quality(comparison)
  sign = 1 if comparison.metric.higher_is_better else -1
  for task, baselines in summary.baselines_by_task(comparison).items():
    of_task = task if len(comparison.sizes) > 1 else None
    for name, value in baselines.items():
      alone = {
        model: summary.quality_alone(comparison, model, of_task)
        for model in (*comparison.flops, LARGE.name)
      }
      if beaten := [model for model, own in alone.items() if sign * own < sign * value]:
        yield (
          f'{name} reaches {show(value)} on task {task}, better than {", ".join(beaten)}: such a '
          'model has not learned the task.'
        )
