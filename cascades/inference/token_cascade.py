"""Sequential token cascade: the small model decodes, and the large one writes deferred tokens.

The baseline of speculative cascades, with their law for the same rule and alpha. Before it writes a
token, the large model reads the tokens that it has skipped:

    small writes  'the', 'cat'         and defers the next token
    large reads   'the cat'            in one call, and writes 'sat'
    small reads   'sat'                and writes 'down'

The large model does not even read the prompts until an answer of the batch defers a token.
Narasimhan et al. 2025, https://arxiv.org/abs/2405.19261, section 2.

Axes: B batch, T target, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades import decoding, speculative, target_distributions
from cascades.inference import speculation
from cascades.inference.answers import DecodingOptions
from cascades.inference.speculation import CallCounts, Speculation
from cascades.target_distributions import Alpha
from cascades.types import Generation, LanguageModel, Prompt

WIDTH = 8  # most tokens that the large model reads in one call


def generate(
  small: LanguageModel[Any],
  large: LanguageModel[Any],
  prompt: Prompt,
  *,
  rule: str,
  alpha: Alpha,
  max_len: int,
  eos_id: int | Sequence[int],
  options: DecodingOptions = DecodingOptions(),
  row_ids: Int[Array, 'B'] | None = None,
) -> Speculation:
  """Answer every prompt; decoding stops when all rows have ended.

  Without deferrals, and with nothing but deferrals, the answers are those of `decoding.generate`
  with the small or the large model, and the same seed.

  Args:
    small: Model that decodes.
    large: Model of the deferred tokens, of the same vocabulary and architecture.
    prompt: Prompts; rows of length 0 are padding of the batch and get an empty answer.
    rule: Name of a rule that reads the small model alone: 'chow' or 'chow_log'.
    alpha: Number of the rule; may be traced.
    max_len: Largest number of tokens of an answer, the end of sequence included.
    eos_id: Token that ends an answer, or several of them.
    options: Temperature and cuts of both models' distributions, and the seed.
    row_ids: Ids of the rows for their keys; None for 0, 1, ... An answer depends on seed, row id
      and prompt, neither on the other rows nor on padding.

  Returns:
    The answers, [B, max_len]. The log-probabilities are those of the model that wrote the token,
    `counts.accepted` is the number of tokens of the small model, and `counts.rejected` 0. Large
    calls are counted for each answer as if it were decoded alone.

  Raises:
    ValueError: The rule reads the large model before it decides, or `max_len` is less than 1.
  """
  if max_len < 1:
    raise ValueError(f'max_len={max_len} must be at least 1: an answer ends with one token, EOS.')
  B = len(prompt.length)
  row_ids = jnp.arange(B) if row_ids is None else row_ids
  row_keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(options.seed), row_ids)
  cascade = _Cascade(small, large, rule, alpha, options, row_keys, jnp.asarray(eos_id), max_len)
  state = jax.lax.while_loop(
    lambda state: ~jnp.all(state.ended) & ~jnp.any(cascade.defers(state)),
    lambda state: cascade.write(state, state.small.logits, jnp.zeros(B, bool)),
    cascade.start(prompt),
  )
  return jax.lax.cond(
    jnp.all(state.ended),
    lambda state: _answers(state, jnp.zeros(B, jnp.int32)),
    lambda state: cascade.with_large(state, prompt),
    state,
  )


class _Reader(NamedTuple):
  """A model within an answer."""

  cache: Any
  logits: Float[Array, 'B V']  # of the token after those that it has read
  read: Int[Array, 'B']  # number of tokens of the answer that it has read
  calls: Int[Array, 'B']  # besides the prompt


class _Position(NamedTuple):
  """Decoding before a token; all rows are at the same position."""

  length: Int[Array, '']
  ended: Bool[Array, 'B']
  small: _Reader  # has read everything in the rows that have not ended
  answer: Generation
  small_logprobs: Float[Array, 'B T']
  drafted: Bool[Array, 'B T']


@dataclasses.dataclass(frozen=True)
class _Cascade:
  """Everything that stays the same from token to token."""

  small: LanguageModel[Any]
  large: LanguageModel[Any]
  rule: str
  alpha: Alpha
  options: DecodingOptions
  row_keys: Array
  eos_ids: Int[Array, '*n']
  max_len: int

  def start(self, prompt: Prompt) -> _Position:
    """Read the prompt with the small model."""
    unset = jnp.zeros((len(prompt.length), self.max_len))
    answer = Generation(unset.astype(jnp.int32), unset, unset.astype(bool))
    small = self.read_prompt(self.small, prompt)
    ended = prompt.length == 0
    return _Position(jnp.zeros((), jnp.int32), ended, small, answer, unset, answer.mask)

  def with_large(self, state: _Position, prompt: Prompt) -> Speculation:
    """Complete answers from their first deferral on, with both models."""

    def step(carry: tuple[_Position, _Reader]) -> tuple[_Position, _Reader]:
      state, large = carry
      defers = self.defers(state)
      for width in (WIDTH, 1):  # one token, the usual number, at the price of one
        large = self.read(self.large, large, state, defers, width)
      logits = jnp.where(defers[:, None], large.logits, state.small.logits)
      return self.write(state, logits, defers), large

    state, large = jax.lax.while_loop(
      lambda carry: ~jnp.all(carry[0].ended), step, (state, self.read_prompt(self.large, prompt))
    )
    return _answers(state, large.calls)

  def defers(self, state: _Position) -> Bool[Array, 'B']:
    """Rows whose next token the large model writes."""
    q = target_distributions.distribution(state.small.logits)
    return speculative.token_cascade(q, self.alpha, rule=self.rule) & ~state.ended

  def write(
    self, state: _Position, logits: Float[Array, 'B V'], defers: Bool[Array, 'B']
  ) -> _Position:
    """Append a token drawn from these logits to each row, which the small model then reads."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(self.row_keys, state.length)
    token, written = self.options.sampler()(logits, keys), ~state.ended

    def append(array: Array, values: Array) -> Array:
      return array.at[:, state.length].set(jnp.where(written, values, jnp.zeros_like(values)))

    column = Generation(token, decoding.token_logprobs(logits, token), written)
    length = state.length + 1
    state = state._replace(
      length=length,
      ended=state.ended | jnp.isin(token, self.eos_ids) | (length >= self.max_len),
      answer=jax.tree.map(append, state.answer, column),
      small_logprobs=append(
        state.small_logprobs, decoding.token_logprobs(state.small.logits, token)
      ),
      drafted=append(state.drafted, ~defers),
    )
    return state._replace(small=self.read(self.small, state.small, state, ~state.ended, 1))

  def read_prompt(self, model: LanguageModel[Any], prompt: Prompt) -> _Reader:
    """Read the prompt with one of the models."""
    logits, cache = model.prefill(prompt, self.max_len + WIDTH)
    zeros = jnp.zeros(len(prompt.length), jnp.int32)
    return _Reader(cache, logits[:, : self.vocab_size], zeros, zeros)

  def read(
    self,
    model: LanguageModel[Any],
    reader: _Reader,
    state: _Position,
    rows: Bool[Array, 'B'],
    width: int,
  ) -> _Reader:
    """Read the answers so far in these rows, up to `width` tokens a call.

    With a width above 1 no call is made for the sake of a single token.
    """
    indices = jnp.arange(len(rows))
    lag = lambda reader: jnp.where(rows, state.length - reader.read, 0)

    def call(reader: _Reader) -> _Reader:
      columns = reader.read[:, None] + jnp.arange(width)
      tokens = state.answer.tokens[indices[:, None], jnp.minimum(columns, self.max_len - 1)]
      logits, cache = model.extend(tokens, reader.cache)
      count = jnp.minimum(lag(reader), width)
      last = logits[indices, jnp.maximum(count - 1, 0), : self.vocab_size]
      return _Reader(
        cache._replace(length=reader.cache.length + count),
        jnp.where(count[:, None] > 0, last, reader.logits),
        reader.read + count,
        reader.calls + (count > 0),
      )

    return jax.lax.while_loop(
      lambda reader: jnp.any(lag(reader) > (1 if width > 1 else 0)), call, reader
    )

  @property
  def vocab_size(self) -> int:
    """Number of vocabulary entries that both models have."""
    return speculation.vocab_size(self.small, self.large)


def _answers(state: _Position, large_calls: Int[Array, 'B']) -> Speculation:
  """Answers of decoding that has ended, after these calls of the large model behind the prompt."""
  answer, drafted = state.answer, state.drafted
  deferred = jnp.any(answer.mask & ~drafted, 1)
  counts = CallCounts(
    accepted=jnp.sum(drafted, 1),
    rejected=jnp.zeros_like(large_calls),
    small_calls=state.small.calls + answer.mask[:, 0],
    large_calls=large_calls + deferred,
  )
  return Speculation(answer, state.small_logprobs, drafted, counts)
