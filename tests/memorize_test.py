"""A memory of a trained model: what is stored, how it resumes, and the tables that it changes."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import decoding, evaluate, memorize, resmem
from cascades.evaluation import tables
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.inference import memories, memory_files, memory_index, trained_model
from cascades.models import decoder
from cascades.predictions import shards
from cascades.runtime import partitioning
from cascades.tasks.task import Row, Task
from tests import testing, tiny
from tests.infer_test import raw_rows

ROOT = pathlib.Path(__file__).parents[1]
DECODER = decoder.DecoderConfig(
  vocab_size=24, emb_dim=16, num_heads=2, num_kv_heads=2, num_layers=1, head_dim=8, mlp_dim=32
)


CONFIGS = [tiny.SMALL, pytest.param(DECODER, marks=pytest.mark.slow)]


@pytest.fixture(scope='module', autouse=True)
def few_lookups():
  """A short grid: each number of neighbors is compiled for."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(resmem, 'NEIGHBORS', (1, 5))
    yield


@pytest.fixture(scope='module', params=CONFIGS, ids=['t5', 'decoder'])
def trained(request, few_lookups, tmp_path_factory):
  directory = tmp_path_factory.mktemp('trained')
  tiny.train(**tiny.settings(directory, small=request.param, train_steps=20, save_every=20))
  build(directory, directory / 'memory')
  return directory


TUNING = memorize.Tuning(queries=32)


def build(directory, memory, *, tuning=TUNING, checkpoint='run', **changes):
  given = {'task': tiny.task(directory), 'lengths': tiny.LENGTHS, 'batch_size': 8}
  memorize.memorize(
    trained_model.Checkpoint(str(directory / checkpoint)),
    memorize.Entries(str(memory), **{'rows': 40, 'shard_rows': 10} | changes),
    data=tiny.corpus.Data(**given, records_dir=str(directory / 'records')),
    tuning=tuning,
    devices=partitioning.Devices(mesh=tiny.one_device),
  )


def infer(directory, output, recall=None, **changes):
  settings = {
    'checkpoint_path': str(directory / 'run'), 'infer_output_dir': str(output),
    'task': tiny.task(directory), 'task_feature_lengths': tiny.LENGTHS, 'batch_size': 8,
    'mesh': tiny.one_device, 'records_dir': str(directory / 'records'),
  } | changes  # fmt: skip
  tiny.infer(**settings, **({'memory': recall} if recall else {}))
  (table,) = shards.read(output / 'test', mode=changes.get('mode', 'predict'))
  return table


def stored(memory):
  manifest = memory_files.read_manifest(memory)
  return manifest, memory_files.read(memory, manifest), memory_files.read_lookups(memory, manifest)


def test_entries_are_the_states_from_which_target_tokens_are_read_out(trained):
  manifest, arrays, lookups = stored(trained / 'memory')
  lines = (trained / 'train.jsonl').read_text().splitlines()
  texts = [json.loads(line)['targets'] for line in lines]
  for row in np.unique(arrays['rows']):
    assert tiny.VOCABULARY.decode(arrays['tokens'][arrays['rows'] == row]) == texts[row]
  assert len(np.unique(arrays['rows'])) == 40
  assert arrays['keys'].shape == (lookups['entries'], 16)
  assert manifest['shards'] == 4
  assert lookups['bytes'] == arrays['keys'].nbytes + arrays['tokens'].nbytes


def test_a_table_with_a_memory_has_the_augmented_clipped_distribution(trained, tmp_path):
  """Greedy answers, checked token by token against `resmem` on the stored entries."""
  recall = memories.Recall(str(trained / 'memory'), neighbors=3, bandwidth=0.7, temperature=1.4)
  table = infer(trained, tmp_path, recall)
  _, arrays, lookups = stored(trained / 'memory')
  memory = memories.on_device(arrays)
  with partitioning.use(tiny.one_device()):
    loaded = trained_model.load(
      trained_model.Checkpoint(str(trained / 'run')), rules=partitioning.RULES
    )
  model = nnx.merge(loaded.graph, loaded.params)

  class Augmented:
    """The same distribution by the equations alone, behind the model's states."""

    table = model.table
    hidden = staticmethod(model.hidden)

    def readout(self, hidden, table=None):
      del table
      flat = hidden.reshape(-1, 16)
      index = jnp.argsort(jnp.sum((flat[:, None] - memory.keys) ** 2, -1))[:, :3]
      own = jax.nn.softmax(model.readout(memory.keys[index]) / 1.4)
      residual = jax.nn.one_hot(memory.tokens[index], 24) - own
      weight = resmem.weights(resmem.distances(flat, memory.keys, index), 0.7)
      p = resmem.add(jax.nn.softmax(model.readout(flat) / 1.4), weight, residual)
      return jnp.log(resmem.clip(p)).reshape(*hidden.shape[:-1], 24)

  scores = infer(trained, tmp_path / 'scores', recall, mode='score')
  data = tiny.corpus.Data(
    task=tiny.task(trained),
    lengths=tiny.LENGTHS,
    batch_size=32,
    records_dir=str(trained / 'records'),
  )
  with partitioning.use(tiny.one_device()):
    corpus = data.corpus(loaded.vocabulary, loaded.architecture)
    (records,) = corpus.open('test').per_task
    ((rows, _, batch),) = corpus.candidates(records, range(32), batch_size=32)
    batch = jax.tree.map(jnp.asarray, batch)
    expected = np.asarray(decoding.score(Augmented(), batch).logprobs)
  for row, logprobs, weights in zip(rows.tolist(), expected, batch.weights, strict=True):
    np.testing.assert_allclose(
      scores.tokens(np.array([row])), logprobs[np.asarray(weights) > 0], atol=2e-3
    )
  assert table.manifest['memory']['k'] == 3
  assert table.manifest['memory']['bytes'] == lookups['bytes']
  assert 'memory' in table.manifest['checkpoint_identity']
  lookup_flops = 2 * 16 * (lookups['entries'] + 3 * 24)
  assert table.manifest['flops_per_token'] == 2 * table.manifest['parameters'] + lookup_flops


