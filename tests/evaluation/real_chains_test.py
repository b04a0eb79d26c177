"""A chain of five real models on MMLU, by the real command."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from cascades.predictions import rows
from tests import real_data, synthetic_tables

PARAMETERS = {
  'llama3.2-1b': 1.2e9, 'llama3.2-3b': 3.2e9, 'llama3.1-8b': 8e9, 'llama3.1-70b': 7e10,
  'llama3.1-405b': 4.05e11,
}  # fmt: skip
ACCURACY = (0.425, 0.572, 0.634, 0.815, 0.852)  # as SOURCE.md states it
ORACLE = 0.945
pytestmark = pytest.mark.slow

ROUTERS = 'guarded_knn_words', 'linear_router_words'


def write_tables(directory, split, task, rows_of=slice(None)):
  """Tables of all models: confidences, tokens, seconds and dollars, and no log-probabilities."""
  source = real_data.real(f'llm_chains/mmlu.{task}.llama.jsonl.gz')
  lines = gzip.decompress(source.read_bytes()).splitlines()
  examples = [json.loads(line) for line in lines[rows_of]]
  for name, parameters in PARAMETERS.items():
    table = []
    for example in examples:
      answer = example['models'][name]
      columns = {
        'confidence': answer['p'], 'dollars': answer['cost_usd'], 'seconds': answer['latency_s'],
        'prompt_tokens': answer['input_tokens'], 'generated_tokens': answer['output_tokens'],
      }  # fmt: skip
      row = rows.build(
        id=example['id'], inputs=example['prompt'], targets=[example['reference']],
        answer=answer['answer'], tokens=[], logprobs=[],
        statistics={'accuracy': [answer['correct'], 1]},
        details=rows.NO_DETAILS._replace(columns=columns),
      )  # fmt: skip
      table.append(row)
    synthetic_tables.write(
      f'{directory}/{name}/{split}', 'mmlu', table, split=split, parameters=int(parameters),
      flops_per_token=2 * parameters,
    )  # fmt: skip


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  """curves.json of the real command, and its output."""
  directory = tmp_path_factory.mktemp('mmlu')
  write_tables(directory, 'test', 'test')
  write_tables(directory, 'train', 'train', slice(0, None, 2))
  write_tables(directory, 'validation', 'train', slice(1, None, 2))
  *small, large = PARAMETERS
  bindings = {
    'SMALL': {name: f'{directory}/{name}' for name in small[::3]},
    'LARGE': f'{directory}/{large}', 'EVAL_OUTPUT_DIR': f'{directory}/report', 'CHAIN': small[::3],
    'FIT_SPLIT': 'validation', 'LEARNED': ROUTERS, 'LEARNED_SPLIT': 'train',
    'COST_AXES': ['dollars', 'flops', 'seconds', 'large calls'],
    'RESAMPLES': 10, 'SECONDS': {'large': {'prompt': 1e-3, 'generated': 0.5}},
  }  # fmt: skip
  completed = subprocess.run(
    [
      sys.executable, '-m', 'cascades.evaluate', '--gin_file=runs/evaluate.gin',
      *(f'--gin.{name}={value!r}' for name, value in bindings.items()),
    ],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert completed.returncode == 0, completed.stderr
  return json.loads((directory / 'report' / 'curves.json').read_text()), completed.stdout


def test_single_models_are_as_accurate_as_their_source_states(report):
  chains = report[0]['chains']
  assert [chain['axis'] for chain in chains] == ['dollars', 'flops', 'seconds', 'large calls']
  for chain in chains:
    assert chain['models'] == ['llama3.2-1b', 'llama3.1-70b', 'large']
    assert chain['score'] == 'confidence'
    quality = [single['quality'] for single in chain['singles'].values()]
    assert quality == pytest.approx([ACCURACY[i] for i in (0, 3, 4)], abs=5e-4)
    assert chain['best_single'] == 'large'


def test_costs_are_those_of_the_tables_or_of_the_prices(report):
  by_axis = {chain['axis']: chain['singles'] for chain in report[0]['chains']}
  # 0.10, 0.90 and 3.00 dollars per million tokens of about 122 that are read and written.
  dollars = [by_axis['dollars'][name]['cost'] for name in by_axis['dollars']]
  assert dollars[1] / dollars[0] == pytest.approx(9, rel=0.01)
  assert dollars[2] / dollars[1] == pytest.approx(3 / 0.9, rel=0.01)
  tokens = by_axis['flops']['large']['cost'] / (2 * PARAMETERS['llama3.1-405b'])
  assert dollars[2] == pytest.approx(3e-6 * tokens, rel=0.01)
  # One token is written for each answer.
  assert by_axis['seconds']['large']['cost'] == pytest.approx(1e-3 * (tokens - 1) + 0.5, rel=0.01)


def test_the_chain_stands_beside_its_controls(report):
  data, output = report
  names = {
    'chain', 'pairs', 'best chains', 'oracle', 'oracle router', 'random deferral', 'random router',
    *(f'router {name}' for name in ROUTERS),
  }  # fmt: skip
  for chain in data['chains']:
    assert set(chain['curves']) == names
    areas = {
      name: next(m['value'] for m in curve['metrics'] if m['quantity'] == 'area')
      for name, curve in chain['curves'].items()
    }
    assert areas['chain'] < areas['oracle']
    assert max(areas['pairs'], areas['best chains']) < areas['oracle router']
    quality = np.array(chain['curves']['oracle']['quality'])
    assert ACCURACY[-1] < quality[-1] <= ORACLE
  assert 'llama3.2-1b > llama3.1-70b > large, by dollars per query' in output


def test_learned_routers_choose_among_all_models_at_prices_that_the_fit_split_prefers(report):
  for chain in report[0]['chains']:
    first, *_ = chain['singles'].values()
    for name in ROUTERS:
      curve = chain['curves'][f'router {name}']
      assert np.shape(curve['shares']) == (curve['points'], 3)
      assert (np.diff(curve['outer']) < 0).all()
      assert (np.diff(curve['fit_cost']) > 0).all()
      assert (np.diff(curve['fit_quality']) > 0).all()
      # The dearest price sends all to the cheapest model, and its search or product comes on top.
      if chain['axis'] != 'large calls':  # where two models cost nothing
        assert curve['quality'][0] == pytest.approx(first['quality'])
      free = chain['axis'] != 'flops'
      assert curve['cost'][0] == pytest.approx(first['cost'], rel=1e-9 if free else 0.01)
      areas = [
        next(m['value'] for m in own['metrics'] if m['quantity'] == 'area')
        for own in (curve, chain['curves']['oracle router'])
      ]
      assert areas[0] < areas[1]
    pairs = {(entry['curve'], entry['control']) for entry in chain['differences']}
    assert ('chain', f'router {ROUTERS[0]}') in pairs
  shares = np.array(report[0]['chains'][0]['curves'][f'router {ROUTERS[1]}']['shares'])
  assert (shares.max(axis=0) > 0.1).all()  # in dollars, each of the three models answers
