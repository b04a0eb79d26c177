"""Run a large model once over a task, and keep what training a small one beside it needs of it.

    python -m cascades.cache_teacher --gin_file=runs/cache_teacher.gin
      --gin.CHECKPOINT_PATH=runs/demo/large --gin.TEACHER_CACHE=runs/demo/cache
      --gin.MIXTURE_OR_TASK_NAME=cmudict_g2p --gin.TASK_FEATURE_LENGTHS="{'inputs':16,'targets':16}"
    python -m cascades.train ... --gin.LOSS=@losses.cat_xent --gin.TEACHER_CACHE=runs/demo/cache

Leaves TEACHER_CACHE/<task>/<split>/ (see `teacher_cache`), for every epoch, loss and seed. Without
TOP_K the first choice for each target token, enough for cat_xent; with TOP_K=16 the log-
probabilities of so many, for dist and cat_dist too, whose difference from the large model itself
`teachers.TopK` bounds. An interrupted run goes on with the shards that are missing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from cascades import blocks
from cascades.checkpoints import store
from cascades.data import materialize
from cascades.data.corpus import Corpus
from cascades.data.records import Records
from cascades.inference import trained_model
from cascades.runtime import files, partitioning, profiling, progress
from cascades.tasks.task import Mixture, Task
from cascades.tokenizers import vocabularies
from cascades.training import teacher_cache
from cascades.training.teacher_cache import AnswerFormat
from cascades.types import Batch, Params

log = logging.getLogger(__name__)


def cache_teacher(
  checkpoint_path: str,
  directory: str,
  *,
  task: Task | Mixture,
  task_feature_lengths: Mapping[str, int],
  splits: Sequence[str] = ('train', 'validation'),
  top_k: int | None = None,
  dtype: str = 'float16',
  vocab_size: int | None = None,
  which: store.Which = 'last',
  precision: str | None = None,
  weights: str = 'float32',
  batch_size: int = 256,
  shard_rows: int = 1 << 14,
  mesh: Callable[[], jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  records_dir: str = materialize.DIRECTORY,
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write the model's answers to the target tokens of `splits`; see the module.

  Log-probabilities are held in `dtype`. `vocab_size` cuts the logits, if the small model has fewer
  entries. The activations are of type `precision`, by default the model's own, and the parameters
  held as `weights` says: the defaults are those of training beside the large model.

  Raises ValueError, naming what differs, if the directory holds answers of another model, task,
  vocabulary, length or kind.
  """
  with (
    partitioning.use(mesh(), rules),
    profiling.Profiler(files.absolute(directory) / 'profile', profile_steps) as profiler,
  ):
    model = trained_model.load(
      checkpoint_path, which, rules=rules, precision=precision, weights=weights
    )
    entries = min(vocab_size or model.vocab_size, model.vocab_size)
    held = _held(top_k, dtype, entries)
    answers = _reader(model, held, entries)
    corpus = Corpus(task, model.vocabulary, model.architecture, task_feature_lengths, records_dir)
    made_by = {
      **model.described,
      'checkpoint_identity': teacher_cache.fingerprint(model.described['checkpoint_identity']),
      'vocab_size': entries,
      'top_k': top_k,
      'dtype': dtype,
      'shard_rows': shard_rows,
    }
    for one, task_splits in task.task_splits(splits):
      for split in task_splits:
        (part,) = corpus.open(split, tasks=[one]).per_task
        place = teacher_cache.location(directory, one.name, split)
        lengths = corpus.target_lengths(part)
        identity = made_by | corpus.identity(one, split) | _sizes(lengths, shard_rows, held)
        _begin(place, identity, provenance(), model)
        read = functools.partial(
          _answered, corpus, part, batch_size=batch_size, answers=answers, profiler=profiler
        )
        _write(place, part, lengths, held, shard_rows, read)


def _held(top_k: int | None, dtype: str, vocab_size: int) -> AnswerFormat:
  if top_k is not None and not 1 <= top_k <= vocab_size:
    raise ValueError(
      f'TOP_K is {top_k}; it must be from 1 to {vocab_size}, or None for first choices alone.'
    )
  return AnswerFormat(top_k, dtype)


