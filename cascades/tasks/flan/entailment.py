"""FLAN2021's entailment cluster: does one text follow from another."""

from __future__ import annotations

from collections.abc import Mapping

from cascades.tasks import superglue
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, classify, labeled, pick

_GLUE = '2.0.0'
_PAIR = {'premise': 'premise', 'hypothesis': 'hypothesis'}
_LABELS = ('entailment', 'neutral', 'contradiction')  # SuperGLUE's CB has another order
_VERDICTS = ('yes', 'it is not possible to tell', 'no')


def _snli(example: Example) -> list[PromptFields]:
  """A pair on which its annotators did not agree is left out."""
  if example['label'] == NO_LABEL:
    return []
  return [labeled(pick(example, _PAIR), _VERDICTS, example['label'])]


def _anli(number: int, train: str, rows: int, sizes: Mapping[str, int]) -> FlanTask:
  """One round of adversarial NLI."""
  return FlanTask(
    name=f'anli_r{number}',
    dataset=Dataset(
      builder=f'anli/r{number}',
      version='0.1.0',
      sizes=sizes,
      features={'context': str, 'hypothesis': str, 'label': ('e', 'n', 'c')},
    ),
    train=train,
    validation='validation[:200]',
    test='test',
    rows=rows,
    preprocess=classify(
      {'context': 'context', 'hypothesis': 'hypothesis'}, ('Yes', "It's impossible to say", 'No')
    ),
    templates='anli',
  )


def _mnli(genres: str) -> FlanTask:
  """The validation split of the training split's genres, 'matched', or of others."""
  return FlanTask(
    name=f'mnli_{genres}',
    dataset=Dataset(
      builder='glue/mnli',
      version=_GLUE,
      sizes={
        'train': 392_702,
        'validation_matched': 9815,
        'validation_mismatched': 9832,
        'test_matched': 9796,
        'test_mismatched': 9847,
      },
      features={'premise': str, 'hypothesis': str, 'label': _LABELS},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test=f'validation_{genres}',
    rows=30_000,
    preprocess=classify(_PAIR, _VERDICTS),
    templates='mnli',
  )


TASKS = (
  _anli(1, 'train', 16_946, {'train': 16_946, 'validation': 1000, 'test': 1000}),
  _anli(2, 'train[:30000]', 30_000, {'train': 45_460, 'validation': 1000, 'test': 1000}),
  _anli(3, 'train[:30000]', 30_000, {'train': 100_459, 'validation': 1200, 'test': 1200}),
  FlanTask(
    name='cb',
    dataset=superglue.DATASETS['cb'],
    train='train[:-50]',
    validation='train[-50:]',
    test='validation',
    rows=200,
    preprocess=classify(_PAIR, ('Yes', 'No', "It's impossible to say")),
    metrics=('accuracy', "macro_f1[Yes|No|It's impossible to say]"),
  ),
  FlanTask(
    name='rte',
    dataset=superglue.DATASETS['rte'],
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=2290,
    preprocess=classify(_PAIR, ('yes', 'no')),
  ),
  _mnli('matched'),
  _mnli('mismatched'),
  FlanTask(
    name='qnli',
    dataset=Dataset(
      builder='glue/qnli',
      version=_GLUE,
      sizes={'train': 104_743, 'validation': 5463, 'test': 5463},
      features={'question': str, 'sentence': str, 'label': ('entailment', 'not_entailment')},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=classify({'question': 'question', 'sentence': 'sentence'}, ('yes', 'no')),
  ),
  FlanTask(
    name='wnli',
    dataset=Dataset(
      builder='glue/wnli',
      version=_GLUE,
      sizes={'train': 635, 'validation': 71, 'test': 146},
      features={'sentence1': str, 'sentence2': str, 'label': ('not_entailment', 'entailment')},
    ),
    train='train[:-30]',
    validation='train[-30:]',
    test='validation',
    rows=605,
    preprocess=classify({'sentence1': 'sentence1', 'sentence2': 'sentence2'}, ('no', 'yes')),
  ),
  FlanTask(
    name='snli',
    dataset=Dataset(
      builder='snli',
      version='1.1.0',
      sizes={'train': 550_152, 'validation': 10_000, 'test': 10_000},
      features={'premise': str, 'hypothesis': str, 'label': _LABELS},
    ),
    train='train[:30000]',
    validation='validation[:200]',
    test='test',
    rows=30_000,
    preprocess=_snli,
  ),
)
