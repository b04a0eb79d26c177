"""The documentation: every page is reachable, every module and file that it names exists."""

import importlib.util
import pathlib
import re

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md'))
TOP_LEVEL = ('README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md', 'examples/README.md')
MODULES = re.compile(r'^::: ([\w.]+)$', re.MULTILINE)


def _leaves(nav):
  for entry in nav:
    for value in entry.values():
      yield from _leaves(value) if isinstance(value, list) else [value]


def test_the_navigation_lists_every_page_once():
  site = yaml.safe_load((ROOT / 'mkdocs.yml').read_text())
  assert sorted(_leaves(site['nav'])) == PAGES


@pytest.mark.parametrize('page', [page for page in PAGES if page.startswith('reference/')])
def test_every_module_of_the_reference_exists(page):
  modules = MODULES.findall((DOCS / page).read_text())
  assert modules
  assert [name for name in modules if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize('page', [*TOP_LEVEL, *(f'docs/{page}' for page in PAGES)])
def test_every_link_leads_to_a_file(page):
  links = re.findall(r'\]\(([^)#]+)[^)]*\)', (ROOT / page).read_text())
  local = [link for link in links if not link.startswith('http')]
  assert [link for link in local if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize('page', [*TOP_LEVEL, *(f'docs/{page}' for page in PAGES)])
def test_every_path_in_code_font_exists(page):
  text = (ROOT / page).read_text()
  folders = '|'.join(('benchmarks', 'cascades', 'examples', 'gin_configs', 'launch', 'tests'))
  paths = re.findall(rf'`((?:{folders})/[\w./]*)`', text)
  written = ('benchmarks/results',)  # by programs
  assert [p for p in paths if not p.startswith(written) and not (ROOT / p).exists()] == []


def test_the_readme_is_a_page_to_read():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 200
