import gzip
import hashlib
import logging
import os
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import textfiles


def read(path, parse=lambda number, line: (number, line), malformed='error', first=1):
  return list(textfiles.parsed_lines(path, parse, malformed=malformed, first=first))


def write(tmp_path, content, name='rows.txt'):
  path = tmp_path / name
  path.write_bytes(content)
  return path


def test_lines_are_numbered_from_one_and_blank_ones_passed_over(tmp_path):
  path = write(tmp_path, b'one\n\n  \nfour\n')
  assert read(path) == [(1, 'one'), (4, 'four')]


def test_the_last_line_needs_no_line_feed(tmp_path):
  assert read(write(tmp_path, b'one\ntwo')) == [(1, 'one'), (2, 'two')]


def test_only_a_line_feed_ends_a_line(tmp_path):
  odd = 'a\u2028b\u0085c\x0bd\x0ce\x1cf\rg'
  assert read(write(tmp_path, f'{odd}\nnext\n'.encode())) == [(1, odd), (2, 'next')]


def test_windows_line_ends_and_byte_order_mark_are_dropped(tmp_path):
  path = write(tmp_path, b'\xef\xbb\xbfone\r\ntwo\r\n')
  assert read(path) == [(1, 'one'), (2, 'two')]


def test_gzipped_files_read_alike(tmp_path):
  assert read(write(tmp_path, gzip.compress(b'one\ntwo\n'), 'rows.gz')) == [(1, 'one'), (2, 'two')]


def test_reading_may_start_below_a_header(tmp_path):
  path = write(tmp_path, b'\nname\nvalue\n')
  number, header = textfiles.first_line(path)
  assert (number, header) == (2, 'name')
  assert read(path, first=number + 1) == [(3, 'value')]


def test_a_truncated_gzip_file_is_named(tmp_path):
  whole = gzip.compress(b'some line\n' * 1000)
  path = write(tmp_path, whole[: len(whole) // 2], 'rows.gz')
  with pytest.raises(ValueError, match=r'rows\.gz is truncated'):
    read(path)


@pytest.mark.parametrize('ending', ['txt', 'gz'])
@pytest.mark.parametrize('end', [b'\n', b'\r\n', b''])
def test_a_line_of_just_the_permitted_length_is_read(tmp_path, ending, end):
  pack = gzip.compress if ending == 'gz' else bytes
  content = b'\xef\xbb\xbf' + b'x' * 50 + end
  path = write(tmp_path, pack(content), f'rows.{ending}')
  assert list(textfiles.parsed_lines(path, len_of, malformed='error', max_bytes=50)) == [(1, 50)]
  with pytest.raises(textfiles.MalformedLineError, match='line 1: longer than 49 bytes'):
    list(textfiles.parsed_lines(path, len_of, malformed='error', max_bytes=49))


def len_of(number, line):
  return number, len(line)


def test_a_line_that_would_fill_the_memory_is_never_in_memory(tmp_path):
  path = write(tmp_path, gzip.compress(bytes(64 << 20) + b'\nnext\n', 1), 'rows.gz')
  tracemalloc.start()
  try:
    read_lines = textfiles.parsed_lines(path, len_of, malformed='skip', max_bytes=1 << 20)
    assert list(read_lines) == [(2, 4)]
    assert tracemalloc.get_traced_memory()[1] < 12 << 20
  finally:
    tracemalloc.stop()


def test_the_rest_of_a_line_that_is_refused_is_not_unpacked(tmp_path):
  path = write(tmp_path, gzip.compress(bytes(64 << 20), 1)[:-50_000], 'rows.gz')  # it would fail
  with pytest.raises(textfiles.MalformedLineError, match='line 1: longer than 1,024 bytes'):
    list(textfiles.parsed_lines(path, len_of, malformed='error', max_bytes=1024))


def test_skipped_lines_do_not_fill_the_memory(tmp_path):
  path = write(tmp_path, (b'x' * 999 + b'\n') * 5000)

  def refuse(number, line):
    raise ValueError(line)

  tracemalloc.start()
  try:
    assert not read(path, refuse, malformed='skip')
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(
  ('encoding', 'reason'),
  [
    ('utf-16', 'looks like UTF-16: save the file as UTF-8'),
    ('utf-16-le', 'a NUL byte at column 2'),
  ],
)
def test_text_of_two_bytes_a_character_is_named(tmp_path, encoding, reason):
  with pytest.raises(textfiles.MalformedLineError, match=f'line 1: .*{reason}'):
    read(write(tmp_path, 'a\tb\n'.encode(encoding)))


DAMAGED = gzip.compress(b'x' * 9999)[:20] + b'\0' * 40


@pytest.mark.parametrize('content', [b'plain text\n', DAMAGED], ids=['text', 'damaged'])
def test_what_is_no_gzip_file_is_named(tmp_path, content):
  with pytest.raises(ValueError, match=r'rows\.gz is truncated or not a gzip file'):
    read(write(tmp_path, content, 'rows.gz'))


def test_invalid_utf8_names_file_line_and_column(tmp_path):
  with pytest.raises(
    textfiles.MalformedLineError, match=r'rows\.txt, line 2: not UTF-8: byte 0xff at column 3'
  ):
    read(write(tmp_path, b'fine\nno\xff\n'))


def test_a_rejected_line_keeps_the_parsers_reason(tmp_path):
  def parse(number, line):
    raise ValueError(f'{line} is wrong')

  with pytest.raises(textfiles.MalformedLineError, match='line 1: it is wrong'):
    read(write(tmp_path, b'it\n'), parse)


def test_skipped_lines_are_counted_and_logged(tmp_path, caplog):
  path = write(tmp_path, b'1\nx\n2\ny\nz\nw\n')
  with caplog.at_level(logging.WARNING):
    assert read(path, lambda _, line: int(line), malformed='skip') == [1, 2]
  assert 'Skipped 4 malformed lines' in caplog.text
  assert 'line 2' in caplog.text
  assert 'line 6' not in caplog.text  # the first few are enough


def test_nothing_is_logged_when_nothing_is_skipped(tmp_path, caplog):
  read(write(tmp_path, b'1\n'), lambda _, line: int(line), malformed='skip')
  assert not caplog.records


def test_other_errors_are_not_taken_for_malformed_lines(tmp_path):
  with pytest.raises(ZeroDivisionError):
    read(write(tmp_path, b'1\n'), lambda number, line: 1 / 0, malformed='skip')


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    ('[1]', 'an array'),
    ('"text"', 'a string'),
    ('3', 'a number'),
    ('null', 'null'),
    ('true', 'a truth value'),
  ],
)
def test_json_that_is_no_object_is_refused(line, reason):
  with pytest.raises(ValueError, match=f'expected a JSON object, found {reason}'):
    textfiles.json_object(line)


