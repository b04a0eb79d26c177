"""Checks of the arrays of a router's file, which may be damaged or of another router."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cascades.prompt_tokens import PromptTokens


def check(
  psi: np.ndarray, group_cost: np.ndarray | None, tokens: PromptTokens | None,
  arrays: Mapping[str, np.ndarray], *, models: int, rows: int,
) -> None:  # fmt: skip
  """Raise ValueError unless the arrays fit together.

  Args:
    psi: Mean losses.
    group_cost: Mean costs; None of models of one cost each.
    tokens: Prompt tokens that are charged for, if any are.
    arrays: The other arrays, see `routers.ClusterRouter`.
    models: Number of models.
    rows: Number of validation prompts.
  """
  count = len(arrays['centroids'])
  shapes = psi.shape, arrays['losses'].shape, arrays['groups'].shape
  groups = count * len(arrays.get('coarse_centroids', [None]))
  if shapes != ((models, groups), (rows, models), (rows,)) or not models:
    raise ValueError(f'{models} models and {rows} validation prompts have arrays of {shapes}')
  if group_cost is not None and (
    group_cost.shape != psi.shape or not (np.isfinite(group_cost) & (group_cost >= 0)).all()
  ):
    raise ValueError('the costs by group are no finite numbers of 0 or more of each model')
  if tokens is not None:
    _check_tokens(tokens, psi, arrays)
  if ('coarse_groups' in arrays) != ('coarse_centroids' in arrays):
    raise ValueError('a hierarchy has coarse_centroids and coarse_groups')
  expected = {
    'theta': arrays['centroids'].shape, 'bias': (count,), 'memberships': (rows, count),
    'parents': (count,), 'coarse_groups': (rows,), 'characters': (rows,),
    'prompt_tokens': (rows, models),
  }  # fmt: skip
  for name, shape in expected.items():
    if name in arrays and arrays[name].shape != shape:
      raise ValueError(f'{name} have the shape {arrays[name].shape} in the place of {shape}')
  if ('theta' in arrays) != ('bias' in arrays) or ('theta' in arrays) != ('memberships' in arrays):
    raise ValueError('a learned map has theta, bias and memberships')


def _check_tokens(tokens: PromptTokens, psi: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
  if absent := {'prompt_tokens', 'characters'} - {*arrays}:
    raise ValueError(f'prices of prompt tokens, and no {" and no ".join(sorted(absent))}')
  shapes = tuple(values.shape for values in tokens)
  if shapes != (psi.shape[:1], psi.shape, (len(psi), 2)):
    raise ValueError(f'prompt tokens of {len(psi)} models have the shapes {shapes}')
  if not all(np.isfinite(values).all() for values in tokens) or (tokens.price < 0).any():
    raise ValueError('prices or numbers of prompt tokens are no finite numbers')
