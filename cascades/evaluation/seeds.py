"""Averages over training seeds of one recipe, with the uncertainty of both examples and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cascades import bootstrap
from cascades.types import Curve

FEWEST = 5  # seeds that show how much seeds vary


class Sampled(NamedTuple):
  """Curve of all examples and those of resamples, with the models' contributions; see `Cascade`."""

  curve: Curve
  resamples: bootstrap.Resamples
  small_contribution: Float[np.ndarray, 'M']
  large_contribution: Float[np.ndarray, 'M']


def members(
  models: Sequence[str], recipes: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
  """Models by recipe, in the order of the models; a model of no recipe is one by itself.

  Args:
    models: Names of all models.
    recipes: Models that differ in their training seeds only, by the name of their recipe.

  Raises:
    ValueError: if a recipe has the name of a model, an unknown model or one of another recipe.
  """
  recipe_of: dict[str, str] = {}
  for recipe, seeds in recipes.items():
    for model in seeds:
      if model not in models or model in recipe_of or recipe in models:
        raise ValueError(
          f'The recipe {recipe!r} has the training seeds {", ".join(seeds)}; they must be small '
          f'models, each of one recipe, and the recipe none: the models are {", ".join(models)}.'
        )
      recipe_of[model] = recipe
  names = dict.fromkeys(recipe_of.get(model, model) for model in models)
  return {name: tuple(m for m in models if recipe_of.get(m, m) == name) for name in names}


def average(sampled: Sequence[Sampled], *, seed: Sequence[int]) -> Sampled:
  """Mean over training seeds, and resamples of seeds and examples; see `bootstrap.over_seeds`.

  Thresholds are nan: each seed has its own at a deferral rate.

  Args:
    sampled: Each seed's curves, of the same examples and on the same resamples.
    seed: Seed of the draws of training seeds.
  """
  own = [seed_curves.curve for seed_curves in sampled]
  rate = np.unique(np.concatenate([curve.deferral_rate for curve in own]))

  def mean(values: Sequence[Float[np.ndarray, 'M']]) -> Float[np.ndarray, 'P']:
    read = [np.interp(rate, c.deferral_rate, column) for c, column in zip(own, values, strict=True)]
    return np.mean(read, axis=0)

  return Sampled(
    Curve(
      threshold=np.full(len(rate), np.nan),
      deferral_rate=rate,
      quality=mean([curve.quality for curve in own]),
      cost=mean([curve.cost for curve in own]),
    ),
    bootstrap.over_seeds([seed_curves.resamples for seed_curves in sampled], seed=seed),
    mean([seed_curves.small_contribution for seed_curves in sampled]),
    mean([seed_curves.large_contribution for seed_curves in sampled]),
  )
