"""Gain of a router that counts a prompt's tokens over one that takes their mean, in dollars.

    python -m benchmarks.prompt_prices --data=../shared/data

On the chains of `llm_chains`, whose models charge for each token, one router decides by four
estimates of what a query will cost: its mean in the cluster; that with the prompt's own tokens, by
the length of its text or counted; and what will be paid, which nobody knows before the answer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import comparisons, curve_metrics, price_path, prompt_tokens
from cascades.evaluation import router_trials, routers
from cascades.evaluation.router_trials import Draw
from cascades.predictions.outcomes import OutcomeMatrix

TASKS, CHAINS = ('mmlu', 'triviaqa', 'truthfulqa', 'gsm8k'), ('llama', 'qwen-openai')
# Dollars of a million tokens that are read, as the data say.
DOLLARS = {
  'llama3.2-1b': 0.1, 'llama3.2-3b': 0.1, 'llama3.1-8b': 0.2, 'llama3.1-70b': 0.9,
  'llama3.1-405b': 3.0, 'qwen2.5-32b-coder-instruct': 0.9, 'qwen2.5-72b-instruct': 0.9,
  'gpt-4o-mini': 0.15, 'gpt-4o': 2.5,
}  # fmt: skip
STRENGTH, CLUSTERS = 24.0, 25
LEAST = 1e-9  # dollars of output tokens that rounding may make negative


def outcome_matrix(path: pathlib.Path) -> OutcomeMatrix:
  """Answers of a chain's models, their dollars, and the tokens of the prompts."""
  with gzip.open(path, 'rt', encoding='utf-8') as file:
    records = [json.loads(line) for line in file]
  models = tuple(records[0]['models'])
  each = lambda key: np.array(
    [[float(record['models'][model][key]) for model in models] for record in records]
  )
  cost, tokens = each('answer_cost_usd'), each('input_tokens')
  price = np.array([DOLLARS[model] for model in models]) / 1e6
  if (cost - price * tokens < -LEAST).any():
    raise ValueError(f'{path}: a prompt costs more than the answer; the prices are others.')
  return OutcomeMatrix(
    tuple(record['id'] for record in records),
    tuple(record['prompt'] for record in records),
    models, each('correct'), cost.mean(axis=0), cost, tokens, price,
  )  # fmt: skip


def areas(draw: Draw, tokens: np.ndarray, characters: np.ndarray) -> dict[str, float]:
  """Area of the router by each estimate of costs, and of ZeroRouter, in a trial.

  Args:
    draw: The trial.
    tokens: Tokens of all prompts for its models.
    characters: Characters of all prompts.
  """
  assert draw.read is not None
  predictor = draw.predictor(routers.CLUSTERS, STRENGTH)
  lines = [
    prompt_tokens.line(characters[draw.validation], own[draw.validation]) for own in tokens.T
  ]
  told = np.stack([start + slope * characters for start, slope in lines], axis=1)
  price = draw.read[0] / tokens[0]  # the same in all rows
  losses, exact = draw.predict(predictor)
  own = draw.of(draw.test)
  estimates = {
    'mean': draw._replace(read=None).predict(predictor)[1],
    'length': exact + price * (told - tokens)[draw.test],
    'counted': exact,
    'paid': own,
  }
  high = draw.mean_cost(draw.test).max()
  quality = 1 - draw.losses[draw.test]
  curves = {
    name: price_path.price_path(losses, np.maximum(cost, 0), quality, paid=own)[1:]
    for name, cost in estimates.items()
  }
  curves['ZeroRouter'] = router_trials.control(draw)
  return {name: curve_metrics.area(*curve, low=0.0, high=high) for name, curve in curves.items()}


def measured(data: pathlib.Path, trials: int) -> Iterator[Measured]:
  for task in TASKS:
    for chain in CHAINS:
      path = next(
        p for split in ('test', 'train')
        if (p := data / 'llm_chains' / f'{task}.{split}.{chain}.jsonl.gz').exists()
      )  # fmt: skip
      matrix = outcome_matrix(path)
      assert matrix.tokens is not None
      characters = np.array([len(prompt) for prompt in matrix.prompts], float)
      drawing = router_trials.draws(matrix, trials=trials, unseen=1.0, clusters=CLUSTERS, seed=0)
      every = [areas(draw, matrix.tokens[:, draw.models], characters) for draw in drawing]
      by_name = {name: 100 * np.array([own[name] for own in every]) for name in every[0]}
      yield Measured(f'{task} {chain}, area by mean costs', by_name['mean'].mean(), 'points')
      for name, other in (
        ('length', 'mean'), ('counted', 'mean'), ('counted', 'length'), ('paid', 'counted'),
        ('mean', 'ZeroRouter'), ('counted', 'ZeroRouter'),
      ):  # fmt: skip
        difference = by_name[name] - by_name[other]
        test = comparisons.mcnemar(difference > 0, difference < 0)
        low, high = np.percentile(difference, (2, 98))
        note = f'[{low:+.2f}, {high:+.2f}], {test.first_only}/{test.second_only}, p {test.p:.2g}'
        what = f'{task} {chain}, {name} over {other}'
        yield Measured(what, float(difference.mean()), 'points', note=note)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--trials', type=int, default=50)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'prompt_prices.json')
  options = parser.parse_args()
  rows = measured(options.data, options.trials)
  bars.report('routing by the price of a prompt', rows, options.output, vars(options))


if __name__ == '__main__':
  main()
