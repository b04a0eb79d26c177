"""Where a published data set is read: official files, a prepared TFDS directory, or a download.

They are looked for in this order. Nothing touches the network unless `allow_download` is set.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from cascades.tasks import textfiles
from cascades.tasks.task import Row

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Sources:
  """Where to look for data sets, and whether they may be downloaded."""

  data_dir: epath.PathLike | None = None
  tfds_data_dir: epath.PathLike | None = None  # $TFDS_DATA_DIR or ~/tensorflow_datasets
  allow_download: bool = False

  @property
  def tfds_root(self) -> epath.Path:
    default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    return epath.Path(self.tfds_data_dir or default).expanduser()


class Dataset(NamedTuple):
  """A published data set, by its TFDS name and by its official files."""

  builder: str  # with configuration: 'super_glue/boolq'
  version: str
  files: Mapping[str, str]  # split -> official file below a data directory
  sizes: Mapping[str, int]  # split -> rows


class Backend(NamedTuple):
  """One way to read a split. `rows` applies a formatter to fields that have their TFDS names."""

  where: epath.Path
  rows: Callable[[Callable[[Mapping[str, Any]], Row]], Iterator[Row]]
  fingerprint: Callable[[], str]


def locate(dataset: Dataset, split: str, sources: Sources) -> Backend:
  """The first backend that has the split, or an error that names every place looked at."""
  prepared = sources.tfds_root / dataset.builder / dataset.version
  if file := _official_file(dataset.files[split], sources):
    return Backend(file, functools.partial(_file_rows, file), lambda: textfiles.sha256(file))
  if not _is_prepared(prepared):
    if not sources.allow_download:
      raise FileNotFoundError(_where_to_get(dataset, split, sources, prepared))
    _download(dataset, sources)
  info = prepared / 'dataset_info.json'
  return Backend(
    prepared, functools.partial(_tfds_rows, prepared, split), lambda: textfiles.sha256(info)
  )


def read(
  dataset: Dataset, split: str, sources: Sources, form: Callable[[Mapping[str, Any]], Row]
) -> Iterator[Row]:
  """The split's rows; a row count other than the published one is logged."""
  backend = locate(dataset, split, sources)
  log.info('%s, split %s: reading %s', dataset.builder, split, backend.where)
  count = 0
  for row in backend.rows(form):
    count += 1
    yield row
  if count != dataset.sizes[split]:
    log.warning(
      '%s has %d rows; split %s of %s was published with %d.',
      *(backend.where, count, split, dataset.builder, dataset.sizes[split]),
    )


def _official_file(name: str, sources: Sources) -> epath.Path | None:
  """The file itself, below the data directory or one folder deeper, or else a part of it."""
  if sources.data_dir is None:
    return None
  root = epath.Path(sources.data_dir)
  part = name.replace('.jsonl', '_*.jsonl')
  for pattern in (name, f'{name}.gz', part):
    for place in (pattern, f'*/{pattern}'):
      if found := sorted(root.glob(place)):
        return found[0]
  return None


def _file_rows(file: epath.Path, form: Callable[[Mapping[str, Any]], Row]) -> Iterator[Row]:
  parse = lambda number, line: form({'idx': number - 1} | textfiles.json_object(line))
  return textfiles.parsed_lines(file, parse, malformed='error')


def _is_prepared(directory: epath.Path) -> bool:
  return (directory / 'dataset_info.json').exists()


def _tfds_rows(
  directory: epath.Path, split: str, form: Callable[[Mapping[str, Any]], Row]
) -> Iterator[Row]:
  import tensorflow_datasets as tfds  # takes seconds, and only this backend needs it

  examples = tfds.builder_from_directory(directory).as_dataset(split=split)
  for example in tfds.as_numpy(examples):
    yield form({key: _plain(value) for key, value in example.items()})


def _plain(value: Any) -> Any:
  return value.decode() if isinstance(value, bytes) else value.item()


def _download(dataset: Dataset, sources: Sources) -> None:
  import tensorflow_datasets as tfds

  name = f'{dataset.builder}:{dataset.version}'
  log.info('Downloading %s to %s', name, sources.tfds_root)
  tfds.builder(name, data_dir=sources.tfds_root).download_and_prepare()


def _where_to_get(dataset: Dataset, split: str, sources: Sources, prepared: epath.Path) -> str:
  official = dataset.files[split]
  looked = f'{sources.data_dir}/[*/]{official}[.gz]' if sources.data_dir else 'no data_dir is set'
  return (
    f'No rows for split {split} of {dataset.builder}. Looked for the official file ({looked}) and '
    f'for a prepared TFDS directory ({prepared}). Put {official} below a data_dir, or set '
    'tfds_data_dir, or set allow_download=True to fetch it; downloads are off by default.'
  )
