from __future__ import annotations

import json

import pytest
import sentencepiece as spm
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from cascades.tokenizers import gguf as gguf_tokenizers
from cascades.tokenizers import vocabularies
from tests.tokenizers.huggingface_test import SPECIAL, TEXTS, byte_level

gguf = pytest.importorskip('gguf', reason='the extra `gguf` is not installed')

CONTROL, USER_DEFINED = gguf_tokenizers.CONTROL, gguf_tokenizers.USER_DEFINED


def _write(path, model, tokens, kinds, *, scores=None, merges=None, pre=None, **options):
  """A GGUF file that holds a tokenizer and no tensors."""
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model(model)
  if pre:
    writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  if scores is not None:
    writer.add_token_scores(scores)
  if merges is not None:
    writer.add_token_merges(merges)
  for name, value in options.items():
    add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
    add(f'tokenizer.ggml.{name}', value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _write_bpe(path, tokenizer, *, pre='smollm', control=SPECIAL, **options):
  content = json.loads(tokenizer.to_str())['model']
  tokens = sorted(content['vocab'], key=content['vocab'].get)
  kinds = [CONTROL if token in control else 1 for token in tokens]
  merges = [' '.join(merge) for merge in content['merges']]
  options = {'eos_token_id': 2} | options
  return _write(path, 'gpt2', tokens, kinds, merges=merges, pre=pre, **options)


@pytest.fixture(scope='module')
def smollm():
  return byte_level(digits=True)


@pytest.fixture(scope='module')
def rebuilt(smollm, tmp_path_factory):
  path = tmp_path_factory.mktemp('gguf') / 'bpe.gguf'
  return vocabularies.gguf(_write_bpe(path, smollm, padding_token_id=3, bos_token_id=1))


@given(text=st.text() | st.sampled_from(['2022  12 a 3.14', '½ ²', 'a\n\n b', '  x']))
def test_byte_level_bpe_encodes_as_what_it_was_written_from(rebuilt, smollm, text):
  ids = rebuilt.encode(text)
  assert ids == smollm.encode(text).ids
  assert rebuilt.decode(ids) == text or any(token in text for token in SPECIAL)


def test_special_ids_come_from_the_file(rebuilt):
  assert (rebuilt.pad_id, rebuilt.eos_ids, rebuilt.bos_id) == (3, (2,), None)
  assert rebuilt.encode('boats<|end|>')[-1] == 4


def test_turns_and_messages_end_an_answer_too(smollm, tmp_path):
  path = _write_bpe(tmp_path / 'm.gguf', smollm, eot_token_id=4, eom_token_id=2)
  vocabulary = vocabularies.gguf(path)
  assert (vocabulary.eos_ids, vocabulary.pad_id) == ((2, 4), 2)


def test_a_beginning_is_added_if_the_file_says_so(smollm, tmp_path):
  def start(pre, **options):
    path = _write_bpe(tmp_path / 'm.gguf', smollm, pre=pre, bos_token_id=1, **options)
    return vocabularies.gguf(path).bos_id

  assert start('smollm', add_bos_token=True) == 1
  assert start('smollm') is None
  assert start('llama-bpe') == 1
  assert start('llama-bpe', add_bos_token=False) is None


@pytest.mark.parametrize(
  ('pre', 'text', 'sections'),
  [
    ('gpt-2', "it's 2022  1", ['it', "'s", ' 2022', ' ', ' 1']),
    ('smollm', "it's 2022  1", ['it', "'s", ' ', '2', '0', '2', '2', '  ', '1']),
    ('llama-bpe', "IT'S 20221\n\nx", ['IT', "'S", ' ', '202', '21', '\n\n', 'x']),
    ('qwen2', "IT'S 22\n\nx", ['IT', "'S", ' ', '2', '2', '\n\n', 'x']),
  ],
)
def test_text_is_cut_as_the_file_says_before_merging(pre, text, sections, smollm, tmp_path):
  vocabulary = vocabularies.gguf(_write_bpe(tmp_path / 'm.gguf', smollm, pre=pre))
  cuts = vocabulary._tokenizer.pre_tokenizer.pre_tokenize_str(text)
  assert [text[start:end] for _, (start, end) in cuts] == sections


def test_qwen_composes_characters_and_others_do_not(smollm, tmp_path):
  apart = 'e\u0301'
  for pre, expected in (('qwen2', '\u00e9'), ('gpt-2', apart)):
    vocabulary = vocabularies.gguf(_write_bpe(tmp_path / 'm.gguf', smollm, pre=pre))
    assert vocabulary.decode(vocabulary.encode(apart)) == expected


@pytest.mark.parametrize('pre', [None, 'default'])
def test_a_file_that_does_not_say_how_to_split_is_refused(pre, smollm, tmp_path):
  path = _write_bpe(tmp_path / 'm.gguf', smollm, pre=pre)
  with pytest.raises(ValueError, match=r'does not say how to split .* --pre-tokenizer NAME'):
    vocabularies.gguf(path)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'merges': ['a']}, r"merges 'a' .* no pair"),
    ({'tokens': ['a', 'b', 'a']}, "has the token 'a' 2 times"),
    ({'kinds': [1]}, 'has 3 tokens, and types of 1'),
    ({'eos_token_id': 3}, 'has 3 tokens, and tokenizer.ggml.eos_token_id is 3'),
    ({'bos_token_id': 2**32 - 1}, 'has 3 tokens, and tokenizer.ggml.bos_token_id is 4294967295'),
    ({'merges': ['a c']}, 'damaged tokenizer'),
    ({'model': 'llama', 'scores': [0.0]}, 'has 3 tokens, and scores of 1'),
    ({'model': 'llama', 'scores': [0.0] * 3, 'unknown_token_id': 7}, 'unknown_token_id is 7'),
    ({'tokens': [1, 2, 3]}, 'tokenizer'),
  ],
)
def test_a_damaged_tokenizer_is_named(change, message, tmp_path):
  whole = {'model': 'gpt2', 'tokens': ['a', 'b', 'ab'], 'kinds': [1, 1, 1], 'merges': ['a b']}
  path = tmp_path / 'm.gguf'
  with pytest.raises(ValueError, match=message) as raised:
    vocabularies.gguf(_write(path, pre='gpt-2', **{**whole, 'eos_token_id': 0, **change}))
  assert 'm.gguf' in str(raised.value)


