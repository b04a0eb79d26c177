"""Price of a prompt's own tokens, which can be counted before any answer.

What a query costs is estimated by the mean over prompts like it (`universal_routing.Pool`). Where a
model charges a price for each token that it reads, their number n(x) in place of its mean makes
that part of the estimate exact:

    c(x) = mean cost + price (n(x) - mean tokens)

Models whose tokens nobody counts are told by the length of the text,

    n(x) = a + b characters(x)

with a and b of a model by least squares over the validation prompts: a for what stands around each
text, such as a template.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Counts = Float[np.ndarray, 'V']


class Charged(NamedTuple):
  """Prompt tokens that a model charges for.

  Attributes:
    price: Price of a token.
    tokens: Tokens of each validation prompt; nan where they are not known.
    characters: Characters of each.
  """

  price: float
  tokens: Counts
  characters: Counts


class PromptTokens(NamedTuple):
  """Prompt tokens that J models charge for.

  Attributes:
    price: Price of a token of each model; 0 of models that do not charge for them.
    by_group: Mean number of tokens of each model in each group of prompts.
    line: The numbers a and b of each model.
  """

  price: Float[np.ndarray, 'J']
  by_group: Float[np.ndarray, 'J K']
  line: Float[np.ndarray, 'J 2']

  def estimate(self, characters: Float[np.ndarray, 'N']) -> Float[np.ndarray, 'N J']:
    """Tokens of prompts of so many characters for each model."""
    start, slope = self.line.T
    return np.maximum(start + np.multiply.outer(characters, slope), 0.0)

  def keep(self, models: list[int]) -> PromptTokens:
    """Those of some models."""
    return PromptTokens(*(values[models] for values in self))

  def append(self, other: PromptTokens) -> PromptTokens:
    """Those of more models."""
    return PromptTokens(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


def free(models: int, groups: int) -> PromptTokens:
  """Those of models that do not charge for them."""
  return PromptTokens(np.zeros(models), np.zeros((models, groups)), np.zeros((models, 2)))


def line(characters: Counts, tokens: Counts) -> Float[np.ndarray, '2']:
  """Least squares of a and b, b 0 or more, over the prompts whose tokens are known.

  Prompts of one length have the mean number of tokens, and so b = 0.
  """
  counted = np.isfinite(tokens)
  x, y = np.asarray(characters, float)[counted], tokens[counted]
  spread = np.sum((x - x.mean()) ** 2)
  slope = max(0.0, np.sum((x - x.mean()) * y) / spread) if spread else 0.0
  return np.array([y.mean() - slope * x.mean(), slope])


def moved(
  cost: Float[np.ndarray, 'N J'], price: Float[np.ndarray, 'J'],
  tokens: Float[np.ndarray, 'N J'], mean: Float[np.ndarray, 'N J'],
) -> Float[np.ndarray, 'N J']:  # fmt: skip
  """Costs with the prompts' own tokens in the place of the mean ones.

  Args:
    cost: Mean cost of each model on prompts like each one.
    price: Price of a token of each model.
    tokens: Tokens of each prompt for each model.
    mean: Mean tokens of prompts like it.
  """
  return np.maximum(cost + price * (tokens - mean), 0.0)
