import gzip
import json
import logging
import subprocess
import sys

import pytest

from cascades import metrics
from cascades.tasks import wmt22
from cascades.tasks.sources import Sources

SAMPLE = Sources(sample=True)
DIRECTIONS = ['-'.join(pair) for pair in wmt22.PAIRS]


def write(folder, name, *lines):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  content = ''.join(f'{line}\n' for line in lines).encode()
  path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
  return path


def places(folder, **options):
  return Sources(folder, folder / 'no_tfds', **options)


def read(folder, split, *, pair='en-ja', reference='A', **options):
  task = wmt22.task(pair, places(folder, **options), reference=reference)
  return [(row.inputs.split(': ', 1)[1], row.targets) for row in task.rows(split)]


def test_there_are_six_directions_each_from_or_into_english():
  assert len(set(wmt22.PAIRS)) == 6
  assert all('en' in pair and set(pair) < set(wmt22.LANGUAGES) for pair in wmt22.PAIRS)


def test_a_row_is_an_instruction_and_the_reference():
  row = list(wmt22.task(('en', 'ja'), SAMPLE).rows('validation'))[1]
  assert row.id == 'wmt22_en_ja/validation/1'
  assert row.inputs == 'translate English to Japanese: Thank you very much.'
  assert row.answers == ('ありがとうございました。',)
  assert (row.options, row.label) == ((), None)


def test_the_other_direction_swaps_the_sides():
  row = list(wmt22.task('ja-en', SAMPLE).rows('test'))[1]
  assert row.inputs == 'translate Japanese to English: ありがとうございました。'
  assert row.answers == ('Thank you very much.',)


@pytest.mark.parametrize(
  ('pair', 'start'),
  [
    ('en-zh', 'translate English to Chinese: The museum'),
    ('zh-en', 'translate Chinese to English: 博物馆'),
    ('en-ru', 'translate English to Russian: The ferry'),
    ('ru-en', 'translate Russian to English: Паром'),
  ],
)
def test_languages_are_named_in_english(pair, start):
  assert next(wmt22.task(pair, SAMPLE).rows('train')).inputs.startswith(start)


@pytest.mark.parametrize('pair', DIRECTIONS)
def test_hand_written_rows_serve_every_split_and_have_the_hard_cases(pair, caplog):
  task = wmt22.task(pair, SAMPLE)
  rows = list(task.rows('test'))
  for split in task.splits:
    assert [row[1:] for row in task.rows(split)] == [row[1:] for row in rows]
  assert len({row.id for row in rows}) == len(rows) == 12
  text = '\n'.join(f'{row.inputs}\n{row.targets}' for row in rows)
  for hard in ('\u2028', '%', '“', '&', '«' if 'ru' in pair else '\uff05'):
    assert hard in text
  assert max(len(row.inputs) for row in rows) > 100
  english = [row.targets if pair.endswith('en') else row.inputs for row in rows]
  assert len(set(english)) == 11  # one occurs twice, with another translation
  assert any(ord(character) > 0xFFFF for character in text)
  assert 'published' not in caplog.text


@pytest.mark.parametrize('pair', ['en-de', 'zh-ja', 'enja', ('en',), ('ja', 'zh')])
def test_another_direction_is_refused_with_the_known_ones(pair):
  with pytest.raises(ValueError, match='no direction of WMT22 here; they are en-zh, zh-en, en-ja'):
    wmt22.task(pair, SAMPLE)


@pytest.mark.parametrize('reference', ['', '*', '../A'])
def test_a_reference_is_a_letter_since_it_is_a_part_of_a_files_name(reference):
  with pytest.raises(ValueError, match='names no reference'):
    wmt22.task('en-ja', SAMPLE, reference=reference)


def test_what_a_task_tells_without_data():
  task = wmt22.task('zh-en', Sources())
  assert (task.name, task.suite) == ('wmt22_zh_en', 'wmt22')
  assert task.splits[:3] == ('train', 'validation', 'test')
  assert task.sizes == {'validation': 1948, 'test': 1875}
  assert 'newstest2021' in task.description


