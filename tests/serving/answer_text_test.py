"""Growing texts: the pieces joined are what the vocabulary decodes, for any tokens."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascades.serving.answer_text import Detokenizer, StopTexts
from cascades.tokenizers import train_sentencepiece, vocabularies
from tests import real_data
from tests.tokenizers.huggingface_test import _folder, byte_level

TEXTS = ['Two boats left  the harbour.', '  船は夜明け前に港を出た。', 'лодки ушли\n\n в ночь 🛶🛶']
KINDS = ('bytes', 'symbols', 'sentencepiece', 'byte level')
REAL = ('albert_30k.spiece.model', 'llama2_32k.tokenizer.json')


@pytest.fixture(scope='module')
def kinds(tmp_path_factory):
  directory = tmp_path_factory.mktemp('kinds')
  train_sentencepiece.train_sentencepiece(TEXTS * 5, directory / 'model', size=300)
  options = {'tokenizer_config': {'eos_token': '<|end|>'}}
  return {
    'bytes': vocabularies.bytes_vocabulary(2),
    'symbols': vocabularies.symbols(['a', 'b', 'AH0']),
    'sentencepiece': vocabularies.sentencepiece(directory / 'model'),
    'byte level': vocabularies.huggingface(_folder(directory, byte_level(), **options)),
  }


def pieces(vocabulary, tokens):
  text = Detokenizer(vocabulary)
  return [*map(text.add, tokens), text.finish()]


@pytest.mark.parametrize('kind', KINDS)
def test_a_text_grows_token_by_token(kinds, kind):
  vocabulary = kinds[kind]
  for text in TEXTS if kind != 'symbols' else ['a b AH0 a']:
    tokens = vocabulary.encode(text)
    grown = pieces(vocabulary, tokens)
    assert ''.join(grown) == vocabulary.decode(tokens)
    assert '\ufffd' not in ''.join(grown)
    assert sum(map(bool, grown)) > len(tokens) / 5, 'text should not wait for the end'


@pytest.mark.parametrize('kind', KINDS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_tokens_give_what_the_vocabulary_decodes(kinds, kind, data):
  vocabulary = kinds[kind]
  alive = [token for token in range(vocabulary.size + 3) if token not in vocabulary.eos_ids]
  spaces = [token for token in alive if not vocabulary.token_bytes(token).strip()][:8]
  token = st.one_of(st.sampled_from(alive), st.sampled_from(spaces))
  tokens = data.draw(st.lists(token, max_size=14))
  assert ''.join(pieces(vocabulary, tokens)) == vocabulary.decode(tokens)


@pytest.mark.parametrize('name', REAL)
def test_texts_of_real_tokenizers_grow_alike(name):
  path = real_data.real(f'tokenizers/{name}')
  vocabulary = (
    vocabularies.sentencepiece(path, eos=['[SEP]'])
    if path.suffix == '.model'
    else vocabularies.huggingface(path, eos=['</s>'])
  )
  spaces = [t for t in range(vocabulary.size) if not vocabulary.token_bytes(t).strip()][:20]
  alive = [*range(3, vocabulary.size), *spaces * 300]
  rng = random.Random(0)
  for text in TEXTS:
    tokens = vocabulary.encode(text)
    assert ''.join(pieces(vocabulary, tokens)) == vocabulary.decode(tokens)
  for _ in range(300):
    tokens = rng.choices(alive, k=8)
    tokens = [token for token in tokens if token not in vocabulary.eos_ids]
    assert ''.join(pieces(vocabulary, tokens)) == vocabulary.decode(tokens), tokens


@pytest.mark.parametrize('kind', KINDS)
def test_the_bytes_of_the_tokens_are_those_of_the_text(kinds, kind):
  vocabulary = kinds[kind]
  for text in TEXTS:
    if kind == 'symbols':
      text = 'a b AH0'
    joined = b''.join(map(vocabulary.token_bytes, vocabulary.encode(text)))
    expected = text.replace(' ', '') if kind == 'symbols' else text
    assert joined.decode() in (expected, f' {expected}')  # SentencePiece puts a space in front
  assert vocabulary.token_bytes(vocabulary.eos_id) == b''
  assert vocabulary.token_bytes(10**6) == b''


@settings(deadline=None, max_examples=60)
@given(
  text=st.text('ab#', max_size=12),
  stop=st.lists(st.text('ab#', min_size=1, max_size=4), max_size=3),
  data=st.data(),
)
def test_an_answer_ends_before_the_first_stop_text(text, stop, data):
  cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
  stops, grown = StopTexts(stop), ''
  for begin, end in itertools.pairwise(cuts):
    grown += stops.add(text[begin:end])
    assert not any(end in grown for end in stop)
    if stops.reached:
      break
  # The text that is complete first, and of those the one that begins first.
  ends = [(text.find(end) + len(end)) for end in stop if end in text]
  if not ends:
    assert not stops.reached
    assert grown + stops.finish() == text
  else:
    assert stops.reached
    assert any(text.startswith(grown + end) for end in stop)
