"""SuperGLUE examples as rows in T5's text form.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683, appendix D.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.superglue_files import NO_INDEX
from cascades.tasks.task import Row
from cascades.wsc import OTHER_THAN

# Gives the rows of an example, from its split, its number there and the example.
RowPreprocessor: TypeAlias = Callable[[str, int, Example], Iterator[Row]]

_TRUTH = ('False', 'True')


def classify(name: str, fields: Sequence[str], labels: Sequence[str]) -> RowPreprocessor:
  """Makes a preprocessor: '<name> <field>: ... <field>: ...' -> the label's name."""

  def preprocess(split: str, number: int, example: Example) -> Iterator[Row]:
    texts = {field: example[field] for field in fields}
    row_id = _row_id(number, example['idx'])
    yield _labeled(f'{name}/{split}/{row_id}', _prompt(name, texts), labels, example['label'])

  return preprocess


def copa(split: str, number: int, example: Example) -> Iterator[Row]:
  """The target is the choice's name, the options are the choices' texts, and both are right."""
  names = ('choice1', 'choice2')
  for row in classify('copa', (*names, 'premise', 'question'), names)(split, number, example):
    yield row._replace(
      answers=row.answers + tuple(example[name] for name in row.answers),
      options=tuple(example[name] for name in names),
    )


def multirc(split: str, number: int, example: Example) -> Iterator[Row]:
  """One row for each answer to be judged; the answers to one question are a group."""
  del number
  index = [example['idx'][key] for key in ('paragraph', 'question', 'answer')]
  if NO_INDEX in index:
    raise ValueError(
      f"'idx' is {index}: paragraph, question and answer need numbers, since the answers to one "
      'question are also scored together'
    )
  prompt = _prompt('multirc', {key: example[key] for key in ('question', 'answer', 'paragraph')})
  yield _labeled(
    f'multirc/{split}/{"/".join(map(str, index))}',
    prompt.replace('<br>', ' ').replace('<b>', '').replace('</b>', ''),
    _TRUTH,
    example['label'],
  )._replace(group=f'{index[0]}/{index[1]}')


def record(split: str, number: int, example: Example) -> Iterator[Row]:
  """One row for each query; in training one for each answer, which comes first in its row.

  The options are the passage's entities, and the label that of the first answer among them.
  """
  index, options = example['idx'], tuple(example['entities'])
  row_id = _row_id(number, index['query'], index['passage'])
  texts = {'query': example['query'], 'entities': ', '.join(options)}
  row = Row(
    id=f'record/{split}/{row_id}',
    inputs=_prompt('record', texts | {'passage': without_highlights(example['passage'])}),
    answers=tuple(example['answers']),
    options=options,
    label=None if example['answers'] else NO_LABEL,
    group=row_id,
  )
  if split != 'train' or not row.answers:
    yield _with_label(row)
    return
  for i, answer in enumerate(row.answers):
    others = row.answers[:i] + row.answers[i + 1 :]
    yield _with_label(row._replace(id=f'{row.id}/{i}', answers=(answer, *others)))


def wsc(split: str, number: int, example: Example) -> Iterator[Row]:
  """Asks whether the marked pronoun refers to the candidate."""
  texts = {'text': _marked(example), 'candidate': example['span1_text']}
  row_id = _row_id(number, example['idx'])
  yield _labeled(f'wsc/{split}/{row_id}', _prompt('wsc', texts), _TRUTH, example['label'])


def wsc_referent(split: str, number: int, example: Example) -> Iterator[Row]:
  """Asks what the marked pronoun refers to; in training only where it is the candidate.

  In other splits all rows ask, as in T5, and where the candidate is wrong, any other name is right.
  """
  if split == 'train' and example['label'] == _TRUTH.index('False'):
    return
  candidate = example['span1_text']
  answers = {NO_LABEL: (), 0: (f'{OTHER_THAN}{candidate}',), 1: (candidate,)}
  yield Row(
    id=f'wsc_referent/{split}/{_row_id(number, example["idx"])}',
    inputs=f'wsc: {_marked(example)}',
    answers=answers[example['label']],
  )


def marked(text: str, pronoun: str, index: int) -> str:
  """Puts stars around the pronoun: around its whole-word occurrence nearest to word `index`.

  Words are counted between single spaces. The index is off by one in a row of WSC, and punctuation
  is glued to the word in others, as in 'him,"'.
  """
  starts = [match.start() for match in re.finditer(rf'(?<!\w){re.escape(pronoun)}(?!\w)', text)]
  if not pronoun or not starts:
    raise ValueError(f'{pronoun!r} is no whole word of {text!r}')
  start = min(starts, key=lambda begin: abs(text.count(' ', 0, begin) - index))
  return f'{text[:start]}*{pronoun}*{text[start + len(pronoun) :]}'


def without_highlights(passage: str) -> str:
  """Joins the summary's points, which ReCoRD separates by lines '@highlight', as sentences."""
  closed = re.sub(r'([.?!"\'])\n@highlight\n', r'\1 ', passage)
  return closed.replace('\n@highlight\n', '. ')


def _marked(example: Example) -> str:
  return marked(example['text'], example['span2_text'], example['span2_index'])


def _prompt(name: str, texts: Mapping[str, str]) -> str:
  return ' '.join((name, *(f'{field}: {text}' for field, text in texts.items())))


def _row_id(number: int, index: int, *outer: int) -> str:
  """The published index, after its outer ones; in a file without indices, the row's number."""
  path = (*outer, index)
  return f'row{number}' if NO_INDEX in path else '/'.join(map(str, path))


def _labeled(id_: str, inputs: str, labels: Sequence[str], label: int) -> Row:
  answers = () if label == NO_LABEL else (labels[label],)
  return Row(id_, inputs, answers, tuple(labels), label)


def _with_label(row: Row) -> Row:
  labels = [row.options.index(answer) for answer in row.answers if answer in row.options]
  return row._replace(label=labels[0]) if labels else row