def test_names_of_one_split_split_alike(smollm, tmp_path):
  def cuts(pre):
    path = _write_bpe(tmp_path / f'{pre}.gguf', smollm, pre=pre)
    return vocabularies.gguf(path)._tokenizer.pre_tokenizer.pre_tokenize_str("IT'S 20221\n\n !!\n")

  assert cuts('llama3') == cuts('llama-v3') == cuts('llama-bpe') != cuts('gpt-2')
  assert cuts('phi-2') == cuts('gpt-2')
  assert cuts('deepseek-r1-qwen') == cuts('qwen2') != cuts('llama-bpe')


def test_unknown_kinds_and_cuts_are_named(smollm, tmp_path):
  with pytest.raises(
    ValueError, match=r"splits text as 'tekken' .* gpt-2, phi-2, smollm, llama-bpe"
  ):
    vocabularies.gguf(_write_bpe(tmp_path / 'm.gguf', smollm, pre='tekken'))
  path = _write(tmp_path / 'n.gguf', 'bert', ['a'], [1], eos_token_id=0)
  with pytest.raises(ValueError, match="tokenizer of type 'bert'; supported are gpt2"):
    vocabularies.gguf(path)


def test_a_file_without_an_end_of_sequence_is_refused(tmp_path):
  path = _write(tmp_path / 'm.gguf', 'gpt2', ['a'], [1], merges=['a a'])
  with pytest.raises(ValueError, match=r'names no end of sequence'):
    vocabularies.gguf(path)


