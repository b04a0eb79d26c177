"""Batches of a training run whose answers may depend on the model: on-policy distillation.

The rows of a step are fixed by the task; where `AnswerSources` says `on_policy`, the small model
answers their prompts itself, and the large one judges every token of these answers. Sampling is a
program of its own, on the mesh of training, compiled once. It is a function of the state: the
parameters, the run's key and the step determine every token, so that a run that resumes draws the
same samples.

With `sample_every` = n, the steps s, s + 1, ..., s + n - 1 (s a multiple of n) take their samples
from the model before step s, all at once. They are not part of a checkpoint. So that a run that
resumes can draw them again, it saves and stops only between two such blocks.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import UInt32

from cascades import decoding
from cascades.data.answer_sources import AnswerSources, Unanswered
from cascades.data.corpus import Corpus, Data
from cascades.runtime import partitioning
from cascades.training import loop, train_step
from cascades.training.setup import AbstractRun, LargeModel, Schedule
from cascades.training.train_step import TrainState
from cascades.types import Batch, Generation, LanguageModel, Params

# Samples the rows of `sample_every` steps, which alternate, as one batch for each step.
Sample: TypeAlias = Callable[[TrainState, Unanswered], tuple[Batch, ...]]

_STREAM = np.uint32(0xFFFFFFFF)  # of keys; steps, whose keys dropout takes, are smaller


def check(data: Data, large: LargeModel, schedule: Schedule) -> None:
  """Raises ValueError if sources of answers do not fit the other settings of a run."""
  sources, longest = data.sources, data.lengths['targets']
  if sources.share('fixed') == 1:
    return
  if data.pack_length is not None:
    raise ValueError(
      f'PACK_LENGTH={data.pack_length} packs the answers of the task, and '
      f'FIXED_FRACTION={sources.fixed_fraction:g} replaces some of them: leave PACK_LENGTH out, or '
      'raise FIXED_FRACTION to 1.'
    )
  if large.teacher_cache is not None:
    raise ValueError(
      f'TEACHER_CACHE={large.teacher_cache!r} holds outputs for the answers of the task alone, and '
      f'FIXED_FRACTION={sources.fixed_fraction:g} trains on others too: these need the large model '
      'itself. Name it as LARGE_CHECKPOINT_PATH, without TEACHER_CACHE.'
    )
  if not sources.share('on_policy'):
    return
  if large.checkpoint_path is None:
    raise ValueError(
      f'ON_POLICY_FRACTION={sources.on_policy_fraction:g} trains on samples of the small model, '
      'which only a large model can judge: name it as LARGE_CHECKPOINT_PATH.'
    )
  if large.steps is not None and large.steps < schedule.train_steps:
    raise ValueError(
      f'LARGE_STEPS={large.steps} ends the large model before TRAIN_STEPS={schedule.train_steps}, '
      'and samples of the small model teach nothing without it: leave LARGE_STEPS out, or raise '
      'FIXED_FRACTION to 1.'
    )
  if sources.sample_tokens is not None and sources.sample_tokens > longest:
    raise ValueError(
      f'SAMPLE_TOKENS={sources.sample_tokens} is more than the {longest} tokens of '
      "TASK_FEATURE_LENGTHS['targets']: raise these, or sample fewer."
    )
  intervals = {'SAVE_EVERY': schedule.save_every, 'TRAIN_STEPS': schedule.train_steps}
  for name, steps in intervals.items():
    if steps % sources.sample_every:
      raise ValueError(
        f'{name}={steps} is not divisible by SAMPLE_EVERY={sources.sample_every}: a run resumes '
        'only between two rounds of samples. Choose a multiple.'
      )


def batches(
  stream: Iterator[Batch | Unanswered], sample: Sample, *, every: int
) -> loop.Batches[TrainState]:
  """The `batches` of `loop.run`: a stream of rows, answered by the small model where they are not.

  Args:
    stream: This process's rows of the first step and later ones, from `Corpus.training`.
    sample: Answers them, from `sampler`.
    every: Steps whose samples are drawn together.
  """
  pending: collections.deque[Batch] = collections.deque()

  def take(state: TrainState, step: int) -> Batch:
    if not pending:
      rows = list(itertools.islice(stream, every - (step - 1) % every))
      pending.extend(answered(rows, every, functools.partial(sample, state)))
    return pending.popleft()

  return take


def answered(
  rows: Sequence[Batch | Unanswered],
  every: int,
  sample: Callable[[Unanswered], tuple[Batch, ...]],
) -> list[Batch]:
  """Batches of at most `every` steps, those without answers sampled together.

  Steps with answers, and missing ones, have empty prompts among them, to keep the shape.
  """
  prompts = [step_rows for step_rows in rows if isinstance(step_rows, Unanswered)]
  if not prompts:
    return [step_rows for step_rows in rows if isinstance(step_rows, Batch)]
  empty = jax.tree.map(np.zeros_like, prompts[0])
  steps = [step_rows if isinstance(step_rows, Unanswered) else empty for step_rows in rows]
  steps += [empty] * (every - len(rows))
  # Rows of the steps alternate, so that each device has its own rows of every step.
  together = jax.tree.map(lambda *each: np.stack(each, 1).reshape(-1, *each[0].shape[1:]), *steps)
  sampled = sample(partitioning.place_batch(together))
  return [
    new if isinstance(step_rows, Unanswered) else step_rows
    for step_rows, new in zip(rows, sampled, strict=False)
  ]


def sampler(
  corpus: Corpus, sources: AnswerSources, abstract: AbstractRun, base: Params | None
) -> Sample:
  """Compiled function from a state and the prompts of `sample_every` steps to their batches.

  No gradient reaches the parameters through it.

  Args:
    corpus: The rows' vocabulary and lengths.
    sources: Settings of the samples.
    abstract: The run, of which the small model samples.
    base: Its own parameters, if only adapters are trained.
  """
  small = abstract.small
  vocab_size = train_step.common_vocabulary(small, abstract.large)
  every, longest = sources.sample_every, corpus.lengths['targets']

  def draw(
    params: Params, base: Params | None, key: UInt32[Array, '2'], step: Array, rows: Unanswered
  ) -> tuple[Batch, ...]:
    stream = jax.random.fold_in(jax.random.wrap_key_data(key), _STREAM)
    batch = sample_answers(
      small.bind(jax.lax.stop_gradient(params), base),
      rows,
      key=jax.random.fold_in(stream, step),
      eos_id=corpus.vocabulary.eos_ids,
      sampler=lambda logits, keys: sources.sampler(logits[:, :vocab_size], keys),
      max_tokens=sources.sample_tokens or longest,
      longest=longest,
    )
    alternating = jax.tree.map(lambda x: x.reshape(-1, every, *x.shape[1:]), batch)
    return tuple(jax.tree.map(lambda x: x[:, i], alternating) for i in range(every))  # noqa: B023

  rows_split = NamedSharding(partitioning.active_mesh(), PartitionSpec(partitioning.BATCH))
  program = jax.jit(draw, out_shardings=rows_split)

  def sample(state: TrainState, rows: Unanswered) -> tuple[Batch, ...]:
    sampled = program(state.params, base, state.key, state.step, rows)
    partitioning.wait_on_virtual_devices(sampled)
    return sampled

  return sample


def sample_answers(
  model: LanguageModel,
  rows: Unanswered,
  *,
  key: Array,
  eos_id: int | Sequence[int],
  sampler: decoding.Sampler,
  max_tokens: int,
  longest: int,
) -> Batch:
  """Batch of answers that the model samples, end of sequence included and nothing behind it.

  Args:
    model: The small model.
    rows: Prompts; an empty one gets no answer.
    key: Key of the samples.
    eos_id: Token that ends an answer, or several of them.
    sampler: Draws a token.
    max_tokens: Most tokens of an answer; a longer one is cut, without an end of sequence.
    longest: Target tokens that the batch has room for.
  """
  answer = decoding.generate(
    model, rows.encoder or rows.context, max_len=max_tokens, eos_id=eos_id, sampler=sampler, key=key
  )
  return teacher_forced(rows, answer, longest)


def teacher_forced(rows: Unanswered, answer: Generation, longest: int) -> Batch:
  """Batch of prompts and their answers, as `converters.assemble` makes it on the host."""
  context, encoder = rows
  text = jnp.arange(context.tokens.shape[1] + longest)
  position = text - context.length[:, None]  # in the answer
  size = answer.mask.sum(1, dtype=jnp.int32)
  counted = (position >= 0) & (position < size[:, None])
  pick = lambda tokens, index: jnp.take_along_axis(
    tokens, jnp.clip(index, 0, tokens.shape[1] - 1), axis=1
  )
  words = pick(answer.tokens, position)
  prompt = pick(context.tokens, jnp.broadcast_to(text, position.shape))
  tokens = jnp.where(counted, words, jnp.where(position < 0, prompt, 0))
  used = text < (context.length + size - 1)[:, None]
  return Batch(
    inputs=jnp.where(used, tokens, 0)[:, :-1],
    targets=tokens[:, 1:],
    weights=counted[:, 1:].astype(jnp.float32),
    encoder=None if encoder is None else encoder.tokens,
  )


def noted(
  step: Callable[[Any, Batch], tuple[Any, loop.Sums]],
  sources: AnswerSources,
  seed: int,
  *,
  start: int,
) -> Callable[[Any, Batch], tuple[Any, loop.Sums]]:
  """A step whose sums tell its source too, and the age of its samples in steps.

  Runs of the task's own answers alone are left as they are. The first call is of step `start`.
  """
  if sources.share('fixed') == 1:
    return step
  numbers = itertools.count(start)

  def run(state: Any, batch: Batch) -> tuple[Any, loop.Sums]:
    number = next(numbers)
    source = sources.of_step(seed, number)
    notes = {name: float(name == source) for name in loop.SOURCES}
    age = min(number % sources.sample_every, number - start) if source == 'on_policy' else 0
    state, sums = step(state, batch)
    return state, {**sums, **notes, 'sample_age': float(age)}

  return run
