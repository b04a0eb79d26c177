"""SuperGLUE's data sets: their fields in TFDS, and the conversion of the official files.

Wang et al. 2019, https://arxiv.org/abs/1905.00537; the files of release v2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from cascades.tasks import features as features_lib
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import NO_LABEL, Example, Features

VERSION = '1.0.2'  # of the TFDS builder
OFFICIAL = {'train': 'train', 'validation': 'val', 'test': 'test'}  # TFDS split -> file
NO_INDEX = -1  # of a row in a file that does not number its rows

_TRUTH = ('False', 'True')
_WSC: Features = {
  'text': str,
  'span1_index': int,
  'span2_index': int,
  'span1_text': str,
  'span2_text': str,
  'idx': int,
  'label': _TRUTH,
}


def plain(fields: Example) -> Iterator[Example]:
  """Converts a line that is a row already; a missing index or label, as in test files, is -1."""
  yield {'idx': NO_INDEX, 'label': NO_LABEL, **fields}


def boolq(fields: Example) -> Iterator[Example]:
  """Converts a line of BoolQ, whose first release has `answer` instead of `label`."""
  renamed = {'label': fields['answer']} if 'answer' in fields else {}
  yield from plain({**renamed, **fields})


def multirc(fields: Example) -> Iterator[Example]:
  """Converts a passage with questions with answers to one example for each answer."""
  if not isinstance(fields.get('passage'), Mapping):
    unknown = dict.fromkeys(('paragraph', 'question', 'answer'), NO_INDEX)
    yield {'idx': unknown, 'label': NO_LABEL, **fields}
    return
  passage = fields['passage']
  for i, question in enumerate(_objects(passage, 'questions')):
    for j, answer in enumerate(_objects(question, 'answers')):
      yield {
        'paragraph': _of(passage, 'text'),
        'question': _of(question, 'question'),
        'answer': _of(answer, 'text'),
        'label': answer.get('label', NO_LABEL),
        'idx': {
          'paragraph': fields.get('idx', NO_INDEX),
          'question': question.get('idx', i),
          'answer': answer.get('idx', j),
        },
      }


def record(fields: Example) -> Iterator[Example]:
  """Converts a passage to one example for each query; entities and answers are sorted sets."""
  if not isinstance(fields.get('passage'), Mapping):
    yield {'idx': {'passage': NO_INDEX, 'query': NO_INDEX}, 'answers': [], **fields}
    return
  text = _text(fields['passage'], 'text')
  entities = {_span(text, entity) for entity in _objects(fields['passage'], 'entities')}
  for query in _objects(fields, 'qas'):
    answers = _objects(query, 'answers') if 'answers' in query else []
    yield {
      'passage': text,
      'query': _of(query, 'query'),
      'entities': sorted(entities),
      'answers': sorted({_text(answer, 'text') for answer in answers}),
      'idx': {'passage': fields.get('idx', NO_INDEX), 'query': query.get('idx', NO_INDEX)},
    }


def wsc(fields: Example) -> Iterator[Example]:
  """Moves the two spans beside their text."""
  target = fields.get('target', {})
  if not isinstance(target, Mapping):
    raise ValueError(f"'target' has {target!r:.60}, expected an object")
  yield from plain({**fields, **target})


def wsc_fixed(fields: Example) -> Iterator[Example]:
  """Converts as `wsc`; spans that are not in the text get its case and lose line and full stop.

  TFDS does so in its config `wsc.fixed`. Two test rows name people who are not side by side, and
  keep their span.
  """
  for row in wsc(fields):
    example = features_lib.encode(_WSC, row)
    for span in ('span1', 'span2'):
      index = example[f'{span}_index']
      example[f'{span}_text'] = _fixed(example['text'], example[f'{span}_text'], index)
    yield example


def _fixed(text: str, span: str, index: int) -> str:
  words = text.split()
  if span in text:
    return span
  if not 0 <= index < len(words):
    raise ValueError(f'the span {span!r} starts at word {index} of {len(words)}')
  first = span[0].lower() if words[index][0].islower() else span[0].upper()
  return (first + span[1:]).rstrip('.').replace('\n', ' ')


def _span(text: str, entity: Example) -> str:
  """Its characters from `start` through `end`."""
  start, end = _of(entity, 'start'), _of(entity, 'end')
  if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end < len(text)):
    raise ValueError(f'no entity from {start!r} through {end!r} in {len(text)} characters')
  return text[start : end + 1]


def _of(fields: Example, name: str) -> Any:
  if name not in fields:
    raise ValueError(f'there is no field {name!r} beside {", ".join(map(repr, fields))}')
  return fields[name]


def _text(fields: Example, name: str) -> str:
  text = _of(fields, name)
  if not isinstance(text, str):
    raise ValueError(f'{name!r} has {text!r:.60}, expected text')
  return text


def _objects(fields: Example, name: str) -> list[Example]:
  objects = _of(fields, name)
  if not isinstance(objects, list) or not all(isinstance(item, Mapping) for item in objects):
    raise ValueError(f'{name!r} has {objects!r:.60}, expected a list of objects')
  return objects


def _dataset(
  config: str,
  folder: str,
  sizes: tuple[int, int, int],
  features: Features,
  parse: Callable[[Example], Iterable[Example]] = plain,
) -> Dataset:
  return Dataset(
    builder=f'super_glue/{config}',
    version=VERSION,
    sizes=dict(zip(OFFICIAL, sizes, strict=True)),
    features=features,
    files={split: f'{folder}/{name}.jsonl' for split, name in OFFICIAL.items()},
    parse=parse,
  )


def _texts(*names: str) -> dict[str, Any]:
  return dict.fromkeys(names, str)


DATASETS: Mapping[str, Dataset] = MappingProxyType(
  {
    'boolq': _dataset(
      'boolq',
      'BoolQ',
      (9427, 3270, 3245),
      {**_texts('question', 'passage'), 'idx': int, 'label': _TRUTH},
      boolq,
    ),
    'cb': _dataset(
      'cb',
      'CB',
      (250, 56, 250),
      {
        **_texts('premise', 'hypothesis'),
        'idx': int,
        'label': ('entailment', 'contradiction', 'neutral'),
      },
    ),
    'copa': _dataset(
      'copa',
      'COPA',
      (400, 100, 500),
      {
        **_texts('premise', 'choice1', 'choice2', 'question'),
        'idx': int,
        'label': ('choice1', 'choice2'),
      },
    ),
    'multirc': _dataset(
      'multirc',
      'MultiRC',
      (27_243, 4848, 9693),
      {
        **_texts('paragraph', 'question', 'answer'),
        'idx': {'paragraph': int, 'question': int, 'answer': int},
        'label': _TRUTH,
      },
      multirc,
    ),
    'record': _dataset(
      'record',
      'ReCoRD',
      (100_730, 10_000, 10_000),
      {
        **_texts('passage', 'query'),
        'entities': [str],
        'answers': [str],
        'idx': {'passage': int, 'query': int},
      },
      record,
    ),
    'rte': _dataset(
      'rte',
      'RTE',
      (2490, 277, 3000),
      {
        **_texts('premise', 'hypothesis'),
        'idx': int,
        'label': ('entailment', 'not_entailment'),
      },
    ),
    'wic': _dataset(
      'wic',
      'WiC',
      (5428, 638, 1400),
      {
        **_texts('word', 'sentence1', 'sentence2'),
        **dict.fromkeys(('start1', 'start2', 'end1', 'end2', 'idx'), int),
        'label': _TRUTH,
      },
    ),
    'wsc': _dataset('wsc', 'WSC', (554, 104, 146), _WSC, wsc),
    'wsc.fixed': _dataset('wsc.fixed', 'WSC', (554, 104, 146), _WSC, wsc_fixed),
  }
)
