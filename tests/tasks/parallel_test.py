import gzip
import logging
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tasks import parallel
from cascades.tasks.textfiles import MalformedLineError

ODD = 'a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\rh'  # str.splitlines would make eight lines of it


def write(folder, name, content):
  path = folder / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def aligned(folder, source, reference, *, ending='', **options):
  files = (
    write(folder, f'{side}{ending}', content)
    for side, content in (('src', source), ('ref', reference))
  )
  return list(parallel.aligned_pairs(*files, **options))


def tsv(folder, content, *, name='rows.tsv', **options):
  return list(parallel.tsv_pairs(write(folder, name, content), **options))


def xml(folder, content, *, name='set.xml', **options):
  return list(parallel.xml_pairs(write(folder, name, content), **options))


def sgm(folder, source, reference):
  files = (write(folder, 'src.sgm', source), write(folder, 'ref.sgm', reference))
  return list(parallel.sgm_pairs(*files))


def doc(source, *references, name='d1', extra=''):
  """A document of WMT's XML from {seg id: text}s."""
  segments = lambda of: ''.join(f'<seg id="{i}">{text}</seg>' for i, text in of.items())
  refs = (f'<ref translator="{who}"><p>{segments(of)}</p></ref>' for who, of in references)
  return f'<doc id="{name}"{extra}><src><p>{segments(source)}</p></src>{"".join(refs)}</doc>\n'


def dataset(*documents):
  header = "<?xml version='1.0' encoding='utf-8'?>\n"
  return f'{header}<dataset><collection>\n{"".join(documents)}</collection></dataset>'


def test_line_n_pairs_with_line_n(tmp_path):
  assert aligned(tmp_path, 'one\ntwo\n', 'eins\nzwei\n') == [(1, 'one', 'eins'), (2, 'two', 'zwei')]


def test_only_a_line_feed_ends_a_line(tmp_path):
  assert aligned(tmp_path, f'{ODD}\nx\n', f'y\n{ODD}\n') == [(1, ODD, 'y'), (2, 'x', ODD)]
  assert tsv(tmp_path, f'{ODD}\t{ODD}\n') == [(1, ODD, ODD)]


def test_windows_line_ends_byte_order_marks_and_a_missing_last_line_end_do_no_harm(tmp_path):
  assert aligned(tmp_path, '\ufeffone\r\ntwo', '\ufeffeins\nzwei\n') == [
    (1, 'one', 'eins'),
    (2, 'two', 'zwei'),
  ]


def test_gzipped_files_read_alike(tmp_path):
  one, two = gzip.compress(b'one\n'), gzip.compress(b'eins\n')
  assert aligned(tmp_path, one, two, ending='.gz') == [(1, 'one', 'eins')]
  zipped = gzip.compress(b'one\teins\n')
  assert tsv(tmp_path, zipped, name='rows.tsv.gz') == [(1, 'one', 'eins')]
  document = gzip.compress(dataset(doc({1: 'one'}, ('A', {1: 'eins'}))).encode())
  assert xml(tmp_path, document, name='set.xml.gz') == [(1, 'one', 'eins')]


@pytest.mark.parametrize(
  ('source', 'reference', 'counts'),
  [
    ('1\n2\n3\n', 'a\n', r'src has 3 lines and .*ref has 1'),
    ('1\n', 'a\nb\n', r'src has 1 lines and .*ref has 2'),
    ('', 'a\nb\n', r'src has 0 lines and .*ref has 2'),
    ('1\n2\n', 'a\nb\n\n\n', r'src has 2 lines and .*ref has 4'),
    ('1\u20282\n', 'a\nb\n', r'src has 1 lines and .*ref has 2,.*U\+2028'),
  ],
)
def test_unequal_line_counts_are_an_error_with_both(tmp_path, source, reference, counts):
  for policy in ('error', 'skip'):
    with pytest.raises(ValueError, match=counts):
      aligned(tmp_path, source, reference, malformed=policy, empty=policy)


