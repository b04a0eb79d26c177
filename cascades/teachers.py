"""What a loss may ask of the frozen large model: its top-1 tokens, and how it prices the small one.

Today the large model runs beside the small one and its logits are at hand (`Logits`). Whatever
else can answer the same two questions can take its place in every loss and mask.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Teacher(Protocol):
  def top1(self) -> Int[Array, '*n']:
    """The most likely token; the lowest id among equals."""
    ...

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    """`-sum_v p_L(v) log p_S(v)`."""
    ...


class Logits(NamedTuple):
  """A large model that runs beside the small one. Gets no gradient."""

  logits: Float[Array, '*n V']

  def top1(self) -> Int[Array, '*n']:
    return jnp.argmax(self._frozen(), axis=-1)

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    return -jnp.sum(jax.nn.softmax(self._frozen()) * small_logprobs, axis=-1)

  def _frozen(self) -> Float[Array, '*n V']:
    # Low precision makes ties, and ties move the argmax.
    return jax.lax.stop_gradient(self.logits.astype(jnp.float32))


# None where no large model is given: losses that never look at it run without one.
Large: TypeAlias = Teacher | Float[Array, '*n V'] | None


def as_teacher(large: Large, vocab_size: int) -> Teacher | None:
  """Logits over `vocab_size` tokens become a teacher; a teacher stays one."""
  if not isinstance(large, jax.Array | np.ndarray):
    return large
  if large.shape[-1] != vocab_size:
    raise ValueError(
      f'the small model has {vocab_size} vocabulary entries and the large one {large.shape[-1]}: '
      'a cascade needs one vocabulary for both.'
    )
  return Logits(jnp.asarray(large))
