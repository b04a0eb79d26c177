"""Encoders that a ranker starts from: one of sentence-transformers, or a tiny random one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from etils import epath

from cascades.interop.pretrained import open_encoder
from cascades.models import bert
from cascades.models.abstract import abstract_model
from cascades.runtime import files, partitioning, ranges
from cascades.tokenizers import wordpiece
from cascades.tokenizers.from_folder import read_vocabulary
from cascades.types import Params, Vocabulary

TINY_PIECES = 8000  # of a vocabulary that is made from the user's own documents
TINY_LAYERS = 2


class EncoderStart(NamedTuple):
  """An encoder before training.

  Attributes:
    config: Its configuration.
    vocabulary: Its tokenizer, whose files are in the folder of the run.
    weights: Gives its weights; None for random ones.
  """

  config: bert.BertConfig
  vocabulary: Vocabulary
  weights: Callable[[], Params | None]


def pretrained(
  folder: epath.PathLike, tokenizer: epath.Path, *, layers: int | None = None
) -> EncoderStart:
  """Encoder of a folder, or its first layers; writes its tokenizer to another folder.

  Raises:
    CheckpointError: The folder holds no encoder.
    ValueError: It has fewer layers.
  """
  opened = open_encoder(folder)
  most = opened.config.num_layers
  ranges.check({'LAYERS': layers}, least=1, most=most, integer=True)
  config = dataclasses.replace(opened.config, num_layers=layers or most)
  for name, content in opened.companions().items():
    files.write(tokenizer / name, content)

  def weights() -> Params:
    with partitioning.use(partitioning.make_mesh(devices=jax.local_devices()[:1])):
      loaded = opened.tensors.load(abstract_model(opened.config)[1])
    first = jax.tree.map(lambda leaf: leaf[: config.num_layers], loaded['blocks'])
    return {**loaded, 'blocks': first}

  return EncoderStart(config, opened.vocabulary, weights)


def tiny(texts: Iterable[str], tokenizer: epath.Path, *, layers: int | None = None) -> EncoderStart:
  """Small BERT with random weights, and a WordPiece vocabulary of the texts, written once."""
  ranges.check({'LAYERS': layers}, least=1, integer=True)
  if not (tokenizer / wordpiece.VOCAB_TXT).exists():
    pieces = wordpiece.train(texts, TINY_PIECES)
    files.write(tokenizer / wordpiece.VOCAB_TXT, '\n'.join(pieces) + '\n')
  vocabulary = read_vocabulary(tokenizer)
  config = bert.BertConfig(
    vocab_size=vocabulary.size, emb_dim=128, num_heads=4, num_layers=layers or TINY_LAYERS,
    mlp_dim=512,
  )  # fmt: skip
  return EncoderStart(config, vocabulary, lambda: None)
