"""Learned deferral: planted rules are found, noise is not, and no row is judged by its label."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from cascades import answer_features, curves, deferral, learned_deferral, types
from cascades.learned_deferral import METHODS, FitError, LeakError, Recipe
from cascades.predictions import alignment
from cascades.predictors import Options
from tests import real_data, synthetic_tables

QUICK = Options(epochs=40, patience=8)


def table_of(logprobs, lengths, *, split='validation', name='x', **columns):
  size = len(lengths)
  return synthetic_tables.table('a', size=1)._replace(
    split=split,
    ids=[f'{split}-{i}' for i in range(size)],
    inputs=[f'{name} {split} {i}' for i in range(size)],
    targets=[('t',)] * size,
    predictions=['p'] * size,
    token_logprobs=np.asarray(logprobs, float),
    lengths=np.asarray(lengths),
    statistics={},
    **columns,
  )


def planted(seed, size, split):
  """Rows of 5 to 100 tokens, and d = 1[quantile_0 < -3], whatever their length."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(5, 101, size)
  logprobs = -np.minimum(rng.exponential(0.5, lengths.sum()), 2.9)
  low = rng.random(size) < 0.3
  at = np.cumsum(lengths) - lengths + (rng.random(size) * lengths).astype(int)
  logprobs[at[low]] = -3.1 - 3 * rng.random(low.sum())
  return table_of(logprobs, lengths, split=split), low.astype(float)


@pytest.fixture(scope='module')
def rows():
  return planted(0, 700, 'validation'), planted(1, 700, 'test')


def gain(score, d):
  """Area above random deferral."""
  statistics = np.zeros((len(d), 1)), d[:, None]
  curve = curves.deferral_curve(score, *statistics, lambda s: s[..., 0] / len(d), lambda rate: rate)
  return curves.area_above_chord(curve)


def fit(name, table, d, **changes):
  recipe = dataclasses.replace(METHODS[name], **changes)
  return learned_deferral.fit(name, recipe, table, 0.5 - d / 2, 0.5 + d / 2)


def test_features_agree_with_numbers_worked_by_hand():
  table = table_of([-0.1, -2.0, -0.3, -0.05, -0.7], [4, 1])
  quantiles = {0.0: -2.0, 0.1: -1.49, 0.4: -0.26, 0.5: -0.2, 0.8: -0.08, 1.0: -0.05}
  phi = answer_features.phi(table)
  for level, value in quantiles.items():
    assert phi[0, answer_features.LEVELS.index(level)] == pytest.approx(value)
  np.testing.assert_allclose(phi[0, 11:], [-2.45, -0.6125])
  np.testing.assert_allclose(phi[1], -0.7)  # of one token, all are its log-probability
  np.testing.assert_allclose(
    answer_features.feature('token probabilities').columns(table, 3),
    np.exp([[-0.1, -2.0, -0.3], [-0.7, -np.inf, -np.inf]]),
  )
  np.testing.assert_allclose(
    answer_features.feature('length').columns(table, 0), [[4, np.log(4)], [1, 0]]
  )


def test_features_equal_numpys_quantiles():
  table, _ = planted(2, 40, 'test')
  for row, (logprobs, mask) in enumerate(zip(*table.padded(), strict=True)):
    tokens = logprobs[mask]
    expected = [*np.quantile(tokens, answer_features.LEVELS), tokens.sum(), tokens.mean()]
    np.testing.assert_allclose(answer_features.phi(table)[row], expected, atol=1e-9)


def test_targets_agree_with_numbers_worked_by_hand():
  small, large = np.array([1.0, 0, 0, 1]), np.array([1.0, 1, 0.5, 0])
  assert learned_deferral.gap(small, large).tolist() == [0, 1, 0.5, -1]
  assert learned_deferral.win(small, large).tolist() == [0, 1, 1, 0]
  assert learned_deferral.wrong(small, large).tolist() == [0, 1, 1, 0]


def test_all_targets_are_one_if_the_large_model_is_always_right():
  small = np.array([0.0, 1, 1, 0])
  expected = (1 - small).tolist()
  for target in learned_deferral.TARGETS.values():
    assert target(small, np.ones(4)).tolist() == expected


@pytest.mark.parametrize('name', ['post_hoc_quantile', 'boosted_trees'])
def test_a_planted_rule_of_the_lowest_quantile_is_learned(rows, name):
  (table, d), (other, e) = rows
  score = fit(name, table, d, seeds=2).decider().score(other)
  best = gain(e, e)
  assert gain(score, e) >= 0.95 * best
  assert gain(deferral.DECIDERS['minimum'].score(other), e) == pytest.approx(best)
  for simple in ('average', 'sum'):
    assert gain(deferral.DECIDERS[simple].score(other), e) < 0.8 * best