def test_published_sizes_are_those_of_the_papers_table():
  sizes = {pair: wmt22.task(pair, Sources()).sizes for pair in DIRECTIONS}
  order = ['en-ja', 'en-ru', 'en-zh', 'ja-en', 'ru-en', 'zh-en']
  assert [sizes[pair]['validation'] for pair in order] == [1000, 1002, 1002, 1005, 1000, 1948]
  assert [sizes[pair]['test'] for pair in order] == [2037, 2037, 2037, 2008, 2016, 1875]


@pytest.mark.parametrize(
  ('installed', 'name'),
  [({'MeCab', 'ipadic'}, 'bleu_ja_mecab'), ({'MeCab'}, 'bleu_char'), (set(), 'bleu_char')],
)
def test_bleu_has_the_tokenizer_of_the_target_language(monkeypatch, caplog, installed, name):
  monkeypatch.setattr(wmt22.importlib.util, 'find_spec', lambda name: name in installed or None)
  wmt22._japanese_bleu.cache_clear()
  try:
    found = {pair: wmt22.task(pair, Sources()).metrics for pair in DIRECTIONS * 2}
  finally:
    wmt22._japanese_bleu.cache_clear()
  expected = {'en': 'bleu', 'ru': 'bleu', 'zh': 'bleu_zh', 'ja': name}
  assert found == {pair: (expected[pair[-2:]], 'chrf') for pair in DIRECTIONS}
  assert all(metrics.by_name(metric) for both in found.values() for metric in both)
  said = [record.message for record in caplog.records]
  assert len(said) == (name == 'bleu_char')
  assert all("pip install 'lm-cascades[ja]'" in line for line in said)


@pytest.mark.parametrize('place', ['', 'wmt', 'a/b', 'a/b/c'])
@pytest.mark.parametrize(
  ('split', 'text'), [('validation', 'newstest2021'), ('test', 'generaltest2022')]
)
def test_text_files_are_found_up_to_three_folders_deep(tmp_path, place, split, text):
  write(tmp_path / place, f'{text}.en-ja.src.en', 'one')
  write(tmp_path / place, f'{text}.en-ja.ref.A.ja', '一')
  assert read(tmp_path, split) == [('one', '一')]


def test_sources_and_references_may_lie_in_two_folders_and_be_gzipped(tmp_path):
  write(tmp_path, 'wmt/txt/sources/generaltest2022.en-ja.src.en.gz', 'one')
  write(tmp_path, 'wmt/txt/references/generaltest2022.en-ja.ref.A.ja', '一')
  assert read(tmp_path, 'test') == [('one', '一')]


def test_a_reference_beside_the_source_is_preferred(tmp_path):
  write(tmp_path, 'b/generaltest2022.en-ja.src.en', 'one')
  write(tmp_path, 'a/generaltest2022.en-ja.ref.A.ja', 'another', 'set')
  write(tmp_path, 'b/generaltest2022.en-ja.ref.A.ja.gz', '一')
  assert read(tmp_path, 'test') == [('one', '一')]


def xml(source, **references):
  refs = ''.join(
    f'<ref translator="{who}"><p><seg id="1">{text}</seg></p></ref>'
    for who, text in references.items()
  )
  return f'<dataset><doc id="d"><src><seg id="1">{source}</seg></src>{refs}</doc></dataset>'


def sgm(text):
  return f'<srcset>\n<doc docid="d">\n<seg id="1">{text}</seg>\n</doc>\n</srcset>'


def test_text_comes_before_xml_and_xml_before_sgm(tmp_path):
  write(tmp_path, 'sgm/newstest2021-enja-src.en.sgm', sgm('from sgm'))
  write(tmp_path, 'sgm/newstest2021-enja-ref.ja.sgm', sgm('s'))
  assert read(tmp_path, 'validation') == [('from sgm', 's')]
  write(tmp_path, 'xml/newstest2021.en-ja.all.xml', xml('from the whole xml', A='w'))
  assert read(tmp_path, 'validation') == [('from the whole xml', 'w')]
  write(tmp_path, 'test/newstest2021.en-ja.xml', xml('from xml', A='x'))
  assert read(tmp_path, 'validation') == [('from xml', 'x')]
  write(tmp_path, 'txt/newstest2021.en-ja.src.en', 'from text')
  assert read(tmp_path, 'validation') == [('from xml', 'x')]  # no reference to it yet
  write(tmp_path, 'txt/newstest2021.en-ja.ref.A.ja', 't')
  assert read(tmp_path, 'validation') == [('from text', 't')]


