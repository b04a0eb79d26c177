"""Local rows as TFDS directories, which load by name without builder code. Imports TFDS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cascades.tasks.features import Feature
from cascades.tasks.sources import Dataset
from cascades.tasks.task import Task

_SCALARS: Mapping[type, Any] = {int: np.int64, float: np.float64, bool: np.bool_}


def prepare(task: Task, tfds_data_dir: epath.PathLike) -> dict[str, int]:
  """Writes `<tfds_data_dir>/<builder>/<version>` from the task's local rows; rows by split.

  Splits of which there are no rows are left out. A directory that is there already is refused.
  """
  dataset = task.dataset
  if dataset is None or task.examples is None:
    raise ValueError(f'{task.name} is not read from a published data set: nothing to prepare.')
  directory = epath.Path(tfds_data_dir).expanduser() / dataset.builder / dataset.version
  if directory.exists():
    raise FileExistsError(f'{directory} is there already. Delete it to prepare it anew.')
  found, looked = {}, ''
  for split in task.source_splits:
    try:
      found[split] = list(task.examples(split))
    except FileNotFoundError as error:
      looked = str(error)
  if not found:
    raise FileNotFoundError(looked)
  name, _, config = dataset.builder.partition('/')
  tfds.dataset_builders.store_as_tfds_dataset(
    name,
    dataset.version,
    tfds.features.FeaturesDict(features(dataset)),
    {split: list(enumerate(examples)) for split, examples in found.items()},
    config=config or None,
    data_dir=epath.Path(tfds_data_dir).expanduser(),
    description=f'Local rows of {dataset.builder}.',
  )
  return {split: len(examples) for split, examples in found.items()}


def features(dataset: Dataset) -> dict[str, Any]:
  """The data set's fields as TFDS's feature types."""
  return {name: _feature(feature) for name, feature in dataset.features.items()}


def _feature(feature: Feature) -> Any:
  match feature:
    case tuple():
      return tfds.features.ClassLabel(names=list(feature))
    case dict():
      return tfds.features.FeaturesDict({name: _feature(of) for name, of in feature.items()})
    case [item]:
      return tfds.features.Sequence(_feature(item))
  return tfds.features.Text() if feature is str else tfds.features.Scalar(_SCALARS[feature])
