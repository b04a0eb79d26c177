"""Rankers are trained, encode documents, rank them, and are measured, from the user's own files."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import subprocess
import sys

import jax
import numpy as np
import pytest

from cascades import rank, ranking
from cascades.checkpoints.finished import CheckpointError
from cascades.inference import document_store, ranked_runs
from cascades.inference.ranker import open_ranker
from cascades.models.rankers import Encoded, RankerConfig
from cascades.predictions import judgments
from cascades.training import optimizers
from cascades.training.ranker import RankingStep
from cascades.training.setup import Schedule

ROOT = pathlib.Path(__file__).parents[1]
SIZES = functools.partial(
  RankerConfig, width=8, query_tokens=8, document_tokens=16, query_mlp=4, document_mlp=8
)
MODEL = rank.RankerOptions(layers=1, config=SIZES)
STEP = RankingStep(
  learning_rate=optimizers.constant(1e-2), batch_size=4, negatives=2
)  # fmt: skip


def sized(**sizes):
  return dataclasses.replace(MODEL, config=functools.partial(SIZES, **sizes))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """Documents of words, queries of some of a document's words, and a run that knows half of it."""
  folder, rng = tmp_path_factory.mktemp('data'), random.Random(0)
  words = [a + b for a in 'bcdfg' for b in 'aeiou']
  documents = {f'd{i}': ' '.join(rng.choices(words, k=rng.randint(5, 20))) for i in range(30)}
  lines = lambda rows: '\n'.join(json.dumps({'_id': k, 'text': t}) for k, t in rows.items()) + '\n'
  (folder / 'documents.jsonl').write_text(lines(documents))
  relevant = {f'q{i}': rng.choice([*documents]) for i in range(12)}
  queries = {q: ' '.join(rng.sample(documents[d].split(), 3)) for q, d in relevant.items()}
  (folder / 'queries.jsonl').write_text(lines(queries))
  for split, ids in (('train', [*queries][:8]), ('test', [*queries][8:])):
    grades = ''.join(f'{q}\t{relevant[q]}\t1\n' for q in ids)
    (folder / f'{split}.tsv').write_text(f'query-id\tcorpus-id\tscore\n{grades}')
  candidates = {
    q: dict.fromkeys([d, *rng.sample([*documents], 6)], 1.0) for q, d in relevant.items()
  }
  judgments.write_run(folder / 'bm25.run', {q: [*own.items()] for q, own in candidates.items()})
  return folder


def _texts(data, split, **options):
  return rank.RankingTexts(
    str(data / 'documents.jsonl'), str(data / 'queries.jsonl'), str(data / f'{split}.tsv'),
    **options,
  )  # fmt: skip


def _run(mode, folder, texts, *, model=MODEL, step=STEP, steps=2, save_every=0, **options):
  overwrite = options.pop('overwrite', False)
  rank.rank(
    mode, None if folder is None else str(folder), texts, model, step,
    Schedule(train_steps=steps, save_every=save_every), rank.RankOptions(**options),
    overwrite=overwrite,
  )  # fmt: skip


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp('lite')
  _run('train', folder, _texts(data, 'train', candidates=str(data / 'bm25.run')))
  _run('encode', folder, _texts(data, 'train'), store=str(folder / 'store'), dtype='float32')
  return folder


@pytest.mark.slow
def test_a_stored_document_scores_as_one_that_is_encoded_on_the_fly(data, trained):
  model = open_ranker(trained)
  store = document_store.open_store(trained / 'store', ranker=model.identity)
  documents = judgments.texts(data / 'documents.jsonl', 'DOCUMENTS')
  query = Encoded(*(leaf[0] for leaf in model.encode_queries(['ba ce di'])))
  chosen = [*documents][3:20]
  fresh = model.encode_documents([documents[name] for name in chosen])
  stored = store.take([store.ids.index(name) for name in chosen])
  np.testing.assert_allclose(stored.vectors, fresh.vectors, atol=1e-6)
  expected = model.score(query, fresh)
  assert expected.shape == (17,)
  assert np.ptp(expected) > 1e-3
  np.testing.assert_allclose(model.score(query, stored), expected, atol=1e-4)


