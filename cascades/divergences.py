"""Divergences of the small model from its teachers, as token losses.

With P a teacher's distribution of the next token, Q the small model's and M a mixture of both:

    forward KL            KL(P || Q)                            covers the modes of P
    reverse KL            KL(Q || P)                            seeks one mode
    Jensen-Shannon        b KL(P || M) + (1 - b) KL(Q || M)     M = b P + (1 - b) Q
    total variation       sum_v max(0, Q - P)                   1 - acceptance of a drafted token
    skew forward KL       KL(P || a P + (1 - a) Q)
    skew reverse KL       KL(Q || (1 - a) P + a Q)

All are in nats, nonnegative, and 0 if and only if P = Q. They are computed over a teacher's
`outcomes`: all vocabulary entries of `Logits`; of a `TopK` the k first choices and all others
together, which makes every divergence a lower bound of itself. With several teachers they are
averaged. Teachers get no gradient, and 0 log 0 = 0.

Where a `TopK` holds samples of the others, two of them are no bounds, but unbiased. With R the
outcome of all others, and r = Q(v) / P(v) of a sample v,

    forward KL            sum_{v not in R} P log(P / Q) - P(R) mean(log r)
    total variation       sum_{v not in R} max(0, P - Q) + P(R) mean(max(0, 1 - r))

The first may be negative for a token, where P and Q are nearly equal, and never is on average; its
gradient is off by at most 2 P(R), summed over the vocabulary. Adding r - 1, whose mean is known,
would keep it from falling below 0, and let single samples move it without bound. So would the terms
of the other divergences, which leave samples alone.

Zhou et al. 2024, DistillSpec, https://arxiv.org/abs/2310.08461 (the first four); Ko et al. 2024,
DistiLLM, https://arxiv.org/abs/2402.03898 (the skew ones). No distillation temperature.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cascades.teachers import Teachers, only, required

# Log-probability of impossible outcomes: exp of it is 0, and products with 0 are not NaN.
LEAST = -1e4


def forward_kl(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`KL(P || Q) = sum_v P(v) log(P(v) / Q(v))`, of gradient Q - P with respect to the logits.

  `losses.distillation` minus the entropy of P, which has no gradient.
  """
  del targets

  def divergence(p: Array, q: Array, ratios: Array | None) -> Array:
    if ratios is None:
      return _kl(p, q)
    return _kl(p[..., :-1], q[..., :-1]) - jnp.exp(p[..., -1]) * jnp.mean(ratios, axis=-1)

  return _average(divergence, small, teachers)


