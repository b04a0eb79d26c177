import collections
import json
import pathlib
import re
import string

import editdistance
import hypothesis.strategies as st
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from cascades import curves, metrics
from tests.real_data import real

words = st.lists(st.sampled_from('abcde'), max_size=9).map(' '.join)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=5)


def total(metric, rows):
  """The metric of a corpus of (targets, prediction)."""
  return float(metric.finalize(sum(metric.statistics(*row) for row in rows)))


def single(metric, target, prediction):
  return total(metric, [([target], prediction)])


def test_accuracy_compares_stripped_texts_with_every_target():
  assert single(metrics.accuracy, 'yes', ' yes\n') == 1
  assert single(metrics.accuracy, 'yes', 'Yes') == 0
  assert total(metrics.accuracy, [(['a', 'b'], 'b'), (['a'], 'b'), (['c'], 'c')]) == 2 / 3
  np.testing.assert_array_equal(metrics.accuracy.statistics(['a', 'b'], 'b'), [1, 1])


def test_exact_match_and_token_f1_follow_the_squad_script():
  assert single(metrics.exact_match, 'The Eiffel Tower!', 'eiffel  tower') == 1
  assert single(metrics.exact_match, 'An anthem', 'them') == 0
  assert single(metrics.token_f1, 'in the big red house', 'red house') == pytest.approx(2 * 2 / 6)
  assert single(metrics.token_f1, 'x x y', 'x z') == pytest.approx(2 / 5)
  assert single(metrics.token_f1, 'the', 'a') == 1
  assert single(metrics.token_f1, 'the', 'b') == 0
  assert total(metrics.token_f1, [(['a b', 'b c'], 'c b')]) == 1


CURLY = '\u2018\u2019\u00b4'  # both single quotes and the acute accent


@pytest.mark.parametrize(
  ('text', 'squad', 'triviaqa'),
  [
    ("The O'Neill's", 'oneills', 'o neill s'),
    ('snake_case', 'snakecase', 'snake case'),
    ('_the_ end', 'end', 'end'),
    ('\u2018A\u2019 rock\u2019n\u2019roll', '\u2018 \u2019 rock\u2019n\u2019roll', 'rock n roll'),
    ('caf\u00b4e', 'caf\u00b4e', 'caf e'),
    ('`A-team`', 'ateam', 'team'),  # without its hyphen, the A is an article
    ('U.S.A.', 'usa', 'u s'),  # without its points, the last one is
    (
      '\u201cQuoted\u201d \u2013 dash',
      '\u201cquoted\u201d \u2013 dash',
      '\u201cquoted\u201d \u2013 dash',
    ),
    ('Another  theme \n an\tanthem', 'another theme anthem', 'another theme anthem'),
    ('ÉCOLE, 1,000', 'école 1000', 'école 1 000'),
    ('The', '', ''),
    ('?!', '', ''),
  ],
)
def test_texts_are_normalized_as_the_official_scripts_do(text, squad, triviaqa):
  assert metrics.squad_normalize(text) == squad
  assert metrics.triviaqa_normalize(text) == triviaqa


def official_triviaqa(text):
  """The steps of the script, one by one."""
  text = text.replace('_', ' ').lower()
  text = ''.join(
    ' ' if character in string.punctuation + '`' + CURLY else character for character in text
  )
  text = re.sub(r'\b(a|an|the)\b', ' ', text)
  return ' '.join(text.split()).strip()


def official_f1(target, prediction):
  """F1 of the scripts of SQuAD 1 and TriviaQA, which give two empty texts 0."""
  target_words, answer_words = target.split(), prediction.split()
  common = sum((collections.Counter(target_words) & collections.Counter(answer_words)).values())
  if common == 0:
    return 0
  precision, recall = common / len(answer_words), common / len(target_words)
  return 2 * precision * recall / (precision + recall)


tricky = st.text(st.sampled_from(list("aAnT the_-.'`X\n\t" + CURLY)), max_size=14)


