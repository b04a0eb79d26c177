"""Embeddings of answers and prompts by the model itself, as sidecars of its tables.

    answer       final states of the decoder, from which the tokens of the answer were read out;
                 their mean
    first_layer  output of the first decoder layer at the position of the first answer token, before
                 the final norm; it takes the encoder and one layer, and no decoding

Gupta et al. 2024, https://arxiv.org/abs/2404.10136, learn to defer from the small model's first and
the large model's second.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax import Array
from jaxtyping import Float

from cascades.data import converters, prompts
from cascades.data.converters import Tokens
from cascades.data.corpus import Corpus
from cascades.data.records import Records
from cascades.inference.trained_model import TrainedModel
from cascades.models import t5
from cascades.predictions import markers, shards, sidecars
from cascades.runtime import claims, partitioning
from cascades.tasks.task import Record
from cascades.types import Batch, Params

ANSWER, FIRST_LAYER = 'answer', 'first_layer'
NAMES = (ANSWER, FIRST_LAYER)


def check(names: Sequence[str]) -> None:
  """Raise ValueError unless all are names of embeddings."""
  if unknown := [name for name in names if name not in NAMES]:
    raise ValueError(f'EMBEDDINGS names {unknown[0]!r:.80}; expected {", ".join(NAMES)}.')


class StateEmbedder:
  """Embeds batches under teacher forcing; calls must be inside `partitioning.use`."""

  def __init__(self, model: TrainedModel, name: str) -> None:
    @jax.jit
    def embed(params: Params, batch: Batch) -> Float[Array, 'B D']:
      merged = nnx.merge(model.graph, params)
      weights = batch.weights
      if name == FIRST_LAYER:
        merged = first_decoder_layer(merged)
        weights = weights * (jnp.cumsum(weights, -1) == 1)
      hidden = merged.hidden(batch).astype(jnp.float32)
      total = jnp.einsum('btd,bt->bd', hidden, weights)
      return total / jnp.maximum(weights.sum(-1, keepdims=True), 1.0)

    self.model = model
    self._embed = embed

  def embed(self, batch: Batch) -> Float[np.ndarray, 'B D']:
    """Embeddings of the batch's rows, as NumPy arrays on every process."""
    return partitioning.fetch(self._embed(self.model.params, partitioning.place_whole(batch)))


def first_decoder_layer(model: Any) -> Any:
  """The model with its first decoder layer only, and without the final norm."""
  is_t5 = isinstance(model, t5.T5)
  stack, norm, layers = (
    ('decoder', 'decoder_norm', 'num_decoder_layers') if is_t5 else ('blocks', 'norm', 'num_layers')
  )
  graph, state = nnx.split(getattr(model, stack))
  setattr(model, stack, nnx.merge(graph, jax.tree.map(lambda leaf: leaf[:1], state)))
  setattr(model, norm, _identity)
  model.config = dataclasses.replace(model.config, **{layers: 1})
  return model


def _identity(x: Array) -> Array:
  return x


def write(
  directory: epath.Path,
  names: Sequence[str],
  model: TrainedModel,
  corpus: Corpus,
  split: Records,
  *,
  mode: shards.Mode,
  batch_size: int,
  lease: float = claims.LEASE,
) -> None:
  """Write the sidecars of a finished table that are missing, shard by shard.

  Args:
    directory: Directory of the table.
    names: Names of embeddings.
    model: The model that wrote the table.
    corpus: The task as the model reads it.
    split: Records of the table's rows.
    mode: Mode of the table.
    batch_size: Rows of a batch.
    lease: Seconds of silence after which the shard of another program is taken up.
  """
  if not names:
    return
  (table,) = shards.read(directory, task=corpus.tasks[0].name, mode=mode)
  count, fingerprint = table.manifest['shards'], table.manifest.get('fingerprint', '')
  for name in names:
    embedder = StateEmbedder(model, name)

    shard = functools.partial(sidecars.shard_name, table.task, mode, name, count=count)

    def written(numbers: Sequence[int], shard: Callable[[int], str] = shard) -> set[int]:
      return {
        index
        for index in markers.marked(directory, {number: shard(number) for number in numbers})
        if not markers.defect(
          directory / shard(index),
          rows=len(shards.shard_rows(len(split), index, count)),
          fingerprint=fingerprint,
        )
      }

    with claims.Claims(directory, lease) as claimed:
      for index, _ in claimed.shares(dict.fromkeys(range(count)), shard, written, wait=True):
        numbers = shards.shard_rows(len(split), index, count)
        path = directory / shards.shard_name(table.task, mode, index, count)
        given = _tokens(path) if name == ANSWER else {}
        array = _embed_rows(embedder, corpus, split, numbers, given, batch_size)
        if jax.process_index() == 0:
          sidecars.write_shard(
            directory, table.task, mode, name, index, count, array, fingerprint=fingerprint
          )
    if jax.process_index() == 0:
      flops = 0.0 if name == ANSWER else _flops(model, corpus, split)
      origin = {
        'checkpoint_identity': model.described['checkpoint_identity'], 'flops_per_query': flops,
      }  # fmt: skip
      sidecars.write_manifest(directory, name, table, count=count, origin=origin)


def _embed_rows(
  embedder: StateEmbedder,
  corpus: Corpus,
  split: Records,
  numbers: range,
  given: dict[str, Tokens],
  batch_size: int,
) -> Float[np.ndarray, 'n D']:
  """Embeddings of the rows of these numbers; `given` are the tokens of the answers by id.

  The states of an answer of n tokens depend on the first n - 1. The last one is only counted, and
  may be the end that the converter appends.
  """
  convert = converters.CONVERTERS[corpus.architecture]
  ending = len(converters.feature_converter(split, convert, corpus.lengths).targets_end)
  first = np.array([embedder.model.vocabulary.eos_id], np.int32)

  def answer(record: Record) -> Sequence[Tokens]:
    tokens = given.get(record.row.id, first)
    return [tokens[: len(tokens) - ending]]

  rows = [
    embedded[: len(chunk)]
    for chunk, _, batch in corpus.candidates(split, numbers, batch_size=batch_size, of=answer)
    for embedded in [embedder.embed(batch)]
  ]
  return np.concatenate(rows)


def _tokens(path: epath.Path) -> dict[str, Tokens]:
  """Tokens of each answer of a shard by id."""
  rows = [json.loads(line)['aux'] for line in path.read_bytes().split(b'\n')[:-1]]
  return {row['id']: np.array(row['tokens'], np.int32) for row in rows}


def _flops(model: TrainedModel, corpus: Corpus, split: Records) -> float:
  """FLOPs of the first layer at the first answer token: 2 a weight and token, mean of the rows."""
  convert = converters.CONVERTERS[corpus.architecture]
  tokens = float(prompts.prompt_lengths(split, convert=convert, lengths=corpus.lengths).mean())
  size = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  if corpus.architecture == 'decoder_only':
    blocks = model.params['blocks']
    return 2.0 * tokens * size(blocks) / jax.tree.leaves(blocks)[0].shape[0]
  layers = jax.tree.leaves(model.params['decoder'])[0].shape[0]
  return 2.0 * (tokens * size(model.params['encoder']) + size(model.params['decoder']) / layers)
