"""Tables of predictions of imaginary models, in memory and on disk, for tests of evaluation.

Questions have a difficulty; a model of some skill answers right the likelier the easier they are,
and its tokens are the likelier too. All models of one task share its questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from cascades import deferral, metrics
from cascades.evaluation.compare import compare
from cascades.evaluation.comparison import Comparison, Settings
from cascades.predictions import columns, rows, shards
from cascades.types import Metric, Predictions


def records(
  task: str,
  *,
  size: int = 60,
  skill: float = 0.0,
  seed: int = 0,
  judged_by: Sequence[Metric] = (metrics.accuracy,),
) -> list[rows.JsonRow]:
  """Rows as inference would write them; `seed` is the model's, the questions are the task's."""
  questions = np.random.default_rng(sum(task.encode()))
  model = np.random.default_rng((seed, sum(task.encode())))
  table_rows = []
  for i in range(size):
    difficulty = questions.normal()
    words = [f'w{questions.integers(30)}' for _ in range(questions.integers(4, 9))]
    right = 1 / (1 + np.exp(difficulty - skill))
    answer = [word if model.random() < right else f'x{model.integers(9)}' for word in words]
    if model.random() < right:
      answer = words
    logprobs = -model.exponential(0.05 + (1 - right), size=len(answer) + 1)
    target, text = ' '.join(words), ' '.join(answer)
    table_rows.append(
      rows.build(
        id=f'{task}-{i}',
        inputs=f'question {i}',
        targets=[target],
        answer=text,
        tokens=[7] * len(logprobs),
        logprobs=logprobs,
        statistics={
          metric.name: metric.statistics([target], text).tolist() for metric in judged_by
        },
      )
    )
  return table_rows


def manifest(task: str, records: Sequence[rows.JsonRow], **changes: Any) -> dict[str, Any]:
  return {
    'task': task,
    'split': 'test',
    'mode': 'predict',
    'rows': len(records),
    'shards': 2,
    'model': {'family': 't5', 'emb_dim': 32},
    'parameters': 1000,
    'flops_per_token': 2000.0,
    'checkpoint': 'runs/small',
    'step': 300,
    'vocabulary': 'f00d',
    'decoding': {'sampler': 'greedy'},
    'precision': 'float32',
    'metrics': sorted(records[0]['aux']['statistics']),
    'config': 'TRAIN_STEPS = 300\n',
    **changes,
  }


def write(directory: Any, task: str, records: Sequence[rows.JsonRow], **changes: Any) -> None:
  """Writes a complete table; `changes` go into its manifest."""
  described = manifest(task, records, **changes)
  mode, count = described['mode'], described['shards']
  for index in range(count):
    shard = [records[i] for i in shards.shard_rows(len(records), index, count)]
    shards.write_shard(directory, task, mode, index, count, shard)
  shards.write_manifest(directory, described)


def table(task: str, *, parameters: int = 1000, **settings: Any) -> Predictions:
  """The same table in memory."""
  table_rows = records(task, **settings)
  parsed = [rows.parse(row, 'predict') for row in table_rows]
  described = manifest(task, table_rows, parameters=parameters, flops_per_token=2.0 * parameters)
  return columns.of_rows(parsed, described)


SKILLS = {'xent': 0.0, 'cat': 0.4}
SIZES = {'a': 70, 'b': 40}


def small_and_large(*, judged_by: Sequence[Metric] = (metrics.accuracy,)) -> tuple[Any, Any]:
  """Two small models and a large one, on two tasks."""
  small = {
    name: [
      table(task, size=size, skill=skill, seed=seed, judged_by=judged_by)
      for task, size in SIZES.items()
    ]
    for seed, (name, skill) in enumerate(SKILLS.items())
  }
  large = [
    table(task, size=size, skill=1.6, seed=9, parameters=8000, judged_by=judged_by)
    for task, size in SIZES.items()
  ]
  return small, large


@cache
def comparison(metric: str = 'accuracy', **settings: Any) -> Comparison:
  """A comparison of them under three rules."""
  judge = metrics.by_name(metric)
  small, large = small_and_large(judged_by=[judge])
  return compare(
    small,
    large,
    scores={name: deferral.as_score(deferral.PAPER[name]) for name in ('average', 'sum', 'random')},
    metric=judge,
    settings=Settings(**{'resamples': 60, **settings}),
  )
