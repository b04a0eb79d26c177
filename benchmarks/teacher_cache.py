"""Training from a teacher cache compared with training without a large model.

    python -m benchmarks.teacher_cache
    python -m benchmarks.teacher_cache --turns 40

The 25.9M-parameter T5 of `benchmarks.training_step` on generated rows of 128 + 32 tokens. Every
step takes its batch from the input pipeline, with the teacher's outputs for its rows, which are
read at random from a cache on disk. Alternating within one run: Xent, CAT-Xent from top-1 tokens,
CAT-Dist from the top 16, and CAT-Xent with the large model itself.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator
from statistics import median

import jax
import numpy as np

from benchmarks import bars, mixture, training_step
from benchmarks.bars import Measured
from benchmarks.training_step import ours
from cascades import losses
from cascades.data.corpus import Corpus
from cascades.runtime import partitioning
from cascades.tasks.task import Row, Task
from cascades.tokenizers import vocabularies
from cascades.training import teacher_cache
from cascades.training.answer_format import AnswerFormat
from cascades.training.teacher_cache import CachedAnswers
from cascades.types import Batch

LENGTHS = {'inputs': training_step.SOURCE, 'targets': training_step.TARGET}
HELD = {'top 1': AnswerFormat(), 'top 16': AnswerFormat(16)}


def corpus(directory: str, rows: int) -> Corpus:
  task = Task(
    'generated',
    ('train',),
    lambda _split: (Row(str(i), '', ('',)) for i in range(rows)),
    lambda _split: str(rows),
    tokenize=functools.partial(mixture.random_tokens, seed=0),
  )
  vocabulary = vocabularies.bytes_vocabulary()
  return Corpus(task, vocabulary, 'encoder_decoder', LENGTHS, f'{directory}/records')


def random_cache(
  directory: str, data: Corpus, contents: AnswerFormat, *, shard_rows: int = 1 << 14
) -> CachedAnswers:
  """Cache of random contents, which cost as much to read as any."""
  path = teacher_cache.location(directory, f'top_{contents.top_k}', 'train')
  lengths = data.target_lengths(data.open('train'))
  shards = -(-len(lengths) // shard_rows)
  teacher_cache.begin(
    path,
    {**contents._asdict(), 'vocab_size': training_step.VOCABULARY, 'shards': shards},
    {},
    write=True,
  )
  generator = np.random.default_rng(0)
  for index in range(shards):
    rows = lengths[index * shard_rows : (index + 1) * shard_rows]
    records = np.zeros(rows.sum(), contents.record)
    records['ids'] = generator.integers(3, training_step.VOCABULARY, records['ids'].shape)
    teacher_cache.write_shard(path, index, [str(i) for i in range(len(rows))], rows, records)
  return CachedAnswers.open(path)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rows', type=int, default=20_000)
  parser.add_argument('--turns', type=int, default=20)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', default=bars.RESULTS / 'teacher_cache.json')
  options = parser.parse_args()
  bars.use_cores(options.cores)
  small, large = training_step.MODELS['t5']
  with (
    tempfile.TemporaryDirectory() as directory,
    partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])),
  ):
    data = corpus(directory, options.rows)
    caches = {name: random_cache(directory, data, contents) for name, contents in HELD.items()}

    def feed(cache: CachedAnswers | None = None) -> Iterator[Batch]:
      """Batches as `train` takes them."""
      teacher = cache and (lambda _: cache.read)
      batches = data.training(0, batch_size=training_step.ROWS, seed=0, teacher=teacher)
      return map(partitioning.place_batch, batches)

    steps = {
      'xent': ours(small, None, losses.xent, feed()),
      'cat_xent, cache': ours(small, None, losses.cat_xent, feed(caches['top 1'])),
      'cat_dist, cache': ours(small, None, losses.cat_dist, feed(caches['top 16'])),
      'cat_xent, large model': ours(small, large, losses.cat_xent, feed()),
    }
    times = training_step.by_turns(steps, options.turns)
    sizes = {name: contents.record.itemsize for name, contents in HELD.items()}
  ratio = functools.partial(training_step.ratio, times)
  measured = [
    *(Measured(name, median(ms), 'ms') for name, ms in times.items()),
    Measured('cat_xent from a cache over xent', ratio('cat_xent, cache', 'xent'), 'x',
             at_most=1.03),
    Measured('cat_dist from a cache over xent', ratio('cat_dist, cache', 'xent'), 'x'),
    Measured('cat_xent beside the large model over a cache',
             ratio('cat_xent, large model', 'cat_xent, cache'), 'x'),
    *(Measured(f'{name}: on disk', size, 'bytes/token') for name, size in sizes.items()),
  ]  # fmt: skip
  settings = {'rows': options.rows, 'turns': options.turns, 'cores': options.cores}
  bars.report('training from a teacher cache', measured, options.output, settings)


if __name__ == '__main__':
  main()
