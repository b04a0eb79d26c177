"""A vocabulary that is written out is read back, by transformers and by us."""

from __future__ import annotations

import json

import pytest
import sentencepiece as spm
import tokenizers

from cascades.tasks import chat_templates
from cascades.tokenizers import export, from_folder, vocabularies
from tests.tokenizers.huggingface_test import TEXTS, byte_level

LINES = [*TEXTS, 'a  b   c ', '2022\n\nx']


def _trained(path, **options):
  spm.SentencePieceTrainer.Train(
    sentence_iterator=iter(TEXTS * 5),
    model_prefix=str(path),
    vocab_size=420,
    hard_vocab_limit=False,
    minloglevel=2,
    **options,
  )
  return vocabularies.sentencepiece(path.with_suffix('.model'))


LOSSLESS = {
  'model_type': 'bpe',
  'byte_fallback': True,
  'normalization_rule_name': 'identity',
  'remove_extra_whitespaces': False,
}


def _vocabulary(tokenizer_type, folder):
  if tokenizer_type == 't5':
    return _trained(folder / 't5', pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  if tokenizer_type == 'gemma':
    ids = {'pad_id': 0, 'eos_id': 1, 'bos_id': 2, 'unk_id': 3}
    return _trained(folder / 'gemma', add_dummy_prefix=False, **ids, **LOSSLESS)
  if tokenizer_type == 'llama':
    return _trained(folder / 'llama', unk_id=0, bos_id=1, eos_id=2, **LOSSLESS)
  byte_level(digits=True).save(str(folder / 'tokenizer.json'))
  return vocabularies.huggingface(
    folder,
    pad='<pad>',
    eos=('</s>', '<|end|>'),
    bos='<s>' if tokenizer_type == 'bpe with start' else '',
  )


KINDS = {'t5': 't5', 'gemma': 'gemma3_text', 'llama': 'llama', 'bpe': 'llama'}
KINDS |= {'bpe with start': 'llama'}


@pytest.fixture(scope='module', params=KINDS)
def written(request, tmp_path_factory):
  """A vocabulary, and a folder with its files and a config.json, as export leaves it."""
  vocabulary = _vocabulary(request.param, tmp_path_factory.mktemp('vocabulary'))
  folder = tmp_path_factory.mktemp('model')
  files = export.tokenizer_files(vocabulary, chat_template='{{ messages }}')
  for name, content in files.items():
    (folder / name).write_bytes(content)
  start = {'decoder_start_token_id': 0} if request.param == 't5' else {}
  config = export.special_ids(vocabulary, {'model_type': KINDS[request.param], **start})
  (folder / 'config.json').write_text(json.dumps(config))
  return vocabulary, folder


def test_we_read_the_same_vocabulary_back(written):
  vocabulary, folder = written
  again = from_folder.read_vocabulary(folder)
  if vocabulary.describe()['kind'] == 'huggingface' and vocabulary.bos_id is not None:
    # The file says now that a text starts with a token.
    assert again.describe() | {'sha256': ''} == vocabulary.describe() | {'sha256': ''}
    assert [again.encode(line) for line in LINES] == [vocabulary.encode(line) for line in LINES]
  else:
    assert again.fingerprint == vocabulary.fingerprint


@pytest.mark.reference
def test_transformers_reads_the_same_tokenizer(written):
  transformers = pytest.importorskip('transformers', reason='needs the extra `reference`')
  vocabulary, folder = written
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
  t5 = (folder / 'spiece.model').exists()
  start = [] if t5 or vocabulary.bos_id is None else [vocabulary.bos_id]
  end = [vocabulary.eos_id] if t5 else []
  for line in LINES:
    assert tokenizer(line)['input_ids'] == [*start, *vocabulary.encode(line), *end], line
  assert tokenizer.eos_token_id == vocabulary.eos_id
  assert tokenizer.pad_token_id == vocabulary.pad_id
  assert tokenizer.chat_template == '{{ messages }}'


def test_prompts_end_as_in_training(written, tmp_path):
  vocabulary, folder = written
  files = {path.name: path.read_bytes() for path in folder.iterdir()}
  ended = export.end_prompts(files, vocabulary)
  if 'spiece.model' in files:  # which ends all texts itself
    assert ended == files
    return
  for name, content in ended.items():
    (tmp_path / name).write_bytes(content)
  again = from_folder.read_vocabulary(tmp_path)
  assert (again.bos_id, again.eos_ids[0]) == (vocabulary.bos_id, vocabulary.eos_id)
  assert [again.encode(line) for line in LINES] == [vocabulary.encode(line) for line in LINES]
  start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
  if 'tokenizer.json' in files:
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    for line in LINES:
      assert whole.encode(line).ids == [*start, *vocabulary.encode(line), vocabulary.eos_id]
    text = chat_templates.read(tmp_path)('Hi?')
    assert whole.encode(text, add_special_tokens=False).ids == whole.encode('Hi?').ids


@pytest.mark.reference
def test_transformers_ends_prompts_as_we_do(written, tmp_path):
  transformers = pytest.importorskip('transformers', reason='needs the extra `reference`')
  vocabulary, folder = written
  files = {path.name: path.read_bytes() for path in folder.iterdir()}
  for name, content in export.end_prompts(files, vocabulary).items():
    (tmp_path / name).write_bytes(content)
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  t5 = 'spiece.model' in files
  start = [] if t5 or vocabulary.bos_id is None else [vocabulary.bos_id]
  for line in LINES:
    asked = [*start, *vocabulary.encode(line), vocabulary.eos_id]
    assert tokenizer(line)['input_ids'] == asked, line
    if not t5 and 'tokenizer.json' in files:
      chat = tokenizer.apply_chat_template([{'role': 'user', 'content': line}])
      assert chat['input_ids'] == asked


def test_only_tokenizers_of_transformers_end_prompts():
  with pytest.raises(ValueError, match='PROMPT_END needs a tokenizer that transformers has'):
    export.end_prompts({}, vocabularies.bytes_vocabulary())


def test_special_ids_are_named_once_and_keep_what_is_said():
  vocabulary = vocabularies.bytes_vocabulary()
  assert export.special_ids(vocabulary, {'eos_token_id': 7}) == {
    'eos_token_id': 7,
    'pad_token_id': 0,
    'bos_token_id': 0,
  }
  assert 'bos_token_id' not in export.special_ids(vocabulary, {'decoder_start_token_id': 0})


def test_transformers_has_no_tokenizer_of_symbols():
  assert export.tokenizer_files(vocabularies.symbols('abc')) == {}
