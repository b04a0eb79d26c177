import csv
import io
import json

import pytest
from etils import epath
from matplotlib.figure import Figure

from cascades.reporting import exports, figures, outputs, report
from cascades.reporting.report import Report
from cascades.runtime import files
from tests import synthetic_tables


@pytest.fixture
def no_figures(monkeypatch):
  monkeypatch.setattr(figures, 'draw', lambda _: {})


def test_options_reach_the_files(tmp_path, no_figures):
  comparison = synthetic_tables.comparison()
  options = Report(title='A title of its own', points=3, examples=1)
  outputs.write(epath.Path(tmp_path), comparison, options, {'config': 'A = 1\n', 'commit': 'abc'})
  page = (tmp_path / 'report.html').read_text()
  assert '<h1>A title of its own</h1>' in page
  assert page == report.render(comparison, {}, options, {'config': 'A = 1\n', 'commit': 'abc'})
  data = json.loads((tmp_path / 'curves.json').read_text())
  assert {len(cascade['curve']['quality']) for cascade in data['cascades']} == {3}
  assert (tmp_path / 'config.gin').read_text() == 'A = 1\n'
  rows = list(csv.DictReader(io.StringIO((tmp_path / 'summary.csv').read_text())))
  assert len(rows) == len(list(exports.records(comparison)))


def test_the_report_is_written_last(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr(figures, 'draw', lambda _: {'curves': Figure()})
  monkeypatch.setattr(files, 'write', lambda path, content: written.append(path.name))
  outputs.write(epath.Path(tmp_path), synthetic_tables.comparison(), Report(), {})
  assert written[-1] == 'report.html'
  assert {'curves.png', 'curves.svg', 'curves.json', 'summary.csv', 'config.gin'} <= set(written)
