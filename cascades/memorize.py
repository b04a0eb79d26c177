"""Build a memory of a trained model, which `infer` adds to its distribution with MEMORY.

    python -m cascades.memorize --gin_file=runs/memorize.gin --gin_file=task.gin
      --gin.CHECKPOINT_PATH=runs/mine/small --gin.MEMORY=runs/mine/small/memory
    python -m cascades.infer ... --gin.CHECKPOINT_PATH=runs/mine/small --gin.MEMORY=...

One entry for each target token of a split: the final state that it was read out from, and the
token. Then the number of neighbors, the bandwidth and the temperature (of ResMem), or the
interpolation (of kNN-LM), are chosen among entries, each without the entries of its own row.
Rerunning the same command writes the shards that are missing.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int

from cascades import blocks, resmem
from cascades.data.corpus import Corpus, Data
from cascades.data.records import Records
from cascades.inference import memories, memory_files, memory_index, trained_model
from cascades.predictions import shards
from cascades.resmem import Datastore, Lookup
from cascades.runtime import files, locking, partitioning, progress, ranges
from cascades.runtime.partitioning import Devices
from cascades.types import Batch, Params

log = logging.getLogger(__name__)

TIMED = 64  # states of a timed lookup


@dataclasses.dataclass(frozen=True)
class Entries:
  """The entries of a memory.

  Attributes:
    directory: Directory of the memory.
    split: Split whose target tokens are the entries.
    rows: Number of rows that are drawn from the split; None for all.
    stored_tokens: Number of most probable tokens that are stored with an entry; 0 stores none, and
      reads its state out again in each lookup.
    seed: Seed of the rows, and of the queries of the tuning.
    shard_rows: Approximate number of rows of a shard.
    overwrite: Replaces a memory of another checkpoint or of other rows instead of refusing.
  """

  directory: str
  split: str = 'train'
  rows: int | None = None
  stored_tokens: int = 0
  seed: int = 0
  shard_rows: int = 4096
  overwrite: bool = False

  def __post_init__(self) -> None:
    ranges.check({'ROWS': self.rows, 'SHARD_ROWS': self.shard_rows}, least=1, integer=True)
    ranges.check({'STORED_TOKENS': self.stored_tokens, 'SEED': self.seed}, least=0, integer=True)


@dataclasses.dataclass(frozen=True)
class Tuning:
  """Choice of a lookup by leave-one-out, and the search.

  Attributes:
    queries: Number of entries that are queries.
    criterion: Error of a prediction, such as `resmem.log_loss`.
    index_above: Number of entries above which faiss searches; None searches exactly.
  """

  queries: int = 512
  criterion: resmem.Criterion = resmem.log_loss
  index_above: int | None = 1_000_000

  def __post_init__(self) -> None:
    ranges.check({'QUERIES': self.queries, 'INDEX_ABOVE': self.index_above}, least=1, integer=True)


def memorize(
  checkpoint: trained_model.Checkpoint,
  memory: Entries,
  *,
  data: Data,
  tuning: Tuning = Tuning(),
  devices: Devices = Devices(),
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write the memory of a model.

  Args:
    checkpoint: The model, without a memory.
    memory: Directory and rows.
    data: The task. Each target has at most `lengths['targets']` tokens.
    tuning: Choice of neighbors, bandwidth, temperature and interpolation.
    devices: Mesh and sharding rules.
    provenance: Gives the configuration and versions that are recorded.

  Raises:
    ValueError: naming the difference, if the directory holds a memory of another checkpoint or of
      other rows; or if the task is a mixture, or has too few entries.
    ImportError: if the memory needs an index and faiss is not installed.
  """
  directory = files.absolute(memory.directory)
  with devices.use():
    model = trained_model.load(checkpoint, rules=devices.rules)
    corpus = data.corpus(model.vocabulary, model.architecture)
    if len(corpus.tasks) > 1:
      raise ValueError(
        f'A memory is of one task, and TASK is a mixture of {len(corpus.tasks)}: name one of them.'
      )
    (records,) = corpus.open(memory.split).per_task
    numbers = np.random.default_rng(memory.seed).permutation(len(records))[: memory.rows]
    numbers.sort()
    merged = nnx.merge(model.graph, model.params)
    identity = {
      **memories.model_keys(model.described, width=merged.config.emb_dim),
      'top': min(memory.stored_tokens, model.vocab_size),
      'task': corpus.tasks[0].name,
      'definition': corpus.tasks[0].version,
      'records': records.directory.name,
      'rows': memory_files.digest(json.dumps(numbers.tolist())),
      'max_tokens': data.lengths['targets'],
      'shards': -(-len(numbers) // memory.shard_rows),
    }
    with locking.held(directory):
      manifest = memory_files.begin(directory, identity, overwrite=memory.overwrite)
      _write_entries(directory, manifest, model, corpus, records, numbers, data.batch_size)
      _choose(directory, manifest, merged, memory.seed, tuning, provenance)


def _write_entries(
  directory: epath.Path,
  manifest: Mapping[str, Any],
  model: trained_model.TrainedModel,
  corpus: Corpus,
  records: Records,
  numbers: Int[np.ndarray, 'n'],
  batch_size: int,
) -> None:
  """Write the shards of entries that are missing."""
  missing = memory_files.missing(directory, manifest)
  if missing:
    (directory / memory_files.LOOKUPS).unlink(missing_ok=True)
    (directory / memory_files.INDEX).unlink(missing_ok=True)
  read = reader(model, manifest['top'])
  spans = {index: shards.shard_rows(len(numbers), index, manifest['shards']) for index in missing}
  title = f'{records.manifest.task} {records.manifest.split} row'
  count: progress.Counted[tuple[int, tuple[np.ndarray, ...]]] = progress.Counted(
    title, sum(map(len, spans.values())), lambda entry: (1, len(entry[1][1]))
  )
  for index, span in spans.items():
    rows = entries(read, corpus, records, numbers[span.start : span.stop], batch_size)
    columns = [(np.full(len(arrays[1]), row), *arrays) for row, arrays in count(rows)]
    names = ('rows', 'keys', 'tokens', 'top_tokens', 'top_logprobs')[: len(columns[0])]
    joined = map(np.concatenate, zip(*columns, strict=True))
    memory_files.write_shard(directory, manifest, index, dict(zip(names, joined, strict=True)))


def reader(model: trained_model.TrainedModel, top: int) -> Callable[[Batch], Any]:
  """Function from batches to final states and, with `top`, the most probable tokens of each."""

  @jax.jit
  def read(params: Params, batch: Batch) -> Any:
    merged = nnx.merge(model.graph, params)
    hidden = merged.hidden(batch)
    states = hidden.astype(jnp.float32)
    if not top:
      return states, batch.targets

    def most_probable(table: Any, block: Array) -> tuple[Array, Array]:
      values, tokens = jax.lax.top_k(jax.nn.log_softmax(merged.readout(block, table)), top)
      return tokens, values

    table = jax.tree.leaves(merged.table)[0]
    axes = partitioning.block_axes(len(batch.targets), table.shape)
    length = blocks.default_length(len(hidden), len(table), axes)
    stored = blocks.map_blocks(
      most_probable, merged.table, hidden, batch.weights > 0, length=length, axes=axes
    )
    return states, batch.targets, *stored

  return lambda batch: partitioning.fetch(read(model.params, partitioning.place_whole(batch)))


def entries(
  read: Callable[[Batch], Any],
  corpus: Corpus,
  records: Records,
  numbers: Int[np.ndarray, 'n'],
  batch_size: int,
) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
  """Each row's number and arrays, with an entry for each of its target tokens."""
  for rows, _, batch in corpus.candidates(records, numbers, batch_size=batch_size):
    arrays = read(batch)
    for position, row in enumerate(rows.tolist()):
      mask = np.asarray(batch.weights)[position] > 0
      yield row, tuple(array[position, mask] for array in arrays)


def _choose(
  directory: epath.Path,
  manifest: Mapping[str, Any],
  model: Any,
  seed: int,
  tuning: Tuning,
  provenance: Callable[[], Mapping[str, str]],
) -> None:
  """Choose lookups, measure bytes and milliseconds, and complete the memory."""
  arrays = memory_files.read(directory, manifest)
  keys, count = arrays['keys'], len(arrays['keys'])
  index = directory / memory_files.INDEX
  is_indexed = tuning.index_above is not None and count > tuning.index_above
  if is_indexed and not index.exists():
    memory_index.build(keys, index, seed=seed)
  if not is_indexed:
    index.unlink(missing_ok=True)
  search = memory_index.search(index) if is_indexed else resmem.nearest
  memory = memories.on_device(arrays)
  sample = np.random.default_rng(seed).permutation(count)[: tuning.queries]
  chosen, errors = choose(model, memory, arrays['rows'], sample, tuning.criterion)
  milliseconds = 1e3 * _seconds(model, memory, chosen['resmem'], search)
  approximate = {
    'cells_read': 1 / 16, 'recall': memory_index.recall(search, keys, chosen['resmem'].k)
  } if is_indexed else None  # fmt: skip
  stored = [array for name, array in arrays.items() if name != 'rows']
  bytes_taken = memory_files.size(directory, stored)
  memory_files.write_lookups(
    directory, manifest,
    {
      'chosen': {name: lookup._asdict() for name, lookup in chosen.items()},
      'errors': errors,
      'queries': len(sample),
      'entries': count,
      'bytes': bytes_taken,
      'milliseconds_per_token': milliseconds,
      'index': approximate,
      **provenance(),
    },
  )  # fmt: skip
  described = {name: ' '.join(f'{x:g}' for x in lookup if x) for name, lookup in chosen.items()}
  log.info(
    '%d entries in %s: %s bytes, %.2f ms a token of %d at a time; chosen %s; errors %s%s',
    *(count, directory, f'{bytes_taken:,}', milliseconds, TIMED, described),
    {name: round(error, 4) for name, error in errors.items()},
    f'; recall of the index {approximate["recall"]:.3f}' if approximate else '',
  )


def choose(
  model: Any,
  memory: Datastore,
  rows: Int[np.ndarray, 'N'],
  sample: Int[np.ndarray, 'Q'],
  criterion: resmem.Criterion,
) -> tuple[dict[str, Lookup], dict[str, float]]:
  """Lookups of least error by combination, and the errors, with that of the model alone.

  A query's neighbors are entries of other rows: positions of its own would not be in the memory of
  a new text.

  Args:
    model: The model alone.
    memory: The entries.
    rows: Number of the row of each entry.
    sample: Entries that are queries.
    criterion: Error of a prediction.

  Raises:
    ValueError: There are no entries of other rows.
  """
  _, groups, sizes = np.unique(rows, return_inverse=True, return_counts=True)
  available = len(rows) - int(sizes.max())
  ks = [k for k in resmem.NEIGHBORS if k <= available]
  if not ks:
    raise ValueError(
      f'Leave-one-out leaves out the row of a query, and the memory has {len(sizes)} row: give it '
      'two or more (ROWS).'
    )
  keys, labels = memory.keys[sample], memory.tokens[sample]
  owners = jnp.asarray(groups, jnp.int32)
  neighbors = resmem.nearest(keys, memory.keys, ks[-1], excluded=owners[sample], groups=owners)
  distance = resmem.distances(keys, memory.keys, neighbors)
  graph, params = nnx.split(model)
  arrays = (params, memory, keys, distance, neighbors)  # constants would be compiled anew each time

  @functools.partial(jax.jit, static_argnames=('k', 'mix'))
  def augmented(
    arrays: Any, sigma: Array, option: Array, *, k: int, mix: str
  ) -> Float[Array, 'Q V']:
    params, memory, keys, distance, neighbors = arrays
    alone = nnx.merge(graph, params).readout
    given: dict[str, Any] = {mix: option}
    lookup = Lookup(k, sigma, **given)
    return resmem.next_token(alone(keys), distance, neighbors, memory, alone, lookup)

  def predict(lookup: Lookup) -> Float[Array, 'Q V']:
    mix = 'temperature' if lookup.interpolation is None else 'interpolation'
    sigma, option = jnp.float32(lookup.sigma), jnp.float32(getattr(lookup, mix))
    return augmented(arrays, sigma, option, k=lookup.k, mix=mix)

  alone = jax.nn.softmax(model.readout(keys))
  chosen: dict[str, Lookup] = {}
  errors = {'alone': float(criterion(alone, labels).mean())}
  median = float(jnp.median(distance))
  for name in memories.COMBINATIONS:
    lookups = list(resmem.grid(median, available, interpolate=name == 'knn_lm', neighbors=ks))
    chosen[name], means = resmem.tune(predict, labels, lookups, criterion=criterion)
    errors[name] = min(means)
  return chosen, errors


def _seconds(model: Any, memory: Datastore, lookup: Lookup, search: resmem.Search) -> float:
  """Seconds that the memory adds to a token, of `TIMED` at a time: least of three runs."""
  graph, params = nnx.split(model)
  states = jnp.resize(memory.keys, (TIMED, memory.keys.shape[1]))

  @jax.jit
  def remembered(params: Any, memory: Datastore, states: Array) -> Array:
    return memories.logprobs(states, memory, nnx.merge(graph, params).readout, lookup, search)

  @jax.jit
  def alone(params: Any, states: Array) -> Array:
    return nnx.merge(graph, params).readout(states)

  def least(function: Callable[..., Array], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(3):
      began = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      times.append(time.perf_counter() - began)
    return min(times)

  with_memory = least(remembered, params, memory, states)
  return max(with_memory - least(alone, params, states), 0.0) / TIMED


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.memorize')