def test_permuted_labels_gain_nothing(rows):
  (table, d), (other, e) = rows
  gains = []
  for seed in range(8):
    permuted = np.random.default_rng(seed).permutation(d)
    score = fit('boosted_trees', table, permuted, seeds=1).decider().score(other)
    gains.append(gain(score, np.random.default_rng(100 + seed).permutation(e)))
  error = np.std(gains, ddof=1) / np.sqrt(len(gains))
  assert abs(np.mean(gains)) <= 2 * error


@pytest.mark.parametrize('name', ['post_hoc_quantile', 'boosted_trees', 'logistic'])
def test_a_constant_feature_makes_all_scores_equal(name):
  table = table_of(np.full(60, -0.3), [1] * 60)
  d = np.arange(60) % 2.0
  fitted = fit(name, table, d, seeds=2, options=Options(epochs=3, trees=3))
  score = fitted.decider().score(table_of(np.full(37, -0.3), [1] * 37, split='test'))
  assert len(set(score.tolist())) == 1
  assert gain(score, np.arange(37) % 2.0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('name', ['post_hoc_quantile', 'boosted_trees', 'logistic', 'isotonic'])
def test_the_same_rows_give_the_same_bits(rows, name):
  (table, d), (other, _) = rows
  options = Options(epochs=4, trees=8)
  first, again = (fit(name, table, d, options=options) for _ in range(2))
  assert first.arrays.keys() == again.arrays.keys()
  for key, array in first.arrays.items():
    np.testing.assert_array_equal(array, again.arrays[key])
  np.testing.assert_array_equal(first.decider().score(other), again.decider().score(other))


def test_a_score_does_not_depend_on_the_rows_beside_it(rows):
  (table, d), (other, _) = rows
  decider = fit('post_hoc_quantile', table, d, seeds=1, options=Options(epochs=3)).decider()
  order = np.random.default_rng(0).permutation(len(other.ids))
  shuffled = decider.score(alignment.select(other, order))
  np.testing.assert_allclose(shuffled, decider.score(other)[order], rtol=1e-12)


def test_the_predictions_of_several_seeds_are_averaged(rows):
  (table, d), (other, _) = rows
  fitted = fit('boosted_trees', table, d, seeds=3, options=Options(trees=5))
  features = answer_features.matrix(fitted.recipe.features, other, 0)
  alone = [
    fitted._replace(
      arrays={k: v for k, v in fitted.arrays.items() if '/' not in k or k[0] == str(seed)}
    ).predict(features)
    for seed in range(3)
  ]
  np.testing.assert_allclose(fitted.predict(features), np.mean(alone, axis=0), rtol=1e-12)
  assert (alone[0] != alone[1]).any()


def test_rows_that_a_decider_was_fitted_on_are_refused(rows):
  (table, d), (other, _) = rows
  decider = fit('logistic', table, d).decider()
  with pytest.raises(LeakError, match=r"fitted on 700 of the 700 rows .* the id of 'validation-0'"):
    decider.score(table)
  single = alignment.select(table, [5])
  renamed = single._replace(ids=['new'], split='test')  # the same question under another name
  with pytest.raises(LeakError, match="the input of 'new'"):
    decider.score(renamed)
  reworded = single._replace(
    inputs=['other words']
  )  # the same example in another format of prompts
  with pytest.raises(LeakError, match="the id of 'validation-5'"):
    decider.score(reworded)
  pooled = single._replace(task=types.POOLED, ids=['a/validation-5'], inputs=['other words'])
  with pytest.raises(LeakError):
    decider.score(pooled)
  decider.score(single._replace(task='b', inputs=['other words']))  # an id of another task
  assert decider.score(other).shape == (700,)


def test_shuffling_the_report_split_changes_no_fit(rows):
  (table, d), (other, _) = rows
  decider = fit('logistic', table, d).decider()
  order = np.random.default_rng(3).permutation(len(other.ids))
  np.testing.assert_array_equal(
    decider.score(alignment.select(other, order)), decider.score(other)[order]
  )


def test_answers_without_tokens_defer_first_and_are_not_learned_from(rows):
  (table, d), _ = rows
  empty = table._replace(
    ids=[*table.ids, 'none'],
    inputs=[*table.inputs, 'none'],
    lengths=np.append(table.lengths, 0),
  )
  with_empty = fit('logistic', empty, np.append(d, 1.0))
  assert with_empty.rows == len(d)
  plain = fit('logistic', table, d)
  np.testing.assert_array_equal(with_empty.arrays['0/coefficients'], plain.arrays['0/coefficients'])
  score = plain.decider().score(table_of([-1.0], [1, 0], split='test'))
  assert score[1] == deferral.NO_TOKENS > score[0]


@pytest.mark.parametrize('target', ['win', 'wrong'])
@pytest.mark.parametrize('calibration', ['isotonic', 'temperature'])
def test_calibrated_predictions_keep_their_order(rows, target, calibration):
  (table, d), (other, _) = rows
  options = Options(trees=10)
  plain = fit('boosted_trees', table, d, target=target, calibration=calibration, options=options)
  raw = plain._replace(recipe=dataclasses.replace(plain.recipe, calibration=None))
  order = np.argsort(raw.decider().score(other), kind='stable')
  values = plain.decider().score(other)[order]
  assert (np.diff(values) >= 0).all()
  if calibration == 'isotonic':
    assert values.min() >= 0
    assert values.max() <= 1
  else:
    np.testing.assert_allclose(
      values * plain.arrays['temperature'], raw.decider().score(other)[order]
    )


def test_a_temperature_changes_no_order_of_a_raw_score(rows):
  (table, d), (other, e) = rows
  score = fit('temperature', table, d).decider().score(other)
  raw = deferral.DECIDERS['average'].score(other)
  np.testing.assert_array_equal(np.argsort(score, kind='stable'), np.argsort(raw, kind='stable'))
  assert gain(score, e) == pytest.approx(gain(raw, e))


def test_embeddings_are_read_by_name(rows):
  (table, d), (other, _) = rows
  with pytest.raises(ValueError, match="'post_hoc_embed_1' learns from embeddings/answer"):
    fit('post_hoc_embed_1', table, d)
  hidden = {'answer': np.stack([d, 1 - d], 1).astype(np.float32)}
  fitted = fit('post_hoc_embed_1', table._replace(embeddings=hidden), d, seeds=1, options=QUICK)
  assert fitted.decider().reads == ('token_logprobs', 'embeddings/answer')
  assert len(fitted.arrays['mean']) == 15
  with pytest.raises(ValueError, match='reads embeddings/answer, which rows of task'):
    fitted.decider().score(other)


def test_the_flops_of_a_decision_are_those_of_its_products():
  table = table_of(-np.random.default_rng(0).exponential(size=60), [1] * 60)
  d = np.arange(60) % 2.0
  recipe = Recipe(('quantiles',), seeds=2, options=Options(hidden=(32,) * 5, epochs=1))
  fitted = learned_deferral.fit('mlp', recipe, table, 1 - d, np.ones(60), flops=7.0)
  weights = 13 * 32 + 4 * 32 * 32 + 32  # 4,705 with 161 biases
  assert fitted.decider().flops == 7.0 + 2 * 2 * weights
  assert weights + 5 * 32 + 1 == 4705


@pytest.mark.parametrize(
  ('d', 'message'),
  [(np.zeros(40), 'have 1 different values'), (np.arange(10) % 2.0, 'cannot learn from 10 rows')],
)
def test_rows_that_nothing_can_be_learned_from_are_refused(d, message):
  table = table_of(np.full(len(d), -1.0), [1] * len(d))
  with pytest.raises(FitError, match=message):
    fit('logistic', table, d, target='win')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'features': ['quantile']}, "Unknown feature 'quantile'"),
    ({'family': 'forest'}, "family is 'forest'; expected one of None, 'linear', 'mlp', 'trees'"),
    ({'target': 'T1'}, "target is 'T1'"),
    ({'calibration': 'temperature'}, "target 'gap' has none"),
    ({'family': None}, 'Without a family, a recipe has one feature'),
    ({'seeds': 0}, 'one or more seeds'),
  ],
)
def test_recipes_that_make_no_sense_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    Recipe(**{'features': ['quantiles'], **changes})


