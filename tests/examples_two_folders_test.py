"""The example of two Hugging Face folders, on tiny random ones and on a T5 beside a decoder."""

from __future__ import annotations

import importlib.util
import pathlib

import numpy as np
import pytest

from cascades.tokenizers import vocabularies
from cascades.tokenizers.train_sentencepiece import train_sentencepiece
from tests.interop import twin_folders

SCRIPT = pathlib.Path(__file__).parents[1] / 'examples' / 'two_folders.py'


@pytest.fixture(scope='module')
def example():
  spec = importlib.util.spec_from_file_location('two_folders', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope='module')
def folders(example, tmp_path_factory):
  parent = tmp_path_factory.mktemp('folders')
  vocabulary = train_sentencepiece(example.PROMPTS * 10, parent / 'tokenizer.model', size=288)
  example.write_random(parent / 'small', vocabulary, width=16, seed=0)
  example.write_random(parent / 'large', vocabulary, width=32, seed=1)
  return parent / 'small', parent / 'large'


def test_the_least_certain_half_is_answered_by_the_large_model(example, folders):
  prompts = [*example.PROMPTS]
  (small, scores), (large, _) = (example.answer(folder, prompts) for folder in folders)
  answers, deferred = example.cascade(*folders, prompts)
  assert deferred.sum() == 2
  assert scores[deferred].min() > scores[~deferred].max()
  assert set(small).isdisjoint(large)
  assert answers == [large[i] if deferred[i] else small[i] for i in range(len(prompts))]


def test_the_folders_have_the_files_of_save_pretrained(folders):
  for folder in folders:
    assert {path.name for path in folder.iterdir()} == {
      *('config.json', 'generation_config.json', 'model.safetensors'),
      *('spiece.model', 'tokenizer_config.json'),
    }


def test_a_t5_can_defer_to_a_decoder(example, folders, tmp_path, monkeypatch):
  t5 = twin_folders.twin(tmp_path, 't5_1_1')
  symbols = vocabularies.symbols([*'abcdefgh'])
  monkeypatch.setattr(
    example,
    'open_pretrained',
    lambda folder, open_pretrained=example.open_pretrained: open_pretrained(
      folder, vocabulary=symbols if folder == t5 else None
    ),
  )
  answers, deferred = example.cascade(t5, folders[1], ['a b', 'c d e'])
  assert deferred.sum() == 1
  expected = example.answer(folders[1], [['a b', 'c d e'][int(np.flatnonzero(deferred)[0])]])[0]
  assert answers[int(np.flatnonzero(deferred)[0])] == expected[0]
