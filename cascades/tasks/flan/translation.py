"""FLAN2021's translation cluster: English and another language, each into the other.

The templates of a group choose the direction: their target is one sentence or the other.
"""

from __future__ import annotations

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import LIMIT, FlanTask, Preprocessor, PromptFields

_METRICS = ('bleu', 'chrf')
_WMT16 = {  # rows of train, validation and test; publications differ in Czech training rows
  'cs': ('Czech', {'validation': 2656, 'test': 2999}),
  'de': ('German', {'train': 4_548_885, 'validation': 2169, 'test': 2999}),
  'fi': ('Finnish', {'train': 2_073_394, 'validation': 1370, 'test': 6000}),
  'ro': ('Romanian', {'train': 610_320, 'validation': 1999, 'test': 1999}),
  'ru': ('Russian', {'train': 2_516_162, 'validation': 2818, 'test': 2998}),
  'tr': ('Turkish', {'train': 205_756, 'validation': 1001, 'test': 3000}),
}


def _pair(code: str, language: str) -> Preprocessor:
  """A sentence in English and in the other language; pairs with an empty side are left out."""

  def preprocess(example: Example) -> list[PromptFields]:
    sentences = {'sent1': example['en'], 'sent2': example[code]}
    if not all(sentence.strip() for sentence in sentences.values()):
      return []
    return [PromptFields({'lang1': 'English', 'lang2': language, **sentences}, (example[code],))]

  return preprocess


def _wmt16(code: str) -> FlanTask:
  language, sizes = _WMT16[code]
  return FlanTask(
    name=f'wmt16_translate_{code}en',
    dataset=Dataset(f'wmt16_translate/{code}-en', '1.0.0', sizes, {'en': str, code: str}),
    train=f'train[:{LIMIT}]',
    validation='validation[:200]',
    test='test',
    rows=LIMIT,
    preprocess=_pair(code, language),
    metrics=_METRICS,
    templates='wmt16',
  )


TASKS = (
  FlanTask(
    name='para_crawl_enes',
    dataset=Dataset('para_crawl/enes', '1.2.0', {'train': 21_987_267}, {'en': str, 'es': str}),
    train=f'train[:{LIMIT}]',
    validation='train[-1200:-1000]',
    test='train[-1000:]',
    rows=LIMIT,
    preprocess=_pair('es', 'Spanish'),
    metrics=_METRICS,
  ),
  FlanTask(
    name='wmt14_enfr',
    dataset=Dataset(
      'wmt14_translate/fr-en',
      '1.0.0',
      {'train': 40_836_876, 'validation': 3000, 'test': 3003},
      {'en': str, 'fr': str},
    ),
    train=f'train[:{LIMIT}]',
    validation='validation[:200]',
    test='test',
    rows=LIMIT,
    preprocess=_pair('fr', 'French'),
    metrics=_METRICS,
  ),
  *map(_wmt16, _WMT16),
)
