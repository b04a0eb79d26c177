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

# On disk: NumPy itself has no bfloat16.
_STORED: Mapping[str, str] = {'float32': '<f4', 'float16': '<f2', 'bfloat16': '<u2', 'uint8': '<u1'}
_STEPS = 64
_IDS, _LOGPROBS = {'ids', 'sample_ids'}, {'top_logprobs', 'sample_logprobs'}


class AnswerFormat(NamedTuple):
  """The format of the answer to one token.

  One byte c stands for the log-probability -(c / 64)^2: the steps are finest where the probability
  p is large. Its square root is rounded by at most 1 / 128, so that p is scaled by a factor of at
  most

      exp(sqrt(-log p) / 64 + 2^-14),

  2 % for p = 0.2; p below exp(-(255 / 64)^2) = 1.3e-7 is stored as that. `TopK` bounds the other
  types.

  Attributes:
    top_k: the number of first choices that are stored, with their log-probabilities and the mass of
      all others (`teachers.TopK`); None for the first choice alone (`teachers.Top1`).
    dtype: the type of stored log-probabilities.
    short_ids: whether an id takes two bytes.
    reference: whether the divergence of a reference model is stored too.
    samples: the number of others that are stored as samples, with their log-probabilities among
      the others.
  """

  top_k: int | None = None
  dtype: str = 'float16'
  short_ids: bool = False
  reference: bool = False
  samples: int = 0

  @classmethod
  def of(cls, manifest: Mapping[str, Any]) -> AnswerFormat:
    """The format that a manifest describes: in one byte per log-probability ids are short too."""
    short = manifest['dtype'] == 'uint8' and manifest['vocab_size'] <= 1 << 16
    reference = manifest.get('reference_identity') is not None
    samples = manifest.get('tail_samples') or 0
    return cls(manifest['top_k'], manifest['dtype'], short, reference, samples)

  @property
  def record(self) -> np.dtype[Any]:
    """The record of one token on disk. Raises ValueError for a dtype that cannot be stored."""
    if self.top_k is None:
      return np.dtype([('ids', '<i4')])
    if self.dtype not in _STORED:
      raise ValueError(
        f'log-probabilities cannot be stored as {self.dtype!r}: choose one of {", ".join(_STORED)}.'
      )
    k, m = (self.top_k,), (self.samples,)
    ids, logprobs = '<u2' if self.short_ids else '<i4', _STORED[self.dtype]
    return np.dtype([
      ('ids', ids, k),
      ('top_logprobs', logprobs, k),
      ('tail', '<f4'),
      *([('reference', '<f4')] if self.reference else []),
      *([('sample_ids', ids, m), ('sample_logprobs', logprobs, m)] if self.samples else []),
    ])  # fmt: skip

  def reduce(
    self, logits: Float[jax.Array, '*n V'], offsets: Float[jax.Array, '*n'] | None = None
  ) -> Top1 | TopK:
    """Reduces the large model's logits to the answers that are stored; samples need offsets."""
    if self.top_k is None:
      return teachers.to_top1(logits)
    dtype = 'float32' if self.dtype == 'uint8' else self.dtype
    return teachers.to_top_k(
      logits, k=self.top_k, dtype=dtype, samples=self.samples, offsets=offsets
    )

  def pack(self, answers: Top1 | TopK) -> np.ndarray:
    """Converts the answers to n tokens into n records."""
    records = np.zeros(len(answers.ids), self.record)
    for name in self.record.names or ():
      column = np.asarray(getattr(answers, name))
      if name in _IDS:
        records[name] = column
      elif name in _LOGPROBS and self.dtype == 'uint8':
        records[name] = np.minimum(np.rint(_STEPS * np.sqrt(np.maximum(-column, 0))), 255)
      else:
        records[name] = column.view(self.record[name].base)
    return records

  def unpack(self, records: np.ndarray) -> Top1 | TopK:
    """Converts n records into the answers to n tokens."""
    columns: dict[str, Any] = {  # Any: teachers declare JAX's arrays
      name: np.ascontiguousarray(records[name]) for name in self.record.names or ()
    }
    for name in columns.keys() & _IDS:
      columns[name] = columns[name].astype(np.int32, copy=False)
    for name in columns.keys() & _LOGPROBS:
      if self.dtype == 'uint8':
        columns[name] = np.float32(-1) * (columns[name].astype(np.float32) / _STEPS) ** 2
      else:
        columns[name] = columns[name].view(jnp.dtype(self.dtype))
    return Top1(**columns) if self.top_k is None else TopK(**columns)

  def abstract(self, tokens: int) -> Any:
    """Shapes and types of the answers to a number of tokens."""
    empty = self.unpack(np.zeros(tokens, self.record))
    return jax.tree.map(lambda column: jax.ShapeDtypeStruct(column.shape, column.dtype), empty)
