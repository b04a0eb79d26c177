"""Small models trained from teacher caches of one size, with and without samples of the tail.

    python -m benchmarks.tail_samples --work=runs/reproduce_cat

The task is `pretrain_causal` of `benchmarks.reproduce_cat`, every token of 4 MB of documents among
4,000 kinds, whose large models are those of its `--work`, trained there if they are missing. Each
seed trains a small model by `dist` from each cache; the protocol is in docs/teacher_cache.md.
Finished runs are not repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import bars, cat_runs
from benchmarks.bars import Measured
from benchmarks.cat_grid import Cell
from benchmarks.cat_pretraining import BATCH, ROWS
from benchmarks.cat_runs import Bench
from benchmarks.cat_seeds import over_seeds
from benchmarks.cat_tasks import SETTINGS, Folders
from cascades import divergences
from cascades.inference import trained_model
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.runtime import partitioning
from cascades.runtime.partitioning import Devices
from cascades.teachers import Logits
from cascades.types import Batch, Params

TASK, SEEDS = 'pretrain_causal', 4
FACTOR = 2.0  # of the learning rate: what tuning chose for `dist`, and the highest tried
CHOICES, SAMPLED = '16 choices', '10 choices and 6 samples'
CACHES: Mapping[str, Mapping[str, int]] = {
  CHOICES: {'top_k': 16},
  SAMPLED: {'top_k': 10, 'tail_samples': 6},
  '256 choices': {'top_k': 256},
}
SHARED = ('data', 'records')


def bench_of(work: pathlib.Path, data: pathlib.Path, name: str) -> Bench:
  """Folders of the runs from one cache, with the rows and large models of the others."""
  own = work / 'tail_samples' / name.replace(' ', '_')
  for shared in SHARED:
    (work / shared).mkdir(parents=True, exist_ok=True)
    link(own / shared, work / shared)
  settings = {TASK: dataclasses.replace(SETTINGS[TASK], **CACHES[name])}
  return Bench(Folders(data, own), settings)


def link(path: pathlib.Path, to: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    path.symlink_to(to.resolve())


@functools.partial(jax.jit, static_argnames='graphs')
def sums(
  graphs: tuple[nnx.GraphDef, nnx.GraphDef], params: tuple[Params, Params], batch: Batch
) -> dict[str, jax.Array]:
  """Of a batch's tokens: the divergence from the large model, and the loss on the documents."""
  models = [nnx.merge(graph, own) for graph, own in zip(graphs, params, strict=True)]
  small, large = (
    model.readout(model.hidden(batch), model.table).astype(jnp.float32) for model in models
  )
  logprobs = jax.nn.log_softmax(small)
  each = {
    'divergence from the large model': divergences.forward_kl(
      small, (Logits(large),), batch.targets
    ),
    'loss': -jnp.take_along_axis(logprobs, batch.targets[..., None], axis=-1)[..., 0],
    'accuracy': (jnp.argmax(small, -1) == batch.targets).astype(jnp.float32),
    'tokens': jnp.ones(batch.targets.shape),
  }
  return {name: jnp.sum(values, where=batch.weights > 0) for name, values in each.items()}


def quality(bench: Bench, cell: Cell) -> dict[str, float]:
  """Means over the tokens of the test rows."""

  def load(path: pathlib.Path) -> TrainedModel:
    return trained_model.load(Checkpoint(str(path)), rules=partitioning.RULES)

  with Devices().use():
    models = load(bench.run(cell)), load(bench.large_run(cell))
    corpus = bench.data(cell, answering=True).corpus(models[0].vocabulary, models[0].architecture)
    split = corpus.open('validation')
    batches = [*corpus.evaluation(split, batch_size=BATCH, rows=min(ROWS, len(split)))]
    test = batches[len(batches) // 2 :]  # as `cat_pretraining` divides them
    graphs = models[0].graph, models[1].graph
    each = [sums(graphs, (models[0].params, models[1].params), batch) for batch in test]
  total = {name: float(np.sum([one[name] for one in each])) for name in each[0]}
  tokens = total.pop('tokens')
  return {name: value / tokens for name, value in total.items()}


def rows(results: Mapping[str, Sequence[Mapping[str, float]]]) -> Iterator[Measured]:
  """Means of each cache over seeds, and paired differences from the choices of the same size."""
  for name, seeds in results.items():
    for quantity in seeds[0]:
      own = [seed[quantity] for seed in seeds]
      baseline = [seed[quantity] for seed in results[CHOICES]]
      difference = over_seeds([a - b for a, b in zip(own, baseline, strict=True)])
      note = '' if name == CHOICES else '{mean:+.4f} [{low:+.4f}, {high:+.4f}]'.format(**difference)
      yield Measured(f'{name}: {quantity}', float(np.mean(own)), '', note=note)


def main() -> None:
  parser = cat_runs.arguments(__doc__)
  parser.add_argument('--seeds', type=int, default=SEEDS)
  parser.add_argument('--output', default=bars.RESULTS / 'tail_samples.json')
  options = parser.parse_args()
  work, data = options.work.resolve(), options.data.resolve()
  base = Bench(Folders(data, work))
  if lacking := base.settings[TASK].missing(base.folders):
    parser.error(f'--data={options.data} lacks {", ".join(lacking)}')
  results: dict[str, list[dict[str, float]]] = {name: [] for name in CACHES}
  for seed in range(options.seeds):
    cell = Cell(TASK, 'nano', 'dist', factor=FACTOR, seed=seed)
    large = base.large(cell)
    for name in CACHES:
      bench = bench_of(work, data, name)
      link(bench.large_run(cell), large)
      if not bench.is_done(cell):
        bench.execute(cell)
      results[name].append(quality(bench, cell))
      print(f'{cell.name}, {name}: {results[name][-1]}', flush=True)
  settings = {'seeds': options.seeds, 'steps': SETTINGS[TASK].training.steps}
  bars.report('Samples of the tail in training', rows(results), options.output, settings, results)


if __name__ == '__main__':
  main()
