"""A pair of models in this process that write one answer: the small drafts, the large verifies.

Under the rule 'lossless' answers are those of the large model, in fewer of its steps; other rules
are speculative cascades, which keep more of the small model's tokens. One question is answered at a
time, greedily and as a whole; the others wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent import futures
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from cascades import target_distributions
from cascades.data import converters
from cascades.inference import latency, trained_model
from cascades.inference.draft_planner import StepCosts
from cascades.inference.speculator import Speculator
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.interop import companions
from cascades.runtime import progress, ranges
from cascades.runtime.partitioning import Devices
from cascades.serving import local_model, slots
from cascades.serving.answer_text import GrowingAnswer, NextToken
from cascades.serving.exchanges import AnyPrompt, Finish, ModelError, Piece, Question
from cascades.serving.prompt_reader import Messages, PromptReader
from cascades.serving.slots import Room
from cascades.tasks.chats import PromptFormat
from cascades.types import Generation

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Drafting:
  """Use of a small model's drafts.

  Attributes:
    rule: Name in `target_distributions.RULES`.
    alpha: Number of the rule.
    drafts: Number of tokens that the small model drafts before the large one reads them.
    adaptive: Drafts up to that many tokens: as many as save time, by the steps that are measured at
      the start and the share of drafts that is accepted. A lossless rule drafts none where none
      save 5 % of the time; it is then the large model alone.
  """

  rule: str = 'lossless'
  alpha: float = 0.0
  drafts: int = 4
  adaptive: bool = False

  def __post_init__(self) -> None:
    target_distributions.named(self.rule, self.alpha)
    ranges.check({'drafts': self.drafts}, least=1, below=1 << 10, integer=True)
    if not isinstance(self.adaptive, bool):
      raise ValueError(f'adaptive={self.adaptive!r:.80} must be True or False.')


def load(
  small: Checkpoint,
  large: Checkpoint,
  room: Room,
  drafting: Drafting = Drafting(),
  *,
  devices: Devices = Devices(),
  name: str | None = None,
  prompts: PromptFormat | None = None,
  messages: Messages | None = None,
) -> SpeculativeModel:
  """Load a pair of models and start to compile their programs.

  Args:
    small: Checkpoint of the model that drafts.
    large: Checkpoint of the model that verifies.
    room: Lengths, and number of requests that may wait. There are no slots.
    drafting: Use of the drafts.
    devices: Mesh and sharding rules.
    name: Name of the pair in responses; None for that of the large model's directory.
    prompts: Format of a text; see `local_model.load`.
    messages: How conversations are read; see `local_model.load`.

  Raises:
    ValueError: There is no such checkpoint, or the models cannot decode together.
  """
  mesh = devices.mesh()
  own = Devices(lambda: mesh, devices.rules)
  with own.use():
    drafter, verifier = (
      trained_model.load(checkpoint, rules=devices.rules) for checkpoint in (small, large)
    )
    costs = _measured(drafter, verifier, room, drafting) if drafting.adaptive else None
    speculator = Speculator(
      drafter, verifier, drafting.rule, gamma=drafting.drafts, max_tokens=room.max_tokens,
      costs=costs,
    )  # fmt: skip
  directory = epath.Path(verifier.described['checkpoint'])
  converted = verifier.described['step'] == 0
  reader = PromptReader(
    verifier.vocabulary,
    verifier.architecture,
    directory / companions.FOLDER,
    prompts=prompts,
    messages=messages or ('template' if converted else 'text'),
  )
  return SpeculativeModel(
    name or directory.name, speculator, reader, room, alpha=drafting.alpha, devices=own
  )


def _measured(
  small: TrainedModel, large: TrainedModel, room: Room, drafting: Drafting
) -> StepCosts:
  """Seconds of steps behind the longest prompt, by which drafts are planned."""
  prompt = converters.pad([(np.ones(room.max_prompt, np.int32),)], room.max_prompt)
  costs = latency.step_costs(
    small, large, prompt, most=drafting.drafts, max_tokens=room.max_tokens
  )  # fmt: skip
  log.info(
    'a step of the small model takes %.3g ms, the large one %s ms over 1 to %d tokens',
    costs.small * 1e3, ', '.join(f'{s * 1e3:.3g}' for s in costs.large), len(costs.large),
  )  # fmt: skip
  return costs


class SpeculativeModel:
  """A `Model` of two models.

  Attributes:
    name: Name in responses.
    described: Size, checkpoint and types of the large model, as in manifests.
    failure: Why it cannot answer any more.
  """

  def __init__(
    self,
    name: str,
    speculator: Speculator,
    reader: PromptReader,
    room: Room,
    *,
    alpha: float,
    devices: Devices,
  ) -> None:
    """Starts a thread that compiles a program for each length of prompts.

    Args:
      name: Name in responses.
      speculator: The pair.
      reader: Reads prompts.
      room: Lengths, and number of requests that may wait.
      alpha: Number of the rule.
      devices: Mesh that holds the models.
    """
    large = speculator.models[1]
    self.name, self.described, self.failure = name, large.described, ''
    self._vocabulary, self._speculator, self._reader = large.vocabulary, speculator, reader
    self._room, self._alpha, self._devices = room, alpha, devices
    self._lengths = slots.prompt_lengths(room.max_prompt)
    self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix='speculation')
    self._pending, self._seconds = 0, 1.0
    self._warm = self._thread.submit(self._compile)

  @property
  def ready(self) -> bool:
    """True once all programs are compiled, unless that failed."""
    return self._warm.done() and not self.failure

  def wait_until_ready(self) -> None:
    """Wait for the programs. Raises ModelError if they could not be compiled."""
    futures.wait([self._warm])
    if self.failure:
      raise ModelError(self.failure)

  def count(self, prompt: AnyPrompt) -> float:
    """Tokens of a prompt; nan of one that it refuses."""
    return self._reader.count(prompt)

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """Answer in pieces, one for each token; see `exchanges.Model.answer`.

    The tokens come together once the answer is complete, with log-probabilities of the large model
    and without alternatives.
    """
    local_model.check(question, alternatives=slots.ALTERNATIVES)
    if question.temperature:
      raise ValueError(
        f'temperature={question.temperature:g}: models that write an answer together decode '
        'greedily; leave it out.'
      )
    tokens = self._reader.tokens(question.prompt)
    local_model.check_length(tokens, self._room.max_prompt)
    if self.failure:
      raise ModelError(self.failure)
    if self._pending > self._room.max_waiting:
      raise ModelError(
        f'{self._pending} questions wait for an answer, which is all that there is room for',
        retry_after=max(1.0, self._seconds * self._pending),
      )
    began = time.monotonic()
    with self._counted():
      try:
        generation, started = await asyncio.wrap_future(
          self._thread.submit(self._unless_closed, tokens)
        )
      except RuntimeError as error:
        raise ModelError(f'the models failed: {error!r:.200}') from error
    most = min(question.max_tokens or self._room.max_tokens, self._room.max_tokens)
    pieces = GrowingAnswer(self._vocabulary, question.stop, prompt_tokens=len(tokens))
    for token, logprob in zip(generation.tokens[:most], generation.logprobs[:most], strict=True):
      is_last = int(token) in self._vocabulary.eos_ids
      count = pieces.count + 1
      finish: Finish | None = 'stop' if is_last else 'length' if count == most else None
      yield pieces.add(NextToken(int(token), float(logprob), (), finish, started - began))
      if pieces.finish:
        return

  def close(self) -> None:
    """Refuse new questions, finish the one that is being answered, and give up the others."""
    self.failure = self.failure or 'the models are shutting down'
    self._thread.shutdown()

  @contextlib.contextmanager
  def _counted(self) -> Iterator[None]:
    self._pending += 1
    try:
      yield
    finally:
      self._pending -= 1

  def _compile(self) -> None:
    try:
      logged = progress.Counted[Any]('program', len(self._lengths), lambda _: (1, 0))
      for _ in logged(map(self._compile_for, self._lengths)):
        pass
    except Exception as error:
      log.exception('The models cannot decode together.')
      self.failure = f'the models have no program: {error!r:.200}'

  def _compile_for(self, length: int) -> None:
    prompt = converters.pad([(np.ones(length, np.int32),)], length)
    with self._devices.use():
      self._speculator.compile(prompt, np.array([0]), self._alpha)

  def _unless_closed(self, tokens: Int[np.ndarray, 'n']) -> tuple[Generation, float]:
    if self.failure:
      raise ModelError(self.failure)
    return self._speculate(tokens)

  def _speculate(self, tokens: Int[np.ndarray, 'n']) -> tuple[Generation, float]:
    """Tokens and log-probabilities of an answer, and when it was begun."""
    started = time.monotonic()
    width = min(length for length in self._lengths if length >= len(tokens))
    with self._devices.use():
      answer = self._speculator.generate(
        converters.pad([(tokens,)], width), np.array([0]), self._alpha
      )
    mask = answer.mask[0]
    self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
    return answer._replace(
      tokens=answer.tokens[0, mask], logprobs=answer.logprobs[0, mask]
    ), started
