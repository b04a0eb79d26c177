"""Generation and scoring with any `types.LanguageModel`, with the confidence of every token.

Log-probabilities are those of the untempered float32 softmax, for every sampler.

    answer = generate(model, prompt, max_len=32, eos_id=1)
    answer.tokens    [B, 32]  greedy answers, padded
    answer.logprobs  [B, 32]  log p(token | prompt, earlier tokens), 0 after the end
    answer.mask      [B, 32]  True up to and including the end of sequence

Axes: B batch, S prompt, T target, L one block of T, V vocabulary, D width, A alternatives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades import blocks
from cascades.types import Batch, Cache, Generation, LanguageModel, Prompt

# Maps float32 logits and one key per row, or None, to tokens.
Sampler: TypeAlias = Callable[[Float[Array, 'B V'], Array | None], Int[Array, 'B']]


def greedy(logits: Float[Array, 'B V'], keys: Array | None = None) -> Int[Array, 'B']:
  """Choose the most probable token; of equal ones, the lowest."""
  del keys
  return argmax(logits)


def sample(
  logits: Float[Array, 'B V'],
  keys: Array | None = None,
  *,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> Int[Array, 'B']:
  """Draw a token from softmax(logits / temperature), truncated by `nucleus`.

  As a sampler of `generate`: `functools.partial(sample, temperature=0.7, top_p=0.95)`.

  Args:
    logits: Logits of the next token.
    keys: One random key per row.
    temperature: Divisor of the logits, positive.
    top_k: Number of most probable tokens to draw from; None for all.
    top_p: Probability of the nucleus to draw from, after temperature and top_k; None for all.

  Raises:
    ValueError: There is no key, or an option is out of range.
  """
  if keys is None:
    raise ValueError('Sampling needs a random key: pass `key` to generate, or decode with greedy.')
  if temperature <= 0.0:
    raise ValueError(f'temperature={temperature} must be positive; for the limit 0 use greedy.')
  draw = jax.vmap(jax.random.categorical)
  if top_k is None and top_p is None:
    return draw(keys, logits / temperature).astype(jnp.int32)
  truncated, tokens = nucleus(logits / temperature, top_k=top_k, top_p=top_p)
  rank = draw(keys, truncated)
  return jnp.take_along_axis(tokens, rank[:, None], -1)[:, 0].astype(jnp.int32)


def choose(
  logits: Float[Array, 'B V'],
  keys: Array,
  *,
  temperature: Float[Array, 'B'],
  top_p: Float[Array, 'B'],
) -> Int[Array, 'B']:
  """Choose a token in each row by options of its own, which may be traced.

  A row decodes as `greedy` does at temperature 0, else as `sample` does with its temperature and
  top_p. What no row needs is not computed.

  Args:
    logits: Logits of the next token.
    keys: One random key per row; greedy rows ignore theirs.
    temperature: Divisors of the logits, 0 for greedy rows.
    top_p: Probabilities of the nuclei; inf for all tokens.
  """
  best, drawing = argmax(logits), temperature > 0.0
  draw = jax.vmap(jax.random.categorical)

  def sampled() -> Int[Array, 'B']:
    tempered = logits / jnp.where(drawing, temperature, 1.0)[:, None]
    plain = draw(keys, tempered).astype(jnp.int32)

    def cut() -> Int[Array, 'B']:
      truncated, tokens = nucleus(tempered, top_p=top_p)
      rank = draw(keys, truncated)
      return jnp.take_along_axis(tokens, rank[:, None], -1)[:, 0].astype(jnp.int32)

    cutting = drawing & jnp.isfinite(top_p)
    return jnp.where(cutting, jax.lax.cond(cutting.any(), cut, lambda: plain), plain)

  return jnp.where(drawing, jax.lax.cond(drawing.any(), sampled, lambda: best), best)


def nucleus(
  logits: Float[Array, '*n V'],
  *,
  top_k: int | None = None,
  top_p: float | Float[Array, '*n'] | None = None,
) -> tuple[Float[Array, '*n K'], Int[Array, '*n K']]:
  """Truncate logits to the `top_k` tokens, then to the nucleus.

  The nucleus is the shortest prefix of the most probable tokens whose probabilities add up to
  `top_p` (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). Of equal tokens the lowest come
  first. For example, probabilities (0.1, 0.5, 0.1, 0.3) and top_p = 0.7 leave tokens 1 and 3:

      logits  (log 0.5, log 0.3, -inf, -inf)
      tokens  (1, 3, 0, 2)

  Args:
    logits: Logits of the next token.
    top_k: Number K of tokens to keep; None for all.
    top_p: Probability to reach, in (0, 1]; None keeps all. An array, of one for each row, is not
      checked.

  Returns:
    The K largest logits in descending order, -inf outside of the nucleus, and their tokens.

  Raises:
    ValueError: An option is out of range.
  """
  if top_k is not None and top_k < 1:
    raise ValueError(f'top_k={top_k} must be at least 1; None keeps every token.')
  if isinstance(top_p, float | int) and not 0.0 < top_p <= 1.0:
    raise ValueError(f'top_p={top_p} must lie in (0, 1]; None keeps every token.')
  V = logits.shape[-1]
  best, tokens = jax.lax.top_k(logits, min(top_k or V, V))
  probabilities = jax.nn.softmax(best)
  before = jnp.cumsum(probabilities, -1) - probabilities
  mass = jnp.asarray(jnp.inf if top_p is None else top_p)[..., None]
  return jnp.where(before < mass, best, -jnp.inf), tokens


def probabilities(
  logits: Float[Array, '*n V'],
  *,
  normalizer: Float[Array, '*n'] | None = None,
  temperature: float = 1.0,
  top_k: int | None = None,
  top_p: float | None = None,
) -> Float[Array, '*n V']:
  """Distribution that `sample` draws from with the same options, and `greedy` at temperature 0.

  Args:
    logits: Logits of the next token, in any floating-point type.
    normalizer: `logsumexp` of the logits in float32, where it is known: it saves two passes over
      logits that are neither tempered nor truncated. Their sum is less precise, 1 within 2e-5
      where logits are around 300.
    temperature: Divisor of the logits; 0 puts all probability on the most probable token.
    top_k: Number of most probable tokens to keep; None for all.
    top_p: Probability of the nucleus to keep, after temperature and top_k; None for all.

  Returns:
    Probabilities in float32, or in float64 if the logits are; 0 on truncated tokens.

  Raises:
    ValueError: An option is out of range.
  """
  if temperature < 0.0:
    raise ValueError(f'temperature={temperature} must not be negative; 0 is greedy.')
  logits = float32(logits)
  if temperature == 0.0:
    return jax.nn.one_hot(argmax(logits), logits.shape[-1], dtype=logits.dtype)
  if top_k is None and top_p is None:
    if normalizer is not None and temperature == 1.0:
      return jnp.exp(logits - normalizer[..., None])
    return jax.nn.softmax(logits / temperature)
  truncated, tokens = nucleus(logits / temperature, top_k=top_k, top_p=top_p)
  zeros = jnp.zeros_like(logits)
  return jnp.put_along_axis(zeros, tokens, jax.nn.softmax(truncated), -1, inplace=False)


def token_logprobs(
  logits: Float[Array, '*n V'],
  tokens: Int[Array, '*n'],
  normalizer: Float[Array, '*n'] | None = None,
) -> Float[Array, '*n']:
  """Compute untempered log-probabilities of tokens, without forming those of all tokens.

  Args:
    logits: Logits of all tokens.
    tokens: Tokens.
    normalizer: `logsumexp` of the logits in float32, where it is known; None computes it.
  """
  normalizer = jax.nn.logsumexp(float32(logits), -1) if normalizer is None else normalizer
  return jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0] - normalizer


def argmax(x: Float[Array, '*n V']) -> Int[Array, '*n']:
  """Index of the largest entry, the lowest of equal ones.

  Like `jnp.argmax`, which takes three times as long on CPU where V is large: both reductions here
  are vectorized. 0 where an entry is not a number.
  """
  positions = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
  below = x < jnp.max(x, -1, keepdims=True)
  return jnp.min(jnp.where(below, x.shape[-1], positions), -1)


def float32(x: Float[Array, '*n']) -> Float[Array, '*n']:
  """Array in float32, or in float64 if it is."""
  return jnp.asarray(x, jnp.promote_types(jnp.float32, x.dtype))


def most_likely(logprobs: Float[Array, '*n V'], count: int) -> Float[Array, '*n A'] | None:
  """The `count` largest log-probabilities, or all if there are fewer, descending; None for 0."""
  return jax.lax.top_k(logprobs, min(count, logprobs.shape[-1]))[0] if count else None


class _State(NamedTuple):
  step: Int[Array, '']
  ended: Bool[Array, 'B']
  answer: Generation
  cache: Cache


def generate(
  model: LanguageModel,
  prompt: Prompt,
  *,
  max_len: int,
  eos_id: int | Sequence[int],
  pad_id: int = 0,
  sampler: Sampler = greedy,
  key: Array | None = None,
  row_ids: Int[Array, 'B'] | None = None,
  alternatives: int = 0,
) -> Generation:
  """Answer every prompt; decoding stops when all rows have ended.

  Args:
    model: The language model.
    prompt: Prompts; rows of length 0 are padding of the batch and get an empty answer.
    max_len: Largest number of tokens of an answer, the end of sequence included.
    eos_id: Token that ends an answer, or several of them.
    pad_id: Token after the end of an answer.
    sampler: Chooses the next tokens from float32 logits and keys: `greedy`, or a partial `sample`.
    key: Random key of the sampler. Row b draws from it folded with `row_ids[b]` and the step, so
      that samples depend neither on the other rows nor on padding.
    row_ids: Ids of the rows for their keys; None for 0, 1, ...
    alternatives: Number A of most likely tokens at each position whose log-probabilities are
      returned; at most the whole vocabulary.

  Returns:
    The answers, [B, max_len], with the untempered log-probability of every token.

  Raises:
    ValueError: `max_len` is less than 1, or the sampler needs a key and there is none.
  """
  if max_len < 1:
    raise ValueError(f'max_len={max_len} must be at least 1: an answer ends with one token, EOS.')
  B = prompt.tokens.shape[0]
  eos_ids = jnp.asarray(eos_id)
  row_ids = jnp.arange(B) if row_ids is None else row_ids
  row_keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)

  def append(state: _State, logits: Float[Array, 'B V'], cache: Cache) -> _State:
    step, ended, answer, _ = state
    keys = None if row_keys is None else jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
    token = sampler(logits, keys)
    logprobs = jax.nn.log_softmax(logits)
    logprob = jnp.take_along_axis(logprobs, token[:, None], -1)[:, 0]
    column = Generation(
      tokens=jnp.where(ended, pad_id, token),
      logprobs=jnp.where(ended, 0.0, logprob),
      mask=~ended,
      alternatives=most_likely(logprobs, alternatives),
    )
    answer = jax.tree.map(lambda x, new: x.at[:, step].set(new), answer, column)
    return _State(step + 1, ended | jnp.isin(token, eos_ids), answer, cache)

  def unfinished(state: _State) -> Bool[Array, '']:
    return (state.step < max_len) & ~jnp.all(state.ended)

  def extend(state: _State) -> _State:
    last = jax.lax.dynamic_slice_in_dim(state.answer.tokens, state.step - 1, 1, axis=1)
    logits, cache = model.extend(last, state.cache)
    return append(state, logits[:, 0], cache)

  logits, cache = model.prefill(prompt, max_len)
  V = logits.shape[-1]
  empty = Generation(
    tokens=jnp.full((B, max_len), pad_id, jnp.int32),
    logprobs=jnp.zeros((B, max_len)),
    mask=jnp.zeros((B, max_len), bool),
    alternatives=jnp.zeros((B, max_len, min(alternatives, V))) if alternatives else None,
  )
  start = _State(jnp.zeros((), jnp.int32), prompt.length == 0, empty, cache)
  return jax.lax.while_loop(unfinished, extend, append(start, logits, cache)).answer


class TokenScores(NamedTuple):
  """Target tokens of a batch under teacher forcing; 0 and False where its weights are 0."""

  logprobs: Float[Array, 'B T']  # of the untempered softmax
  correct: Bool[Array, 'B T']  # True where the target is the model's first choice
  alternatives: Float[Array, 'B T A'] | None = None  # log-probabilities, most likely token first


def score(
  model: LanguageModel,
  batch: Batch,
  *,
  alternatives: int = 0,
  block_length: int | None = None,
  axes: blocks.MeshAxes = blocks.ONE_DEVICE,
) -> TokenScores:
  """Score the targets of a batch under teacher forcing, without forming logits [B, T, V].

  Args:
    model: The language model.
    batch: Examples; tokens of weight 0 are not scored.
    alternatives: Number of most likely tokens at each position whose log-probabilities are
      returned too.
    block_length: Positions of all rows that are read out together; None for as many as fit the
      budget of `blocks`.
    axes: Mesh axes that split rows and vocabulary.
  """
  hidden, table = model.hidden(batch), model.table
  V = jax.tree.leaves(table)[0].shape[0]
  counted = batch.weights > 0

  def read(table: Any, tokens: tuple[Array, Array]) -> TokenScores:
    hidden, targets = tokens
    logits = model.readout(hidden, table)
    logprobs = jax.nn.log_softmax(logits)
    return TokenScores(
      jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0],
      jnp.argmax(logits, -1) == targets,
      most_likely(logprobs, alternatives),
    )

  scores = blocks.map_blocks(
    read,
    table,
    (hidden, batch.targets),
    counted,
    length=block_length or blocks.default_length(len(hidden), V, axes),
    axes=axes,
  )
  return scores._replace(
    logprobs=jnp.where(counted, scores.logprobs, 0.0), correct=scores.correct & counted
  )
