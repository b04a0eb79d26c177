"""WMT22: English with Chinese, Japanese and Russian, in six directions.

The validation split is newstest2021 and the test split WMT's general test of 2022, each with one
reference. The sizes of WMT22 in Wang et al. 2024, https://arxiv.org/abs/2406.00060, are those of
newstest2021.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from cascades.tasks import parallel, textfiles
from cascades.tasks import sources as sources_lib
from cascades.tasks.datasets import Dataset
from cascades.tasks.features import Example
from cascades.tasks.parallel import Pair
from cascades.tasks.sources import Sources
from cascades.tasks.task import Mixture, Row, Task
from cascades.tasks.textfiles import Malformed

log = logging.getLogger(__name__)

LANGUAGES = {'en': 'English', 'zh': 'Chinese', 'ja': 'Japanese', 'ru': 'Russian'}
PAIRS = (('en', 'zh'), ('zh', 'en'), ('en', 'ja'), ('ja', 'en'), ('en', 'ru'), ('ru', 'en'))
SAMPLES = sources_lib.SAMPLES / 'wmt22'

_FOLDERS = ('', '*/', '*/*/', '*/*/*/')  # the archives have files in xml/ and txt/references/
_TRAINING_FOLDERS = ('wmt22/', '*/wmt22/', '')
_VERSION = '1.0.0'  # of a TFDS directory; TFDS itself has no builder for WMT22


class Edition(NamedTuple):
  """One year's test set: its files, as patterns for the languages {a} and {b} of a direction.

  Attributes:
    text: the source is {text}.src.{a}, the references are {text}.ref.A.{b} and so on.
    xml: names of XML files.
    sgm: the source is {sgm}-src.{a}.sgm, the reference {sgm}-ref.{b}.sgm.
    archive: where to get the files, for error messages.
    sizes: numbers of segments in the order of PAIRS; None if not checked.
  """

  text: str
  xml: tuple[str, ...]
  sgm: str | None
  archive: str
  sizes: tuple[int, ...] | None


EDITIONS: Mapping[str, Edition] = {
  'validation': Edition(
    'newstest2021.{a}-{b}',
    ('newstest2021.{a}-{b}.xml', 'newstest2021.{a}-{b}.all.xml'),
    'newstest2021-{a}{b}',
    "WMT21's test.tgz or the repository wmt21-news-systems",
    (1002, 1948, 1000, 1005, 1002, 1000),
  ),
  'test': Edition(
    'generaltest2022.{a}-{b}',
    ('wmttest2022.{a}-{b}.all.xml', 'wmttest2022.{a}-{b}.xml'),
    None,
    'the repository wmt22-news-systems',
    (2037, 1875, 2037, 2008, 2037, 2016),
  ),
  'validation_2020': Edition(
    'newstest2020.{a}-{b}', (), 'newstest2020-{a}{b}', "WMT20's test.tgz", None
  ),
}


class PairSource(NamedTuple):
  """Files with a split's pairs.

  Attributes:
    where: paths of the files.
    pairs: reads the pairs.
    fingerprint: identifies the content.
  """

  where: str
  pairs: Callable[[], Iterator[Pair]]
  fingerprint: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Direction:
  """The data source of a task: the pairs of one direction, from language `a` to `b`."""

  a: str
  b: str
  sources: Sources
  reference: str

  @property
  def dataset(self) -> Dataset:
    return dataset((self.a, self.b))

  @property
  def splits(self) -> tuple[str, ...]:
    return ('train', *EDITIONS)

  @property
  def required_files(self) -> str:
    names = (_names(EDITIONS[s], self.a, self.b, self.reference) for s in self.dataset.sizes)
    return ' '.join([f'wmt22/{self.a}-{self.b}/train.tsv', *(name.text[0] for name in names)])

  def locate(self, split: str) -> PairSource:
    return locate((self.a, self.b), split, sources=self.sources, reference=self.reference)

  def location(self, split: str) -> str:
    return self.locate(split).where

  def fingerprint(self, split: str) -> str:
    return f'{self.locate(split).fingerprint()} {self.a}-{self.b} {self.reference}'

  def examples(self, split: str) -> Iterator[Example]:
    return ({self.a: p.source, self.b: p.reference} for p in self.locate(split).pairs())


def task(pair: tuple[str, str] | str, sources: Sources, *, reference: str = 'A') -> Task:
  """Makes `wmt22_<a>_<b>`: 'translate <language a> to <language b>: ...' -> the translation.

  Args:
    pair: a direction, ('en', 'ja') or 'en-ja'.
    sources: where to look for the files.
    reference: the reference translation. Some test sets have a second one, 'B': of 2021 en-ru,
      en-zh and ru-en, of 2022 en-zh and zh-en.

  Raises:
    ValueError: if there is no such direction or reference.
  """
  a, b = _direction(pair)
  if not reference.isalnum():
    raise ValueError(f"{reference!r} names no reference; they are 'A' and, of some sets, 'B'.")
  sizes = _sizes(a, b)
  origin = Direction(a, b, sources, reference)
  return Task(
    name=f'wmt22_{a}_{b}',
    splits=origin.splits,
    read=lambda split: _rows(
      *(a, b, split, origin.locate(split)), published=None if sources.sample else sizes.get(split)
    ),
    fingerprint=origin.fingerprint,
    metrics=(_bleu(b), 'chrf'),
    description=f'{LANGUAGES[a]} -> {LANGUAGES[b]}, reference {reference}; validation is '
    'newstest2021, test the general test of 2022',
    suite='wmt22',
    sizes=sizes,
    origin=origin,
  )


def mixture(sources: Sources | None = None, *, reference: str = 'A') -> Mixture:
  """Makes the mixture of all six directions, at the rates of their training pairs."""
  sources = sources or Sources()
  return Mixture('wmt22', tuple(task(pair, sources, reference=reference) for pair in PAIRS))


def dataset(pair: tuple[str, str] | str) -> Dataset:
  """The data set of a direction, as a TFDS directory or JSON lines with TFDS's names."""
  a, b = _direction(pair)
  sizes, features = _sizes(a, b), {a: str, b: str}
  return Dataset(f'wmt22_translate/{a}-{b}', _VERSION, sizes, features, in_tfds=False)


