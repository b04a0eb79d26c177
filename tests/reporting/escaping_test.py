import re
import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cascades.reporting import escaping


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('plain text, 100 % $x_1$ <b>', 'plain text, 100 % $x_1$ <b>'),
    ('\x1b[31mred', '\\x1b[31mred'),
    ('\x9b31m', '\\x9b31m'),
    ('a\tb\r\nc', 'a\\tb\\r\\nc'),
    ('\u202egpj.exe', '\\u202egpj.exe'),
    ('zero\u200bwidth\ufeff', 'zero\\u200bwidth\\ufeff'),
    ('line\u2028break', 'line\\u2028break'),
    ('half \ud800 a pair', 'half \\ud800 a pair'),
    ('\U000e0041 tag', '\\U000e0041 tag'),
    ('日本語 Ελληνικά עברית été', '日本語 Ελληνικά עברית été'),
  ],
)
def test_characters_that_act_are_shown_as_escapes(text, shown):
  assert escaping.visible(text) == shown


@given(st.text())
def test_visible_text_has_no_character_that_acts_and_stays_as_it_is(text):
  shown = escaping.visible(text)
  assert not {unicodedata.category(c) for c in shown} & {'Cc', 'Cf', 'Cs', 'Cn', 'Zl', 'Zp'}
  assert escaping.visible(shown) == shown
  shown.encode()


@pytest.mark.parametrize(
  'text', ['=1+1', '+1', '-1', '@SUM(A1)', ' =1+1', '\t=1', '\uff1d1', "=cmd|'/c calc'!A0", '%0A=1']
)
def test_formulas_become_text_for_a_spreadsheet(text):
  assert escaping.cell(text).startswith(("'", '\\'))


@given(st.text())
def test_no_cell_starts_as_a_formula(text):
  assert not re.match(r'\s*[=+\-@\t\r]', escaping.cell(text))


def test_ordinary_cells_stay_as_they_are():
  assert escaping.cell('cat_xent - xent') == 'cat_xent - xent'


@given(st.text(max_size=30), st.integers(1, 20))
def test_shortened_text_fits_and_says_that_it_was_cut(text, width):
  short, full = escaping.shorten(text, width), escaping.visible(text)
  assert len(short) <= width
  assert short == full if len(full) <= width else short == full[: width - 1] + '…'
