"""Pre-training in the reproduction: documents, and next-token predictions that decode nothing.

As in the paper's appendix E, a row is a piece of a document, and models are compared by the
accuracy of their next tokens under teacher forcing. A row's deferral score is the average of the
other tasks, with the small model's first choices in place of what it would decode: the mean of
-log p_S(first choice) over the target tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from benchmarks import cat_summary
from benchmarks.cat_summary import Columns
from cascades.data.corpus import Data
from cascades.inference import trained_model
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import files, partitioning
from cascades.runtime.partitioning import Devices
from cascades.tasks.sources import Sources
from cascades.tasks.task import Task
from cascades.tokenizers import train_sentencepiece, vocabularies
from cascades.types import Batch, Vocabulary

DOCUMENTS = 'pretrain_en/docs.jsonl.gz'  # and not bench_passages, which has other tasks' test rows
TRAIN_CHARACTERS, HELD_OUT_CHARACTERS = 4_000_000, 800_000
PIECES = 4000
ROWS = 2000  # held out, of which the first half validates and the second half tests
BATCH = 64
METRIC = 'token_accuracy'


def task(
  data: pathlib.Path, work: pathlib.Path, name: str, make: Callable[[Sources], Task]
) -> Task:
  """A task of `cascades.tasks.c4` on the documents, with a vocabulary of its training rows."""
  directory = work / 'data' / 'pretrain_en'
  write_documents(data / DOCUMENTS, directory)
  made = make(Sources(data_dir=str(directory)))
  return dataclasses.replace(made, name=name, vocabulary=functools.partial(_pieces, directory))


def write_documents(source: pathlib.Path, directory: pathlib.Path) -> None:
  """Documents in a random order, as files in C4's format: the first ones are held out."""
  paths = {
    split: directory / f'c4-{split}.00000-of-00001.json' for split in ('validation', 'train')
  }
  if all(path.exists() for path in paths.values()):
    return
  directory.mkdir(parents=True, exist_ok=True)
  with gzip.open(source, 'rt', encoding='utf-8') as file:
    documents = [json.loads(line)['text'] for line in file]
  random.Random(0).shuffle(documents)
  rest = iter(documents)
  for split, characters in (('validation', HELD_OUT_CHARACTERS), ('train', TRAIN_CHARACTERS)):
    lines: list[str] = []
    written = 0
    for text in rest:
      lines.append(json.dumps({'text': text}))
      written += len(text)
      if written >= characters:
        break
    files.write(paths[split], '\n'.join([*lines, '']))


def _pieces(directory: pathlib.Path) -> Vocabulary:
  path = directory / f'pieces{PIECES}.model'
  if path.exists():
    return vocabularies.sentencepiece(path)
  with (directory / 'c4-train.00000-of-00001.json').open() as file:
    texts = [json.loads(line)['text'] for line in file]
  return train_sentencepiece.train_sentencepiece(texts, path, size=PIECES)


class Forced(NamedTuple):
  """Sums over the target tokens of N rows: of -log p of the first choice, right ones, and all."""

  doubt: Float[np.ndarray, 'N']
  right: Float[np.ndarray, 'N']
  tokens: Float[np.ndarray, 'N']


@functools.partial(jax.jit, static_argnums=0)
def _sums(graph: nnx.GraphDef, params: Any, batch: Batch) -> Forced:
  model = nnx.merge(graph, params)
  logits = model.readout(model.hidden(batch), model.table).astype(jnp.float32)
  doubt = jax.nn.logsumexp(logits, axis=-1) - jnp.max(logits, axis=-1)
  right = jnp.argmax(logits, axis=-1) == batch.targets
  valid = batch.weights > 0
  return Forced(*(jnp.sum(values, axis=1, where=valid) for values in (doubt, right, valid)))


def answer(run: pathlib.Path, data: Data) -> None:
  """Write what the last checkpoint of a run makes of the held-out rows."""
  with Devices().use():
    model = trained_model.load(Checkpoint(str(run)), rules=partitioning.RULES)
    corpus = data.corpus(model.vocabulary, model.architecture)
    split = corpus.open('validation')
    batches = corpus.evaluation(split, batch_size=BATCH, rows=min(ROWS, len(split)))
    sums = [jax.device_get(_sums(model.graph, model.params, batch)) for batch in batches]
  columns = [np.concatenate(column) for column in zip(*sums, strict=True)]
  filled = columns[-1] > 0  # the last batch has rows without tokens
  kept_rows = Forced(*(column[filled] for column in columns))
  np.savez(run / 'forced.npz', **kept_rows._asdict())


def read(run: pathlib.Path) -> Forced:
  """What `answer` wrote."""
  with np.load(run / 'forced.npz') as stored:
    return Forced(*(stored[name].astype(float) for name in Forced._fields))


def summarize(small: pathlib.Path, large: pathlib.Path) -> tuple[Columns, dict[str, Any]]:
  """Columns of the test rows, and the numbers of a point's summary."""
  own, other = read(small), read(large)
  half = len(own.tokens) // 2
  statistics = {
    role: np.stack([values.right, values.tokens], axis=1)
    for role, values in (('small', own), ('large', other))
  }
  columns = {'average': (own.doubt / own.tokens)[half:]}
  columns |= {role: values[half:] for role, values in statistics.items()}
  return columns, cat_summary.numbers(METRIC, columns, statistics['small'][:half])
