"""Static vectors of prompts: a tiny table, by hand, in a router and in its policy."""

import json
import sys

import numpy as np
import pytest
from safetensors import numpy

from cascades import route
from cascades.evaluation import routers
from cascades.evaluation.model_answers import ModelAnswers
from cascades.inference import encoders, prompt_routing, static_vectors
from cascades.route import RouteOptions

WORDS = {'[UNK]': [0, 0], 'add': [3, 0], 'numbers': [1, 0], 'translate': [0, 2], 'words': [0, 4]}


@pytest.fixture
def folder(tmp_path):
  """Table of five words, as `save_pretrained` of model2vec writes it."""
  model2vec = pytest.importorskip('model2vec', reason="needs the extra 'static'")
  import tokenizers

  vocabulary = {word: row for row, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  model = model2vec.StaticModel(np.array([*WORDS.values()], np.float32), tokenizer, normalize=False)
  model.save_pretrained(str(tmp_path / 'table'))
  return tmp_path / 'table'


def test_a_vector_is_the_mean_of_the_words_by_hand(folder):
  embed = encoders.open_embedder(folder)
  vectors = embed(['add numbers', 'words', 'translate words add'])
  np.testing.assert_allclose(vectors, [[2, 0], [0, 4], [1, 2]], rtol=1e-6)
  assert vectors.dtype == np.float32
  assert embed([]).shape == (0, 2)
  np.testing.assert_array_equal(embed(['']), [[0, 0]])  # nothing known: no direction


def test_vectors_are_stored_by_the_content_of_the_table(folder):
  store = folder.parent / f'{encoders.identity(folder)}.vectors.npz'
  first = encoders.embed(['add', 'words', 'add'], folder, store)
  assert encoders.embed(['words'], folder, store).tolist() == first[1:2].tolist()
  with np.load(store) as stored:
    assert len(stored['names']) == 2


def test_a_router_and_its_policy_choose_by_static_vectors(folder):
  prompts = ['add numbers', 'translate words'] * 10
  lines = [json.dumps({'id': f'p{i}', 'prompt': text}) for i, text in enumerate(prompts)]
  (folder.parent / 'prompts.jsonl').write_text('\n'.join(lines) + '\n')
  rows = [f'p{i},{1 - i % 2},{i % 2}' for i in range(20)]
  (folder.parent / 'outcomes.csv').write_text('\n'.join(['id,adds,translates', *rows]) + '\n')
  answers = ModelAnswers(
    str(folder.parent / 'outcomes.csv'), str(folder.parent / 'prompts.jsonl'),
    {'adds': 1, 'translates': 1},
  )  # fmt: skip
  path = folder.parent / 'router.json'
  options = RouteOptions(clusters=2, strength=0.0, embeddings=str(folder), price=0.0)
  route.route('fit', str(path), answers, options)
  assert routers.read(path).encoder == 'table'
  route.route('policy', str(path), answers, options)
  chosen = prompt_routing.open_policy(folder.parent / 'router.policy.json')(
    ['numbers add add', 'words']
  )
  assert [choice.model for choice in chosen] == ['adds', 'translates']


def test_other_folders_are_left_to_other_readers(tmp_path):
  assert not static_vectors.is_static(tmp_path)
  numpy.save_file({'encoder.weight': np.zeros(1)}, tmp_path / 'model.safetensors')
  assert not static_vectors.is_static(tmp_path)
  (tmp_path / 'model.safetensors').write_text('no weights')
  assert not static_vectors.is_static(tmp_path)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
  numpy.save_file({'embeddings': np.zeros((1, 1))}, tmp_path / 'model.safetensors')
  monkeypatch.setitem(sys.modules, 'model2vec', None)
  with pytest.raises(ImportError, match=r'install the extra, .*lm-cascades\[static\]'):
    encoders.open_embedder(tmp_path)