def test_invalid_utf8_names_the_file_and_the_line(tmp_path):
  with pytest.raises(MalformedLineError, match=r'ref, line 2: not UTF-8: byte 0xff'):
    aligned(tmp_path, b'1\n2\n', b'a\nb\xff\n')
  with pytest.raises(MalformedLineError, match=r'src, line 1: not UTF-8: byte 0xff'):
    aligned(tmp_path, b'\xff\xfe1\n', b'a\n')  # UTF-16, as some tools write it


def test_malformed_lines_are_skipped_on_demand_and_the_files_stay_in_step(tmp_path, caplog):
  pairs = aligned(tmp_path, b'1\n\xff\n3\n4\n', b'a\nb\n\xff\nd\n', malformed='skip')
  assert pairs == [(1, '1', 'a'), (4, '4', 'd')]
  assert 'Skipped 0 pairs with an empty side and 2 malformed ones' in caplog.text


@pytest.mark.parametrize('ending', ['', '\t', ' \u3000\u2028'])
def test_an_empty_side_is_an_error_with_its_line(tmp_path, ending):
  with pytest.raises(MalformedLineError, match=r'ref, line 2: a side of the pair is empty'):
    aligned(tmp_path, '1\n2\n', f'a\n{ending}\n')


def test_empty_sides_are_skipped_on_demand_counted_and_logged(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    pairs = aligned(tmp_path, '1\n\n3\n4\n \n6', 'a\nb\n\nd\n\nf', empty='skip')
  assert pairs == [(1, '1', 'a'), (4, '4', 'd'), (6, '6', 'f')]
  assert 'Skipped 3 pairs with an empty side and 0 malformed ones' in caplog.text
  assert 'src, line 2' in caplog.text


def test_empty_sides_and_malformed_lines_have_policies_of_their_own(tmp_path):
  with pytest.raises(MalformedLineError, match='line 2: not UTF-8'):
    tsv(tmp_path, b'\tempty\nbad\xff\tx\n', empty='skip')
  with pytest.raises(MalformedLineError, match='line 2: a side of the pair is empty'):
    tsv(tmp_path, b'three\tcells\there\n\tempty\n', malformed='skip')


def test_nothing_is_logged_when_nothing_is_skipped(tmp_path, caplog):
  tsv(tmp_path, 'a\tb\n', malformed='skip', empty='skip')
  assert not caplog.records


def test_the_columns_of_a_tsv_serve_both_directions(tmp_path):
  rows = 'one\teins\n\n  \n"two"\t zwei\n'
  assert tsv(tmp_path, rows) == [(1, 'one', 'eins'), (4, '"two"', ' zwei')]
  assert tsv(tmp_path, rows, columns=(1, 0)) == [(1, 'eins', 'one'), (4, ' zwei', '"two"')]


@pytest.mark.parametrize(
  ('line', 'count'), [('one', 1), ('a\tb\tc', 3), ('\t\t', 3), ('one,eins', 1)]
)
def test_another_number_of_columns_is_named_with_its_line(tmp_path, line, count):
  with pytest.raises(MalformedLineError, match=rf'rows\.tsv, line 2: {count} tab-separated column'):
    tsv(tmp_path, f'a\tb\n{line}\n')
  assert tsv(tmp_path, f'a\tb\n{line}\nc\td\n', malformed='skip') == [(1, 'a', 'b'), (3, 'c', 'd')]


@pytest.mark.parametrize(
  'content',
  [gzip.compress(b'one\teins\n' * 999)[:40], b'plain\ttext\n', b'\x1f\x8b\x08' + b'9' * 30],
  ids=['truncated', 'text', 'damaged'],
)
def test_what_is_no_whole_gzip_file_is_named(tmp_path, content):
  wrong = r'(rows\.tsv|src|set\.xml)\.gz is truncated or not a gzip file'
  with pytest.raises(ValueError, match=wrong):
    tsv(tmp_path, content, name='rows.tsv.gz', malformed='skip')
  with pytest.raises(ValueError, match=wrong):
    aligned(tmp_path, content, content, ending='.gz')
  with pytest.raises(ValueError, match=wrong):
    xml(tmp_path, content, name='set.xml.gz')


def test_segments_of_xml_pair_by_their_id_within_a_document(tmp_path):
  one = doc({1: 'a', 2: 'b'}, ('A', {2: 'B', 1: 'A'}))
  two = doc({1: 'c'}, ('A', {1: 'C'}), name='d2')
  assert xml(tmp_path, dataset(one, two)) == [(1, 'a', 'A'), (2, 'b', 'B'), (3, 'c', 'C')]


def test_xml_needs_no_collection_and_may_hold_systems_outputs(tmp_path):
  hyp = '<hyp system="x"><p><seg id="1">no</seg><seg id="9"/></p></hyp>'
  body = doc({1: 'a'}, ('A', {1: 'A'})).replace('</doc>', f'{hyp}</doc>')
  assert xml(tmp_path, f'<dataset id="newstest2021">{body}</dataset>') == [(1, 'a', 'A')]


def test_the_text_of_xml_is_unescaped_and_loses_only_the_markups_line_breaks(tmp_path):
  text = 'x &lt;b&gt; &amp; &quot;y&quot;\u2028z&#x1F600;  w'
  read = 'x <b> & "y"\u2028z\U0001f600  w'
  broken = f'\n    {text}\n    v\n  '
  assert xml(tmp_path, dataset(doc({1: text}, ('A', {1: broken})))) == [(1, read, f'{read} v')]


def test_documents_of_test_suites_are_passed_over(tmp_path):
  suite = doc({1: 'no', 2: ''}, ('A', {1: 'no'}), extra=' testsuite="x"')
  whole = doc({1: 'a'}, ('A', {1: 'A'}))
  assert xml(tmp_path, dataset(suite, whole, suite)) == [(1, 'a', 'A')]


def test_the_reference_is_chosen_by_its_translator(tmp_path):
  content = dataset(doc({1: 'a'}, ('B', {1: 'b'}), ('A', {1: 'A'}), ('', {1: 'unnamed'})))
  assert xml(tmp_path, content) == [(1, 'a', 'A')]
  assert xml(tmp_path, content, translator='B') == [(1, 'a', 'b')]
  with pytest.raises(ValueError, match=r"document 'd1' .* translator 'C'; it has '', 'A', 'B'"):
    xml(tmp_path, content, translator='C')


def test_later_years_write_reference_a_as_ref_a(tmp_path):
  assert xml(tmp_path, dataset(doc({1: 'a'}, ('refA', {1: 'A'})))) == [(1, 'a', 'A')]


def test_documents_that_nobody_translated_are_passed_over_and_counted(tmp_path, caplog):
  content = dataset(doc({1: 'x'}), doc({1: 'a'}, ('A', {1: 'A'})), doc({1: 'y'}))
  assert xml(tmp_path, content) == [(1, 'a', 'A')]
  assert 'set.xml: skipped 2 documents without reference' in caplog.text


@pytest.mark.parametrize(
  ('source', 'reference', 'reason'),
  [
    ({1: 'a', 2: 'b'}, {1: 'A'}, "segment '2' of document 'd1' has no reference text"),
    ({1: 'a'}, {1: 'A', 7: 'G'}, "segment '7' of document 'd1' has no source text"),
    ({1: 'a'}, {1: ' \n '}, "segment '1' of document 'd1' has no reference text"),
    ({1: '\u3000'}, {1: 'A'}, "segment '1' of document 'd1' has no source text"),
  ],
)
def test_a_segment_without_its_other_half_is_named(tmp_path, source, reference, reason):
  with pytest.raises(MalformedLineError, match=rf'set\.xml, line \d+: {reason}'):
    xml(tmp_path, dataset(doc(source, ('A', reference))))


def test_a_repeated_segment_is_named(tmp_path):
  repeated = doc({1: 'a'}, ('A', {1: 'A'}), ('A', {1: 'B'}))
  with pytest.raises(MalformedLineError, match="line 3: segment '1' of document 'd1' occurs twice"):
    xml(tmp_path, dataset(repeated))


@pytest.mark.parametrize(
  'doctype',
  [
    '<!DOCTYPE x>',
    '<!DOCTYPE x SYSTEM "file:///etc/passwd">',
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY e "&a;&a;&a;&a;">]>',
  ],
)
def test_xml_with_a_doctype_is_refused_before_any_entity_is_read(tmp_path, doctype):
  with pytest.raises(MalformedLineError, match=r'set\.xml, line 1: there is a DOCTYPE'):
    xml(tmp_path, f'{doctype}{doc({1: "&e;"}, ("A", {1: "&e;"}))}')