def test_training_rows_are_answered_from_memory(trained, tmp_path):
  """With one neighbor the model repeats what it has seen, where greedy answers reach its states."""
  recall = memories.Recall(str(trained / 'memory'), neighbors=1)
  settings = {'splits': ('train',), 'mode': 'score'}
  output = tmp_path / 'remembered'
  with pytest.raises(FileNotFoundError):  # reads `test`, which is not written
    infer(trained, output, recall, **settings)
  (table,) = shards.read(output / 'train', mode='score')
  _, arrays, _ = stored(trained / 'memory')
  for row in np.unique(arrays['rows']):
    assert np.exp(table.tokens(np.array([row]))).min() > 0.99


@pytest.mark.slow
def test_a_memory_ranks_options_and_costs_its_bytes_and_milliseconds(trained, tmp_path):
  options = ('A B', 'C', 'D E F')
  prompts = ('a b', 'c d a')
  rows = [Row(f'{i}', prompts[i % 2], (options[i % 3],), options, i % 3) for i in range(6)]
  task = Task('some', ('test',), lambda _: rows, lambda _: 'x', vocabulary=lambda: tiny.VOCABULARY)
  recall = memories.Recall(str(trained / 'memory'), 'knn_lm', neighbors=3, interpolation=0.9)
  ranked = {'mode': 'score', 'candidates': 'options', 'task': task}
  infer(trained, tmp_path / 'plain', **ranked)
  table = infer(trained, tmp_path / 'memory', recall, **ranked)
  plain, mixed = (raw_rows(tmp_path / name / 'test', 'score') for name in ('plain', 'memory'))
  # The score of an option is that of the same text as the target, under the same distribution.
  scored = infer(trained, tmp_path / 'targets', recall, mode='score', task=task)
  for number in range(6):
    own = mixed[number]['aux']['option_scores']
    assert own[number % 3] == pytest.approx(scored.tokens(np.array([number])).sum(), abs=1e-3)
    assert table.predictions[number] == options[int(np.argmax(own))]
    assert np.abs(np.subtract(own, plain[number]['aux']['option_scores'])).max() > 0.05
  seconds = {'prompt': 0, 'generated': 0.01}  # tables of scores do not count prompts
  evaluate.evaluate(
    tables.Tables(
      {name: str(tmp_path / name) for name in ('plain', 'memory')}, str(tmp_path / 'plain'),
      mode='score',
    ),
    str(tmp_path / 'report'),
    settings=Settings(resamples=5),
    chains=Chains(
      axes=['bytes', 'seconds'], seconds=dict.fromkeys(('plain', 'memory', 'large'), seconds)
    ),
  )  # fmt: skip
  (*_, lookups) = stored(trained / 'memory')
  written = json.loads((tmp_path / 'report' / 'curves.json').read_text())['chains']
  cost = {(own['axis'], name): single['cost'] for own in written
          for name, single in own['singles'].items()}  # fmt: skip
  weights = 4 * table.manifest['parameters']
  assert cost['bytes', 'plain'] == cost['bytes', 'large'] == weights
  assert cost['bytes', 'memory'] == weights + lookups['bytes']
  own = 0.01 + 1e-3 * lookups['milliseconds_per_token']
  assert cost['seconds', 'memory'] == pytest.approx(own * table.lengths.mean())


