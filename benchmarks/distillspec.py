"""Drafts, answers and deferrals of small models that were distilled in different ways.

    python -m benchmarks.distillspec runs/demo runs/seed1 runs/seed2

Each argument is a folder of `launch.demo`, of a seed of its own. Each arm continues the training of
its small model `xent` beside its `large`, with a loss and a source of answers of its own; the
protocol is in docs/distillation.md. What each arm's model does with every test word is kept in
`--work`, so that the same command resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from benchmarks import bars, distillspec_models
from benchmarks.distillspec_models import Columns, Pair
from cascades import losses, train
from cascades.data.corpus import Data
from cascades.runtime import files, partitioning
from cascades.tasks import catalog
from cascades.tasks.task import Row, Task
from cascades.training import optimizers, setup

STEPS, BATCH, LEARNING_RATE = 300, 64, 2e-3
ROWS = STEPS * BATCH  # of the training split, each of which is read once
LENGTHS = {'inputs': 16, 'targets': 16}
SOURCES = ('fixed',)
DIVERGENCES = {
  'fkl': losses.distillspec_fkl,
  'rkl': losses.distillspec_rkl,
  'jsd': losses.distillspec_jsd,
  'tvd': losses.distillspec_tvd,
}
CONTROL = 'xent, fixed'


class Arm(NamedTuple):
  """A way to continue the training of the small model."""

  name: str
  loss: losses.CascadeLoss
  source: str = 'fixed'


def first_arms() -> Iterator[Arm]:
  """Arms that depend on no other's result."""
  yield Arm(CONTROL, losses.xent)
  for source in SOURCES:
    for name, loss in DIVERGENCES.items():
      yield Arm(f'{name}, {source}', loss, source)
  yield Arm('gatekeeper, fixed', losses.gatekeeper)
  yield Arm('cat_gatekeeper, fixed', losses.cat_gatekeeper)


def training_task() -> Task:
  """The first words, in a fixed random order, of the training split of `cmudict_g2p`."""
  task = catalog.get('cmudict_g2p')
  assert isinstance(task, Task)

  def read(split: str) -> Iterator[Row]:
    rows = list(task.read(split))
    order = np.random.default_rng(0).permutation(len(rows))[:ROWS]
    return (rows[number] for number in order)

  return dataclasses.replace(task, name='cmudict_g2p_distillspec', splits=('train',), read=read)


@dataclasses.dataclass(frozen=True)
class Seed:
  """Folder of a seed, and what is kept of its arms."""

  folder: pathlib.Path
  number: int
  work: pathlib.Path

  def path(self, name: str) -> pathlib.Path:
    return self.work / self.folder.name / name.replace(', ', '_')

  def columns(self, name: str) -> Columns | None:
    """What the model of an arm did with each test word, None if that is not measured yet."""
    file = self.path(name).with_suffix('.npz')
    if not file.exists():
      return None
    with np.load(file, allow_pickle=False) as stored:
      return dict(stored)

  def keep(self, name: str, columns: Columns) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **columns)
    files.write(self.path(name).with_suffix('.npz'), buffer.getvalue())

  def train(self, arm: Arm) -> pathlib.Path:
    """Train the model of an arm, from the checkpoint of `xent`."""
    directory = self.path(arm.name)
    train.train(
      str(directory),
      small=setup.SmallModel(initial_checkpoint_path=str(self.folder / 'xent')),
      large=setup.LargeModel(checkpoint_path=str(self.folder / 'large')),
      data=Data(task=training_task(), lengths=LENGTHS, batch_size=BATCH),
      step=setup.Step(
        learning_rate=optax.constant_schedule(LEARNING_RATE),
        optimizer=optimizers.adamw,
        loss=arm.loss,
      ),
      schedule=setup.Schedule(train_steps=STEPS, save_every=0, keep=1),
      seed=self.number,
    )
    return directory


def measure(seeds: Sequence[Seed], arms: Sequence[Arm]) -> None:
  """Train and measure what is missing."""
  for seed in seeds:
    missing = [arm for arm in arms if seed.columns(arm.name) is None]
    start = seed.columns('start') is None
    if not missing and not start:
      continue
    pair: Pair | None = None
    for arm in [None, *missing] if start else missing:
      began = time.monotonic()
      directory = seed.train(arm) if arm else seed.folder / 'xent'
      trained = time.monotonic()
      with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
        pair = pair or distillspec_models.open_pair(seed.folder / 'large')
        columns = pair.columns(distillspec_models.load(directory))
      name = arm.name if arm else 'start'
      seed.keep(name, columns | {'commit': np.array(bars.machine()['commit'])})
      took = trained - began, time.monotonic() - trained
      print(f'{seed.folder.name}: {name}, {took[0]:.0f} + {took[1]:.0f} s', flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folders', nargs='+', type=pathlib.Path)
  parser.add_argument('--work', type=pathlib.Path, default=pathlib.Path('runs/distillspec'))
  parser.add_argument('--output', default=bars.RESULTS / 'distillspec.json')
  options = parser.parse_args()
  seeds = [Seed(folder, number, options.work) for number, folder in enumerate(options.folders)]
  arms = list(first_arms())
  measure(seeds, arms)


if __name__ == '__main__':
  main()
