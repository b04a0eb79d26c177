"""Quality metrics: K additive statistics per example, and a function of their sums.

A metric of a whole corpus (BLEU, chrF, the phoneme error rate, F1, a correlation) is a function of
sums over examples, as an average is, so curves over every threshold are exact for all of them.
Accuracies, F1 and ROUGE lie in [0, 1]; BLEU and chrF in [0, 100], as sacrebleu prints them.

`statistics(targets, prediction)` of a metric takes all accepted targets and the answer; `finalize`
maps sums of statistics, [..., K], to values, [...].
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from cascades import confusion, correlation, wsc
from cascades.types import Metric

if TYPE_CHECKING:
  from rouge_score.rouge_scorer import RougeScorer
  from sacrebleu.metrics import BLEU

SummedStatistics = Float[np.ndarray, '*M K']
Quality = Float[np.ndarray, '*M']

BLEU_ORDER = 4  # longest n-gram, in tokens
CHRF_ORDER = 6  # longest n-gram, in characters
CHRF_BETA = 2.0
SQUAD_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, ''))
TRIVIAQA_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + '\u2018\u2019\u00b4', ' '))


def by_name(name: str) -> Metric:
  """Metric of a name, as manifests and tasks spell it.

  Args:
    name: A key of `METRICS`, or `f1[POSITIVE|OTHER|...]` or `macro_f1[A|B|...]` with the names of
      classes.

  Raises:
    ValueError: if there is no such metric; the message lists all and suggests the nearest.
  """
  metric = find(name)
  if metric is None:
    near = get_close_matches(name, METRICS, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    names = ', '.join([*METRICS, 'f1[POSITIVE]', 'f1[POSITIVE|OTHER|...]', 'macro_f1[A|B|...]'])
    raise ValueError(f'There is no metric {name!r}{hint}; choose one of {names}.')
  return metric


@cache
def find(name: str) -> Metric | None:
  """Metric of a name, or None; see `by_name`."""
  if classes := re.fullmatch(r'(f1|macro_f1)\[(.*)\]', name, re.DOTALL):
    labels = classes[2].split('|')
    return confusion.f1(*labels) if classes[1] == 'f1' else confusion.macro_f1(*labels)
  return METRICS.get(name)


def ratio(sums: SummedStatistics) -> Quality:
  """First statistic divided by the second; 0 where the second is 0."""
  numerator, denominator = sums[..., 0], sums[..., 1]
  return np.divide(
    numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator != 0
  )


def best_of(
  name: str, quality: Callable[[str, str], float], *, normalize: Callable[[str], str] = str.strip
) -> Metric:
  """Metric that averages the quality of each answer against the best of its accepted targets.

  Args:
    name: Name of the metric.
    quality: Maps a normalized target and a normalized answer to a number; higher is better.
    normalize: Applied to targets and answers.
  """

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    answer = normalize(prediction)
    return np.array([max(quality(normalize(target), answer) for target in targets), 1.0])

  return Metric(name, statistics, ratio)


def equal(target: str, prediction: str) -> float:
  """1 for equal texts, else 0."""
  return float(target == prediction)


def squad_normalize(text: str) -> str:
  """Text in lower case without punctuation and English articles, single-spaced.

  Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, the official evaluation script.
  """
  return _without_articles(text.lower().translate(SQUAD_PUNCTUATION))


def triviaqa_normalize(text: str) -> str:
  """Text in lower case, punctuation replaced by spaces, without English articles, single-spaced.

  Joshi et al. 2017, https://arxiv.org/abs/1705.03551, the official evaluation script. "O'Neill" is
  two words here and one for SQuAD; curly quotes and the acute accent are punctuation.
  """
  return _without_articles(text.lower().translate(TRIVIAQA_PUNCTUATION))


def _without_articles(text: str) -> str:
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def word_overlap(target: str, prediction: str) -> float:
  """F1 of two bags of words: 2 |common| / (|target| + |prediction|); 0 for two empty texts."""
  expected, actual = Counter(target.split()), Counter(prediction.split())
  return 2 * (expected & actual).total() / max(1, expected.total() + actual.total())


def token_overlap(target: str, prediction: str) -> float:
  """F1 of two bags of words as in SQuAD 2: 1 for two empty texts."""
  return word_overlap(target, prediction) if target or prediction else 1.0


def without_stress(phonemes: str) -> str:
  """ARPAbet without the stress marks of vowels: 'HH AH0 L OW1' becomes 'HH AH L OW'."""
  return ' '.join(symbol.rstrip('012') for symbol in phonemes.split())


def single_spaced(text: str) -> str:
  """Text with one space between words."""
  return ' '.join(text.split())


def edits(target: Sequence[str], prediction: Sequence[str]) -> int:
  """Levenshtein distance: insertions, deletions and substitutions, each costing 1."""
  row = list(range(len(prediction) + 1))
  for i, symbol in enumerate(target, start=1):
    diagonal, row[0] = row[0], i
    for j, other in enumerate(prediction, start=1):
      diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (symbol != other))
  return row[-1]


def words_and_gaps(text: str) -> list[str]:
  """Words as T5 splits a text for its edit distance, at each character that is in no word.

  Two such characters in a row leave an empty word between them: 'a, b' gives a, '' and b. The
  amount of punctuation counts therefore, its characters do not.
  """
  return re.split(r'\W', text)


def _word_edits(*, cased: bool) -> Callable[[Sequence[str], str], Float[np.ndarray, 'K']]:
  """Statistics (edits to the closest target, 1), in words."""

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    answer, *references = (
      words_and_gaps(text if cased else text.lower()) for text in (prediction, *targets)
    )
    return np.array([min(edits(reference, answer) for reference in references), 1.0])

  return statistics


def _symbol_errors(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
  """Edits to the closest target and that target's length; of equally close ones, the longest."""
  answer = prediction.split()
  references = [target.split() for target in targets]
  fewest, negative_length = min((edits(symbols, answer), -len(symbols)) for symbols in references)
  return np.array([fewest, -negative_length], float)


