"""Where a published data set is read: local files, a prepared TFDS directory, or a download.

They are looked for in this order, whatever they are called there, and give the same examples.
Nothing touches the network unless `allow_download` is set.
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
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath

from cascades.runtime import files
from cascades.tasks import features as features_lib
from cascades.tasks import shuffling, textfiles
from cascades.tasks.features import Example, Features

log = logging.getLogger(__name__)
T = TypeVar('T')

SAMPLES = pathlib.Path(__file__).parent / 'samples'
SPLITS_KEY = '_splits'  # in a sample: the splits that alone have the row

_SLICE = re.compile(r'(?P<split>\w+)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?')


@dataclasses.dataclass(frozen=True)
class Sources:
  """Where to look for data sets, and what is permitted.

  `sample` reads the few hand-written rows that ship with each task instead, for every split.
  """

  data_dir: epath.PathLike | None = None
  tfds_data_dir: epath.PathLike | None = None  # $TFDS_DATA_DIR or ~/tensorflow_datasets
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


def _one(fields: Example) -> Iterable[Example]:
  return (fields,)


class Dataset(NamedTuple):
  """A published data set, by its TFDS name and by its official files.

  `parse` turns a line of an official file into examples with the names that TFDS gives. The rows
  of files that are `ordered`, by class for example, are read in a shuffled order.
  """

  builder: str  # with configuration: 'super_glue/boolq'
  version: str
  sizes: Mapping[str, int]  # split -> published rows
  features: Features
  files: Mapping[str, str] = {}  # split -> official file below a data directory, may have wildcards
  parse: Callable[[Example], Iterable[Example]] = _one
  ordered: bool = False
  in_tfds: bool = True  # whether TFDS has a builder of this name, to download it


class Backend(NamedTuple):
  """One way to read a split's examples; `size` is asked only by slices that need it."""

  where: str
  examples: Callable[[int, int | None], Iterator[tuple[int, Example]]]  # from, up to
  size: Callable[[], int]
  fingerprint: Callable[[], str]


def read(
  dataset: Dataset, part: str, sources: Sources, form: Callable[[int, Example], Iterable[T]]
) -> Iterator[T]:
  """What `form` makes of the examples of a split, or of a slice of it, 'train[:-200]'.

  `form` gets each example with its number in the split. An example that it rejects with a
  ValueError stops the reading, or is skipped, as malformed lines are. A slice that asks for more
  than there is gets what there is; one that then has nothing is a ValueError.
  """
  split, start, stop = parse_slice(part)
  backend = locate(dataset, split, sources)
  log.info('%s, %s: reading %s', dataset.builder, part, backend.where)
  if sources.sample:
    start, stop = 0, None
  elif start < 0 or (stop or 0) < 0:
    size = backend.size()
    start, stop, _ = slice(start, stop).indices(size)
    _check_size(dataset, split, backend.where, size, '; slices of it may overlap')
  count = left_out = 0
  skipped: list[str] = []
  for number, example in backend.examples(start, stop):
    count += 1
    try:
      formed = list(form(number, example))
    except ValueError as error:
      skipped.append(f'{backend.where}, row {number} of split {split}: {error}')
      if sources.malformed == 'error':
        raise ValueError(skipped[0]) from error
      continue
    left_out += not formed
    yield from formed
  if left_out:
    log.info('%s, %s: the task leaves out %d of %d rows.', dataset.builder, part, left_out, count)
  if skipped:
    log.warning('Skipped %d rows that cannot be used. First: %s', len(skipped), skipped[0])
  _check_count(dataset, part, split, backend.where, count)


def examples(dataset: Dataset, split: str, sources: Sources) -> Iterator[Example]:
  """A whole split's examples as they are."""
  return read(dataset, split, sources, lambda _, example: [example])


@dataclasses.dataclass(frozen=True)
class Published:
  """What a task is made from: each of its splits is a split of a data set, or a slice of one."""

  dataset: Dataset
  slices: Mapping[str, str]  # by the task's split
  sources: Sources

  def read(self, split: str, form: Callable[[int, Example], Iterable[T]]) -> Iterator[T]:
    return read(self.dataset, self.slices[split], self.sources, form)

  def fingerprint(self, split: str) -> str:
    return f'{self.slices[split]} of {self._backend(split).fingerprint()}'

  def location(self, split: str) -> str:
    return self._backend(split).where

  def examples(self, split: str) -> Iterator[Example]:
    return examples(self.dataset, split, self.sources)

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(parse_slice(part)[0] for part in self.slices.values()))

  @property
  def required_files(self) -> str:
    return names(self.dataset, self.splits)

  def _backend(self, split: str) -> Backend:
    return locate(self.dataset, parse_slice(self.slices[split])[0], self.sources)


