"""Tasks of the reproduction: their rows, and the sizes and training of their models."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import pathlib
import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from benchmarks import cat_pretraining, cat_summary
from benchmarks.cat_summary import Answering
from benchmarks.own_rows import read
from cascades import cache_teacher
from cascades.models import decoder, t5
from cascades.runtime import files
from cascades.tasks import c4, catalog, corruption, local
from cascades.tasks.task import Mixture, Row, Task
from cascades.tokenizers import train_sentencepiece, vocabularies
from cascades.types import ModelConfig, Vocabulary

Example: TypeAlias = Mapping[str, str]  # `input` and `target`
HELD_OUT = 500  # rows of validation, and of testing, that files without splits give up
PIECES = 4000
_LAYERS = {'num_encoder_layers': 1, 'num_decoder_layers': 1}
NANO = t5.T5Config(0, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=64, **_LAYERS)
NARROW = t5.T5Config(0, emb_dim=48, num_heads=3, head_dim=16, mlp_dim=96, **_LAYERS)
SHALLOW = t5.T5Config(0, emb_dim=80, num_heads=5, head_dim=16, mlp_dim=160, **_LAYERS)
MINI = t5.T5Config(
  0, emb_dim=128, num_heads=4, head_dim=32, mlp_dim=256, num_encoder_layers=2, num_decoder_layers=1
)
_DECODER = decoder.DecoderConfig(
  0, emb_dim=32, num_heads=2, num_kv_heads=2, num_layers=2, head_dim=16, mlp_dim=96
)


@dataclasses.dataclass(frozen=True)
class Folders:
  """Folder of the data, the pretrained weights, and the folder that runs are written to."""

  data: pathlib.Path
  work: pathlib.Path
  source: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """Length and learning rate of a run: AdamW with a warm-up and a cosine."""

  steps: int
  rate: float
  warmup: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """A task and its models.

  Attributes:
    task: Makes the task, given the folders and the share of noisy tokens.
    needs: Files of the data, without which the task is skipped; 'SOURCE' stands for the weights.
    lengths: Most tokens of inputs and targets.
    sizes: Sizes of small models by name, drawn at random; or numbers of first and last layers.
    large: Size of the large model; None fine-tunes the pretrained one.
    training: Of small models; the rate is the middle one of tuning.
    large_training: Of the large model.
    batch: Rows of a step, or packs.
    pack: Tokens of a pack.
    block_length: Positions that are read out at a time; None for as many as memory allows.
    larges: Number of large models: that of a seed is its remainder; 0 for one a seed.
    top_k: Log-probabilities of a token in the teacher cache.
    tail_samples: Samples of the other tokens in it.
    answering: How the models answer, and what is stored of it.
    margin: Least effect that matters, by quantity, in units of the metric.
    default_margin: That of the other quantities.
    least_gap: Advantage of the large model below which there is no cascade to judge.
  """

  task: Callable[[Folders, float], Task | Mixture]
  needs: Sequence[str] = ()
  lengths: Mapping[str, int]
  sizes: Mapping[str, ModelConfig | tuple[int, int]]
  large: ModelConfig | None
  training: Training
  large_training: Training
  batch: int = 64
  pack: int | None = None
  block_length: int | None = None
  larges: int = 0
  top_k: int = 16
  tail_samples: int | None = None
  answering: Answering = cat_summary.DECODED
  margin: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: {'area': 0.005, 'ordering': 0.005}
  )
  default_margin: float = 0.01
  least_gap: float = 0.05

  def missing(self, folders: Folders) -> list[str]:
    """What the task needs and the folders lack."""
    return [
      name
      for name in self.needs
      if not (folders.source if name == 'SOURCE' else (folders.data / name).exists())
    ]

  @property
  def outputs(self) -> cache_teacher.Answers:
    """What the teacher cache holds of the large model."""
    return cache_teacher.Answers(top_k=self.top_k, tail_samples=self.tail_samples)

  def large_seed(self, seed: int) -> int:
    return seed % self.larges if self.larges else seed


def noisy_g2p(folders: Folders, noise: float) -> Task:
  """Words to phonemes; in training, this share of the phonemes is replaced by random ones."""
  del folders
  task = catalog.get('cmudict_g2p')
  assert isinstance(task, Task)
  if not noise:
    return task
  rows = task.read

  @functools.cache
  def phonemes() -> list[str]:
    return sorted({p for row in rows('train') for answer in row.answers for p in answer.split()})

  def noisy(split: str) -> Iterator[Row]:
    for row in rows(split):
      yield with_noise(row, noise, phonemes()) if split == 'train' else row

  return dataclasses.replace(task, name=f'{task.name}_noise{noise:g}', read=noisy)


def with_noise(row: Row, noise: float, symbols: Sequence[str]) -> Row:
  """Row whose answer has each symbol replaced by a uniform one with this probability.

  The draws depend on the row's id alone, so that every run sees the same noise.
  """
  digest = hashlib.sha256(row.id.encode()).digest()
  generator = np.random.default_rng(np.frombuffer(digest, np.uint32))
  answer = [
    symbols[generator.integers(len(symbols))] if generator.random() < noise else symbol
    for symbol in row.answers[0].split()
  ]
  return row._replace(answers=(' '.join(answer),)) if answer else row


def translation(
  folders: Folders, noise: float, *, name: str, paths: Sequence[str], most_characters: int = 1000
) -> Task:
  """Pairs of a language's sentences; one file is split at random, three are the splits.

  Answers are judged by BLEU of characters. The vocabulary is trained on the training rows.
  """
  _refuse_noise(noise, name)
  parts = [
    [r for r in read(folders.data / file) if len(r['input'] + r['target']) <= most_characters]
    for file in paths
  ]
  directory = folders.work / 'data' / name
  written = write_rows(directory, split_rows(parts))
  task = local.local_jsonl(name, written, metrics=('bleu_char',))
  return dataclasses.replace(task, vocabulary=functools.partial(pieces, directory))


def pieces(directory: pathlib.Path) -> Vocabulary:
  path = directory / f'pieces{PIECES}.model'
  if path.exists():
    return vocabularies.sentencepiece(path)
  with (directory / 'train.jsonl').open() as file:
    rows = [json.loads(line) for line in file]
  texts = (row[key] for row in rows for key in ('inputs', 'targets'))
  return train_sentencepiece.train_sentencepiece(texts, path, size=PIECES)


def pretraining(folders: Folders, noise: float, *, name: str, make: Callable[..., Task]) -> Task:
  """Documents, read as one of the ways of pre-training."""
  _refuse_noise(noise, name)
  return cat_pretraining.task(folders.data, folders.work, f'pretrain_en_{name}', make)


CHOICES: Mapping[str, Sequence[str]] = {
  name: [f'flan_tasks/{file}.jsonl' for file in own]
  for name, own in {
    'sst2': ('sst2.train', 'sst2.validation', 'sst2.test'),
    'trec': ('trec.train', 'trec.test'),
    'ag_news': ('ag_news.official_test',),
    'commonsense_qa': ('commonsense_qa_ecqa.train', 'commonsense_qa.official_validation_4choice'),
    'arc_easy': ('arc_easy.train', 'arc_easy.test'),
    'arc_challenge': ('arc_challenge.train', 'arc_challenge.test'),
    'piqa': ('piqa.official_validation',),
    'boolq': ('boolq_closed_book.train', 'boolq_closed_book.test'),
  }.items()
}
# Files of texts with the numbers of their labels, and the labels' names.
LABELED: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
  'imdb': (('online_cascade/imdb_train.jsonl.gz', 'online_cascade/imdb_test.jsonl.gz'),
           ('negative', 'positive')),
  'isear': (('online_cascade/isear.jsonl',),
            ('joy', 'sadness', 'anger', 'guilt', 'shame', 'fear', 'disgust')),
}  # fmt: skip
LAST_WORDS = 60  # of a text; reviews end with their judgment, and prompts have 120 tokens
LETTERED = ('commonsense_qa', 'arc_easy', 'arc_challenge', 'piqa')  # whose options are sentences
# Of a task: what a CPU can answer, and a little more than a run reads, since the large model
# answers all training rows for the cache.
FEW = {'train_rows': 200, 'validation_rows': 50, 'test_rows': 100}
SUPERGLUE = {'rte': 'RTE', 'wic': 'WiC'}


def classification(folders: Folders, noise: float) -> Mixture:
  """Tasks with a few short options each, in equal shares, pooled with one threshold."""
  _refuse_noise(noise, 'classification')
  tasks = []
  for name, own in CHOICES.items():
    parts = [
      [question(row, letters=name in LETTERED) for row in read(folders.data / file)] for file in own
    ]
    paths = write_rows(folders.work / 'data' / name, split_rows(parts, **FEW))
    tasks.append(dataclasses.replace(local.local_jsonl(name, paths), rate=1))
  for name, (own, options) in LABELED.items():
    parts = [[*labeled(folders.data / file, options)] for file in own]
    paths = write_rows(folders.work / 'data' / name, split_rows(parts, **FEW))
    tasks.append(dataclasses.replace(local.local_jsonl(name, paths), rate=1))
  for name in SUPERGLUE:
    task = catalog.get(f'superglue_{name}', data_dir=str(folders.data / 'superglue'))
    assert isinstance(task, Task)
    rows = [[{'input': r.inputs, 'target': r.answers[0]} for r in task.read(split)]
            for split in ('train', 'validation')]  # fmt: skip
    paths = write_rows(folders.work / 'data' / name, split_rows(rows, **FEW))
    tasks.append(dataclasses.replace(local.local_jsonl(name, paths), rate=1))
  return Mixture('cat_classification', tuple(tasks))


def labeled(path: pathlib.Path, options: Sequence[str]) -> Iterator[dict[str, str]]:
  """Questions of the last words of each text; texts of fewer than three words are left out."""
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'rt', encoding='utf-8') as file:
    for line in file:
      row = json.loads(line)
      words = row['text'].replace('<br />', ' ').split()
      if len(words) > 2:
        asked = {'input': ' '.join(words[-LAST_WORDS:]), 'options': options}
        yield question(asked | {'target': options[row['label']]}, letters=False)


def question(row: Mapping[str, Any], *, letters: bool) -> dict[str, str]:
  """Row with its options in the prompt, which are answered by their letters or by themselves."""
  options, names = row['options'], string.ascii_uppercase
  shown = [f'({name}) {option}' for name, option in zip(names, options, strict=False)]
  return {
    'input': f'{row["input"]}\nOptions: {"; ".join(shown if letters else options)}\nAnswer:',
    'target': names[options.index(row['target'])] if letters else row['target'],
  }


def split_rows(
  parts: Sequence[Sequence[Example]],
  *,
  train_rows: int | None = None,
  validation_rows: int = 500,
  test_rows: int = 1000,
) -> dict[str, list[Example]]:
  """Splits of files that are all three, training and testing, or one; shuffled with one seed.

  An input is in one split only: that of testing, else of validation, keeps its rows.
  """
  shuffled = [random.Random(0).sample(list(part), len(part)) for part in parts]
  if len(shuffled) == 1:
    shuffled = [shuffled[0][HELD_OUT:], shuffled[0][:HELD_OUT]]
  if len(shuffled) == 2:
    train, test = shuffled
    shuffled = [train[HELD_OUT:], train[:HELD_OUT], test]
  test = shuffled[2][:test_rows]
  validation = _without_inputs(shuffled[1], test)[:validation_rows]
  train = _without_inputs(shuffled[0], [*validation, *test])[:train_rows]
  return {'train': train, 'validation': validation, 'test': test}


def _without_inputs(rows: Sequence[Example], others: Sequence[Example]) -> list[Example]:
  known = {row['input'] for row in others}
  return [row for row in rows if row['input'] not in known]


def write_rows(directory: pathlib.Path, splits: Mapping[str, Sequence[Example]]) -> dict[str, str]:
  """Write the splits as JSON lines, each file once, and give their paths; refuse other rows."""
  directory.mkdir(parents=True, exist_ok=True)
  paths = {split: directory / f'{split}.jsonl' for split in splits}
  for split, rows in splits.items():
    lines = [json.dumps({'inputs': row['input'], 'targets': row['target']}) for row in rows]
    written = '\n'.join([*lines, ''])
    if not paths[split].exists():
      files.write(paths[split], written)
    if paths[split].read_text() != written:
      raise ValueError(f'{paths[split]} has other rows than this version writes: use a new --work.')
  return {split: str(path) for split, path in paths.items()}


def _refuse_noise(noise: float, name: str) -> None:
  if noise:
    raise ValueError(f'noise is {noise:g} for {name}: only g2p has noisy training rows.')


_translated = functools.partial(
  Setting,
  sizes={'nano': NANO},
  large=MINI,
  training=Training(steps=600, rate=4e-3, warmup=100),
  large_training=Training(steps=1200, rate=1.5e-3, warmup=100),
  larges=1,
  margin={'area': 0.5, 'ordering': 0.5},
  default_margin=0.5,
  least_gap=5.0,
)
_LIBREOFFICE = {
  f'libreoffice_{language}': _translated(
    task=functools.partial(
      translation,
      name=f'libreoffice_{language}',
      paths=(f'mt_libreoffice_help/en-{language}.tsv',),
      most_characters=200,
    ),
    needs=(f'mt_libreoffice_help/en-{language}.tsv',),
    lengths={'inputs': 64, 'targets': 64},
  )
  for language in ('zh', 'ja', 'ru')
}  # fmt: skip

_pretrained = functools.partial(
  Setting,
  needs=(cat_pretraining.DOCUMENTS,),
  training=Training(steps=1000, rate=4e-3, warmup=100),
  large_training=Training(steps=1500, rate=2e-3, warmup=100),
  answering=Answering(cat_pretraining.answer, cat_pretraining.summarize),
  least_gap=0.02,
)
_CHUNK = 64  # tokens of a row; of span corruption, of its inputs
_PRETRAINING = {
  'pretrain_causal': _pretrained(
    task=functools.partial(
      pretraining, name='causal', make=functools.partial(c4.causal_lm, length=_CHUNK)
    ),
    lengths={'inputs': 1, 'targets': _CHUNK},
    sizes={'nano': _DECODER},
    large=dataclasses.replace(
      _DECODER, emb_dim=128, num_heads=4, num_kv_heads=4, num_layers=4, head_dim=32, mlp_dim=352
    ),
    batch=32,
  ),
  'pretrain_span': _pretrained(
    task=functools.partial(
      pretraining, name='span', make=functools.partial(c4.span_corruption, inputs_length=_CHUNK)
    ),
    lengths={'inputs': _CHUNK, 'targets': corruption.chunk_length(_CHUNK)[1]},
    sizes={'nano': NANO},
    large=MINI,
  ),
}

SETTINGS: Mapping[str, Setting] = {
  'g2p': Setting(
    task=noisy_g2p,
    lengths={'inputs': 16, 'targets': 16},
    sizes={'nano': NANO, 'narrow': NARROW, 'shallow': SHALLOW},
    large=MINI,
    training=Training(steps=1000, rate=2e-2, warmup=100),
    large_training=Training(steps=1700, rate=1.5e-3, warmup=100),
  ),
  'classification': Setting(
    task=classification,
    needs=('SOURCE', *(file for own in CHOICES.values() for file in own),
           *(file for own, _ in LABELED.values() for file in own),
           *(f'superglue/{folder}' for folder in SUPERGLUE.values())),
    lengths={'inputs': 120, 'targets': 8},
    sizes={'4+4': (4, 4), '8+7': (8, 7)},
    large=None,
    training=Training(steps=300, rate=2e-4, warmup=20),
    large_training=Training(steps=300, rate=5e-5, warmup=20),
    batch=1,
    pack=256,
    block_length=16,  # most positions are of prompts, and blocks without targets are skipped
    larges=1,
  ),
  'tanaka': _translated(
    task=functools.partial(
      translation,
      name='tanaka',
      paths=tuple(f'mt_tanaka_en_ja/{split}.tsv' for split in ('train', 'dev', 'test')),
    ),
    needs=tuple(f'mt_tanaka_en_ja/{split}.tsv' for split in ('train', 'dev', 'test')),
    lengths={'inputs': 32, 'targets': 48},
  ),
  **_LIBREOFFICE,
  **_PRETRAINING,
}  # fmt: skip