def test_blocks_of_candidates_score_as_each_alone(trained):
  model = open_ranker(trained)
  query = Encoded(*(leaf[0] for leaf in model.encode_queries(['ba ce di'])))
  documents = model.encode_documents(['ba'] * 30 + ['ce di bo', 'fu'] * 3)
  scores = model.score(query, documents)
  np.testing.assert_allclose(scores[:30], scores[0], atol=1e-4)
  single = lambda i: Encoded(documents.vectors[i : i + 1], documents.mask[i : i + 1])
  alone = [model.score(query, single(i))[0] for i in (30, 35)]
  np.testing.assert_allclose(scores[[30, 35]], alone, atol=1e-4)


def test_ranking_all_documents_gives_the_best_of_the_candidates_first(data, trained, tmp_path):
  options = {'store': str(trained / 'store')}
  _run('rank', trained, _texts(data, 'test'), run=str(tmp_path / 'all'), depth=5, **options)
  every = judgments.read_run(tmp_path / 'all')
  assert {len(own) for own in every.values()} == {5}
  candidates = str(data / 'bm25.run')
  texts = _texts(data, 'test', candidates=candidates)
  _run('rank', trained, texts, run=str(tmp_path / 'some'), **options)
  some = judgments.read_run(tmp_path / 'some')
  given = judgments.read_run(candidates)
  assert [*some] == ['q8', 'q9', 'q10', 'q11']
  for query, own in some.items():
    assert own.keys() == given[query].keys()
    assert [*own.values()] == sorted(own.values(), reverse=True)
    for name in own.keys() & every[query].keys():
      assert own[name] == pytest.approx(every[query][name], abs=1e-4)
  costs = ranked_runs.read_costs(tmp_path / 'some')
  store = document_store.open_store(trained / 'store')
  assert costs.document_bytes == pytest.approx(store.bytes_per_document)
  assert costs.documents == sum(map(len, some.values()))
  assert costs.document_milliseconds > 0
  with pytest.raises(FileExistsError, match='OVERWRITE=True'):
    _run('rank', trained, _texts(data, 'test'), run=str(tmp_path / 'all'), **options)


@pytest.mark.slow
def test_a_resumed_run_has_the_weights_of_one_that_was_not_stopped(data, tmp_path):
  model = sized(scorer='max_sim')
  for steps in (2, 4):
    _run('train', tmp_path / 'a', _texts(data, 'train'), model=model, steps=steps, save_every=2)
  _run('train', tmp_path / 'b', _texts(data, 'train'), model=model, steps=4)
  first, second = open_ranker(tmp_path / 'a'), open_ranker(tmp_path / 'b')
  for own, other in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
    np.testing.assert_array_equal(own, other)
  assert first.identity == second.identity
  with pytest.raises(CheckpointError, match='belongs to another run: batch_size'):
    _run(
      'train', tmp_path / 'a', _texts(data, 'train'), model=model,
      step=dataclasses.replace(STEP, batch_size=2),
    )  # fmt: skip


def test_a_frozen_encoder_stays_and_what_is_behind_it_moves(data, tmp_path):
  step = dataclasses.replace(STEP, frozen=True)
  params = []
  for steps in (1, 3):
    folder = tmp_path / str(steps)
    _run('train', folder, _texts(data, 'train'), step=step, steps=steps)
    params.append(open_ranker(folder).params)
  same = jax.tree.map(np.array_equal, *params)
  assert all(jax.tree.leaves(same['encoder']))
  assert not any(jax.tree.leaves({n: own for n, own in same.items() if n != 'encoder'}))
  bare = sized(scorer='max_sim', width=None)
  with pytest.raises(ValueError, match='FREEZE=True leaves nothing to train'):
    _run('train', tmp_path / 'bare', _texts(data, 'train'), model=bare, step=step)


