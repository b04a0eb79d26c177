"""The 69 tasks of FLAN2021 with generated rows of their numbers, rates, and usual lengths."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from cascades.tasks.flan import suite
from cascades.tasks.task import Mixture, Record, Row, Task, Vocabularies

CHARACTERS_PER_TOKEN = 4
LONGEST = 2000  # tokens
INPUTS, TARGETS = (5.2, 0.7), (2.8, 0.9)  # mean and deviation of the logarithm of token counts
IDS = 32_000

_TEXT = 'lorem ' * LONGEST


def flan(rows: int) -> Mixture:
  """Mixture of all tasks with at most `rows` rows each, at the rates of the real mixture."""
  tasks = [
    _task(seed, name, min(definition.rows, rows), min(definition.rows, suite.LARGEST_RATE))
    for seed, (name, definition) in enumerate(suite.DEFINITIONS.items())
  ]
  return Mixture(suite.MIXTURE, tuple(tasks))


def _task(seed: int, name: str, rows: int, rate: int) -> Task:
  return Task(
    name=name,
    splits=('train',),
    read=lambda _split: (Row(str(i), '', ('',)) for i in range(rows)),
    fingerprint=lambda _split: f'{rows} rows of {INPUTS} {TARGETS}',
    tokenize=functools.partial(random_tokens, seed=seed),
    rate=rate,
  )


def random_tokens(
  rows: Iterable[Row], vocabularies: Vocabularies, shard: int, *, seed: int
) -> Iterator[Record]:
  """Records of random ids, with filler text of the usual length of as many tokens."""
  del vocabularies
  generator = np.random.default_rng([seed, shard])
  ids = generator.integers(3, IDS, size=1 << 16).astype('<i4')
  for row in rows:
    inputs, targets = (_count(generator, *shape) for shape in (INPUTS, TARGETS))
    start = int(generator.integers(len(ids) - inputs - targets))
    tokens = ids[start : start + inputs + targets]
    text, answer = (_TEXT[: CHARACTERS_PER_TOKEN * count] for count in (inputs, targets))
    row = row._replace(inputs=text, answers=(answer,))
    yield Record(row, tokens[:inputs], tokens[inputs:])


def _count(generator: np.random.Generator, mean: float, deviation: float) -> int:
  return 1 + min(int(generator.lognormal(mean, deviation)), LONGEST)
