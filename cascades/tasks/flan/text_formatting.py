"""FLAN2021's text formatting cluster: give back capitals, punctuation or spaces to web text."""

from __future__ import annotations

import re
from collections.abc import Callable

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.flan.definition import LIMIT, FlanTask, PromptFields

DATASET = Dataset('para_crawl/enda', '1.2.0', {'train': 2_414_895}, {'en': str})

_VALIDATION = 200
_PUNCTUATION = re.compile(r'[^\w\s]')


def _task(
  name: str, block: int, *, field: str, damage: Callable[[str], str], keep_unchanged: bool = False
) -> FlanTask:
  """A task on block `block` of the text, so that no task trains on another's sentences.

  Empty damaged texts are left out, and so are texts that `damage` does not change, unless
  `keep_unchanged`.
  """

  def preprocess(example: Example) -> list[PromptFields]:
    text = example['en']
    damaged = damage(text)
    if not damaged.strip() or (damaged == text and not keep_unchanged):
      return []
    return [PromptFields({field: damaged}, (text,))]

  start = block * (LIMIT + _VALIDATION)
  middle, stop = start + LIMIT, start + LIMIT + _VALIDATION
  return FlanTask(
    name=name,
    dataset=DATASET,
    train=f'train[{start}:{middle}]',
    validation=f'train[{middle}:{stop}]',
    test='train[-3000:]',
    rows=LIMIT,
    preprocess=preprocess,
    metrics=('edit_distance_cased', 'edit_distance'),
  )


TASKS = (
  _task('true_case', 0, field='lower', damage=str.lower),
  _task('fix_punct', 1, field='no_punct', damage=lambda text: _PUNCTUATION.sub('', text)),
  _task(
    'word_segment',
    2,
    field='no_space',
    damage=lambda text: text.replace(' ', ''),
    keep_unchanged=True,
  ),
)