@pytest.mark.parametrize('line', [b'{', b'{"a": }', b"{'a': 1}", b'[' * 100_000])
def test_unusable_json_names_its_place(tmp_path, line):
  path = write(tmp_path, b'{}\n' + line + b'\n')
  with pytest.raises(textfiles.MalformedLineError, match=r'line 2: not (usable )?JSON: '):
    read(path, lambda _, line: textfiles.json_object(line))


def message_of(function, *arguments):
  """The sentence of the ValueError that a call raises; empty if it raises none."""
  try:
    function(*arguments)
  except ValueError as error:
    return str(error)
  return ''


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader_without_file_and_line(tmp_path_factory, content):
  path = write(tmp_path_factory.mktemp('fuzz'), content)
  message = message_of(read, path, lambda _, line: textfiles.json_object(line))
  assert not message or 'rows.txt, line ' in message


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_gzip_reader_without_the_file(tmp_path_factory, content):
  path = write(tmp_path_factory.mktemp('fuzz'), content, 'rows.gz')
  assert not content or 'rows.gz is truncated or not a gzip file' in message_of(read, path)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
  for path in (tmp_path / 'nothing.jsonl', tmp_path):
    with pytest.raises(FileNotFoundError, match=f'There is no file {path}[.:]'):
      textfiles.required(path)


def test_the_checksum_is_that_of_the_content(tmp_path):
  content = bytes(range(256)) * 10_000
  assert textfiles.sha256(write(tmp_path, content)) == hashlib.sha256(content).hexdigest()


def test_a_name_that_the_locale_cannot_write_is_named_with_the_remedy(tmp_path):
  path = f'{tmp_path}/gr\xf6\xdfe'
  program = f'from cascades.tasks import textfiles; textfiles.required({path!a})'
  ascii_locale = {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}
  ended = subprocess.run(
    [sys.executable, '-c', program],
    env={**os.environ, **ascii_locale},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (
    'encoding of this locale (ascii): set the environment variable PYTHONUTF8=1' in ended.stderr
  )
