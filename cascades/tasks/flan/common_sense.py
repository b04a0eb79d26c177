"""FLAN2021's common sense cluster: which of several texts goes on plausibly."""

from __future__ import annotations

import re

from cascades.tasks import superglue
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, choose, labeled

_TAG = re.compile(r'\s*\[[^\[\]]*\]\s*')  # [header], [title], [step], [substeps]
_ENDINGS = {1: 0, 2: 1, NO_LABEL: NO_LABEL}  # counted from one


def _hellaswag(example: Example) -> list[PromptFields]:
  """Tags of how-to articles become line breaks; an unlabeled row is left out."""
  if not 0 <= example['label'] < 4:
    return []
  context = _TAG.sub('\n', example['context']).strip()
  endings = [_TAG.sub(' ', ending).strip() for ending in example['endings']]
  return [labeled({'context': context}, endings, example['label'])]


def _story_cloze(example: Example) -> list[PromptFields]:
  label = example['label']
  if label not in _ENDINGS:
    raise ValueError(f'the label {label} is neither ending 1 nor ending 2')
  return [labeled({'context': example['context']}, example['endings'], _ENDINGS[label])]


TASKS = (
  FlanTask(
    name='copa',
    dataset=superglue.DATASETS['copa'],
    train='train[:-50]',
    validation='train[-50:]',
    test='validation',
    rows=350,
    preprocess=choose({'premise': 'premise', 'question': 'question'}, ('choice1', 'choice2')),
  ),
  FlanTask(
    name='hellaswag',
    dataset=Dataset(
      builder='hellaswag',
      version='1.1.0',
      sizes={'train': 39_905, 'validation': 10_042, 'test': 10_003},
      features={'context': str, 'endings': [str], 'label': int},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_hellaswag,
  ),
  FlanTask(
    name='story_cloze',
    dataset=Dataset(
      builder='story_cloze/2016',
      version='1.0.0',
      sizes={'validation': 1871, 'test': 1871},
      features={'context': str, 'endings': [str], 'label': int},
    ),
    train='validation[:-200]',
    validation='validation[-200:]',
    test='test',
    rows=1671,
    preprocess=_story_cloze,
  ),
  FlanTask(
    name='piqa',
    dataset=Dataset(
      builder='piqa',
      version='1.0.0',
      sizes={'train': 16_113, 'validation': 1838},
      features={'goal': str, 'sol1': str, 'sol2': str, 'label': ('0', '1')},
    ),
    train='train[:-100]',
    validation='train[-100:]',
    test='validation',
    rows=16_013,
    preprocess=choose({'goal': 'goal'}, ('sol1', 'sol2')),
  ),
)