@given(st.lists(tricky, min_size=1, max_size=3), tricky)
def test_triviaqa_equals_the_official_script_step_by_step(targets, prediction):
  assert metrics.triviaqa_normalize(prediction) == official_triviaqa(prediction)
  accepted = [official_triviaqa(target) for target in targets]
  answer = official_triviaqa(prediction)
  exact, overlap = metrics.by_name('triviaqa_em'), metrics.by_name('triviaqa_f1')
  assert exact.statistics(targets, prediction).tolist() == [answer in accepted, 1]
  best = max(official_f1(target, answer) for target in accepted)
  np.testing.assert_allclose(overlap.statistics(targets, prediction), [best, 1])


def test_real_aliases_of_triviaqa_match_themselves_and_what_the_script_matches():
  path = real('flan_tasks/triviaqa_small.eval.jsonl')
  lines = path.read_text('utf-8').split('\n')[:200]
  rows = [json.loads(line) for line in lines]
  generator = np.random.default_rng(0)
  exact, overlap = [], []
  for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
    aliases = row['aliases']
    alias = aliases[generator.integers(len(aliases))]
    assert metrics.triviaqa_em.statistics(aliases, f'The {alias.swapcase()}!').tolist() == [1, 1]
    accepted = [official_triviaqa(text) for text in aliases]
    for answer in (f'{alias} or {other["target"]}', other['target'], alias.split()[0]):
      read = official_triviaqa(answer)
      exact.append((metrics.triviaqa_em.statistics(aliases, answer)[0], read in accepted))
      best = max(official_f1(text, read) for text in accepted)
      overlap.append((metrics.triviaqa_f1.statistics(aliases, answer)[0], best))
  for pairs in (exact, overlap):
    np.testing.assert_allclose(*zip(*pairs, strict=True))
  assert 0.05 < np.mean(exact) < 0.9
  assert len(rows) == 200


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


@given(st.text(max_size=12), st.text(max_size=12))
def test_the_edit_distance_is_t5s(target, prediction):
  """The package editdistance, applied to pieces split at each character that is in no word."""
  split = [re.split(r'[^\w]', text) for text in (target, prediction)]
  small = [re.split(r'[^\w]', text.lower()) for text in (target, prediction)]
  assert single(metrics.edit_distance_cased, target, prediction) == editdistance.eval(*split)
  assert single(metrics.edit_distance, target, prediction) == editdistance.eval(*small)


def test_the_edit_distance_agrees_with_numbers_worked_by_hand():
  distance, cased = metrics.edit_distance, metrics.by_name('edit_distance_cased')
  assert single(distance, 'We saw Bonn.', 'we saw bonn.') == 0  # it is blind to case,
  assert single(cased, 'We saw Bonn.', 'we saw bonn.') == 2
  assert single(distance, 'Yes, we can.', 'yes we can') == 2  # and sees that a mark is missing,
  assert single(distance, 'Yes, we can.', 'yes; we can!') == 0  # but not which
  assert single(distance, 'one two three', 'onetwo three') == 2
  assert total(distance, [(['a b', 'a b c d'], 'a b c'), (['x'], 'x y z')]) == (1 + 2) / 2
  assert not distance.higher_is_better
  assert not cased.higher_is_better


def test_rouge_agrees_with_numbers_worked_by_hand():
  target, prediction = 'the cats sat on mats', 'The cat was on the mat.'
  # Stemmed: the cat sat on mat, and the cat wa on the mat. Four words and one pair are common.
  expected = {'rouge1': 8 / 11, 'rouge2': 2 / 9, 'rougeL': 8 / 11, 'rougeLsum': 8 / 11}
  for name, value in expected.items():
    assert single(metrics.by_name(name), target, prediction) == pytest.approx(value)
    best = total(metrics.by_name(name), [(['nothing', target, 'x'], prediction), (['a'], 'b')])
    assert best == pytest.approx(value / 2)
    assert single(metrics.by_name(name), '日本', '日本') == 0  # it knows English alone


def test_sentences_of_a_summary_may_change_places_for_rouge_lsum_only():
  target, prediction = 'one two three . four five six', 'four five six . one two three'
  assert single(metrics.rouge('rougeLsum'), target, prediction) == 1
  assert single(metrics.rouge('rougeL'), target, prediction) == 0.5
  lines = [text.replace(' . ', '\n') for text in (target, prediction)]
  assert single(metrics.rouge('rougeLsum'), *lines) == 1