def test_utf_16_hides_no_doctype(tmp_path):
  content = dataset(doc({1: 'a'}, ('A', {1: 'A'})))
  assert xml(tmp_path, content.encode('utf-16')) == [
    (1, 'a', 'A')
  ]  # its first bytes say what it is
  with pytest.raises(MalformedLineError, match='there is a DOCTYPE'):
    xml(tmp_path, content.replace('<dataset>', '<!DOCTYPE x><dataset>').encode('utf-16'))


@pytest.mark.parametrize(
  ('content', 'line'),
  [
    (dataset(doc({1: 'a'}, ('A', {1: 'A'})))[:-20], 4),  # truncated
    (dataset(doc({1: 'a & b'}, ('A', {1: 'A'}))), 3),
    (dataset(doc({1: '&nbsp;'}, ('A', {1: 'A'}))), 3),
    (dataset(doc({1: 'ä'}, ('A', {1: 'A'}))).encode('latin-1'), 3),
    (b'', 1),
    ('{"not": "xml"}', 1),
  ],
)
def test_what_is_not_well_formed_names_its_line(tmp_path, content, line):
  with pytest.raises(MalformedLineError, match=rf'set\.xml, line {line}: not UTF-8 XML: '):
    xml(tmp_path, content)


@pytest.mark.parametrize('content', ['<html><p>Moved</p></html>', dataset(doc({1: 'a'}))])
def test_xml_without_a_pair_is_an_error(tmp_path, content):
  with pytest.raises(ValueError, match=r'set\.xml has no translated <doc>'):
    xml(tmp_path, content)


