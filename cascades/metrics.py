"""Quality metrics: K additive numbers an example, and what finishes their sums.

A metric of a whole corpus (BLEU, chrF, the phoneme error rate, F1, a correlation) is a function of
sums over examples, as an average is; so a curve over every threshold is exact for all of them.
Shares and ROUGE lie in 0..1; BLEU and chrF in 0..100, as sacrebleu prints them.
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

Sums = Float[np.ndarray, '*M K']
Values = Float[np.ndarray, '*M']

ORDER = 4  # of BLEU's n-grams
CHARACTERS = 6  # of chrF's
BETA = 2.0
SQUAD_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, ''))
TRIVIAQA_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + '\u2018\u2019\u00b4', ' '))


def by_name(name: str) -> Metric:
  """The metric that a table's manifest or a task's row names."""
  found = find(name)
  if found is None:
    near = get_close_matches(name, METRICS, n=1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    known = ', '.join([*METRICS, 'f1[POSITIVE]', 'f1[POSITIVE|OTHER|...]', 'macro_f1[A|B|...]'])
    raise ValueError(f'No metric is called {name!r}{hint}; known: {known}.')
  return found


@cache
def find(name: str) -> Metric | None:
  """The metric of this name, if there is one. F1s carry their classes in their names."""
  if of_classes := re.fullmatch(r'(f1|macro_f1)\[(.*)\]', name, re.DOTALL):
    labels = of_classes[2].split('|')
    return confusion.f1(*labels) if of_classes[1] == 'f1' else confusion.macro_f1(*labels)
  return METRICS.get(name)


def ratio(sums: Sums) -> Values:
  """First statistic over the second; 0 where the second is 0."""
  top, bottom = sums[..., 0], sums[..., 1]
  return np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom != 0)


def best_of(
  name: str, quality: Callable[[str, str], float], *, normalize: Callable[[str], str] = str.strip
) -> Metric:
  """A mean over examples of the quality against the best of the accepted targets."""

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    answer = normalize(prediction)
    return np.array([max(quality(normalize(target), answer) for target in targets), 1.0])

  return Metric(name, statistics, ratio)


def equal(target: str, prediction: str) -> float:
  return float(target == prediction)


def squad_normalize(text: str) -> str:
  """Lower case, no punctuation, no English article, single spaces.

  Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, the official evaluation script.
  """
  return _without_articles(text.lower().translate(SQUAD_PUNCTUATION))


def triviaqa_normalize(text: str) -> str:
  """Lower case, a space for each punctuation mark, no English article, single spaces.

  Joshi et al. 2017, https://arxiv.org/abs/1705.03551, the official evaluation script: "O'Neill" is
  two words here and one for SQuAD; curly quotes and the acute accent are punctuation too.
  """
  return _without_articles(text.lower().translate(TRIVIAQA_PUNCTUATION))


def _without_articles(text: str) -> str:
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def word_overlap(target: str, prediction: str) -> float:
  """F1 of two bags of words: 2 |common| / (|target| + |prediction|); 0 of two empty texts."""
  wanted, given = Counter(target.split()), Counter(prediction.split())
  return 2 * (wanted & given).total() / max(1, wanted.total() + given.total())


def token_overlap(target: str, prediction: str) -> float:
  """The same as SQuAD 2 counts it, for which two empty texts agree."""
  return word_overlap(target, prediction) if target or prediction else 1.0


def without_stress(phonemes: str) -> str:
  """ARPAbet vowels end in 0, 1 or 2 for their stress: 'HH AH0 L OW1' becomes 'HH AH L OW'."""
  return ' '.join(symbol.rstrip('012') for symbol in phonemes.split())


def single_spaced(text: str) -> str:
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
  """Words, and an empty word where two characters that are in no word meet: 'a, b' is a,,b.

  So T5 cuts texts for its edit distance; thus punctuation counts, though not which.
  """
  return re.split(r'\W', text)


def _word_edits(*, cased: bool) -> Callable[[Sequence[str], str], Float[np.ndarray, 'K']]:
  """Edits to the closest target."""

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    answer, *wanted = (
      words_and_gaps(text if cased else text.lower()) for text in (prediction, *targets)
    )
    return np.array([min(edits(words, answer) for words in wanted), 1.0])

  return statistics


def _symbol_errors(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
  """Edits to the closest target and that target's length; of equally close ones, the longest."""
  answer = prediction.split()
  wanted = [target.split() for target in targets]
  fewest, negative_length = min((edits(symbols, answer), -len(symbols)) for symbols in wanted)
  return np.array([fewest, -negative_length], float)


@cache
def _rouge_scorer(kind: str) -> RougeScorer:
  from rouge_score.rouge_scorer import RougeScorer  # here, since it takes seconds to import

  return RougeScorer([kind], use_stemmer=True)


