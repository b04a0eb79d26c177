"""Embed the prompts of tables of predictions, for routers that decide before any answer.

    python -m cascades.embed --gin_file=runs/embed.gin --gin.ENCODER=downloads/all-MiniLM-L6-v2
      --gin.TABLES=runs/small/predictions --gin.SPLITS="['validation', 'test']"

Writes one vector for each row beside the tables, as the sidecar `prompt`, which `evaluate` reads
for LEARNED='guarded_knn' and 'linear_router'. ENCODER is a folder of an encoder of
sentence-transformers or Hugging Face. Tables whose prompts it has embedded already are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import jax
import numpy as np
from etils import epath
from flax import nnx

from cascades import costs
from cascades.inference import encoders
from cascades.interop.pretrained import open_encoder
from cascades.models import bert
from cascades.predictions import shards, sidecars
from cascades.predictions.rows import Mode
from cascades.runtime import files, locking
from cascades.types import Predictions

log = logging.getLogger(__name__)

PROMPT = 'prompt'


def embed(
  tables: str,
  encoder: str,
  *,
  splits: Sequence[str] = ('test',),
  mode: Mode = 'predict',
  batch_size: int = 16,
  overwrite: bool = False,
) -> None:
  """Writes the embeddings of all prompts of a directory of tables.

  Args:
    tables: Output directory of `infer`.
    encoder: Folder of the encoder.
    splits: Splits to embed.
    mode: Mode of the tables.
    batch_size: Number of prompts that are encoded together.
    overwrite: Replace the embeddings of another encoder instead of refusing.

  Raises:
    CheckpointError: The folder holds no encoder.
    FileExistsError: A table has the embeddings of another encoder.
    FileNotFoundError: A table is missing or incomplete.
    ValueError: A table has no prompts, or `batch_size` is below 1.
  """
  if batch_size < 1:
    raise ValueError(f'BATCH_SIZE={batch_size}; a batch has one prompt or more.')
  pretrained = open_encoder(encoder)
  name = files.absolute(encoder).name
  model = encoders.load(pretrained)
  embedder = bert.embedder(model, pretrained.vocabulary, batch_size=batch_size)
  size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.blocks)))
  for split in splits:
    directory = files.absolute(tables) / files.component(split, 'a split')
    for table in shards.read(directory, mode=mode):
      with locking.held(directory):
        if _is_embedded(directory, table, name, overwrite=overwrite):
          log.info('%s, split %s: already embedded by %s', table.task, split, name)
          continue
        tokens = [len(ids) for ids in pretrained.vocabulary.encode_all(list(table.inputs))]
        read = float(np.minimum(tokens, pretrained.config.max_length).mean())
        origin = {'encoder': name, 'flops_per_query': costs.flops_per_token(size) * read}
        sidecars.write(directory, PROMPT, table, embedder(table.inputs), origin=origin)
      log.info('%s, split %s: %d prompts embedded', table.task, split, len(table.ids))


def _is_embedded(
  directory: epath.Path, table: Predictions, encoder: str, *, overwrite: bool
) -> bool:
  """True if the encoder has embedded the table's prompts; refuses to replace another's work."""
  if not any(table.inputs):
    raise ValueError(f'{directory}: rows of task {table.task!r} have no prompts to embed.')
  try:
    other = sidecars.read(directory, PROMPT, table).manifest['origin'].get('encoder')
  except (FileNotFoundError, ValueError):  # absent, unfinished, or of an earlier table
    return False
  if other != encoder and not overwrite:
    raise FileExistsError(
      f'{directory} holds embeddings of the prompts of task {table.task!r} by {other!r}, and '
      f'ENCODER is {encoder!r}: replace them with OVERWRITE=True.'
    )
  return other == encoder


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.embed')
