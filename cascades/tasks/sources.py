"""Published data sets, read from local files, a prepared TFDS directory or a download.

These are tried in this order, and give the same examples. Nothing touches the network unless
`allow_download` is set.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
from etils import epath

from cascades.runtime import files
from cascades.tasks import features as features_lib
from cascades.tasks import shuffling, textfiles, tfds_directories
from cascades.tasks.datasets import Backend, Dataset, patterns, required_files, single_example
from cascades.tasks.features import Example

log = logging.getLogger(__name__)
T = TypeVar('T')

SAMPLES = pathlib.Path(__file__).parent / 'samples'
SPLITS_KEY = '_splits'  # in a sample: the only splits that have the row

_SLICE = re.compile(r'(?P<split>\w+)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?')


@dataclasses.dataclass(frozen=True)
class Sources:
  """Folders of data sets, and permissions.

  Attributes:
    data_dir: folder of official files.
    tfds_data_dir: folder of prepared TFDS data sets; None for $TFDS_DATA_DIR or
      ~/tensorflow_datasets.
    allow_download: let TFDS download missing data sets.
    sample: read the hand-written rows that ship with each task instead, for every split.
    malformed: 'error' stops at rows that cannot be used, 'skip' skips and counts them.
    allow_remote: accept folders such as gs://...
  """

  data_dir: epath.PathLike | None = None
  tfds_data_dir: epath.PathLike | None = None
  allow_download: bool = False
  sample: bool = False
  malformed: textfiles.Malformed = 'error'
  allow_remote: bool = False

  def __post_init__(self) -> None:
    for path in (self.data_dir, self.tfds_data_dir):
      files.require_local(path, self.allow_remote)

  @property
  def tfds_root(self) -> epath.Path:
    default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    return epath.Path(self.tfds_data_dir or default).expanduser()


def read(
  dataset: Dataset,
  split_slice: str,
  sources: Sources,
  preprocess: Callable[[int, Example], Iterable[T]],
) -> Iterator[T]:
  """Reads and preprocesses the examples of a split or a slice of it.

  Args:
    dataset: the data set.
    split_slice: a split, or a slice such as 'train[:-200]'. A slice beyond the split's end is cut.
    sources: where to look for the data set.
    preprocess: gives rows from an example and its number in the split. An example that it rejects
      with a ValueError stops the reading, or is skipped, as malformed lines are.

  Yields:
    What `preprocess` gives, in order.

  Raises:
    ValueError: if a row cannot be used, or the slice is empty.
    FileNotFoundError: if no source has the split.
  """
  split, start, stop = parse_slice(split_slice)
  backend = locate(dataset, split, sources)
  log.info('%s, %s: reading %s', dataset.builder, split_slice, backend.where)
  if sources.sample:
    start, stop = 0, None
  elif start < 0 or (stop or 0) < 0:
    size = backend.size()
    start, stop, _ = slice(start, stop).indices(size)
    _check_size(dataset, split, backend.where, size, '; slices of it may overlap')
  count = left_out = 0
  skipped = textfiles.Skipped()
  for number, example in backend.examples(start, stop):
    count += 1
    try:
      rows = list(preprocess(number, example))
    except ValueError as error:
      reason = f'{backend.where}, row {number} of split {split}: {error}'
      if sources.malformed == 'error':
        raise ValueError(reason) from error
      skipped.add(reason)
      continue
    left_out += not rows
    yield from rows
  if left_out:
    log.info(
      '%s, %s: the task leaves out %d of %d rows.', dataset.builder, split_slice, left_out, count
    )
  if skipped.count:
    log.warning('Skipped %d rows that cannot be used. First: %s', skipped.count, skipped)
  _check_count(dataset, split_slice, split, backend.where, count)


def examples(dataset: Dataset, split: str, sources: Sources) -> Iterator[Example]:
  """Reads all examples of a split, as published."""
  return read(dataset, split, sources, lambda _, example: [example])


@dataclasses.dataclass(frozen=True)
class DatasetSource:
  """The data set behind a task: each of the task's splits is a split of it, or a slice of one.

  Attributes:
    dataset: the data set.
    slices: by the task's split, a slice of the data set's, such as 'train[:-200]'.
    sources: where to look for the data set.
  """

  dataset: Dataset
  slices: Mapping[str, str]
  sources: Sources

  def read(self, split: str, preprocess: Callable[[int, Example], Iterable[T]]) -> Iterator[T]:
    """Reads and preprocesses the examples of a task's split."""
    return read(self.dataset, self.slices[split], self.sources, preprocess)

  def file_readers(
    self, split: str, preprocess: Callable[[int, Example], Iterable[T]]
  ) -> list[Callable[[int], Iterator[T]]]:
    """Readers of a split's local files, for a task with one row an example.

    Each takes the number of examples in the files before its own. There are none if the split
    lies in one file or a TFDS directory, or if its rows are a slice or in another order.
    """
    name, *bounds = parse_slice(self.slices[split])
    if self.sources.sample or self.dataset.ordered or bounds != [0, None]:
      return []
    files = _local_files(self.dataset, name, self.sources)
    if len(files) < 2:
      return []
    return [functools.partial(self._read_file, file, name, preprocess) for file in files]

  def _read_file(
    self,
    file: epath.Path,
    split: str,
    preprocess: Callable[[int, Example], Iterable[T]],
    first: int,
  ) -> Iterator[T]:
    examples = _file_examples(self.dataset, [file], split, self.sources)
    for number, example in enumerate(examples, first):
      yield from preprocess(number, example)

  def fingerprint(self, split: str) -> str:
    return f'{self.slices[split]} of {self._backend(split).fingerprint()}'

  def location(self, split: str) -> str:
    return self._backend(split).where

  def examples(self, split: str) -> Iterator[Example]:
    return examples(self.dataset, split, self.sources)

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_slice(name)[0] for name in self.slices.values()))

  @property
  def required_files(self) -> str:
    return required_files(self.dataset, self.splits)

  def _backend(self, split: str) -> Backend:
    return locate(self.dataset, parse_slice(self.slices[split])[0], self.sources)


