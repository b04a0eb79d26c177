"""A small model that drafts from a shortlist: common tokens, and those of each row's own prompt.

A shallow drafter spends most of its time on the table of the vocabulary. A drafter made of two of
SmolLM2's layers has 35 million parameters, 28 million of them in that table. A shortlist leaves
some thousand rows of it. A token outside has probability 0 and is left to the large model: greedy
lossless answers stay the same, and sampled ones keep their law. FR-Spec, Zhao et al. 2025,
https://arxiv.org/abs/2502.14856, drafts from common tokens; those of the prompt are names and
numbers that answers repeat.

Axes: B batch, L tokens of a step, S prompt, N shortlist, V vocabulary, D width.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from cascades.data.corpus import Data
from cascades.data.records import AnyRecords
from cascades.inference import speculation
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.tasks.task import Task
from cascades.types import Batch, LanguageModel, Prompt

log = logging.getLogger(__name__)

CHUNK = 4096  # rows whose tokens are counted at a time


class ShortlistCache(NamedTuple):
  """Cache of the model, and the rows of the table that its answers may need.

  Attributes:
    length: Number of tokens read.
    read: Cache of the model; its own length is overwritten by this one.
    common: Rows of the shortlist, [N, D].
    prompt: Tokens of the prompts; behind a prompt's end, a token of the shortlist.
    rows: Rows of these tokens, [B, S, D].
  """

  length: Int[Array, 'B']
  read: Any
  common: Any
  prompt: Int[Array, 'B S']
  rows: Any


class Shortlisted(nnx.Module):
  """A drafter whose logits are -inf outside of the shortlist and the prompt.

  It is a `types.LanguageModel` for batches whose rows stay together, as those of `speculation` do.
  """

  def __init__(self, model: LanguageModel[Any], tokens: Int[Array, 'N']) -> None:
    """Wraps a model in place: its own `prefill` and `extend` then return final states.

    Args:
      model: Model of the same vocabulary.
      tokens: The shortlist, without repetitions.
    """
    self.plain: Any = type(model)
    self.model: Any = model
    self.tokens = nnx.Variable(tokens)
    name = f'StatesOf{self.plain.__name__}'
    self.model.__class__ = type(name, (self.plain,), {'readout': _states})

  def hidden(self, batch: Batch, key: Array | None = None) -> Float[Array, 'B T D']:
    states: Array = self.model.hidden(batch, key)
    return states

  @property
  def table(self) -> Any:
    return self.model.table

  def readout(self, hidden: Float[Array, '*n D'], table: Any = None) -> Float[Array, '*n V']:
    """Logits of the whole vocabulary, as the model alone gives them."""
    logits: Array = self.plain.readout(self.model, hidden, table)
    return logits

  def prefill(self, prompt: Prompt, max_len: int) -> tuple[Float[Array, 'B V'], ShortlistCache]:
    states, read = self.model.prefill(prompt, max_len)
    tokens = self.tokens[...]
    inside = jnp.arange(prompt.tokens.shape[1]) < prompt.length[:, None]
    own = jnp.where(inside, prompt.tokens, tokens[0])
    cache = ShortlistCache(read.length, read, self.table[tokens], own, self.table[own])
    return self._logits(states[:, None], cache)[:, 0], cache

  def extend(
    self, tokens: Int[Array, 'B L'], cache: ShortlistCache
  ) -> tuple[Float[Array, 'B L V'], ShortlistCache]:
    states, read = self.model.extend(tokens, cache.read._replace(length=cache.length))
    return self._logits(states, cache), cache._replace(length=read.length, read=read)

  def _logits(self, states: Float[Array, 'B L D'], cache: ShortlistCache) -> Float[Array, 'B L V']:
    (B, L, _), V = states.shape, speculation.vocab_size(self)
    own = jax.vmap(self.readout)(states, cache.rows)
    nothing = jnp.full((B, L, V), -jnp.inf)
    logits = nothing.at[..., self.tokens[...]].set(self.readout(states, cache.common))
    at = (jnp.arange(B)[:, None, None], jnp.arange(L)[:, None], cache.prompt[:, None])
    return logits.at[at].set(own)


def _states(self: Any, hidden: Array, table: Any = None) -> Array:
  """The readout of a model that ends with its final states."""
  del self, table
  return hidden


def common_tokens(
  answers: Iterable[Int[np.ndarray, '_']], count: int, *, vocab_size: int, always: Sequence[int]
) -> list[int]:
  """The tokens that these answers have most often.

  Args:
    answers: Tokens of one answer or of many.
    count: Largest number of tokens; no less than those of `always`.
    vocab_size: Size of the vocabulary.
    always: Tokens that are among them however rare they are, as those that end an answer.

  Raises:
    ValueError: The answers have no tokens.
  """
  counts = np.zeros(vocab_size, np.int64)
  for tokens in answers:
    counts += np.bincount(np.asarray(tokens, np.int64), minlength=vocab_size)
  if not counts.any():
    raise ValueError('there are no answers whose tokens could be counted.')
  counts[list(always)] += counts.sum()
  ordered = np.argsort(-counts, kind='stable')[: max(count, len(always))]
  return sorted(ordered[counts[ordered] > 0].tolist())


def from_answers(
  model: TrainedModel, data: Data, count: int, prompted: Callable[[Task], Task] = lambda task: task
) -> TrainedModel:
  """The model with the most common tokens of a task's training answers as its shortlist.

  Args:
    model: The model.
    data: Rows of the task, or of each task of a mixture.
    count: Largest number of tokens.
    prompted: Changes the prompts of a task, behind which its answers may have other tokens.

  Raises:
    ValueError: The split 'train' cannot be read, or has no answers.
  """
  task = data.required_task
  try:
    splits = [
      data.corpus(model.vocabulary, model.architecture, task=prompted(own)).open(split)
      for own, its_splits in task.task_splits(['train'])
      for split in its_splits
    ]
    tokens = common_tokens(
      itertools.chain.from_iterable(map(_answers, splits)),
      count,
      vocab_size=model.vocab_size,
      always=model.vocabulary.eos_ids,
    )
  except (ValueError, FileNotFoundError) as error:
    raise ValueError(
      f'SHORTLIST={count} counts the tokens of the answers in the split train of {task.name}: '
      f'{error}'
    ) from error
  log.info('shortlist: %d common tokens of %d', len(tokens), model.vocab_size)
  return attach(model, tokens)


def _answers(records: AnyRecords) -> Iterator[Int[np.ndarray, '_']]:
  """Tokens of all targets, of CHUNK rows at a time."""
  for start in range(0, len(records), CHUNK):
    rows = records.tokens(range(start, min(start + CHUNK, len(records))))
    yield np.concatenate([targets for _, targets in rows])


def attach(model: TrainedModel, tokens: Sequence[int]) -> TrainedModel:
  """The model with a shortlist, on the active mesh, as a drafter; it shares its parameters.

  Raises:
    ValueError: The model has a memory, whose entries name tokens of the whole vocabulary.
  """
  if 'memory' in model.described:
    raise ValueError('A model with a memory cannot draft from a shortlist: leave one of them out.')
  listed = np.asarray(tokens, np.int32)
  placed = jnp.asarray(partitioning.place_whole(listed))
  wrapped = Shortlisted(nnx.merge(model.graph, model.params), placed)
  size, width = jax.tree.leaves(wrapped.table)[0].shape
  graph, state = nnx.split(wrapped)
  described = {
    **model.described,
    'shortlist': f'{len(listed)} tokens, {hashlib.sha256(listed.tobytes()).hexdigest()[:16]}',
    # The rows of a prompt's own tokens are left out.
    'flops_per_token': model.described['flops_per_token'] - 2 * width * (size - len(listed)),
  }
  return model._replace(graph=graph, params=nnx.to_pure_dict(state), described=described)
