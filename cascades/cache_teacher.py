"""Run a large model once over a task, and store its answers for training a small model.

    python -m cascades.cache_teacher --gin_file=runs/cache_teacher.gin
      --gin.CHECKPOINT_PATH=runs/demo/large --gin.TEACHER_CACHE=runs/demo/cache
      --gin.MIXTURE_OR_TASK_NAME=cmudict_g2p --gin.TASK_FEATURE_LENGTHS="{'inputs':16,'targets':16}"
    python -m cascades.train ... --gin.LOSS=@losses.cat_xent --gin.TEACHER_CACHE=runs/demo/cache

Writes TEACHER_CACHE/<task>/<split>/ (see `teacher_cache`), for every epoch, loss and seed. Without
TOP_K it holds the first choice for each target token, enough for cat_xent; with TOP_K=16 the 16
largest log-probabilities, for dist and cat_dist too, whose difference from the large model itself
`teachers.TopK` bounds; with TAIL_SAMPLES=8 also samples of the others, without a difference on
average. With REFERENCE_CHECKPOINT_PATH it also holds the divergence of a reference model, for
adaspec. Rerunning the same command writes the shards that are missing, and several that run at once
divide them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from cascades import blocks, divergences
from cascades.data.corpus import Corpus, Data
from cascades.data.records import Records
from cascades.inference import trained_model
from cascades.runtime import claims, files, partitioning, profiling, progress, ranges
from cascades.runtime.partitioning import Devices
from cascades.teachers import Top1
from cascades.tokenizers import vocabularies
from cascades.training import teacher_cache
from cascades.training.answer_format import AnswerFormat
from cascades.types import Batch, Params

log = logging.getLogger(__name__)

MUCH = 0.05  # probability beyond the first choices that is worth samples


@dataclasses.dataclass(frozen=True)
class Answers:
  """Contents of a teacher cache: what is stored of the distribution of each token.

  Attributes:
    top_k: Number of log-probabilities per token; None stores the first choice alone.
    dtype: Type that holds the log-probabilities: 'float16', 'bfloat16', 'float32', or 'uint8' for
      one byte each, with ids of two bytes if they fit.
    vocab_size: Number of leading logits to choose among, if the small model has fewer entries.
    reference: Run directory of a reference model, whose divergence from the large one is stored.
    tail_samples: Number of samples of the tokens beyond `top_k`, stored with their
      log-probabilities; None for none.
  """

  top_k: int | None = None
  dtype: str = 'float16'
  vocab_size: int | None = None
  reference: str | None = None
  tail_samples: int | None = None

  def __post_init__(self) -> None:
    sizes = {'VOCAB_SIZE': self.vocab_size, 'TAIL_SAMPLES': self.tail_samples}
    ranges.check(sizes, least=1, integer=True)
    asked = {
      'REFERENCE_CHECKPOINT_PATH asks for the divergence of a reference model': self.reference,
      'TAIL_SAMPLES asks for samples beyond the first choices': self.tail_samples,
    }
    for what in (what for what, given in asked.items() if given and self.top_k is None):
      raise ValueError(
        f'{what}, and TOP_K=None stores first choices alone: set TOP_K, such as TOP_K=16.'
      )

  def entries(self, available: int) -> int:
    """The number of entries to choose among. Raises ValueError if TOP_K does not fit it."""
    entries = min(self.vocab_size or available, available)
    if self.top_k is not None and not 1 <= self.top_k <= entries:
      raise ValueError(
        f'TOP_K is {self.top_k}; it must be from 1 to {entries}, or None for first choices alone.'
      )
    if self.tail_samples and self.top_k == entries:
      raise ValueError(
        f'TOP_K={entries} stores all entries, and TAIL_SAMPLES={self.tail_samples} asks for '
        'samples of others: set TAIL_SAMPLES=None, or a smaller TOP_K.'
      )
    return entries


def cache_teacher(
  checkpoint: trained_model.Checkpoint,
  directory: str,
  *,
  data: Data,
  answers: Answers = Answers(),
  splits: Sequence[str] = ('train', 'validation'),
  shard_rows: int = 1 << 14,
  overwrite: bool = False,
  lease: float = claims.LEASE,
  devices: Devices = Devices(),
  profile_steps: str | None = None,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> None:
  """Write a large model's answers to the target tokens of `splits`.

  Args:
    checkpoint: The large model. With `precision` None and `weights` 'float32' it computes as it
      does when training runs beside it.
    directory: Directory of the cache.
    data: The rows; `lengths` must be those of training.
    answers: What is stored of each token.
    splits: Names of splits; a task of a mixture that lacks one is left out.
    shard_rows: Number of rows of a shard.
    overwrite: Replaces answers of another model, task, length or format instead of refusing.
    lease: Seconds of silence after which the shard of another program is taken up.
    devices: Mesh and sharding rules.
    profile_steps: Batches to be traced by the profiler, as '10:15'.
    provenance: Gives the configuration and versions that are recorded in the manifest.

  Raises:
    ValueError: naming the difference, if the directory holds answers of another model, task,
      vocabulary, length or format.
  """
  ranges.check({'SHARD_ROWS': shard_rows}, least=1, integer=True)
  with (
    devices.use(),
    profiling.Profiler(files.absolute(directory) / 'profile', profile_steps) as profiler,
  ):
    model = trained_model.load(checkpoint, rules=devices.rules)
    entries = answers.entries(model.vocab_size)
    reference = answers.reference and _reference(answers.reference, checkpoint, model, devices)
    settings = {
      **model.described,
      'checkpoint_identity': _identity(model),
      'vocab_size': entries,
      'top_k': answers.top_k,
      'dtype': answers.dtype,
      'shard_rows': shard_rows,
      'reference_identity': reference and _identity(reference),
      'tail_samples': answers.tail_samples,
    }
    encoding = AnswerFormat.of(settings)
    read = _reader([model, reference] if reference else [model], encoding, entries)
    corpus = data.corpus(model.vocabulary, model.architecture)
    writes = []
    for task, task_splits in data.required_task.task_splits(splits):
      for split in task_splits:
        (records,) = corpus.open(split, tasks=[task]).per_task
        lengths = corpus.target_lengths(records)
        sizes = {
          'rows': len(lengths),
          'tokens': int(lengths.sum()),
          'shards': -(-len(lengths) // shard_rows),
          'bytes_per_token': encoding.record.itemsize,
        }
        location = teacher_cache.location(directory, task.name, split)
        identity = settings | corpus.identity(task, split) | sizes
        with claims.alone(location.parent, f'{split}.begun', lease):
          _write_manifest(location, identity, provenance(), model, overwrite=overwrite)
        answered = functools.partial(
          _answered,
          corpus,
          records,
          batch_size=data.batch_size,
          answers=read,
          profiler=profiler,
        )
        write = _shard_writer(location, records, lengths, encoding, shard_rows, lease, answered)
        writes.append(write)
    unfinished = [write for write in writes if not write(wait=False)]
    for write in unfinished:  # what other programs held
      write(wait=True)


def _write_manifest(
  location: epath.Path,
  identity: Mapping[str, Any],
  provenance: Mapping[str, str],
  model: trained_model.TrainedModel,
  *,
  overwrite: bool,
) -> None:
  """Write the manifest and the vocabulary; raise if other ones exist and are to be kept."""
  # The same checkpoint in another directory is the same model.
  compared = {name: value for name, value in identity.items() if name != 'checkpoint'}
  tail = teacher_cache.SAMPLED_TAIL if identity['tail_samples'] else teacher_cache.TAIL
  notes = {'tail': tail, 'checkpoint': identity['checkpoint'], **provenance}
  first = jax.process_index() == 0
  teacher_cache.begin(location, compared, notes, write=first, overwrite=overwrite)
  if first:
    vocabularies.save(model.vocabulary, location)


def _identity(model: trained_model.TrainedModel) -> str:
  return teacher_cache.fingerprint(model.described['checkpoint_identity'])


def _reference(
  path: str, like: trained_model.Checkpoint, model: trained_model.TrainedModel, devices: Devices
) -> trained_model.TrainedModel:
  """Load the reference model in the types of the large one; raise if it reads other tokens."""
  checkpoint = dataclasses.replace(like, path=path, which='last')
  reference = trained_model.load(checkpoint, rules=devices.rules)
  described = lambda m: (m.vocabulary.fingerprint, m.architecture, m.vocab_size)
  if described(reference) != described(model):
    raise ValueError(
      f'the reference model {path} reads other tokens than the large model: its vocabulary has '
      f"{reference.vocab_size} entries, the large model's {model.vocab_size}, and both must have "
      'the same vocabulary and architecture (REFERENCE_CHECKPOINT_PATH).'
    )
  return reference


def _reader(
  models: Sequence[trained_model.TrainedModel], encoding: AnswerFormat, vocab_size: int
) -> Callable[[Batch, np.ndarray], Any]:
  """A function that computes the answers to a batch, [B, T, ...], on every process.

  It is given the numbers of the rows, from which samples are drawn. The first model answers; a
  second one is the reference.
  """

  @jax.jit
  def read(params: Sequence[Params], batch: Batch, rows: jax.Array) -> Any:
    merged = [nnx.merge(model.graph, own) for model, own in zip(models, params, strict=True)]
    hidden = [model.hidden(batch) for model in merged]
    axes = partitioning.block_axes(len(hidden[0]), jax.tree.leaves(merged[0].table)[0].shape)

    def answer(tables: Sequence[Any], tokens: tuple[Sequence[jax.Array], jax.Array]) -> Any:
      hidden, offsets = tokens
      logits = [
        model.readout(x, table)[..., :vocab_size]
        for model, x, table in zip(merged, hidden, tables, strict=True)
      ]
      answers = encoding.reduce(logits[0], offsets)
      if isinstance(answers, Top1) or not encoding.reference:
        return answers
      unused = jnp.zeros(logits[1].shape[:-1], int)
      outcomes = answers._replace(sample_ids=None, sample_logprobs=None)
      return answers._replace(reference=divergences.forward_kl(logits[1], (outcomes,), unused))

    return blocks.map_blocks(
      answer,
      [model.table for model in merged],
      (hidden, _offsets(rows, batch.targets.shape[1])),
      batch.weights > 0,
      length=blocks.default_length(len(batch.targets), vocab_size, axes),
      axes=axes,
    )

  params = [model.params for model in models]
  return lambda *rows: partitioning.fetch(read(params, *partitioning.place_whole(rows)))


def _offsets(rows: jax.Array, length: int) -> jax.Array:
  """A uniform number [B, T] for each token, whatever batch its row is in."""
  draw = lambda row: jax.random.uniform(jax.random.fold_in(jax.random.key(0), row), (length,))
  return jax.vmap(draw)(rows)


def _answered(
  corpus: Corpus,
  records: Records,
  rows: range,
  *,
  batch_size: int,
  answers: Callable[[Batch, np.ndarray], Any],
  profiler: profiling.Profiler,
) -> Iterator[tuple[int, Any]]:
  """Yield the number of rows of each batch, and the answers to all their target tokens."""
  for count, batch in enumerate(corpus.ordered(records, rows, batch_size=batch_size), 1):
    first = rows.start + (count - 1) * batch_size
    with profiler.step(count):
      columns = answers(batch, first + np.arange(len(batch.targets), dtype=np.int32))
    targets = np.asarray(batch.weights) > 0
    tokens = jax.tree.map(lambda column, targets=targets: np.asarray(column)[targets], columns)
    yield min(batch_size, len(rows) - (count - 1) * batch_size), tokens


def _count_rows_and_tokens(batch: tuple[int, Any]) -> tuple[int, int]:
  return batch[0], len(batch[1].ids)


def _shard_writer(
  location: epath.Path,
  records: Records,
  lengths: np.ndarray,
  encoding: AnswerFormat,
  shard_rows: int,
  lease: float,
  answered: Callable[[range], Iterator[tuple[int, Any]]],
) -> Callable[..., bool]:
  """A function that writes the shards that are missing, and is False if other programs hold some.

  With `wait` it waits for those, and takes up what is lost.
  """
  shards = {
    index: range(begin, min(begin + shard_rows, len(records)))
    for index, begin in enumerate(range(0, len(records), shard_rows))
  }
  complete = teacher_cache.complete_shards(location, len(shards))
  # All must answer the same shards, and others may see another disk than the one that writes.
  needed = partitioning.from_process_0(np.array([index not in complete for index in shards]))
  missing = {index: shards[index] for index in np.flatnonzero(needed).tolist()}
  existing = len(shards) - len(missing)
  damaged = teacher_cache.described_shards(location) & set(missing)
  report = progress.Counted(
    f'{records.manifest.task} {records.manifest.split} row',
    sum(map(len, missing.values())),
    _count_rows_and_tokens,
  )

  def written(numbers: Sequence[int]) -> set[int]:
    own = teacher_cache.described_shards(location) & set(numbers)
    done = {i for i in own if teacher_cache.is_complete(location, i, content=i in damaged)}
    report.add(sum(len(missing[index]) for index in done))
    return done

  masses: list[tuple[float, int]] = []  # beyond the first choices, and tokens, of own shards

  def write(*, wait: bool) -> bool:
    with claims.Claims(location, lease) as claimed:
      for index, rows in claimed.shares(missing, '{:05d}'.format, written, wait=wait):
        packed = np.concatenate([encoding.pack(own) for _, own in report(answered(rows))])
        if encoding.top_k:
          masses.append((float(packed['tail'].sum()), len(packed)))
        if jax.process_index() == 0:
          ids = [record.row.id for record in records.read(rows)]
          teacher_cache.write_shard(location, index, ids, lengths[rows.start : rows.stop], packed)
      if missing:
        return False
      if jax.process_index() == 0:
        claimed.clear(map('{:05d}'.format, shards))
        size = sum(path.stat().length for path in location.iterdir())
        log.info(
          '%s: %d rows, %d tokens, %s bytes in %s; %d bytes a token, %.1f with index and ids '
          '(%d of %d shards existed)',
          *(records.name, len(records), lengths.sum(), f'{size:,}', location),
          *(encoding.record.itemsize, size / lengths.sum(), existing, len(shards)),
        )
        if masses:
          log.info(_tail(records.name, encoding, *np.sum(masses, axis=0)))
    return True

  return write


def _tail(name: str, encoding: AnswerFormat, mass: float, tokens: float) -> str:
  """Say how much lies beyond the first choices, and what to do if that is much."""
  line = (
    f'{name}: {mass / tokens:.1%} of the probability is beyond the first {encoding.top_k} tokens'
  )
  if mass / tokens < MUCH or encoding.samples:
    return line
  return f'{line}; dist and cat_dist spread it evenly, and TAIL_SAMPLES=8 would sample it'


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.cache_teacher')