def rouge(kind: str) -> Metric:
  """Mean F-measure against the best reference, with Porter's stemmer, by the library rouge-score.

  Lin 2004, https://aclanthology.org/W04-1013. For English only: all but a-z and 0-9 separates
  words. `rougeLsum` compares line by line, and as in T5, which does not stem, ' . ' ends a line.
  """

  def f_measure(target: str, prediction: str) -> float:
    lines = (text.replace(' . ', ' .\n') for text in (target, prediction))
    return float(_rouge_scorer(kind).score(*lines)[kind].fmeasure)

  return best_of(kind, f_measure)


@cache
def _sacrebleu(tokenize: str) -> BLEU:
  from sacrebleu.metrics import BLEU  # here, since it is slow to import and mecab is optional

  return BLEU(tokenize=tokenize, force=True)


def bleu(tokenize: str = '13a') -> Metric:
  """Corpus BLEU as sacrebleu computes it, with its tokenisers and its default smoothing.

  Statistics: length, closest reference's length, ORDER matches, ORDER totals. Papineni et al.
  2002; Post 2018, https://arxiv.org/abs/1804.08771.
  """

  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    score = _sacrebleu(tokenize).corpus_score([prediction], [[target] for target in targets])
    return np.array([score.sys_len, score.ref_len, *score.counts, *score.totals], float)

  name = 'bleu' if tokenize == '13a' else f'bleu_{tokenize.replace("-", "_")}'
  return Metric(name, statistics, finalize_bleu, scale=100.0)


def finalize_bleu(sums: Sums) -> Values:
  """100 min(1, exp(1 - r/c)) (prod_n p_n)^(1/4), with p_n = matches / totals.

  The i-th order without a match counts as 2^-i matches (smoothing 'exp'); no match at all, or no
  n-gram of some order, is 0.
  """
  length, reference = sums[..., 0], sums[..., 1]
  product, credit = np.ones(np.shape(length)), np.ones(np.shape(length))
  for n in range(2, 2 + ORDER):
    matches, total = sums[..., n], sums[..., n + ORDER]
    credit = np.where(matches == 0, credit / 2, credit)
    product *= np.where(matches == 0, credit, matches) / np.maximum(total, 1)
  defined = (sums[..., 2] > 0) & (sums[..., 1 + 2 * ORDER] > 0)
  brevity = np.exp(np.minimum(1 - reference / np.maximum(length, 1), 0))
  return np.where(defined, 100 * brevity * np.sqrt(np.sqrt(product)), 0.0)


def _character_ngrams(text: str) -> list[Counter[str]]:
  text = ''.join(text.split())
  return [
    Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, CHARACTERS + 1)
  ]


def _chrf_statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
  """For each order: n-grams of the answer, of the target, common; against the best target."""
  given = _character_ngrams(prediction)
  candidates = []
  for target in targets:
    counts = []
    for ours, theirs in zip(given, _character_ngrams(target), strict=True):
      # sacrebleu skips an order that the target is too short for.
      counts += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    candidates.append(np.array(counts, float))
  return max(candidates, key=lambda counts: float(finalize_chrf(counts)))


def finalize_chrf(sums: Sums) -> Values:
  """100 (1 + b^2) P R / (b^2 P + R): P and R averaged over the orders that both sides have.

  Popovic 2015, https://aclanthology.org/W15-3049, with b = 2 and character 6-grams.
  """
  given, wanted, common = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
  both = (given > 0) & (wanted > 0)
  orders = np.maximum(both.sum(axis=-1), 1)
  precision = np.sum(common / np.maximum(given, 1), axis=-1, where=both) / orders
  recall = np.sum(common / np.maximum(wanted, 1), axis=-1, where=both) / orders
  bottom = BETA**2 * precision + recall
  top = 100 * (1 + BETA**2) * precision * recall
  return np.divide(top, bottom, out=np.zeros(np.shape(top)), where=bottom > 0)


def _found_by_inference(name: str) -> Callable[[Sequence[str], str], Float[np.ndarray, 'K']]:
  def statistics(targets: Sequence[str], prediction: str) -> Float[np.ndarray, 'K']:
    del targets, prediction
    raise ValueError(f'{name} is what inference in mode `score` finds; texts do not tell it.')

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
# As T5 and FLAN have it, blind to case: for true-casing see the other.
edit_distance = Metric(
  'edit_distance', _word_edits(cased=False), ratio, higher_is_better=False, scale=math.inf
)
edit_distance_cased = edit_distance._replace(
  name='edit_distance_cased', statistics=_word_edits(cased=True)
)
# Right tokens and tokens.
token_accuracy = Metric('token_accuracy', _found_by_inference('token_accuracy'), ratio)
# Of the option of highest log-probability per token; `accuracy` is of the highest in all.
length_normalized_accuracy = Metric(
  'length_normalized_accuracy', _found_by_inference('length_normalized_accuracy'), ratio
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
