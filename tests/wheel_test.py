"""The wheel holds the recipes, and an installation finds them."""

import pathlib
import site
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = """
import cascades, gin
from cascades import cli
cli.configure('cascades.train', ['recipes/demo_small.gin'], ['MODEL_DIR=there'])
print(gin.query_parameter('MODEL_DIR/macro.value'), cascades.__file__)
"""


@pytest.mark.slow
def test_recipes_are_found_from_an_installation(tmp_path):
  run = lambda *command, **options: subprocess.run(
    list(map(str, command)), check=True, cwd=tmp_path, capture_output=True, text=True, **options
  )
  run(sys.executable, '-m', 'build', '--wheel', '--outdir', tmp_path, ROOT)
  (wheel,) = tmp_path.glob('*.whl')
  run(sys.executable, '-m', 'venv', 'clean')
  python = tmp_path / 'clean' / 'bin' / 'python'
  run(python, '-m', 'pip', 'install', '--no-deps', wheel)
  # What cascades depends on is read from this environment, which itself has no cascades there.
  done = run(python, '-c', SCRIPT, env={'PYTHONPATH': site.getsitepackages()[0]})
  (package,) = tmp_path.glob('clean/lib/*/*/cascades')
  assert done.stdout.split() == ['there', str(package / '__init__.py')]
