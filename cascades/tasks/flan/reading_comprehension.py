"""FLAN2021's reading comprehension cluster: a passage, and questions that it answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from cascades.tasks import superglue
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, choose, find, labeled, pick

UNANSWERABLE = 'unanswerable'
_NO_YES = ('no', 'yes')
_SQUAD: dict[str, Any] = {
  'title': str,
  'context': str,
  'question': str,
  'answers': {'text': [str]},
}


def _squad(example: Example) -> Iterable[PromptFields]:
  """SQuAD 1.1 and 2.0; a question without answer in 2.0 is answered by `UNANSWERABLE`."""
  texts = pick(example, {'context': 'context', 'question': 'question'})
  texts['title'] = example['title'].replace('_', ' ')  # as in the address of the page
  answers = [UNANSWERABLE] if example.get('is_impossible') else find(example, 'answers.text')
  return [PromptFields(texts, tuple(dict.fromkeys(answers)))]


def _drop(example: Example) -> Iterable[PromptFields]:
  """Leaves empty answers out: TFDS writes one for a date that does not name its day."""
  texts = pick(example, {'passage': 'passage', 'question': 'question'})
  return [PromptFields(texts, (example['answer'],))] if example['answer'] else []


def _multirc(example: Example) -> Iterable[PromptFields]:
  """The answer to be judged is the field `response`, as {answer} is the answer of a template.

  Older files have tags in their texts: <b>Sent 1: </b>...<br>
  """
  fields = {'paragraph': 'paragraph', 'question': 'question', 'response': 'answer'}
  texts = {
    name: re.sub('</?b>', '', text.replace('<br>', ' ')).strip()
    for name, text in pick(example, fields).items()
  }
  return [labeled(texts, _NO_YES, example['label'])]


def _bool_q(example: Example) -> Iterable[PromptFields]:
  texts = pick(example, {name: name for name in ('title', 'passage', 'question')})
  return [labeled(texts, _NO_YES, int(example['answer']))]


TASKS: tuple[FlanTask, ...] = (
  FlanTask(
    name='squad_v1',
    dataset=Dataset(
      builder='squad/v1.1',
      version='3.0.0',
      sizes={'train': 87_599, 'validation': 10_570},
      features=_SQUAD,
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_squad,
    metrics=('token_f1', 'exact_match'),
  ),
  FlanTask(
    name='squad_v2',
    dataset=Dataset(
      builder='squad/v2.0',
      version='3.0.0',
      sizes={'train': 130_319, 'validation': 11_873},
      features={**_SQUAD, 'is_impossible': bool},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_squad,
    metrics=('token_f1', 'exact_match'),
  ),
  FlanTask(
    name='drop',
    dataset=Dataset(
      builder='drop',
      version='2.0.0',
      sizes={'train': 77_409, 'dev': 9536},
      features={'passage': str, 'question': str, 'answer': str},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='dev',
    rows=30_000,
    preprocess=_drop,
    metrics=('token_f1', 'exact_match'),
  ),
  FlanTask(
    name='multirc',
    dataset=superglue.DATASETS['multirc'],
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=27_043,
    preprocess=_multirc,
    metrics=('f1[yes|no]', 'accuracy'),
  ),
  FlanTask(
    name='openbookqa',
    dataset=Dataset(
      builder='openbookqa',
      version='0.1.0',
      sizes={'train': 4957, 'validation': 500, 'test': 500},
      features={
        'question': {
          'stem': str,
          'choice_A': str,
          'choice_B': str,
          'choice_C': str,
          'choice_D': str,
        },
        'fact1': str,
        'answerKey': ('A', 'B', 'C', 'D'),
      },
    ),
    train='train',
    validation='validation[:200]',
    test='test',
    rows=4957,
    preprocess=choose(
      {'fact': 'fact1', 'question': 'question.stem'},
      tuple(f'question.choice_{letter}' for letter in 'ABCD'),
      label='answerKey',
    ),
  ),
  FlanTask(
    name='bool_q',
    dataset=Dataset(
      builder='bool_q',
      version='1.0.0',
      sizes={'train': 9427, 'validation': 3270},
      features={'title': str, 'passage': str, 'question': str, 'answer': bool},
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=9227,
    preprocess=_bool_q,
  ),
)