def _check_count(dataset: Dataset, part: str, split: str, where: str, count: int) -> None:
  published = dataset.sizes.get(split)
  if not count:
    raise ValueError(
      f'{where} has no rows for {part} of {dataset.builder}; split {split} was published with '
      f'{published or "an unknown number of"} rows.'
    )
  if part == split and not where.startswith(str(SAMPLES)):
    _check_size(dataset, split, where, count)


def _check_size(dataset: Dataset, split: str, where: str, found: int, so: str = '') -> None:
  published = dataset.sizes.get(split)
  if published not in (None, found):
    log.warning(
      '%s has %d rows; split %s of %s was published with %d%s.',
      *(where, found, split, dataset.builder, published, so),
    )


def parse_slice(part: str) -> tuple[str, int, int | None]:
  """'train[:-200]' as ('train', 0, -200); no end is None."""
  found = _SLICE.fullmatch(part)
  if not found:
    raise ValueError(f'{part!r} is not a split or a slice of one, such as train[:-200].')
  stop = found['stop']
  return found['split'], int(found['start'] or 0), None if stop is None else int(stop)


def locate(dataset: Dataset, split: str, sources: Sources) -> Backend:
  """The first backend that has the split, or an error that names every place looked at."""
  if sources.sample:
    return _local(dataset, _sample_file(dataset), split, sources)
  if files := _local_files(dataset, split, sources):
    return _local(dataset, files, split, sources)
  prepared = prepared_directory(dataset, sources)
  if prepared is None and sources.allow_download and dataset.in_tfds:
    prepared = download(dataset, sources)
  if prepared is None:
    raise FileNotFoundError(_where_to_get(dataset, split, sources))
  return _prepared(dataset, prepared, split)


def _sample_file(dataset: Dataset) -> list[epath.Path]:
  file = epath.Path(SAMPLES / f'{dataset.builder}.jsonl')
  if not file.exists():
    raise FileNotFoundError(f'No hand-written rows ship for {dataset.builder}: there is no {file}.')
  return [file]


def _patterns(dataset: Dataset, split: str) -> list[str]:
  """Below a data directory: the official name or a part of that file, then the TFDS name."""
  official = dataset.files.get(split)
  names = [official, official.replace('.jsonl', '_*.jsonl')] if official else []
  return [*names, f'{dataset.builder}/{split}.jsonl', f'{dataset.builder}/{split}-*.jsonl']


def names(dataset: Dataset, splits: Iterable[str]) -> str:
  """The files that would hold these splits, by their first name."""
  return ' '.join(_patterns(dataset, split)[0] for split in splits)


def _local_files(dataset: Dataset, split: str, sources: Sources) -> list[epath.Path]:
  """The files themselves, below the data directory or one folder deeper."""
  if sources.data_dir is None:
    return []
  root = epath.Path(sources.data_dir).expanduser()
  for pattern in _patterns(dataset, split):
    for name in (pattern, f'{pattern}.gz'):
      for place in (name, f'*/{name}'):
        if found := sorted(root.glob(place)):
          return found
  return []


def _local(dataset: Dataset, files: list[epath.Path], split: str, sources: Sources) -> Backend:
  examples = functools.partial(_file_examples, dataset, files, split, sources)

  def size() -> int:
    return sum(1 for _ in examples())

  def some(start: int, stop: int | None) -> Iterator[tuple[int, Example]]:
    if dataset.ordered and not sources.sample:
      return _shuffled(examples(), range(*slice(start, stop).indices(size())), size())
    return ((i, example) for i, example in enumerate(examples()) if _within(i, start, stop))

  where = str(files[0]) if len(files) == 1 else f'{files[0]} and {len(files) - 1} more files'
  digest = lambda: hashlib.sha256(
    ' '.join([*map(textfiles.sha256, files), repr(dataset.features)]).encode()
  ).hexdigest()
  return Backend(where, some, size, digest)


def _within(number: int, start: int, stop: int | None) -> bool:
  return start <= number and (stop is None or number < stop)


