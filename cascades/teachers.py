"""What a loss may ask of the frozen large model: its top-1 tokens, and how it prices the small one.

Where the large model runs beside the small one its logits are at hand (`Logits`). A teacher cache
has kept less of them, the first choice (`Top1`) or the first few (`TopK`), and takes their place
in every loss and mask that asks for no more.
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


class Top1(NamedTuple):
  """The first choice alone, 4 bytes a token. Masks are those of `Logits`, exactly."""

  ids: Int[Array, '*n']

  def top1(self) -> Int[Array, '*n']:
    return self.ids

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    del small_logprobs
    raise ValueError(
      "this loss distils, and the teacher cache holds the large model's first choices alone: "
      'make one with their log-probabilities (TOP_K=16), or train with cat_xent.'
    )


class TopK(NamedTuple):
  """The k most likely tokens; the mass t of the others is spread evenly over those V - k.

      l_i = -sum_{v in K} p_L(v) log p_S(v) - t / (V - k) sum_{v not in K} log p_S(v)

  Masks are those of `Logits`, exactly. The loss differs from theirs by at most

      t (max_{v not in K} log p_S(v) - min_{v not in K} log p_S(v)),

  since both average -log p_S over the tail, with weights that add up to t; and its gradient to the
  small logits by at most 2 t, summed over the vocabulary, since that is the weights' difference.
  Log-probabilities that are held in fewer bits move each kept p_L by a factor of at most
  exp(u |log p_L|): u is 2^-11 for float16, 2^-8 for bfloat16.
  """

  ids: Int[Array, '*n k']  # most likely first, lowest id first among equals
  logprobs: Float[Array, '*n k']
  tail: Float[Array, '*n']

  def top1(self) -> Int[Array, '*n']:
    return self.ids[..., 0]

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    mass = jax.lax.stop_gradient(jnp.exp(self.logprobs.astype(jnp.float32)))
    kept = jnp.take_along_axis(small_logprobs, self.ids, axis=-1)
    others = jnp.sum(small_logprobs, axis=-1) - jnp.sum(kept, axis=-1)
    count = max(small_logprobs.shape[-1] - self.ids.shape[-1], 1)  # if k = V, of no mass
    return -jnp.sum(mass * kept, axis=-1) - jax.lax.stop_gradient(self.tail) / count * others


def keep_top1(logits: Float[Array, '*n V']) -> Top1:
  """What a cache keeps of logits for losses that only ask where the large model is right."""
  return Top1(Logits(logits).top1().astype(jnp.int32))


def keep_top_k(logits: Float[Array, '*n V'], *, k: int, dtype: str = 'float32') -> TopK:
  """What a cache keeps of logits for distillation; log-probabilities are held in `dtype`."""
  logits = logits.astype(jnp.float32)
  kept, ids = jax.lax.top_k(logits, k)
  total = jax.nn.logsumexp(logits, axis=-1)
  # Not 1 - sum(kept): of a confident model nothing but rounding errors would be left.
  others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
  tail = jnp.exp(jax.nn.logsumexp(others, axis=-1) - total)
  return TopK(ids.astype(jnp.int32), (kept - total[..., None]).astype(dtype), tail)


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
