"""Our thresholds beside those of MAPIE: the same rows, the same promise."""

import functools
import gzip
import json

import numpy as np
import pytest

from cascades import guarantees
from cascades.guarantees import Risk
from tests import real_data

risk_control = pytest.importorskip(
  'mapie.risk_control', reason='MAPIE is needed: pip install -e ".[reference]"'
)
fwer_control = pytest.importorskip('mapie.risk_control.fwer_control')
pytestmark = pytest.mark.reference
DELTA, DRAWS = 0.1, 12


@functools.cache
def population():
  """Score, and correctness of both answers, of a real cascade on MMLU."""
  source = real_data.real('llm_chains/mmlu.test.llama.jsonl.gz')
  rows = [json.loads(line)['models'] for line in gzip.decompress(source.read_bytes()).splitlines()]
  small, large = (
    np.array([row[model]['correct'] for row in rows], float)
    for model in ('llama3.1-8b', 'llama3.1-405b')
  )
  return -np.array([row['llama3.1-8b']['p'] or 0.0 for row in rows]), small, large


def answers(features, threshold):
  """Right answers of the cascade at a threshold."""
  score, small, large = np.asarray(features).T
  return np.where(score >= threshold, large, small)


def certified_by_mapie(rows, thresholds, level, procedure):
  """Thresholds that MAPIE certifies for an accuracy of at least `level`."""
  controller = risk_control.BinaryClassificationController(
    answers, 'accuracy', level, 1 - DELTA, 'accuracy', list_predict_params=thresholds[:, None]
  )
  controller.calibrate(np.stack(rows, axis=1), np.ones(len(rows[0])))
  rejected = fwer_control.control_fwer(np.ravel(controller.p_values), DELTA, procedure)
  return thresholds[np.ravel(rejected).astype(int)]


def draws(level):
  """Rows of each draw, their walk, and the threshold that we choose."""
  generator, columns = np.random.default_rng(0), population()
  for _ in range(DRAWS):
    drawn = generator.integers(len(columns[0]), size=700)
    score, small, large = (column[drawn] for column in columns)
    walk = guarantees.path(score)
    risk = Risk('quality', 1 - small, 1 - large, 1 - level, DELTA)
    point = guarantees.choose(walk, [risk], guarantees.total(walk, small, large))
    yield (score, small, large), walk, walk.threshold[point]


@pytest.mark.filterwarnings('ignore')
def test_mapie_certifies_the_same_thresholds_by_a_fixed_sequence():
  for rows, walk, threshold in draws(0.75):
    finite = np.sort(walk.threshold[np.isfinite(walk.threshold)])  # everything deferred comes first
    assert certified_by_mapie(rows, finite, 0.75, 'fixed_sequence').max() == threshold


@pytest.mark.filterwarnings('ignore')
def test_at_the_same_promise_we_defer_less_than_the_default_of_mapie():
  ratios = []
  for rows, walk, threshold in draws(0.75):
    grid = np.unique(np.quantile(rows[0], np.linspace(0, 1, 100)))
    theirs = certified_by_mapie(rows, grid, 0.75, 'bonferroni_holm').max()
    point = np.searchsorted(-walk.threshold, -theirs, side='right') - 1
    ratios.append(walk.rate[walk.threshold == threshold][0] / walk.rate[point])
  assert np.median(ratios) <= 0.9
  assert max(ratios) < 1
