"""Sentences tokenized per second while a split is materialized, and by the libraries alone.

    python -m benchmarks.tokenizing --text ../shared/data/wmt/newstest2021.en-ja.src.en

The text (default: generated words) is cut into sentences of 145 characters, and a SentencePiece
model is trained on it. A complete shard (ids, text records, and checksums) is timed on one core and
alternates with the library alone, which only computes ids. Then a split of several shards, with as
many processes as cores, and the vocabularies inside tf.data, as SeqIO calls them. `--tokenizer`
adds a tokenizer.json, its folder, or a GGUF file.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np
import sentencepiece

from benchmarks import bars
from benchmarks.bars import Measured
from cascades.data import materialize, shards
from cascades.tasks.task import Row, Task, both
from cascades.tasks.tokenize import ROWS_PER_SHARD
from cascades.tokenizers import train_sentencepiece, vocabularies
from cascades.types import Vocabulary

CHARACTERS = 145
SENTENCES_PER_SECOND = 40_000
TOGETHER = 256  # sentences per call of the library, as in `materialize`

_SYLLABLES = [
  f'{first}{then}' for first in 'bcdfghlmnprstvw' for then in ('a', 'e', 'i', 'o', 'er', 'ing')
]

Encode = Callable[[Sequence[str]], object]


def generated(words: int) -> str:
  """Words of one to four syllables; the n-th most frequent has probability ~ 1 / n."""
  draw = random.Random(0)
  lexicon = [''.join(draw.choices(_SYLLABLES, k=draw.randint(1, 4))) for _ in range(20_000)]
  weights = [1 / rank for rank in range(1, len(lexicon) + 1)]
  return ' '.join(draw.choices(lexicon, weights, k=words))


def cut(text: str) -> list[str]:
  """Cut the text into sentences of equal length."""
  ends = range(CHARACTERS, len(text) + 1, CHARACTERS)
  return [text[end - CHARACTERS : end] for end in ends]


def task(sentences: Sequence[str], count: int) -> Task:
  """Task of `count` rows that cycles through the sentences."""

  def rows(_split: str) -> Iterator[Row]:
    for number, sentence in enumerate(itertools.islice(itertools.cycle(sentences), count)):
      yield Row(str(number), sentence, ('yes',))

  return Task('sentences', ('train',), rows, lambda _split: f'{count}')


def bytes_alone(sentences: Sequence[str]) -> object:
  return [np.frombuffer(sentence.encode(), np.uint8) for sentence in sentences]


def rate(count: int, call: Callable[[], object]) -> float:
  start = time.perf_counter()
  call()
  return count / (time.perf_counter() - start)


def by_turns(
  name: str, vocabulary: Vocabulary, alone: Encode, rows: Sequence[Row], turns: int
) -> Iterator[Measured]:
  """Rates of writing a shard and of the library alone."""
  sentences = [row.inputs for row in rows]

  def encode() -> None:
    for begin in range(0, len(sentences), TOGETHER):
      alone(sentences[begin : begin + TOGETHER])

  rates = []
  for _ in range(turns):
    with tempfile.TemporaryDirectory() as directory:
      complete = rate(
        len(rows), lambda: shards.write(rows, both(vocabulary), pathlib.Path(directory), 0)
      )
    rates.append((complete, rate(len(rows), encode)))
  wholes, alones = zip(*rates, strict=True)
  share = median(complete / bare for complete, bare in rates)
  yield Measured(
    f'{name}: a shard, one core',
    median(wholes),
    'sentences/s',
    at_least=SENTENCES_PER_SECOND,
    note=f'best {max(wholes):,.0f}; {share:.2f} of the library alone',
  )
  best = f'best {max(alones):,.0f}'
  yield Measured(f'{name}: the library alone, one core', median(alones), 'sentences/s', note=best)


def split(name: str, vocabulary: Vocabulary, task: Task, count: int) -> Measured:
  """Rate of writing a split of several shards with one process per core."""
  with tempfile.TemporaryDirectory() as directory:
    measured_rate = rate(
      count, lambda: materialize.materialize(task, 'train', both(vocabulary), directory)
    )
  processes = f'{os.cpu_count()} processes, their start included'
  return Measured(
    f'{name}: a split of {count:,} rows', measured_rate, 'sentences/s', note=processes
  )


def in_tensorflow(name: str, vocabulary: Vocabulary, sentences: Sequence[str]) -> Measured:
  """Rate of `Dataset.map` on all cores, after its first rows."""
  import tensorflow as tf

  from cascades.tasks import seqio_tasks

  encode = seqio_tasks.vocabulary(vocabulary).encode_tf
  data = tf.data.Dataset.from_tensor_slices(list(sentences))
  tokens = data.repeat().map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(256)
  rows = iter(tokens.take(2 * len(sentences)))
  for _ in sentences:
    next(rows)
  measured_rate = rate(len(sentences), lambda: [None for _ in rows])
  return Measured(
    f'{name}: in tf.data', measured_rate, 'sentences/s', note=f'{os.cpu_count()} cores'
  )


def given(path: pathlib.Path) -> Vocabulary:
  if path.suffix == '.gguf':
    return vocabularies.gguf(path)
  return vocabularies.huggingface(path)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--text', nargs='*', default=[], type=pathlib.Path, help='UTF-8 files')
  parser.add_argument('--tokenizer', type=pathlib.Path, help='tokenizer of a model')
  parser.add_argument('--pieces', type=int, default=4000, help='of the model (4000)')
  parser.add_argument('--rows', type=int, default=ROWS_PER_SHARD, help='of a shard')
  parser.add_argument('--shards', type=int, default=8, help='of the split (8)')
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--output', default=bars.RESULTS / 'tokenizing.json')
  options = parser.parse_args()
  logging.disable(logging.WARNING)
  text = ' '.join(path.read_text(encoding='utf-8') for path in options.text) or generated(100_000)
  sentences = cut(' '.join(text.split()))
  with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory) / 'sentences.model'
    pieces = train_sentencepiece.train_sentencepiece(sentences, file, size=options.pieces)
    processor = sentencepiece.SentencePieceProcessor(str(file))
    tokenizers: dict[str, tuple[Vocabulary, Encode]] = {
      'bytes': (vocabularies.bytes_vocabulary(), bytes_alone),
      'SentencePiece': (pieces, lambda batch: processor.Encode(list(batch), num_threads=1)),
    }
    if options.tokenizer:
      brought = given(options.tokenizer)
      tokenizers['--tokenizer'] = (brought, brought.encode_all)
    rows = list(task(sentences, options.rows).rows('train'))
    cores = os.sched_getaffinity(0)
    bars.use_cores(1)
    measured = []
    for name, (vocabulary, alone) in tokenizers.items():
      measured += by_turns(name, vocabulary, alone, rows, options.turns)
    os.sched_setaffinity(0, cores)
    count = options.shards * options.rows
    large_task = task(sentences, count)
    measured += [
      split(name, vocabulary, large_task, count) for name, (vocabulary, _) in tokenizers.items()
    ]
    sample = [row.inputs for row in rows[:4096]]
    measured += [
      in_tensorflow(name, vocabulary, sample) for name, (vocabulary, _) in tokenizers.items()
    ]
  tokens = np.mean([len(pieces.encode(sentence)) for sentence in sentences])
  title = f'Sentences of {CHARACTERS} characters, {tokens:.0f} SentencePiece tokens on average'
  source = [path.name for path in options.text] or 'generated'
  settings = {'pieces': pieces.size, 'turns': options.turns, 'text': source}
  bars.report(title, measured, options.output, settings)


if __name__ == '__main__':
  main()
