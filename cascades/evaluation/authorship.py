"""Tokens of speculative answers by who wrote them, read from the rows of a finished table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float


class WrittenAnswer(NamedTuple):
  """Tokens of an answer; `drafted` is True for those of the small model."""

  id: str
  prompt: str
  tokens: Sequence[int]
  drafted: Sequence[bool]


def answers(table: epath.Path) -> Iterator[WrittenAnswer]:
  """Answers of a table's folder that say who wrote each token, in the order of its rows."""
  for shard in sorted(table.glob('*-predict*.jsonl-*')):
    if shard.suffix == '.COMPLETED':
      continue
    with shard.open() as lines:
      for line in lines:
        row = json.loads(line)
        if 'drafted' in row['aux']:
          aux = row['aux']
          prompt = row['inputs']['inputs_pretokenized']
          yield WrittenAnswer(aux['id'], prompt, aux['tokens'], [bool(x) for x in aux['drafted']])


def acceptance_by_position(
  drafted: Iterable[Sequence[bool]], gamma: int, *, max_tokens: int
) -> Float[np.ndarray, 'gamma']:
  """Share of the drafts at each position of a block that are accepted, of those that are reached.

  The large model writes the first token, and one after the drafts of each block. At three drafts,
  the answer L SS L S L has a block of two accepted drafts and one of one: 2 of 2 first drafts are
  accepted, 1 of 2 second ones, and 0 of 1 third ones. Drafts of a block that ends the answer count
  as far as they are accepted. nan where no draft is reached.

  Args:
    drafted: For each answer, True for the tokens that the small model wrote.
    gamma: Most drafts of a block.
    max_tokens: Most tokens of an answer; a block has no draft that would exceed them.
  """
  reached, accepted = np.zeros(gamma), np.zeros(gamma)
  for flags in drafted:
    run = 0
    for position, by_small in enumerate(flags[1:], 1):
      if by_small:
        run += 1
        continue
      drafts = min(gamma, max_tokens - (position - run) - 1)
      accepted[:run] += 1
      reached[: min(run + 1, drafts)] += 1
      run = 0
    accepted[:run] += 1
    reached[:run] += 1
  return np.divide(accepted, reached, out=np.full(gamma, np.nan), where=reached > 0)