def _shuffled(
  examples: Iterator[Example], wanted: range, size: int
) -> Iterator[tuple[int, Example]]:
  """The rows at places `wanted` of a fixed permutation; keeps only these in memory."""
  numbers = shuffling.shuffled(np.array(wanted, np.int64), size, shuffling.mix(size))
  chosen = dict.fromkeys(numbers.tolist())
  kept = {i: example for i, example in enumerate(examples) if i in chosen}
  return zip(wanted, (kept[i] for i in chosen), strict=True)


def _file_examples(
  dataset: Dataset, files: Iterable[epath.Path], split: str, sources: Sources
) -> Iterator[Example]:
  def parse(_: int, line: str) -> list[Example]:
    fields = textfiles.json_object(line)
    if sources.sample:  # has the names of TFDS already
      found = _one(fields) if split in fields.get(SPLITS_KEY, (split,)) else ()
    else:
      found = dataset.parse(fields)
    return [features_lib.encode(dataset.features, example) for example in found]

  for file in files:
    for several in textfiles.parsed_lines(file, parse, malformed=sources.malformed):
      yield from several


def prepared_directory(dataset: Dataset, sources: Sources) -> epath.Path | None:
  """A directory that TFDS has prepared: of the version that is known, or else of the newest."""
  root = sources.tfds_root / dataset.builder
  exact = root / dataset.version
  if (exact / 'dataset_info.json').exists():
    return exact
  others = [path.parent for path in root.glob('*/dataset_info.json')]
  # What TFDS is writing has a name of more than the version.
  versions = {tuple(map(int, path.name.split('.'))): path for path in others if _is_version(path)}
  if not versions:
    return None
  newest = versions[max(versions)]
  log.warning('%s: reading version %s.', dataset.builder, newest.name)
  return newest


def _is_version(path: epath.Path) -> bool:
  return bool(re.fullmatch(r'\d+\.\d+\.\d+', path.name))


def _prepared(dataset: Dataset, directory: epath.Path, split: str) -> Backend:
  @functools.cache
  def builder() -> Any:
    import tensorflow_datasets as tfds  # takes seconds, and only this backend needs it

    found = tfds.builder_from_directory(directory)
    for name, feature in dataset.features.items():
      if isinstance(feature, tuple) and name in found.info.features:
        labels = getattr(found.info.features[name], 'names', feature)
        if tuple(labels) != feature:
          raise ValueError(f'{directory} has labels {labels} of {name!r}, expected {feature}.')
    return found

  def size() -> int:
    splits = builder().info.splits
    if split not in splits:
      raise ValueError(f'{directory} has no split {split}, only {", ".join(splits)}.')
    return splits[split].num_examples

  def examples(start: int, stop: int | None) -> Iterator[tuple[int, Example]]:
    import tensorflow_datasets as tfds

    wanted = range(*slice(start, stop).indices(size()))
    if not wanted:
      return
    rows = builder().as_dataset(split=f'{split}[{wanted.start}:{wanted.stop}]')
    for number, example in zip(wanted, tfds.as_numpy(rows), strict=True):
      try:
        encoded = features_lib.encode(dataset.features, _plain(example))
      except ValueError as error:
        raise ValueError(f'{directory}, row {number} of split {split}: {error}') from error
      yield number, encoded

  return Backend(
    str(directory), examples, size, lambda: textfiles.sha256(directory / 'dataset_info.json')
  )


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _plain(one) for key, one in value.items()}
  if isinstance(value, np.ndarray):
    return [_plain(one) for one in value.tolist()]
  return value.item() if isinstance(value, np.generic) else value


def download(dataset: Dataset, sources: Sources) -> epath.Path:
  """Lets TFDS fetch and prepare the data set; where it is then."""
  import tensorflow_datasets as tfds

  name = f'{dataset.builder}:{dataset.version}'
  log.info('Downloading %s to %s', name, sources.tfds_root)
  try:
    tfds.builder(name, data_dir=sources.tfds_root).download_and_prepare()
  except Exception as error:  # of any kind: no network, files to be fetched by hand, no Beam
    raise OSError(
      f'TFDS could not prepare {name} ({type(error).__name__}: {error}). Instead, put '
      f'{names(dataset, dataset.sizes)} below a data_dir, or a directory that TFDS has prepared '
      'elsewhere below tfds_data_dir.'
    ) from error
  return sources.tfds_root / dataset.builder / dataset.version


def _where_to_get(dataset: Dataset, split: str, sources: Sources) -> str:
  names = [f'{name}[.gz]' for name in _patterns(dataset, split)]
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
