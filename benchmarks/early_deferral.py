"""Tokens of the small model that early deferral saves, on a table of its answers.

    python -m benchmarks.early_deferral --table=runs/demo/cat_xent/predictions/test

Each answer is stopped at the first token after which no continuation can be accepted, as the server
does with STOP_EARLY. Thresholds are those that defer 10, 30 and 50 % of the rows. Saved are tokens
of answers that would be thrown away: of all tokens that the small model writes, and of those that
are discarded. Decisions are compared with those of complete answers, and none may differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import deferral
from cascades.predictions import shards
from cascades.serving.early_deferral import LEAST, LeastScore
from cascades.serving.exchanges import Token
from cascades.types import Predictions

RULES = ('average', 'minimum', 'sum')
RATES = (0.1, 0.3, 0.5)


def stopped(table: Predictions, name: str, threshold: float, most: int) -> np.ndarray:
  """Number of tokens of each answer that are written; its length if it is not stopped."""
  written = table.lengths.copy()
  starts = np.cumsum(table.lengths) - table.lengths
  for row, (start, length) in enumerate(zip(starts, table.lengths, strict=True)):
    bound = LeastScore(LEAST[name], most)
    for number in range(length - 1):
      if bound.add(Token(b'', float(table.token_logprobs[start + number]))) >= threshold:
        written[row] = number + 1
        break
  return written


def measure(table: Predictions, most: int) -> Iterator[Measured]:
  """Shares of tokens for each rule and rate of deferral, and decisions that differ."""
  wrong = 0
  for name in RULES:
    score = deferral.DECIDERS[name].score(table)
    for rate in RATES:
      threshold = float(np.quantile(score, 1 - rate, method='higher'))
      deferred = score >= threshold
      written = stopped(table, name, threshold, most)
      wrong += int((written < table.lengths)[~deferred].sum())
      saved = float((table.lengths - written).sum())
      what = f'{name}, {deferred.mean():.1%} deferred: tokens saved'
      discarded = saved / table.lengths[deferred].sum()
      yield Measured(
        what, saved / table.lengths.sum(), 'of all', note=f'{discarded:.1%} of discarded'
      )
  yield Measured('decisions that differ', wrong, 'rows', at_most=1)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--table', required=True, help='directory of a split, with log-probabilities')
  parser.add_argument('--max_tokens', type=int, help='of an answer; by default of the longest one')
  parser.add_argument('--output', default=bars.RESULTS / 'early_deferral.json')
  options = parser.parse_args()
  (table,) = shards.read(options.table)
  most = options.max_tokens or int(table.lengths.max())
  settings = vars(options) | {'max_tokens': most, 'rows': len(table.ids)}
  bars.report('early deferral', measure(table, most), options.output, settings)


if __name__ == '__main__':
  main()
