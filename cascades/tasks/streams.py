"""Streams for online cascade learning: classification in file order, with a recorded expert.

Nie et al. 2024, https://arxiv.org/abs/2402.04513. The expert's labels were recorded once, so a
cascade learns from a large model without running it. Files are JSON lines with the fields `text`
and `label`, and `gpt35` and `llama2_70b` where these labels are known.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from cascades.tasks import sources as sources_lib
from cascades.tasks.datasets import Dataset, single_example
from cascades.tasks.features import NO_LABEL, Example
from cascades.tasks.sources import DatasetSource, Sources
from cascades.tasks.task import Row, Task

T = TypeVar('T')

EXPERTS = ('gpt35', 'llama2_70b')  # gpt-3.5-turbo-1106 and Llama-2-70B-chat, both zero-shot
UNPARSABLE = NO_LABEL  # an expert's answer that is no label: the call counts, and is wrong
TEXT = '{text}'  # replaced by the text in a prompt


class Stream(NamedTuple):
  """A published data set as a stream.

  Attributes:
    labels: the answers, in label order.
    prompt: the prompt with {text}; the question comes first, so that a cut text leaves it.
    files: names of the files by split.
    sizes: published numbers of rows by split.
    metrics: names in `cascades.metrics`.
    experts: the splits with recorded labels of the experts.
    parse: converts a line of a file to examples.
  """

  labels: tuple[str, ...]
  prompt: str
  files: Mapping[str, str]
  sizes: Mapping[str, int]
  metrics: tuple[str, ...] = ('accuracy',)
  experts: tuple[str, ...] = ('train',)
  parse: Callable[[Example], Iterable[Example]] = single_example


_FEVER = {'REFUTES': 'false', 'SUPPORTS': 'true'}


def _verifiable(fields: Example) -> Iterable[Example]:
  """Renames FEVER's labels; leaves claims without enough information out.

  The published development claims have two halves, and the training split is from the first.
  """
  if fields.get('split') == 'paper_dev' or fields.get('label') == 'NOT ENOUGH INFO':
    return ()
  return (dict(fields, label=_FEVER.get(str(fields.get('label')), fields.get('label'))),)


_EMOTIONS = ('joy', 'sadness', 'anger', 'guilt', 'shame', 'fear', 'disgust')

STREAMS: Mapping[str, Stream] = {
  'stream_imdb': Stream(
    ('negative', 'positive'),
    'Is this film review positive or negative on the whole? Answer in one word. Review: {text}',
    {'train': 'imdb_train.jsonl', 'test': 'imdb_test.jsonl'},
    {'train': 25_000, 'test': 25_000},
  ),
  'stream_hatespeech': Stream(
    ('no', 'yes'),
    'Is there hate speech in this forum post? Answer yes or no. Post: {text}',
    {'train': 'hatespeech.jsonl'},
    {'train': 10_703},
    metrics=('accuracy', 'f1[yes|no]'),
  ),
  'stream_isear': Stream(
    _EMOTIONS,
    f'Which emotion does the writer tell of: {", ".join(_EMOTIONS[:-1])} or {_EMOTIONS[-1]}? '
    'Answer in one word. Text: {text}',
    {'train': 'isear.jsonl'},
    {'train': 7666},
  ),
  'stream_fever': Stream(
    ('false', 'true'),
    'Somebody claimed this in June 2017. Was it true or false then? Claim: {text}',
    {'train': 'fever_6512.jsonl', 'test': 'fever_dev19998.jsonl'},
    {'train': 6512, 'test': 6666},
    experts=(),
    parse=_verifiable,
  ),
}


NAMES = tuple(STREAMS)


def task(name: str, sources: Sources, *, prompt: str | None = None) -> Task:
  """Makes a stream: a prompt with a text -> a label's name; rows in file order.

  Args:
    name: a key of STREAMS.
    sources: where to look for data sets.
    prompt: a prompt with {text}; '{text}' alone gives bare texts, as small models of words read
      them. None takes the stream's own prompt.

  Raises:
    ValueError: if there is no such stream, or the prompt has no {text}.
  """
  stream = _stream(name)
  wording = stream.prompt if prompt is None else prompt
  if TEXT not in wording:
    raise ValueError(
      f'The prompt {wording!r} of {name} has no {TEXT}: put it in the place of the text.'
    )
  origin = DatasetSource(
    dataset(name), {split: split for split in stream.files}, _in_order(sources)
  )

  def row(split: str, number: int, example: Example) -> list[Row]:
    label = example['label']
    answers = (stream.labels[label],) if label != NO_LABEL else ()
    inputs = wording.replace(TEXT, example['text'])
    return [Row(f'{name}/{split}/{number}', inputs, answers, stream.labels, label)]

  return Task(
    name=name,
    splits=tuple(stream.files),
    read=lambda split: origin.read(split, functools.partial(row, split)),
    fingerprint=lambda split: f'{origin.fingerprint(split)} {wording}',
    metrics=stream.metrics,
    description=f'text -> {" / ".join(stream.labels)}, in file order',
    suite='streams',
    sizes=stream.sizes,
    origin=origin,
  )


def expert_labels(
  name: str, sources: Sources, *, expert: str, split: str = 'train'
) -> Int[np.ndarray, 'N']:
  """Reads a recorded expert's answers to the rows of a split.

  Args:
    name: a key of STREAMS.
    sources: where to look for data sets.
    expert: one of EXPERTS.
    split: a split of the stream.

  Returns:
    For each row an index into its options, or UNPARSABLE.

  Raises:
    ValueError: if the stream, the expert or the expert's labels of the split do not exist.
  """
  stream = _stream(name)
  if expert not in EXPERTS:
    raise ValueError(f'{expert!r} is no recorded expert; they are {", ".join(EXPERTS)}.')
  if split not in stream.experts:
    raise ValueError(_without_expert(name, stream, split))
  recorded = dataset(name)
  recorded = recorded._replace(features={**recorded.features, expert: stream.labels})
  labels = sources_lib.read(recorded, split, _in_order(sources), lambda _, row: [row[expert]])
  return np.fromiter(labels, np.int32)


def recorded(
  name: str,
  sources: Sources,
  *,
  split: str = 'train',
  expert: str | None = None,
  prompt: str | None = None,
) -> Iterator[dict[str, Any]]:
  """Reads the rows of a split as `cascades.stream` takes them.

  Args:
    name: a key of STREAMS.
    sources: where to look for data sets.
    split: a split of the stream.
    expert: one of EXPERTS, whose label is the key `expert`, '' for an answer that is no label; None
      leaves the key out.
    prompt: as in `task`.

  Raises:
    ValueError: if the stream, its split, the expert or the expert's labels do not exist.
  """
  labels = None if expert is None else expert_labels(name, sources, expert=expert, split=split)
  for number, row in enumerate(task(name, sources, prompt=prompt).rows(split)):
    fields = {'id': row.id, 'inputs': row.inputs, 'targets': list(row.answers)}
    if labels is not None:
      label = labels[number]
      fields['expert'] = '' if label == UNPARSABLE else row.options[label]
    yield fields


def dataset(name: str) -> Dataset:
  """The data set of a stream: its files, and the fields of a line."""
  stream = _stream(name)
  return Dataset(
    builder=f'streams/{name.removeprefix("stream_")}',
    version='1.0.0',
    sizes=stream.sizes,
    features={'text': str, 'label': stream.labels},
    files={split: f'online_cascade/{file}' for split, file in stream.files.items()},
    parse=stream.parse,
    in_tfds=False,
  )


def _in_order(sources: Sources) -> Sources:
  """TFDS has no such builders, and a line left out would put rows and expert out of step."""
  return dataclasses.replace(sources, allow_download=False, malformed='error')


def _stream(name: str) -> Stream:
  if name not in STREAMS:
    raise ValueError(f'{name!r} is no stream; they are {", ".join(STREAMS)}.')
  return STREAMS[name]


def _without_expert(name: str, stream: Stream, split: str) -> str:
  if split not in stream.files:
    return f'{name} has no split {split!r}; its splits are {", ".join(stream.files)}.'
  if stream.experts:
    return f'No expert labeled split {split} of {name}, only {", ".join(stream.experts)}.'
  return (
    f"{name} has no expert labels: the published ones came without their claims' order, and agree "
    'with the claims no better than by chance in any order tried. Label the claims anew.'
  )