def test_the_general_test_is_read_from_xml(tmp_path):
  write(tmp_path, 'xml/wmttest2022.en-ja.all.xml', xml('one', B='二', A='一'))
  assert read(tmp_path, 'test') == [('one', '一')]
  assert read(tmp_path, 'test', reference='B') == [('one', '二')]


def test_the_set_of_2020_is_read_from_sgm(tmp_path):
  write(tmp_path, 'sgm/newstest2020-ruen-src.ru.sgm', sgm('R&D'))
  write(tmp_path, 'sgm/newstest2020-ruen-ref.en.sgm', sgm('R&amp;D'))
  assert read(tmp_path, 'validation_2020', pair='ru-en') == [('R&D', 'R&D')]
  with pytest.raises(FileNotFoundError, match='newstest2020'):
    read(tmp_path, 'validation_2020', pair='ru-en', reference='B')


def test_another_reference_is_an_option(tmp_path):
  write(tmp_path, 'generaltest2022.en-zh.src.en', 'one')
  write(tmp_path, 'generaltest2022.en-zh.ref.A.zh', '一')
  write(tmp_path, 'generaltest2022.en-zh.ref.B.zh', '壹')
  assert read(tmp_path, 'test', pair='en-zh', reference='B') == [('one', '壹')]


def test_a_missing_reference_is_named_beside_the_ones_there_are(tmp_path):
  write(tmp_path, 'generaltest2022.en-ru.src.en', 'one')
  write(tmp_path, 'generaltest2022.en-ru.ref.A.ru', 'один')
  with pytest.raises(
    FileNotFoundError, match=r'with reference B.*only generaltest2022.en-ru.ref.A'
  ):
    read(tmp_path, 'test', pair='en-ru', reference='B')


@pytest.mark.parametrize('policy', ['error', 'skip'])
@pytest.mark.parametrize(
  ('source', 'reason'),
  [((' ',), r'src\.en, line 1: a side of the pair is empty'), (('a', 'b'), 'has 2 lines and')],
)
def test_nothing_is_skipped_in_a_test_set(tmp_path, policy, source, reason):
  write(tmp_path, 'generaltest2022.en-ja.src.en', *source)
  write(tmp_path, 'generaltest2022.en-ja.ref.A.ja', '一')
  with pytest.raises(ValueError, match=reason):
    read(tmp_path, 'test', malformed=policy)


def test_another_count_than_published_is_logged(tmp_path, caplog):
  write(tmp_path, 'generaltest2022.en-ja.src.en', 'one')
  write(tmp_path, 'generaltest2022.en-ja.ref.A.ja', '一')
  with caplog.at_level(logging.INFO):
    read(tmp_path, 'test')
  assert f'reading {tmp_path}/generaltest2022.en-ja.src.en and {tmp_path}/general' in caplog.text
  assert 'has 1 pairs; split test of wmt22_en_ja was published with 2037' in caplog.text


@pytest.mark.parametrize('folder', ['en-ja', 'wmt22/en-ja', 'mine/wmt22/en-ja'])
@pytest.mark.parametrize('name', ['train.tsv', 'train_news.tsv.gz'])
def test_training_pairs_of_one_file_serve_both_directions(tmp_path, folder, name):
  write(tmp_path / folder, name, 'one\t一', 'two\t二')
  assert read(tmp_path, 'train') == [('one', '一'), ('two', '二')]
  assert read(tmp_path, 'train', pair='ja-en') == [('一', 'one'), ('二', 'two')]


def test_the_columns_are_in_the_order_of_the_folders_name(tmp_path):
  write(tmp_path, 'wmt22/ja-en/train.tsv', '一\tone')
  assert read(tmp_path, 'train') == [('one', '一')]
  assert read(tmp_path, 'train', pair='ja-en') == [('一', 'one')]
  write(tmp_path, 'wmt22/en-ja/train.tsv', 'of its own\t二')
  assert read(tmp_path, 'train') == [('of its own', '二')]


