"""FLAN2021's tasks of no cluster: equations, conversations, word senses, grammar and more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cascades.tasks import superglue
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.flan.definition import FlanTask, PromptFields, choose, classify, find, generate

CANNOT_ANSWER = 'CANNOTANSWER'  # ends QuAC's texts, to be a span that answers nothing
HIGHLIGHT = '\n@highlight'
PLACEHOLDER = '@placeholder'


def numbered(items: Sequence[str]) -> str:
  """'1. this', a line each."""
  return '\n'.join(f'{number}. {item}' for number, item in enumerate(items, start=1))


def _quac(example: Example) -> Iterable[PromptFields]:
  """Questions that the text does not answer are left out."""
  texts = {
    name: example[name].replace(CANNOT_ANSWER, '').strip()
    for name in ('background', 'context', 'question')
  }
  answer = find(example, 'orig_answer.text').replace(CANNOT_ANSWER, '').strip()
  return [PromptFields(texts, (answer,))] if answer else []


def _coqa(example: Example) -> Iterable[PromptFields]:
  """A whole conversation at once."""
  questions, answers = example['questions'], find(example, 'answers.input_text')
  if len(questions) != len(answers):
    raise ValueError(f'there are {len(questions)} questions and {len(answers)} answers')
  texts = {'story': example['story'], 'questions': numbered(questions)}
  return [PromptFields(texts, (numbered(answers),))]


def _record(example: Example) -> Iterable[PromptFields]:
  """The query up to its gap -> an entity and the rest of the query.

  The label is the index among the entities of the first answer that is one of them.
  """
  query, gap, rest = example['query'].partition(PLACEHOLDER)
  if not gap:
    raise ValueError(f'the query {query!r:.60} has no {PLACEHOLDER}')
  texts = {'passage': example['passage'].partition(HIGHLIGHT)[0].strip(), 'query': query.strip()}
  options, answers = (
    tuple(dict.fromkeys(entity + rest for entity in example[name]))
    for name in ('entities', 'answers')
  )
  label = next((options.index(answer) for answer in answers if answer in options), NO_LABEL)
  return [PromptFields(texts, answers, options, label)]


TASKS: tuple[FlanTask, ...] = (
  FlanTask(
    name='math_dataset',
    dataset=Dataset(
      builder='math_dataset/algebra__linear_1d',
      version='1.0.0',
      sizes={'train': 1_999_998, 'test': 10_000},
      features={'question': str, 'answer': str},
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='test',
    rows=30_000,
    preprocess=generate({'question': 'question'}, 'answer'),
  ),
  FlanTask(
    name='quac',
    dataset=Dataset(
      builder='quac',
      version='1.0.0',
      sizes={'train': 83_568, 'validation': 7354},
      features={
        'background': str,
        'context': str,
        'question': str,
        'orig_answer': {'text': str},
      },
    ),
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_quac,
    metrics=('triviaqa_f1', 'triviaqa_em'),
  ),
  FlanTask(
    name='coqa',
    dataset=Dataset(
      builder='coqa',
      version='1.0.0',
      sizes={'train': 7199, 'test': 500},
      features={'story': str, 'questions': [str], 'answers': {'input_text': [str]}},
    ),
    train='train[:-100]',
    validation='train[-100:]',
    test='test',
    rows=7099,
    preprocess=_coqa,
    metrics=('token_f1', 'exact_match'),
  ),
  FlanTask(
    name='wic',
    dataset=superglue.DATASETS['wic'],
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=5228,
    preprocess=classify(
      {'sentence1': 'sentence1', 'sentence2': 'sentence2', 'word': 'word'},
      ('different meanings', 'the same meaning'),
    ),
  ),
  FlanTask(
    name='cola',
    dataset=Dataset(
      builder='glue/cola',
      version='2.0.0',
      sizes={'train': 8551, 'validation': 1043, 'test': 1063},
      features={'sentence': str, 'label': ('unacceptable', 'acceptable')},
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=8351,
    preprocess=classify({'sentence': 'sentence'}, ('unacceptable', 'acceptable')),
  ),
  FlanTask(
    name='trec',
    dataset=Dataset(
      builder='trec',
      version='1.0.0',
      sizes={'train': 5452, 'test': 500},
      features={'text': str, 'label-coarse': ('DESC', 'ENTY', 'ABBR', 'HUM', 'NUM', 'LOC')},
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='test',
    rows=5252,
    preprocess=classify(
      {'text': 'text'},
      ('description', 'entity', 'abbreviation', 'human', 'numeric', 'location'),
      label='label-coarse',
    ),
  ),
  FlanTask(
    name='record',
    dataset=superglue.DATASETS['record'],
    train='train[:30000]',
    validation='train[-200:]',
    test='validation',
    rows=30_000,
    preprocess=_record,
    metrics=('exact_match', 'token_f1'),
  ),
  FlanTask(
    name='cosmos_qa',
    dataset=Dataset(
      builder='cosmos_qa',
      version='1.0.0',
      sizes={'train': 25_262, 'validation': 2985, 'test': 6963},
      features={
        'context': str,
        'question': str,
        'answer0': str,
        'answer1': str,
        'answer2': str,
        'answer3': str,
        'label': ('0', '1', '2', '3'),
      },
    ),
    train='train[:-200]',
    validation='train[-200:]',
    test='validation',
    rows=25_062,
    preprocess=choose(
      {'context': 'context', 'question': 'question'}, ('answer0', 'answer1', 'answer2', 'answer3')
    ),
  ),
)
