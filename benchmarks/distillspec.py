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
import functools
import io
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from benchmarks import bars, distillspec_models, distillspec_table
from benchmarks.distillspec_models import Columns
from cascades import cache_teacher, infer, losses, masks, train
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Data
from cascades.inference import latency
from cascades.inference.answers import DecodingOptions
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import files, partitioning
from cascades.tasks import catalog
from cascades.tasks.task import Row, Task
from cascades.training import optimizers, setup

STEPS, BATCH, LEARNING_RATE = 300, 64, 2e-3
ROWS = STEPS * BATCH  # of the training split, each of which is read once
LENGTHS = {'inputs': 16, 'targets': 16}
VOCABULARY = 104  # entries of all models
SOURCES = ('on_policy', 'target_generated')
DIVERGENCES = {
  'fkl': losses.distillspec_fkl,
  'jsd': losses.distillspec_jsd,
  'tvd': losses.distillspec_tvd,
  'rkl': losses.distillspec_rkl,
}
CONTROL, START = 'xent, fixed', 'start'


class Arm(NamedTuple):
  """A way to continue the training of the small model."""

  name: str
  loss: losses.CascadeLoss
  source: str = 'fixed'
  reference: str | None = None  # arm whose model AdaSPEC compares with


def fixed_arms() -> Iterator[Arm]:
  """Arms on the task's own answers that depend on no other."""
  yield Arm(CONTROL, losses.xent)
  for name, loss in DIVERGENCES.items():
    yield Arm(f'{name}, fixed', loss)
  yield Arm('gatekeeper, fixed', losses.gatekeeper)
  yield Arm('cat_gatekeeper, fixed', losses.cat_gatekeeper)


def crossed_arms(best: str) -> Iterator[Arm]:
  """Masks on the divergence of highest acceptance on the task's own answers."""
  loss, own = DIVERGENCES[best], f'{best}, fixed'
  yield Arm(f'{best} cat, fixed', functools.partial(loss, token_mask=masks.either_correct))
  for name, sign in (('adaspec', 1), ('adaspec smallest', -1)):
    adaspec = functools.partial(
      losses.adaspec, token_loss=loss.keywords['token_loss'], share=0.4, sign=sign
    )
    yield Arm(f'{best} {name}, fixed', adaspec, reference=own)


def source_arms() -> Iterator[Arm]:
  """Arms on answers of either model."""
  for name, loss in DIVERGENCES.items():
    for source in SOURCES:
      yield Arm(f'{name}, {source}', loss, source)
  yield Arm('xent, target_generated', losses.xent, 'target_generated')


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
    """Columns of each test word by the model of an arm; None if they are not measured yet."""
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
    data = Data(task=training_task(), lengths=LENGTHS, batch_size=BATCH, sources=self.sources(arm))
    train.train(
      str(directory),
      small=setup.SmallModel(initial_checkpoint_path=str(self.folder / 'xent')),
      large=self.teacher(arm, data),
      data=data,
      step=setup.Step(
        learning_rate=optax.constant_schedule(LEARNING_RATE),
        optimizer=optimizers.adamw,
        loss=arm.loss,
      ),
      schedule=setup.Schedule(train_steps=STEPS, save_every=0, keep=1),
      seed=self.number,
    )
    return directory

  def sources(self, arm: Arm) -> AnswerSources:
    """Sources of an arm; the large model answers the training words when they are first read."""
    if arm.source == 'fixed':
      return AnswerSources()
    if arm.source == 'on_policy':
      return AnswerSources(fixed_fraction=0)
    answers = self.path('large_answers')
    infer.infer(
      Checkpoint(str(self.folder / 'large')),
      infer.Output(str(answers)),
      data=Data(task=training_task(), lengths=LENGTHS, batch_size=512),
      splits=('train',),
      decoding_options=DecodingOptions(temperature=1.0),
    )
    return AnswerSources(fixed_fraction=0, on_policy_fraction=0, large_answers=str(answers))

  def teacher(self, arm: Arm, data: Data) -> setup.LargeModel:
    """The large model, or all of its outputs with the divergence of a reference beside them."""
    large = str(self.folder / 'large')
    if arm.reference is None:
      return setup.LargeModel(checkpoint_path=large)
    cache, reference = self.path('outputs'), str(self.path(arm.reference))
    cache_teacher.cache_teacher(
      Checkpoint(large, precision=None, weights='float32'),
      str(cache),
      data=data,
      answers=cache_teacher.Answers(top_k=VOCABULARY, dtype='float32', reference=reference),
      splits=('train',),
    )
    return setup.LargeModel(teacher_cache=str(cache))


