"""Preparation of TFDS directories from local rows, which load by name. Imports TFDS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example, Feature
from cascades.tasks.task import DataSource

_SCALARS: Mapping[type, Any] = {int: np.int64, float: np.float32, bool: np.bool_}


def prepare(origin: DataSource, tfds_data_dir: epath.PathLike) -> dict[str, int]:
  """Writes `<tfds_data_dir>/<builder>/<version>` from local rows.

  Splits without rows are left out. An unfinished directory never has the final name.

  Args:
    origin: the data source of a task.
    tfds_data_dir: folder of prepared TFDS data sets.

  Returns:
    Number of rows by split.

  Raises:
    FileExistsError: if the directory exists already.
    FileNotFoundError: if there are no local rows.
  """
  dataset = origin.dataset
  root = epath.Path(tfds_data_dir).expanduser()
  directory = root / dataset.builder / dataset.version
  if directory.exists():
    raise FileExistsError(f'{directory} exists already. Delete it to prepare it again.')
  name, _, config = dataset.builder.partition('/')
  written = tfds.dataset_builders.store_as_tfds_dataset(
    name,
    dataset.version,
    tfds.features.FeaturesDict(features(dataset)),
    {split: enumerate(examples) for split, examples in _by_split(origin).items()},
    config=config or None,
    data_dir=root,
    description=f'Local rows of {dataset.builder}.',
    # The data set that is hosted under this name has other rows.
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  return {split: info.num_examples for split, info in written.info.splits.items()}


def features(dataset: Dataset) -> dict[str, Any]:
  """The data set's fields as TFDS's feature types."""
  return {name: _feature(feature) for name, feature in dataset.features.items()}


def _by_split(origin: DataSource) -> dict[str, Iterator[Example]]:
  """Examples of the existing splits, including those that only other tasks read.

  Reads the first example of a split to see whether the split exists.
  """
  by_split: dict[str, Iterator[Example]] = {}
  looked = ''
  for split in dict.fromkeys((*origin.splits, *origin.dataset.sizes)):
    examples = iter(origin.examples(split))
    try:
      by_split[split] = itertools.chain([next(examples)], examples)
    except FileNotFoundError as error:
      looked = str(error)
    except StopIteration:
      raise ValueError(
        f'The local files of {origin.dataset.builder} have no rows for split {split}.'
      ) from None
  if not by_split:
    raise FileNotFoundError(looked)
  return by_split


def _feature(feature: Feature) -> Any:
  match feature:
    case tuple():
      return tfds.features.ClassLabel(names=list(feature))
    case dict():
      return tfds.features.FeaturesDict({name: _feature(of) for name, of in feature.items()})
    case [item]:
      return tfds.features.Sequence(_feature(item))
  return tfds.features.Text() if feature is str else tfds.features.Scalar(_SCALARS[feature])
