"""Loading of trained models from run directories, for programs that only read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from flax import nnx

from cascades import costs
from cascades.checkpoints import store
from cascades.inference import memories
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.tokenizers import vocabularies
from cascades.types import Architecture, Params, Vocabulary


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A trained model in a run directory, and the types in which it is loaded.

  Attributes:
    path: Run directory, or a checkpoint in one.
    which: 'last', 'best', or the number of a step.
    precision: Type of the activations; None takes the model's own. Thresholds on log-probabilities
      drift with it, so answers are computed in float32 by default.
    weights: Type that holds the parameters: 'float32', 'bfloat16' or 'int8'; None takes that of the
      activations.
    memory: Memory whose entries change the model's distribution; by default none.
  """

  path: str
  which: store.StepSelector = 'last'
  precision: str | None = 'float32'
  weights: str | None = None
  memory: memories.Recall = dataclasses.field(default_factory=memories.Recall)


class TrainedModel(NamedTuple):
  """A trained model on the active mesh.

  Attributes:
    graph: Graph definition; `nnx.merge(graph, params)` is the model.
    params: Parameters as sharded arrays.
    vocab_size: Number of logits.
    vocabulary: Vocabulary of the training run.
    architecture: 'encoder_decoder' or 'decoder_only'.
    described: Configuration, size, checkpoint and types of the model, for manifests.
  """

  graph: nnx.GraphDef
  params: Params
  vocab_size: int
  vocabulary: Vocabulary
  architecture: Architecture
  described: Mapping[str, Any]


def load(checkpoint: Checkpoint, *, rules: partitioning.Rules) -> TrainedModel:
  """Load the model of a checkpoint onto the active mesh.

  Args:
    checkpoint: Run directory, step and types.
    rules: Sharding rules of the parameters.

  Raises:
    ValueError: if there is no such checkpoint, its files do not belong together, a type is unknown,
      or its memory is of another checkpoint.
  """
  directory, step = store.locate(checkpoint.path, checkpoint.which)
  precision, weights = checkpoint.precision, checkpoint.weights
  description = store.read_description(directory)
  config = configs.from_description(
    description['model'] | ({'dtype': precision} if precision else {})
  )
  graph, abstract = abstract_model(config, rules, dtype=weights or config.dtype)
  vocabulary = vocabularies.load(directory)
  if vocabulary.fingerprint != description['vocabulary']:
    raise store.CheckpointError(
      f'The vocabulary in {directory} is not the one that its model was trained with: restore the '
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
  if checkpoint.memory.path is not None:
    graph, params, described = memories.attach(
      graph, params, described, checkpoint.memory, config.emb_dim
    )
  return TrainedModel(graph, params, config.vocab_size, vocabulary, config.architecture, described)