words_of_summaries = st.lists(
  st.sampled_from(['cat', 'cats', 'running', 'runs', '.', '\n', 'x1', 'é']), max_size=9
).map(' '.join)


@given(st.lists(words_of_summaries, min_size=1, max_size=3), words_of_summaries)
def test_rouge_equals_the_library_with_several_references(targets, prediction):
  names = ['rouge1', 'rouge2', 'rougeL', 'rougeLsum']
  scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
  *cut, answer = (text.strip().replace(' . ', ' .\n') for text in (*targets, prediction))
  expected = scorer.score_multi(cut, answer)
  for name in names:
    statistics = metrics.by_name(name).statistics(targets, prediction)
    np.testing.assert_allclose(statistics, [expected[name].fmeasure, 1])


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
  assert single(metrics.bleu(), 'a b c x d', 'a b c y d') == pytest.approx(expected)
  assert single(metrics.bleu(), 'a b c d e f', 'a b c d e') == pytest.approx(100 * np.exp(-1 / 5))
  assert single(metrics.bleu(), 'a b c', 'a b c') == 0  # without a quadruple


def test_finalizing_many_sums_at_once_equals_one_by_one():
  generator = np.random.default_rng(0)
  for metric in (metrics.bleu(), metrics.chrf, metrics.accuracy):
    width = len(metric.statistics(['a b c d e'], 'a b c d f'))
    sums = generator.integers(0, 9, size=(3, 4, width)).astype(float)
    every = metric.finalize(sums)
    assert every.shape == (3, 4)
    for index in np.ndindex(3, 4):
      assert every[index] == pytest.approx(float(metric.finalize(sums[index])))


def test_no_statistics_at_all_finish_as_zero():
  for name in (*metrics.METRICS, 'f1[a]', 'f1[a|b]', 'macro_f1[a|b|c|d|e|f]'):
    width = 49 if name == 'spearman' else 18
    assert metrics.by_name(name).finalize(np.zeros(width)) == 0


@given(st.lists(st.integers(0, 40), min_size=10, max_size=10))
def test_bleu_of_any_counts_lies_between_0_and_100(counts):
  length, reference, *rest = counts
  matches = np.minimum(rest[:4], rest[4:])
  value = metrics.finalize_bleu(np.array([length, reference, *matches, *rest[4:]], float))
  assert 0 <= value <= 100


@pytest.mark.parametrize('tokenize', ['13a', 'intl', 'char', 'zh'])
def test_bleu_uses_sacrebleus_tokenizers(tokenize):
  target, prediction = "It's 3.5 km, 我喜欢猫。 right?", "It's 3.5 km; 我喜欢狗。 right?"
  expected = BLEU(tokenize=tokenize, force=True).corpus_score([prediction], [[target]]).score
  assert single(metrics.bleu(tokenize), target, prediction) == pytest.approx(expected)
  assert 0 < expected < 100


def test_metrics_are_found_by_name_and_the_nearest_name_is_suggested():
  for name, metric in metrics.METRICS.items():
    assert metric.name == name
    assert metrics.by_name(name) is metric
  with pytest.raises(
    ValueError, match=r"'accurracy' \(did you mean 'accuracy'\?\); choose one of acc"
  ):
    metrics.by_name('accurracy')


def test_a_referent_may_be_named_with_more_or_fewer_words():
  referent = metrics.by_name('wsc_referent')
  assert total(referent, [(['the fuzzy bunny'], ' bunny'), (['bunny'], 'Bob')]) == 0.5


def test_a_name_that_is_none_may_be_asked_for():
  assert metrics.find('accurracy') is None
  assert metrics.find('f1[yes|no]') is metrics.by_name('f1[yes|no]')