@pytest.fixture(scope='module')
def cross(data, tmp_path_factory):
  folder = tmp_path_factory.mktemp('cross')
  _run('train', folder, _texts(data, 'train'), model=sized(scorer='cross'))
  for split in ('train', 'test'):
    texts = _texts(data, split, candidates=str(data / 'bm25.run'), with_judged=split == 'train')
    _run('rank', folder, texts, run=str(folder / f'{split}.run'))
  return folder


@pytest.mark.slow
def test_a_cross_encoder_teaches_a_student(data, cross, tmp_path):
  teacher = judgments.read_run(cross / 'train.run')
  for query, own in judgments.read_qrels(data / 'train.tsv').items():
    assert own.keys() <= teacher[query].keys()
  texts = _texts(data, 'train', teacher=str(cross / 'train.run'))
  step = dataclasses.replace(STEP, loss=ranking.margin_mse)
  _run('train', tmp_path / 'student', texts, step=step)
  del teacher['q0'][next(iter(judgments.read_qrels(data / 'train.tsv')['q0']))]
  judgments.write_run(tmp_path / 'less', {q: [*own.items()] for q, own in teacher.items()})
  with pytest.raises(
    ValueError, match=r"TEACHER has no score of the relevant .* of the query 'q0'"
  ):
    _run('train', tmp_path / 'x', _texts(data, 'train', teacher=str(tmp_path / 'less')), step=step)


def test_pairs_score_alike_in_any_batch(cross):
  model = open_ranker(cross)
  texts = ['ba ce', 'di bo fu ga', 'ce']
  alone = [model.score_pairs('ba', [text])[0] for text in texts]
  np.testing.assert_allclose(model.score_pairs('ba', texts), alone, atol=1e-5)


def test_runs_are_measured_and_a_cascade_has_curves(data, trained, cross, tmp_path):
  texts = _texts(data, 'test', candidates=str(data / 'bm25.run'))
  _run('rank', trained, texts, run=str(tmp_path / 'lite.run'), store=str(trained / 'store'))
  runs = {'bm25': str(data / 'bm25.run'), 'lite': str(tmp_path / 'lite.run'),
          'cross': str(cross / 'test.run')}  # fmt: skip
  _run('evaluate', None, texts, runs=runs, output_dir=str(tmp_path))
  means = json.loads((tmp_path / 'ranking.json').read_text())['means']
  _run('cascade', None, texts, runs=runs, output_dir=str(tmp_path), depths=[0, 2, 50], middle=[50])
  contents = json.loads((tmp_path / 'cascade.json').read_text())
  (curve,) = contents['curves']['milliseconds'].values()
  assert curve['quality'][0] == pytest.approx(means['lite']['RR@10'])
  assert curve['quality'][-1] == pytest.approx(means['cross']['RR@10'])
  assert curve['cost'] == sorted(curve['cost'])
  assert (tmp_path / 'cascade.svg').stat().st_size > 1000
  with pytest.raises(FileExistsError, match='OVERWRITE=True'):
    _run('evaluate', None, texts, runs=runs, output_dir=str(tmp_path))


