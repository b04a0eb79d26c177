"""The server of the demo: a policy once, then the server in the place of the launcher."""

import subprocess
import types

import pytest

from launch import demo, serve_demo


@pytest.fixture
def launched(tmp_path, monkeypatch):
  """Commands that would run, with the models of a demo that has finished."""
  ran = []

  def fake(command, **_):
    ran.append(command[2:])
    return types.SimpleNamespace(returncode=0)

  monkeypatch.setattr(subprocess, 'run', fake)
  monkeypatch.setattr(serve_demo.os, 'execv', lambda _, words: ran.append(words[2:]))
  monkeypatch.setattr(serve_demo.os, 'chdir', lambda _: None)
  for model in ('large', serve_demo.SMALL):
    (tmp_path / model / 'predictions' / 'validation').mkdir(parents=True)
  monkeypatch.setattr(demo, 'DIRECTORY', types.SimpleNamespace(value=str(tmp_path)))
  monkeypatch.setattr(serve_demo, '_PORT', types.SimpleNamespace(value=8080))
  return ran


def test_the_policy_is_calibrated_once_and_served(launched, capsys):
  serve_demo.main(['serve_demo'])
  serve_demo.main(['serve_demo'])
  assert [words[0] for words in launched] == [
    'cascades.calibrate', 'cascades.serve', 'cascades.serve',
  ]  # fmt: skip
  (written,), (read,) = (
    {word for word in words if word.startswith('--gin.POLICY=')} for words in launched[:2]
  )
  assert written == read
  assert 'open http://127.0.0.1:8080/?spell' in capsys.readouterr().out


def test_without_a_demo_it_says_what_to_run_first(launched, tmp_path):
  (tmp_path / 'large' / 'predictions' / 'validation').rmdir()
  with pytest.raises(SystemExit, match='run `make demo` first'):
    serve_demo.main(['serve_demo'])
  assert launched == []
