"""All numbers of one curve of a chain, or of a control."""

from __future__ import annotations

from cascades import curve_metrics
from cascades.evaluation.chains import ChainCurve
from cascades.evaluation.quantities import Quantity
from cascades.frontier import Measured

CPT = (0.5, 0.8)  # shares of the gap between first and last model, as in RouteLLM
SHARES = (0.25, 0.5, 0.75)  # of the dearest model's cost, and of the gap between first and last


def of_curve(curve: ChainCurve, singles: Measured, best: int, sign: int) -> dict[Quantity, float]:
  """All numbers of a curve: between the costs of the single models, and the ends of the chain.

  Args:
    curve: The curve.
    singles: Each model alone, in the order of the chain.
    best: Index of the best single model.
    sign: 1 if a higher quality is better, else -1.
  """
  cost, quality, calls = curve.cost, sign * curve.quality, curve.shares[:, -1]
  alone = sign * singles.quality
  ends = {'small': float(alone[0]), 'large': float(alone[-1])}
  limits = {'low': float(singles.cost.min()), 'high': float(singles.cost.max())}
  reference = {'best_quality': float(alone[best]), 'best_cost': float(singles.cost[best])}
  values = {
    'area': sign * curve_metrics.area(cost, quality, **limits),
    'normalized area': sign * curve_metrics.area(cost, quality, low=0.0, high=limits['high']),
    'AIQ': sign * curve_metrics.average_improvement(cost, quality, **limits),
    'QNC': curve_metrics.quality_neutral_cost(cost, quality, **reference),
    'CostSave': curve_metrics.cost_saved(cost, quality, **reference),
    'PerfGain': curve_metrics.performance_gain(quality, best_quality=reference['best_quality']),
    'APGR': curve_metrics.average_gap_recovered(calls, quality, **ends),
    'gain over random': curve_metrics.gain_over_random(calls, quality, **ends),
  }
  metrics = {Quantity(name): value for name, value in values.items()}
  for share in CPT:
    metrics[Quantity('CPT', share)] = curve_metrics.calls_for(calls, quality, share, **ends)
  for share in SHARES:
    level = share * limits['high']
    metrics[Quantity('quality at cost', level)] = sign * curve_metrics.quality_at(
      cost, quality, level
    )
    level = ends['small'] + share * (ends['large'] - ends['small'])
    metrics[Quantity('cost at quality', sign * level)] = curve_metrics.cost_at(cost, quality, level)
  return metrics
