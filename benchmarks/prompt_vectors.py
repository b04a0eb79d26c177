"""Embeddings of prompts by an encoder of sentence-transformers, stored as they are computed."""

from __future__ import annotations

import hashlib
import io
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from cascades.interop.pretrained import open_encoder
from cascades.models import bert
from cascades.models.abstract import abstract_model
from cascades.runtime import files, partitioning

CHUNK = 512  # texts between two writes


def embed(texts: Sequence[str], encoder: pathlib.Path, store: pathlib.Path) -> np.ndarray:
  """Vectors [N, D] of texts, read from a file where they are stored, and added to it elsewhere.

  Args:
    texts: Prompts, repeated or not.
    encoder: Folder of the encoder.
    store: NumPy archive of one encoder's vectors by digest of the text.
  """
  names = [hashlib.blake2b(text.encode('utf-8', 'surrogatepass')).hexdigest() for text in texts]
  vectors: dict[str, np.ndarray] = {}
  if store.exists():
    with np.load(store, allow_pickle=False) as stored:
      vectors = dict(zip(stored['names'].tolist(), stored['vectors'], strict=True))
  missing = {n: text for n, text in zip(names, texts, strict=True) if n not in vectors}
  if missing:
    embedder = _embedder(encoder)
    ordered = sorted(missing, key=lambda name: len(missing[name]))  # similar lengths in a chunk
    for start in range(0, len(ordered), CHUNK):
      chunk = ordered[start : start + CHUNK]
      vectors |= dict(zip(chunk, embedder([missing[name] for name in chunk]), strict=True))
      content = io.BytesIO()
      np.savez(content, names=np.array([*vectors]), vectors=np.stack([*vectors.values()]))
      files.write(store, content.getvalue())
      print(f'{store}: {start + len(chunk)} of {len(ordered)} prompts', flush=True)
  return np.stack([vectors[name] for name in names])


def _embedder(encoder: pathlib.Path) -> bert.Embedder:
  pretrained = open_encoder(encoder)
  with partitioning.use(partitioning.make_mesh(devices=jax.local_devices()[:1])):
    graph, abstract = abstract_model(pretrained.config)
    model = nnx.merge(graph, pretrained.tensors.load(abstract))
  return bert.embedder(model, pretrained.vocabulary)
