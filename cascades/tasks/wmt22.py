"""WMT22: English with Chinese, Japanese and Russian, in six directions.

Validation is newstest2021 and the test is WMT's general test of 2022, each with one reference. The
sizes that Wang et al. 2024, https://arxiv.org/abs/2406.00060, print for WMT22 are newstest2021's.
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
from cascades.tasks.features import Example
from cascades.tasks.parallel import Pair
from cascades.tasks.sources import Dataset, Sources
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
  """One year's test set: its files, as patterns for the languages {a} and {b} of a direction."""

  text: str  # its source is {text}.src.{a}, and its references are {text}.ref.A.{b} and so on
  xml: tuple[str, ...]
  sgm: str | None  # {sgm}-src.{a}.sgm, {sgm}-ref.{b}.sgm
  archive: str
  sizes: tuple[int, ...] | None  # segments, in the order of PAIRS


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


class Located(NamedTuple):
  """Where a split's pairs are, and how to read them there."""

  where: str
  pairs: Callable[[], Iterator[Pair]]
  fingerprint: Callable[[], str]  # of the content


@dataclasses.dataclass(frozen=True)
class Direction:
  """What a task is made from: the pairs of one direction."""

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

  def locate(self, split: str) -> Located:
    return locate((self.a, self.b), split, sources=self.sources, reference=self.reference)

  def location(self, split: str) -> str:
    return self.locate(split).where

  def fingerprint(self, split: str) -> str:
    return f'{self.locate(split).fingerprint()} {self.a}-{self.b} {self.reference}'

  def examples(self, split: str) -> Iterator[Example]:
    return ({self.a: p.source, self.b: p.reference} for p in self.locate(split).pairs())


