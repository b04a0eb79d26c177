"""Vectors of prompts by an encoder of sentence-transformers, each computed once."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Float

from cascades.inference import static_vectors
from cascades.interop.pretrained import Pretrained, open_encoder
from cascades.models import bert
from cascades.models.abstract import abstract_model
from cascades.runtime import files, partitioning, progress

log = logging.getLogger(__name__)

CHUNK = 512  # texts between two writes


def load(pretrained: Pretrained[bert.BertConfig]) -> bert.Bert:
  """Encoder with its weights, on one device."""
  with partitioning.use(partitioning.make_mesh(devices=jax.local_devices()[:1])):
    graph, abstract = abstract_model(pretrained.config)
    model: bert.Bert = nnx.merge(graph, pretrained.tensors.load(abstract))
  return model


def open_embedder(
  encoder: epath.PathLike, embedder: Callable[..., bert.Embedder] = bert.embedder
) -> bert.Embedder:
  """Function from texts to vectors of the encoder in a folder, or of its static vectors.

  Args:
    encoder: The folder.
    embedder: `bert.embedder`, or `bert.steady_embedder`.

  Raises:
    CheckpointError: The folder holds no encoder.
    ImportError: It holds static vectors, and their package is not installed.
  """
  if static_vectors.is_static(encoder):
    return static_vectors.open_static(encoder)
  pretrained = open_encoder(encoder)
  return embedder(load(pretrained), pretrained.vocabulary)


def identity(encoder: epath.PathLike) -> str:
  """Name of an encoder's folder with a digest of its weights."""
  folder = files.absolute(encoder)
  digest = hashlib.sha256()
  for path in sorted(folder.glob('*.safetensors')):
    digest.update(path.read_bytes())
  return f'{folder.name}-{digest.hexdigest()[:12]}'


def embed(
  texts: Sequence[str], encoder: epath.PathLike, store: epath.PathLike
) -> Float[np.ndarray, 'N D']:
  """Vectors of texts, read from a file where they are stored, and added to it elsewhere.

  Args:
    texts: Prompts, repeated or not.
    encoder: Folder of the encoder.
    store: NumPy archive of one encoder's vectors by digest of the text.

  Raises:
    CheckpointError: The folder holds no encoder.
  """
  store = epath.Path(store)
  names = [hashlib.blake2b(text.encode('utf-8', 'surrogatepass')).hexdigest() for text in texts]
  vectors: dict[str, np.ndarray] = {}
  if store.exists():
    with np.load(io.BytesIO(store.read_bytes()), allow_pickle=False) as stored:
      vectors = dict(zip(stored['names'].tolist(), stored['vectors'], strict=True))
  missing = {n: text for n, text in zip(names, texts, strict=True) if n not in vectors}
  if missing:
    embedder = open_embedder(encoder)
    ordered = sorted(missing, key=lambda name: len(missing[name]))  # similar lengths in a chunk
    for start in range(0, len(ordered), CHUNK):
      chunk = ordered[start : start + CHUNK]
      vectors |= dict(zip(chunk, embedder([missing[name] for name in chunk]), strict=True))
      content = io.BytesIO()
      np.savez(content, names=np.array([*vectors]), vectors=np.stack([*vectors.values()]))
      files.write(store, content.getvalue())
      done = start + len(chunk)
      log.info('%s', progress.format_line(done, len(ordered), {}, None, unit='prompt'))
  return np.stack([vectors[name] for name in names])