def test_a_long_document_is_read_whole_though_blocks_cut_it(tmp_path):
  texts = {i: f'{i} ' + 'é€😀' * 100 for i in range(1, 400)}
  content = dataset(doc(texts, ('A', texts)))
  assert len(content.encode()) > 5 * 65_536
  assert xml(tmp_path, content) == [(i, text, text) for i, text in texts.items()]


def test_xml_reads_as_in_sacrebleu(tmp_path):
  wmt_xml = pytest.importorskip('sacrebleu.dataset.wmt_xml')
  documents = (
    doc({1: 'a &amp; b', 2: 'c\u2028d'}, ('B', {1: 'A', 2: 'C'}), ('A', {1: '1', 2: '2'})),
    doc({1: 'no'}, ('A', {1: 'no'}), extra=' testsuite="x"'),
    doc({1: 'untranslated'}, name='d2'),
    doc(
      {1: '“e”', 2: 'f', 10: 'g'},
      ('A', {1: '3', 2: '4', 10: '5'}),
      ('B', {1: 'E', 2: 'F', 10: 'G'}),
    ),
  )
  content = (
    dataset(*documents).replace('<doc ', '<doc origlang="en" ').replace('<ref ', '<ref lang="de" ')
  )
  path = write(tmp_path, 'set.xml', content.replace('<src>', '<src lang="en">'))
  theirs = wmt_xml.WMTXMLDataset._unwrap_wmt21_or_later(str(path))
  for translator in 'AB':
    ours = list(parallel.xml_pairs(path, translator=translator))
    assert [pair.source for pair in ours] == theirs['src']
    assert [pair.reference for pair in ours] == theirs[f'ref:{translator}']


