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

# The rows of an example, given its split and its number there.
Form: TypeAlias = Callable[[str, int, Example], Iterator[Row]]

_TRUTH = ('False', 'True')


def classify(name: str, fields: Sequence[str], labels: Sequence[str]) -> Form:
  """'<name> <field>: ... <field>: ...' -> the label's name."""

  def form(split: str, number: int, example: Example) -> Iterator[Row]:
    texts = {field: example[field] for field in fields}
    place = _place(number, example['idx'])
    yield _labelled(f'{name}/{split}/{place}', _prompt(name, texts), labels, example['label'])

  return form


def copa(split: str, number: int, example: Example) -> Iterator[Row]:
  """The target is the choice's name; ranked are the choices' texts, and either answer is right."""
  names = ('choice1', 'choice2')
  for row in classify('copa', (*names, 'premise', 'question'), names)(split, number, example):
    yield row._replace(
      answers=row.answers + tuple(example[name] for name in row.answers),
      options=tuple(example[name] for name in names),
    )


def multirc(split: str, number: int, example: Example) -> Iterator[Row]:
  """One answer to be judged; the answers to one question are a group."""
  del number
  place = [example['idx'][key] for key in ('paragraph', 'question', 'answer')]
  if NO_INDEX in place:
    raise ValueError(
      f"'idx' is {place}: paragraph, question and answer need numbers, since the answers to one "
      'question are also judged together'
    )
  prompt = _prompt('multirc', {key: example[key] for key in ('question', 'answer', 'paragraph')})
  yield _labelled(
    f'multirc/{split}/{"/".join(map(str, place))}',
    prompt.replace('<br>', ' ').replace('<b>', '').replace('</b>', ''),
    _TRUTH,
    example['label'],
  )._replace(group=f'{place[0]}/{place[1]}')


def record(split: str, number: int, example: Example) -> Iterator[Row]:
  """One row a query; in training one for each answer, which is then the first of the right ones.

  The options are the passage's entities, and the label that of the first answer among them.
  """
  index, options = example['idx'], tuple(example['entities'])
  place = _place(number, index['query'], index['passage'])
  texts = {'query': example['query'], 'entities': ', '.join(options)}
  row = Row(
    id=f'record/{split}/{place}',
    inputs=_prompt('record', texts | {'passage': without_highlights(example['passage'])}),
    answers=tuple(example['answers']),
    options=options,
    label=None if example['answers'] else NO_LABEL,
    group=place,
  )
  if split != 'train' or not row.answers:
    yield _with_label(row)
    return
  for i, answer in enumerate(row.answers):
    others = row.answers[:i] + row.answers[i + 1 :]
    yield _with_label(row._replace(id=f'{row.id}/{i}', answers=(answer, *others)))


def wsc(split: str, number: int, example: Example) -> Iterator[Row]:
  """Does the marked pronoun refer to the candidate?"""
  texts = {'text': _marked(example), 'candidate': example['span1_text']}
  place = _place(number, example['idx'])
  yield _labelled(f'wsc/{split}/{place}', _prompt('wsc', texts), _TRUTH, example['label'])


def wsc_referent(split: str, number: int, example: Example) -> Iterator[Row]:
  """What does the marked pronoun refer to? For training, only where it is the candidate.

  Elsewhere every row asks, as in T5, and a wrong candidate makes it right to name another.
  """
  if split == 'train' and example['label'] == _TRUTH.index('False'):
    return
  candidate = example['span1_text']
  answers = {NO_LABEL: (), 0: (f'{OTHER_THAN}{candidate}',), 1: (candidate,)}
  yield Row(
    id=f'wsc_referent/{split}/{_place(number, example["idx"])}',
    inputs=f'wsc: {_marked(example)}',
    answers=answers[example['label']],
  )


def marked(text: str, pronoun: str, index: int) -> str:
  """The text with stars around the pronoun: of the whole words, that nearest to word `index`.

  Words are counted between single spaces. The index is off by one in a row of WSC, and punctuation
  is glued to the word in others, as in 'him,"'.
  """
  places = [found.start() for found in re.finditer(rf'(?<!\w){re.escape(pronoun)}(?!\w)', text)]
  if not pronoun or not places:
    raise ValueError(f'{pronoun!r} is no whole word of {text!r}')
  start = min(places, key=lambda place: abs(text.count(' ', 0, place) - index))
  return f'{text[:start]}*{pronoun}*{text[start + len(pronoun) :]}'


def without_highlights(passage: str) -> str:
  """The summary's points, which ReCoRD sets off by a line '@highlight', as sentences."""
  closed = re.sub(r'([.?!"\'])\n@highlight\n', r'\1 ', passage)
  return closed.replace('\n@highlight\n', '. ')


def _marked(example: Example) -> str:
  return marked(example['text'], example['span2_text'], example['span2_index'])


def _prompt(name: str, texts: Mapping[str, str]) -> str:
  return ' '.join((name, *(f'{field}: {text}' for field, text in texts.items())))


def _place(number: int, index: int, *outer: int) -> str:
  """The published number, after those around it; in a file without them, the row's place in it."""
  path = (*outer, index)
  return f'row{number}' if NO_INDEX in path else '/'.join(map(str, path))


def _labelled(id_: str, inputs: str, labels: Sequence[str], label: int) -> Row:
  answers = () if label == NO_LABEL else (labels[label],)
  return Row(id_, inputs, answers, tuple(labels), label)


def _with_label(row: Row) -> Row:
  found = [row.options.index(answer) for answer in row.answers if answer in row.options]
  return row._replace(label=found[0]) if found else row