def test_several_training_files_are_read_in_the_order_of_their_names(tmp_path):
  write(tmp_path, 'wmt22/en-ja/train-2.tsv', 'two\t二')
  write(tmp_path, 'wmt22/en-ja/train-1.tsv.gz', 'one\t一')
  write(tmp_path, 'wmt22/en-ja/validation.tsv', 'no\t否')
  task = wmt22.task('en-ja', places(tmp_path))
  assert [(row.id, row.targets) for row in task.rows('train')] == [
    ('wmt22_en_ja/train/0', '一'),
    ('wmt22_en_ja/train/1', '二'),
  ]


def test_training_pairs_may_be_two_aligned_files(tmp_path):
  write(tmp_path, 'wmt22/en-ja/train.en', 'one\u2028more', 'two')
  write(tmp_path, 'wmt22/en-ja/train.ja.gz', '一', '二')
  assert read(tmp_path, 'train') == [('one\u2028more', '一'), ('two', '二')]
  assert read(tmp_path, 'train', pair='ja-en') == [('一', 'one\u2028more'), ('二', 'two')]


def test_training_pairs_with_an_empty_side_are_dropped_and_counted(tmp_path, caplog):
  write(tmp_path, 'wmt22/en-ja/train.tsv', 'one\t', '\t二', 'three\t三', ' \t ')
  assert read(tmp_path, 'train') == [('three', '三')]
  assert 'Skipped 3 pairs with an empty side' in caplog.text


def test_malformed_training_lines_are_an_error_unless_allowed(tmp_path):
  write(tmp_path, 'wmt22/en-ja/train.tsv', 'one\t一', 'two,二')
  with pytest.raises(ValueError, match=r'train\.tsv, line 2: 1 tab-separated columns'):
    read(tmp_path, 'train')
  assert read(tmp_path, 'train', malformed='skip') == [('one', '一')]


def test_a_file_without_any_pair_is_an_error(tmp_path):
  write(tmp_path, 'wmt22/en-ja/train.tsv', 'one\t')
  with pytest.raises(ValueError, match=r'train\.tsv has no pair for split train of wmt22_en_ja'):
    read(tmp_path, 'train')


def test_json_lines_with_the_names_of_tfds_are_read_too(tmp_path):
  lines = [json.dumps({'ja': '一', 'en': 'one'}), json.dumps({'ja': '二', 'en': 'two'})]
  write(tmp_path, 'wmt22_translate/en-ja/test.jsonl', *lines)
  assert read(tmp_path, 'test') == [('one', '一'), ('two', '二')]
  with pytest.raises(FileNotFoundError):  # it cannot be told that it is this one
    read(tmp_path, 'test', reference='B')
  write(tmp_path, 'wmt22_translate/en-ja/test.jsonl', *lines, json.dumps({'ja': '', 'en': 'x'}))
  with pytest.raises(ValueError, match=r'test\.jsonl, row 2 .* a side of the pair is empty'):
    read(tmp_path, 'test')


def test_a_directory_that_tfds_has_prepared_is_found_after_local_files(tmp_path):
  prepared = tmp_path / 'tfds' / 'wmt22_translate' / 'en-ja' / '1.0.0'
  write(prepared, 'dataset_info.json', '{}')
  task = wmt22.task('en-ja', Sources(tmp_path, tmp_path / 'tfds'))
  assert task.origin.location('train') == task.origin.location('test') == str(prepared)
  file = write(tmp_path, 'wmt22/en-ja/train.tsv', 'one\t一')
  assert task.origin.location('train') == str(file)


