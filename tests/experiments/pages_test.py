"""Every experiment has a page, a figure, and numbers, and the index lists it."""

import json
import pathlib
import re

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
NAMES = sorted(
  path.stem for path in EXPERIMENTS.glob('*.py') if "__name__ == '__main__'" in path.read_text()
)


def test_the_index_lists_every_experiment():
  index = (EXPERIMENTS / 'README.md').read_text()
  assert sorted(re.findall(r'\]\((\w+)\.md\)', index)) == NAMES
  assert sorted(re.findall(r'python -m experiments\.(\w+)', index)) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_an_experiment_has_its_page_figure_and_numbers(name):
  page = (EXPERIMENTS / f'{name}.md').read_text()
  assert f'python -m experiments.{name}' in page
  assert f'({name}.png)' in page
  assert (EXPERIMENTS / f'{name}.png').stat().st_size < 200_000
  numbers = json.loads((EXPERIMENTS / f'{name}.json').read_text())
  assert numbers['rows']
  assert re.fullmatch('[0-9a-f]{7,}', numbers['commit'])  # of a clean checkout
  assert numbers['commit'] in page


@pytest.mark.parametrize('path', sorted(EXPERIMENTS.glob('*.py')), ids=lambda path: path.stem)
def test_a_file_stays_short(path):
  assert len(path.read_text().splitlines()) <= 400
