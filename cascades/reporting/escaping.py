"""Escaping of untrusted text for terminals, pages and spreadsheets.

Answers of models and texts in files may hold terminal sequences, right-to-left overrides or
spreadsheet formulas. The template engine escapes HTML.
"""

from __future__ import annotations

import re
import unicodedata

import jinja2

NAMED = {'\n': '\\n', '\r': '\\r', '\t': '\\t'}
# Control, format (with the overrides of writing direction), surrogate and unassigned characters,
# and the separators that break lines. Ordinary letters of every script pass.
HIDDEN = frozenset({'Cc', 'Cf', 'Cs', 'Cn', 'Zl', 'Zp'})
FORMULA = re.compile(r'\s*[=+\-@\uff1d\uff0b\uff0d\uff20|%]')


def visible(text: str) -> str:
  r"""Replaces characters that act instead of being seen by escapes: '\x1b', '\u202e', '\n'."""
  if text.isascii() and text.isprintable():
    return text
  return ''.join(_visible(character) for character in text)


def lines(text: str) -> str:
  """Escapes each line of a text; the line breaks stay."""
  return '\n'.join(map(visible, text.split('\n')))


def _visible(character: str) -> str:
  if unicodedata.category(character) not in HIDDEN:
    return character
  code = ord(character)
  if character in NAMED:
    return NAMED[character]
  return (
    f'\\x{code:02x}' if code < 0x100 else f'\\u{code:04x}' if code < 0x10000 else f'\\U{code:08x}'
  )


def cell(text: str) -> str:
  """Escapes a spreadsheet cell: visible text, with an apostrophe in front of a formula."""
  text = visible(text)
  return f"'{text}" if FORMULA.match(text) else text


def shorten(text: str, width: int) -> str:
  """Shortens visible text to at most `width` characters, with an ellipsis where it is cut."""
  text = visible(text)
  return text if len(text) <= width else text[: width - 1] + '…'


def page_environment() -> jinja2.Environment:
  """Template engine of pages: escapes HTML, and shows characters that act instead of being seen."""
  return jinja2.Environment(
    autoescape=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
