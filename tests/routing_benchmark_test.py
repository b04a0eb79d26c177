"""Trials of the routing benchmark keep apart what its protocol in docs/routing.md keeps apart."""

import numpy as np
import pytest

from benchmarks import embedding, routing, routing_matrices, routing_scale
from cascades.predictions.outcomes import OutcomeMatrix

MODELS = ('m-hf', 'm', 'n-2024-04-09', 'n-v2', 'n', 'o', 'p-FC', 'p', 'q', 'r')
SIZES = {10: 0.4, 25: 0.6, 50: 0.55, 100: 0.596, 400: 0.6}


def test_a_trial_shares_no_prompt_and_no_variant_of_a_model_between_its_sides():
  rng = np.random.default_rng(0)
  quality = rng.random((100, len(MODELS)))
  quality[rng.random(quality.shape) < 0.05] = np.nan
  ids = tuple(map(str, range(100)))
  matrix = OutcomeMatrix(ids, ids, MODELS, quality, np.ones(len(MODELS)))
  for seed in range(20):
    trial = routing_matrices.draw(matrix, 1 / 3, seed)
    assert (len(trial.train), len(trial.validation)) == (60, 10)
    rest = np.setdiff1d(np.arange(100), np.concatenate([trial.train, trial.validation]))
    assert len(rest) == 30
    answered = np.isfinite(trial.losses(rest, trial.unseen)).all(axis=1)
    assert sorted(trial.test) == rest[answered].tolist()
    seen, unseen = ({MODELS[m][0] for m in side} for side in (trial.seen, trial.unseen))
    assert not seen & unseen
    assert 3 <= len(trial.unseen) <= 5
    assert len(trial.seen) + len(trial.unseen) == len(MODELS)


def test_a_size_is_enough_if_it_and_all_larger_ones_are_near_the_largest():
  trials = [{str(n): {'a': value + shift} for n, value in SIZES.items()} for shift in (-0.1, 0.1)]
  study = routing.studied(trials)
  assert study['enough'] == {'a': 100}
  assert study['area']['a']['25']['mean'] == pytest.approx(0.6)
  assert study['area']['a']['25']['band'] == pytest.approx([0.5, 0.7])


def test_areas_are_compared_by_trials():
  result = routing.contrast(np.array([0.5, 0.6, 0.7]), np.array([0.4, 0.5, 0.8]))
  assert (result['above'], result['below'], result['p']) == (2, 1, 1.0)
  assert result['mean'] == pytest.approx(0.1 / 3)


def test_the_scale_of_few_prompts_is_measured_as_that_of_many():
  rows = list(routing_scale.measured(2000, 5))
  assert [row.unit for row in rows] == ['us', 'us', 's', 'GiB', 'x']
  assert all(row.value > 0 for row in rows)


def test_embeddings_are_compared_block_by_block_after_a_first_one():
  own = lambda texts: np.array([[float(text), 1.0] for text in texts])
  blocks = [['1', '2'], ['3', '4'], ['5', '6']]
  rows = list(embedding.measured(blocks, own, lambda texts: own(texts) + 0.25))
  assert [row.unit for row in rows] == ['prompts/s', 'prompts/s', 'x', '']
  assert rows[0].what == 'cascades, 4 prompts'
  assert rows[3].value == 0.25
  assert rows[3].met is False
