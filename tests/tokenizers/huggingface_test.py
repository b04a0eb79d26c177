from __future__ import annotations

import json
import pathlib
import pickle

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from cascades.tokenizers import vocabularies

TEXTS = [
  'Two boats left the harbour before dawn.',
  "The second line\nstarts here,  after two spaces; it's 2022.",
  'Лодки вышли из гавани до рассвета.',
  '船は夜明け前に港を出た。',
]
SPECIAL = ['<unk>', '<s>', '</s>', '<pad>', '<|end|>']


def byte_level(*, texts=TEXTS, size=330, special=SPECIAL, digits=False) -> tokenizers.Tokenizer:
  """A tiny tokenizer of the kind that GPT-2 introduced."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  cuts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
  last = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, last])
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  tokenizer.train_from_iterator(
    texts * 5,
    trainers.BpeTrainer(
      vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    ),
  )
  return tokenizer


@pytest.fixture(scope='module')
def reference() -> tokenizers.Tokenizer:
  return byte_level()


@pytest.fixture(scope='module')
def folder(reference, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('model')
  reference.save(str(folder / 'tokenizer.json'))
  options = {'pad_token': '<pad>', 'bos_token': {'content': '<s>'}, 'eos_token': '</s>'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(options))
  return folder


@pytest.fixture(scope='module')
def vocabulary(folder):
  return vocabularies.huggingface(folder)


def _folder(path, tokenizer, **options):
  tokenizer.save(str(path / 'tokenizer.json'))
  for name, content in options.items():
    (path / f'{name}.json').write_text(json.dumps(content))
  return path


def _starting(reference) -> tokenizers.Tokenizer:
  copy = tokenizers.Tokenizer.from_str(reference.to_str())
  copy.post_processor = processors.TemplateProcessing(
    single='<s> $A </s>', special_tokens=[('<s>', 1), ('</s>', 2)]
  )
  return copy


@given(text=st.text())
def test_every_text_is_encoded_and_spelled_as_the_library_does(vocabulary, reference, text):
  ids = vocabulary.encode(text)
  assert ids == reference.encode(text, add_special_tokens=False).ids
  assert [actual.tolist() for actual in vocabulary.encode_all([text, text])] == [ids, ids]
  assert vocabulary.decode(ids) == text or any(token in text for token in SPECIAL)


def test_special_tokens_come_from_the_folder(vocabulary):
  assert (vocabulary.pad_id, vocabulary.eos_ids, vocabulary.eos_id) == (3, (2,), 2)
  assert vocabulary.bos_id is None  # the tokenizer itself puts nothing before a text
  assert vocabulary.size == 330


def test_what_the_tokenizer_puts_before_a_text_is_the_beginning(reference, tmp_path):
  starting = _starting(reference)
  vocabulary = vocabularies.huggingface(_folder(tmp_path, starting))
  assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (1, 2, 2)
  assert vocabulary.encode('boats') == reference.encode('boats').ids
  options = {'add_bos_token': False, 'eos_token': '</s>'}
  again = vocabularies.huggingface(_folder(tmp_path, starting, tokenizer_config=options))
  assert again.bos_id == 1  # as in transformers 5, the template alone says it
  assert vocabularies.huggingface(tmp_path, bos='').bos_id is None


def test_a_configuration_alone_asks_for_no_beginning(reference, tmp_path):
  options = {'add_bos_token': True, 'bos_token': '<s>', 'eos_token': '</s>'}
  vocabulary = vocabularies.huggingface(_folder(tmp_path, reference, tokenizer_config=options))
  assert vocabulary.bos_id is None


def test_a_class_may_be_left_open(reference, tmp_path):
  options = {'tokenizer_class': None, 'eos_token': '</s>'}
  vocabulary = vocabularies.huggingface(_folder(tmp_path, reference, tokenizer_config=options))
  assert vocabulary.eos_ids == (2,)


def test_tokens_that_the_model_has_no_row_for_are_not_in_its_vocabulary(reference, tmp_path):
  longer = tokenizers.Tokenizer.from_str(reference.to_str())
  longer.add_special_tokens(['<more>', '<image>'])
  told = {
    'tokenizer_config': {'eos_token': '</s>'},
    'special_tokens_map': {'image_token': '<image>'},
  }
  actual = {}
  for size in (331, 400, None):  # tables of a model that reads text, of one with eyes, and not said
    (folder := tmp_path / str(size)).mkdir()
    actual[size] = vocabularies.huggingface(
      _folder(folder, longer, config={'vocab_size': size}, **told)
    )
    assert actual[size].size == 331
    assert 330 in actual[size].encode('a <more>')
    ids = actual[size].encode('a <image>')
    assert max(ids) < 330
    assert actual[size].decode(ids) == 'a <image>'
  assert actual[331].fingerprint == actual[400].fingerprint == actual[None].fingerprint
  vocabularies.save(actual[331], tmp_path)
  assert vocabularies.load(tmp_path).size == 331

  (tmp_path / '331' / 'special_tokens_map.json').unlink()
  assert vocabularies.huggingface(tmp_path / '331') == actual[331]
  (tmp_path / '331' / 'config.json').write_text('{"vocab_size": 330}')
  assert vocabularies.huggingface(tmp_path / '331').size == 330
  with pytest.raises(ValueError, match="no token '<more>' within the vocab_size"):
    vocabularies.huggingface(tmp_path / '331', eos=['<more>'])


@pytest.mark.parametrize(
  'options',
  [
    {'tokenizer_config': {'tokenizer_class': 'T5Tokenizer', 'pad_token': '<pad>'}},
    {'config': {'decoder_start_token_id': 3, 'pad_token_id': 3}},
    {'generation_config': {'decoder_start_token_id': 3, 'pad_token_id': 3}},
  ],
)
def test_an_encoder_decoder_starts_from_what_its_configuration_says(options, reference, tmp_path):
  vocabulary = vocabularies.huggingface(_folder(tmp_path, _starting(reference), **options))
  assert (vocabulary.bos_id, vocabulary.pad_id) == (3, 3)


def test_a_chat_model_ends_in_several_ways(reference, tmp_path):
  options = {
    'tokenizer_config': {'eos_token': '<|end|>', 'pad_token': None},
    'generation_config': {'eos_token_id': [2, 4], 'pad_token_id': 3},
  }
  vocabulary = vocabularies.huggingface(_folder(tmp_path, reference, **options))
  assert (vocabulary.eos_ids, vocabulary.eos_id, vocabulary.pad_id) == ((4, 2), 4, 3)
  boats, dawn = vocabulary.encode('boats'), vocabulary.encode('dawn')
  for end in (2, 4):
    assert vocabulary.decode([3, *boats, end, *dawn]) == 'boats'


def test_arguments_come_before_the_folder(folder):
  vocabulary = vocabularies.huggingface(folder, pad='<unk>', eos=('<|end|>', '</s>'), bos='<s>')
  assert (vocabulary.pad_id, vocabulary.eos_ids, vocabulary.bos_id) == (0, (4, 2), 1)
  assert vocabularies.huggingface(folder, bos='').bos_id is None
  with pytest.raises(ValueError, match=r"tokenizer\.json has no token '<eos>'"):
    vocabularies.huggingface(folder, eos=('<eos>',))


def test_without_an_end_of_sequence_there_is_no_vocabulary(reference, tmp_path):
  with pytest.raises(ValueError, match='name no end of sequence: give it as eos'):
    vocabularies.huggingface(_folder(tmp_path, reference))


def test_a_file_is_read_with_what_stands_beside_it(folder, vocabulary):
  assert vocabularies.huggingface(folder / 'tokenizer.json') == vocabulary


def test_limits_for_one_use_of_a_model_do_not_cut_texts(reference, vocabulary, folder, tmp_path):
  limited = tokenizers.Tokenizer.from_str(reference.to_str())
  limited.enable_truncation(4)
  limited.enable_padding(length=16)
  options = json.loads((folder / 'tokenizer_config.json').read_text())
  actual = vocabularies.huggingface(_folder(tmp_path, limited, tokenizer_config=options))
  assert actual.encode(TEXTS[0]) == vocabulary.encode(TEXTS[0])
  assert actual == vocabulary


def test_special_tokens_in_a_text_are_recognized_and_shown(vocabulary):
  ids = vocabulary.encode('<s>boats<|end|>')
  assert (ids[0], ids[-1]) == (1, 4)
  assert vocabulary.decode(ids) == '<s>boats<|end|>'


def test_ids_that_stand_for_nothing_are_dropped(vocabulary):
  ids = vocabulary.encode('boats')
  assert vocabulary.decode([*ids, vocabulary.size, vocabulary.size + 7]) == 'boats'


def test_a_saved_vocabulary_loads_as_the_same(vocabulary, tmp_path):
  vocabularies.save(vocabulary, tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['tokenizer.json', 'vocabulary.json']
  loaded = vocabularies.load(tmp_path)
  assert loaded == vocabulary
  assert (loaded.pad_id, loaded.eos_ids, loaded.bos_id) == (3, (2,), None)
  assert loaded.encode(TEXTS[1]) == vocabulary.encode(TEXTS[1])


def test_what_was_saved_is_readable_without_us(vocabulary, reference, tmp_path):
  vocabularies.save(vocabulary, tmp_path)
  again = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  assert again.encode(TEXTS[2]).ids == reference.encode(TEXTS[2]).ids


def test_a_swapped_tokenizer_is_noticed(vocabulary, tmp_path):
  vocabularies.save(vocabulary, tmp_path)
  byte_level(size=300).save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(ValueError, match=r'tokenizer\.json in .* is not the model that was saved'):
    vocabularies.load(tmp_path)


def test_fingerprints_know_content_and_special_ids_but_not_spacing(folder, vocabulary, tmp_path):
  options = json.loads((folder / 'tokenizer_config.json').read_text())
  content = json.loads((folder / 'tokenizer.json').read_text())
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content, indent=7))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(options))
  assert vocabularies.huggingface(tmp_path) == vocabulary
  assert vocabularies.huggingface(folder, bos='<s>') != vocabulary
  assert vocabularies.huggingface(folder, eos=('</s>', '<|end|>')) != vocabulary


def test_processes_that_tokenize_build_one_tokenizer(vocabulary):
  first, second = (pickle.loads(pickle.dumps(vocabulary)) for _ in range(2))
  assert first is second
  assert first == vocabulary
  assert first.encode(TEXTS[3]) == vocabulary.encode(TEXTS[3])


@pytest.mark.parametrize('content', ['', 'garbage', '[]', '{"model": 3}', '{}'])
def test_a_garbage_tokenizer_is_named(content, tmp_path):
  (tmp_path / 'tokenizer.json').write_text(content)
  with pytest.raises(ValueError, match=r'tokenizer\.json is not a tokenizer\.json of Hugging Face'):
    vocabularies.huggingface(tmp_path)


@pytest.mark.parametrize(
  ('section', 'key', 'value'),
  [
    (None, 'added_tokens', [{'id': 'x'}]),
    (None, 'added_tokens', 7),
    (None, 'added_tokens', [None]),
    (None, 'model', None),
    ('model', 'vocab', []),
    ('model', 'merges', [['a']]),
    ('model', 'continuing_subword_prefix', 'x'),  # ends the process in the library itself
    ('pre_tokenizer', 'pretokenizers', 7),
    ('post_processor', 'single', []),
    ('post_processor', 'special_tokens', {}),  # a panic of the library
  ],
)
def test_a_tokenizer_with_a_damaged_part_is_named(section, key, value, reference, tmp_path):
  content = json.loads(_starting(reference).to_str())
  (content[section] if section else content)[key] = value
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  (tmp_path / 'tokenizer_config.json').write_text('{"eos_token": "</s>"}')
  with pytest.raises(ValueError, match=r'tokenizer\.json (is not a tokenizer|cannot tokenize)'):
    vocabularies.huggingface(tmp_path)


def test_a_folder_without_one_says_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'vocabularies\.sentencepiece'):
    vocabularies.huggingface(tmp_path)


def test_word_pieces_end_with_what_their_tokenizer_appends(tmp_path):
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece({'[UNK]': 0, '[CLS]': 1, '[SEP]': 2, 'two': 3, 'boat': 4, '##s': 5})
  )
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  tokenizer.post_processor = processors.BertProcessing(('[SEP]', 2), ('[CLS]', 1))
  vocabulary = vocabularies.huggingface(_folder(tmp_path, tokenizer))
  assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (1, 2, 0)
  assert vocabulary.encode('two boats sail') == [3, 4, 5, 0]
  assert vocabulary.decode([1, 3, 4, 5, 2, 3]) == 'two boats'