@pytest.mark.parametrize('name', ['token_accuracy', 'length_normalized_accuracy'])
def test_metrics_of_token_scores_cannot_be_computed_from_texts(name):
  metric = metrics.by_name(name)
  assert metric.finalize(np.array([3.0, 4.0])) == 0.75
  with pytest.raises(
    ValueError, match=f'{name} needs log-probabilities .* run inference in mode `score`'
  ):
    metric.statistics(['a'], 'a')


def test_shares_have_scale_1_and_bleu_and_chrf_100():
  perfect = 'A1 B2 C0 D1 E'
  untold = ('token_accuracy', 'length_normalized_accuracy', 'pearson', 'spearman')
  for metric in metrics.METRICS.values():
    if metric.name in ('bleu_ja_mecab', 'bleu_ko_mecab'):  # optional tokenizers
      assert metric.scale == 100
    elif metric.higher_is_better and metric.name not in untold:
      assert single(metric, perfect, perfect) == metric.scale


@pytest.mark.parametrize('name', ['rougeL', 'edit_distance', 'edit_distance_cased'])
def test_curves_on_real_translations_equal_the_libraries_at_each_threshold(name):
  stem = real('wmt') / 'generaltest2022.zh-en.ref'
  targets, other = (
    pathlib.Path(f'{stem}.{reference}.en').read_text('utf-8').split('\n')[:60] for reference in 'AB'
  )
  large = [text.lower() if i % 3 else text for i, text in enumerate(other)]
  small = [' '.join(text.split()[:-4]) for text in other]
  score = np.random.default_rng(0).integers(0, 9, size=60).astype(float)
  metric = metrics.by_name(name)
  small_statistics, large_statistics = (
    np.stack([metric.statistics([a], b) for a, b in zip(targets, side, strict=True)])
    for side in (small, large)
  )
  curve = curves.deferral_curve(
    score, small_statistics, large_statistics, metric.finalize, lambda rate: rate
  )
  scorer = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)

  def literal(target, text):
    if name.startswith('rouge'):
      return scorer.score(target, text)[name].fmeasure
    both = (target, text) if name == 'edit_distance_cased' else (target.lower(), text.lower())
    return editdistance.eval(*(re.split(r'\W', single) for single in both))

  for threshold, quality in zip(curve.threshold, curve.quality, strict=True):
    mixed = [b if r >= threshold else a for a, b, r in zip(small, large, score, strict=True)]
    expected = np.mean([literal(a, b) for a, b in zip(targets, mixed, strict=True)])
    assert quality == pytest.approx(expected)
  assert len(curve.quality) == 10
  assert (curve.quality[-1] > curve.quality[0]) == metric.higher_is_better


@pytest.mark.parametrize(('language', 'tokenize'), [('en', '13a'), ('ja', 'char')])
def test_curves_of_bleu_on_real_translations_equal_sacrebleu_at_each_threshold(language, tokenize):
  path = real('mt_tanaka_en_ja/test.tsv')
  column = ['en', 'ja'].index(language)
  texts = [line.split('\t')[column] for line in path.read_text('utf-8').rstrip('\n').split('\n')]
  assert len(texts) == 500
  generator = np.random.default_rng(0)

  def damaged(text, rate):
    words = [word for word in text.split() if generator.random() > rate]
    return ' '.join(words[:3][::-1] + words[3:] if generator.random() < rate else words)

  small, large = ([damaged(text, rate) for text in texts] for rate in (0.4, 0.15))
  score = generator.integers(0, 24, size=500).astype(float)
  metric = metrics.bleu(tokenize)
  small_statistics, large_statistics = (
    np.stack([metric.statistics([target], text) for target, text in zip(texts, side, strict=True)])
    for side in (small, large)
  )
  curve = curves.deferral_curve(
    score, small_statistics, large_statistics, metric.finalize, lambda rate: rate
  )
  assert len(curve.threshold) >= 20
  for threshold, quality in zip(curve.threshold, curve.quality, strict=True):
    mixed = [b if r >= threshold else a for a, b, r in zip(small, large, score, strict=True)]
    expected = BLEU(tokenize=tokenize, force=True).corpus_score(mixed, [texts]).score
    assert quality == pytest.approx(expected, abs=1e-9)
  assert curve.quality[-1] > curve.quality[0] + 10