def _sizes(lengths: np.ndarray, shard_rows: int, held: AnswerFormat) -> dict[str, Any]:
  """What a manifest says of rows, tokens and bytes."""
  return {
    'rows': len(lengths),
    'tokens': int(lengths.sum()),
    'shards': -(-len(lengths) // shard_rows),
    'bytes_per_token': held.record.itemsize,
  }


def _begin(
  place: epath.Path,
  identity: Mapping[str, Any],
  provenance: Mapping[str, str],
  model: trained_model.Model,
) -> None:
  """The manifest and the vocabulary, unless they are there."""
  moved = ('checkpoint',)  # the same model at another place is the same
  kept = {name: value for name, value in identity.items() if name not in moved}
  notes = {'tail': teacher_cache.TAIL, 'checkpoint': identity['checkpoint'], **provenance}
  first = jax.process_index() == 0
  teacher_cache.begin(place, kept, notes, write=first)
  if first:
    vocabularies.save(model.vocabulary, place)


def _reader(
  model: trained_model.Model, held: AnswerFormat, vocab_size: int
) -> Callable[[Batch], Any]:
  """What is kept of the model's answers to a batch, [B, T, ...], on every process."""

  @jax.jit
  def read(params: Params, batch: Batch) -> Any:
    large = nnx.merge(model.graph, params)
    hidden, table = large.hidden(batch), large.table
    axes = partitioning.block_axes(len(hidden), jax.tree.leaves(table)[0].shape)
    return blocks.map_blocks(
      lambda table, hidden: held.reduce(large.readout(hidden, table)[..., :vocab_size]),
      table,
      hidden,
      batch.weights > 0,
      length=blocks.default_length(len(hidden), vocab_size, axes),
      axes=axes,
    )

  return lambda batch: partitioning.fetch(read(model.params, partitioning.place_whole(batch)))


def _answered(
  corpus: Corpus,
  part: Records,
  rows: range,
  *,
  batch_size: int,
  answers: Callable[[Batch], Any],
  profiler: profiling.Profiler,
) -> Iterator[tuple[int, Any]]:
  """For each batch of these rows how many it has, and the answers to all their target tokens."""
  for count, batch in enumerate(corpus.ordered(part, rows, batch_size=batch_size), 1):
    with profiler.step(count):
      found = answers(batch)
    targets = np.asarray(batch.weights) > 0
    kept = jax.tree.map(lambda column, targets=targets: np.asarray(column)[targets], found)
    yield min(batch_size, len(rows) - (count - 1) * batch_size), kept


def _size(found: tuple[int, Any]) -> tuple[int, int]:
  """How many rows, and tokens of them."""
  return found[0], len(found[1].ids)


def _write(
  place: epath.Path,
  part: Records,
  lengths: np.ndarray,
  held: AnswerFormat,
  shard_rows: int,
  answered: Callable[[range], Iterator[tuple[int, Any]]],
) -> None:
  """The shards that are missing."""
  shards = {
    index: range(begin, min(begin + shard_rows, len(part)))
    for index, begin in enumerate(range(0, len(part), shard_rows))
  }
  done = teacher_cache.complete_shards(place, len(shards))
  # All must answer the same shards, and others may see another disk than the one that writes.
  needed = partitioning.from_process_0(np.array([index not in done for index in shards]))
  missing = {index: shards[index] for index in np.flatnonzero(needed).tolist()}
  report = progress.counted(
    f'{part.manifest.task} {part.manifest.split} row',
    sum(map(len, missing.values())),
    _size,
  )
  for index, rows in missing.items():
    records = [held.pack(found) for _, found in report(answered(rows))]
    if jax.process_index() == 0:
      ids = [record.row.id for record in part.read(rows)]
      teacher_cache.write_shard(
        place, index, ids, lengths[rows.start : rows.stop], np.concatenate(records)
      )
  if jax.process_index() == 0:
    size = sum(path.stat().length for path in place.iterdir())
    log.info(
      '%s: %d rows, %d tokens, %s bytes in %s; %d bytes a token, %.1f with index and ids '
      '(%d of %d shards were there)',
      *(part.name, len(part), lengths.sum(), f'{size:,}', place, held.record.itemsize),
      *(size / lengths.sum(), len(shards) - len(missing), len(shards)),
    )


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.cache_teacher')
