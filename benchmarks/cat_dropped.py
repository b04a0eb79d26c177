"""Target tokens that cascade-aware training drops, in the finished points of a reproduction.

    python -m benchmarks.cat_dropped --only 'g2p: base'

Reads the folder that `benchmarks.reproduce_cat` wrote and runs nothing but each small model's last
checkpoint, on evenly spaced training rows under teacher forcing; what the large model predicts is
in the teacher cache. A token is dropped that neither model predicts: by CAT at its last step, and,
of the other losses, by CAT if it were applied to their models. Shares are by position in the
answer, by decile of the target token's frequency, and by decile of the entropy of the large model's
distribution. The second table has the contributions A1 and A2 of both models (equation 9) from the
stored test rows, at equal deferral rates.
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import matplotlib as mpl
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import bars, cat_runs, reproduce_cat
from benchmarks.bars import Measured
from benchmarks.cat_grid import TUNING_SEED, Cell
from benchmarks.cat_runs import Bench
from benchmarks.cat_tasks import Folders
from cascades import curves, losses, masks
from cascades.evaluation import pooling
from cascades.inference import trained_model
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import partitioning
from cascades.runtime.partitioning import Devices
from cascades.teachers import TopK
from cascades.tokenizers.conventions import EOS_ID
from cascades.training import cached_teacher
from cascades.types import Batch

ROWS = 8192
BINS = 10
RATES = (0.0, 0.2, 0.5)  # of deferral, at which A1 and A2 are compared
CAT = {'cat_xent': 'xent', 'cat_dist': 'dist'}
COLUMNS = ('position', 'frequency', 'entropy')


class Tokens(NamedTuple):
  """N target tokens of training rows: where they stand, and what both models make of them."""

  position: Int[np.ndarray, 'N']
  target: Int[np.ndarray, 'N']
  entropy: Float[np.ndarray, 'N']
  dropped: Bool[np.ndarray, 'N']


class Dropped(NamedTuple):
  """Shares of tokens that are dropped: of all, of ends of sequence, and by column and bin.

  Fields: `end_among_dropped` is the share of the dropped tokens that end a sequence; a bin without
  a token has nan.
  """

  share: float
  of_ends: float
  end_among_dropped: float
  by: Mapping[str, Float[np.ndarray, 'bins']]
  counts: Mapping[str, Int[np.ndarray, 'bins']]


def entropy(teacher: TopK, vocab_size: int) -> Float[np.ndarray, '*n']:
  """Entropy in nats of a distribution whose tail t is spread evenly over the V - k others.

      H = -sum_{v in K} p_v log p_v - t log(t / (V - k))

  It is an upper bound of the entropy of the distribution that was stored.
  """
  logprobs = np.asarray(teacher.top_logprobs, np.float64)
  tail = np.asarray(teacher.tail, np.float64)
  others = max(vocab_size - logprobs.shape[-1], 1)
  spread = np.where(tail > 0, tail, 1.0) / others
  return -np.sum(np.exp(logprobs) * logprobs, axis=-1) - tail * np.log(spread)


def frequency_decile(targets: Int[np.ndarray, 'N']) -> Int[np.ndarray, 'N']:
  """Decile of each token by the frequency of its kind among the tokens, the rarest first.

  Tokens of one kind share a decile, that of the middle one of them; of equally frequent kinds the
  lower id comes first.
  """
  kinds, which, counts = np.unique(targets, return_inverse=True, return_counts=True)
  order = np.argsort(counts, kind='stable')
  below = np.empty(len(kinds))
  below[order] = np.cumsum(counts[order]) - counts[order]
  middle = (below + counts / 2) / len(targets)
  return np.minimum(middle * BINS, BINS - 1).astype(int)[which]


def decile(values: Float[np.ndarray, 'N']) -> Int[np.ndarray, 'N']:
  """Decile of each value, the lowest first; equal values share one."""
  edges = np.quantile(values, np.arange(1, BINS) / BINS)
  return np.searchsorted(edges, values, side='left')


def count(tokens: Tokens) -> Dropped:
  """Shares of the tokens that are dropped."""
  bins = {
    'position': tokens.position,
    'frequency': frequency_decile(tokens.target),
    'entropy': decile(tokens.entropy),
  }
  sizes = {'position': int(tokens.position.max()) + 1, 'frequency': BINS, 'entropy': BINS}
  counts = {name: np.bincount(bins[name], minlength=sizes[name]) for name in bins}
  with np.errstate(invalid='ignore'):
    by = {
      name: np.bincount(bins[name], weights=tokens.dropped, minlength=sizes[name]) / counts[name]
      for name in bins
    }
  ends = tokens.target == EOS_ID
  return Dropped(
    share=float(tokens.dropped.mean()),
    of_ends=float(tokens.dropped[ends].mean()) if ends.any() else float('nan'),
    end_among_dropped=float(ends[tokens.dropped].mean()) if tokens.dropped.any() else 0.0,
    by=by,
    counts=counts,
  )


def positions(weights: Float[np.ndarray, 'B T']) -> Int[np.ndarray, 'B T']:
  """Number of target tokens before each position of a row of one example."""
  return np.cumsum(weights > 0, axis=1) - (weights > 0)


@functools.partial(jax.jit, static_argnums=0)
def _predicted(graph: nnx.GraphDef, params: Any, batch: Batch) -> jax.Array:
  """Tokens that the small model or a teacher of the batch predicts."""
  model = nnx.merge(graph, params)
  logits = model.readout(model.hidden(batch), model.table)
  return masks.either_correct(logits, batch.teachers, batch.targets)


def read(bench: Bench, cell: Cell, rows: int) -> Tokens:
  """Tokens of a finished point: its last checkpoint beside the cache of its large model."""
  with Devices().use():
    model = trained_model.load(
      Checkpoint(str(bench.run(cell)), precision=None, weights='float32'),
      rules=partitioning.RULES,
    )
    data = bench.data(cell, answering=True)
    corpus = data.corpus(model.vocabulary, model.architecture)
    cache = cached_teacher.load(
      str(bench.cache_path(cell)), corpus, loss=losses.cat_xent, vocab_size=model.vocab_size
    )
    split = corpus.open('train')
    batches = corpus.evaluation(
      split, batch_size=data.batch_size, rows=rows, teacher=cache.answers(split)
    )
    columns = [
      _columns(batch, _predicted(model.graph, model.params, batch), cache.vocab_size)
      for batch in batches
    ]
  return Tokens(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _columns(batch: Batch, predicted: Any, vocab_size: int) -> Tokens:
  """The target tokens of a batch of rows of one example each."""
  weights = np.asarray(batch.weights)
  (teacher,) = batch.teachers
  columns = Tokens(
    positions(weights),
    np.asarray(batch.targets),
    entropy(teacher, vocab_size),
    ~np.asarray(predicted),
  )
  return Tokens(*(column[weights > 0] for column in columns))


def contributions(bench: Bench, cell: Cell) -> Float[np.ndarray, 'R 2']:
  """A1 and A2 of a point on its test rows, at `RATES`, linear between the reachable rates."""
  rows = bench.rows(cell)
  small, large = (statistics[:, 0] for statistics in (rows.small, rows.large))
  parts = curves.decomposition(rows.score, small, large)
  _, deferred = curves.reachable(rows.score)
  rates = np.append(0, deferred) / len(rows.score)
  return np.stack([np.interp(RATES, rates, part) for part in parts], axis=1)


def measure(
  dropped: Mapping[Cell, Dropped], parts: Mapping[Cell, Float[np.ndarray, 'R 2']]
) -> Iterator[Measured]:
  """Rows of each task, size and loss: means over seeds, with the seeds' deviation as a note."""

  def row(what: str, values: Sequence[float], unit: str = 'share') -> Measured:
    spread = f'deviation {np.std(values, ddof=1):.4f} over ' if len(values) > 1 else ''
    return Measured(what, float(np.mean(values)), unit, note=f'{spread}{len(values)} seeds')

  for name, own in grouped(dropped).items():
    yield row(f'{name}: dropped', [each.share for each in own])
    yield row(f'{name}: ends of sequence dropped', [each.of_ends for each in own])
    yield row(f'{name}: ends among the dropped', [each.end_among_dropped for each in own])
    for column in COLUMNS:
      for end, text in ((0, 'first'), (-1, 'last')):
        values = [each.by[column][_large(each.counts[column])][end] for each in own]
        yield row(f'{name}: dropped, {text} bin of {column}', values)
  for cell in parts:
    plain = cell._replace(loss=CAT.get(cell.loss, ''))
    if plain not in parts or any(cell._replace(seed=s) in parts for s in range(cell.seed)):
      continue
    seeds = [c.seed for c in parts if c._replace(seed=cell.seed) == cell]
    pairs = [(cell._replace(seed=s), plain._replace(seed=s)) for s in seeds]
    differences = np.array([parts[c] - parts[p] for c, p in pairs if p in parts])
    for number, rate in enumerate(RATES):
      for which, text in enumerate(('A1', 'A2')):
        name = f'{label(cell)} - {plain.loss}: {text} at {rate:.0%}'
        yield row(name, differences[:, number, which].tolist(), 'quality')


