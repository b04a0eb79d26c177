"""Drafts, answers and deferrals of small models that were distilled in different ways.

    python -m benchmarks.distillspec runs/demo runs/seed1 runs/seed2
    python -m benchmarks.distillspec --pair=tanaka --data=../shared/data runs/tanaka/{0,1,2}
    python -m benchmarks.distillspec --pair=smollm2 runs/smollm2_{pair,seed1,seed2}

Each argument is a folder of a seed of its own: of `launch.demo` (the pair `g2p`), of
`benchmarks.smollm2_drafter`, or for `tanaka`, whose models are trained first. Each arm continues
the training of its small model beside its `large`, with a loss and a source of answers of its own;
the protocol is in docs/distillation.md. What each arm's model does with every test row is kept in
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

from benchmarks import bars, distillspec_models, distillspec_pairs, distillspec_table
from benchmarks.distillspec_models import Columns
from benchmarks.distillspec_pairs import PAIRS, DistilledPair
from cascades import cache_teacher, infer, losses, masks, metrics, train
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Data
from cascades.inference import latency
from cascades.inference.answers import DecodingOptions
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import files, partitioning
from cascades.training import optimizers, setup, train_step

SOURCES = ('on_policy', 'target_generated')
DIVERGENCES = {
  'fkl': losses.distillspec_fkl,
  'jsd': losses.distillspec_jsd,
  'tvd': losses.distillspec_tvd,
  'rkl': losses.distillspec_rkl,
}
START = 'start'


class Arm(NamedTuple):
  """A way to continue the training of the small model."""

  name: str
  loss: losses.CascadeLoss
  source: str = 'fixed'
  reference: str | None = None  # arm whose model AdaSPEC compares with
  token_weights: train_step.TokenWeights | None = None


CONTROL = Arm('xent, fixed', losses.xent)


def fixed_arms() -> Iterator[Arm]:
  """Arms on the task's own answers that depend on no other."""
  yield CONTROL
  for name, loss in DIVERGENCES.items():
    yield Arm(f'{name}, fixed', loss)
  equal = train_step.equal_answers
  yield Arm('tvd equal answers, fixed', losses.distillspec_tvd, token_weights=equal)
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


@dataclasses.dataclass(frozen=True)
class Seed:
  """Folder of a seed, and what is kept of its arms."""

  setting: DistilledPair
  folder: pathlib.Path
  number: int
  work: pathlib.Path

  def path(self, name: str) -> pathlib.Path:
    return self.work / self.folder.name / name.replace(', ', '_')

  def columns(self, name: str) -> Columns | None:
    """Columns of each test row by the model of an arm; None if they are not measured yet."""
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
    """Train the model of an arm, from the checkpoint of the small model."""
    directory, data = self.path(arm.name), self.data(arm)
    train.train(
      str(directory),
      small=setup.SmallModel(initial_checkpoint_path=str(self.folder / self.setting.start)),
      large=self.teacher(arm, data),
      data=data,
      step=setup.Step(
        learning_rate=optax.constant_schedule(self.setting.learning_rate),
        optimizer=optimizers.adamw,
        loss=arm.loss,
        token_weights=arm.token_weights,
      ),
      schedule=setup.Schedule(train_steps=self.setting.steps, save_every=0, keep=1),
      seed=self.number,
    )
    return directory

  def data(self, arm: Arm) -> Data:
    """Rows and answers of an arm; the large model answers when its answers are first read."""
    task, sources = self.setting.training_task(self.folder), AnswerSources()
    if arm.source == 'on_policy':
      sources = AnswerSources(fixed_fraction=0)
    elif arm.source == 'target_generated' and self.setting.cached:
      task = distillspec_pairs.answered_by_large(task, self.large_answers())
    elif arm.source == 'target_generated':
      large = str(self.large_answers())
      sources = AnswerSources(fixed_fraction=0, on_policy_fraction=0, large_answers=large)
    return Data(
      task=task,
      lengths=self.setting.lengths,
      batch_size=self.setting.batch,
      sources=sources,
      records_dir=str(self.work / 'records'),
    )

  def large_answers(self) -> pathlib.Path:
    """Table of the large model's answers to the training rows: the folder's own, or samples."""
    own = self.folder / 'answers'
    if own.exists():
      return own
    answers = self.path('large_answers')
    infer.infer(
      Checkpoint(str(self.folder / 'large')),
      infer.Output(str(answers)),
      data=dataclasses.replace(self.data(CONTROL), batch_size=self.setting.test_batch),
      splits=('train',),
      decoding_options=DecodingOptions(temperature=1.0),
    )
    return answers

  def teacher(self, arm: Arm, data: Data) -> setup.LargeModel:
    """The large model, or its outputs with the divergence of a reference beside them."""
    large = (self.folder / 'large').resolve()
    cached = self.setting.cached and arm.source != 'on_policy'
    if arm.reference is None and not cached:
      return setup.LargeModel(checkpoint_path=str(large))
    reference = str(self.path(arm.reference)) if arm.reference else None
    owner = self.folder if reference else large.parent  # seeds of one large model share its outputs
    beside = '_and_reference' if reference else ''
    cache = self.work / owner.name / f'outputs_{arm.source}{beside}'
    cache_teacher.cache_teacher(
      Checkpoint(str(large), precision=None, weights='float32'),
      str(cache),
      data=dataclasses.replace(data, batch_size=self.setting.test_batch),
      answers=cache_teacher.Answers(
        top_k=self.setting.outcomes, dtype='float32', reference=reference
      ),
      splits=('train',),
    )
    return setup.LargeModel(teacher_cache=str(cache))