def srcset(*segments, doc='d1'):
  body = ''.join(f'<seg id="{number}">{text}</seg>\n' for number, text in segments)
  return (
    f'<srcset setid="x" srclang="any">\n<doc sysid="ref" docid="{doc}">\n{body}</doc>\n</srcset>'
  )


def test_segments_of_sgm_pair_by_docid_and_id(tmp_path):
  source = srcset((1, 'a'), (2, 'b')) + srcset((1, 'c'), doc='d2')
  reference = srcset((1, 'C'), doc='d2') + srcset((2, 'B'), (1, 'A'))
  assert sgm(tmp_path, source, reference) == [(1, 'a', 'A'), (2, 'b', 'B'), (3, 'c', 'C')]


def test_sgm_may_have_tags_in_any_case_any_quotes_and_several_lines(tmp_path):
  source = '<DOC\n DocID=d1 genre="news">\n<hl><SEG id=1>\n  a <b>\n  c </SEG></hl><p></P></DOC>'
  reference = "<doc origlang='en' docid='d1'><Seg id='1' >x</sEg ></doc>"
  assert sgm(tmp_path, source, reference) == [(1, 'a <b> c', 'x')]


@pytest.mark.parametrize(
  ('written', 'text'),
  [
    ('AT&T and R&D', 'AT&T and R&D'),
    ('Q&amp;A &lt;b&gt; &quot;c&quot; &apos;', 'Q&A <b> "c" \''),
    ('?a=1&copy=2&notit', '?a=1&copy=2&notit'),
    ('caf&#233; &#x1F600;', 'café \U0001f600'),
    ('1 < 2 > 0', '1 < 2 > 0'),
    ('&amp;lt;', '&lt;'),
    ('&unknown; &#xD800;', '&unknown; \ufffd'),
    ('&#' + '9' * 5000 + ';', '&#' + '9' * 5000 + ';'),
    (ODD.replace('\r', ''), ODD.replace('\r', '')),
  ],
)
def test_sgm_has_bare_ampersands_beside_escaped_ones(tmp_path, written, text):
  assert sgm(tmp_path, srcset((1, written)), srcset((1, 'x'))) == [(1, text, 'x')]


def test_a_missing_pair_of_sgm_is_named_with_its_line_on_either_side(tmp_path):
  one, two = srcset((1, 'a')), srcset((1, 'a'), (2, 'b'))
  missing = r"line 4: segment '2' of document 'd1' is missing in .*"
  with pytest.raises(MalformedLineError, match=rf'src\.sgm, {missing}ref\.sgm'):
    sgm(tmp_path, two, one)
  with pytest.raises(MalformedLineError, match=rf'ref\.sgm, {missing}src\.sgm'):
    sgm(tmp_path, one, two)


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    (srcset((1, 'a'), (1, 'b')), "line 4: segment '1' of document 'd1' occurs twice"),
    (srcset((1, 'a'), (2, ' \n')), "line 5: segment '2' of document 'd1' is empty"),
    ('<doc docid="x">\n<seg id="1">a\n<seg id="2">b</seg>', r'line 3: <seg> inside segment .1. of'),
    ('<doc docid="x">\n<seg id="1">a\n</doc>', r'line 3: </doc> inside segment'),
    ('<doc docid="x">\n<seg id="1">a\n', r"line 2: segment '1' of document 'x' is not closed"),
    (b'<doc docid="x">\n\n<seg id="1">\xe9</seg>', r'line 3: not UTF-8: byte 0xe9'),
  ],
)
def test_wrong_sgm_is_named_with_file_and_line(tmp_path, content, reason):
  with pytest.raises(MalformedLineError, match=rf'ref\.sgm, {reason}'):
    sgm(tmp_path, srcset((1, 'a')), content)


def test_sgm_without_a_segment_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r'src\.sgm has no <seg>'):
    sgm(tmp_path, '<html>', '<html>')