@pytest.fixture(scope='module')
def gemma(tmp_path_factory):
  """A tiny model with Gemma's special ids, spaces and bytes."""
  prefix = tmp_path_factory.mktemp('spm') / 'gemma'
  spm.SentencePieceTrainer.Train(
    sentence_iterator=iter(TEXTS * 5),
    model_prefix=str(prefix),
    vocab_size=420,
    model_type='bpe',
    byte_fallback=True,
    character_coverage=0.99,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    user_defined_symbols=['<start_of_turn>', '<end_of_turn>', '\n', '\n\n', '▁▁', '▁▁▁'],
    normalization_rule_name='identity',
    add_dummy_prefix=False,
    remove_extra_whitespaces=False,
    split_digits=True,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return prefix.with_suffix('.model')


def _write_spm(path, model, *, control=(), **options):
  """As llama.cpp's converter does: what users define has real spaces, some of it is control."""
  proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
  tokens, kinds = [], []
  for piece in proto.pieces:
    defined = piece.type == USER_DEFINED
    tokens.append(piece.piece.replace('▁', ' ') if defined else piece.piece)
    kinds.append(CONTROL if piece.piece in control else piece.type)
  options = {
    'padding_token_id': 0, 'eos_token_id': 1, 'bos_token_id': 2, 'unknown_token_id': 3,
    'add_space_prefix': False, **options,
  }  # fmt: skip
  scores = [piece.score for piece in proto.pieces]
  return _write(path, 'llama', tokens, kinds, scores=scores, **options)


@pytest.fixture(scope='module')
def rebuilt_gemma(gemma, tmp_path_factory):
  path = tmp_path_factory.mktemp('gguf') / 'spm.gguf'
  turns = ('<start_of_turn>', '<end_of_turn>')
  return vocabularies.gguf(_write_spm(path, gemma, control=turns, eot_token_id=5))


@given(text=st.text() | st.sampled_from(['a\n\n\n b', '   x  ', '2022', '<start_of_turn>user\n']))
def test_sentencepiece_encodes_as_what_it_was_written_from(rebuilt_gemma, gemma, text):
  original = vocabularies.sentencepiece(gemma)
  assert rebuilt_gemma.encode(text) == original.encode(text)
  assert [ids.tolist() for ids in rebuilt_gemma.encode_all([text])] == [original.encode(text)]
  assert rebuilt_gemma.decode(original.encode(text)) == original.decode(original.encode(text))


def test_sentencepiece_keeps_its_special_ids(rebuilt_gemma):
  actual = (rebuilt_gemma.pad_id, rebuilt_gemma.eos_ids, rebuilt_gemma.bos_id, rebuilt_gemma.unk_id)
  assert actual == (0, (1, 5), 2, 3)
  assert rebuilt_gemma.decode([2, *rebuilt_gemma.encode('boats'), 5, 10]) == 'boats'


def test_text_cannot_spell_the_end_of_a_sequence(rebuilt_gemma):
  ids = rebuilt_gemma.encode('a<eos></s><bos>')
  assert not {0, 1, 2} & set(ids)


def test_rare_characters_become_bytes(rebuilt_gemma):
  ids = rebuilt_gemma.encode('🦜')
  assert len(ids) == 4
  assert rebuilt_gemma.unk_id not in ids
  assert rebuilt_gemma.decode(ids) == '🦜'


@pytest.mark.parametrize(('adds', 'bos'), [(True, 2), (False, None)])
def test_a_sentencepiece_beginning_is_read_only_if_it_is_added(adds, bos, gemma, tmp_path):
  vocabulary = vocabularies.gguf(_write_spm(tmp_path / 'm.gguf', gemma, add_bos_token=adds))
  assert vocabulary.bos_id == bos


def test_a_space_is_put_first_unless_the_file_says_not(gemma, tmp_path):
  path = _write_spm(tmp_path / 'm.gguf', gemma, add_space_prefix=True)
  bare = _write_spm(tmp_path / 'n.gguf', gemma)
  assert vocabularies.gguf(path).encode('boats') == vocabularies.gguf(bare).encode(' boats')


@pytest.mark.parametrize('variant', ['rebuilt', 'rebuilt_gemma'])
def test_a_rebuilt_vocabulary_is_saved_like_any_other(variant, request, tmp_path):
  vocabulary = request.getfixturevalue(variant)
  vocabularies.save(vocabulary, tmp_path)
  loaded = vocabularies.load(tmp_path)
  assert loaded == vocabulary
  assert (loaded.pad_id, loaded.eos_ids, loaded.bos_id) == (
    vocabulary.pad_id, vocabulary.eos_ids, vocabulary.bos_id,
  )  # fmt: skip
  for text in TEXTS:
    assert loaded.encode(text) == vocabulary.encode(text)