@pytest.mark.parametrize(
  ('mode', 'options', 'words'),
  [
    ('sort', {}, "MODE='sort' is none of train, encode, rank, evaluate, cascade"),
    ('encode', {}, 'STORE is not given, and this MODE needs it'),
    ('rank', {}, 'RUN is not given'),
    ('evaluate', {}, 'RUNS is empty'),
    ('cascade', {'runs': {'a': 'b'}}, 'RUNS has 1 runs; a ranking cascade has two or three'),
    ('rank', {'run': 'x', 'store': 'absent'}, 'holds no manifest.json: make it with MODE=encode'),
  ],
)
def test_what_a_mode_lacks_is_named(mode, options, words, data, trained, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=words):
    _run(mode, trained, _texts(data, 'test'), **options)


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'depths': [3, 1]}, r'DEPTHS=\[3, 1\]; expected ascending depths'),
    ({'middle': []}, r'MIDDLE=\[\]; expected ascending'),
    ({'depth': 0}, 'DEPTH=0 must be a whole number at least 1'),
    ({'batch_size': 0}, 'ENCODE_BATCH=0 must be'),
  ],
)
def test_options_out_of_range_are_named(options, words):
  with pytest.raises(ValueError, match=words):
    rank.RankOptions(**options)


def test_files_that_do_not_fit_together_are_named(data, trained, cross, tmp_path):
  (tmp_path / 'other.run').write_text('q8 nowhere 1\n')
  texts = _texts(data, 'test', candidates=str(tmp_path / 'other.run'))
  with pytest.raises(ValueError, match="STORE has no document 'nowhere', a candidate of 'q8'"):
    _run('rank', trained, texts, run=str(tmp_path / 'r'), store=str(trained / 'store'))
  with pytest.raises(ValueError, match="DOCUMENTS has no document 'nowhere', a candidate of 'q8'"):
    _run('rank', cross, texts, run=str(tmp_path / 'r'))
  with pytest.raises(
    ValueError, match="CANDIDATES names the document 'nowhere' for the query 'q8'"
  ):
    _run('train', tmp_path / 'm', texts)
  with pytest.raises(ValueError, match='a cross-encoder ranks CANDIDATES'):
    _run('rank', cross, _texts(data, 'test'), run=str(tmp_path / 'r'))
  with pytest.raises(ValueError, match='is a cross-encoder, which reads pairs: it needs no STORE'):
    _run('encode', cross, _texts(data, 'test'), store=str(tmp_path / 's'))
  _run('train', tmp_path / 'new', _texts(data, 'train'), steps=1)
  options = {'run': str(tmp_path / 'r'), 'store': str(trained / 'store')}
  with pytest.raises(document_store.StoreError, match='that another ranker encoded'):
    _run('rank', tmp_path / 'new', _texts(data, 'test'), **options)
  with pytest.raises(ValueError, match='DOCUMENTS is not given, and this MODE reads it'):
    _run('train', tmp_path / 'm', rank.RankingTexts())


def test_the_real_command_measures_runs(data, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'cascades.rank', '--gin_file=runs/rank.gin', '--gin.MODE=evaluate',
     f'--gin.RUNS={{"bm25": "{data}/bm25.run"}}', f'--gin.QRELS={data}/test.tsv',
     f'--gin.OUTPUT_DIR={tmp_path}'],
    cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, 'XLA_FLAGS': ''},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'bm25: RR@10' in done.stdout
  assert json.loads((tmp_path / 'ranking.json').read_text())['provenance']


@pytest.mark.slow
def test_the_real_command_trains_and_resumes(data, tmp_path):
  command = [
    sys.executable, '-m', 'cascades.rank', '--gin_file=runs/rank.gin', '--gin.MODE=train',
    f'--gin.DOCUMENTS={data}/documents.jsonl', f'--gin.QUERIES={data}/queries.jsonl',
    f'--gin.QRELS={data}/train.tsv', f'--gin.MODEL_DIR={tmp_path}/m', '--gin.SCORER=max_sim',
    '--gin.LOG_EVERY=1', '--gin.LAYERS=1',
  ]  # fmt: skip
  for steps, words in ((2, 'step 2/2'), (4, 'resumed after step 2')):
    done = subprocess.run(
      [*command, f'--gin.TRAIN_STEPS={steps}'], cwd=ROOT, capture_output=True, text=True,
      check=False, env={**os.environ, 'XLA_FLAGS': ''},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