def _large(counts: Int[np.ndarray, 'bins']) -> Bool[np.ndarray, 'bins']:
  """Bins of at least one in a hundred of the tokens, whose shares mean something."""
  return counts >= counts.sum() / 100


def label(cell: Cell) -> str:
  return f'{cell.task} {cell.size} {cell.loss}'


def grouped(dropped: Mapping[Cell, Dropped]) -> dict[str, list[Dropped]]:
  """Seeds of each task, size and loss."""
  groups: dict[str, list[Dropped]] = {}
  for cell, own in dropped.items():
    groups.setdefault(label(cell), []).append(own)
  return groups


def draw(dropped: Mapping[Cell, Dropped], path: pathlib.Path) -> None:
  """Shares by position, frequency and entropy: means over seeds as lines, seeds as dots."""
  from cascades.reporting import figures
  from cascades.reporting.palette import PALETTE

  names = ('position in the answer', 'decile of frequency, rare first', 'decile of entropy')
  with mpl.rc_context(figures.STYLE):
    figure = Figure(figsize=(7.4, 2.8))
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    for axes, column, name in zip(panels, COLUMNS, names, strict=True):
      for number, (group, own) in enumerate(grouped(dropped).items()):
        width = max(len(each.by[column]) for each in own)
        values = np.full((len(own), width), np.nan)
        for line, each in zip(values, own, strict=True):
          line[: len(each.by[column])] = each.by[column]
        there = np.isfinite(values).any(axis=0)
        bins, color = np.flatnonzero(there), PALETTE[number % len(PALETTE)]
        axes.plot(bins, np.nanmean(values[:, there], axis=0), color=color, label=group)
        axes.plot(bins, values[:, there].T, '.', color=color, alpha=0.35, markersize=3)
      axes.set_xlabel(name)
    panels[0].set_ylabel('share dropped')
    panels[0].legend()
    FigureCanvasAgg(figure)
    path.write_bytes(figures.encode(figure, 'png'))


