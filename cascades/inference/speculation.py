"""Decoding with two models: the small one drafts tokens, the large one reads them in one call.

Any target distribution is sampled exactly, for encoder-decoder and decoder-only models, whatever
the number of drafts, the other rows of the batch and padding. Under the rule 'lossless', greedy
answers are those of the large model alone. One block, of three drafts, behind the token 'the':

    small reads  'the', 'cat', 'sat'           and drafts  'cat', 'sat', 'up'
    large reads  'the cat sat up'              in one call
    verify       accepts 'cat', 'sat'          and draws 'on' in the place of 'up'
    both caches  forget 'up'                   by shortening; 'on' is the next block's first token

Axes: B batch, T target, G drafts of a block, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades import decoding, speculative, target_distributions
from cascades.inference.answers import DecodingOptions
from cascades.target_distributions import Alpha, Distribution, Probs, TargetFunction
from cascades.types import Generation, LanguageModel, Prompt

fold_in = jax.vmap(jax.random.fold_in)


class CallCounts(NamedTuple):
  """Work that went into each answer.

  Attributes:
    accepted: Drafts that are part of it.
    rejected: Drafts in whose place another token was drawn.
    small_calls: Steps of the small model, its prompt included.
    large_calls: Calls of the large model, its prompt included.
  """

  accepted: Int[Array, 'B']
  rejected: Int[Array, 'B']
  small_calls: Int[Array, 'B']
  large_calls: Int[Array, 'B']


class Speculation(NamedTuple):
  """Answers of two models.

  Attributes:
    answer: Tokens, with the untempered log-probabilities of the large model; in a sequential token
      cascade, of the model that wrote the token.
    small_logprobs: Those of the small model; nan where it has not read the tokens before.
    drafted: True for the tokens that the small model wrote.
    counts: Work that went into each answer.
  """

  answer: Generation
  small_logprobs: Float[Array, 'B T']
  drafted: Bool[Array, 'B T']
  counts: CallCounts


class DraftPlan(NamedTuple):
  """Number of drafts of a row's next block, by an estimate of the share that is accepted.

  The estimate counts the drafts of earlier answers and the row's own. Where it says to draft
  nothing, a lossless answer is ended by the large model alone.

  Attributes:
    lengths: Numbers of drafts at the estimates 0, 1 / C, ..., 1.
    accepted: Number of accepted drafts in earlier answers.
    rejected: Number of rejected drafts in earlier answers; one of the two is positive.
  """

  lengths: Int[Array | np.ndarray, 'C+1']
  accepted: Float[Array | np.ndarray, '']
  rejected: Float[Array | np.ndarray, '']

  def drafts(self, counts: CallCounts) -> Int[Array, 'B']:
    """Number of drafts of the next block of each row."""
    accepted = self.accepted + counts.accepted
    estimate = accepted / (accepted + self.rejected + counts.rejected)
    return jnp.asarray(self.lengths)[
      jnp.round(estimate * (len(self.lengths) - 1)).astype(jnp.int32)
    ]


def always(gamma: int) -> DraftPlan:
  """DraftPlan of a constant number of drafts."""
  return DraftPlan(jnp.full(2, gamma), jnp.ones(()), jnp.ones(()))


@dataclasses.dataclass(frozen=True)
class SpeculativePair:
  """A small and a large model with a target distribution between them.

  Attributes:
    small: Model that drafts.
    large: Model that verifies, of the same vocabulary and architecture.
    target: Function from both distributions to the target distribution.
    alpha: Its number, which may be traced.
    options: Temperature and cuts of both models' distributions, and the seed.
  """

  small: LanguageModel[Any]
  large: LanguageModel[Any]
  target: TargetFunction
  alpha: Alpha = 0.0
  options: DecodingOptions = DecodingOptions()

  @property
  def lossless(self) -> bool:
    """True if the target distribution is the large model's, so that answers need no draft."""
    return self.target is target_distributions.large

  @property
  def vocab_size(self) -> int:
    """Number of vocabulary entries that both models have: padding of tables may differ."""
    return vocab_size(self.small, self.large)

  def distribution(
    self, logits: Float[Array, '*n V'], normalizer: Float[Array, '*n']
  ) -> Distribution:
    """Distribution that tokens are drawn from; the normalizer is `logsumexp` of the logits."""
    options = self.options
    return target_distributions.distribution(
      logits, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
      normalizer=normalizer,
    )  # fmt: skip


