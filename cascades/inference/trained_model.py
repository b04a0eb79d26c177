"""A trained model as the programs that only read it have it: from a run directory, placed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from cascades import costs
from cascades.checkpoints import store
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.types import Architecture, Params, Vocabulary


class Model(NamedTuple):
  """A trained model, placed, and what a manifest says of it."""

  graph: nnx.GraphDef
  params: Params
  vocab_size: int
  vocabulary: Vocabulary
  architecture: Architecture
  described: Mapping[str, Any]


def load(
  path: str,
  which: store.Which,
  *,
  rules: partitioning.Rules,
  precision: str | None,
  weights: str | None,
) -> Model:
  """The model of a run, on the mesh that is in use.

  `precision` is the type of the activations, the model's own if None; `weights` says how its
  parameters are held, as the activations if None.
  """
  directory, step = store.locate(path, which)
  description = store.read_description(directory)
  config = configs.from_description(
    description['model'] | ({'dtype': precision} if precision else {})
  )
  graph, abstract = abstract_model(config, rules, dtype=weights or config.dtype)
  vocabulary = vocabularies.load(directory)
  if vocabulary.fingerprint != description['vocabulary']:
    raise store.CheckpointError(
      f'{directory} holds another vocabulary than its model was trained with: restore the '
      'directory, or train again.'
    )
  parameters = configs.count_parameters(config)
  described = {
    'model': description['model'],
    'parameters': parameters,
    'flops_per_token': costs.flops_per_token(parameters),
    'checkpoint': str(directory),
    'checkpoint_identity': store.identity(directory, step),
    'step': step,
    'vocabulary': vocabulary.fingerprint,
    'precision': config.dtype,
    'weights': weights or config.dtype,
  }
  params = store.restore_params(directory, abstract, which=step)
  return Model(graph, params, config.vocab_size, vocabulary, config.architecture, described)
