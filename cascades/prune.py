"""Make a small model from some layers of a large one, as a start for training.

    python -m cascades.prune --gin_file=runs/prune.gin --gin.CHECKPOINT_PATH=runs/smollm2
      --gin.MODEL_DIR=runs/smollm2_small --gin.HEAD=10 --gin.TAIL=2

keeps the first ten layers and the last two. MODEL_DIR can then be the INITIAL_CHECKPOINT_PATH of a
training run, whose model is the one in its model.json; manifest.json there lists the layers.
--gin.LAYERS=@pruning.chosen with --gin.pruning.chosen.numbers=[0,1,2,29] chooses others, and
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
from cascades.checkpoints import made_runs, store
from cascades.data.corpus import Data
from cascades.interop import companions
from cascades.models import configs, pruning
from cascades.models.abstract import abstract_model
from cascades.runtime import files, locking, partitioning, ranges
from cascades.runtime.partitioning import Devices
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
  data: Data | None = None,
  task_rows: int = 512,
  which: store.StepSelector = 'last',
  overwrite: bool = False,
  devices: Devices = Devices(),
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write the remaining weights of `checkpoint_path` as checkpoint 0 of `model_dir`.

  Args:
    checkpoint_path: Run directory, or a checkpoint in one.
    model_dir: Run directory to write.
    layers: Chooses from each stack, given its number of layers.
    mlp_dim: Number of channels of each MLP, those that the model's loss on training rows of the
      task depends on most; None keeps all.
    data: The rows that channels are judged by; needed with `mlp_dim` only.
    task_rows: Number of training rows that channels are judged by.
    which: 'last', 'best', or the number of a step.
    overwrite: Replace another pruned or converted model in `model_dir`.
    devices: Mesh and sharding rules.
    provenance: Gives the operative configuration, which is written to config.gin.

  Raises:
    ValueError: for layers or channels that the model does not have.
    CheckpointError: if `model_dir` holds another checkpoint, or other files.
  """
  ranges.check({'MLP_DIM': mlp_dim, 'TASK_ROWS': task_rows}, least=1, integer=True)
  if mlp_dim and not (data and data.task and data.lengths):
    raise ValueError('MLP_DIM needs TASK and TASK_FEATURE_LENGTHS, to judge channels by its rows.')
  source, step = store.locate(checkpoint_path, which)
  directory = files.absolute(model_dir)
  large_description = store.read_description(source)
  large = configs.from_description(large_description['model'])
  vocabulary = vocabularies.load(source)
  remaining = pruning.select_layers(large, layers)
  small = pruning.pruned_config(large, remaining, mlp_dim)
  description = {**large_description, 'model': configs.describe(small)}
  description.pop(store.LORA, None)  # adapters are merged when they are restored
  choice = {
    'pruned_from': str(source),
    'step': step,
    'checkpoint_identity': store.identity(source, step),
    'layers': {stack: [*numbers] for stack, numbers in remaining.items()},
    'mlp_dim': small.mlp_dim,
    'task': data.required_task.name if data and mlp_dim else None,
  }
  if made_runs.check(directory, description, choice, source=source, overwrite=overwrite):
    log.info('%s holds a checkpoint already.', model_dir)
    return
  with devices.use(), locking.held(directory):
    graph, abstract = abstract_model(large, devices.rules)
    _, abstract_small = abstract_model(small, devices.rules)
    weights = store.restore_params(source, abstract, which=step)
    importance = None
    if mlp_dim and data:
      corpus = data.corpus(vocabulary, large.architecture)
      batches = corpus.training(0, batch_size=data.batch_size, seed=0)
      importance = pruning.channel_importance(
        token_loss(train_step.ModelDef(graph, large.vocab_size)),
        weights,
        map(partitioning.place_batch, itertools.islice(batches, -(-task_rows // data.batch_size))),
        remaining,
      )
    select = functools.partial(pruning.prune, layers=remaining, mlp_dim=mlp_dim)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_small)
    params = jax.jit(select, out_shardings=shardings)(weights, importance=importance)
    made_runs.begin(directory, description, choice, overwrite=overwrite)
    if jax.process_index() == 0:
      vocabularies.save(vocabulary, directory)
    companions.inherit(source, directory)
    store.make(directory, params, description, choice, config=provenance().get('config', ''))
  log.info(
    '%s: layers %s; %s of %s parameters',
    *(model_dir, remaining),
    *(f'{configs.count_parameters(config):,}' for config in (small, large)),
  )


def token_loss(model: train_step.ModelDef) -> pruning.Loss:
  """Loss of `pruning.channel_importance`: the model's cross-entropy, summed over a batch."""

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
