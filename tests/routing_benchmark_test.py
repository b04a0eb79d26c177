"""Trials of the routing benchmark keep apart what its protocol in docs/routing.md keeps apart."""

import numpy as np

from benchmarks import routing_matrices
from cascades.predictions.outcomes import OutcomeMatrix

MODELS = ('m-hf', 'm', 'n-2024-04-09', 'n-v2', 'n', 'o', 'p-FC', 'p', 'q', 'r')


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
