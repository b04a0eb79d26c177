"""Speculative decoding and speculative cascades: verification of drafts, and its cost.

The small model drafts gamma tokens from q, the large model reads all of them in one call, and
`verify` keeps a prefix of them and adds one token, such that every token has the law pi of
`target_distributions`:

    q, p = distribution(small_logits), distribution(large_logits)    # [B, gamma + 1, V]
    pi = target_distribution(q, p, rule=RULES['opt'].target, alpha=0.1)
    accepted, next_token = verify(keys, drafts, q.sampled, pi)

The answer of row b then continues with drafts[b, :accepted[b]] and next_token[b]. Leviathan et al.
2023, https://arxiv.org/abs/2211.17192, with pi in place of p: pi = p is lossless. Narasimhan et al.
2025, https://arxiv.org/abs/2405.19261, algorithm 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cascades.decoding import float32
from cascades.target_distributions import SEQUENTIAL, Alpha, Distribution, Probs

TOGETHER = 1 << 18  # probabilities of rows that are verified together: 1 MiB of each distribution


def verify(
  keys: Array,
  drafts: Int[Array, 'B gamma'],
  q: Float[Array, 'B gamma+1 V'],
  pi: Float[Array, 'B gamma+1 V'],
  drafted: Int[Array, 'B'] | None = None,
) -> tuple[Int[Array, 'B'], Int[Array, 'B']]:
  """Accept the drafts from left to right, each with probability min(1, pi(v) / q(v)).

  The next token is drawn from the residual norm(max(0, pi - q)) at the first rejected draft, or
  from pi after the last draft if all are accepted: a bonus token from p would not have the law pi.
  At temperature 0 the distributions are one-hot, and the keys do not matter.

  Args:
    keys: One random key a row. A row's tokens depend on its key, its drafts and its distributions
      alone: neither on the other rows, nor on gamma beyond its own number of drafts.
    drafts: Tokens drawn from q, with each row's own drafts first.
    q: Distributions that the drafts were drawn from; q[:, gamma] is not read.
    pi: Target distributions, of the position after the last draft as well.
    drafted: Number of drafts of each row, 0 to gamma; None for gamma.

  Returns:
    The number of accepted drafts of each row, and the token after them. A draft was rejected where
    `accepted < drafted`; the next token of a row without drafts is drawn from its pi[0].
  """
  return verify_by_position(
    keys, drafts, lambda row, position: (q[row, position], pi[row, position]), drafted
  )


def verify_by_position(
  keys: Array,
  drafts: Int[Array, 'B gamma'],
  distributions: Callable[[Int[Array, ''], Int[Array, '']], tuple[Probs, Probs]],
  drafted: Int[Array, 'B'] | None = None,
) -> tuple[Int[Array, 'B'], Int[Array, 'B']]:
  """`verify` without tables of q and pi: those of one position of a row at a time.

  Positions behind the first draft that fails are not computed. Rows are verified together where
  their vocabulary is small.

  Args:
    keys: As in `verify`.
    drafts: As in `verify`.
    distributions: Maps a row and one of its positions, 0 to gamma, to q and pi there, for example
      from stored logits.
    drafted: As in `verify`.

  Returns:
    As `verify` does, for the same keys.
  """
  B, gamma = drafts.shape
  limits = jnp.full(B, gamma) if drafted is None else drafted
  zero = jnp.zeros((), jnp.int32)

  def verify_row(block: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
    key, row, tokens, limit = block

    # State: the number of drafts that passed, and whether the last one did.
    def test(state: tuple[Array, Array]) -> tuple[Array, Array]:
      position, _ = state
      q, pi = distributions(row, position)
      passed = passes(key, position, q[tokens[position]], pi[tokens[position]])
      return position + passed, passed

    going_on = lambda state: state[1] & (state[0] < limit)
    accepted, _ = jax.lax.while_loop(going_on, test, (zero, jnp.ones((), bool)))
    q, pi = distributions(row, accepted)  # again: a loop that kept them would copy them
    failed = (accepted < limit)[None]
    return accepted, next_token(key[None], q[None], pi[None], failed)[0]

  most = max(1, TOGETHER // jax.eval_shape(distributions, zero, zero)[0].shape[-1])
  size = max(n for n in range(1, B + 1) if B % n == 0 and n <= most)
  blocks = keys, jnp.arange(B), jnp.pad(drafts, ((0, 0), (0, 1))), limits
  # A row alone is not batched: what it reads of the logits would be gathered.
  return jax.lax.map(verify_row, blocks, batch_size=size if size > 1 else None)


def passes(
  key: Array, position: Int[Array, ''], q: Float[Array, ''], pi: Float[Array, '']
) -> Bool[Array, '']:
  """True with the probability `min(1, pi / q)` of a draft, by a coin of its position."""
  # A key a position: one key's numbers could depend on how many positions there are.
  coin = jax.random.uniform(jax.random.fold_in(key, position + 1))
  return coin * float32(q) < float32(pi)


def next_token(
  keys: Array,
  q: Float[Array, 'B V'],
  pi: Float[Array, 'B V'],
  rejected: Bool[Array, 'B'],
) -> Int[Array, 'B']:
  """Token after the accepted drafts: from the residual where a draft failed, elsewhere from pi."""
  q, pi = float32(q), float32(pi)
  weights = jnp.where(rejected[:, None], residual(q, pi), pi)
  return draw(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), weights)


def draw(keys: Array, weights: Float[Array, 'B V']) -> Int[Array, 'B']:
  """Draw a token of each row with probability `weights[v] / sum(weights)`; never one of weight 0.

  Draws a block of about sqrt(V) tokens by its sum, then a token in it: 2 sqrt(V) random numbers in
  the place of V, which take longer than everything else that a rule computes.
  """
  V = weights.shape[-1]
  width = 1 << V.bit_length() // 2
  blocks = jnp.pad(weights, ((0, 0), (0, -V % width))).reshape(len(weights), -1, width)
  choose = jax.vmap(jax.random.categorical)
  block_keys, token_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  block = choose(block_keys, jnp.log(jnp.sum(blocks, -1)))
  inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
  return (block * width + choose(token_keys, jnp.log(inside))).astype(jnp.int32)


def residual(q: Float[Array, '*n V'], pi: Float[Array, '*n V']) -> Float[Array, '*n V']:
  """`max(0, pi - q)`, not normalized; pi where that is 0 for every token, by rounding alone."""
  excess = jnp.maximum(pi - q, 0.0)
  return jnp.where(jnp.any(excess > 0, -1, keepdims=True), excess, pi)


def token_cascade(q: Distribution, alpha: Alpha, *, rule: str) -> Bool[Array, '*n']:
  """Positions at which a sequential token cascade calls the large model: True where r = 1.

  The small model takes a step; where r = 1, the large model reads the tokens that it has skipped
  and the next token is drawn from p; elsewhere it is drawn from q. The law is that of speculative
  decoding with the same rule and alpha.

  Args:
    q: Distribution of the small model.
    alpha: Number of the rule.
    rule: Name of a rule that reads the small model alone.

  Raises:
    ValueError: The rule reads the large model before it decides.
  """
  if rule not in SEQUENTIAL:
    raise ValueError(
      f'Rule {rule!r} reads the large model before it decides whether to call it: a sequential '
      f'token cascade takes {" or ".join(SEQUENTIAL)}; run {rule!r} speculatively.'
    )
  return SEQUENTIAL[rule](q, None, alpha)[..., 0]


def tokens_per_block(acceptance: float, gamma: int) -> float:
  """Expected tokens of a block: `(1 - a^(gamma + 1)) / (1 - a)`, where each draft is accepted with
  probability a independently of the others.

  In general it is 1 + sum_k Pr(the first k drafts are accepted). For example, 3.68928 for a = 0.8
  and gamma = 5.
  """
  return sum(acceptance**k for k in range(gamma + 1))


def relative_seconds(
  acceptance: float, gamma: int, c: float, *, large: float = 1.0, last_draft: float = 0.0
) -> float:
  """Seconds per token relative to the large model alone.

      (gamma c + last_draft c + large) / tokens_per_block(a, gamma)

  The reciprocal is the speed-up of Leviathan et al. 2023, theorem 3.8.

  Args:
    acceptance: Probability a of accepting a draft.
    gamma: Drafts a block; 0 is the large model alone, at 1.
    c: Seconds of a step of the small model, relative to a step of the large one.
    large: Seconds of the large model over gamma + 1 tokens, relative to a step over one token.
    last_draft: Steps of the small model beyond gamma: 1 where it reads its last draft as well,
      which targets other than p need.
  """
  if gamma == 0:
    return 1.0
  return ((gamma + last_draft) * c + large) / tokens_per_block(acceptance, gamma)


def relative_flops(acceptance: float, gamma: int, c: float, *, last_draft: float = 0.0) -> float:
  """FLOPs per token relative to the large model alone: `(gamma c + gamma + 1) / tokens per block`.

  c is the ratio of the models' FLOPs per token. Usually above 1: speculation saves time, not FLOPs.
  """
  if gamma == 0:
    return 1.0
  return ((gamma + last_draft) * c + gamma + 1) / tokens_per_block(acceptance, gamma)


def best_gamma(
  acceptance: float,
  c: float,
  *,
  most: int,
  least: int = 0,
  large: Sequence[float] | None = None,
  last_draft: float = 0.0,
  least_saving: float = 0.0,
) -> int:
  """Number of drafts of least `relative_seconds`, the lowest of equal ones.

  Where `large` is constant, some gamma >= 1 pays if and only if the acceptance exceeds c.

  Args:
    acceptance: Probability of accepting a draft.
    c: Seconds of a step of the small model, relative to a step of the large one.
    most: Largest gamma.
    least: Smallest gamma; 1 for a rule that cannot leave a token to the large model alone.
    large: Seconds of the large model over 1, 2, ... most + 1 tokens, relative to the first; None
      for 1 throughout.
    last_draft: As in `relative_seconds`.
    least_saving: Share of the large model's time that drafts must save; 0 drafts where they save
      any.

  Raises:
    ValueError: An argument is out of range, or `large` has not most + 1 numbers.
  """
  if not (0.0 <= acceptance <= 1.0 and c > 0.0 and 0 <= least <= most):
    raise ValueError(
      f'acceptance={acceptance} must lie in [0, 1], c={c} be positive, and most={most} be at least '
      f'least={least}, which is at least 0.'
    )
  large = [1.0] * (most + 1) if large is None else large
  if len(large) != most + 1:
    raise ValueError(f'large has {len(large)} numbers; gammas up to {most} need {most + 1}.')

  def seconds(gamma: int) -> float:
    if not gamma:
      return 1.0 - least_saving
    return relative_seconds(acceptance, gamma, c, large=large[gamma], last_draft=last_draft)

  return min(range(least, most + 1), key=seconds)


def cascade_seconds(deferral_rate: float, c: float) -> float:
  """Seconds per token of a sequential cascade relative to the large model alone: `c + rate`.

  The rate is that of tokens for a token cascade, whose reading of skipped tokens comes on top. For
  a sequence cascade it is that of answers, times their length over the large model's mean length.
  """
  return c + deferral_rate
