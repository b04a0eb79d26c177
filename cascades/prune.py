"""Make a small model of some layers of a large one, as a start for training.

    python -m cascades.prune --gin_file=runs/prune.gin --gin.CHECKPOINT_PATH=runs/smollm2
      --gin.MODEL_DIR=runs/smollm2_small --gin.HEAD=10 --gin.TAIL=2

keeps the first ten layers and the last two. MODEL_DIR can then be the INITIAL_CHECKPOINT_PATH of a
training run whose model is the one in its model.json; manifest.json there says what was kept.
--gin.LAYERS=@pruning.chosen with --gin.pruning.chosen.numbers=[0,1,2,29] chooses otherwise, and
--gin.MLP_DIM=1024 keeps the 1,024 channels of each MLP that matter most to the rows of a task
(--gin_file=task.gin).
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Mapping

import jax
from jax import Array

from cascades import losses
from cascades.checkpoints import store
from cascades.data import materialize
from cascades.data.corpus import Corpus
from cascades.interop import companions
from cascades.models import configs, pruning
from cascades.models.abstract import abstract_model
from cascades.runtime import files, partitioning
from cascades.tasks.task import Mixture, Task
from cascades.tokenizers import vocabularies
from cascades.training import train_step
from cascades.types import Batch, Params

log = logging.getLogger(__name__)


def prune(
  checkpoint_path: str,
  model_dir: str,
  *,
  layers: pruning.LayerChoice,
  mlp_dim: int | None = None,
  task: Task | Mixture | None = None,
  task_feature_lengths: Mapping[str, int] | None = None,
  task_rows: int = 512,
  batch_size: int = 8,
  which: store.Which = 'last',
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  records_dir: str = materialize.DIRECTORY,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write what is kept of `checkpoint_path` as checkpoint 0 of `model_dir`.

  `layers` chooses from each stack, given its number of layers. With `mlp_dim` so many channels of
  each MLP stay: those that the model's loss on `task_rows` training rows of `task` depends on most.
  Raises ValueError for a choice that the model does not have, CheckpointError if `model_dir` holds
  another one.
  """
  if mlp_dim and not (task and task_feature_lengths):
    raise ValueError('MLP_DIM needs TASK and TASK_FEATURE_LENGTHS, to see what channels do.')
  source, step = store.locate(checkpoint_path, which)
  directory = files.absolute(model_dir)
  described = store.read_description(source)
  large = configs.from_description(described['model'])
  vocabulary = vocabularies.load(source)
  kept = pruning.select_layers(large, layers)
  small = pruning.pruned_config(large, kept, mlp_dim)
  description = {**described, 'model': configs.describe(small)}
  description.pop(store.LORA, None)  # merged
  choice = {
    'pruned_from': str(source),
    'step': step,
    'checkpoint_identity': store.identity(source, step),
    'layers': {stack: [*numbers] for stack, numbers in kept.items()},
    'mlp_dim': small.mlp_dim,
    'task': task.name if task and mlp_dim else None,
  }
  if store.is_made(directory, description, choice):
    log.info('%s holds a checkpoint already.', model_dir)
    return
  with partitioning.use(mesh(), rules):
    graph, abstract = abstract_model(large, rules)
    _, places = abstract_model(small, rules)
    whole = store.restore_params(source, abstract, which=step)
    importance = None
    if mlp_dim and task and task_feature_lengths:
      corpus = Corpus(task, vocabulary, large.architecture, task_feature_lengths, records_dir)
      batches = corpus.training(0, batch_size=batch_size, seed=0)
      some = itertools.islice(batches, -(-task_rows // batch_size))
      importance = pruning.channel_importance(
        token_loss(train_step.ModelDef(graph, large.vocab_size)),
        whole,
        map(partitioning.place_batch, some),
        kept,
      )
    keep = functools.partial(pruning.prune, layers=kept, mlp_dim=mlp_dim)
    params = jax.jit(keep, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, places))(
      whole, importance=importance
    )
    if jax.process_index() == 0:
      vocabularies.save(vocabulary, directory)
    companions.inherit(source, directory)
    store.make(directory, params, description, choice, config=provenance().get('config', ''))
  counts = [configs.count_parameters(config) for config in (large, small)]
  log.info('%s: layers %s; %s of %s parameters', model_dir, kept, *(f'{n:,}' for n in counts[::-1]))


def token_loss(model: train_step.ModelDef) -> pruning.Loss:
  """The model's own cross-entropy, summed over a batch."""

  def loss(params: Params, batch: Batch) -> Array:
    totals = train_step.loss_totals(
      model.bind(params),
      None,
      batch,
      None,
      loss=losses.xent,
      vocab_size=model.vocab_size,
      block_length=batch.targets.shape[1],
    )
    return totals['loss']

  return loss


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.prune')