def measure(seeds: Sequence[Seed], arms: Sequence[Arm | None]) -> None:
  """Train and measure what is missing, arm by arm; None stands for the start."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  open_pair = functools.cache(distillspec_models.open_pair)
  for arm in arms:
    name = arm.name if arm else START
    for seed in seeds:
      if seed.columns(name) is not None:
        continue
      began = time.monotonic()
      directory = seed.train(arm) if arm else seed.folder / 'xent'
      trained = time.monotonic()
      with partitioning.use(mesh):
        pair = open_pair(seed.folder / 'large')
        columns = pair.columns(distillspec_models.load(directory))
      seed.keep(name, columns | {'commit': np.array(bars.machine()['commit'])})
      took = trained - began, time.monotonic() - trained
      print(f'{seed.folder.name}: {name}, {took[0]:.0f} + {took[1]:.0f} s', flush=True)


def best_divergence(seeds: Sequence[Seed]) -> str:
  """Divergence whose arm on the task's own answers has the highest expected acceptance."""

  def acceptance(name: str) -> float:
    stored = (seed.columns(f'{name}, fixed') for seed in seeds)
    return float(np.mean([own['alpha 1'].mean() for own in stored if own]))

  return max(DIVERGENCES, key=acceptance)


def step_ratio(folder: pathlib.Path) -> float:
  """Seconds of a step of the small model over one token for each of the large one's, one prompt."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    models = [distillspec_models.load(folder / name) for name in ('xent', 'large')]
    prompt = distillspec_models.read_words(models[0], 1).prompts[0]
    single = jax.tree.map(lambda x: x[:1], prompt)
    seconds = [
      latency.step_seconds(model, single, (1,), max_tokens=LENGTHS['targets'])[1][1]
      for model in models
    ]
  return seconds[0] / seconds[1]


def report(seeds: Sequence[Seed], names: Sequence[str], output: pathlib.Path) -> None:
  """Report the arms that all seeds have."""
  stored = {name: [seed.columns(name) for seed in seeds] for name in names}
  complete = {
    name: [own for own in columns if own] for name, columns in stored.items() if all(columns)
  }
  summary = distillspec_table.summarize(complete, CONTROL)
  measured = [
    *distillspec_table.rows(summary, CONTROL, step_ratio(seeds[0].folder)),
    *distillspec_table.gains(distillspec_table.summarize(complete, START), START),
  ]
  settings = {
    'seeds': len(seeds), 'steps': STEPS, 'batch': BATCH, 'learning rate': LEARNING_RATE,
    'words': distillspec_models.WORDS, 'words of lossless decoding': distillspec_models.DRAFTED,
    'missing arms': [name for name in names if name not in complete],
  }  # fmt: skip
  commits = {str(own['commit']) for columns in complete.values() for own in columns}
  details = {'commits of the arms': sorted(commits), 'arms': summary}
  bars.report('Distilled drafters', measured, output, settings, details)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folders', nargs='+', type=pathlib.Path)
  parser.add_argument('--work', type=pathlib.Path, default=pathlib.Path('runs/distillspec'))
  parser.add_argument('--output', default=bars.RESULTS / 'distillspec.json')
  parser.add_argument('--report_only', action='store_true', help='measure nothing')
  options = parser.parse_args()
  seeds = [Seed(folder, number, options.work) for number, folder in enumerate(options.folders)]
  own = [None, *fixed_arms()]
  names = [arm.name if arm else START for arm in own]
  if not options.report_only:
    measure(seeds, own)
  elif any(seed.columns(name) is None for seed in seeds for name in names):
    parser.error(f'{options.work} lacks some of the arms {"; ".join(names)}: measure them first')
  others = [*crossed_arms(best_divergence(seeds)), *source_arms()]
  if not options.report_only:
    measure(seeds, others)
  report(seeds, [*names, *(arm.name for arm in others)], options.output)


if __name__ == '__main__':
  main()
