"""Vectors of prompts by a table of word pieces, without a network: model2vec's folders.

A text's vector is the weighted mean of the rows of its pieces, as the package `model2vec` computes
it; a decision then costs microseconds. Tables are distilled from encoders and read from a folder
alone, with `config.json`, `model.safetensors` and `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import safetensors
from etils import epath
from jaxtyping import Float

from cascades.models import bert
from cascades.runtime import files


def is_static(folder: epath.PathLike) -> bool:
  """True if a folder holds the table of a static model, by the arrays of its weights."""
  weights = files.absolute(folder) / 'model.safetensors'
  try:
    with safetensors.safe_open(weights, framework='numpy') as arrays:
      return 'embeddings' in arrays.keys()  # noqa: SIM118, not a mapping
  except (OSError, safetensors.SafetensorError):  # other readers say what is wrong with it
    return False


def open_static(folder: epath.PathLike) -> bert.Embedder:
  """Function from texts to vectors of the table in a folder.

  Raises:
    ImportError: The package model2vec is not installed.
  """
  try:
    import model2vec
  except ImportError as error:
    raise ImportError(
      f'{folder} holds static vectors, which the package model2vec reads: install the extra, '
      "`pip install 'lm-cascades[static]'`."
    ) from error
  model = model2vec.StaticModel.from_pretrained(files.absolute(folder), force_download=False)

  def embed(texts: Sequence[str]) -> Float[np.ndarray, 'N D']:
    if not texts:
      return np.empty((0, model.dim), np.float32)
    return np.asarray(model.encode(list(texts), use_multiprocessing=False), np.float32)

  return embed
