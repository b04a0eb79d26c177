"""Parallel text, sentences with their translations, in the formats of its publications.

Files are UTF-8, plain or gzipped. Unusable content is a ValueError that names file and line.
"""

from __future__ import annotations

import html
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple
from xml.parsers import expat  # expat itself, since ElementTree does not report a DTD

from etils import epath

from cascades.tasks import textfiles
from cascades.tasks.textfiles import Malformed, MalformedLineError

log = logging.getLogger(__name__)

_BLOCK = 1 << 16
_SHOWN = 3


class Pair(NamedTuple):
  """A segment and its translation; `number` counts lines, or segments of markup, from 1."""

  number: int
  source: str
  reference: str


class _EmptySideError(MalformedLineError):
  pass


def aligned_pairs(
  source: epath.PathLike,
  reference: epath.PathLike,
  *,
  malformed: Malformed = 'error',
  empty: Malformed = 'error',
) -> Iterator[Pair]:
  """Pairs line n of one file with line n of the other.

  Only a line feed ends a line: U+2028, U+0085, vertical tabs and form feeds are text.

  Args:
    source: file of the segments.
    reference: file of the translations.
    malformed: 'error' stops at malformed lines, 'skip' skips and counts them.
    empty: the same for pairs with an empty side.

  Raises:
    ValueError: at a line that cannot be used, or if line counts differ.
  """
  files = (epath.Path(source), epath.Path(reference))
  return _usable(_aligned(files), files, malformed=malformed, empty=empty)


def tsv_pairs(
  path: epath.PathLike,
  *,
  columns: tuple[int, int] = (0, 1),
  malformed: Malformed = 'error',
  empty: Malformed = 'error',
) -> Iterator[Pair]:
  """Reads lines of two tab-separated cells, without a header; skips blank lines.

  Args:
    path: the file.
    columns: indices of the cells of source and reference.
    malformed: 'error' stops at malformed lines, 'skip' skips and counts them.
    empty: the same for pairs with an empty side.

  Raises:
    ValueError: at a line that cannot be used.
  """
  file = epath.Path(path)

  def rows() -> Iterator[tuple[int, tuple[bytes, ...]]]:
    for number, line in textfiles.lines(file):
      cells = line.split(b'\t')
      if len(cells) == 2:
        yield number, (cells[columns[0]], cells[columns[1]])
      elif line.strip() or len(cells) > 2:
        yield number, tuple(cells)

  return _usable(rows(), (file, file), malformed=malformed, empty=empty)


def xml_pairs(path: epath.PathLike, *, translator: str = 'A') -> Iterator[Pair]:
  """Reads segments of WMT's XML (since 2021) with the reference of one translator.

  Skips documents of test suites and, with a warning, documents without a translation. Segments pair
  by their id within a document, in the order of the source. A DTD is an error: without one there
  are no entities to expand.
  """
  file = epath.Path(path)
  documents = _Documents(file, translator)
  count = 0
  with textfiles.opened(file) as stream:
    while block := stream.read(_BLOCK):
      for source, reference in documents.feed(block):
        count += 1
        yield Pair(count, source, reference)
  documents.close()
  if documents.without_reference:
    log.warning('%s: skipped %d documents without reference.', file, documents.without_reference)
  if not count:
    raise ValueError(f'{file} has no translated <doc> outside of test suites.')


def sgm_pairs(source: epath.PathLike, reference: epath.PathLike) -> Iterator[Pair]:
  """Reads segments of WMT's SGM files (until 2020), which are XML with a bare `&` in the text.

  Segments of the same docid and segment id pair, in the order of the source. Both files are in
  memory: test sets have a few thousand segments.
  """
  files = (epath.Path(source), epath.Path(reference))
  sources, references = map(_sgm_segments, files)
  for file, segments, other_file, others in (
    (files[0], sources, files[1], references),
    (files[1], references, files[0], sources),
  ):
    for segment, (line, _) in segments.items():
      if segment not in others:
        raise MalformedLineError(file, line, f'{_named(*segment)} is missing in {other_file}')
  for number, (segment, (_, text)) in enumerate(sources.items(), 1):
    yield Pair(number, text, references[segment][1])


def _aligned(
  files: tuple[epath.Path, epath.Path],
) -> Iterator[tuple[int, tuple[bytes, ...]]]:
  both = [textfiles.lines(file) for file in files]
  for number, sides in enumerate(itertools.zip_longest(*both), 1):
    if None in sides:
      counts = [
        number - 1 if side is None else number + sum(1 for _ in lines)
        for side, lines in zip(sides, both, strict=True)
      ]
      raise ValueError(
        f'{files[0]} has {counts[0]} lines and {files[1]} has {counts[1]}, so they do not pair. '
        'Only a line feed ends a line: a tool that also ends lines at U+2028 or the like puts '
        'files out of step.'
      )
    yield number, tuple(line for _, line in sides)


