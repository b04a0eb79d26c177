"""Descriptions of published data sets: their TFDS names, official files and fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from cascades.tasks.features import Example, Features


def single_example(fields: Example) -> Iterable[Example]:
  """The line itself as its only example."""
  return (fields,)


class Dataset(NamedTuple):
  """A published data set, by its TFDS name and by its official files.

  Attributes:
    builder: TFDS name with configuration, such as 'super_glue/boolq'.
    version: version of the TFDS builder.
    sizes: published numbers of rows by split.
    features: types of the fields.
    files: official file below a data directory, possibly with wildcards, by split.
    parse: converts a line of an official file to examples with TFDS's field names.
    ordered: rows of the files are sorted, by class for example, and are read in a shuffled order.
    in_tfds: TFDS has a builder of this name, to download the data set.
  """

  builder: str
  version: str
  sizes: Mapping[str, int]
  features: Features
  files: Mapping[str, str] = {}
  parse: Callable[[Example], Iterable[Example]] = single_example
  ordered: bool = False
  in_tfds: bool = True


class Backend(NamedTuple):
  """A file or directory with a split's examples.

  Attributes:
    where: path of the file or directory.
    examples: gives examples with their numbers, from a start up to a stop or the end.
    size: gives the number of examples; called only for slices that need it.
    fingerprint: identifies the content.
  """

  where: str
  examples: Callable[[int, int | None], Iterator[tuple[int, Example]]]
  size: Callable[[], int]
  fingerprint: Callable[[], str]


def patterns(dataset: Dataset, split: str) -> list[str]:
  """Names below a data directory: the official name or shards of that file, then the TFDS name."""
  official = dataset.files.get(split)
  names = [official, official.replace('.jsonl', '_*.jsonl')] if official else []
  return [*names, f'{dataset.builder}/{split}.jsonl', f'{dataset.builder}/{split}-*.jsonl']


def required_files(dataset: Dataset, splits: Iterable[str]) -> str:
  """Names of the files with these splits, separated by spaces."""
  return ' '.join(patterns(dataset, split)[0] for split in splits)
