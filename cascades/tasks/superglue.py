"""SuperGLUE in T5's text form. Wang et al. 2019, https://arxiv.org/abs/1905.00537."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

from cascades.tasks import sources as sources_lib
from cascades.tasks.task import Row, Task

_VERSION = '1.0.2'  # of the TFDS builder
_OFFICIAL = {'train': 'train', 'validation': 'val', 'test': 'test'}


class Config(NamedTuple):
  """How one task's features read, label names in order, and the published sizes."""

  folder: str
  fields: tuple[str, ...]
  labels: tuple[str, ...]
  sizes: tuple[int, int, int]
  label_keys: tuple[str, ...] = ('label',)  # the first one present


CONFIGS = {
  'boolq': Config(
    'BoolQ', ('passage', 'question'), ('False', 'True'), (9427, 3270, 3245), ('label', 'answer')
  ),
  'rte': Config(
    'RTE', ('hypothesis', 'premise'), ('entailment', 'not_entailment'), (2490, 277, 3000)
  ),
}


def task(config_name: str, sources: sources_lib.Sources) -> Task:
  """`superglue_<config>`: '<config> <field>: ... <field>: ...' -> label name."""
  config = CONFIGS[config_name]
  dataset = sources_lib.Dataset(
    builder=f'super_glue/{config_name}',
    version=_VERSION,
    files={split: f'{config.folder}/{name}.jsonl' for split, name in _OFFICIAL.items()},
    sizes=dict(zip(_OFFICIAL, config.sizes, strict=True)),
  )
  return Task(
    name=f'superglue_{config_name}',
    splits=tuple(_OFFICIAL),
    read=lambda split: sources_lib.read(
      dataset, split, sources, functools.partial(form, config_name, split)
    ),
    fingerprint=lambda split: sources_lib.locate(dataset, split, sources).fingerprint(),
    description=f'{" + ".join(config.fields)} -> {" / ".join(config.labels)}',
  )


def boolq(
  data_dir: str | None = None, tfds_data_dir: str | None = None, allow_download: bool = False
) -> Task:
  """A passage and a question -> True or False. Clark et al. 2019, BoolQ."""
  return task('boolq', sources_lib.Sources(data_dir, tfds_data_dir, allow_download))


def rte(
  data_dir: str | None = None, tfds_data_dir: str | None = None, allow_download: bool = False
) -> Task:
  """A premise and a hypothesis -> entailment or not_entailment. The RTE challenges, 2005-2011."""
  return task('rte', sources_lib.Sources(data_dir, tfds_data_dir, allow_download))


def form(config_name: str, split: str, example: Mapping[str, Any]) -> Row:
  """One row from the features of TFDS or of the official file, which differ in the label's type."""
  config = CONFIGS[config_name]
  missing = [field for field in config.fields if not isinstance(example.get(field), str)]
  if missing:
    raise ValueError(f'no text for {missing}; the row has {sorted(example)}')
  texts = (f'{field}: {example[field]}' for field in config.fields)
  present = [example[key] for key in config.label_keys if key in example]
  label = _label(present[0], config.labels) if present else -1
  return Row(
    id=f'{config_name}/{split}/{example["idx"]}',
    inputs=' '.join((config_name, *texts)),
    answers=(config.labels[label],) if label >= 0 else (),
    options=config.labels,
    label=label,
  )


def _label(value: object, labels: tuple[str, ...]) -> int:
  index = labels.index(value) if value in labels else value
  if not isinstance(index, int) or not -1 <= index < len(labels):
    raise ValueError(f'the label {value!r} is none of {list(labels)}')
  return int(index)
