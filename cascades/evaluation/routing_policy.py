"""The file NAME.policy.json of a router: what chooses a model for each prompt, and at what price.

    {"version": 1, "router": "router.json", "sha256": ..., "price": 0.01, "encoder": null,
     "expected_cost": ..., "expected_loss": ..., "abstention": null}

The router lies beside it. A router that has changed is refused: its models may cost otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
from etils import epath

from cascades.evaluation import routers
from cascades.evaluation.routers import ClusterRouter, NonNegative, TokenCounts
from cascades.predictions.rows import Share
from cascades.runtime import files

VERSION = 1
# Name of the model that each prompt begins at, '' for nobody, by the prompts and their tokens.
Beginning: TypeAlias = Callable[[Sequence[str], TokenCounts], Sequence[str]]


class RoutingPolicy(msgspec.Struct, frozen=True):
  """Choice among the models of a router.

  Attributes:
    version: Version of the format.
    router: Name of the router's file.
    sha256: Digest of that file, which holds the digest of its arrays.
    price: Loss that a unit of cost must save.
    encoder: Folder of the encoder of the prompts; None for words.
    expected_cost: Mean cost on the validation prompts, as the router estimates it.
    expected_loss: Mean predicted loss there.
    abstention: Quality of a prompt that nobody answers; None if each prompt is answered.
  """

  version: int
  router: str
  sha256: str
  price: NonNegative
  encoder: str | None
  expected_cost: NonNegative
  expected_loss: NonNegative
  abstention: Share | None = None


def describe(
  path: epath.PathLike, price: float, encoder: str | None, abstention: float | None
) -> RoutingPolicy:
  """Policy of a router's file at a price; for the other arguments, see `RoutingPolicy`."""
  path = epath.Path(path)
  router = routers.read(path).abstaining(abstention)
  models, rows = router.choices(price), np.arange(len(router.ids))
  gamma, cost = router.on_validation
  return RoutingPolicy(
    VERSION,
    path.name,
    hashlib.sha256(path.read_bytes()).hexdigest(),
    min(price, np.finfo(float).max),
    encoder,
    float(cost[rows, models].mean()),
    float(gamma[rows, models].mean()),
    abstention,
  )


def write(path: epath.PathLike, policy: RoutingPolicy) -> None:
  """Writes a policy atomically."""
  content = msgspec.json.format(msgspec.json.encode(policy), indent=2) + b'\n'
  files.write(epath.Path(path), content)


def read(path: epath.PathLike) -> tuple[RoutingPolicy, ClusterRouter]:
  """Policy of a file, and its router, which may leave prompts to nobody if the policy does.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: The policy is damaged or of another version, or its router has changed.
  """
  path = epath.Path(path)
  try:
    policy = msgspec.json.decode(path.read_bytes(), type=RoutingPolicy)
    files.component(policy.router, 'the router of a policy')
    if policy.version != VERSION:
      raise ValueError(f'version {policy.version}')
  except ValueError as error:
    raise ValueError(
      f'{path} is no routing policy of version {VERSION}, or damaged ({error}): write it again '
      'with `python -m cascades.route`, MODE=policy.'
    ) from error
  own = path.parent / policy.router
  if hashlib.sha256(own.read_bytes()).hexdigest() != policy.sha256:
    raise ValueError(
      f'{own} has changed since {path} was written: write the policy again with MODE=policy.'
    )
  return policy, routers.read(own).abstaining(policy.abstention)
