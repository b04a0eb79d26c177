"""Whole or not at all."""

import pytest
from etils.epath import gpath

from cascades.runtime import files
from tests import object_store


def test_what_is_written_is_there_and_nothing_else(tmp_path):
  files.write(tmp_path / 'new' / 'file', 'text: ä')
  files.write(tmp_path / 'new' / 'file', b'bytes')
  assert (tmp_path / 'new' / 'file').read_bytes() == b'bytes'
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['file']


def test_a_path_is_made_absolute_and_a_url_left_alone(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', '/home/someone')
  assert str(files.absolute('runs/x')) == str(tmp_path / 'runs/x')
  assert str(files.absolute('~/x')) == '/home/someone/x'
  assert str(files.absolute('gs://bucket/x')) == 'gs://bucket/x'


@pytest.mark.parametrize('failing', ['write_bytes', 'replace'])
def test_what_was_written_halfway_never_takes_a_files_place(tmp_path, monkeypatch, failing):
  path = tmp_path / 'file'
  files.write(path, 'old')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(gpath._GPath, failing, fail)
  with pytest.raises(OSError, match='disk full'):
    files.write(path, 'new')
  assert path.read_text() == 'old'
  assert [found.name for found in tmp_path.iterdir()] == ['file']


def test_objects_are_not_renamed(tmp_path, monkeypatch):
  monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, 'gs', object_store.Bucket(tmp_path))
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  files.write('gs://some-bucket/file', 'text')
  assert (tmp_path / 'some-bucket' / 'file').read_text() == 'text'


def test_a_name_that_leads_out_of_its_folder_is_refused():
  assert files.component('validation 2', 'a split') == 'validation 2'
  for name in ('', '.', '../up', '/root', 'a\\b', 'a\0', 'é' * 101):
    with pytest.raises(ValueError, match='cannot name a split: files carry the name'):
      files.component(name, 'a split')


def test_temporary_files_of_killed_writes_are_removed_and_no_others(tmp_path):
  names = ['.a.json.' + 'f' * 32, '.hidden', 'a.json', 'x.' + '0' * 32, '.b.' + '0' * 31]
  for name in names:
    (tmp_path / name).write_text('')
  (tmp_path / ('.c.' + '0' * 32)).mkdir()
  files.remove_leftovers(tmp_path)
  files.remove_leftovers(tmp_path / 'nowhere')
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], '.c.' + '0' * 32])


def test_a_killed_write_leaves_a_name_that_is_recognized(tmp_path, monkeypatch):
  names, path = [], type(files.absolute(tmp_path))
  monkeypatch.setattr(path, 'replace', lambda temporary, target: names.append(temporary.name))
  files.write(tmp_path / 'a.json', b'x')
  assert len(names) == 1
  assert files.is_leftover(names[0])