def test_missing_files_are_one_error_that_names_every_place_and_the_archive(tmp_path):
  with pytest.raises(FileNotFoundError) as caught:
    read(tmp_path, 'validation')
  message = str(caught.value)
  for part in (
    'split validation of wmt22_en_ja with reference A',
    str(tmp_path),
    'newstest2021.en-ja.src.en with newstest2021.en-ja.ref.A.ja',
    'newstest2021.en-ja.xml',
    'newstest2021-enja-src.en.sgm with newstest2021-enja-ref.ja.sgm',
    f'{tmp_path}/no_tfds/wmt22_translate/en-ja/1.0.0',
    'test.tgz',
    'data_dir',
    'nothing can be downloaded',
  ):
    assert part in message
  assert '\n' not in message
  with pytest.raises(FileNotFoundError, match=r'train\*\.tsv\[\.gz\] or train\.en with train\.ja'):
    read(tmp_path, 'train')


def test_missing_data_is_an_error_before_tensorflow_or_the_network_is_touched(tmp_path):
  code = f"""
import socket, sys
def refuse(*_): raise AssertionError('network')
socket.socket.connect = socket.getaddrinfo = refuse
from cascades.tasks import wmt22
from cascades.tasks.sources import Sources
task = wmt22.task('en-ru', Sources({str(tmp_path)!r}, {str(tmp_path)!r}, allow_download=True))
for split in task.splits:
  try: task.rows(split)
  except FileNotFoundError as error: print(error)
assert 'tensorflow' not in sys.modules
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.count('No rows for split') == 4


def test_the_fingerprint_follows_the_content_the_direction_and_the_reference(tmp_path):
  def fingerprint(pair='en-ja', reference='A', split='train'):
    return wmt22.task(pair, places(tmp_path), reference=reference).fingerprint(split)

  write(tmp_path, 'wmt22/en-ja/train.tsv', 'one\t一')
  first = fingerprint()
  assert first == fingerprint()
  write(tmp_path, 'wmt22/en-ja/train.tsv', 'one\t二')
  assert len({first, fingerprint(), fingerprint('ja-en'), fingerprint(reference='B')}) == 4


# Of the official text files: both sets' segments and distinct sources, and their references.
COUNTS = {
  'en-ja': ((1000, 1000, 'A'), (2037, 1915, 'A')),
  'en-ru': ((1002, 1002, 'AB'), (2037, 1915, 'A')),
  'en-zh': ((1002, 1002, 'AB'), (2037, 1915, 'AB')),
  'ja-en': ((1005, 1005, 'A'), (2008, 1955, 'A')),
  'ru-en': ((1000, 1000, 'AB'), (2016, 2011, 'A')),
  'zh-en': ((1948, 1948, 'A'), (1875, 1871, 'AB')),
}


@pytest.mark.parametrize('pair', DIRECTIONS)
@pytest.mark.parametrize(('split', 'which'), [('validation', 0), ('test', 1)])
def test_real_sets_have_the_published_counts_and_references(real_data, caplog, pair, split, which):
  count, distinct, references = COUNTS[pair][which]
  targets = {}
  for reference in references:
    task = wmt22.task(pair, places(real_data / 'wmt'), reference=reference)
    rows = list(task.rows(split))
    assert len(rows) == len({row.id for row in rows}) == count
    assert len({row.inputs for row in rows}) == distinct
    assert all(row.inputs.split(': ', 1)[1].strip() and row.targets.strip() for row in rows)
    targets[reference] = [row.targets for row in rows]
  assert len({tuple(texts) for texts in targets.values()}) == len(references)
  assert 'published' not in caplog.text
  for reference in set('ABC') - set(references):
    with pytest.raises(FileNotFoundError):
      wmt22.task(pair, places(real_data / 'wmt'), reference=reference).rows(split)


@pytest.mark.parametrize(
  ('pair', 'count'), [('en-ja', 18_920), ('en-ru', 22_111), ('en-zh', 24_491)]
)
def test_real_training_pairs_read_in_both_directions(real_data, tmp_path, pair, count):
  (tmp_path / 'wmt22' / pair).mkdir(parents=True)
  file = real_data / 'mt_libreoffice_help' / f'{pair}.tsv'
  (tmp_path / 'wmt22' / pair / 'train.tsv').symlink_to(file)
  forth = read(tmp_path, 'train', pair=pair)
  back = read(tmp_path, 'train', pair='-'.join(reversed(pair.split('-'))))
  assert len(forth) == count
  assert back == [(b, a) for a, b in forth]
