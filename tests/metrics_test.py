import os
import pathlib

import hypothesis.strategies as st
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from sacrebleu.metrics import BLEU, CHRF

from cascades import curves, metrics

words = st.lists(st.sampled_from('abcde'), max_size=9).map(' '.join)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=5)


def total(metric, rows):
  """The metric of a corpus of (targets, prediction)."""
  return float(metric.finalize(sum(metric.statistics(*row) for row in rows)))


def one(metric, target, prediction):
  return total(metric, [([target], prediction)])


def test_accuracy_compares_stripped_texts_with_every_target():
  assert one(metrics.accuracy, 'yes', ' yes\n') == 1
  assert one(metrics.accuracy, 'yes', 'Yes') == 0
  assert total(metrics.accuracy, [(['a', 'b'], 'b'), (['a'], 'b'), (['c'], 'c')]) == 2 / 3
  np.testing.assert_array_equal(metrics.accuracy.statistics(['a', 'b'], 'b'), [1, 1])


def test_exact_match_and_token_f1_follow_the_squad_script():
  assert one(metrics.exact_match, 'The Eiffel Tower!', 'eiffel  tower') == 1
  assert one(metrics.exact_match, 'An anthem', 'them') == 0
  assert one(metrics.token_f1, 'in the big red house', 'red house') == pytest.approx(2 * 2 / 6)
  assert one(metrics.token_f1, 'x x y', 'x z') == pytest.approx(2 / 5)
  assert one(metrics.token_f1, 'the', 'a') == 1
  assert one(metrics.token_f1, 'the', 'b') == 0
  assert total(metrics.token_f1, [(['a b', 'b c'], 'c b')]) == 1


def test_word_accuracy_takes_any_pronunciation_and_may_ignore_stress():
  read = ['R EH1 D', 'R IY1 D']
  assert total(metrics.word_accuracy, [(read, ' R IY1  D')]) == 1
  assert total(metrics.word_accuracy, [(read, 'R IY0 D')]) == 0
  assert total(metrics.word_accuracy_stressless, [(read, 'R IY0 D')]) == 1
  assert total(metrics.word_accuracy_stressless, [(read, 'R AA1 D')]) == 0
  assert metrics.without_stress('HH AH0 L OW1') == 'HH AH L OW'


def test_the_phoneme_error_rate_counts_edits_to_the_closest_pronunciation():
  statistics = metrics.phoneme_error_rate.statistics
  np.testing.assert_array_equal(statistics(['R EH1 D', 'R IY1 D'], 'R IY1 T'), [1, 3])
  np.testing.assert_array_equal(statistics(['A B C D'], ''), [4, 4])
  np.testing.assert_array_equal(statistics(['A B', 'A B C D'], 'A B C'), [1, 4])
  assert total(metrics.phoneme_error_rate, [(['A B'], 'A'), (['A B C'], 'A B C')]) == 0.2
  assert not metrics.phoneme_error_rate.higher_is_better


def recursive_edits(a, b):
  if not a or not b:
    return len(a) + len(b)
  return min(
    recursive_edits(a[1:], b) + 1,
    recursive_edits(a, b[1:]) + 1,
    recursive_edits(a[1:], b[1:]) + (a[0] != b[0]),
  )


@given(st.text('abc', max_size=5), st.text('abc', max_size=5))
def test_edits_equal_the_recursive_definition_and_are_symmetric(a, b):
  assert metrics.edits(a, b) == recursive_edits(a, b) == metrics.edits(b, a)


@given(pairs)
def test_bleu_equals_sacrebleu(rows):
  expected = BLEU(force=True).corpus_score([b for _, b in rows], [[a for a, _ in rows]]).score
  assert total(metrics.bleu(), [([a], b) for a, b in rows]) == pytest.approx(expected, abs=1e-9)


@given(pairs)
def test_chrf_equals_sacrebleu(rows):
  expected = CHRF().corpus_score([b for _, b in rows], [[a for a, _ in rows]]).score
  assert total(metrics.chrf, [([a], b) for a, b in rows]) == pytest.approx(expected, abs=1e-9)


def test_several_references_are_used_as_sacrebleu_uses_them():
  predictions = ['the cat sat on the mat today', 'a dog barked at night']
  targets = [['a cat sat on a mat', 'the cat sat down'], ['the dog barked', 'a dog barks at night']]
  streams = [list(stream) for stream in zip(*targets, strict=True)]
  rows = list(zip(targets, predictions, strict=True))
  expected = sacrebleu.corpus_bleu(predictions, streams).score
  assert total(metrics.bleu(), rows) == pytest.approx(expected)
  assert total(metrics.chrf, rows) == pytest.approx(
    sacrebleu.corpus_chrf(predictions, streams).score
  )


