"""Target distributions: the law of the next token that two models draft and verify together.

With q the distribution of the small model and p that of the large one, a rule maps (q, p, alpha) to
pi, and `speculative.verify` draws exactly from pi. Most rules are `defer` with a deferral r, True
where the large model is to decide: one bit a position, or one a token:

    pi(v) = (1 - r(v)) q(v) + eta p(v),    eta = sum_u r(u) q(u)

which is (1 - r) q + r p where r is the same for all tokens, and adds up to 1 for any r: equation 11
of Narasimhan et al. 2025, Faster Cascades via Speculative Decoding,
https://arxiv.org/abs/2405.19261.

Deferrals read peaks, probabilities and entropies of the *untempered* softmax. What is mixed, and
the total variation between q and p, are of the tempered, truncated distributions that tokens are
drawn from. Ties keep the small model. `RULES` has all rules by name, with the range of their alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cascades import decoding

Alpha: TypeAlias = Float[Array, '*n 1'] | Float[Array, ''] | float  # traced: sweeps share programs
Probs: TypeAlias = Float[Array, '*n V']


class Distribution(NamedTuple):
  """Distribution of a model's next token.

  Fields:
    sampled: after temperature, top-k and top-p; tokens are drawn from it.
    untempered: the softmax of the logits, which deferrals read.
  """

  sampled: Probs
  untempered: Probs

  @property
  def peak(self) -> Float[Array, '*n 1']:
    """Largest untempered probability."""
    return jnp.max(self.untempered, -1, keepdims=True)

  @property
  def entropy(self) -> Float[Array, '*n 1']:
    """Entropy of the untempered distribution, in nats."""
    return jnp.sum(jax.scipy.special.entr(self.untempered), -1, keepdims=True)


Deferral: TypeAlias = Callable[[Distribution, Distribution, Alpha], Bool[Array, '*n r']]
TargetFunction: TypeAlias = Callable[[Distribution, Distribution, Alpha], Probs]
Lenience: TypeAlias = Callable[[Probs, Alpha], Probs]


def distribution(
  logits: Float[Array, '*n V'],
  *,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
  normalizer: Float[Array, '*n'] | None = None,
) -> Distribution:
  """Distribution that a sampler draws from, in float32, beside the untempered one.

  Args:
    logits: Logits of the next token, in any floating-point type.
    temperature: As in `decoding.probabilities`; 0 is greedy.
    top_k: As there.
    top_p: As there.
    normalizer: `logsumexp` of the logits in float32, where it is known.

  Raises:
    ValueError: An option is out of range.
  """
  sampled = untempered = decoding.probabilities(logits, normalizer=normalizer)
  if (temperature, top_k, top_p) != (1.0, None, None):
    sampled = decoding.probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
  return Distribution(sampled, untempered)


def target_distribution(
  q: Distribution | Probs, p: Distribution | Probs, *, rule: TargetFunction, alpha: Alpha
) -> Probs:
  """`pi = rule(q, p, alpha)`, computed in float32 at least, whatever the models run in.

  Args:
    q: Distribution of the small model; plain probabilities are untempered.
    p: Distribution of the large model, likewise.
    rule: Target of an entry of `RULES`, or another.
    alpha: Number that the rule trades quality for speed by, or [*n, 1] of them; may be traced.
  """
  q, p = (d if isinstance(d, Distribution) else Distribution(d, d) for d in (q, p))
  return rule(
    Distribution(*map(decoding.float32, q)), Distribution(*map(decoding.float32, p)), alpha
  )


def total_variation(q: Probs, p: Probs) -> Float[Array, '*n 1']:
  """`D_TV = sum_v max(0, p(v) - q(v))`, the probability that lossless verification rejects."""
  return jnp.sum(jnp.maximum(p - q, 0.0), -1, keepdims=True)


def small(q: Distribution, p: Distribution, alpha: Alpha) -> Probs:
  """`pi = q`: every draft is accepted. alpha is ignored."""
  del p, alpha
  return q.sampled


def large(q: Distribution, p: Distribution, alpha: Alpha) -> Probs:
  """`pi = p`: lossless speculative decoding, or the large model alone. alpha is ignored.

  Leviathan et al. 2023, https://arxiv.org/abs/2211.17192. Rejects with probability D_TV(p, q).
  """
  del q, alpha
  return p.sampled


def ensemble(q: Distribution, p: Distribution, alpha: Alpha) -> Probs:
  """`pi = alpha p + (1 - alpha) q`, alpha in [0, 1]: 0 is the small model, 1 the large one.

  Rejects with probability alpha D_TV(p, q). Unlike the deferrals it decides nothing: every position
  has the same weight. A baseline, of no paper.
  """
  return alpha * p.sampled + (1.0 - alpha) * q.sampled


def defer(q: Distribution, p: Distribution, alpha: Alpha, *, defers: Deferral) -> Probs:
  """`pi(v) = (1 - r(v)) q(v) + p(v) sum_u r(u) q(u)`, r = defers(q, p, alpha).

  Where r is the same for all tokens, pi is q or p exactly, and the probability of a rejection
  r D_TV(p, q). Where it is not, the probability of a rejection is
  sum_{v: r(v) = 1} max(0, q(v) - eta p(v)): it may exceed D_TV(p, q), is not monotone in alpha, and
  is eta (1 - eta) where q = p, since pi then truncates both.
  """
  r = defers(q, p, alpha)
  if r.shape[-1] == 1:
    return jnp.where(r, p.sampled, q.sampled)
  eta = jnp.sum(jnp.where(r, q.sampled, 0.0), -1, keepdims=True)
  eta = jnp.where(jnp.all(r, -1, keepdims=True), 1.0, eta)  # not a sum that rounding leaves below 1
  return jnp.where(r, 0.0, q.sampled) + eta * p.sampled


def chow(q: Distribution, p: Distribution | None, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [max_v q(v) < 1 - alpha]`, alpha in [0, 1]; equation 2. Reads the small model alone.

  alpha = 1 is the small model, alpha = 0 the large one but where q is certain.
  """
  del p
  return q.peak < 1.0 - alpha


