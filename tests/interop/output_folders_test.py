"""Exports into folders that hold something: refused by name, or replaced when told to."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from cascades.checkpoints import made_runs, store
from cascades.interop import huggingface, t5x_files, tensor_tables
from cascades.runtime import files
from tests.interop import twin_folders

CONFIG = twin_folders.config('llama')
SMALL = {'shard_bytes': 2500}


@pytest.fixture(scope='module')
def tensors(tmp_path_factory):
  folder = twin_folders.twin(tmp_path_factory.mktemp('twin'), 'llama')
  _, params = twin_folders.load(folder)
  return tensor_tables.unload(huggingface.open_folder(folder).tensors.table, params)


def _write(folder, tensors, companions=None, **options):
  huggingface.write_folder(folder, CONFIG, tensors, companions or {}, **options)


def _names(folder):
  return sorted(path.name for path in folder.iterdir())


def _fail(after):
  """A writer that is killed at the file behind `after`."""
  count = iter(range(10**6))
  write = files.write

  def killed(path, content):
    if next(count) == after:
      write(path.parent / f'.{path.name}.{"0" * 32}', b'half')
      raise KeyboardInterrupt
    write(path, content)

  return killed


@pytest.mark.parametrize('after', [0, 1, 3])
def test_a_killed_export_leaves_nothing_that_another_one_could_deliver(
  after, tensors, tmp_path, monkeypatch
):
  with monkeypatch.context() as patch:
    patch.setattr(huggingface.files, 'write', _fail(after))
    with pytest.raises(KeyboardInterrupt):
      _write(tmp_path / 'out', tensors, **SMALL)
  with pytest.raises(store.CheckpointError, match=r'has no config\.json'):
    huggingface.open_folder(tmp_path / 'out')
  other = {name: t._replace(compute=lambda t=t: t.compute() * 0) for name, t in tensors.items()}
  _write(tmp_path / 'out', other)  # as one file, which needs no index
  assert _names(tmp_path / 'out') == ['config.json', 'model.safetensors']
  _, params = twin_folders.load(tmp_path / 'out')
  assert not np.any(params['embedding'])


def test_a_killed_replacement_is_not_half_of_each(tensors, tmp_path, monkeypatch):
  _write(tmp_path, tensors, {'spiece.model': b'old', 'notes.txt': b''}, **SMALL)
  before = _names(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(huggingface.files, 'write', _fail(0))
    with pytest.raises(KeyboardInterrupt):
      _write(tmp_path, tensors, overwrite=True)
  assert _names(tmp_path) == ['.unfinished', *before]  # the old model is complete
  twin_folders.load(tmp_path)
  _write(tmp_path, tensors, overwrite=True)
  assert _names(tmp_path) == ['config.json', 'model.safetensors', 'notes.txt']
  twin_folders.load(tmp_path)


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('config.json', r"holds a model already \('config.json'\)"),
    ('model.safetensors.index.json', 'holds files already, but no complete model'),
    ('thesis.tex', r"\('thesis.tex'\): choose another OUTPUT_DIR, or set OVERWRITE=True"),
    ('model.json', 'is a run directory: choose another OUTPUT_DIR'),
  ],
)
def test_a_folder_that_holds_something_is_refused_by_name(name, words, tensors, tmp_path):
  (tmp_path / name).write_text('{}')
  with pytest.raises(store.CheckpointError, match=words):
    _write(tmp_path, tensors)
  assert _names(tmp_path) == [name]
  if name == 'model.json':  # whose tokenizer.json is not an export's
    with pytest.raises(store.CheckpointError, match=words):
      _write(tmp_path, tensors, overwrite=True)
  else:
    _write(tmp_path, tensors, overwrite=True)
    assert ('thesis.tex' in _names(tmp_path)) == (name == 'thesis.tex')
    assert huggingface.INDEX not in _names(tmp_path)


def test_links_in_the_folder_are_replaced_and_not_written_through(tensors, tmp_path):
  folder, elsewhere = tmp_path / 'out', tmp_path / 'elsewhere'
  folder.mkdir(), elsewhere.mkdir()
  (elsewhere / 'file').write_text('mine')
  for name in ('config.json', 'model.safetensors'):
    (folder / name).symlink_to(elsewhere / 'file')
  (folder / '.unfinished').symlink_to(elsewhere)
  _write(folder, tensors, overwrite=True)
  assert _names(elsewhere) == ['file']
  assert (elsewhere / 'file').read_text() == 'mine'
  assert load_file(folder / 'model.safetensors').keys() == tensors.keys()


def test_a_file_in_the_place_of_the_folder_is_named(tensors, tmp_path):
  (tmp_path / 'out').write_text('')
  with pytest.raises(store.CheckpointError, match='out is a file: choose another OUTPUT_DIR'):
    _write(tmp_path / 'out', tensors, overwrite=True)


def test_a_checkpoint_of_t5x_is_replaced_only_if_it_is_one(tmp_path):
  checkpoint = files.epath.Path(tmp_path / 'checkpoint_3')
  t5x_files.check_output(checkpoint, overwrite=False)
  (checkpoint / 'target.a').mkdir(parents=True)
  (checkpoint / f'.checkpoint.{"0" * 32}').write_text('')
  t5x_files.check_output(checkpoint, overwrite=False)  # the rest of a killed export
  (checkpoint / 'checkpoint').write_text('')
  with pytest.raises(store.CheckpointError, match='checkpoint_3 exists: remove it'):
    t5x_files.check_output(checkpoint, overwrite=False)
  t5x_files.check_output(checkpoint, overwrite=True)
  (checkpoint / 'thesis.tex').write_text('')
  with pytest.raises(store.CheckpointError, match=r"no checkpoint of T5X \('thesis.tex'\)"):
    t5x_files.check_output(checkpoint, overwrite=True)


DESCRIPTION = {'model': {'family': 't5'}, 'vocabulary': 'x'}
ORIGIN = {'converted_from': 'there'}


def _check(directory, origin=None, **options):
  return made_runs.check(directory, DESCRIPTION, origin or ORIGIN, source='/nowhere', **options)


def test_a_run_says_what_it_is_before_it_is_there(tmp_path):
  run = tmp_path / 'run'
  assert not _check(run)
  made_runs.begin(run, DESCRIPTION, ORIGIN)
  assert _names(run) == ['manifest.json', 'model.json']
  assert not _check(run)  # interrupted: the same command goes on
  with pytest.raises(store.CheckpointError, match=r'converted_from is .* OVERWRITE=True replaces'):
    _check(run, {'converted_from': 'elsewhere'})
  store.make(run, {'w': np.ones(3, np.float32)}, DESCRIPTION, ORIGIN)
  assert _check(run)
  (run / 'predictions').mkdir()
  other = {'converted_from': 'elsewhere'}
  assert not _check(run, other, overwrite=True)
  made_runs.begin(run, DESCRIPTION, other, overwrite=True)
  assert _names(run) == ['manifest.json', 'model.json', 'predictions']
  assert json.loads((run / 'manifest.json').read_text()) == other


def test_other_files_are_named_and_stay(tmp_path):
  (tmp_path / 'thesis.tex').write_text('')
  (tmp_path / f'.model.json.{"0" * 32}').write_text('')  # of a killed write
  with pytest.raises(store.CheckpointError, match=r"holds no run, but 'thesis\.tex': choose"):
    _check(tmp_path)
  assert not _check(tmp_path, overwrite=True)
  made_runs.begin(tmp_path, DESCRIPTION, ORIGIN, overwrite=True)
  store.make(tmp_path, {'w': np.ones(3, np.float32)}, DESCRIPTION, ORIGIN)
  assert _names(tmp_path) == [
    *('checkpoint_0', 'config.gin', 'manifest.json', 'model.json', 'thesis.tex')
  ]


def test_training_runs_and_sources_are_never_removed(tmp_path):
  (tmp_path / 'run' / 'checkpoint_7').mkdir(parents=True)
  (tmp_path / 'run' / 'model.json').write_text('{}')
  with pytest.raises(store.CheckpointError, match='checkpoints of a training run'):
    _check(tmp_path / 'run', overwrite=True)
  for source in (tmp_path / 'run', tmp_path / 'run' / 'checkpoint_7'):
    with pytest.raises(store.CheckpointError, match='holds the source'):
      made_runs.check(tmp_path / 'run', DESCRIPTION, ORIGIN, source=source, overwrite=True)
