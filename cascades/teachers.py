"""Frozen large models as losses see them: first choices, cross-entropies, distributions.

A large model that runs beside the small one gives its `Logits`. A teacher cache stores less, the
first choice of each token (`Top1`) or its first few (`TopK`), and serves every loss and mask that
asks for no more.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class TeacherError(ValueError):
  """A loss or mask asks for more than its teachers hold, or for one where there is none."""


@runtime_checkable
class Teacher(Protocol):
  """A frozen large model's answers to n tokens. Gets no gradient."""

  def top1(self) -> Int[Array, '*n']:
    """Most likely tokens; the lowest id among equals."""
    ...

  def in_top(self, tokens: Int[Array, '*n'], k: int) -> Bool[Array, '*n']:
    """`tokens` that are among the k most likely ones.

    Raises:
      TeacherError: if fewer than k are stored.
    """
    ...

  def reference_kl(self) -> Float[Array, '*n']:
    """`KL(p_L || p_R)` of a reference model R, over the outcomes of this teacher.

    Raises:
      TeacherError: if none is stored.
    """
    ...

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    """`-sum_v p_L(v) log p_S(v)`.

    Raises:
      TeacherError: if the distribution p_L is not stored, not even approximately.
    """
    ...

  def logprobs(self) -> Float[Array, '*n V']:
    """`log p_L` of every vocabulary entry, in float32.

    Raises:
      TeacherError: if the whole distribution is not stored.
    """
    ...

  def outcomes(
    self, small_logprobs: Float[Array, '*n V']
  ) -> tuple[Float[Array, '*n O'], Float[Array, '*n O']]:
    """Log-probabilities of the outcomes that are told apart, of the teacher and the small model.

    The outcomes are sets of vocabulary entries that partition the vocabulary, so that the
    probabilities of either model add up to 1, and no divergence over them is negative or larger
    than that of the whole distributions.

    Raises:
      TeacherError: if the distribution p_L is not stored, not even approximately.
    """
    ...

  def sampled_ratios(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n m'] | None:
    """`log(p_S / p_L)` of m entries of the last outcome, drawn from p_L; None without samples.

    For any function f, the mean of `f` of them times the last outcome's p_L estimates
    `sum_v p_L(v) f(log(p_S(v) / p_L(v)))` over its entries v, without bias.
    """
    ...

  def tempered(self, rho: float, vocab_size: int) -> Teacher:
    """The teacher with the probabilities `p_L^rho / sum p_L^rho` of `vocab_size` entries."""
    ...


Teachers: TypeAlias = tuple[Teacher, ...]  # () if no large model is given; one is the usual case


class Logits(NamedTuple):
  """A large model that runs beside the small one."""

  logits: Float[Array, '*n V']

  def top1(self) -> Int[Array, '*n']:
    return jnp.argmax(self._frozen(), axis=-1)

  def in_top(self, tokens: Int[Array, '*n'], k: int) -> Bool[Array, '*n']:
    logits = self._frozen()
    own = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
    ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
    before = (logits > own) | ((logits == own) & (ids < tokens[..., None]))
    return jnp.sum(before, axis=-1) < k

  def reference_kl(self) -> Float[Array, '*n']:
    raise TeacherError(_NO_REFERENCE)

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    return -jnp.sum(jax.nn.softmax(self._frozen()) * small_logprobs, axis=-1)

  def logprobs(self) -> Float[Array, '*n V']:
    return jax.nn.log_softmax(self._frozen())

  def outcomes(
    self, small_logprobs: Float[Array, '*n V']
  ) -> tuple[Float[Array, '*n V'], Float[Array, '*n V']]:
    return self.logprobs(), small_logprobs

  def sampled_ratios(self, small_logprobs: Float[Array, '*n V']) -> None:
    del small_logprobs  # every entry is an outcome of its own

  def tempered(self, rho: float, vocab_size: int) -> Logits:
    del vocab_size
    return Logits(rho * self._frozen())

  def _frozen(self) -> Float[Array, '*n V']:
    # Low precision makes ties, and ties move the argmax.
    return jax.lax.stop_gradient(self.logits.astype(jnp.float32))


_FIRST_CHOICES_ONLY = (
  'this loss distills, and the teacher holds first choices only (Top1): pass a TopK or the logits, '
  'or use a loss that compares first choices, such as cat_xent.'
)
_NO_REFERENCE = (
  'this loss compares the small model with a reference model, and the teacher holds no divergence '
  'of one: pass a TopK with `reference`.'
)


class Top1(NamedTuple):
  """First choices only, 4 bytes per token. Masks are exactly those of `Logits`."""

  ids: Int[Array, '*n']

  def top1(self) -> Int[Array, '*n']:
    return self.ids

  def in_top(self, tokens: Int[Array, '*n'], k: int) -> Bool[Array, '*n']:
    return _among(self.ids[..., None], tokens, k)

  def reference_kl(self) -> Float[Array, '*n']:
    raise TeacherError(_NO_REFERENCE)

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    del small_logprobs
    raise TeacherError(_FIRST_CHOICES_ONLY)

  def outcomes(
    self, small_logprobs: Float[Array, '*n V']
  ) -> tuple[Float[Array, '*n V'], Float[Array, '*n V']]:
    del small_logprobs
    raise TeacherError(_FIRST_CHOICES_ONLY)

  def sampled_ratios(self, small_logprobs: Float[Array, '*n V']) -> None:
    del small_logprobs

  def logprobs(self) -> Float[Array, '*n V']:
    raise TeacherError(
      "this loss needs the large model's distribution, and the teacher holds first choices only "
      '(Top1): pass the logits, or use a loss that compares first choices, such as cat_xent.'
    )

  def tempered(self, rho: float, vocab_size: int) -> Top1:
    del rho, vocab_size
    return self  # the order stays


class TopK(NamedTuple):
  """The k most likely tokens K and the mass t of the others.

  A cross-entropy spreads t evenly over the V - k others:

      l_i = -sum_{v in K} p_L(v) log p_S(v) - t / (V - k) sum_{v not in K} log p_S(v)

  Masks are exactly those of `Logits`. The loss differs from theirs by at most

      t (max_{v not in K} log p_S(v) - min_{v not in K} log p_S(v)),

  since both average -log p_S over the tail, with weights that add up to t; its gradient with
  respect to the small logits differs by at most 2 t, summed over the vocabulary, which bounds the
  difference of the weights. Rounding log-probabilities scales each stored p_L by a factor of at
  most exp(u |log p_L|): u is 2^-11 for float16, 2^-8 for bfloat16; for bytes see `AnswerFormat`.

  A divergence has k + 1 outcomes, those of K and all others as one, of which the small model's mass
  s is exact too. So it is a divergence, 0 or more, of rounded p_L scaled to add up to 1. It is
  smaller than that of the whole distributions by no more than

      t (log s - log t + log max_{v not in K} p_L - log min_{v not in K} p_S)    forward KL
      s (log t - log s + log max_{v not in K} p_S - log min_{v not in K} p_L)    reverse KL
      min(s, t)                                                          total variation
      m H(b t / m),  m = b t + (1 - b) s                                 Jensen-Shannon(b)
      t log(1 + (1 - a) s / (a t))                                       skew forward KL(a)
      s log(1 + (1 - a) t / (a s))                                       skew reverse KL(a)

  with the binary entropy H in nats: t KL(P' || Q') and s KL(Q' || P') are what the KLs lose, of the
  distributions P' and Q' within the others. The gradient of the forward KL spreads t as the small
  model does, and differs by at most 2 t, summed over the vocabulary.

  With m samples of the others, drawn from p_L, cross-entropy, forward KL and total variation are
  those of the whole distributions in expectation, values and gradients. Gradients of single tokens
  still differ by at most 2 t. Anshumann et al. 2025, https://arxiv.org/abs/2503.16870.
  """

  ids: Int[Array, '*n k']  # most likely first, lowest id first among equals
  top_logprobs: Float[Array, '*n k']
  tail: Float[Array, '*n']
  reference: Float[Array, '*n'] | None = None  # KL(p_L || p_R) over the k + 1 outcomes
  sample_ids: Int[Array, '*n m'] | None = None
  sample_logprobs: Float[Array, '*n m'] | None = None  # among the others: log(p_L / tail)

  def top1(self) -> Int[Array, '*n']:
    return self.ids[..., 0]

  def in_top(self, tokens: Int[Array, '*n'], k: int) -> Bool[Array, '*n']:
    return _among(self.ids, tokens, k)

  def reference_kl(self) -> Float[Array, '*n']:
    if self.reference is None:
      raise TeacherError(_NO_REFERENCE)
    return jax.lax.stop_gradient(self.reference.astype(jnp.float32))

  def cross_entropy(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n']:
    mass = jax.lax.stop_gradient(jnp.exp(self.top_logprobs.astype(jnp.float32)))
    of_ids = jnp.take_along_axis(small_logprobs, self.ids, axis=-1)
    if self.sample_ids is None:
      count = max(small_logprobs.shape[-1] - self.ids.shape[-1], 1)  # if k = V, of no mass
      of_others = (jnp.sum(small_logprobs, axis=-1) - jnp.sum(of_ids, axis=-1)) / count
    else:
      of_others = jnp.mean(jnp.take_along_axis(small_logprobs, self.sample_ids, axis=-1), axis=-1)
    return -jnp.sum(mass * of_ids, axis=-1) - jax.lax.stop_gradient(self.tail) * of_others

  def outcomes(
    self, small_logprobs: Float[Array, '*n V']
  ) -> tuple[Float[Array, '*n O'], Float[Array, '*n O']]:
    large = self.top_logprobs.astype(jnp.float32)
    small = jnp.take_along_axis(small_logprobs, self.ids, axis=-1)
    if self.ids.shape[-1] < small_logprobs.shape[-1]:
      # Not 1 - sum(small): of a confident model nothing but rounding errors would be left.
      others = jnp.put_along_axis(small_logprobs, self.ids, -jnp.inf, axis=-1, inplace=False)
      small = _append(small, jax.nn.logsumexp(others, axis=-1))
      large = _append(large, self._log_tail())
    return jax.lax.stop_gradient(jax.nn.log_softmax(large)), small

  def sampled_ratios(self, small_logprobs: Float[Array, '*n V']) -> Float[Array, '*n m'] | None:
    if self.sample_ids is None or self.sample_logprobs is None:
      return None
    large = jax.lax.stop_gradient(self.sample_logprobs + self._log_tail()[..., None])
    return jnp.take_along_axis(small_logprobs, self.sample_ids, axis=-1) - large

  def _log_tail(self) -> Float[Array, '*n']:
    # A tail below the smallest float is stored as 0, and is not impossible.
    return jnp.log(jnp.maximum(self.tail, jnp.finfo(jnp.float32).tiny))

  def logprobs(self) -> Float[Array, '*n V']:
    raise TeacherError(
      "this loss needs the large model's distribution, and the teacher holds the first "
      f'{self.ids.shape[-1]} choices only (TopK): pass the logits, or use a loss that needs the '
      'cross-entropy only, such as cat_dist.'
    )

  def tempered(self, rho: float, vocab_size: int) -> TopK:
    """Tempers the distribution whose tail is spread evenly over the V - k others.

    Samples are of p_L and not of its power, and are kept with rho = 1 alone.
    """
    if rho == 1:
      return self
    top = rho * self.top_logprobs.astype(jnp.float32)
    count = max(vocab_size - self.ids.shape[-1], 1)  # if k = V, of no mass
    tail = jnp.log(count) + rho * (jnp.log(self.tail) - jnp.log(count))
    total = jnp.logaddexp(jax.nn.logsumexp(top, axis=-1), tail)
    return TopK(self.ids, top - total[..., None], jnp.exp(tail - total), self.reference)


def _among(ids: Int[Array, '*n K'], tokens: Int[Array, '*n'], k: int) -> Bool[Array, '*n']:
  if k > ids.shape[-1]:
    raise TeacherError(
      f'this mask asks for the first {k} choices of the large model, and the teacher holds '
      f'{ids.shape[-1]}: pass one that holds more, or the logits, or ask for fewer.'
    )
  return jnp.any(ids[..., :k] == tokens[..., None], axis=-1)


def _append(row: Float[Array, '*n k'], entry: Float[Array, '*n']) -> Float[Array, '*n k+1']:
  return jnp.concatenate([row, entry[..., None]], axis=-1)


def to_top1(logits: Float[Array, '*n V']) -> Top1:
  """Reduces logits to first choices, enough for losses that compare those with the targets."""
  return Top1(Logits(logits).top1().astype(jnp.int32))


def to_top_k(
  logits: Float[Array, '*n V'],
  *,
  k: int,
  dtype: str = 'float32',
  samples: int = 0,
  offsets: Float[Array, '*n'] | None = None,
) -> TopK:
  """Reduces logits to the k first choices and the mass of the others, enough for distillation.

  Log-probabilities are rounded to `dtype`; `samples` of the others are drawn by uniform `offsets`.
  """
  logits = logits.astype(jnp.float32)
  top, ids = jax.lax.top_k(logits, k)
  total = jax.nn.logsumexp(logits, axis=-1)
  # Not 1 - sum(top): of a confident model nothing but rounding errors would be left.
  others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
  tail = jnp.exp(jax.nn.logsumexp(others, axis=-1) - total)
  answer = TopK(ids.astype(jnp.int32), (top - total[..., None]).astype(dtype), tail)
  if not samples:
    return answer
  assert offsets is not None, 'samples need offsets'
  drawn, logprobs = _draw(others, samples, offsets)
  return answer._replace(sample_ids=drawn, sample_logprobs=logprobs.astype(dtype))


def _draw(
  logits: Float[Array, '*n V'], count: int, offsets: Float[Array, '*n']
) -> tuple[Int[Array, '*n m'], Float[Array, '*n m']]:
  """Tokens at equal distances of the cumulated probability, and their log-probabilities."""
  logprobs = jax.nn.log_softmax(logits)
  cumulated = jnp.cumsum(jnp.exp(logprobs), axis=-1)
  points = (jnp.arange(count) + offsets[..., None]) / count
  search = functools.partial(jnp.searchsorted, side='right')
  drawn = jnp.vectorize(search, signature='(v),(m)->(m)')(cumulated, points * cumulated[..., -1:])
  drawn = jnp.minimum(drawn, logits.shape[-1] - 1).astype(jnp.int32)
  # Sums are rounded, so that the point of a token may lie beside it, at one that cannot be drawn.
  possible = jnp.take_along_axis(logits, drawn, axis=-1) > -jnp.inf
  drawn = jnp.where(possible, drawn, jnp.argmax(logits, axis=-1, keepdims=True))
  return drawn, jnp.nan_to_num(jnp.take_along_axis(logprobs, drawn, axis=-1))  # NaN: of no mass


TeacherLike: TypeAlias = Teacher | Float[Array, '*n V']


def as_teachers(teachers: TeacherLike | Sequence[TeacherLike], vocab_size: int) -> Teachers:
  """Normalizes what a loss is given: large models as a tuple, plain logits as `Logits`.

  Args:
    teachers: a sequence of teachers or logits [*n V], empty if there is no large model; one
      teacher or one array of logits stands for itself alone.
    vocab_size: the number of vocabulary entries V of the small model.

  Raises:
    ValueError: if logits have another number of entries.
  """
  several = type(teachers) in (tuple, list)  # and not isinstance: most teachers are NamedTuples
  sequence = cast('Sequence[TeacherLike]', teachers if several else (teachers,))
  return tuple(_as_teacher(teacher, vocab_size) for teacher in sequence)


def _as_teacher(teacher: TeacherLike, vocab_size: int) -> Teacher:
  if not isinstance(teacher, jax.Array | np.ndarray):
    return teacher
  if teacher.shape[-1] != vocab_size:
    raise ValueError(
      f'the small model has {vocab_size} vocabulary entries and the large one {teacher.shape[-1]}: '
      'a cascade needs one vocabulary for both.'
    )
  return Logits(jnp.asarray(teacher))


def required(teachers: Teachers) -> Teachers:
  """The same teachers. Raises TeacherError if there are none."""
  if not teachers:
    raise TeacherError(
      'this loss asks a large model, and none is given (`teachers` is empty): pass its logits or '
      'a Teacher, or use a loss that asks for none, such as xent.'
    )
  return teachers


def only(teachers: Teachers) -> Teacher:
  """The one teacher, for losses that are not defined for several.

  Raises:
    TeacherError: if there is none, or more than one.
  """
  if len(required(teachers)) > 1:
    raise TeacherError(
      f'this loss is defined for one large model, and {len(teachers)} are given: pass one of them.'
    )
  return teachers[0]
