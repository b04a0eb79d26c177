import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.tokenizers import train_sentencepiece, vocabularies

TEXTS = [
  'Two boats left the harbour before dawn.',
  'The second line\nstarts here,  after two spaces.',
  'Лодки вышли из гавани до рассвета.',
  '船は夜明け前に港を出た。',
]
MARK = '\u2581'  # SentencePiece's own mark of a space


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('model') / 'tiny.model'
  train_sentencepiece.train_sentencepiece(TEXTS * 5, path, size=310)
  return path


@pytest.fixture(scope='module')
def every_kind(model):
  return [
    vocabularies.bytes_vocabulary(),
    vocabularies.bytes_vocabulary(extra_ids=7),
    vocabularies.symbols(['a', 'b', 'AH0']),
    vocabularies.sentencepiece(model, extra_ids=5),
  ]


def test_bytes_are_counted_from_three():
  vocabulary = vocabularies.bytes_vocabulary()
  assert vocabulary.encode('aé') == [97 + 3, 0xC3 + 3, 0xA9 + 3]
  assert vocabulary.decode([100, 198, 172]) == 'aé'
  assert vocabulary.size == 259
  assert vocabularies.bytes_vocabulary(100).size == 359


def test_symbols_are_counted_from_three():
  vocabulary = vocabularies.symbols(['h', 'HH', 'AH0'])
  assert vocabulary.encode('h AH0  HH\n') == [3, 5, 4]
  assert vocabulary.decode([4, 5]) == 'HH AH0'
  assert vocabulary.size == 6


def test_an_unknown_symbol_is_unknown():
  vocabulary = vocabularies.symbols(['a'])
  assert vocabulary.encode('a b') == [3, 2]
  assert vocabulary.decode([3, 2]) == 'a <unk>'


def test_only_ascii_white_space_separates_symbols():
  assert vocabularies.symbols(['a', 'a\u2028b']).encode('a\u2028b\x0ba') == [4, 3]


def test_all_kinds_share_their_special_ids(every_kind):
  for vocabulary in every_kind:
    ids = (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.bos_id)
    assert ids == (0, 1, 2, 0)


def test_decoding_stops_at_the_end_of_sequence_and_drops_padding(every_kind):
  for vocabulary in every_kind:
    ids = vocabulary.encode('a b')
    assert vocabulary.decode([0, *ids, 0, 1, *ids]) == vocabulary.decode(ids)
    assert vocabulary.decode([1, *ids]) == ''
    assert vocabulary.decode([]) == ''


def test_ids_beyond_the_vocabulary_decode_as_unknown(every_kind):
  # A model's table is rounded up, so that it may choose an id that stands for nothing.
  for vocabulary in every_kind:
    ids = vocabulary.encode('a')
    assert vocabulary.decode([*ids, vocabulary.size + 3]) == vocabulary.decode([*ids, 2])


@given(st.text())
def test_bytes_spell_every_text(text):
  vocabulary = vocabularies.bytes_vocabulary()
  assert vocabulary.decode(vocabulary.encode(text)) == text


@given(text=st.text())
def test_sentencepiece_spells_every_text(model, text):
  vocabulary = vocabularies.sentencepiece(model)
  ids = vocabulary.encode(text)
  assert vocabulary.unk_id not in ids
  assert vocabulary.decode(ids) == text.replace(MARK, ' ')


@pytest.mark.parametrize(
  'text',
  [
    '\n',
    'a\n\nb\n',
    '  two  spaces  ',
    '\t\r\n',
    'Привет, мир',
    '日本語。',
    '☃ 🦜 ﬁ',
    ' lead',
    '\x00',
  ],
)
def test_newlines_spaces_and_rare_scripts_survive_sentencepiece(model, text):
  vocabulary = vocabularies.sentencepiece(model)
  assert vocabulary.decode(vocabulary.encode(text)) == text


@given(st.lists(st.sampled_from(['a', 'b', 'AH0']), max_size=8))
def test_symbols_spell_every_sequence_of_them(names):
  vocabulary = vocabularies.symbols(['a', 'b', 'AH0'])
  assert vocabulary.decode(vocabulary.encode(' '.join(names))) == ' '.join(names)


def test_extra_ids_count_down_from_the_end(model):
  plain = vocabularies.sentencepiece(model, extra_ids=0)
  vocabulary = vocabularies.sentencepiece(model, extra_ids=5)
  assert vocabulary.size == plain.size + 5 == 315
  assert vocabulary.encode('<extra_id_0>') == [vocabulary.size - 1]
  assert vocabulary.encode('<extra_id_4>') == [vocabulary.size - 5]
  assert vocabulary.decode([vocabulary.size - 1]) == '<extra_id_0>'
  assert vocabulary.encode('The boats') == plain.encode('The boats')


