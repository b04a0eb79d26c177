"""Outcome matrices of `routing`, with a cost of each model, and trials drawn from them."""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cascades.evaluation import router_trials
from cascades.predictions import outcomes
from cascades.predictions.outcomes import OutcomeMatrix

# Variants of a model stay on one side of a split.
VARIANT = re.compile(
  r'(-FC(-\w+)?|_concise|_verbose|-neft|-v\d[\w.-]*|-\d{4}-\d{2}-\d{2}|-\d{4}(-preview)?|-hf)'
)


class Source(NamedTuple):
  """Folder, unit of cost, cost of a line of models.csv, and share of unseen models."""

  folder: str
  unit: str
  cost: Callable[[Mapping[str, str]], float]
  unseen: float
  scores: str = 'scores.csv.gz'


def _dollars(line: Mapping[str, str]) -> float:
  tokens, prices = ('mean_input_tokens', 'mean_output_tokens'), ('input', 'output')
  return sum(
    float(line[count] or 0) * float(line[f'usd_per_m_{price}'] or 0) / 1e6
    for count, price in zip(tokens, prices, strict=True)
  )


SOURCES: Mapping[str, Source] = MappingProxyType({
  'MMLU-Pro': Source(
    'routing_mmlu_pro', '10^9 parameters', lambda m: float(m['params_total_b'] or 0), 1 / 3
  ),
  'BFCL': Source('routing_bfcl', 'dollars', _dollars, 1 / 3),
  'RouterBench': Source(
    'routing_routerbench', 'dollars', lambda m: float(m['mean_cost_usd']), 1 / 2
  ),
  'RouterDC': Source(
    'routing_routerdc7', '10^9 parameters', lambda m: float(m['params_total_b'] or 0), 1 / 2
  ),
  'CSS': Source('routing_css', '10^9 parameters', lambda m: float(m['params_b'] or 0), 1 / 2),
  'AlpacaEval': Source(
    'routing_alpaca_eval', '10^9 parameters', lambda m: float(m['params_b_in_name'] or 0), 1 / 3,
    'scores_v1.csv.gz',
  ),
})  # fmt: skip


def read(data: pathlib.Path, source: Source) -> OutcomeMatrix:
  """Outcomes of the models that have a cost above 0."""
  folder = data / source.folder
  with open(folder / 'models.csv', encoding='utf-8') as file:
    costs = {line['name']: source.cost(line) for line in csv.DictReader(file)}
  matrix = outcomes.read(folder / source.scores, prompts=folder / 'prompts.jsonl.gz', costs=costs)
  return matrix.select(models=np.flatnonzero(matrix.cost > 0).tolist())


class Trial(NamedTuple):
  """A draw of prompts and models.

  Attributes:
    matrix: All outcomes.
    train: Indices of the training prompts.
    validation: Indices of the validation prompts.
    test: Indices of the test prompts that every unseen model answered.
    seen: Indices of the models that a router is trained with.
    unseen: Indices of the models that it chooses among.
  """

  matrix: OutcomeMatrix
  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  seen: np.ndarray
  unseen: np.ndarray

  def losses(self, rows: np.ndarray, models: np.ndarray) -> np.ndarray:
    return self.matrix.losses[np.ix_(rows, models)]


def draw(matrix: OutcomeMatrix, share: float, seed: int) -> Trial:
  """Random split of the prompts, and of the models by family, of which whole ones are unseen."""
  rng = np.random.default_rng(seed)
  train, validation, test = router_trials.split(rng, len(matrix.ids))
  families = [VARIANT.sub('', name) for name in matrix.models]
  unseen: list[int] = []
  for family in rng.permutation(sorted(set(families))):
    if len(unseen) < round(share * len(families)):
      unseen += [index for index, own in enumerate(families) if own == family]
  chosen = np.sort(unseen)
  seen = np.setdiff1d(np.arange(len(families)), chosen)
  complete = np.isfinite(matrix.quality[np.ix_(test, chosen)]).all(axis=1)
  return Trial(matrix, train, validation, test[complete], seen, chosen)
