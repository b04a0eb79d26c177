import contextlib
import io
import re

import hypothesis.strategies as st
from hypothesis import given, settings

from cascades.reporting import operating_point, terminal
from cascades.reporting.summary import Cell, SummaryTable
from tests import synthetic_tables


@settings(deadline=None)
@given(st.text(max_size=40))
def test_no_text_acts_on_the_terminal(text):
  cell = Cell(text, text)
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    terminal.print_tables([SummaryTable(text, '', (text,), ((cell,),))])
  assert not re.search('[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]', output.getvalue())


def test_the_main_tables_are_printed_in_lines_of_limited_width(capsys):
  terminal.show(synthetic_tables.comparison())
  lines = capsys.readouterr().out.splitlines()
  titles = [line.strip() for line in lines if re.fullmatch(r'\s*[A-Z][a-z ]+\s*', line)]
  assert titles == ['Models', 'Comparisons']
  assert max(map(len, lines)) <= terminal.LOG_WIDTH


def test_one_small_model_of_one_score_has_nothing_to_compare(capsys):
  terminal.show(synthetic_tables.comparison()._replace(differences=(), score_differences=()))
  assert 'Comparisons' not in capsys.readouterr().out


def test_the_headline_of_the_report_is_printed_first(capsys):
  comparison = synthetic_tables.comparison()
  terminal.show(comparison)
  printed = ' '.join(capsys.readouterr().out.split())
  headline = operating_point.headline(comparison)
  assert printed.startswith(f'{headline.sentence} {headline.rule}')


def test_excluded_repeats_are_counted_per_task(capsys):
  comparison = synthetic_tables.comparison()._replace(sizes_with_repeats={'a': 80, 'b\x1b': 41})
  terminal.show(comparison._replace(sizes={'a': 70, 'b\x1b': 40}))
  output = capsys.readouterr().out
  assert 'Task a: 70 of 80 rows have distinct inputs.\n' in output
  assert 'Task b\\x1b: 40 of 41 rows have distinct inputs.\n' in output