def test_a_real_confidence_is_calibrated_on_one_split_and_orders_the_other():
  """MMLU answered by Llama 3.1 8B, with 405B to defer to."""

  def read(split):
    path = real_data.real(f'llm_chains/mmlu.{split}.llama.jsonl.gz')
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    names = list(rows[0]['models'])
    small, large = (next(n for n in names if size in n) for size in ('8b', '405b'))
    table = table_of([], [0] * len(rows), split=split)._replace(
      inputs=[row['prompt'] for row in rows],
      columns={'confidence': np.array([row['models'][small]['p'] for row in rows])},
    )
    quality = [
      np.array([row['models'][n]['correct'] for row in rows], float) for n in (small, large)
    ]
    return table, *quality

  table, small, large = read('train')
  other, other_small, other_large = read('test')
  with pytest.raises(LeakError, match='fitted on 1 of the 1531 rows'):  # a question of both splits
    learned_deferral.fit('i', METHODS['isotonic_confidence'], table, small, large).decider().score(
      other
    )
  rows = learned_deferral.unshared(table, other)
  assert len(rows) == len(table.ids) - 1
  table, small, large = alignment.select(table, rows), small[rows], large[rows]
  raw = deferral.DECIDERS['confidence'].score(other)
  d = other_large - other_small
  for name in ('logistic_confidence', 'temperature_confidence'):
    fitted = learned_deferral.fit(name, METHODS[name], table, small, large)
    assert gain(fitted.decider().score(other), d) == pytest.approx(gain(raw, d), abs=1e-3)
  isotonic = learned_deferral.fit('i', METHODS['isotonic_confidence'], table, small, large)
  probability = isotonic.decider().score(other)
  error = np.mean((probability - (1 - other_small)) ** 2)
  assert error < np.mean((raw + 1 - (1 - other_small)) ** 2)  # better calibrated than 1 - p