def generate(
  pair: SpeculativePair,
  prompt: Prompt,
  *,
  max_len: int,
  eos_id: int | Sequence[int],
  gamma: int,
  plan: DraftPlan | None = None,
  row_ids: Int[Array, 'B'] | None = None,
) -> Speculation:
  """Answer every prompt; decoding stops when all rows have ended.

  Args:
    pair: The models and the target distribution.
    prompt: Prompts; rows of length 0 are padding of the batch and get an empty answer.
    max_len: Largest number of tokens of an answer, the end of sequence included.
    eos_id: Token that ends an answer, or several of them.
    gamma: Most drafts of a block; 0 drafts nothing.
    plan: Number of drafts of each block, at most gamma; None for always gamma.
    row_ids: Ids of the rows for their keys; None for 0, 1, ... An answer depends on seed, row id
      and prompt, neither on the other rows nor on padding.

  Returns:
    The answers, [B, max_len].

  Raises:
    ValueError: `max_len` is less than 1, or gamma less than 0.
  """
  if max_len < 1 or gamma < 0:
    raise ValueError(f'max_len={max_len} must be at least 1, and gamma={gamma} at least 0.')
  row_ids = jnp.arange(len(prompt.length)) if row_ids is None else row_ids
  key = jax.random.key(pair.options.seed)
  if pair.lossless and not gamma:
    answer = decoding.generate(
      pair.large, prompt, max_len=max_len, eos_id=eos_id, sampler=pair.options.sampler(), key=key,
      row_ids=row_ids,
    )  # fmt: skip
    return undrafted(answer)
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)
  loop = _Loop(pair, row_keys, jnp.asarray(eos_id), max_len, gamma, plan or always(gamma))
  drafting = lambda state: jnp.any(~state.ended & state.drafting)
  state = jax.lax.while_loop(drafting, loop.block, loop.start(prompt))
  if pair.lossless:
    state = jax.lax.while_loop(lambda state: ~jnp.all(state.ended), loop.large_step, state)
  return state.answers


def undrafted(answer: Generation) -> Speculation:
  """Answers of the large model alone, as those of both."""
  length = answer.mask.sum(1, dtype=jnp.int32)
  none = 0 * length
  counts = CallCounts(none, none, none, length)
  return Speculation(answer, jnp.where(answer.mask, jnp.nan, 0.0), answer.mask & False, counts)


class _Decoding(NamedTuple):
  """Decoding between two blocks."""

  length: Int[Array, 'B']
  ended: Bool[Array, 'B']
  drafting: Bool[Array, 'B']  # False where the large model ends the answer alone
  last: Int[Array, 'B']  # token that neither model has read
  skipped: Int[Array, 'B']  # token before it
  lags: Bool[Array, 'B']  # True where the small model has not read that either
  answers: Speculation
  small: Any  # caches, without what was rejected
  large: Any


class _Drafts(NamedTuple):
  """Drafts of a block.

  Attributes:
    tokens: Drafts, of which each row has its own number first.
    logits: Logits of the small model, 0 where it has not read so far.
    drafted: Number of drafts of each row.
    reads: Number of tokens of the block that the small model has read for each row.
  """

  tokens: Int[Array, 'B G']
  logits: Float[Array, 'B G+1 V']
  drafted: Int[Array, 'B']
  reads: Int[Array, 'B']