# XML's characters, less those that a reader of markup may take for layout.
texts = st.text(
  st.characters(codec='utf-8', exclude_categories=['Cc']), min_size=1, max_size=30
).filter(lambda text: text == text.strip() and not set(text) & {'\ufffe', '\uffff'})


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_what_a_library_writes_as_xml_reads_back(tmp_path_factory, pairs):
  root = ET.Element('dataset')
  document = ET.SubElement(root, 'doc', id='d')
  for tag, side in (('src', 0), ('ref', 1)):
    paragraph = ET.SubElement(ET.SubElement(document, tag, translator='A'), 'p')
    for number, pair in enumerate(pairs):
      ET.SubElement(paragraph, 'seg', id=str(number)).text = pair[side]
  content = ET.tostring(root, encoding='utf-8', xml_declaration=True)
  read = xml(tmp_path_factory.mktemp('xml'), content)
  assert [pair[1:] for pair in read] == pairs


@given(st.lists(st.tuples(texts, texts), max_size=5))
def test_what_is_written_line_by_line_reads_back_in_either_layout(tmp_path_factory, pairs):
  folder = tmp_path_factory.mktemp('lines')
  sides = list(zip(*pairs, strict=True)) or [(), ()]
  rows = list(map(tuple, (pair[1:] for pair in aligned(folder, *('\n'.join(s) for s in sides)))))
  assert rows == pairs
  content = ''.join('\t'.join(pair) + '\n' for pair in pairs)
  assert [pair[1:] for pair in tsv(folder, content)] == pairs


# Bytes that often get past the first check: snippets of each layout, with noise.
noise = st.binary(max_size=12)
snippets = st.sampled_from([
  b'\n', b'\t', b'\r', b' ', b'\xef\xbb\xbf', b'\xe2\x80\xa8', b'\xff', b'&amp;', b'&#xD800;',
  b'<dataset>', b'</dataset>', b'<doc id="a">', b'<doc docid="a">', b'</doc>', b'<src>', b'</src>',
  b'<ref translator="A">', b'</ref>', b'<seg id="1">', b'<seg>', b'</seg>', b'<!DOCTYPE a>', b'a',
  b'<?xml version="1.0" encoding="latin-1"?>', b'<?xml version="1.0" encoding="x"?>', b'<![CDATA[',
])  # fmt: skip
contents = st.lists(st.one_of(noise, snippets), max_size=30).map(b''.join)


def message_of(read):
  """The sentence of the ValueError that reading raises; empty if it gives sound pairs."""
  try:
    pairs = list(read)
  except ValueError as error:
    return str(error)
  assert all(source.strip() and reference.strip() for _, source, reference in pairs)
  return ''


@given(contents, contents, st.sampled_from(['error', 'skip']), st.sampled_from(['', '.gz']))
def test_no_bytes_crash_a_reader_of_lines(tmp_path_factory, one, two, policy, ending):
  folder = tmp_path_factory.mktemp('fuzz')
  files = (write(folder, f'src{ending}', one), write(folder, f'ref{ending}', two))
  message = message_of(parallel.aligned_pairs(*files, malformed=policy, empty=policy))
  assert not message or any(
    part in message for part in ('src, line ', 'ref, line ', ' lines and ', '.gz is truncated')
  )
  message = message_of(parallel.tsv_pairs(files[0], malformed=policy, empty=policy))
  assert not message or 'src, line ' in message or 'src.gz is truncated' in message
  assert policy == 'error' or ending or not message


@given(contents, contents)
def test_no_bytes_crash_a_reader_of_markup(tmp_path_factory, one, two):
  folder = tmp_path_factory.mktemp('fuzz')
  files = (write(folder, 'src', one), write(folder, 'ref', two))
  message = message_of(parallel.xml_pairs(files[0]))
  assert not message or 'src, line ' in message or 'src has no translated <doc>' in message
  message = message_of(parallel.sgm_pairs(*files))
  assert not message or ', line ' in message or ' has no <seg>' in message
