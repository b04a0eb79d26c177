"""FLAN2021's coreference cluster: whom or what does a word stand for."""

from __future__ import annotations

from cascades.tasks import superglue
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, classify, labeled, pick


def _candidates(example: Example) -> list[PromptFields]:
  texts = pick(example, {'sentence': 'sentence', 'pronoun': 'pronoun'})
  return [labeled(texts, example['candidates'], example['label'])]


def _winogrande(example: Example) -> list[PromptFields]:
  """The sentence up to its blank, to be continued by an option and the rest of the sentence."""
  context, blank, rest = example['sentence'].partition('_')
  if not blank:
    raise ValueError(f'there is no blank, _, in the sentence {example["sentence"]!r:.60}')
  options = [example[option] + rest for option in ('option1', 'option2')]
  return [labeled({'context': context.strip()}, options, example['label'])]


def _wsc273(example: Example) -> list[PromptFields]:
  """The text up to its pronoun, to be continued by an option and the rest of the text."""
  text, start, end = (example[name] for name in ('text', 'pronoun_start', 'pronoun_end'))
  if text[start:end] != example['pronoun_text']:
    raise ValueError(f'{text[start:end]!r} stands where {example["pronoun_text"]!r} should')
  options = [example[f'{name}_normalized'] + text[end:] for name in ('option1', 'option2')]
  return [labeled({'context': text[:start].strip()}, options, example['label'])]


TASKS = (
  FlanTask(
    name='definite_pronoun_resolution',
    dataset=Dataset(
      builder='definite_pronoun_resolution',
      version='1.1.0',
      sizes={'train': 1322, 'test': 564},
      features={'sentence': str, 'pronoun': str, 'candidates': [str], 'label': ('0', '1')},
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='test',
    rows=1122,
    preprocess=_candidates,
  ),
  FlanTask(
    name='winogrande',
    dataset=Dataset(
      builder='winogrande',
      version='1.2.0',
      sizes={'train_xl': 40_398, 'validation': 1267, 'test': 1767},
      features={'sentence': str, 'option1': str, 'option2': str, 'label': ('1', '2')},
    ),
    train='train_xl[:30000]',
    validation='train_xl[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_winogrande,
  ),
  FlanTask(
    name='wsc',
    dataset=superglue.DATASETS['wsc'],
    train='train[:-50]',
    validation='train[-50:]',
    test='validation',
    rows=504,
    preprocess=classify(
      {'text': 'text', 'noun': 'span1_text', 'pronoun': 'span2_text'}, ('no', 'yes')
    ),
  ),
)

# In no cluster, and published as a test split only: there is nothing to train on.
WSC273 = FlanTask(
  name='wsc273',
  dataset=Dataset(
    builder='wsc273',
    version='1.0.0',
    sizes={'test': 273},
    features={
      'text': str,
      'option1_normalized': str,
      'option2_normalized': str,
      'pronoun_start': int,
      'pronoun_end': int,
      'pronoun_text': str,
      'label': int,
    },
  ),
  train='',
  validation='',
  test='test',
  rows=0,
  preprocess=_wsc273,
)
