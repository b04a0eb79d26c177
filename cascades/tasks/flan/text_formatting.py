"""FLAN2021's text formatting cluster: give back capitals, punctuation or spaces to web text."""

from __future__ import annotations

import re
from collections.abc import Callable

from cascades.tasks.features import Example
from cascades.tasks.flan.definition import LIMIT, Definition, Fields
from cascades.tasks.sources import Dataset

DATASET = Dataset('para_crawl/enda', '1.2.0', {'train': 2_414_895}, {'en': str})

_VALIDATION = 200
_PUNCTUATION = re.compile(r'[^\w\s]')


def _no_punctuation(text: str) -> str:
  return _PUNCTUATION.sub('', text)


def _no_spaces(text: str) -> str:
  return text.replace(' ', '')


def _task(
  name: str, place: int, *, field: str, damage: Callable[[str], str], keep_whole: bool = False
) -> Definition:
  """Rows of the `place`-th block of the text, so that no task trains on another's sentences.

  A text of which nothing is left is left out, and one that `damage` does not change, unless
  `keep_whole`.
  """

  def form(example: Example) -> list[Fields]:
    text = example['en']
    damaged = damage(text)
    if not damaged.strip() or (damaged == text and not keep_whole):
      return []
    return [Fields({field: damaged}, (text,))]

  start = place * (LIMIT + _VALIDATION)
  middle, stop = start + LIMIT, start + LIMIT + _VALIDATION
  return Definition(
    name=name,
    dataset=DATASET,
    train=f'train[{start}:{middle}]',
    validation=f'train[{middle}:{stop}]',
    test='train[-3000:]',
    rows=LIMIT,
    form=form,
    metrics=('edit_distance_cased', 'edit_distance'),
  )


TASKS = (
  _task('true_case', 0, field='lower', damage=str.lower),
  _task('fix_punct', 1, field='no_punct', damage=_no_punctuation),
  _task('word_segment', 2, field='no_space', damage=_no_spaces, keep_whole=True),
)
