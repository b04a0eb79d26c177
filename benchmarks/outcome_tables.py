"""Outcomes of K models on the same rows, split into fit and report rows, for `deciders`.

Models are in the order of their mean cost on the fit rows.
"""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from cascades import answer_features, deferral, score_calibration
from cascades.predictions import alignment, shards

CHAINS = [
  (task, chain)
  for task in ('mmlu', 'triviaqa', 'truthfulqa', 'gsm8k')
  for chain in ('llama', 'qwen-openai')
]
PRICES = {'mistralai/Mixtral-8x7B-Instruct-v0.1': 0.24, 'gpt-4-1106-preview': 24.7}
LEAST_PROBABILITY = 1e-9  # of an answer's being right or wrong, for finite log-odds
DEMO_METRIC = 'word_accuracy'
RULES = [*deferral.PAPER, 'length', 'first token']
RULES = [name for name in RULES if name != 'random']


class Table(NamedTuple):
  """Answers of K models to N rows.

  Attributes:
    ids: Name of each row.
    prompts: Text of each row.
    quality: Quality of each answer, [K, N].
    cost: Cost of each answer by itself, [K, N].
    deciding: Cost of reading the confidence of each answer, [K, N].
    signals: Features of each answer by name, [K, N, F].
  """

  ids: Sequence[str]
  prompts: Sequence[str]
  quality: np.ndarray
  cost: np.ndarray
  deciding: np.ndarray
  signals: Mapping[str, np.ndarray] = MappingProxyType({})

  def select(self, rows: np.ndarray, models: np.ndarray | slice = slice(None)) -> Table:
    """Rows by index, and models in another order."""
    arrays = (self.quality, self.cost, self.deciding)
    return Table(
      [self.ids[row] for row in rows],
      [self.prompts[row] for row in rows],
      *(array[models][:, rows] for array in arrays),
      {name: values[models][:, rows] for name, values in self.signals.items()},
    )


class DataSet(NamedTuple):
  """Fit rows choose, report rows measure.

  Attributes:
    name: Name in reports.
    models: Names of the models, the cheapest on the fit rows first.
    unit: Unit of cost.
    fit: Rows on which deciders are fitted and thresholds chosen.
    report: Rows that are reported.
  """

  name: str
  models: Sequence[str]
  unit: str
  fit: Table
  report: Table


def data_set(name: str, models: Sequence[str], unit: str, fit: Table, report: Table) -> DataSet:
  """Data set of these rows, without fit rows whose prompt is reported, models by mean cost."""
  reported = set(report.prompts)
  rows = np.array([i for i, prompt in enumerate(fit.prompts) if prompt not in reported])
  order = np.argsort(fit.cost.mean(axis=1), kind='stable')
  every = np.arange(len(report.ids))
  return DataSet(
    name, [models[i] for i in order], unit, fit.select(rows, order), report.select(every, order)
  )


