"""FLAN2021's open-domain QA cluster: questions without a text to look the answer up in."""

from __future__ import annotations

from collections.abc import Iterable

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, find, labeled

CHOICES = 4
UNKNOWN = '<unk>'  # TFDS's answer to TriviaQA's test questions, which were published without
_LETTERS = ('A', 'B', 'C', 'D', 'E')  # TFDS turns the digits of some files into letters
_ARC = {'question': str, 'choices': {'text': [str]}, 'answerKey': _LETTERS}


def _trivia_qa(example: Example) -> Iterable[PromptFields]:
  value = find(example, 'answer.normalized_value')
  accepted = () if value == UNKNOWN else (value, *find(example, 'answer.normalized_aliases'))
  return [PromptFields({'question': example['question']}, tuple(dict.fromkeys(accepted)))]


def _natural_questions(example: Example) -> Iterable[PromptFields]:
  """The questions are queries to a search engine, and lack their mark."""
  question = example['question'].rstrip(' ?') + '?'
  return [PromptFields({'question': question}, tuple(dict.fromkeys(example['answer'])))]


def _arc(example: Example) -> Iterable[PromptFields]:
  options = find(example, 'choices.text')
  if len(options) != CHOICES:
    return []
  return [labeled({'question': example['question']}, options, example['answerKey'])]


TASKS: tuple[FlanTask, ...] = (
  FlanTask(
    name='trivia_qa',
    dataset=Dataset(
      builder='trivia_qa/rc',
      version='1.1.0',
      sizes={'train': 138_384, 'validation': 18_669, 'test': 17_210},
      features={
        'question': str,
        'answer': {'normalized_value': str, 'normalized_aliases': [str]},
      },
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_trivia_qa,
    metrics=('triviaqa_f1', 'triviaqa_em'),
  ),
  FlanTask(
    name='natural_questions',
    dataset=Dataset(
      builder='natural_questions_open',
      version='1.0.0',
      sizes={'train': 87_925, 'validation': 3610},
      features={'question': str, 'answer': [str]},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_natural_questions,
    metrics=('triviaqa_f1', 'triviaqa_em'),
  ),
  FlanTask(
    name='arc_challenge',
    dataset=Dataset(
      builder='ai2_arc/ARC-Challenge',
      version='1.0.0',
      sizes={'train': 1119, 'validation': 299, 'test': 1172},
      features=_ARC,
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='test',
    rows=919,
    preprocess=_arc,
    templates='arc',
  ),
  FlanTask(
    name='arc_easy',
    dataset=Dataset(
      builder='ai2_arc/ARC-Easy',
      version='1.0.0',
      sizes={'train': 2251, 'validation': 570, 'test': 2376},
      features=_ARC,
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='test',
    rows=2051,
    preprocess=_arc,
    templates='arc',
  ),
)