def measure(seeds: Sequence[Seed], arms: Sequence[Arm | None]) -> None:
  """Train and measure what is missing, arm by arm; None stands for the start."""
  mesh = partitioning.make_mesh(devices=jax.devices()[:1])
  setting = seeds[0].setting
  pairs: dict[pathlib.Path, distillspec_models.Pair] = {}  # by large model, which seeds may share
  for arm in arms:
    name = arm.name if arm else START
    for seed in seeds:
      if seed.columns(name) is not None:
        continue
      began = time.monotonic()
      directory = seed.train(arm) if arm else seed.folder / setting.start
      trained = time.monotonic()
      with partitioning.use(mesh):
        large = (seed.folder / 'large').resolve()
        if large not in pairs:
          pairs[large] = distillspec_models.open_pair(setting, seed.folder)
        columns = pairs[large].columns(distillspec_models.load(directory))
      seed.keep(name, columns | {'commit': np.array(bars.machine()['commit'])})
      took = trained - began, time.monotonic() - trained
      print(f'{seed.folder.name}: {name}, {took[0]:.0f} + {took[1]:.0f} s', flush=True)
    jax.clear_caches()  # the programs of all arms would take more maps of memory than Linux gives


def best_divergence(seeds: Sequence[Seed]) -> str:
  """Divergence whose arm on the task's own answers has the highest expected acceptance."""

  def acceptance(name: str) -> float:
    stored = (seed.columns(f'{name}, fixed') for seed in seeds)
    return float(np.mean([own['alpha 1'].mean() for own in stored if own]))

  return max(DIVERGENCES, key=acceptance)


def step_ratio(setting: DistilledPair, folder: pathlib.Path) -> float:
  """Seconds of a step of the small model over one token for each of the large one's, one prompt."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    small, large = (distillspec_models.load(folder / name) for name in (setting.start, 'large'))
    (row,) = distillspec_models.read_rows(setting, folder, small, 1)
    single = jax.tree.map(lambda x: x[:1], row.prompt)
    costs = latency.step_costs(small, large, single, most=0, max_tokens=setting.answer)
  return costs.small / costs.large[0]


def report(seeds: Sequence[Seed], names: Sequence[str], output: pathlib.Path) -> None:
  """Report the arms that all seeds have."""
  setting = seeds[0].setting
  stored = {name: [seed.columns(name) for seed in seeds] for name in names}
  complete = {
    name: [own for own in columns if own] for name, columns in stored.items() if all(columns)
  }
  summarize = functools.partial(
    distillspec_table.summarize,
    complete,
    finalize=setting.metric.finalize if setting.metric else metrics.ratio,
  )
  summary = summarize(CONTROL.name)
  measured = [
    *distillspec_table.rows(summary, CONTROL.name, step_ratio(setting, seeds[0].folder)),
    *distillspec_table.gains(summarize(START), START),
  ]
  settings = {
    'seeds': len(seeds), 'steps': setting.steps, 'batch': setting.batch,
    'learning rate': setting.learning_rate, 'rows': setting.words,
    'rows of lossless decoding': setting.drafted,
    'quality': setting.metric.name if setting.metric else "log-likelihood of the task's answers",
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
  parser.add_argument('--pair', choices=PAIRS, default='g2p')
  parser.add_argument('--work', type=pathlib.Path, default=pathlib.Path('runs/distillspec'))
  parser.add_argument('--data', type=pathlib.Path, help='that the models of tanaka are trained on')
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'distillspec.json')
  parser.add_argument('--report_only', action='store_true', help='measure nothing')
  options = parser.parse_args()
  setting, work = PAIRS[options.pair], options.work.resolve() / options.pair
  jax.config.update('jax_compilation_cache_dir', str(work / 'compiled'))
  seeds = [
    Seed(setting, folder.resolve(), number, work) for number, folder in enumerate(options.folders)
  ]
  if options.data:
    distillspec_pairs.train_tanaka(options.data.resolve(), [seed.folder for seed in seeds])
  own = [None, *fixed_arms()]
  names = [arm.name if arm else START for arm in own]
  if not options.report_only:
    measure(seeds, own)
  if any(seed.columns(name) is None for seed in seeds for name in names):
    parser.error(f'{work} lacks some of the arms {"; ".join(names)}: measure them first')
  others = [*crossed_arms(best_divergence(seeds)), *source_arms()]
  if not options.report_only:
    measure(seeds, others)
  name = options.output.stem + f'_{options.pair}' * (options.pair != 'g2p')
  report(seeds, [*names, *(arm.name for arm in others)], options.output.with_stem(name))


if __name__ == '__main__':
  main()
