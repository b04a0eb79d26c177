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

from cascades import files, losses, partitioning, train_step
from cascades.checkpoints import huggingface, store
from cascades.models import configs, pruning
from cascades.tasks import records, vocabularies
from cascades.tasks.corpus import Corpus
from cascades.tasks.task import Mixture, Task
from cascades.types import Batch, Params

log = logging.getLogger(__name__)


def prune(
  checkpoint_path: str,
  model_dir: str,
  *,
  layers: pruning.Layers,
  mlp_dim: int | None = None,
  task: Task | Mixture | None = None,
  task_feature_lengths: Mapping[str, int] | None = None,
  task_rows: int = 512,
  batch_size: int = 8,
  which: store.Which = 'last',
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  records_dir: str = records.DIRECTORY,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write what is kept of `checkpoint_path` as checkpoint 0 of `model_dir`.

  `layers` chooses from each stack, given its number of layers. With `mlp_dim` so many channels of
  each MLP stay: those that the model's loss on `task_rows` training rows of `task` depends on most.
  Raises ValueError for a choice that the model does not have, CheckpointError if `model_dir` holds
  another one.
  """
  source, step = store.locate(checkpoint_path, which)
  directory = files.absolute(model_dir)
  described = store.read_description(source)
  large = configs.from_description(described['model'])
  vocabulary = vocabularies.load(source)
  kept = pruning.kept_layers(large, layers)
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
  store.check_description(directory, description)
  store.check_description(directory, choice, store.MANIFEST)
  if store.latest(directory) is not None:
    log.info('%s holds a checkpoint already.', model_dir)
    return
  with store.Checkpoints(directory) as checkpoints, partitioning.use(mesh(), rules):
    graph, abstract = partitioning.abstract_model(large, rules)
    _, places = partitioning.abstract_model(small, rules)
    whole, importance = store.restore_params(source, abstract, which=step), None
    if mlp_dim is not None:
      if task is None or task_feature_lengths is None:
        raise ValueError('MLP_DIM needs TASK and TASK_FEATURE_LENGTHS, to see what channels do.')
      corpus = Corpus(task, vocabulary, large.architecture, task_feature_lengths, records_dir)
      batches = itertools.islice(
        corpus.training(0, batch_size=batch_size, seed=0), -(-task_rows // batch_size)
      )
      loss = token_loss(train_step.Definition(graph, large.vocab_size))
      placed = map(partitioning.place_batch, batches)
      importance = pruning.channel_importance(loss, whole, placed, kept)
    keep = functools.partial(pruning.prune, kept=kept, mlp_dim=mlp_dim)
    params = jax.jit(keep, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, places))(
      whole, importance=importance
    )
    if jax.process_index() == 0:
      store.write_description(directory, description)
      vocabularies.save(vocabulary, directory)
      huggingface.pass_on(source, directory)
      store.write_description(directory, choice, store.MANIFEST)
      files.write(directory / 'config.gin', provenance().get('config', ''))
    checkpoints.save(0, {'params': params})
  counts = [configs.count_parameters(config) for config in (large, small)]
  log.info('%s: layers %s; %s of %s parameters', model_dir, kept, *(f'{n:,}' for n in counts[::-1]))


def token_loss(model: train_step.Definition) -> pruning.Loss:
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
