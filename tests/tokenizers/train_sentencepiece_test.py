import subprocess
import sys

import pytest
import sentencepiece

from cascades.tokenizers import train_sentencepiece, vocabularies
from tests.tokenizers.vocabularies_test import TEXTS


def train(path, texts=TEXTS * 5, size=310, **settings):
  return train_sentencepiece.train_sentencepiece(texts, path, size=size, **settings)


@pytest.mark.parametrize('model_type', ['unigram', 'bpe'])
def test_both_model_types_are_lossless(tmp_path, model_type):
  vocabulary = train(tmp_path / 'a.model', model_type=model_type)
  for text in [*TEXTS, 'unseen  words\n\n', 'Ünïcödé']:
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_the_model_has_the_asked_size_and_settings(tmp_path):
  vocabulary = train(tmp_path / 'a.model')
  processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'a.model'))
  assert vocabulary.size == 310 + 100
  assert processor.get_piece_size() == 310
  assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
  assert processor.bos_id() == -1
  assert sum(processor.is_byte(i) for i in range(310)) == 256


def test_a_long_text_that_repeats_itself_takes_no_square_of_its_length(tmp_path):
  train(
    tmp_path / 'a.model', texts=[*TEXTS * 5, 'word ' * 60_000], size=300
  )  # took minutes in one piece


def test_the_newline_is_a_piece_even_if_no_text_has_one(tmp_path):
  vocabulary = train(tmp_path / 'a.model', texts=['some words'] * 9, size=270, model_type='bpe')
  assert len(vocabulary.encode('\n\n')) <= 3  # bytes would be as many, so look at the piece
  processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'a.model'))
  assert processor.piece_to_id('\n') == vocabulary.unk_id + 1


def test_training_again_gives_the_same_model(tmp_path):
  first, again = train(tmp_path / 'a.model'), train(tmp_path / 'b.model')
  assert first.fingerprint == again.fingerprint


def test_a_sample_of_many_texts_is_the_same_in_every_process(tmp_path):
  code = f"""
from cascades.tokenizers import train_sentencepiece
texts = [f'sentence number {{i}} of many' for i in range(4000)]
print(train_sentencepiece.train_sentencepiece(
  texts, {str(tmp_path / 'a.model')!r}, size=290, max_texts=150).fingerprint)
"""
  command = [sys.executable, '-c', code]
  runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
  assert runs[0].stdout == runs[1].stdout


def test_every_text_is_equally_likely_to_be_in_the_sample():
  texts = [str(i) for i in range(4000)]
  sample = [int(text) for text in train_sentencepiece._sample(texts, 1000)]
  assert len(set(sample)) == 1000
  assert abs(sum(sample) / 1000 - 2000) < 120  # over three standard errors
  assert all(150 < sum(i // 1000 == quarter for i in sample) < 350 for quarter in range(4))


def test_fewer_texts_than_the_sample_are_all_used():
  assert train_sentencepiece._sample(iter(['a', 'b']), 5) == ['a', 'b']


def test_very_long_texts_are_learned_from(tmp_path):
  # SentencePiece's default drops texts over 4192 bytes without a word.
  vocabulary = train(tmp_path / 'a.model', texts=['zebra ' * 2000] * 5, size=270, model_type='bpe')
  assert len(vocabulary.encode('zebra')) < len('zebra')


def test_texts_come_as_an_iterator(tmp_path):
  assert train(tmp_path / 'a.model', texts=iter(TEXTS * 5)).size == 410


@pytest.mark.parametrize(
  ('texts', 'size', 'reason'),
  [
    (['short'], 5000, 'too high'),
    (TEXTS, 100, 'smaller than required'),
    ([], 300, 'SentencePiece cannot make 300 pieces'),
  ],
)
def test_an_impossible_size_is_one_sentence_and_writes_nothing(tmp_path, texts, size, reason):
  with pytest.raises(ValueError, match=reason):
    train(tmp_path / 'a.model', texts=texts, size=size)
  assert not list(tmp_path.iterdir())


def test_the_output_folder_is_made(tmp_path):
  created = train(tmp_path / 'new' / 'a.model')
  assert created == vocabularies.sentencepiece(tmp_path / 'new' / 'a.model')
  assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.model']
