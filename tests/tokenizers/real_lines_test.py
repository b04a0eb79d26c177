"""Real tokenizers on thousands of real lines in four languages, against the libraries alone."""

import numpy as np
import pytest
import sentencepiece as spm
import tokenizers

from cascades.tokenizers import vocabularies

LINES = {
  'en': 'generaltest2022.en-ru.src.en',
  'ru': 'generaltest2022.ru-en.src.ru',
  'zh': 'generaltest2022.zh-en.src.zh',
  'ja': 'generaltest2022.ja-en.src.ja',
}
# Spaces, controls, rare characters and what only looks like a special token.
ODD = [
  '  two',
  ' a  b ',
  '\ttab',
  'a\nb',
  '\U0001f99c \U0001d518\U0001d52b',
  'é e\u0301',
  '<0x41> [SEP] </ s>',
  '',
]


@pytest.fixture(scope='module', params=LINES)
def lines(request, real_data):
  text = (real_data / 'wmt' / LINES[request.param]).read_text()
  loaded = [line for line in text.split('\n') if line]
  assert len(loaded) > 1500
  return loaded


@pytest.fixture(scope='module')
def llama(real_data):
  file = real_data / 'tokenizers' / 'llama2_32k.tokenizer.json'
  created = vocabularies.huggingface(file, pad='<unk>', eos=('</s>',), bos='<s>')
  return created, tokenizers.Tokenizer.from_file(str(file))


@pytest.fixture(scope='module')
def albert(real_data):
  file = real_data / 'tokenizers' / 'albert_30k.spiece.model'
  created = vocabularies.sentencepiece(file, eos=('[SEP]',))
  return created, spm.SentencePieceProcessor(str(file))


def _encoded(vocabulary, lines):
  together = vocabulary.encode_all(lines)
  for line, ids in zip(lines[:100], together, strict=False):
    np.testing.assert_array_equal(ids, vocabulary.encode(line))
  return [ids.tolist() for ids in together]


def test_llamas_tokenizer_says_what_its_library_says_and_every_line_comes_back(llama, lines):
  actual, original = llama
  loaded = _encoded(actual, lines)
  expected = [sample.ids for sample in original.encode_batch(lines, add_special_tokens=False)]
  assert loaded == expected
  assert [actual.decode(ids) for ids in loaded] == lines


def test_alberts_model_says_what_its_library_says(albert, lines):
  actual, original = albert
  loaded = _encoded(actual, lines)
  assert loaded == original.EncodeAsIds(lines)
  assert [actual.decode(ids) for ids in loaded] == original.DecodeIds(loaded)


@pytest.mark.parametrize('text', ODD)
def test_odd_texts_come_back_from_llamas_pieces_and_bytes(llama, text):
  actual, original = llama
  ids = actual.encode(text)
  assert ids == original.encode(text, add_special_tokens=False).ids
  assert actual.decode(ids) == text
  assert actual.unk_id not in ids


def test_special_tokens_of_llama_are_recognized_and_the_first_end_ends(llama):
  actual, _ = llama
  first, *inner, last = actual.encode('<s>yes</s>')
  assert (first, last) == (actual.bos_id, actual.eos_id)
  assert actual.decode([*inner, last, *inner]) == 'yes'
  assert (actual.size, actual.bos_id, actual.eos_ids) == (32_000, 1, (2,))