def _usable(
  rows: Iterable[tuple[int, tuple[bytes, ...]]],
  files: tuple[epath.Path, epath.Path],
  *,
  malformed: Malformed,
  empty: Malformed,
) -> Iterator[Pair]:
  """Yields the pairs of usable rows; cell i of a row comes from file i."""
  skipped, empties = 0, 0
  shown: list[str] = []
  for number, cells in rows:
    try:
      pair = _pair(number, cells, files)
    except MalformedLineError as error:
      is_empty = isinstance(error, _EmptySideError)
      if (empty if is_empty else malformed) == 'error':
        raise
      empties += is_empty
      skipped += not is_empty
      shown.extend([str(error)] if len(shown) < _SHOWN else [])
      continue
    yield pair
  if shown:
    log.warning(
      'Skipped %d pairs with an empty side and %d malformed ones of %s. First: %s',
      *(empties, skipped, files[0], '; '.join(shown)),
    )


def _pair(number: int, cells: tuple[bytes, ...], files: tuple[epath.Path, epath.Path]) -> Pair:
  if len(cells) != 2:
    raise MalformedLineError(
      files[0], number, f'{len(cells)} tab-separated columns, expected two: a text, its translation'
    )
  source, reference = (_text(file, number, cell) for file, cell in zip(files, cells, strict=True))
  return Pair(number, source, reference)


def _text(file: epath.Path, number: int, line: bytes) -> str:
  try:
    text = textfiles.decoded(line, textfiles.MAX_LINE_BYTES)
  except ValueError as error:
    raise MalformedLineError(file, number, textfiles.reason(error)) from error
  if not text.strip():
    raise _EmptySideError(file, number, 'a side of the pair is empty')
  return text


class _Documents:
  """Incremental reader of the XML, with one document in memory at a time."""

  def __init__(self, file: epath.Path, translator: str) -> None:
    self.without_reference = 0
    self._file = file
    self._translator = translator
    self._parser = expat.ParserCreate('utf-8')
    self._parser.StartDoctypeDeclHandler = self._refuse_dtd
    self._parser.StartElementHandler = self._start
    self._parser.EndElementHandler = self._end
    self._parser.CharacterDataHandler = self._characters
    self._id: str | None = None  # of the document, unless it is one of a test suite
    self._source: dict[str, str] = {}
    self._references: dict[str, dict[str, str]] = {}  # by translator
    self._side: dict[str, str] | None = None
    self._segment: str | None = None
    self._pieces: list[str] = []
    self._ready: list[tuple[str, str]] = []
    self._fed = self._parsed = 0  # bytes, and those up to the end of the last document

  def feed(self, block: bytes) -> list[tuple[str, str]]:
    """Parses a block; returns the pairs of the documents that it completes."""
    self._parse(block, False)
    ready, self._ready = self._ready, []
    return ready

  def close(self) -> None:
    self._parse(b'', True)

  def _parse(self, block: bytes, is_final: bool) -> None:
    self._fed += len(block)
    if self._fed - self._parsed > textfiles.MAX_LINE_BYTES:
      raise self._malformed(
        f'a document of more than {textfiles.MAX_LINE_BYTES:,} bytes; if that is right, raise '
        'textfiles.MAX_LINE_BYTES'
      )
    try:
      self._parser.Parse(block, is_final)
    except expat.ExpatError as error:
      reason = expat.ErrorString(error.code)
      raise MalformedLineError(self._file, error.lineno, f'not UTF-8 XML: {reason}') from error

  def _malformed(self, reason: str) -> MalformedLineError:
    return MalformedLineError(self._file, self._parser.CurrentLineNumber, reason)

  def _refuse_dtd(self, *_: object) -> None:
    raise self._malformed(
      "there is a DOCTYPE, which WMT's files do not have and which may make a reader open other "
      'files or fill the memory; remove it if you trust the file'
    )

  def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
    if tag == 'doc':
      self._id = None if 'testsuite' in attributes else attributes.get('id', '')
      self._source, self._references = {}, {}
    elif tag == 'src' and self._id is not None:
      self._side = self._source
    elif tag == 'ref' and self._id is not None:
      self._side = self._references.setdefault(attributes.get('translator', ''), {})
    elif tag == 'seg' and self._side is not None:
      self._segment, self._pieces = attributes.get('id', ''), []
      if self._segment in self._side:
        raise self._malformed(f'{_named(self._id or "", self._segment)} occurs twice')

  def _characters(self, text: str) -> None:
    if self._segment is not None:
      self._pieces.append(text)

  def _end(self, tag: str) -> None:
    if tag == 'doc':
      self._parsed = self._parser.CurrentByteIndex
    if tag == 'seg' and self._segment is not None and self._side is not None:
      self._side[self._segment] = _one_line(''.join(self._pieces))
      self._segment = None
    elif tag in ('src', 'ref'):
      self._side = self._segment = None
    elif tag == 'doc' and self._id is not None:
      if self._references:
        self._ready.extend(self._paired())
      else:
        self.without_reference += 1
      self._id = None

  def _paired(self) -> Iterator[tuple[str, str]]:
    references = self._translation()
    for segment in (*self._source, *references):
      if not self._source.get(segment, '').strip():
        raise self._malformed(f'{_named(self._id or "", segment)} has no source text')
      if not references.get(segment, '').strip():
        raise self._malformed(f'{_named(self._id or "", segment)} has no reference text')
    for segment, source in self._source.items():
      yield source, references[segment]

  def _translation(self) -> dict[str, str]:
    for name in (self._translator, f'ref{self._translator}'):  # 'A' in 2021 and 2022, then 'refA'
      if name in self._references:
        return self._references[name]
    translators = ', '.join(repr(name) for name in sorted(self._references))
    raise self._malformed(
      f'document {self._id!r} has no reference by translator {self._translator!r}; it has '
      f'{translators}'
    )


