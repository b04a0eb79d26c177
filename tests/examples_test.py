"""The examples run as they stand."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from matplotlib import image

EXAMPLES = pathlib.Path(__file__).parents[1] / 'examples'
SCRIPTS = sorted(path.name for path in EXAMPLES.glob('*.py'))
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob('*.ipynb'))
# A display that shows nothing: figures need no window.
ENVIRONMENT = {'MPLBACKEND': 'agg', 'PYTHONWARNINGS': 'ignore'}


def run(*arguments, cwd):
  result = subprocess.run(
    [sys.executable, *arguments],
    cwd=cwd,
    env=os.environ | ENVIRONMENT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def cells(name, cell_type='code'):
  notebook = json.loads((EXAMPLES / name).read_text())
  return [cell for cell in notebook['cells'] if cell['cell_type'] == cell_type]


def printed(cell):
  streams = [output for output in cell['outputs'] if output['output_type'] == 'stream']
  return ''.join(line for output in streams for line in output['text'])


def test_the_index_lists_every_example():
  listed = re.findall(r'^\| \[`([\w.]+)`\]\(\1\)', (EXAMPLES / 'README.md').read_text(), re.M)
  assert sorted(listed) == sorted(SCRIPTS + NOTEBOOKS)


@pytest.mark.parametrize(
  'name',
  [  # tests/examples_two_folders_test.py goes through the long one by its functions
    pytest.param(name, marks=pytest.mark.slow if name == 'two_folders.py' else [])
    for name in SCRIPTS
    if name != 'add_a_loss.py'
  ],
)
def test_a_script_runs_from_any_folder(name, tmp_path):
  assert run(str(EXAMPLES / name), cwd=tmp_path)


@pytest.mark.slow  # tests/readme_test.py trains with one too
def test_a_loss_of_ones_own_trains(tmp_path):
  output = run(str(EXAMPLES / 'add_a_loss.py'), str(tmp_path), cwd=tmp_path)
  losses = [float(loss) for loss in re.findall(r'loss ([\d.e-]+) .*\(validation\)', output)]
  assert losses[-1] < 0.1
  assert 'add_a_loss.focal' in (tmp_path / 'run' / 'config.gin').read_text()


def test_a_curve_is_drawn_from_a_table_of_ones_own(tmp_path):
  # Deferring the two least confident rows corrects one answer and spoils none.
  rows = ['a,1,1,0.9', 'b,0,1,0.2', 'c,1,1,0.4', 'd,0,0,0.6', 'e,1,0,0.8', 'f,1,1,0.7']
  table, picture = tmp_path / 'mine.csv', tmp_path / 'curve.png'
  table.write_text('id,small_correct,large_correct,confidence\n' + '\n'.join(rows) + '\n')
  lines = run(str(EXAMPLES / 'curve_from_table.py'), str(table), str(picture), cwd=tmp_path)
  assert lines.splitlines() == [
    'accuracy: small 0.6667, large 0.6667',
    # Qualities 4, 5, 5, 5, 5, 4, 4 sixths: the trapezoids sum to 28 / 36.
    'area under the curve: 0.7778',
    'area above random deferral: +0.1111',
    'threshold: defer if confidence <= 0.2',
    'there: 16.7% deferred, accuracy 0.8333',
    f'picture: {picture}',
  ]
  assert image.imread(picture).std() > 0.05


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_prints_the_outputs_that_are_stored_in_it(name, tmp_path):
  code = '\n'.join(''.join(cell['source']) for cell in cells(name))
  (tmp_path / 'notebook.py').write_text(code)
  expected = ''.join(printed(cell) for cell in cells(name))
  assert expected
  assert run('notebook.py', cwd=tmp_path) == expected


@pytest.mark.parametrize('name', NOTEBOOKS)
def test_a_notebook_renders_text_and_a_figure(name):
  assert cells(name, 'markdown')
  outputs = [output for cell in cells(name) for output in cell['outputs']]
  images = [output['data'].get('image/png', '') for output in outputs if 'data' in output]
  assert any(image.startswith('iVBOR') for image in images)  # a PNG file in base64
  assert [cell['execution_count'] for cell in cells(name)] == list(range(1, len(cells(name)) + 1))
