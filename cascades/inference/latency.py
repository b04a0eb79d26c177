"""Seconds of answers and of the steps they consist of, measured on one machine.

Turns alternate between what is compared, so that a machine that slows down slows all alike; the
median of the turns counts. Turns of answers are written at once, and a second run adds those that
are missing. Steps of batches of one size are measured together, all again where one is missing.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax import Array
from jaxtyping import Int

from cascades.inference.answers import Answered
from cascades.inference.draft_planner import StepCosts
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import files, origins, partitioning, progress
from cascades.types import Params, Prompt

Clock: TypeAlias = Callable[[], float]
Key = TypeVar('Key')
Answerer: TypeAlias = Callable[[Prompt, Int[np.ndarray, 'B']], Answered]
# Models by name, each with the numbers of tokens that its steps read.
StepModels: TypeAlias = Mapping[str, tuple[TrainedModel, Sequence[int]]]

STEPS = 16  # of a model in one program, so that starting it weighs little
REPEATS = 5  # of such a program


class TimedBatch(NamedTuple):
  """A batch of prompts, of which the first `rows` count; the others pad it."""

  prompts: Prompt
  row_ids: Int[np.ndarray, 'B']
  rows: int


class LatencyFile:
  """Measurements in a JSON file, as docs/speculative.md describes it."""

  def __init__(self, path: epath.Path, origin: Mapping[str, Any], *, overwrite: bool) -> None:
    """Opens the file.

    Args:
      path: The file, which need not exist.
      origin: Machine, models and rows that are measured, as JSON.
      overwrite: Start anew where the file has measurements of another origin.

    Raises:
      ValueError: naming the differences, if the file has measurements of another origin.
    """
    self.path = path
    self.content: dict[str, Any] = {**origin, 'points': {}, 'steps': {}, 'prompts': {}}
    if not path.exists():
      return
    try:
      stored = json.loads(path.read_bytes())
      stored['points'], stored['steps'], stored['prompts']
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{path} is damaged ({error!r:.80}): remove it to measure again.') from error
    different = origins.differences(stored, origin)
    if different and not overwrite:
      raise ValueError(
        f'{path} holds times of another origin: {"; ".join(different)}. Name another '
        'SPECULATE_OUTPUT_DIR, leave latency out with LATENCY_BATCHES=(), or replace it with '
        'OVERWRITE=True.'
      )
    self.content = self.content if different else stored

  def entry(self, *names: object) -> dict[str, Any]:
    """Object at these nested keys, an empty one where there is none."""
    return functools.reduce(
      lambda level, name: level.setdefault(str(name), {}), names, self.content
    )

  def write(self) -> None:
    """Write all measurements."""
    files.write(self.path, json.dumps(self.content, indent=1) + '\n')


def machine() -> str:
  """Devices of JAX, the processor, and its cores."""
  info = epath.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  devices = partitioning.active_mesh().devices.flat
  processor = f'{(names or [platform.machine()])[0]}, {os.cpu_count()} cores'
  return f'{devices[0].device_kind} x {len(devices)}; {processor}'


def measure_answers(
  file: LatencyFile,
  answerers: Mapping[str, Answerer],
  batches: Mapping[int, Sequence[TimedBatch]],
  *,
  turns: int,
  clock: Clock = time.perf_counter,
) -> None:
  """Measure seconds per answer of every answerer and size of batches.

  Args:
    file: Takes the measurements.
    answerers: Functions that answer a batch, by name of the point.
    batches: Batches of each size.
    turns: Number of measurements of each.
    clock: Seconds.
  """
  pending = [
    (turn, name, size)
    for turn in range(turns)
    for name in answerers
    for size in batches
    if len(file.entry('points', name, size).get('turns', ())) <= turn
  ]
  ready: set[tuple[str, int]] = set()

  def measured() -> Iterator[int]:
    for _, name, size in pending:
      answer = answerers[name]
      if (name, size) not in ready:  # compiles
        shapes = {batch.prompts.tokens.shape: batch for batch in batches[size]}
        for batch in shapes.values():
          answer(batch.prompts, batch.row_ids)
        ready.add((name, size))
      start = clock()
      masks = [answer(batch.prompts, batch.row_ids).generation.mask for batch in batches[size]]
      seconds = clock() - start
      rows = sum(batch.rows for batch in batches[size])
      tokens = sum(
        int(mask[: batch.rows].sum()) for mask, batch in zip(masks, batches[size], strict=True)
      )
      entry = file.entry('points', name, size)
      entry['turns'] = [*entry.get('turns', ()), seconds / rows]
      entry |= {
        'seconds_per_answer': statistics.median(entry['turns']),
        'tokens_per_answer': tokens / rows,
      }
      file.write()
      yield tokens

  sizes: Callable[[int], tuple[int, int]] = lambda tokens: (1, tokens)
  report = progress.Counted('timing', len(pending), sizes)
  for _ in report(measured()):
    pass


class StepTimes(NamedTuple):
  """Median seconds of a model's calls.

  Attributes:
    prompt: Reading the prompts of a batch.
    steps: A greedy step over each number of tokens.
  """

  prompt: float
  steps: Mapping[int, float]


def measure_steps(
  file: LatencyFile, models: StepModels, prompts: Mapping[int, Prompt], *, max_tokens: int
) -> None:
  """Measure the calls that answers consist of, for each size of batches.

  Args:
    file: Takes seconds of prompts, and of steps over each number of tokens.
    models: Each model with the numbers of tokens of its steps, by 'small', 'drafter' and 'large'.
    prompts: A batch of each size.
    max_tokens: Longest answer, which the caches have room for.
  """

  def stored(name: str, size: int) -> bool:
    steps, widths = file.entry('steps', name, size), models[name][1]
    return all(str(w) in steps for w in widths) and str(size) in file.entry('prompts', name)

  for size, batch in prompts.items():
    if all(stored(name, size) for name in models):
      continue
    for name, times in step_seconds(models, batch, max_tokens=max_tokens).items():
      file.entry('prompts', name)[str(size)] = times.prompt
      file.entry('steps', name)[str(size)] = {str(w): s for w, s in times.steps.items()}
    file.write()


def step_seconds(models: StepModels, prompts: Prompt, *, max_tokens: int) -> dict[str, StepTimes]:
  """Times of all models and widths, whose turns alternate: it is their ratios that count.

  Args:
    models: Models on the active mesh, each with the numbers of tokens of its steps, by name.
    prompts: Prompts of one batch.
    max_tokens: Longest answer.
  """
  calls = {
    (name, width): call
    for name, (model, widths) in models.items()
    for width, call in _calls(model, prompts, widths, max_tokens + max(widths) + 1).items()
  }
  seconds = _median_seconds(calls)
  return {
    name: StepTimes(seconds[name, 0], {width: seconds[name, width] / STEPS for width in widths})
    for name, (_, widths) in models.items()
  }


def step_costs(
  small: TrainedModel, large: TrainedModel, prompts: Prompt, *, most: int, max_tokens: int
) -> StepCosts:
  """Seconds that a `DraftPlanner` of up to `most` drafts needs, for prompts of one batch."""
  times = step_seconds(
    {'small': (small, [1]), 'large': (large, range(1, most + 2))}, prompts, max_tokens=max_tokens
  )
  return StepCosts(times['small'].steps[1], [*times['large'].steps.values()])


def _calls(
  model: TrainedModel, prompts: Prompt, widths: Sequence[int], room: int
) -> dict[int, Callable[[], Any]]:
  """STEPS greedy steps by their width, and at 0 the reading of the prompts."""

  @jax.jit
  def prefill(params: Params, prompts: Prompt) -> tuple[Array, Any]:
    logits, cache = nnx.merge(model.graph, params).prefill(prompts, room)
    return jnp.argmax(logits, -1), cache

  @functools.partial(jax.jit, static_argnames='width')
  def steps(params: Params, token: Array, cache: Any, *, width: int) -> Array:
    network = nnx.merge(model.graph, params)

    def step(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
      token, cache = carry
      tokens = jnp.broadcast_to(token[:, None], (len(token), width))
      logits, longer = network.extend(tokens, cache)
      return jnp.argmax(logits[:, -1], -1), longer._replace(length=cache.length)

    return jax.lax.fori_loop(0, STEPS, step, (token, cache))[0]

  placed = partitioning.place_whole(prompts)
  start = prefill(model.params, placed)
  return {0: lambda: prefill(model.params, placed)} | {
    width: functools.partial(steps, model.params, *start, width=width) for width in widths
  }


def _median_seconds(calls: Mapping[Key, Callable[[], Any]]) -> dict[Key, float]:
  """Median of the REPEATS turns of each call, after one that compiles."""
  for call in calls.values():
    jax.block_until_ready(call())
  seconds: dict[Key, list[float]] = {key: [] for key in calls}
  for _ in range(REPEATS):
    for key, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[key].append(time.perf_counter() - start)
  return {key: statistics.median(turns) for key, turns in seconds.items()}