def chow_log(q: Distribution, p: Distribution | None, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [H(q) > alpha]`, alpha >= 0 in nats. Reads the small model alone.

  `chow` for the log-loss: in equation 4 of Narasimhan et al., H(q) is the plug-in estimate of the
  small model's expected loss -log q(v), as 1 - max q is that of the 0-1 loss. alpha >= log V is the
  small model, alpha = 0 the large one but where q is certain.
  """
  del p
  return q.entropy > alpha


def diff(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [max_v q(v) < max_v p(v) - alpha]`, alpha in [-1, 1]; equation 5.

  alpha = 1 is the small model, alpha = -1 the large one. A sequential cascade cannot run it: it
  reads p before deciding whether p is needed.
  """
  return q.peak < p.peak - alpha


def diff_log(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [H(q) > H(p) + alpha]`, any alpha in nats.

  `diff` for the log-loss: equation 4 of Narasimhan et al., with the entropies as estimates of both
  models' expected losses. alpha >= log V is the small model, alpha < -log V the large one. Reads p
  before deciding, as `diff`.
  """
  return q.entropy > p.entropy + alpha


def opt(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [max_v q(v) < max_v p(v) - alpha D_TV(p, q)]`, any alpha; equation 10.

  The plug-in estimate of the rule that minimizes the 0-1 loss of a position plus alpha times its
  probability of a rejection: deferring costs more where the models disagree. Large alpha is the
  small model, large negative alpha the large one. Local: not optimal for sequences.
  """
  return q.peak < p.peak - alpha * total_variation(q.sampled, p.sampled)


def opt_log(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [H(q) > H(p) + alpha D_TV(p, q)]`, any alpha.

  `opt` for the log-loss: equation 9 of Narasimhan et al., with the entropies as estimates of both
  models' expected losses. Large alpha is the small model, large negative alpha the large one.
  Local: not optimal for sequences.
  """
  return q.entropy > p.entropy + alpha * total_variation(q.sampled, p.sampled)


def bild(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n 1']:
  """`r = [-log p(argmax q) > alpha]`, alpha >= 0 in nats.

  The rollback of Kim et al. 2023, Big Little Decoder, https://arxiv.org/abs/2302.07863, without its
  fallback, which ends a block early where max q is low. Large alpha is the small model wherever
  p(argmax q) > 0; alpha = 0 the large one but where p is certain.
  """
  first = decoding.argmax(q.untempered)[..., None]
  return -jnp.log(jnp.take_along_axis(p.untempered, first, -1)) > alpha


def token_v1(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n V']:
  """`r(v) = [q(v) < max_u p(u) - alpha]`, alpha in [-1, 1]; equation 13.

  alpha = 1 is the small model, alpha = -1 the large one. Estimates the risk of v by q.
  """
  return q.untempered < p.peak - alpha


def token_v2(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n V']:
  """`r(v) = [p(v) < max_u p(u) - alpha]`, alpha in [-1, 1]; equation 14.

  alpha = 1 is the small model, alpha = -1 the large one. At alpha = 0 the argmax of p is still
  accepted whenever it is drafted, so that pi is not p where tokens are drawn.
  """
  del q
  return p.untempered < p.peak - alpha


def token_v3(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n V']:
  """`r(v) = [p(v) < (1 - alpha) max_u p(u)]`, alpha in [0, 1]; equation 15.

  Keeps the drafts in Top_alpha = {v: p(v) >= (1 - alpha) max p}, which grows with alpha. alpha = 1
  is the small model. alpha = 0 is the large model's greedy answer at temperature 0, but not p above
  it. At temperature 0 this is the greedy lenience 1 - alpha of Leviathan et al. 2023.
  """
  del q
  return p.untempered < (1.0 - alpha) * p.peak


def typical(q: Distribution, p: Distribution, alpha: Alpha) -> Bool[Array, '*n V']:
  """`r(v) = [p(v) < min(alpha, sqrt(alpha) exp(-H(p)))]`, alpha in [0, 1].

  Typical acceptance of Cai et al. 2024, Medusa, https://arxiv.org/abs/2401.10774, with its
  delta = sqrt(epsilon): a draft that is not typical of p is drawn afresh from p. alpha = 0 is the
  small model; alpha = 1 is not lossless: the drafts at least as likely as exp(-H(p)) stay.
  Medusa reads the tempered p; this reads the untempered one, as all deferrals.
  """
  del q
  return p.untempered < jnp.minimum(alpha, jnp.sqrt(alpha) * jnp.exp(-p.entropy))


FLOOR = 1e-10  # of the lenience 1 - alpha, so that alpha = 1 divides


def f_lin(p: Probs, lenience: Alpha) -> Probs:
  """`p / lenience`, lenience in (0, 1].

  Leviathan et al. 2023, https://arxiv.org/abs/2211.17192. 1 is lossless. Toward 0 every draft with
  p(v) > 0 passes: the small model.
  """
  return p / lenience


def f_sq(p: Probs, lenience: Alpha) -> Probs:
  """`p / lenience^2`, lenience in (0, 1], which is `f_lin` of the squared lenience.

  Zhou et al. 2024, https://arxiv.org/abs/2310.08461. 1 is lossless. Toward 0 every draft with
  p(v) > 0 passes, sooner than with `f_lin`.
  """
  return p / jnp.square(lenience)


def f_exp(p: Probs, lenience: Alpha) -> Probs:
  """`p^lenience`, lenience in (0, 1], which is kindest to small p; 0 where p = 0.

  Zhou et al. 2024, https://arxiv.org/abs/2310.08461. 1 is lossless. Toward 0 it is 1 wherever
  p(v) > 0, so that every such draft passes.
  """
  return jnp.exp(lenience * jnp.log(p))  # seven times as fast as a power on a CPU


def lossy(
  q: Distribution, p: Distribution, alpha: Alpha, *, lenience_function: Lenience = f_lin
) -> Probs:
  """`pi = m + (1 - sum m) norm(max(0, p - q))`, m(v) = min(q(v), f(p(v), 1 - alpha)).

  The law of lossy speculative decoding, which accepts v with probability min(1, f(p(v)) / q(v)) and
  otherwise draws from the lossless residual (beta = 1), alpha in [0, 1]. Leviathan et al. 2023;
  `f_sq` and `f_exp` by Zhou et al. 2024, DistillSpec, https://arxiv.org/abs/2310.08461.

  `speculative.verify` of pi is that procedure itself: pi(v) = f(p(v)) wherever v can be rejected,
  and max(0, pi - q) is proportional to max(0, p - q). It rejects exactly as often. alpha = 0 is
  lossless, alpha = 1 accepts every draft with p(v) > 0. At temperature 0 p is 0 or 1 and alpha < 1
  changes nothing: `token_v3` is lenient there.
  """
  lenience = jnp.maximum(1.0 - alpha, FLOOR)
  accepted = jnp.minimum(q.sampled, lenience_function(p.sampled, lenience))
  rejected = jnp.sum(q.sampled - accepted, -1, keepdims=True)
  mass = total_variation(q.sampled, p.sampled)
  scale = jnp.where(mass > 0, rejected / jnp.where(mass > 0, mass, 1.0), 0.0)
  pi = accepted + scale * jnp.maximum(p.sampled - q.sampled, 0.0)
  return jnp.where(alpha > 0, pi, p.sampled)  # exactly p, where rounded sums would be near it


def lossy_normalized(q: Distribution, p: Distribution, alpha: Alpha) -> Probs:
  """`pi = max(min(q, p / (1 - alpha)), p / beta)`, with the beta >= 1 at which it adds up to 1.

  Lossy speculative decoding with the residual norm(max(0, p / beta - q)), alpha in [0, 1]: the
  optimal variant attributed to Tran-Thien 2023, Lemma 2 of Narasimhan et al. Has the acceptance and
  the limits of `lossy`.

  s = 1 / beta solves sum_v max(0, s p(v) - q(v)) = R, the probability of a rejection. The left side
  is convex, increasing and piecewise linear in s: Newton's method from s = 1 descends to the
  solution and stops there, in fewer steps than bisection.
  """
  accepted = jnp.minimum(q.sampled, p.sampled / jnp.maximum(1.0 - alpha, FLOOR))
  rejected = jnp.sum(q.sampled - accepted, -1, keepdims=True)

  def newton(s: Float[Array, '*n 1']) -> Float[Array, '*n 1']:
    above = s * p.sampled > q.sampled
    mass = jnp.sum(jnp.where(above, p.sampled, 0.0), -1, keepdims=True)
    level = rejected + jnp.sum(jnp.where(above, q.sampled, 0.0), -1, keepdims=True)
    return jnp.where(mass > 0, jnp.minimum(s, level / jnp.where(mass > 0, mass, 1.0)), s)

  start = jnp.ones_like(rejected)
  _, s = jax.lax.while_loop(
    lambda steps: jnp.any(steps[1] < steps[0]),  # False for NaN, which would never settle
    lambda steps: (steps[1], newton(steps[1])),
    (start, newton(start)),
  )
  pi = jnp.where(rejected > 0, jnp.maximum(accepted, s * p.sampled), accepted)
  return jnp.where(alpha > 0, pi, p.sampled)


class TargetRule(NamedTuple):
  """A rule and its range.

  Fields:
    target: map from (q, p, alpha) to pi.
    alphas: least and largest alpha; None where alpha is ignored.
  """

  target: TargetFunction
  alphas: tuple[float, float] | None


_REALS = (-math.inf, math.inf)
RULES: Mapping[str, TargetRule] = MappingProxyType({
  'small': TargetRule(small, None),
  'large': TargetRule(large, None),
  'lossless': TargetRule(large, None),
  'lossy': TargetRule(lossy, (0.0, 1.0)),
  'lossy_normalized': TargetRule(lossy_normalized, (0.0, 1.0)),
  'lossy_square': TargetRule(partial(lossy, lenience_function=f_sq), (0.0, 1.0)),
  'lossy_power': TargetRule(partial(lossy, lenience_function=f_exp), (0.0, 1.0)),
  'ensemble': TargetRule(ensemble, (0.0, 1.0)),
  'chow': TargetRule(partial(defer, defers=chow), (0.0, 1.0)),
  'chow_log': TargetRule(partial(defer, defers=chow_log), (0.0, math.inf)),
  'diff': TargetRule(partial(defer, defers=diff), (-1.0, 1.0)),
  'diff_log': TargetRule(partial(defer, defers=diff_log), _REALS),
  'opt': TargetRule(partial(defer, defers=opt), _REALS),
  'opt_log': TargetRule(partial(defer, defers=opt_log), _REALS),
  'bild': TargetRule(partial(defer, defers=bild), (0.0, math.inf)),
  'token_v1': TargetRule(partial(defer, defers=token_v1), (-1.0, 1.0)),
  'token_v2': TargetRule(partial(defer, defers=token_v2), (-1.0, 1.0)),
  'token_v3': TargetRule(partial(defer, defers=token_v3), (0.0, 1.0)),
  'typical': TargetRule(partial(defer, defers=typical), (0.0, 1.0)),
})  # fmt: skip

# The deferrals that decide before the large model has run, as a sequential cascade does.
SEQUENTIAL: Mapping[str, Callable[[Distribution, None, Alpha], Bool[Array, '*n 1']]] = (
  MappingProxyType({'chow': chow, 'chow_log': chow_log})
)


def named(name: str, alpha: float) -> TargetRule:
  """Rule of a name, for an alpha in its range.

  Raises:
    ValueError: No rule has this name, or alpha is outside of its range.
  """
  if name not in RULES:
    raise ValueError(f'{name!r} is no rule: choose among {", ".join(sorted(RULES))}.')
  rule = RULES[name]
  least, most = rule.alphas or _REALS
  if not (least <= alpha <= most and math.isfinite(alpha)):
    bounds = f'lie in [{least:g}, {most:g}]' if math.isfinite(most) else f'be at least {least:g}'
    bounds = bounds if math.isfinite(least) else 'be a finite number'
    raise ValueError(f'alpha={alpha} of rule {name!r} must {bounds}.')
  return rule