@pytest.mark.parametrize('content', [b'', b'garbage ' * 20, b'\x00' * 64])
def test_a_garbage_model_fails_when_it_is_opened(tmp_path, content):
  path = tmp_path / 'wrong.model'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r'wrong\.model is not a SentencePiece model. Train one'):
    vocabularies.sentencepiece(path)


def test_half_a_model_fails_when_it_is_opened(model, tmp_path):
  path = tmp_path / 'half.model'
  path.write_bytes(model.read_bytes()[:-7])
  with pytest.raises(ValueError, match=r'half\.model is not a SentencePiece model'):
    vocabularies.sentencepiece(path)


def test_a_missing_model_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'No SentencePiece model at .*none\.model'):
    vocabularies.sentencepiece(tmp_path / 'none.model')


def test_a_model_without_an_end_of_sequence_needs_to_be_told_one(real_data):
  albert = real_data / 'tokenizers' / 'albert_30k.spiece.model'
  with pytest.raises(ValueError, match='defines no end of sequence: give one as eos'):
    vocabularies.sentencepiece(albert)
  vocabulary = vocabularies.sentencepiece(albert, eos=('[SEP]',))
  assert (vocabulary.pad_id, vocabulary.eos_ids, vocabulary.unk_id) == (0, (3,), 1)
  assert (vocabulary.size, vocabulary.extra_ids) == (30_000, 0)
  assert vocabulary.decode([*vocabulary.encode('two boats'), 3, 5]) == 'two boats'
  with pytest.raises(ValueError, match=r"has no piece '</s>', which should end an answer"):
    vocabularies.sentencepiece(albert, eos=('</s>',))


@pytest.mark.parametrize('names', [[], [''], ['a b'], ['a', 'b\n']])
def test_what_is_no_symbol_is_refused(names):
  with pytest.raises(ValueError, match='A symbol is a non-empty string without white space'):
    vocabularies.symbols(names)


def test_a_repeated_symbol_is_named():
  with pytest.raises(ValueError, match='repeated: b'):
    vocabularies.symbols(['a', 'b', 'b', 'c'])


def test_a_saved_vocabulary_loads_as_the_same(every_kind, tmp_path):
  for number, vocabulary in enumerate(every_kind):
    folder = tmp_path / str(number)
    vocabularies.save(vocabulary, folder)
    loaded = vocabularies.load(folder)
    assert loaded == vocabulary
    assert loaded.fingerprint == vocabulary.fingerprint
    assert loaded.encode('a b') == vocabulary.encode('a b')


def test_saving_leaves_no_temporary_file(every_kind, tmp_path):
  vocabularies.save(every_kind[-1], tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'sentencepiece.model',
    'vocabulary.json',
  ]


def test_descriptions_are_json_and_say_the_kind(every_kind):
  descriptions = [json.loads(json.dumps(vocabulary.describe())) for vocabulary in every_kind]
  assert descriptions == [vocabulary.describe() for vocabulary in every_kind]
  assert [description['kind'] for description in descriptions] == [
    *('bytes', 'bytes', 'symbols', 'sentencepiece')
  ]


def test_fingerprints_differ_exactly_when_contents_do(every_kind, model, tmp_path):
  assert len({vocabulary.fingerprint for vocabulary in every_kind}) == len(every_kind)
  copy = tmp_path / 'elsewhere.model'
  copy.write_bytes(model.read_bytes())
  assert vocabularies.sentencepiece(copy, extra_ids=5) == every_kind[-1]
  assert vocabularies.symbols(['b', 'a']) != vocabularies.symbols(['a', 'b'])


def test_a_swapped_model_file_is_noticed(every_kind, model, tmp_path):
  vocabularies.save(every_kind[-1], tmp_path)
  train_sentencepiece.train_sentencepiece(
    TEXTS * 5, tmp_path / 'sentencepiece.model', size=330, model_type='bpe'
  )
  with pytest.raises(ValueError, match='is not the model that was saved'):
    vocabularies.load(tmp_path)


def test_a_folder_without_a_vocabulary_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'vocabulary\.json is missing'):
    vocabularies.load(tmp_path)


def test_an_unknown_kind_is_named(tmp_path):
  with pytest.raises(ValueError, match="kind 'words' is not one of bytes, symbols, sent"):
    vocabularies.from_description({'kind': 'words'}, tmp_path)


@pytest.mark.parametrize(
  'content',
  ['', '[]', 'null', '{"kind": "bytes"}', '{"kind": "bytes", "extra_ids": "x"}',
   '{"kind": "bytes", "extra_ids": 99999999999}', '{"kind": "symbols", "names": [7]}'],
)  # fmt: skip
def test_a_damaged_description_is_named(content, tmp_path):
  (tmp_path / 'vocabulary.json').write_text(content)
  with pytest.raises(ValueError, match=r'vocabulary\.json is damaged'):
    vocabularies.load(tmp_path)
