"""Choice of a model for each prompt by the file of a routing policy, for programs that serve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades import prompt_drift
from cascades.evaluation import routing_policy


class PromptChoice(NamedTuple):
  """Model of a prompt.

  Attributes:
    model: Name of the model; empty if nobody answers.
    cost: Its cost of a query; its mean cost on prompts like this one, where it differs by prompt.
    predicted_loss: Mean loss that it is predicted to have on prompts like this one.
    drift: Share of the validation prompts that are nearer to another one than this prompt is to
      any, see `prompt_drift`.
  """

  model: str
  cost: float
  predicted_loss: float
  drift: float


def open_choice(path: epath.PathLike) -> Callable[[Sequence[str]], list[str]]:
  """Function from prompts to the names of their models; see `open_policy`."""
  choose = open_policy(path)
  return lambda prompts: [choice.model for choice in choose(prompts)]


def open_policy(path: epath.PathLike) -> Callable[[Sequence[str]], list[PromptChoice]]:
  """Function from prompts to their models.

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

  def choose(prompts: Sequence[str]) -> list[PromptChoice]:
    if not prompts:
      return []
    vectors = embed(prompts)
    models, (losses, costs) = rule(vectors), router.predict(vectors)
    drift = prompt_drift.drift(router.similarities(prompts, vectors), reference)
    return [
      PromptChoice(pool.names[m], float(cost[m]), float(own[m]), float(d))
      for m, cost, own, d in zip(models, costs, losses, drift, strict=True)
    ]

  return choose
