"""Scores of rows end to end: written, resumed, refused, and read by training."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from cascades import select, selection
from cascades.data import scores
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Data
from cascades.inference import trained_model
from cascades.runtime import partitioning
from cascades.training import continuation
from tests import testing, tiny
from tests.cache_teacher_test import make_run
from tests.train_test import final_state


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp('home')
  make_run(home / 'small', tiny.SMALL)
  return home


def data(home, **changes):
  settings = {'task': tiny.task(home), 'lengths': tiny.LENGTHS, 'batch_size': 10}
  return Data(**settings | {'records_dir': str(home / 'records')} | changes)


def run(home, name, **changes):
  checkpoint = trained_model.Checkpoint(str(home / 'small'))
  settings = {'data': data(home), 'k': 4, 'shard_rows': 24}
  devices = partitioning.Devices(mesh=tiny.one_device)
  select.select(checkpoint, str(home / name), **settings | changes, devices=devices)
  return home / name / 'backwards' / 'train'


@pytest.fixture(scope='module')
def table(home):
  return run(home, 'scores')


def read(directory):
  lines = [
    json.loads(line)
    for path in sorted(directory.glob('scores.jsonl-?????-of-?????'))
    for line in path.read_text().splitlines()
  ]
  return {line['id']: line['score'] for line in lines}


def test_scores_are_those_of_each_row_by_itself(home, table):
  corpus = data(home).corpus(tiny.VOCABULARY, 'encoder_decoder')
  records = corpus.open('train')
  with partitioning.use(tiny.one_device()):
    (batch,) = corpus.ordered(records, range(64), batch_size=64)
  logits = testing.logits(*testing.split(testing.build(tiny.SMALL)), batch)
  expected = selection.zeroed_median(
    selection.token_losses(logits, batch.targets),
    selection.learnable(logits, batch.targets, k=4),
    batch.weights > 0,
  )
  written = read(table)
  assert list(written) == [f'train-{number}' for number in range(64)]
  np.testing.assert_allclose(list(written.values()), expected, rtol=1e-4, atol=1e-5)
  assert len(set(written.values())) > 3


def test_missing_shards_are_scored_again_and_the_others_are_kept(home, table, tmp_path):
  copy = tmp_path / 'scores' / 'backwards' / 'train'
  shutil.copytree(table, copy)
  names = sorted(path.name for path in copy.glob('scores.jsonl-?????-of-?????'))
  (copy / names[1]).write_text('{}\n')
  (copy / f'{names[2]}.COMPLETED').unlink()
  before = (copy / names[0]).stat().st_mtime_ns
  run(home, tmp_path / 'scores')
  assert read(copy) == read(table)
  assert (copy / names[0]).stat().st_mtime_ns == before


def test_scores_of_something_else_are_refused_and_replaced_only_if_asked(home, table, tmp_path):
  copy = tmp_path / 'scores' / 'backwards' / 'train'
  shutil.copytree(table, copy)
  for change, message in (
    ({'k': 5}, 'top_k is 4 there and 5 here'),
    ({'score': selection.filtered_median}, 'score is .zeroed_median. there'),
    ({'data': data(home, lengths={'inputs': 8, 'targets': 7})}, 'lengths is'),
  ):
    with pytest.raises(ValueError, match=message):
      run(home, tmp_path / 'scores', **change)
  assert read(copy) == read(table)
  run(home, tmp_path / 'scores', k=1, overwrite=True)
  assert json.loads((copy / scores.MANIFEST).read_text())['origin']['top_k'] == 1
  assert read(copy) != read(table)


def pool(home, table, **changes):
  corpus = data(home).corpus(tiny.VOCABULARY, 'encoder_decoder')
  return corpus, corpus.pool(scores.selected(str(table.parents[1]), **changes))


@pytest.mark.parametrize('rows', [16, 0.25])
def test_training_reads_the_best_rows_at_first_and_then_all(home, table, rows):
  corpus, chosen = pool(home, table, rows=rows, steps=4)
  values = np.array(list(read(table).values()))
  best = {f'train-{row}' for row in selection.best(values, 16)}
  order = {'batch_size': 8, 'seed': 3}
  ids = [corpus.training_ids(step, **order, pool=chosen) for step in range(8)]
  assert [set(ids[0] + ids[1]), set(ids[2] + ids[3])] == [best, best]  # two epochs
  assert ids[4:] == [corpus.training_ids(step, **order) for step in range(4, 8)]
  batches = corpus.training(3, **order, pool=chosen)
  plain = corpus.training(4, **order)
  first, second = next(batches), next(batches)
  jax.tree.map(np.testing.assert_array_equal, second, next(plain))
  assert not np.array_equal(first.targets, second.targets)


def test_steps_on_samples_read_the_prompts_of_selected_rows(home, table):
  corpus, chosen = pool(home, table, rows=16, steps=2)
  order = {'batch_size': 8, 'seed': 3}
  fixed = corpus.training(0, **order, pool=chosen)
  order['sources'] = AnswerSources(fixed_fraction=0)
  prompts = corpus.training(0, **order, pool=chosen)
  of_all = next(corpus.training(0, **order)).encoder.tokens
  for step, batch, unanswered in zip(range(4), fixed, prompts, strict=False):
    np.testing.assert_array_equal(unanswered.encoder.tokens, batch.encoder)
    assert step or not np.array_equal(unanswered.encoder.tokens, of_all)


def test_a_run_is_not_resumed_with_other_scores(home, table):
  corpus = data(home).corpus(tiny.VOCABULARY, 'encoder_decoder')
  other = run(home, 'filtered', score=selection.filtered_median)
  moved = home / 'moved' / table.parent.name / table.name
  shutil.copytree(table, moved)
  first, second, same = (
    continuation._selected(scores.selected(str(path.parents[1]), rows=rows), corpus)
    for path, rows in ((table, 16), (other, 8), (moved, 16))
  )
  assert [name for name, _ in continuation._differences(first, second)] == [
    'SELECTED', 'SELECTED_ROWS',
  ]  # fmt: skip
  assert not [*continuation._differences(first, same)]


def test_packs_hold_selected_rows_only(home, table):
  corpus = data(home).corpus(tiny.VOCABULARY, 'decoder_only')
  chosen = scores.SelectedRows([np.array([3, 5, 8, 60])], None)
  ids = {
    name
    for step in range(4)
    for name in corpus.training_ids(step, batch_size=2, seed=0, pack=32, pool=chosen)
  }
  assert ids == {'train-3', 'train-5', 'train-8', 'train-60'}


def test_scores_that_do_not_fit_the_rows_are_refused(home, table, tmp_path):
  with pytest.raises(FileNotFoundError, match='holds no scores of rows: make them with'):
    pool(home, tmp_path / 'none' / 'backwards' / 'train')
  with pytest.raises(ValueError, match=r'SELECTED_ROWS=65 of .*65 of 64 rows cannot be selected'):
    pool(home, table, rows=65)
  corpus = data(home, lengths={'inputs': 8, 'targets': 6}).corpus(
    tiny.VOCABULARY, 'encoder_decoder'
  )
  with pytest.raises(ValueError, match='scores of something else: lengths is'):
    corpus.pool(scores.selected(str(table.parents[1])))
  copy = tmp_path / 'scores' / 'backwards' / 'train'
  shutil.copytree(table, copy)
  next(copy.glob('scores.jsonl-00001-*')).write_text('')
  with pytest.raises(ValueError, match=r'cannot be used: the file has .*computes what is missing'):
    pool(home, copy)
  intact = json.loads((copy / scores.MANIFEST).read_text())
  for content, defect in (
    ('[', 'is damaged'),
    ('[]', r'is damaged \(Expected `object`, got `array`'),
    (json.dumps(intact | {'shard_rows': 0}), r'is damaged \(shard_rows: Expected `int` >= 1'),
    (json.dumps(intact | {'rows': 1.5}), r'is damaged \(rows: Expected `int`, got `float`'),
  ):
    (copy / scores.MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=defect):
      pool(home, copy)
  assert scores.selected(None) is None


def test_the_command_scores_and_training_takes_its_table(home, tmp_path):
  gin = tmp_path / 'task.gin'
  paths = tiny.write_rows(tmp_path)
  gin.write_text(
    'from __gin__ import dynamic_registration\nfrom cascades.tasks import local\n'
    f"TASK = @local.local_jsonl()\nlocal.local_jsonl.name = 'backwards'\n"
    f"local.local_jsonl.splits = {{'train': {paths['train']!r}}}\n"
    f'TASK_FEATURE_LENGTHS = {tiny.LENGTHS}\n'
  )
  command = [
    sys.executable, '-m', 'cascades.select', '--gin_file=runs/select.gin', f'--gin_file={gin}',
    f'--gin.CHECKPOINT_PATH={home}/small', f'--gin.SELECTED={tmp_path}/scores', '--gin.TOP_K=4',
    '--gin.SCORE=@selection.filtered_median', '--gin.BATCH_SIZE=16',
    f'--gin.RECORDS_DIR={tmp_path}/records',
  ]  # fmt: skip
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  assert '64 rows scored' in result.stdout
  assert 'row 64/64' in result.stdout
  chosen = scores.selected(f'{tmp_path}/scores', rows=16)
  settings = tiny.settings(tmp_path, train_steps=1, selection=chosen)
  tiny.train(**settings)
  stored = json.loads((tmp_path / 'run' / 'settings.json').read_text())[0]['settings']
  assert (stored['SELECTED_ROWS'], stored['SELECTED_STEPS']) == (16, None)
  assert stored['SELECTED']['identity']
  assert final_state(tmp_path, 1)
