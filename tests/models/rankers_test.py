"""Rankers: padding, fewer vectors, the scorers behind one encoder, pairs of a cross-encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cascades import ranking
from cascades.models import bert, rankers
from cascades.models.rankers import Encoded, RankerConfig
from cascades.tokenizers import vocabularies

ENCODER = bert.BertConfig(
  vocab_size=20, emb_dim=8, num_heads=2, num_layers=1, mlp_dim=16, num_positions=24, max_length=24
)
SIZES = {'query_tokens': 4, 'document_tokens': 6, 'query_mlp': 5, 'document_mlp': 7}
DUAL = ('dot', 'max_sim', 'lite', 'flattened_lite')
TOKENS = np.array([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 10, 2]])
MASK = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)


def _ranker(scorer, **options):
  config = RankerConfig(ENCODER, scorer, **{**SIZES, **options})
  return config.build(jax.random.key(0))


def _scores(ranker, tokens, mask):
  query = ranker.encode_queries(tokens[:, :4], mask[:, :4])
  return np.asarray(ranker.score(query, ranker.encode_documents(tokens, mask)))


@pytest.mark.parametrize('scorer', DUAL)
@pytest.mark.parametrize(
  'options',
  [pytest.param({}, marks=pytest.mark.slow), {'width': 3, 'stored_tokens': 2, 'pooling': 'linear'}],
)
def test_the_content_of_padding_changes_no_score(scorer, options):
  ranker = _ranker(scorer, **options)
  expected = _scores(ranker, TOKENS, MASK)
  assert expected.shape == (2,)
  changed = np.where(MASK, TOKENS, 17)
  np.testing.assert_array_equal(_scores(ranker, changed, MASK), expected)
  longer = np.pad(TOKENS[:1, :4], ((0, 0), (0, 1)))  # padded to another length
  query = ranker.encode_queries(TOKENS[:1, :4], MASK[:1, :4])
  document = ranker.encode_documents(longer, longer > 0)
  np.testing.assert_allclose(ranker.score(query, document), expected[:1], atol=1e-5)


@pytest.mark.parametrize('scorer', DUAL)
def test_vectors_outside_the_mask_are_exactly_0(scorer):
  ranker = _ranker(scorer, width=3)
  vectors, mask = ranker.encode_documents(TOKENS, MASK)
  assert vectors.shape == ((2, 1, 3) if scorer == 'dot' else (2, 6, 3))
  assert not np.asarray(vectors)[~np.asarray(mask)].any()
  np.testing.assert_allclose(np.linalg.norm(vectors[mask], axis=-1), 1, rtol=1e-5)


def test_a_dot_product_is_that_of_pooled_vectors():
  ranker = _ranker('dot', normalize=False)
  pooled = ranker.encoder.embed(TOKENS, MASK)
  np.testing.assert_allclose(
    ranker.score(
      Encoded(pooled[:, None], MASK[:, :1]), ranker.encode_documents(TOKENS, MASK)
    ),
    jnp.square(pooled).sum(-1), rtol=1e-5,
  )  # fmt: skip


def test_max_sim_is_that_of_the_projected_states():
  ranker = _ranker('max_sim', width=3, normalize=False)
  query, document = (
    ranker.projection(ranker.encoder.hidden(TOKENS[:, :length], MASK[:, :length]))
    for length in (4, 6)
  )
  similarities = ranking.similarity(query, document)
  expected = ranking.max_sim(similarities, jnp.asarray(MASK[:, :4]), jnp.asarray(MASK))
  np.testing.assert_allclose(_scores(ranker, TOKENS, MASK), expected, atol=1e-5)


def test_fewer_vectors_are_means_of_adjacent_tokens():
  ranker = _ranker('max_sim', stored_tokens=2, normalize=False)
  states = np.asarray(ranker.encoder.hidden(TOKENS, MASK))
  vectors, mask = ranker.encode_documents(TOKENS, MASK)
  np.testing.assert_allclose(vectors[1], [states[1, :3].mean(0), states[1, 3:].mean(0)], atol=1e-5)
  np.testing.assert_allclose(vectors[0], [states[0, :3].mean(0), states[0, 3]], atol=1e-5)
  assert np.asarray(mask).all()
  assert np.asarray(ranker.encode_documents(TOKENS[:1, :3], MASK[:1, :3]).mask).tolist() == [
    [True, False]
  ]


def test_a_learned_map_mixes_tokens_and_begins_near_their_means():
  ranker = _ranker('lite', stored_tokens=2, pooling='linear', normalize=False)
  states = np.asarray(ranker.encoder.hidden(TOKENS, MASK)) * MASK[..., None]
  table = np.asarray(ranker.token_map[...])
  assert table.shape == (6, 2)
  assert np.abs(table - np.repeat(np.eye(2), 3, axis=0) / 3).max() < 0.2
  vectors = ranker.encode_documents(TOKENS, MASK).vectors
  np.testing.assert_allclose(vectors, np.einsum('blw,ls->bsw', states, table), atol=1e-5)


@pytest.mark.parametrize('scorer', DUAL)
def test_gradients_reach_the_encoder_and_everything_behind_it(scorer):
  graph, params = nnx.split(_ranker(scorer, width=3, stored_tokens=3, pooling='linear'))

  @jax.jit
  @jax.grad
  def gradient(params):
    ranker = nnx.merge(graph, params)
    query = ranker.encode_queries(TOKENS[:, :4], MASK[:, :4])
    scores = ranker.score(query, ranker.encode_documents(TOKENS, MASK))
    return jnp.sin(3 * scores).sum()

  own = nnx.to_pure_dict(gradient(params))
  silent = {
    jax.tree_util.keystr(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(own)
    if not np.abs(leaf).any()
  }
  # A key's bias adds one number to all scores of a query.
  assert silent <= {"['encoder']['blocks']['key']['bias']"}


def test_a_cross_encoder_reads_pairs_with_their_segments():
  vocabulary = vocabularies.symbols([*'abcdefgh'])
  config = RankerConfig(ENCODER, 'cross', **SIZES)
  rows, firsts = rankers.pair_rows(vocabulary, ['a b', 'c'], ['d e f g h a', 'b'], config)
  tokens, mask, segments = rankers.pad_pairs(rows, firsts, vocabulary.pad_id, config)
  assert mask.sum(1).tolist() == [len(row) for row in rows]
  for row, (own, first) in enumerate(zip(rows, firsts, strict=True)):
    assert segments[row].tolist() == [0] * first + [1] * (len(own) - first) + [0] * (
      tokens.shape[1] - len(own)
    )
  ranker = config.build(jax.random.key(0))
  scores = ranker.score_pairs(tokens, mask, segments)
  assert scores.shape == (2,)
  np.testing.assert_array_equal(
    ranker.score_pairs(np.where(mask, tokens, 11), mask, segments), scores
  )
  assert np.abs(ranker.score_pairs(tokens, mask, 0 * segments) - scores).max() > 1e-4


def test_a_description_gives_the_configuration_again():
  config = RankerConfig(ENCODER, 'lite', **SIZES, width=3)
  assert rankers.from_description(rankers.describe(config)) == config
  with pytest.raises(ValueError, match='no description of a ranker of this version'):
    rankers.from_description({**rankers.describe(config), 'colour': 1})


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'scorer': 'bm25'}, "SCORER='bm25' is none of dot, max_sim, lite, flattened_lite, cross"),
    ({'pooling': 'max'}, "POOLING='max' is none of mean, linear"),
    ({'query_tokens': 2}, 'QUERY_TOKENS=2 must be a whole number at least 3'),
    ({'document_tokens': 25}, 'DOCUMENT_TOKENS=25 must be .* at most 24'),
    ({'stored_tokens': 7}, 'STORED_TOKENS=7 must be .* at most 6'),
    ({'width': 0}, 'WIDTH=0 must be'),
    ({'scorer': 'cross', 'document_tokens': 22}, 'a pair of 25 tokens, and the encoder has 24'),
  ],
)
def test_an_impossible_ranker_is_refused_in_a_sentence(options, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(RankerConfig(ENCODER, **SIZES), **options)
