"""FLAN2021's paraphrase cluster: do two texts mean the same."""

from __future__ import annotations

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, classify, labeled, pick

_GLUE = '2.0.0'
_SENTENCES = {'sentence1': 'sentence1', 'sentence2': 'sentence2'}
_SIMILARITIES = ('0', '1', '2', '3', '4', '5')


def _stsb(example: Example) -> list[PromptFields]:
  """The similarity becomes a whole number, by half to even: 2.5 is '2', 3.5 is '4'."""
  similarity = example['label']
  if similarity != NO_LABEL and not 0 <= similarity <= 5:
    raise ValueError(f'the similarity {similarity} is not from 0 to 5')
  return [labeled(pick(example, _SENTENCES), _SIMILARITIES, round(similarity))]


TASKS = (
  FlanTask(
    name='glue_mrpc',
    dataset=Dataset(
      builder='glue/mrpc',
      version=_GLUE,
      sizes={'train': 3668, 'validation': 408, 'test': 1725},
      features={'sentence1': str, 'sentence2': str, 'label': ('not_equivalent', 'equivalent')},
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=3468,
    preprocess=classify(_SENTENCES, ('no', 'yes')),
    metrics=('accuracy', 'f1[yes|no]'),
  ),
  FlanTask(
    name='glue_qqp',
    dataset=Dataset(
      builder='glue/qqp',
      version=_GLUE,
      sizes={'train': 363_846, 'validation': 40_430, 'test': 390_965},
      features={'question1': str, 'question2': str, 'label': ('not_duplicate', 'duplicate')},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=classify({'question1': 'question1', 'question2': 'question2'}, ('no', 'yes')),
    metrics=('accuracy', 'f1[yes|no]'),
  ),
  FlanTask(
    name='paws_wiki',
    dataset=Dataset(
      builder='paws_wiki/labeled_final_tokenized',
      version='1.1.0',
      sizes={'train': 49_401, 'validation': 8000, 'test': 8000},
      features={'sentence1': str, 'sentence2': str, 'label': ('different_meaning', 'paraphrase')},
    ),
    train='train[:30000]',
    validation='validation[:200]',
    test='test',
    rows=30_000,
    preprocess=classify(_SENTENCES, ('no', 'yes')),
  ),
  FlanTask(
    name='stsb',
    dataset=Dataset(
      builder='glue/stsb',
      version=_GLUE,
      sizes={'train': 5749, 'validation': 1500, 'test': 1379},
      features={'sentence1': str, 'sentence2': str, 'label': float},
    ),
    train='train[:-100]',
    validation='train[-100:]',
    test='validation',
    rows=5649,
    preprocess=_stsb,
    metrics=('pearson', 'spearman'),
  ),
)