@pytest.mark.slow
def test_knn_lm_is_another_way_of_combining(trained, tmp_path):
  knn = memories.Recall(str(trained / 'memory'), combine='knn_lm', interpolation=0.0)
  plain, mixed = infer(trained, tmp_path / 'plain'), infer(trained, tmp_path / 'knn', knn)
  assert plain.predictions == mixed.predictions
  np.testing.assert_allclose(plain.token_logprobs, mixed.token_logprobs, atol=1e-3)
  assert mixed.manifest['memory']['combine'] == 'knn_lm'


@pytest.mark.slow
def test_probabilities_of_the_full_vocabulary_give_the_same_answers(trained, tmp_path):
  build(trained, tmp_path / 'stored', stored_tokens=24)
  recall = memories.Recall(str(trained / 'memory'), neighbors=5, bandwidth=1.0, temperature=1.4)
  tables = [
    infer(trained, tmp_path / name, memories.Recall(path, neighbors=5, bandwidth=1.0,
                                                     temperature=1.4))
    for name, path in (('a', recall.path), ('b', str(tmp_path / 'stored')))
  ]  # fmt: skip
  assert tables[0].predictions == tables[1].predictions
  np.testing.assert_allclose(tables[0].token_logprobs, tables[1].token_logprobs, atol=2e-3)


def test_lookups_are_chosen_without_the_rows_of_the_queries(trained):
  *_, lookups = stored(trained / 'memory')
  errors = lookups['errors']
  assert set(errors) == {'alone', 'resmem', 'knn_lm'}
  assert all(np.isfinite(list(errors.values())))
  # With itself as its neighbor, an entry would be predicted without error.
  assert errors['resmem'] > 1e-3


@pytest.mark.slow
def test_rerunning_writes_the_shards_that_are_missing_alone(trained, tmp_path):
  memory = tmp_path / 'memory'
  build(trained, memory)
  before = {path.name: path.read_bytes() for path in memory.glob('*.npy')}
  times = {path.name: path.stat().st_mtime_ns for path in memory.glob('*.npy')}
  (memory / '00002.keys.npy').unlink()
  (memory / '00001.tokens.npy').write_bytes(before['00001.tokens.npy'][:-8])
  build(trained, memory)
  assert {path.name: path.read_bytes() for path in memory.glob('*.npy')} == before
  untouched = [name for name in times if name[:5] in ('00000', '00003')]
  assert all((memory / name).stat().st_mtime_ns == times[name] for name in untouched)
  stored(memory)


def test_refusals_name_what_was_expected(trained, tmp_path):
  memory = tmp_path / 'memory'
  build(trained, memory)
  with pytest.raises(ValueError, match=r'another memory: rows is .* OVERWRITE=True replaces it'):
    build(trained, memory, rows=30)
  with pytest.raises(ValueError, match=r'the memory has 1 row: give it two or more \(ROWS\)'):
    build(trained, tmp_path / 'lonely', rows=1)
  with pytest.raises(FileNotFoundError, match=r'holds no memory: manifest\.json is missing'):
    infer(trained, tmp_path / 'out', memories.Recall(str(tmp_path / 'absent')))
  with pytest.raises(ValueError, match=r'NEIGHBORS=9999, and the memory .* has \d+ entries'):
    infer(trained, tmp_path / 'out', memories.Recall(str(memory), neighbors=9999))
  path = memory / '00001.keys.npy'
  content = path.read_bytes()
  path.write_bytes(content[:-4])
  with pytest.raises(ValueError, match=r'not complete: 00001\.keys\.npy has bytes \d+, but'):
    infer(trained, tmp_path / 'out', memories.Recall(str(memory)))
  path.write_bytes(content)
  (memory / memory_files.LOOKUPS).unlink()
  with pytest.raises(ValueError, match=r'is not finished: lookups\.json is missing'):
    infer(trained, tmp_path / 'out', memories.Recall(str(memory)))
  for key, match in (('checkpoint_identity', 'checkpoint_identity is'), ('vocabulary', 'vocab')):
    manifest = json.loads((memory / memory_files.MANIFEST).read_text())
    changed = json.dumps({**manifest, key: 'of another'})
    (memory / memory_files.MANIFEST).write_text(changed)
    with pytest.raises(ValueError, match=f'is of another model: {match}.* there and'):
      infer(trained, tmp_path / 'out', memories.Recall(str(memory)))
    (memory / memory_files.MANIFEST).write_text(json.dumps(manifest))
  (memory / memory_files.MANIFEST).write_text('{"format": 1')
  with pytest.raises(ValueError, match=r'manifest\.json is damaged .*: remove the directory'):
    infer(trained, tmp_path / 'out', memories.Recall(str(memory)))