def locate(
  pair: tuple[str, str] | str, split: str, *, sources: Sources, reference: str = 'A'
) -> PairSource:
  """Finds the first files with the split; FileNotFoundError, naming all candidates, if none."""
  a, b = _direction(pair)
  if sources.sample:
    file = epath.Path(SAMPLES / f'{"-".join(sorted((a, b)))}.tsv')
    columns = (0, 1) if a < b else (1, 0)
    return _of_files([file], lambda: parallel.tsv_pairs(file, columns=columns))
  if sources.data_dir is not None:
    root = epath.Path(sources.data_dir).expanduser()
    local = (
      _training(root, a, b, malformed=sources.malformed)
      if split == 'train'
      else _test_set(root, EDITIONS[split], a, b, reference)
    )
    if local:
      return local
  # TFDS's names do not tell the reference; `prepare` writes the first.
  if split == 'train' or reference == 'A':
    named = _by_tfds_name(a, b, split, sources)
    if named:
      return named
  raise FileNotFoundError(_where_to_get(a, b, split, sources, reference))


def _direction(pair: tuple[str, str] | str) -> tuple[str, str]:
  direction = tuple(pair.split('-')) if isinstance(pair, str) else tuple(pair)
  for published in PAIRS:
    if direction == published:
      return published
  raise ValueError(
    f'{pair!r} is no direction of WMT22 here; they are {", ".join(map("-".join, PAIRS))}.'
  )


def _sizes(a: str, b: str) -> dict[str, int]:
  index = PAIRS.index((a, b))
  return {name: edition.sizes[index] for name, edition in EDITIONS.items() if edition.sizes}


def _rows(
  a: str, b: str, split: str, source: PairSource, *, published: int | None
) -> Iterator[Row]:
  name = f'wmt22_{a}_{b}'
  log.info('%s, %s: reading %s', name, split, source.where)
  count = 0
  for pair in source.pairs():
    inputs = f'translate {LANGUAGES[a]} to {LANGUAGES[b]}: {pair.source}'
    yield Row(f'{name}/{split}/{count}', inputs, (pair.reference,))
    count += 1
  if not count:
    raise ValueError(f'{source.where} has no pair for split {split} of {name}.')
  if published not in (None, count):
    log.warning(
      '%s has %d pairs; split %s of %s was published with %d.',
      *(source.where, count, split, name, published),
    )


def _of_files(files: Sequence[epath.Path], pairs: Callable[[], Iterator[Pair]]) -> PairSource:
  where = (
    f'{files[0]} and {len(files) - 1} more files'
    if len(files) > 2
    else ' and '.join(map(str, files))
  )
  digest = lambda: ' '.join(map(textfiles.sha256, files))
  return PairSource(where, pairs, digest)


def _training(root: epath.Path, a: str, b: str, *, malformed: Malformed) -> PairSource | None:
  """Finds train*.tsv or aligned files in a folder a-b or b-a, which serves both directions."""
  for first, second in ((a, b), (b, a)):
    for parent in _TRAINING_FOLDERS:
      for folder in sorted(root.glob(f'{parent}{first}-{second}')):
        if files := sorted([*folder.glob('train*.tsv'), *folder.glob('train*.tsv.gz')]):
          columns = (0, 1) if first == a else (1, 0)
          return _of_files(files, functools.partial(_tsv, files, columns, malformed))
        source, reference = (_plain_or_gzipped(folder, f'train.{side}') for side in (a, b))
        if source and reference:
          return _of_files(
            [source, reference],
            functools.partial(
              parallel.aligned_pairs, source, reference, malformed=malformed, empty='skip'
            ),
          )
  return None


def _tsv(
  files: Sequence[epath.Path], columns: tuple[int, int], malformed: Malformed
) -> Iterator[Pair]:
  for file in files:
    yield from parallel.tsv_pairs(file, columns=columns, malformed=malformed, empty='skip')


