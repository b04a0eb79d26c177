"""Local rows as TFDS directories, which load by name without builder code. Imports TFDS."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from cascades.tasks.features import Example, Feature
from cascades.tasks.sources import Dataset
from cascades.tasks.task import DataSource

_SCALARS: Mapping[type, Any] = {int: np.int64, float: np.float32, bool: np.bool_}


def prepare(origin: DataSource, tfds_data_dir: epath.PathLike) -> dict[str, int]:
  """Writes `<tfds_data_dir>/<builder>/<version>` from local rows; rows by split.

  Splits of which there are no rows are left out. A directory that is there already is refused, and
  one that is not finished never has that name.
  """
  dataset = origin.dataset
  root = epath.Path(tfds_data_dir).expanduser()
  directory = root / dataset.builder / dataset.version
  if directory.exists():
    raise FileExistsError(f'{directory} is there already. Delete it to prepare it anew.')
  name, _, config = dataset.builder.partition('/')
  written = tfds.dataset_builders.store_as_tfds_dataset(
    name,
    dataset.version,
    tfds.features.FeaturesDict(features(dataset)),
    {split: enumerate(examples) for split, examples in _by_split(origin).items()},
    config=config or None,
    data_dir=root,
    description=f'Local rows of {dataset.builder}.',
    # What is hosted under this name is not these rows.
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  return {split: info.num_examples for split, info in written.info.splits.items()}


def features(dataset: Dataset) -> dict[str, Any]:
  """The data set's fields as TFDS's feature types."""
  return {name: _feature(feature) for name, feature in dataset.features.items()}


def _by_split(origin: DataSource) -> dict[str, Iterator[Example]]:
  """The examples of the splits that there are, of which the first one is read to know.

  Also of those that only other tasks read, since the directory serves them all.
  """
  found: dict[str, Iterator[Example]] = {}
  looked = ''
  for split in dict.fromkeys((*origin.splits, *origin.dataset.sizes)):
    examples = iter(origin.examples(split))
    try:
      found[split] = itertools.chain([next(examples)], examples)
    except FileNotFoundError as error:
      looked = str(error)
    except StopIteration:
      raise ValueError(
        f'The local files of {origin.dataset.builder} have no rows for split {split}.'
      ) from None
  if not found:
    raise FileNotFoundError(looked)
  return found


def _feature(feature: Feature) -> Any:
  match feature:
    case tuple():
      return tfds.features.ClassLabel(names=list(feature))
    case dict():
      return tfds.features.FeaturesDict({name: _feature(of) for name, of in feature.items()})
    case [item]:
      return tfds.features.Sequence(_feature(item))
  return tfds.features.Text() if feature is str else tfds.features.Scalar(_SCALARS[feature])