def test_bleu_agrees_with_a_number_worked_by_hand():
  # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples, and 0 of 2 quadruples smoothed to half of one.
  expected = 100 * (4 / 5 * 2 / 4 * 1 / 3 * 0.5 / 2) ** 0.25
  assert one(metrics.bleu(), 'a b c x d', 'a b c y d') == pytest.approx(expected)
  assert one(metrics.bleu(), 'a b c d e f', 'a b c d e') == pytest.approx(100 * np.exp(-1 / 5))
  assert one(metrics.bleu(), 'a b c', 'a b c') == 0  # without a quadruple


def test_finalizing_many_sums_at_once_equals_one_by_one():
  generator = np.random.default_rng(0)
  for metric in (metrics.bleu(), metrics.chrf, metrics.accuracy):
    width = len(metric.statistics(['a b c d e'], 'a b c d f'))
    sums = generator.integers(0, 9, size=(3, 4, width)).astype(float)
    every = metric.finalize(sums)
    assert every.shape == (3, 4)
    for place in np.ndindex(3, 4):
      assert every[place] == pytest.approx(float(metric.finalize(sums[place])))


def test_no_statistics_at_all_finish_as_zero():
  for metric in metrics.METRICS.values():
    assert metric.finalize(np.zeros(18)) == 0


@given(st.lists(st.integers(0, 40), min_size=10, max_size=10))
def test_bleu_of_any_counts_lies_between_0_and_100(counts):
  length, reference, *rest = counts
  matches = np.minimum(rest[:4], rest[4:])
  value = metrics.finalize_bleu(np.array([length, reference, *matches, *rest[4:]], float))
  assert 0 <= value <= 100


@pytest.mark.parametrize('tokenize', ['13a', 'intl', 'char', 'zh'])
def test_bleu_uses_sacrebleus_tokenisers(tokenize):
  target, prediction = "It's 3.5 km, 我喜欢猫。 right?", "It's 3.5 km; 我喜欢狗。 right?"
  expected = BLEU(tokenize=tokenize, force=True).corpus_score([prediction], [[target]]).score
  assert one(metrics.bleu(tokenize), target, prediction) == pytest.approx(expected)
  assert 0 < expected < 100


def test_metrics_are_found_by_name_and_the_nearest_name_is_suggested():
  for name, metric in metrics.METRICS.items():
    assert metric.name == name
    assert metrics.by_name(name) is metric
  with pytest.raises(ValueError, match=r"'accurracy' \(did you mean 'accuracy'\?\); known: acc"):
    metrics.by_name('accurracy')


def test_token_accuracy_is_a_ratio_that_texts_do_not_tell():
  assert metrics.token_accuracy.finalize(np.array([3.0, 4.0])) == 0.75
  with pytest.raises(ValueError, match='texts do not tell it'):
    metrics.token_accuracy.statistics(['a'], 'a')


def test_shares_have_scale_1_and_bleu_and_chrf_100():
  perfect = 'A1 B2 C0 D1 E'
  for metric in metrics.METRICS.values():
    if metric.name in ('bleu_ja_mecab', 'bleu_ko_mecab'):  # optional tokenisers
      assert metric.scale == 100
    elif metric.higher_is_better and metric is not metrics.token_accuracy:
      assert one(metric, perfect, perfect) == metric.scale


DATA = pathlib.Path(
  os.environ.get('CASCADES_TEST_DATA', pathlib.Path(__file__).parents[2] / 'shared/data')
)


@pytest.mark.parametrize(('language', 'tokenize'), [('en', '13a'), ('ja', 'char')])
def test_curves_of_bleu_on_real_translations_equal_sacrebleu_at_each_threshold(language, tokenize):
  path = DATA / 'mt_tanaka_en_ja' / 'test.tsv'
  if not path.exists():
    pytest.skip(f'{path} is not there; set CASCADES_TEST_DATA to a folder that has it')
  column = ['en', 'ja'].index(language)
  texts = [line.split('\t')[column] for line in path.read_text('utf-8').rstrip('\n').split('\n')]
  assert len(texts) == 500
  generator = np.random.default_rng(0)

  def damaged(text, rate):
    kept = [word for word in text.split() if generator.random() > rate]
    return ' '.join(kept[:3][::-1] + kept[3:] if generator.random() < rate else kept)

  small, large = ([damaged(text, rate) for text in texts] for rate in (0.4, 0.15))
  score = generator.integers(0, 24, size=500).astype(float)
  metric = metrics.bleu(tokenize)
  ours, theirs = (
    np.stack([metric.statistics([target], text) for target, text in zip(texts, side, strict=True)])
    for side in (small, large)
  )
  curve = curves.deferral_curve(score, ours, theirs, metric.finalize, lambda rate: rate)
  assert len(curve.threshold) >= 20
  for threshold, quality in zip(curve.threshold, curve.quality, strict=True):
    mixed = [b if r >= threshold else a for a, b, r in zip(small, large, score, strict=True)]
    expected = BLEU(tokenize=tokenize, force=True).corpus_score(mixed, [texts]).score
    assert quality == pytest.approx(expected, abs=1e-9)
  assert curve.quality[-1] > curve.quality[0] + 10
