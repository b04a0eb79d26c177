from __future__ import annotations

import json

import pytest

from cascades.tasks import released, sentencepiece_training, vocabularies

TEXTS = ['Two boats left the harbour before dawn.', 'Лодки вышли из гавани до рассвета.']


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  path = tmp_path_factory.mktemp('model') / 'tiny.model'
  sentencepiece_training.train_sentencepiece(TEXTS * 5, path, size=296)
  return path


def test_the_sentencepiece_model_of_t5_gets_its_extra_ids(model, tmp_path):
  (tmp_path / 'spiece.model').write_bytes(model.read_bytes())
  (tmp_path / 'tokenizer.json').write_text('a translation of it, which is not looked at')
  found = released.vocabulary(tmp_path)
  assert found.size == 396
  assert found.fingerprint == vocabularies.sentencepiece(model, 100).fingerprint
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps({'extra_ids': 0}))
  assert released.vocabulary(tmp_path).size == 296  # mT5


def test_a_sentencepiece_model_is_read_where_nothing_else_is(model, tmp_path):
  (tmp_path / 'tokenizer.model').write_bytes(model.read_bytes())
  assert released.vocabulary(tmp_path).encode(TEXTS[0]) == (
    vocabularies.sentencepiece(model, 0).encode(TEXTS[0])
  )


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match='There is no'):
    released.vocabulary(tmp_path)
