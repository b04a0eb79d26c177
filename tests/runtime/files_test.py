"""Whole or not at all."""

import errno

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


@pytest.mark.parametrize('failing', ['open_local', 'replace'])
def test_what_was_written_halfway_never_takes_a_files_place(tmp_path, monkeypatch, failing):
  path = tmp_path / 'file'
  files.write(path, 'old')

  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files if failing == 'open_local' else gpath._GPath, failing, fail)
  with pytest.raises(OSError, match=f'No space left on device: .{path}.'):
    files.write(path, 'new')
  assert path.read_text() == 'old'
  assert [found.name for found in tmp_path.iterdir()] == ['file']


def test_lines_are_appended_and_a_cut_one_stays_apart(tmp_path):
  path = tmp_path / 'lines'
  for line in ('one', 'two'):
    files.append(path, line)
  path.write_bytes(path.read_bytes()[:-2])  # as a kill or a full disk leaves it
  files.append(path, 'three')
  files.append(path, 'ä')
  assert path.read_text() == 'one\ntw\nthree\nä\n'


def test_a_kill_during_an_append_takes_no_earlier_line(tmp_path, monkeypatch):
  """What is there is neither read and written anew nor truncated: the file only grows."""
  path = tmp_path / 'lines'
  files.append(path, 'one')
  inode, flags = path.stat().st_ino, []
  opened = files.os.open
  monkeypatch.setattr(files.os, 'open', lambda p, f, m: flags.append(f) or opened(p, f, m))
  files.append(path, 'two')
  assert path.stat().st_ino == inode
  assert not any(flag & files.os.O_TRUNC for flag in flags)
  assert all(flag & files.os.O_APPEND for flag in flags)


@pytest.mark.parametrize('target', ['existing', 'missing'])
def test_no_write_follows_a_link(tmp_path, target):
  elsewhere = tmp_path / 'existing'
  elsewhere.write_text('mine')
  links = [tmp_path / name for name in ('appended', 'opened', 'written')]
  for link in links:
    link.symlink_to(tmp_path / target)
  appended, opened, written = links
  with pytest.raises(OSError, match=r'it is a symbolic link, which is not followed.*appended'):
    files.append(appended, 'line')
  for mode in ('w', 'a+', 'wb'):
    with pytest.raises(OSError, match=r'it is a symbolic link.*opened'):
      files.open_local(opened, mode)
  files.write(written, 'new')  # takes the link's place
  assert not written.is_symlink()
  assert elsewhere.read_text() == 'mine'
  assert not (tmp_path / 'missing').exists()


def test_errors_of_a_full_disk_name_the_file(tmp_path):
  with (
    pytest.raises(OSError, match=r'\[Errno 28\] No space left on device: .*/file') as raised,
    files.naming(tmp_path / 'file'),
  ):
    raise OSError(errno.ENOSPC, 'No space left on device')
  assert raised.value.filename == str(tmp_path / 'file')
  with files.naming(tmp_path / 'file'), pytest.raises(FileNotFoundError, match='other'):
    open(tmp_path / 'other')  # noqa: SIM115


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


@pytest.mark.parametrize(('path', 'message'), [('', 'a path is empty'), ('a\0b', 'NUL character')])
def test_what_cannot_be_a_path_is_refused(path, message):
  with pytest.raises(ValueError, match=message):
    files.absolute(path)
