"""Drafts of small models that were trained with different losses.

    python -m benchmarks.drafters runs/demo runs/seed1 runs/seed2
    python -m benchmarks.drafters --points tanaka --output=benchmarks/results/drafters_tanaka.json

Each argument is a folder of `launch.demo`, of a seed of its own; with `--points`, seeds are those
of a task's finished points of `benchmarks.reproduce_cat` in `--work`. Every small model drafts
greedily and without loss for the large model of its seed, on the validation rows. Differences from
plain cross-entropy have Student's interval over the seeds, and p-values that Holm corrects
together.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from scipy import stats

from benchmarks import bars, cat_grid, cat_runs
from benchmarks.bars import Measured
from benchmarks.cat_grid import Cell
from benchmarks.cat_runs import Bench
from benchmarks.cat_seeds import BASELINE, LOSSES, over_seeds
from benchmarks.cat_tasks import Folders
from cascades import comparisons
from cascades.data.corpus import Data
from cascades.inference import speculation, trained_model
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.target_distributions import RULES
from cascades.tasks import catalog
from cascades.types import Params, Prompt

GAMMA, BATCH = 5, 256
LENGTHS = {'inputs': 24, 'targets': 24}
TASKS = ('g2p', 'tanaka', *cat_grid.LATE)  # whose models decode answers and are kept
QUANTITIES = ('acceptance', 'tokens per large call')


class Seed(NamedTuple):
  """Runs of the large model and of a small one of each loss, and the rows that they answer."""

  name: str
  large: pathlib.Path
  small: Mapping[str, pathlib.Path]
  data: Data


def of_demo(folder: pathlib.Path) -> Seed:
  """The models of a folder of `launch.demo`."""
  data = Data(task=catalog.get('cmudict_g2p'), lengths=LENGTHS, batch_size=BATCH)
  return Seed(folder.name, folder / 'large', {loss: folder / loss for loss in LOSSES}, data)


def of_points(bench: Bench, task: str) -> Iterator[Seed]:
  """The models of the planned seeds of which all base points at the smallest size are finished."""
  for seed in range(cat_grid.SEEDS.get(task, cat_grid.FEW_SEEDS)):
    cells = {loss: Cell(task, cat_grid.SIZES[task][0], loss, seed=seed) for loss in LOSSES}
    if all(map(bench.is_done, cells.values())):
      plain = cells[BASELINE]
      runs = {loss: bench.run(cell) for loss, cell in cells.items()}
      yield Seed(f'seed {seed}', bench.large_run(plain), runs, bench.data(plain, answering=True))


def load(path: pathlib.Path) -> TrainedModel:
  return trained_model.load(trained_model.Checkpoint(str(path)), rules=partitioning.RULES)


def drafted(small: TrainedModel, large: TrainedModel, data: Data) -> dict[str, float]:
  """Acceptance, and tokens for each call of the large model, over the validation rows."""

  @jax.jit
  def generate(small_params: Params, params: Params, prompt: Prompt) -> speculation.Speculation:
    models = nnx.merge(small.graph, small_params), nnx.merge(large.graph, params)
    pair = speculation.SpeculativePair(*models, RULES['lossless'].target)
    return speculation.generate(
      pair, prompt, max_len=data.lengths['targets'], eos_id=large.vocabulary.eos_ids, gamma=GAMMA
    )

  corpus = data.corpus(large.vocabulary, large.architecture)
  (records,) = corpus.open('validation').per_task
  accepted = rejected = calls = tokens = 0
  for bucket in corpus.buckets(records, range(len(records)), batch_size=BATCH):
    answers = generate(
      small.params, large.params, corpus.prompts(records, bucket, batch_size=BATCH)
    )
    rows = slice(len(bucket.indices))  # the last row is repeated
    accepted += int(answers.counts.accepted[rows].sum())
    rejected += int(answers.counts.rejected[rows].sum())
    calls += int(answers.counts.large_calls[rows].sum())
    tokens += int(answers.answer.mask[rows].sum())
  return dict(zip(QUANTITIES, (accepted / (accepted + rejected), tokens / calls), strict=True))


def compared(by_seed: Sequence[Mapping[str, Mapping[str, float]]]) -> Iterator[Measured]:
  """Mean of each loss over the seeds, and its difference from the baseline."""
  others = [loss for loss in LOSSES if loss != BASELINE]
  differences = {
    (quantity, loss): [seed[loss][quantity] - seed[BASELINE][quantity] for seed in by_seed]
    for quantity in QUANTITIES
    for loss in others
  }
  values = np.array([stats.ttest_1samp(own, 0).pvalue for own in differences.values()])
  adjusted = dict(zip(differences, comparisons.holm(values), strict=True))
  for quantity in QUANTITIES:
    for loss in LOSSES:
      of_seeds = [seed[loss][quantity] for seed in by_seed]
      note = ', '.join(f'{value:.4f}' for value in of_seeds)
      yield Measured(f'{quantity}, {loss}', float(np.mean(of_seeds)), '', note=note)
    for loss in others:
      difference = over_seeds(differences[quantity, loss])
      note = f'95 % over seeds: {difference["low"]:+.4f} to {difference["high"]:+.4f}'
      note += f', Holm {adjusted[quantity, loss]:.3g}'
      yield Measured(f'{quantity}, {loss} - {BASELINE}', difference['mean'], '', note=note)


def main() -> None:
  parser = cat_runs.arguments(__doc__)
  parser.add_argument('folders', nargs='*', type=pathlib.Path)
  parser.add_argument('--points', choices=TASKS, help='task of reproduce_cat')
  parser.add_argument('--output', default=bars.RESULTS / 'drafters.json')
  options = parser.parse_args()
  if bool(options.folders) == bool(options.points):
    parser.error('give folders of the demo, or --points.')
  seeds = [of_demo(folder) for folder in options.folders]
  if options.points:
    bench = Bench(Folders(options.data.resolve(), options.work.resolve(), ''))
    seeds = list(of_points(bench, options.points))
  if len(seeds) < 2:
    parser.error(f'{len(seeds)} seeds are finished: two are needed for an interval.')
  by_seed = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    for seed in seeds:
      large, runs = load(seed.large), seed.small.items()
      by_seed.append({loss: drafted(load(run), large, seed.data) for loss, run in runs})
      print(seed.name, by_seed[-1], flush=True)
  settings = {'gamma': GAMMA, 'seeds': [seed.name for seed in seeds]}
  bars.report('Drafters', list(compared(by_seed)), options.output, settings, details=by_seed)


if __name__ == '__main__':
  main()