@cache
def _rouge_scorer(name: str) -> RougeScorer:
  from rouge_score.rouge_scorer import RougeScorer  # here, since it takes seconds to import

  return RougeScorer([name], use_stemmer=True)


def rouge(name: str) -> Metric:
  """Mean ROUGE F-measure against the best reference, with Porter's stemmer, by rouge-score.

  Lin 2004, https://aclanthology.org/W04-1013. For English only: all characters but a-z and 0-9
  separate words. `rougeLsum` compares line by line, and as in T5, which does not stem, ' . ' ends
  a line.

  Args:
    name: 'rouge1', 'rouge2', 'rougeL' or 'rougeLsum'.
  """

  def f_measure(target: str, prediction: str) -> float:
    lines = (text.replace(' . ', ' .\n') for text in (target, prediction))
    return float(_rouge_scorer(name).score(*lines)[name].fmeasure)

  return best_of(name, f_measure)


@cache
def _sacrebleu(tokenize: str) -> BLEU:
  from sacrebleu.metrics import BLEU  # here, since it is slow to import and mecab is optional

  return BLEU(tokenize=tokenize, force=True)


def bleu(tokenize: str = '13a') -> Metric:
  """Corpus BLEU as sacrebleu computes it, with its tokenizers and its default smoothing.

  Statistics: length, length of the closest reference, matches of each order, n-grams of each order.
  Papineni et al. 2002; Post 2018, https://arxiv.org/abs/1804.08771.

  Args:
    tokenize: Name of a tokenizer of sacrebleu.
  """

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    score = _sacrebleu(tokenize).corpus_score([prediction], [[target] for target in targets])
    return np.array([score.sys_len, score.ref_len, *score.counts, *score.totals], float)

  name = 'bleu' if tokenize == '13a' else f'bleu_{tokenize.replace("-", "_")}'
  return Metric(name, statistics, finalize_bleu, scale=100.0)


def finalize_bleu(sums: SummedStatistics) -> Quality:
  """BLEU = 100 min(1, exp(1 - r/c)) (prod_n p_n)^(1/4), with p_n = matches / n-grams of order n.

  The i-th order without a match counts as 2^-i matches (smoothing 'exp'). BLEU is 0 without any
  match, or without an n-gram of the highest order.
  """
  length, reference = sums[..., 0], sums[..., 1]
  product, credit = np.ones(np.shape(length)), np.ones(np.shape(length))
  for n in range(2, 2 + BLEU_ORDER):
    matches, total = sums[..., n], sums[..., n + BLEU_ORDER]
    credit = np.where(matches == 0, credit / 2, credit)
    product *= np.where(matches == 0, credit, matches) / np.maximum(total, 1)
  defined = (sums[..., 2] > 0) & (sums[..., 1 + 2 * BLEU_ORDER] > 0)
  brevity = np.exp(np.minimum(1 - reference / np.maximum(length, 1), 0))
  return np.where(defined, 100 * brevity * np.sqrt(np.sqrt(product)), 0.0)


