"""Drift: prompts unlike the validation prompts are told apart from prompts like them."""

import numpy as np
import pytest

from cascades import prompt_drift
from cascades.predictions import outcomes
from tests.real_data import real

KEYS = np.array([[1.0, 0], [1, 1], [0, 1]])
HALF = np.round(np.sqrt(0.5), 6)
FRENCH = ['Quelle est la capitale ?', 'Traduisez cette phrase.', 'Un vent souffle sur la mer.']
JAPANESE = [
  'この文章の主な感情は何ですか。',
  '次の二つの文は同じ意味ですか。',
  '彼は昨日、東京へ行った。',
]


def test_similarities_and_drift_are_those_worked_by_hand():
  reference = prompt_drift.reference(KEYS)
  assert reference.tolist() == [HALF] * 3
  near = prompt_drift.nearest(np.array([[2.0, 0], [-1, 0], [0, 0], [1, 3]]), KEYS)
  np.testing.assert_allclose(near, [1, 0, 0, 3 / np.sqrt(10)], atol=1e-6)
  assert prompt_drift.drift(near, reference).tolist() == [0, 1, 1, 0]
  assert prompt_drift.drift(np.array([HALF]), reference).tolist() == [0.5]


def test_similarities_are_those_of_a_loop_in_any_blocks(monkeypatch):
  rng = np.random.default_rng(0)
  vectors, keys = rng.normal(size=(23, 4)), rng.normal(size=(7, 4))
  cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)
  monkeypatch.setattr(prompt_drift, 'MOST_CELLS', 14)
  loop = [max(cosine(v, k) for k in keys) for v in vectors]
  np.testing.assert_allclose(prompt_drift.nearest(vectors, keys), loop, atol=1e-6)
  others = [max(cosine(a, b) for j, b in enumerate(keys) if i != j) for i, a in enumerate(keys)]
  np.testing.assert_allclose(prompt_drift.reference(keys), sorted(others), atol=1e-6)


def test_drift_of_like_prompts_has_the_mean_one_half_and_of_others_more():
  rng = np.random.default_rng(0)
  keys, like, far = (rng.normal(size=(n, 8)) + 1 for n in (400, 400, 400))
  reference = prompt_drift.reference(keys)
  test = prompt_drift.compare(prompt_drift.nearest(like, keys), reference)
  assert abs(test.mean - 0.5) < 0.05
  assert test.p > 0.01
  other = prompt_drift.compare(prompt_drift.nearest(far - 2, keys), reference)
  assert other.mean > 0.9
  assert other.p < 1e-10


def test_less_than_two_validation_prompts_have_no_drift():
  with pytest.raises(ValueError, match='1 validation prompt; drift is measured by two or more'):
    prompt_drift.reference(KEYS[:1])


def test_words_are_weighted_by_their_rarity_and_unknown_ones_most():
  fitted = prompt_drift.fit_words(['add two', 'add three'])
  assert fitted['drift_columns'].shape == (3,)
  rare = 1 + np.log(3)
  known, unknown = prompt_drift.words(fitted, ['add two two', 'add zzz']).toarray()
  two = (1 + np.log(2)) * (1 + np.log(3 / 2))
  np.testing.assert_allclose(sorted(known[known > 0]), [a / np.hypot(1, two) for a in (1, two)])
  np.testing.assert_allclose(
    sorted(unknown[unknown > 0]), [a / np.hypot(1, rare) for a in (1, rare)]
  )
  assert not prompt_drift.words(fitted, ['']).toarray().any()


def test_prompts_in_other_languages_drift_from_real_ones_and_new_ones_like_them_do_not():
  english = [*outcomes.texts(real('routing_mmlu_pro/prompts.jsonl.gz')).values()]
  english = [english[i] for i in np.random.default_rng(0).permutation(len(english))[:900]]
  fitted = prompt_drift.fit_words(english[:600])
  keys = prompt_drift.words(fitted, english[:300])
  reference = prompt_drift.reference(keys)
  own, japanese, french = (
    prompt_drift.compare(prompt_drift.nearest(prompt_drift.words(fitted, texts), keys), reference)
    for texts in (english[600:], JAPANESE, FRENCH)
  )
  assert abs(own.mean - 0.5) < 0.05
  assert own.p > 0.01
  assert min(japanese.mean, french.mean) > 0.9
  assert max(japanese.p, french.p) < 0.02
