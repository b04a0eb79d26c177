"""MaxSim against that of sentence-transformers, the same numbers in PyTorch."""

import numpy as np
import pytest

from cascades import ranking

pytestmark = pytest.mark.reference


@pytest.mark.parametrize(('queries', 'documents', 'width'), [(3, 5, 8), (2, 7, 128), (4, 20, 384)])
def test_max_sim_equals_that_of_sentence_transformers(queries, documents, width):
  torch = pytest.importorskip('torch', reason='the comparison needs PyTorch')
  util = pytest.importorskip('sentence_transformers.util', reason='the comparison needs its MaxSim')
  random = np.random.default_rng(width)
  sets = []
  for count, longest in ((queries, 32), (documents, 180)):
    vectors = random.standard_normal((count, longest, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    mask = np.arange(longest) < random.integers(2, longest + 1, size=(count, 1))
    sets.append((vectors * mask[..., None], mask))
  (query, query_mask), (document, document_mask) = sets
  ragged = [
    [torch.tensor(own[valid]) for own, valid in zip(vectors, mask, strict=True)]
    for vectors, mask in sets
  ]
  expected = util.maxsim(*ragged).numpy()
  actual = ranking.max_sim(
    ranking.similarity(query[:, None], document[None]), query_mask[:, None], document_mask[None]
  )
  assert expected.shape == (queries, documents)
  np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-5)