def _character_ngrams(text: str) -> list[Counter[str]]:
  """N-grams of each order from 1 to CHRF_ORDER, without spaces."""
  text = ''.join(text.split())
  return [
    Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, CHRF_ORDER + 1)
  ]


def _chrf_statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
  """Number of n-grams of the answer, of the best target, and common ones, for each order."""
  answer_ngrams = _character_ngrams(prediction)
  candidates = []
  for target in targets:
    counts = []
    for answer, reference in zip(answer_ngrams, _character_ngrams(target), strict=True):
      # sacrebleu skips an order that the target is too short for.
      counts += [
        answer.total() if reference else 0,
        reference.total(),
        (answer & reference).total(),
      ]
    candidates.append(np.array(counts, float))
  return max(candidates, key=lambda counts: float(finalize_chrf(counts)))


def finalize_chrf(sums: SummedStatistics) -> Quality:
  """chrF = 100 (1 + b^2) P R / (b^2 P + R), P and R averaged over the orders that both texts have.

  Popovic 2015, https://aclanthology.org/W15-3049, with b = 2 and character 6-grams.
  """
  answers, references, common = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
  both = (answers > 0) & (references > 0)
  orders = np.maximum(both.sum(axis=-1), 1)
  precision = np.sum(common / np.maximum(answers, 1), axis=-1, where=both) / orders
  recall = np.sum(common / np.maximum(references, 1), axis=-1, where=both) / orders
  denominator = CHRF_BETA**2 * precision + recall
  numerator = 100 * (1 + CHRF_BETA**2) * precision * recall
  return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator > 0)


def _of_token_scores(name: str) -> Callable[[Sequence[str], str], Float[np.ndarray, 'K']]:
  """Statistics that only inference can compute, from log-probabilities of tokens."""

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    del targets, prediction
    raise ValueError(
      f'{name} needs log-probabilities of tokens, and cannot be computed from texts: run inference '
      'in mode `score`.'
    )

  return statistics


accuracy = best_of('accuracy', equal)
exact_match = best_of('exact_match', equal, normalize=squad_normalize)
token_f1 = best_of('token_f1', token_overlap, normalize=squad_normalize)
word_accuracy = best_of('word_accuracy', equal, normalize=single_spaced)
word_accuracy_stressless = best_of('word_accuracy_stressless', equal, normalize=without_stress)
triviaqa_em = best_of('triviaqa_em', equal, normalize=triviaqa_normalize)
triviaqa_f1 = best_of('triviaqa_f1', word_overlap, normalize=triviaqa_normalize)
wsc_referent = best_of('wsc_referent', wsc.quality)
phoneme_error_rate = Metric('phoneme_error_rate', _symbol_errors, ratio, higher_is_better=False)
# Ignores case, as in T5 and FLAN; edit_distance_cased is for true-casing.
edit_distance = Metric(
  'edit_distance', _word_edits(cased=False), ratio, higher_is_better=False, scale=math.inf
)
edit_distance_cased = edit_distance._replace(
  name='edit_distance_cased', statistics=_word_edits(cased=True)
)
# Statistics: correct tokens, tokens.
token_accuracy = Metric('token_accuracy', _of_token_scores('token_accuracy'), ratio)
# Of the option of highest log-probability per token; `accuracy` is of the highest total.
length_normalized_accuracy = Metric(
  'length_normalized_accuracy', _of_token_scores('length_normalized_accuracy'), ratio
)
chrf = Metric('chrf', _chrf_statistics, finalize_chrf, scale=100.0)

METRICS: Mapping[str, Metric] = MappingProxyType({
  metric.name: metric
  for metric in (
    accuracy, exact_match, token_f1, triviaqa_em, triviaqa_f1, word_accuracy,
    word_accuracy_stressless, wsc_referent, phoneme_error_rate, edit_distance, edit_distance_cased,
    token_accuracy, length_normalized_accuracy, correlation.pearson, correlation.spearman,
    bleu(), bleu('intl'), bleu('char'), bleu('zh'), bleu('ja-mecab'), bleu('ko-mecab'), chrf,
    rouge('rouge1'), rouge('rouge2'), rouge('rougeL'), rouge('rougeLsum'),
  )
})  # fmt: skip