def _test_set(
  root: epath.Path, edition: Edition, a: str, b: str, reference: str
) -> PairSource | None:
  """Finds a test set as text, XML or SGM. In a test set nothing is skipped."""
  text, xml, sgm = _names(edition, a, b, reference)
  if both := _find_both(root, *text):
    return _of_files(both, functools.partial(parallel.aligned_pairs, *both))
  for name in xml:
    if file := _find(root, name):
      read = functools.partial(parallel.xml_pairs, file, translator=reference)
      return _of_files([file], read)
  if sgm and (both := _find_both(root, *sgm)):
    return _of_files(both, functools.partial(parallel.sgm_pairs, *both))
  return None


class _Names(NamedTuple):
  text: tuple[str, str]
  xml: tuple[str, ...]
  sgm: tuple[str, str] | None


def _names(edition: Edition, a: str, b: str, reference: str) -> _Names:
  text, sgm, *xml = (
    (name or '').format(a=a, b=b) for name in (edition.text, edition.sgm, *edition.xml)
  )
  return _Names(
    (f'{text}.src.{a}', f'{text}.ref.{reference}.{b}'),
    tuple(xml),
    # The files of one reference only have this name.
    (f'{sgm}-src.{a}.sgm', f'{sgm}-ref.{b}.sgm') if sgm and reference == 'A' else None,
  )


def _find(root: epath.Path, name: str) -> epath.Path | None:
  """Finds a file, plain or gzipped, in the root or at most three folders below."""
  for folder in _FOLDERS:
    for ending in ('', '.gz'):
      if files := sorted(root.glob(f'{folder}{name}{ending}')):
        return files[0]
  return None


def _find_both(root: epath.Path, first: str, second: str) -> tuple[epath.Path, epath.Path] | None:
  """Finds two files, preferably in one folder."""
  source = _find(root, first)
  if source is None:
    return None
  reference = _plain_or_gzipped(source.parent, second) or _find(root, second)
  return (source, reference) if reference else None


def _plain_or_gzipped(folder: epath.Path, name: str) -> epath.Path | None:
  files = (folder / name, folder / f'{name}.gz')
  return next((file for file in files if file.exists()), None)


def _by_tfds_name(a: str, b: str, split: str, sources: Sources) -> PairSource | None:
  """Finds a prepared TFDS directory, or JSON lines with TFDS's names."""
  named = dataset((a, b))._replace(sizes={})
  offline = dataclasses.replace(sources, allow_download=False)
  try:
    backend = sources_lib.locate(named, split, offline)
  except FileNotFoundError:
    return None

  def pair(number: int, example: Example) -> list[Pair]:
    if not (example[a].strip() and example[b].strip()):
      raise ValueError('a side of the pair is empty')
    return [Pair(number + 1, example[a], example[b])]

  read = lambda: sources_lib.read(named, split, offline, pair)
  return PairSource(backend.where, read, backend.fingerprint)


def _where_to_get(a: str, b: str, split: str, sources: Sources, reference: str) -> str:
  named = dataset((a, b))
  if split == 'train':
    names = f'train*.tsv[.gz] or train.{a} with train.{b} in [*/][wmt22/]{a}-{b} or {b}-{a}'
    origin = 'Training data are your choice: WMT22 lists many corpora.'
  else:
    text, xml, sgm = _names(EDITIONS[split], a, b, reference)
    both = [' with '.join(files) for files in (text, sgm) if files]
    names = ' or '.join([*both, *xml])
    origin = f'They are in {EDITIONS[split].archive}.{_other_references(a, b, split, sources)}'
  looked = f'in {sources.data_dir} and below' if sources.data_dir else 'nowhere, without data_dir'
  return (
    f'No rows for split {split} of wmt22_{a}_{b} with reference {reference}. Looked for {names} '
    f'({looked}), and for TFDS rows in {sources.tfds_root}/{named.builder}/{named.version} or '
    f'{named.builder}/{split}.jsonl. {origin} Put them below a data_dir, up to three folders deep; '
    'TFDS has no builder for WMT22, so nothing can be downloaded.'
  )


def _other_references(a: str, b: str, split: str, sources: Sources) -> str:
  if sources.data_dir is None:
    return ''
  root = epath.Path(sources.data_dir).expanduser()
  name = f'{EDITIONS[split].text.format(a=a, b=b)}.ref.*.{b}'
  others = {path.name for folder in _FOLDERS for path in root.glob(f'{folder}{name}')}
  return f' There is only {", ".join(sorted(others))}.' if others else ''


def _bleu(language: str) -> str:
  """Name of BLEU with the tokenizer of a language."""
  match language:
    case 'zh':
      return 'bleu_zh'
    case 'ja':
      return _japanese_bleu()
  return 'bleu'


@functools.cache
def _japanese_bleu() -> str:
  if all(importlib.util.find_spec(name) for name in ('MeCab', 'ipadic')):
    return 'bleu_ja_mecab'
  log.warning(
    'BLEU of Japanese is bleu_char here, on characters, which is higher than the usual '
    "bleu_ja_mecab. MeCab or its dictionary is missing: pip install 'lm-cascades[ja]'."
  )
  return 'bleu_char'
