"""The benchmark of LITE: all its rows on random states, with two steps of training."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import lite, lite_runs, lite_speed
from benchmarks.lite_runs import Collection, States, Variant
from cascades.inference import document_store
from cascades.models.rankers import Encoded

TOKENS = 16


def _encode(texts):
  random = np.random.default_rng(len(texts))
  states = random.standard_normal((len(texts), TOKENS, 384)).astype(np.float32)
  mask = np.arange(TOKENS) < random.integers(3, TOKENS, size=(len(texts), 1))
  return Encoded(states * mask[..., None], mask)


@pytest.fixture
def study(tmp_path, monkeypatch):
  """Three sets of ten documents and four queries, of which two are learned from."""
  monkeypatch.setattr(lite_runs, 'STEPS', 2)
  monkeypatch.setattr(lite_runs, 'QUERY_TOKENS', TOKENS)
  monkeypatch.setattr(lite, 'SEEDS', (0,))
  monkeypatch.setattr(lite, 'RATES', (1e-3,))
  names = [f'd{i}' for i in range(10)]
  collections, states = {}, {}
  for name in lite_runs.NAMES:
    queries = {f'q{i}': 'x' for i in range(4)}
    qrels = {
      split: {q: {names[i]: 1} for i, q in enumerate(own)}
      for split, own in (('train', ['q0', 'q1']), ('dev', ['q2']), ('test', ['q2', 'q3']))
    }
    runs = {s: {q: dict.fromkeys(names, 0.0) for q in own} for s, own in qrels.items()}
    collections[name] = Collection(name, TOKENS, dict.fromkeys(names, 'x'), queries, qrels, runs)
    stores = []
    for part, ids in (('documents', names), ('queries', [*queries])):
      folder = tmp_path / f'{name}-{part}'
      document_store.write(folder, dict.fromkeys(ids, 'x'), _encode, ranker='random')
      stores += [document_store.open_store(folder), {n: i for i, n in enumerate(ids)}]
    states[name] = States(*stores)
  test = collections['wikiqa'].candidates
  scores = {s: {q: {d: float(i) for i, d in enumerate(own)} for q, own in test[s].items()}
            for s in ('train', 'test')}  # fmt: skip
  cross = {**scores, 'train milliseconds': 4.0, 'test milliseconds': 4.0}
  (tmp_path / f'cross-{lite.CROSS_STEPS}.json').write_text(json.dumps(cross))
  return lite.Study(collections, states, tmp_path)


@pytest.mark.slow
def test_all_rows_of_the_protocol_are_measured(study):
  spent = {f'{name} {v.name}': 5.0 for name in lite.TRAINED_ON for v in lite_runs.VARIANTS}
  spent['query'] = 3.0
  rows = {row.what: row for row in lite.rows(study, spent)}
  for label in ('wikiqa', 'scifact', 'vaswani, zero-shot'):
    assert f'{label}: LITE - MaxSim, equal bytes' in rows
    assert f'{label}: MaxSim of MiniLM, untrained' in rows
  assert 'wikiqa: LITE, margin_mse - LITE' in rows
  assert all(0 <= row.value <= 1 for row in rows.values() if ' - ' not in row.what)
  curves = lite.cascade(study, spent)['curves']['milliseconds']
  assert len(curves) == 5
  file = study.folder / 'runs' / 'wikiqa-lite-1-contrastive-0.001-0.json'
  changed = file.stat().st_mtime_ns
  assert [*lite.rows(study, spent)] == [*rows.values()]
  assert file.stat().st_mtime_ns == changed  # read, and not computed again


def test_a_difference_has_the_band_of_its_queries():
  row = lite.difference('x', np.array([1.0, 0.5, 0.75]), np.array([0.5, 0.0, 0.25]))
  assert (row.value, row.met, row.note) == (0.5, True, '95 % +0.5000 to +0.5000')
  assert not lite.difference('x', np.zeros(3), np.ones(3)).met


def test_bytes_of_a_document_follow_its_tokens(study):
  lengths = np.diff(study.states['wikiqa'].documents.starts[0])
  size = lambda *variant: lite.bytes_per_document(study, Variant(*variant), 'wikiqa')
  assert size('max_sim') == pytest.approx(lengths.mean() * 66 + 2)
  assert size('max_sim', 4) == pytest.approx(np.ceil(lengths / 4).mean() * 66 + 2)
  assert size('lite', 4) == 4 * 66 + 2
  assert size('dot', 1, 384) == 388


def test_the_time_of_scoring_is_measured_for_all_scorers(monkeypatch):
  monkeypatch.setattr(lite_speed, 'CANDIDATES', 50)
  monkeypatch.setattr(lite_speed, 'REPEATS', 2)
  for scorer in ('dot', 'max_sim', 'lite'):
    config = dataclasses.replace(lite_speed._config(scorer, 8), document_tokens=12)
    assert 0 < lite_speed.milliseconds(config) < 60_000
