"""The documentation: every page is reachable, every module and file that it names exists."""

import ast
import importlib.util
import pathlib
import re

import pytest
import yaml

from tests import settings_page

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md'))
TOP_LEVEL = (
  'README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'CHANGELOG.md', 'examples/README.md',
  *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('experiments/*.md')),
)  # fmt: skip
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


@pytest.mark.parametrize('page', PAGES)
def test_no_link_leads_out_of_the_site(page):
  """`make docs` refuses such links, and is not part of the tests."""
  links = re.findall(r'\]\(([^)#]+)[^)]*\)', (DOCS / page).read_text())
  targets = [(DOCS / page).parent.joinpath(link).resolve() for link in links if '://' not in link]
  assert [target for target in targets if not target.is_relative_to(DOCS)] == []


@pytest.mark.parametrize('page', [*TOP_LEVEL, *(f'docs/{page}' for page in PAGES)])
def test_every_path_in_code_font_exists(page):
  text = (ROOT / page).read_text()
  folders = '|'.join(
    ('benchmarks', 'cascades', 'examples', 'experiments', 'gin_configs', 'launch', 'tests')
  )
  paths = re.findall(rf'`((?:{folders})/[\w./]*)`', text)
  written = ('benchmarks/results',)  # by programs
  assert [p for p in paths if not p.startswith(written) and not (ROOT / p).exists()] == []


def test_the_readme_is_a_page_to_read():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 200


def test_the_table_of_macros_is_up_to_date():
  text = (DOCS / 'settings.md').read_text()
  assert settings_page.page() == text, 'run `python -m tests.settings_page`'


def test_every_file_of_settings_has_a_table():
  files = {path.stem for path in (ROOT / 'gin_configs' / 'runs').glob('*.gin')}
  assert files - set(settings_page.SECTIONS.values()) == {'finetune'}  # train, started elsewhere


def _texts(node):
  """Texts of a module; of an f-string with a placeholder for each value."""
  if isinstance(node, ast.JoinedStr):
    yield ''.join(v.value if isinstance(v, ast.Constant) else '\0' for v in node.values)
    return
  if isinstance(node, ast.Constant) and isinstance(node.value, str):
    yield node.value
  for child in ast.iter_child_nodes(node):
    yield from _texts(child)


def test_the_messages_to_look_up_are_those_that_programs_write():
  """Their fixed parts: single capitals, HOST, and dots stand for what differs."""
  table = (DOCS / 'running.md').read_text().partition('| message |')[2]
  rows = re.findall(r'^\| (.*?) \|', table, re.MULTILINE)
  messages = [message for row in rows for message in re.findall('`(.*?)`', row)]
  assert len(messages) > 10
  sources = [path.read_text() for path in (ROOT / 'cascades').rglob('*.py')]
  written = '\n'.join(text for source in sources for text in _texts(ast.parse(source)))
  fixed = [
    part.strip(' ,_:')
    for message in messages
    for part in re.split(r'(?<![A-Za-z])[A-Z](?![A-Za-z])|HOST|\.\.\.', message)
  ]
  by_others = {'No space left on device', 'stopped sending heartbeats'}
  assert {p for p in fixed if len(p) > 3 and p not in written} <= by_others