@dataclasses.dataclass(frozen=True)
class _Loop:
  """Everything that stays the same from block to block."""

  pair: SpeculativePair
  row_keys: Array
  eos_ids: Int[Array, '*n']
  max_len: int
  gamma: int
  plan: DraftPlan

  def start(self, prompt: Prompt) -> _Decoding:
    """Read the prompt, and draw the first token of each answer."""
    pair, B, V = self.pair, len(prompt.length), self.pair.vocab_size
    # Drafts beyond the longest answer are not kept: caches drop them.
    p_logits, large = pair.large.prefill(prompt, self.max_len)
    q_logits, small = pair.small.prefill(prompt, self.max_len)
    zeros, unset = jnp.zeros(B, jnp.int32), jnp.zeros((B, self.max_len))
    answer = Generation(unset.astype(jnp.int32), unset, unset.astype(bool))
    counts = CallCounts(zeros, zeros, zeros, zeros)
    state = _Decoding(
      length=zeros,
      ended=prompt.length == 0,
      drafting=jnp.ones(B, bool),
      last=zeros,
      skipped=zeros,
      lags=jnp.zeros(B, bool),
      answers=Speculation(answer, unset, answer.mask, counts),
      small=small,
      large=large,
    )
    none = _Drafts(zeros[:, None][:, :0], q_logits[:, None, :V], zeros, zeros + 1)
    state, _ = self.verify(state, none, p_logits[:, None, :V])
    counts = state.answers.counts
    read = counts._replace(small_calls=counts.large_calls)  # each has read the prompt
    return state._replace(answers=state.answers._replace(counts=read))

  def block(self, state: _Decoding) -> _Decoding:
    """Draft, read the drafts with the large model in one call, and verify."""
    left = self.max_len - state.length - 1  # besides the token after the drafts
    planned = jnp.minimum(self.plan.drafts(state.answers.counts), self.gamma)
    count = jnp.where(state.drafting & ~state.ended, jnp.minimum(planned, left), 0)
    drafts, drafted = self.draft(state, count)
    tokens = jnp.concatenate([state.last[:, None], drafts.tokens], 1)
    logits, large = self.pair.large.extend(tokens, state.large)
    after, accepted = self.verify(drafted, drafts, logits[..., : self.pair.vocab_size])
    read = jnp.minimum(accepted, drafts.reads - 1)  # accepted drafts that the small model has read
    if self.pair.lossless:
      after = after._replace(
        drafting=state.drafting & (self.plan.drafts(after.answers.counts) > 0),
        skipped=jnp.take_along_axis(tokens, accepted[:, None], 1)[:, 0],
        lags=read < accepted,
      )
    return after._replace(
      small=after.small._replace(length=state.small.length + state.lags + 1 + read),
      large=large._replace(length=state.large.length + 1 + accepted),
    )

  def large_step(self, state: _Decoding) -> _Decoding:
    """Decode a token with the large model alone."""
    B, V = len(state.last), self.pair.vocab_size
    zeros = jnp.zeros(B, jnp.int32)
    logits, large = self.pair.large.extend(state.last[:, None], state.large)
    logits = logits[..., :V]
    # Nothing reads the small model's logits. A constant in their place is folded for seconds.
    none = _Drafts(zeros[:, None][:, :0], logits, zeros, zeros)
    after, _ = self.verify(state, none, logits)
    return after._replace(large=large)

  def draft(self, state: _Decoding, count: Int[Array, 'B']) -> tuple[_Drafts, _Decoding]:
    """Draft `count` tokens in each row; the small model's cache then ends with the last one read.

    It reads the last draft too, unless all that needs it is a bonus token, drawn from p.
    """
    pair, B, V = self.pair, len(count), self.pair.vocab_size
    sampler, keys = pair.options.sampler(), fold_in(self.row_keys, 2 * state.length)
    reads = jnp.maximum(count, 1) if pair.lossless else count + 1
    first, state = self.read_last(state)

    def append(step: Array, logits: Array, drafts: tuple[Array, Array]) -> tuple[Array, Array]:
      tokens, all_logits = drafts
      token = sampler(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step))
      return (
        tokens.at[:, step].set(token),
        jax.lax.dynamic_update_index_in_dim(all_logits, logits, step, 1),
      )

    def read(
      carry: tuple[Array, tuple[Array, Array], Any],
    ) -> tuple[Array, tuple[Array, Array], Any]:
      step, drafts, cache = carry
      token = jax.lax.dynamic_slice_in_dim(drafts[0], step - 1, 1, axis=1)
      logits, cache = pair.small.extend(token, cache)
      return step + 1, append(step, logits[:, 0, :V], drafts), cache

    empty = jnp.zeros((B, self.gamma + 1), jnp.int32), jnp.zeros((B, self.gamma + 1, V))
    start = jnp.asarray(1), append(jnp.asarray(0), first, empty), state.small
    _, (tokens, logits), cache = jax.lax.while_loop(
      lambda carry: carry[0] < jnp.max(reads), read, start
    )
    return _Drafts(tokens[:, : self.gamma], logits, count, reads), state._replace(small=cache)

  def read_last(self, state: _Decoding) -> tuple[Float[Array, 'B V'], _Decoding]:
    """Read each row's last token with the small model, and the one before it where it lags."""
    pair, (B,), V = self.pair, state.last.shape, self.pair.vocab_size
    if not pair.lossless:
      logits, cache = pair.small.extend(state.last[:, None], state.small)
      return logits[:, 0, :V], state._replace(small=cache)
    # Rows that do not lag read an arbitrary second token, which the next one overwrites.
    lags = state.lags[:, None]
    tokens = jnp.concatenate(
      [jnp.where(lags, state.skipped[:, None], state.last[:, None]), state.last[:, None]], 1
    )
    logits, cache = pair.small.extend(tokens, state.small)
    logits = logits[..., :V]
    late = state.answers.small_logprobs.at[
      jnp.arange(B),
      jnp.where(state.lags & state.drafting & ~state.ended, state.length - 1, self.max_len),
    ].set(decoding.token_logprobs(logits[:, 0], state.last), mode='drop')
    return logits[jnp.arange(B), state.lags.astype(jnp.int32)], state._replace(
      small=cache._replace(length=state.small.length + state.lags + 1),
      answers=state.answers._replace(small_logprobs=late),
    )

  def verify(
    self, state: _Decoding, drafts: _Drafts, p_logits: Float[Array, 'B G+1 V']
  ) -> tuple[_Decoding, Int[Array, 'B']]:
    """Append the accepted drafts and the token after them; also the number of accepted drafts."""
    pair, (tokens, q_logits, count, reads) = self.pair, drafts
    rows, positions = jnp.arange(len(count)), jnp.arange(tokens.shape[1] + 1)
    # Of all positions at once, for the log-probabilities as well.
    by_model = [(x, jax.nn.logsumexp(decoding.float32(x), -1)) for x in (q_logits, p_logits)]

    def at(row: Int[Array, ''], position: Int[Array, '']) -> tuple[Probs, Probs]:
      q, p = (pair.distribution(logits[row, position], n[row, position]) for logits, n in by_model)
      pi = target_distributions.target_distribution(q, p, rule=pair.target, alpha=pair.alpha)
      return q.sampled, pi

    keys = fold_in(self.row_keys, 2 * state.length + 1)
    accepted, following = speculative.verify_by_position(keys, tokens, at, count)
    by_small = positions < accepted[:, None]
    block = jnp.where(by_small, jnp.pad(tokens, ((0, 0), (0, 1))), following[:, None])
    ends = jnp.isin(block, self.eos_ids) & (positions <= accepted[:, None])
    size = jnp.where(jnp.any(ends, 1), jnp.argmax(ends, 1), accepted) + 1
    size = jnp.where(state.ended, 0, size)
    read = (positions < reads[:, None]) & state.drafting[:, None]
    columns = jnp.where(positions < size[:, None], state.length[:, None] + positions, self.max_len)

    def write(array: Array, values: Array) -> Array:
      return array.at[rows[:, None], columns].set(values, mode='drop')

    answer, small_logprobs, drafted, counts = state.answers
    q_logprobs, p_logprobs = (decoding.token_logprobs(logits, block, n) for logits, n in by_model)
    appended = Generation(block, p_logprobs, jnp.ones_like(by_small))
    added = CallCounts(
      accepted=jnp.minimum(accepted, size),
      rejected=(accepted < count) & (size > accepted),
      small_calls=jnp.where(state.drafting & ~state.ended, reads, 0),
      large_calls=~state.ended,
    )
    answers = Speculation(
      jax.tree.map(write, answer, appended),
      write(small_logprobs, jnp.where(read, q_logprobs, jnp.nan)),
      write(drafted, by_small),
      jax.tree.map(jnp.add, counts, added),
    )
    length = state.length + size
    ended = state.ended | jnp.any(ends, 1) | (length >= self.max_len)
    return state._replace(length=length, ended=ended, last=following, answers=answers), accepted


def vocab_size(*models: LanguageModel[Any]) -> int:
  """Number of vocabulary entries that all models have: padding of tables may differ."""
  return min(jax.tree.leaves(model.table)[0].shape[0] for model in models)
