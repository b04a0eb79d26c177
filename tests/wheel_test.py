"""A wheel that is installed elsewhere runs, and holds gin files and types."""

import os
import pathlib
import site
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import cascades, gin
from cascades import cli
cli.configure('cascades.train', ['recipes/demo_small.gin'], ['MODEL_DIR=configured'])
print(gin.query_parameter('MODEL_DIR/macro.value'), cascades.__file__)
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def installation(tmp_path_factory):
  """A function that runs a command of an environment with the wheel, outside of the checkout."""
  folder = tmp_path_factory.mktemp('elsewhere')

  def run(*command, **options):
    return subprocess.run(
      list(map(str, command)),
      check=False,
      cwd=folder,
      capture_output=True,
      text=True,
      **options,
    )

  def set_up(*command):
    result = run(*command)
    assert result.returncode == 0, result.stderr

  set_up(sys.executable, '-m', 'build', '--wheel', '--outdir', folder, ROOT)
  (wheel,) = folder.glob('lm_cascades-*.whl')
  set_up(sys.executable, '-m', 'venv', 'clean')
  binaries = folder / 'clean' / 'bin'
  set_up(binaries / 'python', '-m', 'pip', 'install', '--no-deps', wheel)
  # The dependencies come from this environment, whose folders are read as they are: its own
  # installation of the checkout is a .pth file, which only a site folder would follow.
  paths = [path for path in map(pathlib.Path, sys.path) if path.name == 'site-packages']
  environment = {
    'HOME': str(folder),
    'PATH': os.environ['PATH'],
    'PYTHONPATH': os.pathsep.join(map(str, paths)) or site.getsitepackages()[0],
  }
  return lambda name, *arguments: run(binaries / name, *arguments, env=environment)


def package(installation):
  result = installation('python', '-c', 'import cascades; print(cascades.__path__[0])')
  assert result.returncode == 0, result.stderr
  return pathlib.Path(result.stdout.strip())


def test_recipes_are_found_from_an_installation(installation):
  result = installation('python', '-c', SCRIPT)
  assert result.stdout.split() == ['configured', str(package(installation) / '__init__.py')]
  assert ROOT not in package(installation).parents


def test_types_and_gin_files_are_installed(installation):
  assert (package(installation) / 'py.typed').is_file()
  assert (package(installation) / 'gin_configs' / 'recipes' / 'demo_small.gin').is_file()
  assert (package(installation) / 'reporting' / 'report.html.j2').is_file()
  assert (package(installation) / 'serving' / 'page' / 'index.html').is_file()


def test_the_command_runs_a_program(installation):
  result = installation('cascades', 'train', '--help')
  assert '--gin_file' in result.stdout
  assert 'Traceback' not in result.stderr


def test_what_needs_a_checkout_says_so(installation):
  result = installation('cascades', 'launch.demo')
  assert result.returncode == 1
  assert 'in a checkout of the project' in result.stderr