@pytest.mark.parametrize(('given', 'match'), [
  ({'path': 'm', 'combine': 'mix'}, "COMBINE='mix'; expected resmem or knn_lm"),
  ({'path': 'm', 'neighbors': 0}, 'NEIGHBORS'),
  ({'path': 'm', 'bandwidth': 0.0}, 'BANDWIDTH'),
  ({'path': 'm', 'temperature': -1.0}, 'MEMORY_TEMPERATURE'),
  ({'path': 'm', 'interpolation': 0.5}, 'ResMem adds residuals: leave it out, or give COMBINE'),
  ({'path': 'm', 'combine': 'knn_lm', 'interpolation': 1.5}, 'INTERPOLATION'),
  ({'neighbors': 3}, 'for a memory, and there is none: name its directory with MEMORY'),
])  # fmt: skip
def test_bad_settings_of_a_lookup(given, match):
  with pytest.raises(ValueError, match=match):
    memories.Recall(**given)


def test_a_memory_is_searched_on_one_device():
  mesh = partitioning.make_mesh(devices=jax.devices()[:2])
  with partitioning.use(mesh), pytest.raises(ValueError, match='searched on one device'):
    memories.attach(None, {}, {}, memories.Recall('m'), 16)


def test_no_neighbor_of_a_token_needs_logits_of_all_neighbors_at_once():
  """The program of a readout with 50 neighbors has no [Q, k, V] buffer."""
  model = testing.build(testing.TINY_T5)
  memory = resmem.Datastore(jnp.ones((64, 16)), jnp.zeros(64, int))
  lookup = resmem.Lookup(50, 1.0)
  read = jax.jit(lambda h: memories.logprobs(h, memory, model.readout, lookup))
  text = read.lower(jax.ShapeDtypeStruct((32, 16), jnp.float32)).as_text()
  assert f'32x{testing.VOCAB}x' in text or f'32x{testing.VOCAB}xf32' in text
  assert f'50x{testing.VOCAB}x' not in text


def test_the_index_of_faiss_reports_its_recall(tmp_path):
  pytest.importorskip('faiss')
  keys = np.random.default_rng(0).standard_normal((4000, 8)).astype(np.float32)
  memory_index.build(keys, tmp_path / 'index.faiss')
  search = memory_index.search(tmp_path / 'index.faiss')
  recall = memory_index.recall(search, keys, 10)
  assert 0.3 < recall < 1.0
  assert memory_index.recall(lambda q, k, n: resmem.nearest(q, k, n), keys, 10) == 1.0
  inside = jax.jit(lambda q: search(q, jnp.asarray(keys), 1))(jnp.asarray(keys[:50]))
  np.testing.assert_array_equal(inside[:, 0], np.arange(50))


@pytest.mark.slow
def test_an_indexed_memory_says_its_recall_in_the_table(trained, tmp_path):
  pytest.importorskip('faiss')
  build(trained, tmp_path / 'memory', tuning=memorize.Tuning(queries=32, index_above=50))
  table = infer(trained, tmp_path / 'out', memories.Recall(str(tmp_path / 'memory')))
  assert 0 < table.manifest['memory']['index']['recall'] <= 1


def test_without_faiss_a_large_memory_says_how_to_get_it(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'faiss', None)
  with pytest.raises(ImportError, match=r'pip install "lm-cascades\[faiss\]".*INDEX_ABOVE=None'):
    memory_index.build(np.zeros((10, 2)), tmp_path / 'index')


@pytest.mark.slow
def test_the_real_commands_write_a_memory_and_a_table(trained, tmp_path):
  paths = {name: str(trained / f'{name}.jsonl') for name in ('train', 'test')}
  task = tmp_path / 'task.gin'
  task.write_text(
    'from __gin__ import dynamic_registration\nfrom cascades.tasks import local\n'
    f"TASK = @local.local_jsonl()\nlocal.local_jsonl.name = 'backwards'\n"
    f'local.local_jsonl.splits = {paths!r}\n'
  )
  common = [
    f'--gin_file={task}', f'--gin.CHECKPOINT_PATH={trained / "run"}',
    f'--gin.TASK_FEATURE_LENGTHS={tiny.LENGTHS}', f'--gin.MEMORY={tmp_path / "memory"}',
    f'--gin.RECORDS_DIR={tmp_path / "records"}',
  ]  # fmt: skip
  programs = {
    'memorize': ['--gin.QUERIES=32'], 'infer': [f'--gin.INFER_OUTPUT_DIR={tmp_path / "out"}'],
  }  # fmt: skip
  for program, own in programs.items():
    done = subprocess.run(
      [sys.executable, '-m', f'cascades.{program}', f'--gin_file=runs/{program}.gin', *common,
       *own],
      cwd=ROOT, capture_output=True, text=True, check=False,
      env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
  (table,) = shards.read(tmp_path / 'out' / 'test')
  assert table.manifest['memory']['entries'] > 100
