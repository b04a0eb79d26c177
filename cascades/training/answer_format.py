"""The format of a large model's stored answers: one record per target token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from cascades import teachers
from cascades.teachers import Top1, TopK

# On disk: NumPy itself has no bfloat16. One byte c stands for the log-probability -(c / 64)^2, down
# to -15.9: the steps are finest where the probability is large.
_STORED: Mapping[str, str] = {'float32': '<f4', 'float16': '<f2', 'bfloat16': '<u2', 'uint8': '<u1'}
_STEPS = 64


class AnswerFormat(NamedTuple):
  """The format of the answer to one token.

  Attributes:
    top_k: the number of first choices that are stored, with their log-probabilities and the mass of
      all others (`teachers.TopK`); None for the first choice alone (`teachers.Top1`).
    dtype: the type of stored log-probabilities.
    short_ids: whether an id takes two bytes.
    reference: whether the divergence of a reference model is stored too.
  """

  top_k: int | None = None
  dtype: str = 'float16'
  short_ids: bool = False
  reference: bool = False

  @classmethod
  def of(cls, manifest: Mapping[str, Any]) -> AnswerFormat:
    """The format that a manifest describes: in one byte per log-probability ids are short too."""
    short = manifest['dtype'] == 'uint8' and manifest['vocab_size'] <= 1 << 16
    return cls(
      manifest['top_k'], manifest['dtype'], short, manifest.get('reference_identity') is not None
    )

  @property
  def record(self) -> np.dtype[Any]:
    """The record of one token on disk. Raises ValueError for a dtype that cannot be stored."""
    if self.top_k is None:
      return np.dtype([('ids', '<i4')])
    if self.dtype not in _STORED:
      raise ValueError(
        f'log-probabilities cannot be stored as {self.dtype!r}: choose one of {", ".join(_STORED)}.'
      )
    k = (self.top_k,)
    return np.dtype([
      ('ids', '<u2' if self.short_ids else '<i4', k),
      ('top_logprobs', _STORED[self.dtype], k),
      ('tail', '<f4'),
      *([('reference', '<f4')] if self.reference else []),
    ])  # fmt: skip

  def reduce(self, logits: Float[jax.Array, '*n V']) -> Top1 | TopK:
    """Reduces the large model's logits to the answers that are stored."""
    if self.top_k is None:
      return teachers.to_top1(logits)
    dtype = 'float32' if self.dtype == 'uint8' else self.dtype
    return teachers.to_top_k(logits, k=self.top_k, dtype=dtype)

  def pack(self, answers: Top1 | TopK) -> np.ndarray:
    """Converts the answers to n tokens into n records."""
    records = np.zeros(len(answers.ids), self.record)
    for name in self.record.names or ():
      column = np.asarray(getattr(answers, name))
      if name == 'ids':
        records[name] = column
      elif name == 'top_logprobs' and self.dtype == 'uint8':
        records[name] = np.minimum(np.rint(_STEPS * np.sqrt(np.maximum(-column, 0))), 255)
      else:
        records[name] = column.view(self.record[name].base)
    return records

  def unpack(self, records: np.ndarray) -> Top1 | TopK:
    """Converts n records into the answers to n tokens."""
    columns: dict[str, Any] = {  # Any: teachers declare JAX's arrays
      name: np.ascontiguousarray(records[name]) for name in self.record.names or ()
    }
    ids = columns['ids'].astype(np.int32, copy=False)
    if self.top_k is None:
      return Top1(ids)
    logprobs = columns['top_logprobs']
    if self.dtype == 'uint8':
      logprobs = np.float32(-1) * (logprobs.astype(np.float32) / _STEPS) ** 2
    else:
      logprobs = logprobs.view(jnp.dtype(self.dtype))
    return TopK(ids, logprobs, columns['tail'], columns.get('reference'))

  def abstract(self, tokens: int) -> Any:
    """Shapes and types of the answers to a number of tokens."""
    empty = self.unpack(np.zeros(tokens, self.record))
    return jax.tree.map(lambda column: jax.ShapeDtypeStruct(column.shape, column.dtype), empty)
