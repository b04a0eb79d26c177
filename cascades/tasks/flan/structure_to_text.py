"""FLAN2021's structure-to-text cluster: words, triples and attributes told in sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example, Feature
from cascades.tasks.flan.definition import LIMIT, FlanTask, PromptFields

_MARK = re.compile(r'\[[A-Z]+\]\s*')  # DART's [TABLECONTEXT] and [TITLE] stand for no text
_ATTRIBUTE = re.compile(r'\s*\[(.*?)\]')


def _triples(tripleset: Sequence[str]) -> str:
  return '; '.join(_MARK.sub('', triple).strip() for triple in tripleset)


def _attributes(meaning: str) -> str:
  """'name[The Anchor], area[riverside]' as 'name = The Anchor, area = riverside'."""
  return _ATTRIBUTE.sub(r' = \1', meaning)


def _dbpedia(triples: Sequence[str]) -> str:
  """'Anna_Holm | birthPlace | Oslo' as 'Anna Holm, birthPlace, Oslo'."""
  return '; '.join(triple.replace('_', ' ').replace(' | ', ', ') for triple in triples)


def _task(
  name: str,
  sizes: tuple[int, int, int],
  *,
  structure: tuple[str, Feature],
  field: str,
  write: Callable[[Any], str],
) -> FlanTask:
  """A GEM data set whose feature `structure` becomes, by `write`, the template's `field`."""
  feature, feature_type = structure

  def preprocess(example: Example) -> list[PromptFields]:
    # The target is the first reference; training rows list no others, hidden rows have neither.
    answers = dict.fromkeys(text for text in (example['target'], *example['references']) if text)
    return [PromptFields({field: write(example[feature])}, tuple(answers))]

  return FlanTask(
    name=name,
    dataset=Dataset(
      builder=f'gem/{name}',
      version='1.1.0',
      sizes=dict(zip(('train', 'validation', 'test'), sizes, strict=True)),
      features={feature: feature_type, 'target': str, 'references': [str]},
    ),
    train=f'train[:{LIMIT}]',
    validation='train[-200:]',
    test='validation',
    rows=LIMIT,
    preprocess=preprocess,
    metrics=('rougeL', 'rouge1', 'rouge2'),
  )


TASKS = (
  _task(
    'common_gen',
    (67_389, 993, 1497),
    structure=('concepts', [str]),
    field='concepts',
    write=', '.join,
  ),
  _task(
    'dart',
    (62_659, 2768, 6959),
    structure=('tripleset', [str]),
    field='tripleset',
    write=_triples,
  ),
  _task(
    'e2e_nlg',
    (33_525, 4299, 4693),
    structure=('meaning_representation', str),
    field='meaning_representation',
    write=_attributes,
  ),
  _task(
    'web_nlg_en',
    (35_426, 1667, 1779),
    structure=('input', [str]),
    field='triples',
    write=_dbpedia,
  ),
)
