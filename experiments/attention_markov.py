"""One attention layer as a context-conditioned Markov chain: exact mapping, estimation, collapse.

    python -m experiments.attention_markov

A layer's key-query matrix is a base Markov chain; the prompt masks and weights its row. See
attention_markov.md.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from benchmarks import bars
from benchmarks.bars import Measured
from experiments.context_chain import conditioned, counted, estimate

HERE = pathlib.Path(__file__).parent


class Design(NamedTuple):
  """Prompts that end with token 0.

  Fields: `pools`, sets of tokens, one of which holds all other tokens of a prompt; `self_attended`,
  False for a layer that does not attend to its query.
  """

  pools: Sequence[Sequence[int]]
  self_attended: bool = True


K = 6  # tokens; the last token is 0
DESIGNS = {
  'covered': Design([[1, 2, 3, 4, 5]]),
  'token 5 in no prompt': Design([[1, 2, 3, 4]]),
  'two groups, query attended': Design([[1, 2], [3, 4, 5]]),
  'two groups, query not attended': Design([[1, 2], [3, 4, 5]], self_attended=False),
}
LENGTH = 4  # tokens of a prompt besides the last


def sampled(
  row: Float[np.ndarray, 'K'], design: Design, n: int, random: np.random.Generator
) -> tuple[Float[np.ndarray, 'n K'], Int[np.ndarray, 'n']]:
  """Counts of n prompts of a design, and outputs that the layer draws for them."""
  prompts = np.concatenate([
    random.choice(pool, size=(len(share), LENGTH))
    for pool, share in zip(
      design.pools, np.array_split(np.arange(n), len(design.pools)), strict=True
    )
  ])  # fmt: skip
  counts = counted(prompts, K)
  if design.self_attended:
    counts[:, 0] += 1
  p = conditioned(np.tile(row, (K, 1)), np.zeros(n, int), counts)
  chosen = (p.cumsum(axis=1) < random.random((n, 1))).sum(axis=1)
  return counts, np.minimum(chosen, K - 1)


def errors(
  design: Design, sizes: Sequence[int], repeats: int, seed: int
) -> Float[np.ndarray, 'r s']:
  """Total variation between the true row and its estimate, by repeat and number of prompts."""
  values = np.empty((repeats, len(sizes)))
  for repeat in range(repeats):
    random = np.random.default_rng([seed, repeat])
    row = random.dirichlet(np.full(K, 2.0))
    if not design.self_attended:  # its own token is never offered: compare the others
      row[0] = 1 / K
      row[1:] *= (1 - 1 / K) / row[1:].sum()
    for column, n in enumerate(sizes):
      estimated = estimate(*sampled(row, design, n, random))
      values[repeat, column] = np.abs(estimated - row).sum() / 2
  return values


def slope(sizes: Sequence[int], values: Float[np.ndarray, 'r s']) -> float:
  """Exponent a of error ~ n^a, by least squares on the mean log error."""
  return float(np.polyfit(np.log(sizes), np.log(values).mean(axis=0), 1)[0])


def generate(
  P: Float[np.ndarray, 'r K K'], steps: int, seed: int
) -> tuple[Int[np.ndarray, 'c'], Float[np.ndarray, 'r c K']]:
  """Token counts of single trajectories, at powers of two: each output joins its own prompt.

  Args:
    P: Base chain of each trajectory.
    steps: Tokens to generate.
    seed: Seed of the draws.

  Returns:
    Lengths of the prompts, the first K tokens included, and counts then. The prompts start with
    each token once.
  """
  R, K, _ = P.shape
  random = np.random.default_rng(seed)
  rows = np.arange(R)
  counts, last = np.ones((R, K)), np.full(R, K - 1)
  lengths, path = [], []
  marks = {2**power for power in range(3, 40)}
  for length in range(K + 1, K + steps + 1):
    weights = (P[rows, last] * counts).cumsum(axis=1)
    last = (weights < random.random((R, 1)) * weights[:, -1:]).sum(axis=1)
    counts[rows, last] += 1
    if length in marks:
      lengths.append(length)
      path.append(counts.copy())
  return np.array(lengths), np.stack(path, axis=1)


def markov_counts(P: Float[np.ndarray, 'r K K'], steps: int, seed: int) -> Float[np.ndarray, 'r K']:
  """Token counts of the base chains themselves, for comparison: no prompt masks or weights them."""
  R, K, _ = P.shape
  random = np.random.default_rng(seed)
  rows, last, counts = np.arange(R), np.full(R, K - 1), np.ones((R, K))
  for _ in range(steps):
    weights = P[rows, last].cumsum(axis=1)
    last = (weights < random.random((R, 1)) * weights[:, -1:]).sum(axis=1)
    counts[rows, last] += 1
  return counts


def effective_tokens(shares: Float[np.ndarray, '*n K']) -> Float[np.ndarray, '*n']:
  """Exponential of the entropy of shares: K if all are equal, 1 for a single token."""
  return np.exp(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=-1))


URN = np.array([0.4, 0.2, 0.2, 0.2])  # rows of the urn: the next token ignores the last


def chains(count: int, seed: int) -> dict[str, Float[np.ndarray, 'r K K']]:
  """Base chains of trajectories.

  'urn': all rows alike. 'random': uniform on the simplex. 'no self': random, and every token's own
  transition the least of its row, so that no token can win alone.
  """
  random = np.random.default_rng(seed)
  free = random.dirichlet(np.ones(K), size=(count, K))
  no_self = free.copy()
  diagonal = np.arange(K)
  no_self[:, diagonal, diagonal] = free.min(axis=2) / 2
  return {
    'urn': np.tile(URN, (count, len(URN), 1)),
    'random': free,
    'no self': no_self / no_self.sum(axis=2, keepdims=True),
  }


def can_win(P: Float[np.ndarray, 'r K K']) -> Bool[np.ndarray, 'r K']:
  """True for tokens whose own transition is the largest of their row: they can win alone."""
  return P.argmax(axis=2) == np.arange(P.shape[1])


class Collapse(NamedTuple):
  """Token counts of trajectories at some lengths."""

  lengths: Int[np.ndarray, 'c']
  counts: Float[np.ndarray, 'r c K']
  base: Float[np.ndarray, 'r K']  # counts of the base chain itself

  @property
  def top(self) -> Float[np.ndarray, 'r c']:
    """Share of the most frequent token of the prompt."""
    return (self.counts / self.counts.sum(axis=2, keepdims=True)).max(axis=2)


def measured(
  rates: dict[str, Float[np.ndarray, 'r s']], sizes: Sequence[int], collapses: dict[str, Collapse],
  P: dict[str, Float[np.ndarray, 'r K K']],
) -> Iterator[Measured]:  # fmt: skip
  for name, values in rates.items():
    exponent = slope(sizes, values)
    yield Measured(f'{name}: exponent of the error', exponent, '', note=_range(values[:, -1]))
  for name, collapse in collapses.items():
    base = (collapse.base / collapse.base.sum(axis=1, keepdims=True)).max(axis=1)
    for column in (0, len(collapse.lengths) // 2, -1):
      top = collapse.top[:, column]
      what = f'{name}: share of the top token at {collapse.lengths[column]}'
      yield Measured(what, float(np.median(top)), 'median', note=_range(top))
    what = f'{name}: the same, base chain'
    yield Measured(what, float(np.median(base)), 'median', note=_range(base))
    tokens = effective_tokens(recent(collapse))
    what = f'{name}: effective tokens, last half'
    yield Measured(what, float(np.median(tokens)), 'median', note=_range(tokens))
    if name != 'urn':
      winner = collapse.counts[:, -1].argmax(axis=1)
      sole = recent(collapse).max(axis=1) > 0.9
      eligible = can_win(P[name])[np.arange(len(winner)), winner]
      yield Measured(f'{name}: trajectories with a sole winner', float(sole.mean()), 'of all')
      if sole.any():
        share = float(eligible[sole].mean())
        yield Measured(f'{name}: winners with the largest self transition', share, 'of winners')
  urn = collapses['urn']
  yield Measured('urn: exponent of the losers', urn_exponent(urn), '', note='derived: 0.5')


def recent(collapse: Collapse) -> Float[np.ndarray, 'r K']:
  """Shares of the tokens in the second half of the trajectory."""
  late = collapse.counts[:, -1] - collapse.counts[:, -2]
  return late / late.sum(axis=1, keepdims=True)


def urn_exponent(collapse: Collapse) -> float:
  """Exponent b of a loser's count, m_1^b for the count m_1 of the heaviest token.

  By least squares on the means over trajectories of both logarithms, over the second half of the
  marks.
  """
  logs = np.log(collapse.counts[:, len(collapse.lengths) // 2 :])
  return float(np.polyfit(logs[..., 0].mean(axis=0), logs[..., 1:].mean(axis=(0, 2)), 1)[0])


def _range(values: Float[np.ndarray, 'n']) -> str:
  return f'10 to 90 %: {np.percentile(values, 10):.4f} .. {np.percentile(values, 90):.4f}'


def draw(
  rates: dict[str, Float[np.ndarray, 'r s']], sizes: Sequence[int], collapses: dict[str, Collapse],
  path: pathlib.Path,
) -> None:  # fmt: skip
  from matplotlib import pyplot as plt

  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout='constrained')
  for name, values in rates.items():
    _band(left, sizes, values, name)
  line = rates['covered'][:, 0].mean() * np.sqrt(sizes[0] / np.array(sizes))
  left.plot(sizes, line, 'k:', label='n^-1/2')
  left.set(xscale='log', yscale='log', xlabel='prompts n', ylabel='total variation of the row')
  for name, collapse in collapses.items():
    _band(right, collapse.lengths, collapse.top, name)
  right.set(xscale='log', xlabel='length of the trajectory', ylabel='share of its top token')
  for axis in (left, right):
    axis.legend(fontsize='small')
  figure.savefig(path, dpi=80)
  plt.close(figure)


def _band(axis, x: Sequence[int], values: Float[np.ndarray, 'r s'], name: str) -> None:
  low, middle, high = np.percentile(values, [10, 50, 90], axis=0)
  (line,) = axis.plot(x, middle, label=name)
  axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--repeats', type=int, default=40, help='rows that are estimated')
  parser.add_argument('--trajectories', type=int, default=200)
  parser.add_argument('--steps', type=int, default=1 << 17, help='tokens of a trajectory')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'attention_markov.json')
  options = parser.parse_args()
  sizes = [100, 300, 1000, 3000, 10_000, 30_000, 100_000]
  rates = {
    name: errors(design, sizes, options.repeats, options.seed) for name, design in DESIGNS.items()
  }
  P = chains(options.trajectories, options.seed)
  collapses = {
    name: Collapse(
      *generate(chain, options.steps, options.seed), markov_counts(chain, 4096, options.seed)
    )
    for name, chain in P.items()
  }
  rows = list(measured(rates, sizes, collapses, P))
  bars.report('attention as a Markov chain', rows, options.output, vars(options))
  draw(rates, sizes, collapses, options.output.with_suffix('.png'))


if __name__ == '__main__':
  main()
