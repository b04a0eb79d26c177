"""Runs of a point: the large model and its cache, which points share, the small model, its answers.

Everything lies in the folder of work, and what is finished is not repeated. `points/NAME.json` has
the summary of a point and `points/NAME.npz` its test rows.
"""

from __future__ import annotations

import contextlib
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

from benchmarks import bars, cat_statistics
from benchmarks.cat_grid import BASE, SECOND, Cell
from benchmarks.cat_statistics import Rows
from benchmarks.cat_tasks import SETTINGS, Folders, Setting, Training
from cascades import cache_teacher, costs, deferral, infer, learned_deferral, losses, masks, metrics
from cascades import prune as pruning_program
from cascades import train as training_program
from cascades.data.corpus import Data
from cascades.evaluation import pooling
from cascades.inference.trained_model import Checkpoint
from cascades.models import configs, pruning
from cascades.predictions import shards
from cascades.runtime import claims, files
from cascades.tokenizers.conventions import EOS_ID
from cascades.training import optimizers, setup, train_step
from cascades.types import Predictions

SPLITS = ('validation', 'test')
RULES = {
  'average': deferral.average,
  'sum': deferral.total,
  'minimum': deferral.minimum,
  'maximum': deferral.maximum,
  'quantile 0.4': functools.partial(deferral.quantile, q=0.4),
  'quantile 0.8': functools.partial(deferral.quantile, q=0.8),
}
LEARNED = ('edge_inference', 'post_hoc_quantile')
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
  'cat_xent_eos': functools.partial(losses.xent, token_mask=either_or_end),
  'adaspec': functools.partial(
    losses.adaspec, token_loss=functools.partial(losses.mixture, w=0.5)
  ),
}  # fmt: skip


class Bench:
  """The folders, and the runs in them."""

  def __init__(self, folders: Folders, settings: Mapping[str, Setting] = SETTINGS) -> None:
    self.folders, self.settings = folders, settings
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
    return self.settings[cell.task].missing(self.folders) or [
      other.name for other in cell.needs if not self.is_done(other)
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
    return self._outputs(self.large(cell), self.cache_path(cell, reference), cell, reference)

  def caches(self, cell: Cell) -> list[pathlib.Path]:
    """Outputs of all models behind a point's: of the middle one, if there is one, and the large."""
    reference = self.run(cell.origin) if cell.origin and not cell.start else None
    caches = [self.cache(cell, reference)]
    if cell.later:
      directory = self.folders.work / 'middle' / f'{cell.later.name}-cache'
      caches.insert(0, self._outputs(self.run(cell.later), directory, cell))
    return caches

  def _outputs(
    self,
    run: pathlib.Path,
    directory: pathlib.Path,
    cell: Cell,
    reference: pathlib.Path | None = None,
  ) -> pathlib.Path:
    """The folder, with a model's outputs on the training rows of a point."""
    with self._once(directory) as missing:
      if missing:
        cache_teacher.cache_teacher(
          Checkpoint(str(run), precision=None, weights='float32'),
          str(directory),
          data=self.data(cell, answering=True),
          answers=cache_teacher.Answers(
            top_k=self.settings[cell.task].top_k, reference=str(reference) if reference else None
          ),
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
      qualities.setdefault(tried.factor, []).append(self.summary(tried)['validation alone'])
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
      ),
      schedule=setup.Schedule(train_steps=training.steps, save_every=500, keep=1),
      seed=seed,
    )

  def _answer(self, run: pathlib.Path, cell: Cell) -> None:
    clean = self.data(cell._replace(noise=0.0), answering=True)
    infer.infer(
      Checkpoint(str(run)), infer.Output(str(run / 'predictions')), data=clean, splits=SPLITS
    )

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
    self._train(run, self.small(cell), cell, training, seed=cell.seed, loss=loss, caches=caches)
    trained = time.monotonic()
    self._answer(run, cell)
    answered = time.monotonic()
    small_tables, large_tables = (
      {split: shards.read(path / 'predictions' / split) for split in SPLITS}
      for path in (run, large)
    )
    columns, numbers = summarize(small_tables, large_tables)
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


def agreement(run: pathlib.Path) -> list[dict[str, float]]:
  """Shares of the training tokens that both models, one or neither predicts, by step."""
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  names = ('both', 'only_small', 'only_large', 'neither')
  return [
    {'step': line['step'], **{name: line[name] for name in names}}
    for line in lines
    if all(name in line for name in names)
  ]


Tables = Mapping[str, Sequence[Predictions]]


def summarize(small: Tables, large: Tables) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Columns of the test rows, and the numbers of a point's summary."""
  names = [table.manifest['metrics'][0] for table in small['test']]
  each = [metrics.by_name(name) for name in names]
  statistics = {
    (role, split): pooling.statistics(tables[split], each)
    for role, tables in (('small', small), ('large', large))
    for split in SPLITS
  }
  quality = {
    key: np.concatenate([metric.finalize(s) for metric, s in zip(each, own, strict=True)])
    for key, own in statistics.items()
  }
  pooled = {split: pooling.pool(small[split]) for split in SPLITS}
  columns = {name: deferral.as_score(rule)(pooled['test']) for name, rule in RULES.items()}
  columns['average without the end'] = without_end(pooled['test'])
  for name in LEARNED:
    scale = max(1.0, *(float(quality[role, 'validation'].max()) for role in ('small', 'large')))
    judged = [quality[role, 'validation'] / scale for role in ('small', 'large')]
    with contextlib.suppress(learned_deferral.FitError):
      fitted = learned_deferral.fit(
        name, learned_deferral.METHODS[name], pooled['validation'], *judged
      )
      columns[name] = fitted.decider().score(pooled['test'])
  finalize = finalizer(names)
  columns |= {role: np.concatenate(statistics[role, 'test']) for role in ('small', 'large')}
  rows = Rows(columns['average'], columns['small'], columns['large'])
  ones = np.ones((1, len(rows.score)))
  numbers: dict[str, Any] = {
    name: float(value[0]) for name, value in cat_statistics.quantities(rows, ones, finalize).items()
  }
  numbers['large alone'] = float(finalize(rows.large.sum(axis=0)))
  numbers['validation alone'] = float(
    finalize(np.concatenate(statistics['small', 'validation']).sum(axis=0))
  )
  return columns, {'metric': names[0], 'rows': len(rows.score)} | numbers


def finalizer(names: Sequence[str]) -> Any:
  """The tasks' common metric; tasks are pooled as one set of rows."""
  if len(set(names)) > 1:
    raise ValueError(f'the tasks have the metrics {sorted(set(names))}: pool tasks of one metric.')
  return metrics.by_name(names[0]).finalize


def without_end(table: Predictions) -> np.ndarray:
  """The average rule over all tokens but the last, the end of sequence; all of one token."""
  logprobs, mask = table.logprobs, table.mask.copy()
  last = table.lengths - 1
  longer = np.flatnonzero(last > 0)
  mask[longer, last[longer]] = False
  return deferral.average(logprobs, mask)
