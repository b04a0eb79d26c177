"""Slots of a running batch: their number and memory, and the compiled programs that fill them.

All answers share one cache of S rows. A prompt is read alone, padded to one of a few lengths, and
inserted into a free row; then every step gives each row a token. Programs are compiled ahead: one
for each length of prompts, one that chooses the first token, and a few that decode, for few or
many rows.

Axes: S slots, V vocabulary, A alternatives, W tokens of a padded prompt.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int, UInt32

from cascades import decoding
from cascades.runtime import partitioning, progress, ranges
from cascades.types import Params, Prompt

ALTERNATIVES = 20  # most that a request may ask for, as of OpenAI's servers
DEFAULT_SLOTS = 8
MOST_SLOTS = 64  # that a memory budget is filled with
SHORTEST = 16  # tokens of the shortest padded prompt, as in `data.prompts.buckets`
GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Room:
  """Room for the answers of a model in process.

  Attributes:
    slots: Answers that are decoded at a time; None for as many as the memory holds, 64 at most, or
      8 without a budget.
    memory: GiB of weights and cache together; None for no budget.
    max_prompt: Most tokens of a prompt, special tokens included.
    max_tokens: Most tokens of an answer, end of sequence included.
    max_waiting: Most requests that wait for a slot; more are refused.
  """

  slots: int | None = None
  memory: float | None = None
  max_prompt: int = 512
  max_tokens: int = 128
  max_waiting: int = 64

  def __post_init__(self) -> None:
    counts = {'SLOTS': self.slots, 'MAX_PROMPT': self.max_prompt, 'MAX_TOKENS': self.max_tokens}
    ranges.check(counts, least=1, below=1 << 24, integer=True)
    ranges.check({'MAX_WAITING': self.max_waiting}, least=0, integer=True)
    ranges.check({'MEMORY': self.memory}, above=0)


class RoomPlan(NamedTuple):
  """Memory and compiled shapes of an engine.

  Attributes:
    slots: Number of rows S.
    max_prompt: Most tokens of a prompt.
    max_tokens: Most tokens of an answer.
    prompt_lengths: Lengths W that prompts are padded to.
    weight_bytes: Bytes of the parameters.
    row_bytes: Bytes of a row of the cache.
  """

  slots: int
  max_prompt: int
  max_tokens: int
  prompt_lengths: tuple[int, ...]
  weight_bytes: int
  row_bytes: int

  @property
  def total_bytes(self) -> int:
    """Bytes of parameters and cache. A step needs its activations besides."""
    return self.weight_bytes + self.slots * self.row_bytes

  @property
  def row_counts(self) -> tuple[int, ...]:
    """Numbers of rows that steps are compiled for: 1, 4, 16, ... and all."""
    powers = [1 << power for power in range(0, self.slots.bit_length(), 2)]
    return (*(power for power in powers if power < self.slots), self.slots)

  @property
  def programs(self) -> int:
    """Number of compiled programs: reading, choosing the first token, and decoding."""
    return len(self.prompt_lengths) + 1 + len(self.row_counts)

  def __str__(self) -> str:
    size = progress.format_bytes
    return (
      f'{self.slots} slots of {self.max_prompt} + {self.max_tokens} tokens, {size(self.row_bytes)} '
      f'each; weights {size(self.weight_bytes)}; {size(self.total_bytes)} in all; {self.programs} '
      f'programs, for prompts of {_listed(self.prompt_lengths)} tokens and steps of '
      f'{_listed(self.row_counts)} rows'
    )


def plan(graph: nnx.GraphDef, params: Params, room: Room) -> RoomPlan:
  """RoomPlan the slots of a model.

  Args:
    graph: Graph definition of the model.
    params: Its parameters, or their shapes.
    room: Slots or memory, and lengths.

  Raises:
    ValueError: The memory does not hold the weights and the slots.
  """
  weights, row = _bytes(params), _bytes(_empty_cache(graph, params, room, slots=1))
  budget = None if room.memory is None else int(room.memory * GIB)
  slots = room.slots or DEFAULT_SLOTS
  if budget is not None:
    fitting = max(0, budget - weights) // row
    slots = room.slots or min(fitting, MOST_SLOTS)
    if not 1 <= slots <= fitting:
      size = progress.format_bytes
      raise ValueError(
        f'MEMORY={room.memory:g} GiB does not hold the weights, {size(weights)}, and '
        f'{max(slots, 1)} slots of {size(row)} each, {room.max_prompt} + {room.max_tokens} tokens: '
        'raise MEMORY, or lower SLOTS, MAX_PROMPT or MAX_TOKENS.'
      )
  lengths = prompt_lengths(room.max_prompt)
  return RoomPlan(slots, room.max_prompt, room.max_tokens, lengths, weights, row)


def prompt_lengths(longest: int) -> tuple[int, ...]:
  """Lengths that prompts are padded to: 16, 32, ... and the longest."""
  lengths = [SHORTEST]
  while lengths[-1] < longest:
    lengths.append(2 * lengths[-1])
  return (*lengths[:-1], min(lengths[-1], longest))


def _listed(lengths: Sequence[int]) -> str:
  return (
    ', '.join(map(str, lengths[:-1])) + f' or {lengths[-1]}' if lengths[1:] else str(lengths[0])
  )


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _empty_cache(graph: nnx.GraphDef, params: Params, room: Room | RoomPlan, *, slots: int) -> Any:
  """Shapes of a cache."""
  prompt = Prompt(
    jax.ShapeDtypeStruct((slots, room.max_prompt), 'int32'),  # type: ignore[arg-type]
    jax.ShapeDtypeStruct((slots,), 'int32'),  # type: ignore[arg-type]
  )
  read = lambda params, prompt: nnx.merge(graph, params).prefill(prompt, room.max_tokens)[1]
  return jax.eval_shape(read, params, prompt)


class RowStates(NamedTuple):
  """Answers of all rows so far, as the host knows them.

  Attributes:
    tokens: Last token of each answer.
    steps: Number of its tokens.
    active: False in free rows, whose tokens mean nothing.
    temperature: Temperature of each row; 0 is greedy.
    top_p: Probability mass to sample from; inf for all.
    keys: Random key of each row, as data.
  """

  tokens: Int[np.ndarray, 'S']
  steps: Int[np.ndarray, 'S']
  active: Bool[np.ndarray, 'S']
  temperature: Float[np.ndarray, 'S']
  top_p: Float[np.ndarray, 'S']
  keys: UInt32[np.ndarray, 'S k']


def free_rows(slots: int) -> RowStates:
  """Rows without answers."""
  keys = np.tile(_no_key(), (slots, 1))
  zeros, floats = np.zeros(slots, np.int32), np.zeros(slots, np.float32)
  return RowStates(zeros, zeros.copy(), np.zeros(slots, bool), floats, floats + np.inf, keys)


@functools.cache
def _no_key() -> np.ndarray:
  return np.asarray(jax.random.key_data(jax.random.key(0)))


def row_key(seed: int) -> UInt32[np.ndarray, 'k']:
  """Key of an answer as data: that of row 0 in `decoding.generate` with this seed."""
  return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), 0)))


class Chosen(NamedTuple):
  """Tokens of a step, and the most likely ones, with log-probabilities of the untempered softmax.

  The most likely tokens are always computed, since of 49,152 they take less than the noise of a
  step, and fetched for those who ask.
  """

  tokens: Int[Array, 'S']
  logprobs: Float[Array, 'S']
  top_logprobs: Float[Array, 'S A'] | None
  top_tokens: Int[Array, 'S A'] | None


def choose(logits: Float[Array, 'S V'], rows: RowStates) -> Chosen:
  """Choose the next token of every row."""
  keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(jnp.asarray(rows.keys)), rows.steps)
  tokens = decoding.choose(
    logits, keys, temperature=jnp.asarray(rows.temperature), top_p=jnp.asarray(rows.top_p)
  )
  logprobs = jax.nn.log_softmax(logits)
  top = jax.lax.top_k(logprobs, min(ALTERNATIVES, logits.shape[-1]))
  return Chosen(tokens, jnp.take_along_axis(logprobs, tokens[:, None], -1)[:, 0], *top)


class RunningBatch:
  """A cache of S rows, and the compiled programs that read prompts into it and decode.

  Calls need no active mesh; construction does, on the mesh that holds the model.
  """

  def __init__(
    self, graph: nnx.GraphDef, params: Params, plan: RoomPlan, *, vocab_size: int
  ) -> None:
    """Compiles all programs; logs progress.

    Args:
      graph: Graph definition of the model.
      params: Its parameters.
      plan: Number of rows, and lengths.
      vocab_size: Number V of logits.
    """
    self.plan, self._params = plan, params
    replicated = NamedSharding(partitioning.active_mesh(), PartitionSpec())
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
      _empty_cache(graph, params, plan, slots=plan.slots),
    )
    zeros = lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    self._zeros = jax.jit(zeros, out_shardings=replicated).lower().compile()

    # Free rows grow as well, until a prompt replaces them; what overflows is dropped.
    def decode(params: Params, cache: Any, rows: RowStates) -> tuple[Any, Chosen]:
      logits, extended = nnx.merge(graph, params).extend(jnp.asarray(rows.tokens)[:, None], cache)
      return extended, choose(logits[:, 0], rows)

    def admit(params: Params, cache: Any, row: Array, prompt: Prompt) -> tuple[Any, Array]:
      logits, other = nnx.merge(graph, params).prefill(prompt, 0)
      return cache.insert(row, other), logits

    def compiled(program: Callable[..., Any], *arguments: Any, donated: Sequence[int] = ()) -> Any:
      jitted = jax.jit(program, donate_argnums=donated, out_shardings=replicated)
      return jitted.lower(*arguments).compile()

    def compile_all() -> Iterator[tuple[tuple[str, int], Any]]:
      for width in plan.prompt_lengths:
        prompt = _padded((), width)
        admitted = compiled(admit, params, shapes, np.int32(0), prompt, donated=[1])
        yield ('read', width), admitted
      logits = jax.ShapeDtypeStruct((1, vocab_size), jnp.float32, sharding=replicated)
      yield ('choose', 1), compiled(choose, logits, free_rows(1))
      for rows in plan.row_counts:
        decoded = compiled(decode, params, shapes, free_rows(rows), donated=[1])
        yield ('decode', rows), decoded

    logged = progress.Counted[Any]('program', plan.programs, lambda _: (1, 0))
    self._programs = dict(logged(compile_all()))
    row_key(0)  # compiles its programs
    self.clear()

  def clear(self) -> None:
    """Empty the cache, also after a program has failed and lost it."""
    self._cache = self._zeros()

  def read(
    self, row: int, prompt: Int[np.ndarray, 'n'], first: RowStates, *, report: bool
  ) -> Chosen:
    """Read a prompt into a row of the cache.

    Args:
      row: Row to replace.
      prompt: Tokens, at most `max_prompt`.
      first: Options of the answer, as one row.
      report: True to return the most likely tokens.

    Returns:
      The first token of the answer, as one row of NumPy arrays.
    """
    width = min(width for width in self.plan.prompt_lengths if width >= len(prompt))
    read, padded = self._programs['read', width], _padded(prompt, width)
    self._cache, logits = read(self._params, self._cache, np.int32(row), padded)
    return _fetched(self._programs['choose', 1](logits, first), report)

  def decode(self, rows: RowStates, *, report: bool) -> Chosen:
    """Append the last token of each row up to the last active one; the next ones, as NumPy arrays.

    The time of a step grows with the number of rows, so free rows at the end are left out.
    """
    used = int(np.flatnonzero(rows.active)[-1]) + 1
    count = min(count for count in self.plan.row_counts if count >= used)
    decode = self._programs['decode', count]
    self._cache, chosen = decode(self._params, self._cache, RowStates(*(x[:count] for x in rows)))
    return _fetched(chosen, report)


def _fetched(chosen: Chosen, report: bool) -> Chosen:
  needed = chosen if report else chosen._replace(top_logprobs=None, top_tokens=None)
  fetched: Chosen = jax.device_get(needed)
  return fetched


def _padded(prompt: Any, width: int) -> Prompt:
  tokens = np.zeros((1, width), np.int32)
  tokens[0, : len(prompt)] = prompt
  return Prompt(tokens, np.array([len(prompt)], np.int32))  # type: ignore[arg-type]
