"""FLAN2021's sentiment cluster: is a text negative or positive."""

from __future__ import annotations

import re

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, classify, labeled

_SENTIMENTS = ('negative', 'positive')
_POLARITIES = {0: 0, 1: 0, 3: 1, 4: 1}  # to the sentiment's index; 2 is neutral
_NEUTRAL = 2


def _imdb(example: Example) -> list[PromptFields]:
  """Replaces HTML's line breaks."""
  text = example['text'].replace('<br />', '\n')
  return [labeled({'text': text}, _SENTIMENTS, example['label'])]


def _sentiment140(example: Example) -> list[PromptFields]:
  """A neutral tweet, of which only the test split has some, is left out."""
  polarity = example['polarity']
  if polarity == _NEUTRAL:
    return []
  if polarity not in _POLARITIES:
    raise ValueError(f'the polarity {polarity} is not from 0 to 4')
  return [labeled({'text': example['text']}, _SENTIMENTS, _POLARITIES[polarity])]


def _yelp(example: Example) -> list[PromptFields]:
  r"""Undoes the escapes of the published file, which TFDS keeps: \n, and \"" for a quote."""
  text = re.sub(r'\\?""', '"', example['text']).replace(r'\n', ' ')
  return [labeled({'text': text}, _SENTIMENTS, example['label'])]


TASKS = (
  FlanTask(
    name='imdb_reviews',
    dataset=Dataset(
      builder='imdb_reviews/plain_text',
      version='1.0.0',
      sizes={'train': 25_000, 'test': 25_000, 'unsupervised': 50_000},
      features={'text': str, 'label': ('neg', 'pos')},
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='test',
    rows=24_800,
    preprocess=_imdb,
  ),
  FlanTask(
    name='sentiment140',
    dataset=Dataset(
      builder='sentiment140',
      version='1.0.0',
      sizes={'train': 1_600_000, 'test': 498},
      features={'text': str, 'polarity': int},
      ordered=True,
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='test',
    rows=30_000,
    preprocess=_sentiment140,
  ),
  FlanTask(
    name='yelp_polarity_reviews',
    dataset=Dataset(
      builder='yelp_polarity_reviews',
      version='0.2.0',
      sizes={'train': 560_000, 'test': 38_000},
      features={'text': str, 'label': ('1', '2')},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='test',
    rows=30_000,
    preprocess=_yelp,
  ),
  FlanTask(
    name='sst2',
    dataset=Dataset(
      builder='glue/sst2',
      version='2.0.0',
      sizes={'train': 67_349, 'validation': 872, 'test': 1821},
      features={'sentence': str, 'label': ('negative', 'positive')},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=classify({'sentence': 'sentence'}, _SENTIMENTS),
  ),
)