def _check_count(dataset: Dataset, split_slice: str, split: str, where: str, count: int) -> None:
  published = dataset.sizes.get(split)
  if not count:
    raise ValueError(
      f'{where} has no rows for {split_slice} of {dataset.builder}; split {split} was published '
      f'with {published or "an unknown number of"} rows.'
    )
  if split_slice == split and not where.startswith(str(SAMPLES)):
    _check_size(dataset, split, where, count)


def _check_size(dataset: Dataset, split: str, where: str, rows: int, effect: str = '') -> None:
  published = dataset.sizes.get(split)
  if published not in (None, rows):
    log.warning(
      '%s has %d rows; split %s of %s was published with %d%s.',
      *(where, rows, split, dataset.builder, published, effect),
    )


def parse_slice(split_slice: str) -> tuple[str, int, int | None]:
  """Parses 'train[:-200]' to ('train', 0, -200); the stop is None if there is none."""
  match = _SLICE.fullmatch(split_slice)
  if not match:
    raise ValueError(f'{split_slice!r} is not a split or a slice of one, such as train[:-200].')
  stop = match['stop']
  return match['split'], int(match['start'] or 0), None if stop is None else int(stop)


def locate(dataset: Dataset, split: str, sources: Sources) -> Backend:
  """Finds the first source with the split; FileNotFoundError, naming all candidates, if none."""
  if sources.sample:
    file = epath.Path(SAMPLES / f'{dataset.builder}.jsonl')
    if not file.exists():
      raise FileNotFoundError(
        f'No hand-written rows ship for {dataset.builder}: there is no {file}.'
      )
    return _local(dataset, [file], split, sources)
  if files := _local_files(dataset, split, sources):
    return _local(dataset, files, split, sources)
  prepared = tfds_directories.find(dataset, sources.tfds_root)
  if prepared is None and sources.allow_download and dataset.in_tfds:
    prepared = tfds_directories.download(dataset, sources.tfds_root)
  if prepared is None:
    raise FileNotFoundError(_where_to_get(dataset, split, sources))
  return tfds_directories.backend(dataset, prepared, split)


def _local_files(dataset: Dataset, split: str, sources: Sources) -> list[epath.Path]:
  """Files of the split, in the data directory or one folder deeper."""
  if sources.data_dir is None:
    return []
  root = epath.Path(sources.data_dir).expanduser()
  for pattern in patterns(dataset, split):
    for name in (pattern, f'{pattern}.gz'):
      for glob in (name, f'*/{name}'):
        if files := sorted(root.glob(glob)):
          return files
  return []


def _local(dataset: Dataset, files: list[epath.Path], split: str, sources: Sources) -> Backend:
  examples = functools.partial(_file_examples, dataset, files, split, sources)

  def size() -> int:
    return sum(1 for _ in examples())

  def sliced(start: int, stop: int | None) -> Iterator[tuple[int, Example]]:
    if dataset.ordered and not sources.sample:
      return _shuffled(examples(), range(*slice(start, stop).indices(size())), size())
    numbered = enumerate(examples())
    return ((i, e) for i, e in numbered if start <= i and (stop is None or i < stop))

  where = str(files[0]) if len(files) == 1 else f'{files[0]} and {len(files) - 1} more files'
  digest = lambda: hashlib.sha256(
    ' '.join([*map(textfiles.sha256, files), repr(dataset.features)]).encode()
  ).hexdigest()
  return Backend(where, sliced, size, digest)


def _shuffled(
  examples: Iterator[Example], positions: range, size: int
) -> Iterator[tuple[int, Example]]:
  """Rows at these positions of a fixed permutation; only they are in memory."""
  numbers = shuffling.shuffled(np.array(positions, np.int64), size, shuffling.mix(size))
  selected = dict.fromkeys(numbers.tolist())
  by_number = {i: example for i, example in enumerate(examples) if i in selected}
  return zip(positions, (by_number[i] for i in selected), strict=True)


def _file_examples(
  dataset: Dataset, files: Iterable[epath.Path], split: str, sources: Sources
) -> Iterator[Example]:
  def parse(_: int, line: str) -> list[Example]:
    fields = textfiles.json_object(line)
    if sources.sample:  # has the names of TFDS already
      examples = single_example(fields) if split in fields.get(SPLITS_KEY, (split,)) else ()
    else:
      examples = dataset.parse(fields)
    return [features_lib.encode(dataset.features, example) for example in examples]

  for file in files:
    for examples in textfiles.parsed_lines(file, parse, malformed=sources.malformed):
      yield from examples


def _where_to_get(dataset: Dataset, split: str, sources: Sources) -> str:
  names = [f'{name}[.gz]' for name in patterns(dataset, split)]
  looked = (
    f'{sources.data_dir}/[*/] for {" or ".join(names)}'
    if sources.data_dir
    else 'no folder of files, as no data_dir is set'
  )
  prepared = sources.tfds_root / dataset.builder / dataset.version
  fetch = (
    ', or set allow_download=True to fetch it; downloads are off by default.'
    if dataset.in_tfds
    else '; TFDS has no builder to download it.'
  )
  return (
    f'No rows for split {split} of {dataset.builder}. Looked in {looked}, and for a prepared TFDS '
    f'directory {prepared}. Put {names[0]} below a data_dir, or set tfds_data_dir{fetch}'
  )