def halves(rows: int) -> tuple[np.ndarray, np.ndarray]:
  """Indices of fit and report rows of a table without splits."""
  order = np.random.default_rng(0).permutation(rows)
  return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def _chain_table(records: Sequence[dict[str, Any]], models: Sequence[str]) -> Table:
  def each(value: Callable[[dict[str, Any]], float]) -> np.ndarray:
    return np.array([[value(record['models'][model]) for record in records] for model in models])

  right = each(lambda answer: answer['p'])  # 0 where the confidence is -inf
  right = np.clip(right, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
  log_odds = -score_calibration.log_odds(right)  # of being wrong
  tokens = np.stack([each(lambda a: a['input_tokens']), each(lambda a: a['output_tokens'])], axis=2)
  cost = each(lambda answer: answer['answer_cost_usd'])
  return Table(
    [record['id'] for record in records],
    [record['prompt'] for record in records],
    each(lambda answer: answer['correct']).astype(float),
    cost,
    each(lambda answer: answer['cost_usd']) - cost,
    {
      'confidence': log_odds[..., None],
      'answer': np.concatenate([log_odds[..., None], np.log1p(tokens)], axis=2),
    },
  )


def llm_chain(data: pathlib.Path, task: str, chain: str) -> DataSet:
  """Data set of a chain of Zellinger and Thomson's, from `llm_chains/`."""
  fit = _records(data / f'llm_chains/{task}.train.{chain}.jsonl.gz')
  models = list(fit[0]['models'])
  test = data / f'llm_chains/{task}.test.{chain}.jsonl.gz'
  if test.exists():
    tables = _chain_table(fit, models), _chain_table(_records(test), models)
  else:
    table = _chain_table(fit, models)
    tables = tuple(map(table.select, halves(len(fit))))
  return data_set(f'{task} {chain}', models, 'dollars', *tables)


def routellm(data: pathlib.Path, task: str) -> DataSet:
  """Data set of RouteLLM's evaluations, from `routellm_evals/`."""
  records = _records(data / f'routellm_evals/{task}.jsonl.gz')
  models = list(PRICES)

  def quality(answer: dict[str, float]) -> float:
    if 'correct' in answer:
      return answer['correct']
    return (answer['score_turn1'] + answer['score_turn2']) / 20

  values = np.array([[quality(record['models'][name]) for record in records] for name in models])
  prices = np.array([PRICES[name] / max(PRICES.values()) for name in models])
  cost = np.repeat(prices[:, None], len(records), axis=1)
  prompts = [record['prompt'] for record in records]
  table = Table([record['id'] for record in records], prompts, values, cost, np.zeros_like(cost))
  name = f'routellm {task}'
  return data_set(name, models, 'GPT-4 calls', *map(table.select, halves(len(records))))


def demo(directory: pathlib.Path, small: str) -> DataSet:
  """Data set of a small model of the demo and its large model."""
  return data_set(
    f'demo {small}',
    [small, 'large'],
    'FLOPs per token',
    *(_demo_table(directory, small, split) for split in ('validation', 'test')),
  )


def _demo_table(directory: pathlib.Path, small: str, split: str) -> Table:
  answers, other = alignment.join(*(
    shards.read(directory / model / 'predictions' / split)[0] for model in (small, 'large')
  ))  # fmt: skip
  tables = (answers, other)
  sums = [table.statistics[DEMO_METRIC] for table in tables]
  flops = np.array([float(table.manifest['flops_per_token']) for table in tables])
  cost = np.repeat(flops[:, None], len(answers.ids), axis=1)
  signals = {
    name: np.stack([deferral.DECIDERS[name].score(table)[:, None] for table in tables])
    for name in RULES
  }
  signals['quantiles'] = np.stack([answer_features.phi(table) for table in tables])
  return Table(
    answers.ids,
    answers.inputs,
    np.stack([total[:, 0] / total[:, 1] for total in sums]),
    cost,
    np.zeros_like(cost),
    signals,
  )


def every(
  data: pathlib.Path, demo_directory: pathlib.Path
) -> Iterator[tuple[str, Callable[[], DataSet] | str]]:
  """Name of each data set, and how to read it, or the reason why it can't be read."""
  for task, chain in CHAINS:
    path = data / f'llm_chains/{task}.train.{chain}.jsonl.gz'
    read = (lambda t=task, c=chain: llm_chain(data, t, c)) if path.exists() else None
    yield f'{task} {chain}', read or f'{path} is absent: give --data'
  for task in ('mmlu', 'gsm8k', 'mt_bench'):
    path = data / f'routellm_evals/{task}.jsonl.gz'
    read = (lambda t=task: routellm(data, t)) if path.exists() else None
    yield f'routellm {task}', read or f'{path} is absent: give --data'
  for small in ('xent', 'dist', 'cat_xent', 'cat_dist'):
    path = demo_directory / small / 'predictions'
    read = (lambda s=small: demo(demo_directory, s)) if path.exists() else None
    yield f'demo {small}', read or f'{path} is absent: run `make demo`, and give --demo'
