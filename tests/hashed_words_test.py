"""Vectors of words agree with scikit-learn's, and are alike for texts of one topic."""

import numpy as np
import pytest
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from cascades import hashed_words

TEXTS = ['the cat sat', 'the dog sat', 'a sum of two primes', 'primes and their sum', 'cat and dog']


def test_vectors_are_those_of_tf_idf_and_truncated_svd():
  table = hashed_words.counts(TEXTS)
  assert table.shape == (5, hashed_words.COLUMNS)
  vectors = hashed_words.embed(hashed_words.fit(table, 4), table)
  counted = HashingVectorizer(
    n_features=hashed_words.COLUMNS, ngram_range=(1, 2), norm=None, alternate_sign=False
  ).transform(TEXTS)
  weighted = TfidfTransformer(sublinear_tf=True).fit_transform(counted)
  reduced = TruncatedSVD(4, algorithm='arpack').fit_transform(weighted)
  reduced /= np.linalg.norm(reduced, axis=1, keepdims=True)
  np.testing.assert_allclose(vectors @ vectors.T, reduced @ reduced.T, atol=1e-4)


def test_vectors_depend_on_the_text_alone_and_a_text_without_known_words_has_none():
  table = hashed_words.counts(TEXTS)
  fitted = hashed_words.fit(table, 8)
  assert fitted['directions'].shape[0] == 5  # not more than texts
  alone = hashed_words.embed(fitted, hashed_words.counts(TEXTS[2:3]))
  np.testing.assert_allclose(alone, hashed_words.embed(fitted, table)[2:3], atol=1e-6)
  assert not hashed_words.embed(fitted, hashed_words.counts(['', '日本語'])).any()
  with pytest.raises(ValueError, match='0 directions of 5 texts'):
    hashed_words.fit(table, 0)
