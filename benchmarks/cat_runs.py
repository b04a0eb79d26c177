"""Runs of a point: the large model and its cache, which points share, the small model, its answers.

Everything lies in the folder of work, and what is finished is not repeated. `points/NAME.json` has
the summary of a point and `points/NAME.npz` its test rows.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks import bars
from benchmarks.cat_grid import BASE, SECOND, Cell
from benchmarks.cat_statistics import Rows
from benchmarks.cat_summary import agreement
from benchmarks.cat_tasks import SETTINGS, Folders, Setting, Training
from cascades import cache_teacher, costs, losses, masks
from cascades import prune as pruning_program
from cascades import train as training_program
from cascades.data.corpus import Data
from cascades.inference.trained_model import Checkpoint
from cascades.models import configs, pruning
from cascades.runtime import claims, files, stopping
from cascades.tokenizers.conventions import EOS_ID
from cascades.training import optimizers, setup, train_step

STAGES = {'cat_xent_lagged': 4}  # of training; the second and later ones refresh the lagged model
SECOND_STAGE = 0.3  # steps, as a share of the first one's


def either_or_end(small: Any, teachers: Any, targets: Any) -> Any:
  """The mask of cascade-aware training, without ever dropping the end of sequence."""
  return masks.either_correct(small, teachers, targets) | (targets == EOS_ID)


LOSSES: Mapping[str, losses.CascadeLoss] = {
  **{
    name: getattr(losses, name)
    for name in (
      *BASE, 'cat_xent_l', 'cat_xent_s', 'cat_dist_l', 'cat_dist_s', 'gatekeeper', 'cat_gatekeeper',
    )
  },
  'cat_xent_lagged': losses.cat_xent_l,  # the lagged small model is a teacher beside the large one
  'cat_xent_eos': functools.partial(losses.xent, token_mask=either_or_end),
  'adaspec': functools.partial(
    losses.adaspec, token_loss=functools.partial(losses.mixture, w=0.5)
  ),
}  # fmt: skip


def arguments(description: str | None) -> argparse.ArgumentParser:
  """Parser of a program that reads or writes the runs."""
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--data', type=pathlib.Path, default=pathlib.Path('../shared/data'))
  parser.add_argument('--work', type=pathlib.Path, default=pathlib.Path('runs/reproduce_cat'))
  return parser


class Bench:
  """The folders, and the runs in them.

  Attributes:
    tuned: Summaries of tuning points by name, of an earlier report: rates come from them, and not
      from runs.
  """

  def __init__(
    self,
    folders: Folders,
    settings: Mapping[str, Setting] = SETTINGS,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
  ) -> None:
    self.folders, self.settings, self.tuned = folders, settings, tuned or {}
    self.points = folders.work / 'points'

  def path(self, cell: Cell) -> pathlib.Path:
    return self.points / f'{cell.name}.json'

  def is_done(self, cell: Cell) -> bool:
    return self.path(cell).exists()

  def summary(self, cell: Cell) -> dict[str, Any]:
    return json.loads(self.path(cell).read_text())

  def rows(self, cell: Cell, score: str = 'average') -> Rows:
    """Test rows of a point under a score."""
    with np.load(self.path(cell).with_suffix('.npz'), allow_pickle=False) as stored:
      return Rows(stored[score], stored['small'], stored['large'])

  def waits_for(self, cell: Cell) -> list[str]:
    """What is missing before a point can run: data, or the names of other points."""
    tuned = {tried.name for tried in cell.tuning} & self.tuned.keys()
    return self.settings[cell.task].missing(self.folders) or [
      other.name for other in cell.needs if other.name not in tuned and not self.is_done(other)
    ]

  def data(self, cell: Cell, *, answering: bool = False) -> Data:
    setting = self.settings[cell.task]
    packed = setting.pack is not None
    return Data(
      task=_task(setting.task, self.folders, cell.noise),
      lengths=setting.lengths,
      batch_size=(32 if packed else 512) if answering else setting.batch,
      pack_length=None if answering else setting.pack,
      records_dir=str(self.folders.work / 'records'),
    )

  @contextlib.contextmanager
  def _once(self, directory: pathlib.Path) -> Iterator[bool]:
    """Context manager that one process is in at a time; False if the work is done already."""
    marker = directory / '.complete'
    directory.parent.mkdir(parents=True, exist_ok=True)
    with claims.alone(directory.parent, directory.name):
      if marker.exists():
        yield False
        return
      yield True
      marker.touch()

  def large_run(self, cell: Cell) -> pathlib.Path:
    """Folder of the large model of a point's task and seed."""
    seed = self.settings[cell.task].large_seed(cell.seed)
    return self.folders.work / 'large' / f'{cell.task}-noise{cell.noise:g}-{seed}'

  def cache_path(self, cell: Cell, reference: pathlib.Path | None = None) -> pathlib.Path:
    """Folder of that model's outputs on the training rows."""
    large = self.large_run(cell)
    return large.with_name(f'{large.name}-cache{f"-{reference.name}" if reference else ""}')

  def is_prepared_elsewhere(self, cell: Cell) -> bool:
    """Whether a process holds the claim on a point's large model or on its outputs."""
    paths = self.large_run(cell), self.cache_path(cell)
    return not claims.claimed(paths[0].parent).keys().isdisjoint(path.name for path in paths)

  def large(self, cell: Cell) -> pathlib.Path:
    """Run of the large model of a point's task and seed, with its answers."""
    setting, run = self.settings[cell.task], self.large_run(cell)
    with self._once(run) as missing:
      if missing:
        small = self._pretrained() if setting.large is None else setup.SmallModel(setting.large)
        seed = setting.large_seed(cell.seed)
        self._train(run, small, cell, setting.large_training, seed=seed)
        self._answer(run, cell)
    return run

  def cache(self, cell: Cell, reference: pathlib.Path | None = None) -> pathlib.Path:
    """The large model's outputs on the training rows, for all losses, sizes and small seeds."""
    answers = dataclasses.replace(
      self.settings[cell.task].outputs, reference=str(reference) if reference else None
    )
    return self._outputs(self.large(cell), self.cache_path(cell, reference), cell, answers)

  def caches(self, cell: Cell) -> list[pathlib.Path]:
    """Outputs of all models behind a point's: of the middle one, if there is one, and the large."""
    reference = self.run(cell.origin) if cell.origin and not cell.start else None
    caches = [self.cache(cell, reference)]
    if cell.later:
      directory = self.folders.work / 'middle' / f'{cell.later.name}-cache'
      outputs = self.settings[cell.task].outputs
      caches.insert(0, self._outputs(self.run(cell.later), directory, cell, outputs))
    return caches

  def _outputs(
    self,
    run: pathlib.Path,
    directory: pathlib.Path,
    cell: Cell,
    answers: cache_teacher.Answers,
  ) -> pathlib.Path:
    """The folder, with a model's outputs on the training rows of a point."""
    with self._once(directory) as missing:
      if missing:
        cache_teacher.cache_teacher(
          Checkpoint(str(run), precision=None, weights='float32'),
          str(directory),
          data=self.data(cell, answering=True),
          answers=answers,
          splits=('train',),
        )
    return directory

  def _pretrained(self) -> setup.SmallModel:
    """The pretrained weights, converted once."""
    from cascades import convert

    run = self.folders.work / 'pretrained'
    with self._once(run) as missing:
      if missing:
        convert.convert(self.folders.source, str(run))
    return setup.SmallModel(initial_checkpoint_path=str(run))

  def small(self, cell: Cell) -> setup.SmallModel:
    """The model that a point trains, before training."""
    if cell.start and cell.origin:
      return setup.SmallModel(initial_checkpoint_path=str(self.run(cell.origin)))
    size = self.settings[cell.task].sizes[cell.size]
    if not isinstance(size, tuple):
      return setup.SmallModel(size)
    path = str(self._pretrained().initial_checkpoint_path)
    run = self.folders.work / f'pruned-{cell.size}'
    with self._once(run) as missing:
      if missing:
        head, tail = size
        layers = functools.partial(pruning.ends, head=head, tail=tail)
        pruning_program.prune(path, str(run), layers=layers)
    return setup.SmallModel(initial_checkpoint_path=str(run))

  def run(self, cell: Cell) -> pathlib.Path:
    return self.folders.work / 'small' / cell.name

  def training(self, cell: Cell) -> Training:
    """Steps and learning rate of a point: the tuned one, unless the point is one of tuning."""
    own = self.settings[cell.task].training
    factor = self.chosen_factor(cell) if cell.tuning else cell.factor
    if cell.start:
      share = SECOND_STAGE
    elif cell.length:
      share = cell.length
    else:
      share = self.equal_flops(cell)
    steps = round(own.steps * share)
    return Training(steps=steps, rate=own.rate * factor, warmup=min(own.warmup, steps // 2))

  def chosen_factor(self, cell: Cell) -> float:
    """Factor of the highest mean quality alone on the validation rows, or of the second highest.

    Of equal ones the first.
    """
    qualities: dict[float, list[float]] = {}
    for tried in cell.tuning:
      summary = self.tuned.get(tried.name) or self.summary(tried)
      qualities.setdefault(tried.factor, []).append(summary['validation alone'])
    best_first = sorted(qualities, key=lambda factor: -fmean(qualities[factor]))
    return best_first[cell.factor == SECOND]

  def equal_flops(self, cell: Cell) -> float:
    """FLOPs of a step with the large model beside the small one, over those of one without."""
    sizes = self.summary(cell._replace(length=1.0))['parameters']
    aided = costs.training_step(1, parameters=sizes['small'], teacher=sizes['large'])
    return aided / costs.training_step(1, parameters=sizes['small'])

  def _train(
    self,
    run: pathlib.Path,
    small: setup.SmallModel,
    cell: Cell,
    training: Training,
    *,
    seed: int,
    loss: losses.CascadeLoss = losses.xent,
    caches: Sequence[pathlib.Path] = (),
    until: int | None = None,
  ) -> None:
    schedule = optimizers.cosine(
      training.rate, total_steps=training.steps, warmup_steps=training.warmup
    )
    training_program.train(
      str(run),
      small=small,
      large=setup.LargeModel(teacher_cache=[*map(str, caches)] or None),
      data=self.data(cell),
      step=setup.Step(
        learning_rate=schedule,
        optimizer=optimizers.adamw,
        loss=loss,
        normalizer=getattr(train_step, cell.normalizer),
        block_length=self.settings[cell.task].block_length,
      ),
      schedule=setup.Schedule(train_steps=until or training.steps, save_every=500, keep=1),
      # A later stage has another teacher.
      failures=setup.Failures(on_changed_settings=stopping.go_on if until else stopping.stop),
      seed=seed,
    )

  def _train_point(
    self,
    run: pathlib.Path,
    cell: Cell,
    training: Training,
    loss: losses.CascadeLoss,
    caches: Sequence[pathlib.Path],
  ) -> None:
    """Train in the stages of the loss; after each, the model so far is the lagged teacher."""
    train = functools.partial(
      self._train, run, self.small(cell), cell, training, seed=cell.seed, loss=loss
    )
    stages = STAGES.get(cell.loss, 1)
    for stage in range(1, stages):
      until = training.steps * stage // stages
      train(caches=caches, until=until)
      lagged = self.folders.work / 'lagged' / f'{cell.name}-{until}'
      caches = [caches[0], self._outputs(run, lagged, cell, cache_teacher.Answers())]
    train(caches=caches, until=training.steps if stages > 1 else None)

  def _answer(self, run: pathlib.Path, cell: Cell) -> None:
    clean = self.data(cell._replace(noise=0.0), answering=True)
    self.settings[cell.task].answering.answer(run, clean)

  def execute(self, cell: Cell) -> dict[str, Any]:
    """Train a point's model, let it answer, and write its summary and test rows."""
    began = time.monotonic()
    large, run = self.large(cell), self.run(cell)
    # All losses read the caches, so that the kept fractions of each are counted.
    caches = self.caches(cell)
    shared = time.monotonic()
    loss = LOSSES[cell.loss]
    if cell.w != 0.5:
      loss = functools.partial(loss, w=cell.w)
    training = self.training(cell)
    self._train_point(run, cell, training, loss, caches)
    trained = time.monotonic()
    self._answer(run, cell)
    answered = time.monotonic()
    columns, numbers = self.settings[cell.task].answering.summarize(run, large)
    where = bars.machine()
    summary = {
      'point': cell.name, **cell.recorded, **numbers,
      'learning rate': training.rate, 'steps': training.steps,
      'parameters': {'small': _parameters(run), 'large': _parameters(large)},
      'agreement': agreement(run),
      'seconds': {'shared': shared - began, 'training': trained - shared,
                  'answers': answered - trained},
      'commit': where['commit'], 'load': where['load'],
    }  # fmt: skip
    self.points.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **columns)
    files.write(self.path(cell).with_suffix('.npz'), buffer.getvalue())
    files.write(self.path(cell), json.dumps(summary, indent=1))
    if isinstance(self.settings[cell.task].sizes[cell.size], tuple):  # hundreds of MB
      for checkpoint in run.glob('checkpoint_*'):
        shutil.rmtree(checkpoint)
    return summary


@functools.cache
def _task(make: Any, folders: Folders, noise: float) -> Any:
  return make(folders, noise)


def _parameters(run: pathlib.Path) -> int:
  return configs.count_parameters(
    configs.from_description(json.loads((run / 'model.json').read_text())['model'])
  )
