"""Score the training rows of a task with a small model, so that a larger one trains on the best.

    python -m cascades.select --gin_file=runs/select.gin --gin_file=task.gin
      --gin.CHECKPOINT_PATH=runs/lm/nano --gin.SELECTED=runs/lm/scores
    python -m cascades.train ... --gin.SELECTED=runs/lm/scores --gin.SELECTED_ROWS=0.2

A row scores high if it is challenging, yet learnable: the median loss of its tokens, after a filter
of those that the small model does not expect (`selection`). Writes one score a row to
SELECTED/<task>/train, from which `train` takes the best; other numbers of rows need no second run.
Rerunning the same command computes the shards that are missing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cascades import blocks, selection
from cascades.data import scores
from cascades.data.corpus import Corpus, Data
from cascades.data.records import Records
from cascades.inference import trained_model
from cascades.runtime import partitioning, progress, ranges
from cascades.runtime.partitioning import Devices
from cascades.types import Batch, Params

log = logging.getLogger(__name__)


def select(
  checkpoint: trained_model.Checkpoint,
  directory: str,
  *,
  data: Data,
  k: int = 10,
  score: selection.RowScore = selection.zeroed_median,
  shard_rows: int = 1 << 14,
  overwrite: bool = False,
  devices: Devices = Devices(),
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write the scores of all training rows of a task, or of each task of a mixture.

  Args:
    checkpoint: The small model that scores; an early checkpoint ranks difficulty for a new model
      better than a late one, as the paper has it.
    directory: Directory of the scores.
    data: The rows; `lengths` must be those of training.
    k: A token is learnable if it is among the k most probable ones.
    score: `selection.zeroed_median` or `selection.filtered_median`, of losses, learnable and valid
      tokens.
    shard_rows: Number of rows of a shard.
    overwrite: Replaces scores of another model, task, length or kind instead of refusing.
    devices: Mesh and sharding rules.
    provenance: Gives the configuration and versions that are recorded in the manifest.

  Raises:
    ValueError: naming the difference, if the directory holds scores of another model, task,
      vocabulary, length or kind.
  """
  ranges.check({'TOP_K': k, 'SHARD_ROWS': shard_rows}, least=1, integer=True)
  with devices.use():
    model = trained_model.load(checkpoint, rules=devices.rules)
    corpus = data.corpus(model.vocabulary, model.architecture)
    scorer = _scorer(model, k, score)
    described = {name: value for name, value in model.described.items() if name != 'checkpoint'}
    for records in corpus.open('train').per_task:
      (task,) = [task for task in corpus.tasks if task.name == records.manifest.task]
      origin = {
        **described,
        **corpus.identity(task, 'train'),
        'top_k': k,
        'score': getattr(score, '__name__', str(score)),
        'rows': len(records),
      }
      table = scores.ScoreTable(
        scores.location(directory, task.name), origin, len(records), shard_rows
      )
      if jax.process_index() == 0:
        table.begin({'checkpoint': checkpoint.path, **provenance()}, overwrite=overwrite)
      _write(table, records, functools.partial(_scored, corpus, scorer, data.batch_size, records))


def _scorer(
  model: trained_model.TrainedModel, k: int, score: selection.RowScore
) -> Callable[[Batch], Float[np.ndarray, 'B']]:
  """A function of a batch to the scores of its rows, on every process."""

  @jax.jit
  def scored(params: Params, batch: Batch) -> Array:
    small = nnx.merge(model.graph, params)
    hidden, table = small.hidden(batch), small.table
    axes = partitioning.block_axes(len(hidden), jax.tree.leaves(table)[0].shape)
    valid = batch.weights > 0

    def read(table: Array, tokens: tuple[Array, Array]) -> tuple[Array, Array]:
      hidden, targets = tokens
      logits = small.readout(hidden, table)
      learnable = selection.learnable(logits, targets, k=k)
      return selection.token_losses(logits, targets), learnable

    length = blocks.default_length(len(hidden), model.vocab_size, axes)
    tokens = blocks.map_blocks(
      read, table, (hidden, batch.targets), valid, length=length, axes=axes
    )
    return score(*tokens, valid)

  return lambda batch: partitioning.fetch(scored(model.params, partitioning.place_whole(batch)))


def _scored(
  corpus: Corpus,
  scorer: Callable[[Batch], Float[np.ndarray, 'B']],
  batch_size: int,
  records: Records,
  rows: range,
) -> Iterator[tuple[Float[np.ndarray, 'n'], int]]:
  """Yields the scores of the rows of each batch, and the number of their tokens."""
  for begin, batch in zip(
    range(rows.start, rows.stop, batch_size),
    corpus.ordered(records, rows, batch_size=batch_size),
    strict=True,
  ):
    count = min(batch_size, rows.stop - begin)
    yield scorer(batch)[:count], int(np.sum(np.asarray(batch.weights) > 0))


def _rows_and_tokens(batch: tuple[Float[np.ndarray, 'n'], int]) -> tuple[int, int]:
  return len(batch[0]), batch[1]


def _write(
  table: scores.ScoreTable,
  records: Records,
  scored: Callable[[range], Iterator[tuple[Float[np.ndarray, 'n'], int]]],
) -> None:
  """Writes the shards that are missing."""
  # All must score the same shards, and others may see another disk than the one that writes.
  present = np.array([True] * len(table.shards))
  present[table.missing()] = False
  missing = np.flatnonzero(~partitioning.from_process_0(present)).tolist()
  report = progress.Counted(
    f'{records.manifest.task} row',
    sum(len(table.shards[index]) for index in missing),
    _rows_and_tokens,
  )
  for index in missing:
    rows = table.shards[index]
    batches = list(report(scored(rows)))
    if jax.process_index() == 0:
      ids = [record.row.id for record in records.read(rows)]
      table.write(index, ids, np.concatenate([values for values, _ in batches]))
  if jax.process_index() == 0:
    written = table.read()
    quartiles = np.quantile(written, [0.25, 0.5, 0.75]) if np.isfinite(written).all() else ()
    log.info(
      '%s: %d rows scored in %s (%d of %d shards existed)%s',
      *(records.name, len(written), table.directory, len(table.shards) - len(missing)),
      len(table.shards),
      '; quartiles ' + ', '.join(f'{value:.3f}' for value in quartiles) if len(quartiles) else '',
    )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.select')