def task(pair: tuple[str, str] | str, sources: Sources, *, reference: str = 'A') -> Task:
  """`wmt22_<a>_<b>`: 'translate <language a> to <language b>: <source>' -> the translation.

  `pair` is ('en', 'ja') or 'en-ja'. Of the test sets some have a second `reference`, 'B': of 2021
  en-ru, en-zh and ru-en, of 2022 en-zh and zh-en.
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
  """All six directions, at the rates of their training pairs."""
  where = sources or Sources()
  return Mixture('wmt22', tuple(task(pair, where, reference=reference) for pair in PAIRS))


def dataset(pair: tuple[str, str] | str) -> Dataset:
  """What a TFDS directory, or JSON lines with TFDS names, of a direction must hold."""
  a, b = _direction(pair)
  sizes, features = _sizes(a, b), {a: str, b: str}
  return Dataset(f'wmt22_translate/{a}-{b}', _VERSION, sizes, features, in_tfds=False)


def locate(
  pair: tuple[str, str] | str, split: str, *, sources: Sources, reference: str = 'A'
) -> Located:
  """The first place that has the split, or a FileNotFoundError that names all."""
  a, b = _direction(pair)
  if sources.sample:
    return _sample(a, b)
  if sources.data_dir is not None:
    root = epath.Path(sources.data_dir).expanduser()
    found = (
      _training(root, a, b, malformed=sources.malformed)
      if split == 'train'
      else _test_set(root, EDITIONS[split], a, b, reference)
    )
    if found:
      return found
  # Under these names nothing says which reference it is; `prepare` writes the first.
  if (split == 'train' or reference == 'A') and (found := _by_tfds_name(a, b, split, sources)):
    return found
  raise FileNotFoundError(_where_to_get(a, b, split, sources, reference))


def _direction(pair: tuple[str, str] | str) -> tuple[str, str]:
  direction = tuple(pair.split('-')) if isinstance(pair, str) else tuple(pair)
  for known in PAIRS:
    if direction == known:
      return known
  raise ValueError(
    f'{pair!r} is no direction of WMT22 here; they are {", ".join(map("-".join, PAIRS))}.'
  )


def _sizes(a: str, b: str) -> dict[str, int]:
  index = PAIRS.index((a, b))
  return {split: of.sizes[index] for split, of in EDITIONS.items() if of.sizes}


def _rows(a: str, b: str, split: str, found: Located, *, published: int | None) -> Iterator[Row]:
  name = f'wmt22_{a}_{b}'
  log.info('%s, %s: reading %s', name, split, found.where)
  count = 0
  for pair in found.pairs():
    inputs = f'translate {LANGUAGES[a]} to {LANGUAGES[b]}: {pair.source}'
    yield Row(f'{name}/{split}/{count}', inputs, (pair.reference,))
    count += 1
  if not count:
    raise ValueError(f'{found.where} has no pair for split {split} of {name}.')
  if published not in (None, count):
    log.warning(
      '%s has %d pairs; split %s of %s was published with %d.',
      *(found.where, count, split, name, published),
    )


def _of_files(files: Sequence[epath.Path], pairs: Callable[[], Iterator[Pair]]) -> Located:
  where = (
    f'{files[0]} and {len(files) - 1} more files'
    if len(files) > 2
    else ' and '.join(map(str, files))
  )
  digest = lambda: ' '.join(map(textfiles.sha256, files))
  return Located(where, pairs, digest)


def _sample(a: str, b: str) -> Located:
  file = epath.Path(SAMPLES / f'{"-".join(sorted((a, b)))}.tsv')
  columns = (0, 1) if a < b else (1, 0)
  return _of_files([file], lambda: parallel.tsv_pairs(file, columns=columns))


def _training(root: epath.Path, a: str, b: str, *, malformed: Malformed) -> Located | None:
  """train*.tsv or aligned files in a folder a-b or b-a, which serves both directions."""
  for first, second in ((a, b), (b, a)):
    for place in _TRAINING_FOLDERS:
      for folder in sorted(root.glob(f'{place}{first}-{second}')):
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


def _test_set(root: epath.Path, of: Edition, a: str, b: str, reference: str) -> Located | None:
  """As text, or as XML, or as SGM. In a test set nothing is skipped."""
  text, xml, sgm = _names(of, a, b, reference)
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


def _names(of: Edition, a: str, b: str, reference: str) -> _Names:
  text, sgm, *xml = ((name or '').format(a=a, b=b) for name in (of.text, of.sgm, *of.xml))
  return _Names(
    (f'{text}.src.{a}', f'{text}.ref.{reference}.{b}'),
    tuple(xml),
    # The files of one reference only have this name.
    (f'{sgm}-src.{a}.sgm', f'{sgm}-ref.{b}.sgm') if sgm and reference == 'A' else None,
  )


def _find(root: epath.Path, name: str) -> epath.Path | None:
  """The file, plain or gzipped, in the root or at most three folders below."""
  for place in _FOLDERS:
    for ending in ('', '.gz'):
      if found := sorted(root.glob(f'{place}{name}{ending}')):
        return found[0]
  return None


def _find_both(root: epath.Path, first: str, second: str) -> tuple[epath.Path, epath.Path] | None:
  """Preferably in one folder."""
  source = _find(root, first)
  if source is None:
    return None
  reference = _plain_or_gzipped(source.parent, second) or _find(root, second)
  return (source, reference) if reference else None


def _plain_or_gzipped(folder: epath.Path, name: str) -> epath.Path | None:
  files = (folder / name, folder / f'{name}.gz')
  return next((file for file in files if file.exists()), None)


def _by_tfds_name(a: str, b: str, split: str, sources: Sources) -> Located | None:
  """In a prepared TFDS directory, or in JSON lines with TFDS names."""
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
  return Located(backend.where, read, backend.fingerprint)


def _where_to_get(a: str, b: str, split: str, sources: Sources, reference: str) -> str:
  named = dataset((a, b))
  if split == 'train':
    names = f'train*.tsv[.gz] or train.{a} with train.{b} in [*/][wmt22/]{a}-{b} or {b}-{a}'
    origin = 'Training data are yours to choose: the lists of WMT22 name many corpora.'
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
  found = {path.name for place in _FOLDERS for path in root.glob(f'{place}{name}')}
  return f' Found are only {", ".join(sorted(found))}.' if found else ''


def _bleu(language: str) -> str:
  """BLEU's name with the tokeniser for a language."""
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
    'BLEU of Japanese is of characters here, bleu_char, which is higher than bleu_ja_mecab, the '
    "usual one, for which MeCab and a dictionary are missing: pip install 'cascades[ja]'."
  )
  return 'bleu_char'