_TAG = re.compile(r'<(/?(?:doc|seg))\b([^<>]*)>', re.IGNORECASE)
_ATTRIBUTE = re.compile(r'\b(\w+)\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s"\'>]+))')
# Only references that end in a semicolon, since a bare & is text: 'R&B', 'Q&amp;A', '?a=1&copy=2'.
_CHARACTER = re.compile(r'&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,30});')


def _sgm_segments(file: epath.Path) -> dict[tuple[str, str], tuple[int, str]]:
  """(docid, segment id) -> (line, text)."""
  content = _read_text(file)
  segments: dict[tuple[str, str], tuple[int, str]] = {}
  document, segment = '', ''
  begin: int | None = None  # of a segment's text, inside of one
  line, counted = 1, 0
  for tag in _TAG.finditer(content):
    line, counted = line + content.count('\n', counted, tag.start()), tag.start()
    name = tag[1].lower()
    attributes = {key.lower(): ''.join(values) for key, *values in _ATTRIBUTE.findall(tag[2])}
    if begin is not None and name != '/seg':
      raise MalformedLineError(file, line, f'<{name}> inside {_named(document, segment)}')
    if name == 'doc':
      document = attributes.get('docid', '')
    elif name == 'seg':
      segment, begin = attributes.get('id', ''), tag.end()
      if (document, segment) in segments:
        raise MalformedLineError(file, line, f'{_named(document, segment)} occurs twice')
    elif name == '/seg' and begin is not None:
      text = _CHARACTER.sub(lambda match: html.unescape(match[0]), content[begin : tag.start()])
      text = _one_line(text)
      if not text.strip():
        raise MalformedLineError(file, line, f'{_named(document, segment)} is empty')
      segments[document, segment], begin = (line, text), None
  if begin is not None:
    raise MalformedLineError(file, line, f'{_named(document, segment)} is not closed')
  if not segments:
    raise ValueError(f'{file} has no <seg>.')
  return segments


def _read_text(file: epath.Path) -> str:
  with textfiles.opened(file) as stream:
    content = stream.read(textfiles.MAX_LINE_BYTES + 1)
  if len(content) > textfiles.MAX_LINE_BYTES:
    raise ValueError(
      f'{file} has more than {textfiles.MAX_LINE_BYTES:,} bytes, which are too many to read at '
      'once; raise textfiles.MAX_LINE_BYTES.'
    )
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    reason = f'not UTF-8: byte {content[error.start]:#04x}'
    raise MalformedLineError(file, line, reason) from error


def _one_line(text: str) -> str:
  """Removes the line breaks and the indentation of the markup."""
  pieces = (piece.strip(' \t') for piece in re.split('[\r\n]+', text))
  return ' '.join(piece for piece in pieces if piece)


def _named(document: str, segment: str) -> str:
  return f'segment {segment!r} of document {document!r}'
