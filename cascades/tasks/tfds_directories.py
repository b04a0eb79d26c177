"""Data sets that TFDS has prepared, or is asked to download. Imports TFDS when it reads."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from cascades.tasks import features as features_lib
from cascades.tasks import textfiles
from cascades.tasks.datasets import Backend, Dataset, required_files
from cascades.tasks.features import Example

log = logging.getLogger(__name__)


def find(dataset: Dataset, tfds_root: epath.Path) -> epath.Path | None:
  """The directory that TFDS has prepared: of the data set's version, or else of the newest."""
  root = tfds_root / dataset.builder
  exact = root / dataset.version
  if (exact / 'dataset_info.json').exists():
    return exact
  others = [path.parent for path in root.glob('*/dataset_info.json')]
  # The name of a directory that TFDS is writing has more than the version.
  complete = [path for path in others if re.fullmatch(r'\d+\.\d+\.\d+', path.name)]
  versions = {tuple(map(int, path.name.split('.'))): path for path in complete}
  if not versions:
    return None
  newest = versions[max(versions)]
  log.warning('%s: reading version %s.', dataset.builder, newest.name)
  return newest


def backend(dataset: Dataset, directory: epath.Path, split: str) -> Backend:
  """A split of a prepared directory."""

  @functools.cache
  def builder() -> Any:
    import tensorflow_datasets as tfds  # takes seconds, and only this backend needs it

    prepared = tfds.builder_from_directory(directory)
    for name, feature in dataset.features.items():
      if isinstance(feature, tuple) and name in prepared.info.features:
        labels = getattr(prepared.info.features[name], 'names', feature)
        if tuple(labels) != feature:
          raise ValueError(f'{directory} has labels {labels} of {name!r}, expected {feature}.')
    return prepared

  def size() -> int:
    splits = builder().info.splits
    if split not in splits:
      raise ValueError(f'{directory} has no split {split}, only {", ".join(splits)}.')
    return splits[split].num_examples

  def examples(start: int, stop: int | None) -> Iterator[tuple[int, Example]]:
    import tensorflow_datasets as tfds

    numbers = range(*slice(start, stop).indices(size()))
    if not numbers:
      return
    rows = builder().as_dataset(split=f'{split}[{numbers.start}:{numbers.stop}]')
    for number, example in zip(numbers, tfds.as_numpy(rows), strict=True):
      try:
        encoded = features_lib.encode(dataset.features, plain(example))
      except ValueError as error:
        raise ValueError(f'{directory}, row {number} of split {split}: {error}') from error
      yield number, encoded

  return Backend(
    str(directory), examples, size, lambda: textfiles.sha256(directory / 'dataset_info.json')
  )


def plain(value: Any) -> Any:
  """Converts NumPy values of an example to Python's."""
  if isinstance(value, dict):
    return {key: plain(field) for key, field in value.items()}
  if isinstance(value, np.ndarray):
    return [plain(item) for item in value.tolist()]
  return value.item() if isinstance(value, np.generic) else value


def download(dataset: Dataset, tfds_root: epath.Path) -> epath.Path:
  """Lets TFDS download and prepare the data set below `tfds_root`; gives the directory.

  Raises OSError if TFDS cannot prepare it.
  """
  import tensorflow_datasets as tfds

  name = f'{dataset.builder}:{dataset.version}'
  log.info('Downloading %s to %s', name, tfds_root)
  try:
    tfds.builder(name, data_dir=tfds_root).download_and_prepare()
  except Exception as error:  # of any kind: no network, files to be fetched by hand, no Beam
    raise OSError(
      f'TFDS could not prepare {name} ({type(error).__name__}: {error}). Instead, put '
      f'{required_files(dataset, dataset.sizes)} below a data_dir, or a directory that TFDS has '
      'prepared elsewhere below tfds_data_dir.'
    ) from error
  return tfds_root / dataset.builder / dataset.version
