"""A vocabulary by a name or a path, in every form that a user may have one."""

import pytest

from cascades.tokenizers import named, train_sentencepiece, vocabularies
from tests import tiny
from tests.tokenizers import gguf_test, huggingface_test


def test_bytes_have_a_name():
  assert named.named('bytes').fingerprint == vocabularies.bytes_vocabulary().fingerprint


def test_a_run_directory_has_a_vocabulary(tmp_path):
  vocabularies.save(tiny.VOCABULARY, tmp_path)
  assert named.named(tmp_path).fingerprint == tiny.VOCABULARY.fingerprint


def test_files_and_folders_are_told_by_their_form(tmp_path):
  tokenizer = huggingface_test.byte_level(digits=True)
  options = {'eos_token': '</s>', 'pad_token': '<pad>', 'bos_token': '<s>'}
  folder = huggingface_test._folder(tmp_path, tokenizer, tokenizer_config=options)
  expected = vocabularies.huggingface(folder)
  for path in (folder, folder / 'tokenizer.json'):
    assert named.named(str(path)).fingerprint == expected.fingerprint
  file = gguf_test._write_bpe(tmp_path / 'x.gguf', tokenizer)
  assert named.named(file).encode('abc 12') == expected.encode('abc 12')
  pieces = train_sentencepiece.train_sentencepiece(
    huggingface_test.TEXTS[:2] * 9, tmp_path / 'x.model', size=299
  )
  assert named.named(tmp_path / 'x.model').fingerprint == pieces.fingerprint


def test_what_does_not_exist_is_told_the_forms(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"there is no vocabulary .*'bytes', a SentencePiece"):
    named.named(tmp_path / 'x.model')
  with pytest.raises(ValueError, match='is a remote path'):
    named.named('gs://bucket/x.model')
