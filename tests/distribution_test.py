"""The distribution lm-cascades, whose import name `cascades` another project has as well."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib
import warnings

import pytest

import cascades
from cascades.runtime import environment

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
FOLDERS = (
  'benchmarks',
  'cascades',
  'docs',
  'examples',
  'experiments',
  'gin_configs',
  'launch',
  'tests',
  '.github',
)
SUFFIXES = {'.cff', '.gin', '.ipynb', '.j2', '.md', '.py', '.toml', '.txt', '.yml'}


@pytest.fixture
def namesake(tmp_path):
  """A folder with the metadata of a distribution `cascades` that is not this project's."""
  return _install(tmp_path, 'cascades-0.3.2', ['cascades/__init__.py', 'cascades/_src/sampler.py'])


def _install(folder, name, files):
  information = folder / f'{name}.dist-info'
  information.mkdir(parents=True)
  distribution, _, version = name.partition('-')
  text = f'Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n'
  (information / 'METADATA').write_text(text)
  (information / 'RECORD').write_text(''.join(f'{file},,\n' for file in files))
  return folder


def _python(*arguments, paths):
  variables = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths))}
  return subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    env=variables,
    cwd=paths[-1],
    check=False,
  )


def test_the_project_has_a_name_of_its_own_and_one_version():
  assert PROJECT['name'] == 'lm-cascades'
  assert PROJECT['version'] == cascades.__version__


def test_nobody_is_told_to_install_the_namesake():
  """A requirement is this name with extras, a version, a file or a URL behind it."""
  folders = [path for folder in FOLDERS for path in (ROOT / folder).rglob('*')]
  files = [path for path in [*ROOT.iterdir(), *folders] if path.suffix in SUFFIXES]
  files += [ROOT / 'Makefile', ROOT / '.ci' / 'run']
  requirement = re.compile(
    r"""(?<![\w./-])cascades(\[[a-z,{]|\{extras\}| @ |[=~>]=\d)|cascades-(\*|\d\S*|\{\w+\}\S*)\.?whl
    |install\s[^`\n|;&]*(?<![\w./-])cascades(?![\w./-])|reinstall-package\scascades""",
    re.VERBOSE,
  )
  for path in files:
    if path != pathlib.Path(__file__):
      text = path.read_text().replace('pip uninstall cascades', '').replace('lm_cascades-', '')
      assert requirement.search(text) is None, path


def test_an_installed_namesake_is_reported_with_a_remedy(namesake, monkeypatch):
  monkeypatch.syspath_prepend(namesake)
  with pytest.warns(UserWarning, match=r'version 0\.3\.2.*`pip uninstall cascades`') as caught:
    environment.warn_of_namesake()
  assert str(caught[0].message).startswith(str(namesake))


@pytest.mark.parametrize(
  ('name', 'files'),
  [
    ('cascades-0.1.0', ['cascades/__init__.py', 'cascades/cli.py']),
    ('cascades-0.1.0', ['cascades.pth', 'cascades/gin_configs/runs/train.gin']),
    ('lm_cascades-0.1.0', ['cascades/__init__.py', 'cascades/cli.py']),
  ],
  ids=['before the name', 'editable', 'now'],
)
def test_this_project_is_no_namesake(tmp_path, monkeypatch, name, files):
  monkeypatch.setattr(sys, 'path', [str(_install(tmp_path, name, files))])
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    environment.warn_of_namesake()


def test_the_import_notices_a_namesake(namesake):
  assert 'pip uninstall cascades' in _python('-c', 'import cascades', paths=[ROOT, namesake]).stderr
  assert _python('-c', 'import cascades', paths=[ROOT]).stderr == ''


def test_programs_notice_that_a_namesake_has_replaced_their_package(namesake):
  package = namesake / 'cascades'
  package.mkdir()
  text = f"__version__ = '0.3.2'\n__path__.append({str(ROOT / 'cascades')!r})\n"
  (package / '__init__.py').write_text(text)
  result = _python('-m', 'cascades.evaluate', '--help', paths=[namesake])
  assert 'pip uninstall cascades' in result.stderr