def finished(bench: Bench, only: Sequence[str]) -> list[Cell]:
  """Complete points of test seeds whose checkpoint and cache are still there."""
  return [
    cell
    for _, cell in reproduce_cat.chosen(only)
    if cell.seed < TUNING_SEED
    and bench.is_done(cell)
    and list(bench.run(cell).glob('checkpoint_*'))
    and bench.cache_path(cell).exists()
  ]


def main() -> None:
  parser = cat_runs.arguments(__doc__)
  parser.add_argument('--only', nargs='+', default=['g2p: base'], help='patterns of parts, points')
  parser.add_argument('--rows', type=int, default=ROWS, help='training rows of each point')
  parser.add_argument('--figure', type=pathlib.Path, default=pathlib.Path('docs/cat_dropped.png'))
  parser.add_argument('--output', default=bars.RESULTS / 'cat_dropped.json')
  options = parser.parse_args()
  bench = Bench(Folders(options.data.resolve(), options.work.resolve()))
  cells = finished(bench, options.only)
  if not cells:
    sys.exit(f'{options.work} has no finished point of a test seed of {" ".join(options.only)}.')
  dropped = {cell: count(read(bench, cell, options.rows)) for cell in cells}
  additive = [cell for cell in cells if pooling.is_mean(bench.rows(cell).small)]
  parts = {cell: contributions(bench, cell) for cell in additive}
  details = {
    cell.name: own._replace(
      by={name: values.tolist() for name, values in own.by.items()},
      counts={name: values.tolist() for name, values in own.counts.items()},
    )._asdict()
    | ({'A1, A2': dict(zip(map(str, RATES), parts[cell].tolist(), strict=True))}
       if cell in parts else {})
    for cell, own in dropped.items()
  }  # fmt: skip
  settings = {'only': options.only, 'rows': options.rows}
  measured = list(measure(dropped, parts))
  bars.report('tokens that CAT drops', measured, options.output, settings, details)
  draw(dropped, options.figure)


if __name__ == '__main__':
  main()
