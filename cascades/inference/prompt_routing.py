"""Choice of a model for each prompt by the file of a routing policy, for programs that serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades import prompt_drift
from cascades.evaluation import routing_policy
from cascades.evaluation.routers import TokenCounts
from cascades.evaluation.routing_policy import Beginning


class PromptChoice(NamedTuple):
  """Model of a prompt.

  Attributes:
    model: Name of the model; empty if nobody answers.
    cost: Its cost of a query; its mean cost on prompts like this one, where it differs by prompt,
      at the price of this prompt's own tokens, if there is one.
    predicted_loss: Mean loss that it is predicted to have on prompts like this one.
    drift: Share of the validation prompts that are nearer to another one than this prompt is to
      any, see `prompt_drift`.
  """

  model: str
  cost: float
  predicted_loss: float
  drift: float


class Choose(Protocol):
  """Function from prompts to their models."""

  def __call__(
    self, prompts: Sequence[str], counts: TokenCounts = MappingProxyType({})
  ) -> list[PromptChoice]:
    """Choices.

    Args:
      prompts: The prompts.
      counts: Their tokens by model as far as they are known, see `routers.ClusterRouter.tokens`.
    """
    ...


def open_choice(path: epath.PathLike) -> Beginning:
  """Function from prompts and their tokens to the names of their models; see `open_policy`."""
  choose = open_policy(path)
  return lambda prompts, counts: [choice.model for choice in choose(prompts, counts)]


def open_policy(path: epath.PathLike) -> Choose:
  """Function from prompts, and from their tokens if they are known, to their models.

  Args:
    path: File that `python -m cascades.route` wrote with MODE=policy.

  Raises:
    CheckpointError: The folder of the encoder holds none.
    FileNotFoundError: A file is missing.
    ValueError: A file is damaged, or the router has changed.
  """
  policy, router = routing_policy.read(path)
  embed: Callable[[Sequence[str]], Float[np.ndarray, 'N D']] = router.embed
  if policy.encoder is not None:
    from cascades.inference import encoders  # policies of words start without JAX

    embed = encoders.open_embedder(policy.encoder)
  rule, reference, pool = router.rule(policy.price), router.reference(), router.pool

  def choose(
    prompts: Sequence[str], counts: TokenCounts = MappingProxyType({})
  ) -> list[PromptChoice]:
    if not prompts:
      return []
    vectors, tokens = embed(prompts), router.tokens(prompts, counts)
    models, (losses, costs) = rule(vectors, tokens), router.predict(vectors, tokens)
    drift = prompt_drift.drift(router.similarities(prompts, vectors), reference)
    return [
      PromptChoice(pool.names[m], float(cost[m]), float(own[m]), float(d))
      for m, cost, own, d in zip(models, costs, losses, drift, strict=True)
    ]

  return choose
