"""C4 for pre-training: documents are concatenated and cut into equal chunks, one an example.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683. Rows are English documents of the JSON
release, `c4-train.00000-of-01024.json.gz` and so on, or of a prepared TFDS directory. Records of
chunks have tokens only, no text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

from cascades.tasks import corruption
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.sources import DatasetSource, Sources
from cascades.tasks.task import ALL_SPECIAL_TOKENS, Record, Row, SpecialTokens, Task, Vocabularies
from cascades.tokenizers.conventions import Tokens
from cascades.types import Vocabulary

DENSITY, MEAN_SPAN = 0.15, 3.0
SPLITS = ('train', 'validation')

_SIZES = {
  'en': {'train': 364_868_901, 'validation': 364_608},
  'realnewslike': {'train': 13_799_838, 'validation': 13_863},
}
_NO_ENDS = SpecialTokens(prompt_end=False, answer_end=False)
_SHARD_SHIFT = 32  # chunks of a shard are fewer


def dataset(config: str = 'en') -> Dataset:
  """The data set of a variant of C4, 'en' or 'realnewslike'."""
  return Dataset(
    builder=f'c4/{config}',
    version='3.1.0',
    sizes=_SIZES[config],
    features={'text': str},
    files={split: f'c4-{split}.*-of-*.json' for split in SPLITS},
  )


def span_corruption(
  sources: Sources | None = None,
  *,
  inputs_length: int = 512,
  config: str = 'en',
  density: float = DENSITY,
  mean_span: float = MEAN_SPAN,
  seed: int = 0,
) -> Task:
  """Makes the task: text with sentinels for noise spans -> sentinels and spans.

  A chunk is as long as fits: inputs of 512 come from 568 tokens and give targets of 114.

  Args:
    sources: where to look for C4.
    inputs_length: tokens of the inputs, end of sequence included.
    config: variant of C4.
    density: share of noise tokens.
    mean_span: mean tokens of a noise span.
    seed: seed of the noise.
  """
  make = functools.partial(_corrupted, density=density, mean_span=mean_span, seed=seed)
  chunk, targets = corruption.chunk_length(inputs_length, density=density, mean_span=mean_span)
  return _task('c4_span_corruption', sources, config, chunk, make, f'{targets} target tokens')


def prefix_lm(
  sources: Sources | None = None, *, length: int = 512, config: str = 'en', seed: int = 0
) -> Task:
  """Makes the task: the first k tokens of a chunk -> the rest, with k uniform.

  Neither side exceeds `length` tokens, end of sequence included.
  """
  make = functools.partial(_prefix_and_rest, seed=seed)
  # The end of sequence takes one position on either side.
  return _task('c4_prefix_lm', sources, config, length, make, 'the prefix drawn at random')


def causal_lm(sources: Sources | None = None, *, length: int = 512, config: str = 'en') -> Task:
  """Makes the task: nothing -> a chunk of `length` tokens; each document ends with an EOS."""
  return _task(
    'c4_causal_lm', sources, config, length, _all_targets, 'every token', special_tokens=_NO_ENDS
  )


def _task(
  name: str,
  sources: Sources | None,
  config: str,
  chunk: int,
  make: Callable[..., tuple[Tokens, Tokens]],
  description: str,
  *,
  special_tokens: SpecialTokens = ALL_SPECIAL_TOKENS,
) -> Task:
  data = dataset(config)
  origin = DatasetSource(data, {split: split for split in SPLITS}, sources or Sources())
  return Task(
    name=name,
    splits=SPLITS,
    read=lambda split: origin.read(split, functools.partial(_document, split)),
    files=lambda split: origin.file_readers(split, functools.partial(_document, split)),
    fingerprint=origin.fingerprint,
    metrics=('token_accuracy',),
    version=f'1 {chunk} {getattr(make, "keywords", "")}',
    tokenize=functools.partial(_chunks, length=chunk, make=make, joined=special_tokens.answer_end),
    joins_rows=True,
    special_tokens=special_tokens,
    description=f'{chunk} tokens of English web text a row; {description}',
    suite='c4',
    sizes=data.sizes,
    origin=origin,
  )


def _document(split: str, number: int, example: Example) -> Iterator[Row]:
  yield Row(f'{split}/{number}', example['text'], ('',))


def _chunks(
  rows: Iterable[Row],
  vocabularies: Vocabularies,
  shard: int,
  *,
  length: int,
  make: Callable[..., tuple[Tokens, Tokens]],
  joined: bool,
) -> Iterator[Record]:
  vocabulary = vocabularies.targets
  documents = (ids for row in rows for ids in vocabulary.encode_all([row.inputs]))
  separator = None if joined else vocabulary.eos_id
  for number, chunk in enumerate(corruption.chunks(documents, length, separator=separator)):
    inputs, targets = make(chunk, vocabulary, shard << _SHARD_SHIFT | number)
    yield Record(Row(f'{shard}/{number}', '', ('',)), inputs, targets)


def _corrupted(
  chunk: Tokens, vocabulary: Vocabulary, number: int, *, density: float, mean_span: float, seed: int
) -> tuple[Tokens, Tokens]:
  noise = corruption.random_spans(
    len(chunk), seed=seed, number=number, density=density, mean_span=mean_span
  )
  extra_ids = getattr(vocabulary, 'extra_ids', 0)
  return corruption.span_corruption(chunk, noise, vocab_size=vocabulary.size, extra_ids=extra_ids)


def _prefix_and_rest(
  chunk: Tokens, vocabulary: Vocabulary, number: int, *, seed: int
) -> tuple[Tokens, Tokens]:
  del vocabulary
  limit = len(chunk)
  return corruption.prefix_split(
    chunk, max_inputs=limit, max_targets=limit, seed=seed, number=number
  )


def _all_targets(chunk: Tokens, vocabulary: Vocabulary, number: int) -> tuple[Tokens, Tokens]:
  del vocabulary, number
  return chunk[:0], chunk
