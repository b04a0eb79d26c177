"""Pairs of `benchmarks.distillspec`: their rows, sizes and training, and the models of `tanaka`."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from benchmarks import cat_tasks
from cascades import losses, metrics, train
from cascades.data.corpus import Data
from cascades.interop import companions
from cascades.predictions import shards
from cascades.tasks import catalog, chats, local
from cascades.tasks.task import Row, Task
from cascades.training import optimizers, setup

WARMUP_STEPS = 100
LARGE_STEPS, LARGE_RATE, SMALL_STEPS = 1200, 2e-3, 600
TRANSLATED = tuple(f'mt_tanaka_en_ja/{split}.tsv' for split in ('train', 'dev', 'test'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledPair:
  """Rows and sizes of a pair of models; its folder holds `large`, and the small model.

  Attributes:
    task: Task of a folder, with the splits 'train' and 'test'.
    start: Folder of the small model before it is distilled.
    lengths: Most tokens of inputs and targets in training.
    width: Tokens of a test prompt, padded; a power of two.
    answer: Most tokens of an answer to it.
    steps: Steps of an arm.
    batch: Rows of a step.
    learning_rate: A constant one.
    rows: Rows of training, read as often as the steps need; None for as many as they need once.
    short: Most characters of their inputs.
    outcomes: Log-probabilities of the large model that a cache holds.
    cached: Train arms without samples from such a cache, and not beside the large model.
    words: Test rows that are answered and read.
    drafted: Test rows of lossless decoding.
    test_batch: Test rows of a batch.
    metric: Quality of answers; None for the log-likelihood of the task's answers, by token.
  """

  task: Callable[[pathlib.Path], Task]
  start: str = 'xent'
  lengths: Mapping[str, int]
  width: int
  answer: int
  steps: int
  batch: int
  learning_rate: float
  rows: int | None = None
  short: int | None = None
  outcomes: int
  cached: bool = False
  words: int
  drafted: int
  test_batch: int
  metric: metrics.Metric | None

  def training_task(self, folder: pathlib.Path) -> Task:
    """The first rows, in a fixed random order, of the training split."""
    task = self.task(folder)

    def read(split: str) -> Iterator[Row]:
      rows = [r for r in task.read(split) if self.short is None or len(r.inputs) <= self.short]
      order = np.random.default_rng(0).permutation(len(rows))
      return (rows[number] for number in order[: self.rows or self.steps * self.batch])

    return dataclasses.replace(task, name=f'{task.name}_distillspec', splits=('train',), read=read)


def g2p(folder: pathlib.Path) -> Task:
  del folder
  task = catalog.get('cmudict_g2p')
  assert isinstance(task, Task)
  return task


def tanaka(folder: pathlib.Path) -> Task:
  """English sentences and their Japanese translations, beside the folder."""
  directory = folder.parent / 'data' / 'tanaka'
  paths = {split: str(directory / f'{split}.jsonl') for split in ('train', 'validation', 'test')}
  task = local.local_jsonl('tanaka', paths, metrics=('bleu_char',))
  return dataclasses.replace(task, vocabulary=functools.partial(cat_tasks.pieces, directory))


def gsm8k(folder: pathlib.Path) -> Task:
  """Questions in the large model's chat format, and their worked solutions."""
  paths = {'train': str(folder / 'train.jsonl'), 'test': str(folder / 'questions.jsonl')}
  task = local.local_jsonl('questions', paths)
  return chats.chat(task, epath.Path(folder / 'large') / companions.FOLDER)


def answered_by_large(task: Task, table: pathlib.Path) -> Task:
  """The task with the large model's answers, from a table, in place of its own."""
  (predictions,) = shards.read(table / 'train')
  own = dict(zip(predictions.ids, predictions.predictions, strict=True))

  def read(split: str) -> Iterator[Row]:
    return (row._replace(answers=(own[row.id],)) for row in task.read(split))

  return dataclasses.replace(task, name=f'{task.name}_answered', read=read)


PAIRS = {
  'g2p': DistilledPair(
    task=g2p,
    lengths={'inputs': 16, 'targets': 16}, width=32, answer=24,
    steps=300, batch=64, learning_rate=2e-3, outcomes=104,
    words=2048, drafted=512, test_batch=512,
    metric=metrics.word_accuracy,
  ),
  'tanaka': DistilledPair(
    task=tanaka,
    lengths={'inputs': 24, 'targets': 24}, width=32, answer=24,
    steps=200, batch=64, learning_rate=2e-3, outcomes=256,
    words=500, drafted=128, test_batch=128,
    metric=metrics.bleu('char'),
  ),
  'smollm2': DistilledPair(
    task=gsm8k, start='small',
    lengths={'inputs': 96, 'targets': 48}, width=128, answer=48,
    steps=64, batch=8, learning_rate=3e-4, outcomes=256, cached=True, rows=256, short=180,
    words=64, drafted=16, test_batch=16,
    metric=None,
  ),
}  # fmt: skip


def train_tanaka(data: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
  """Train what is missing of the large model, which all folders share, and of their small ones."""
  output = folders[0].parent
  setting = cat_tasks.SETTINGS['tanaka']
  cat_tasks.translation(cat_tasks.Folders(data, output), 0.0, name='tanaka', paths=TRANSLATED)
  runs = [(output / 'large', cat_tasks.MINI, LARGE_RATE, LARGE_STEPS, 0)]
  runs += [
    (folder / 'xent', cat_tasks.NANO, setting.training.rate, SMALL_STEPS, seed)
    for seed, folder in enumerate(folders)
  ]
  for directory, config, rate, steps, seed in runs:
    train.train(
      str(directory),
      small=setup.SmallModel(config),
      data=Data(
        task=tanaka(folders[0]),
        lengths=PAIRS['tanaka'].lengths,
        batch_size=setting.batch,
        records_dir=str(output / 'records'),
      ),
      step=setup.Step(
        learning_rate=optimizers.cosine(rate, total_steps=steps, warmup_steps=WARMUP_STEPS),
        optimizer=optimizers.adamw,
        loss=losses.xent,
      ),
      schedule=setup.Schedule(train_steps=steps, save_every=500, keep=1),
      seed=seed,
    )
  for folder in folders:
    if not (folder / 'large').exists():
      (folder / 'large').symlink_to(pathlib.Path('..') / 'large')