def reverse_kl(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`KL(Q || P) = sum_v Q(v) log(Q(v) / P(v))`."""
  del targets
  return _average(lambda p, q, _: _kl(q, p), small, teachers)


def jensen_shannon(
  small: Float[Array, '*n V'],
  teachers: Teachers,
  targets: Int[Array, '*n'],
  *,
  beta: float = 0.5,
) -> Float[Array, '*n']:
  """`b KL(P || M) + (1 - b) KL(Q || M)` with M = b P + (1 - b) Q; at most the entropy of b.

  Divided by b it tends to the forward KL as b tends to 0; divided by 1 - b, to the reverse KL as b
  tends to 1.

  Raises:
    ValueError: if beta is not between 0 and 1.
  """
  del targets
  _check(beta, 'beta of the Jensen-Shannon divergence')

  def divergence(p: Array, q: Array, _: Array | None) -> Array:
    m = _mix(p, q, beta)
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)

  return _average(divergence, small, teachers)


def total_variation(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`sum_v max(0, Q(v) - P(v))`, the rate at which P rejects tokens that Q drafts.

  Its gradient vanishes where Q does, whatever P is.
  """
  del targets

  def divergence(p: Array, q: Array, ratios: Array | None) -> Array:
    if ratios is None:
      return jnp.sum(jax.nn.relu(jnp.exp(q) - jnp.exp(p)), axis=-1)
    of_choices = jnp.sum(jax.nn.relu(jnp.exp(p) - jnp.exp(q))[..., :-1], axis=-1)
    of_samples = -jnp.expm1(jnp.minimum(ratios, 0))
    return of_choices + jnp.exp(p[..., -1]) * jnp.mean(of_samples, axis=-1)

  return _average(divergence, small, teachers)


def skew_forward_kl(
  small: Float[Array, '*n V'],
  teachers: Teachers,
  targets: Int[Array, '*n'],
  *,
  alpha: float = 0.1,
) -> Float[Array, '*n']:
  """`KL(P || a P + (1 - a) Q)`, at most log(1 / a).

  Raises:
    ValueError: if alpha is not between 0 and 1.
  """
  del targets
  _check(alpha, 'alpha of the skew forward KL')
  return _average(lambda p, q, _: _kl(p, _mix(p, q, alpha)), small, teachers)


def skew_reverse_kl(
  small: Float[Array, '*n V'],
  teachers: Teachers,
  targets: Int[Array, '*n'],
  *,
  alpha: float = 0.1,
) -> Float[Array, '*n']:
  """`KL(Q || (1 - a) P + a Q)`, at most log(1 / a).

  Raises:
    ValueError: if alpha is not between 0 and 1.
  """
  del targets
  _check(alpha, 'alpha of the skew reverse KL')
  return _average(lambda p, q, _: _kl(q, _mix(q, p, alpha)), small, teachers)


def kl_to_uniform(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`KL(Q || U) = log V - H(Q)`, of gradient Q_v (log Q_v + H(Q)), which is 0 at one-hot Q too.

  U is uniform over the vocabulary.
  """
  del teachers, targets
  logprobs = jnp.maximum(jax.nn.log_softmax(small), LEAST)
  return math.log(small.shape[-1]) + jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)


def excess(
  small: Float[Array, '*n V'], teachers: Teachers, targets: Int[Array, '*n']
) -> Float[Array, '*n']:
  """`KL(P || Q) - KL(P || R)`: what the small model has to learn that a reference R has learned.

  Hu et al. 2025, AdaSPEC, https://arxiv.org/abs/2510.19779. Both are over the outcomes of the one
  teacher, which holds the second, and without samples: of many tokens those with lucky ones would
  have the largest excess.

  Raises:
    TeacherError: if there is another number of teachers, or no divergence of a reference.
  """
  del targets
  teacher = only(teachers)
  return _average(lambda p, q, _: _kl(p, q), small, teachers) - teacher.reference_kl()


def _average(
  divergence: Callable[[Array, Array, Array | None], Float[Array, '*n']],
  small: Float[Array, '*n V'],
  teachers: Teachers,
) -> Float[Array, '*n']:
  """Mean over teachers of `divergence(log P, log Q, log(Q / P) of samples or None)`.

  P and Q are over the outcomes of each teacher.
  """
  logprobs = jnp.maximum(jax.nn.log_softmax(small), LEAST)
  each = []
  for teacher in required(teachers):
    p, q = teacher.outcomes(logprobs)
    each.append(divergence(jnp.maximum(p, LEAST), q, teacher.sampled_ratios(logprobs)))
  return functools.reduce(jnp.add, each) / len(each)


def _kl(a: Float[Array, '*n O'], b: Float[Array, '*n O']) -> Float[Array, '*n']:
  """`KL(A || B)` of log-probabilities."""
  return jnp.sum(jnp.exp(a) * (a - b), axis=-1)


def _mix(a: Float[Array, '*n O'], b: Float[Array, '*n O'], weight: float) -> Float[Array, '*n O']:
  """`log(w A + (1 - w) B)` of log-probabilities."""
  return jnp.logaddexp(a + math.log(weight), b + math.log1p(-weight))


def _check(weight: float, name: str) -> None:
  if not 0 < weight < 1:
    raise ValueError(f'{name} is {weight}: it must lie between 0 and 1, both excluded.')
