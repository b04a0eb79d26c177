"""Laws of estimation from samples, and of trajectories that feed themselves."""

import json

import numpy as np
import pytest

from experiments import attention_markov
from experiments.attention_markov import DESIGNS, Collapse, K

SIZES = [300, 3000, 30_000]


@pytest.fixture(scope='module')
def rates():
  return {name: attention_markov.errors(design, SIZES, 12, 0) for name, design in DESIGNS.items()}


@pytest.mark.parametrize('name', ['covered', 'two groups, query attended'])
def test_the_error_falls_like_the_root_of_the_prompts_under_coverage(rates, name):
  assert -0.6 < attention_markov.slope(SIZES, rates[name]) < -0.4


@pytest.mark.parametrize('name', ['token 5 in no prompt', 'two groups, query not attended'])
def test_the_error_stays_without_coverage(rates, name):
  assert attention_markov.slope(SIZES, rates[name]) > -0.2
  assert np.median(rates[name][:, -1]) > 5 * np.median(rates['covered'][:, -1])


def test_the_offered_tokens_are_estimated_even_without_coverage():
  row = np.array([0.3, 0.1, 0.1, 0.2, 0.1, 0.2])
  design = DESIGNS['token 5 in no prompt']
  data = attention_markov.sampled(row, design, 100_000, np.random.default_rng(0))
  estimate = attention_markov.estimate(*data)[:5]
  np.testing.assert_allclose(estimate / estimate.sum(), row[:5] / row[:5].sum(), atol=0.01)


@pytest.fixture(scope='module')
def collapses():
  chains = attention_markov.chains(60, 0)
  return chains, {
    name: Collapse(
      *attention_markov.generate(P, 1 << 13, 0), attention_markov.markov_counts(P, 1024, 0)
    )
    for name, P in chains.items()
  }


def test_the_urns_heaviest_token_takes_all(collapses):
  urn = collapses[1]['urn']
  top = np.median(urn.top, axis=0)
  assert top[0] < 0.6 and top[-1] > 0.9  # noqa: PT018
  assert (urn.counts[:, -1].argmax(axis=1) == 0).mean() > 0.9
  assert abs(attention_markov.urn_exponent(urn) - 0.5) < 0.15


def test_equal_weights_have_no_winner():
  """The law behind the collapse is the difference of weights: Polya's urn keeps all tokens."""
  P = np.full((60, 4, 4), 0.25)
  lengths, counts = attention_markov.generate(P, 1 << 13, 0)
  top = Collapse(lengths, counts, counts[:, -1]).top
  assert np.median(top[:, -1]) < 0.7


def test_sole_winners_prefer_themselves(collapses):
  chains, trajectories = collapses
  counts = trajectories['random'].counts[:, -1]
  sole = attention_markov.recent(trajectories['random']).max(axis=1) > 0.95
  winner = counts.argmax(axis=1)
  assert sole.sum() > 10
  assert attention_markov.can_win(chains['random'])[np.arange(60), winner][sole].mean() > 0.9


def test_tokens_that_avoid_themselves_do_not_win_alone(collapses):
  recent = attention_markov.recent(collapses[1]['no self'])
  assert recent.max() < 0.9
  assert (attention_markov.effective_tokens(recent) < K - 0.5).mean() > 0.9  # yet few remain


def test_the_base_chain_itself_does_not_collapse(collapses):
  base = collapses[1]['random'].base
  assert np.median((base / base.sum(axis=1, keepdims=True)).max(axis=1)) < 0.4


def test_effective_tokens_by_hand():
  assert attention_markov.effective_tokens(np.array([0.5, 0.5, 0.0])) == pytest.approx(2)
  assert attention_markov.effective_tokens(np.array([1.0, 0.0])) == pytest.approx(1)


@pytest.mark.slow
def test_the_experiment_writes_its_numbers_and_its_figure(tmp_path, monkeypatch):
  output = tmp_path / 'numbers.json'
  arguments = ['--repeats=2', '--trajectories=8', '--steps=256', f'--output={output}']
  monkeypatch.setattr('sys.argv', ['attention_markov', *arguments])
  attention_markov.main()
  assert {'commit', 'machine', 'rows', 'settings'} <= json.loads(output.read_text()).keys()
  assert output.with_suffix('.png').stat().st_size > 1000
