"""A model of a run directory in this process, which answers many questions at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sized

from etils import epath

from cascades.checkpoints import store
from cascades.inference import trained_model
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.interop import companions
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.runtime import ranges
from cascades.runtime.partitioning import Devices
from cascades.serving import slots
from cascades.serving.answer_text import GrowingAnswer
from cascades.serving.engine import Engine, NextToken, Request
from cascades.serving.exchanges import AnyPrompt, ModelError, Piece, Question
from cascades.serving.prompt_reader import Messages, PromptReader
from cascades.serving.slots import Room, RoomPlan
from cascades.tasks.chats import PromptFormat


def plan(checkpoint: Checkpoint, room: Room, devices: Devices) -> RoomPlan:
  """Plan the memory of a model without loading it.

  Args:
    checkpoint: Run directory and types.
    room: Slots or memory, and lengths.
    devices: Mesh and sharding rules.

  Raises:
    ValueError: There is no such checkpoint, or the memory does not hold the model.
  """
  directory, _ = store.locate(checkpoint.path, checkpoint.which)
  config = configs.from_description(
    store.read_description(directory)['model']
    | ({'dtype': checkpoint.precision} if checkpoint.precision else {})
  )
  with devices.use():
    abstract = abstract_model(config, devices.rules, dtype=checkpoint.weights or config.dtype)
    return slots.plan(*abstract, room)


def load(
  checkpoint: Checkpoint,
  room: Room,
  *,
  devices: Devices = Devices(),
  name: str | None = None,
  prompts: PromptFormat | None = None,
  messages: Messages | None = None,
) -> LocalModel:
  """Load a model and start to compile its programs.

  Args:
    checkpoint: Run directory and types.
    room: Slots or memory, and lengths.
    devices: Mesh and sharding rules.
    name: Name of the model in responses; None for that of its directory.
    prompts: Format of a text, as PROMPTS of `infer`; None reads it as a prompt of training.
    messages: How conversations are read; see `PromptReader`. None takes the chat template of a
      model that was converted; one that was trained here reads texts alone.

  Raises:
    ValueError: There is no such checkpoint, its files do not belong together, or the memory does
      not hold the model.
  """
  mesh = devices.mesh()
  with Devices(lambda: mesh, devices.rules).use():
    model = trained_model.load(checkpoint, rules=devices.rules)
  directory = epath.Path(model.described['checkpoint'])
  converted = model.described['step'] == 0
  reader = PromptReader(
    model.vocabulary,
    model.architecture,
    directory / companions.FOLDER,
    prompts=prompts,
    messages=messages or ('template' if converted else 'text'),
  )
  engine = Engine(model, room, mesh=mesh, rules=devices.rules)
  return LocalModel(name or directory.name, model, reader, engine)


class LocalModel:
  """A `Model` over an engine.

  Attributes:
    name: Name in responses.
    engine: Continuous batching; its `plan`, `ready` and `failure` are those of the model.
    described: Size, checkpoint and types of the model, as in manifests.
    tokens: Gives the tokens of a prompt.
  """

  def __init__(self, name: str, model: TrainedModel, reader: PromptReader, engine: Engine) -> None:
    self.name, self.engine = name, engine
    self.described = model.described
    self._reader, self.tokens = reader, reader.tokens
    self._vocabulary = model.vocabulary

  @property
  def ready(self) -> bool:
    """True once all programs are compiled, until the model closes or dies."""
    return self.engine.ready

  @property
  def failure(self) -> str:
    """Reason why the model is dead; empty otherwise."""
    return self.engine.failure

  def count(self, prompt: AnyPrompt) -> float:
    """Tokens of a prompt; nan of one that it refuses."""
    return self._reader.count(prompt)

  async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """Answer in pieces, one for each token; see `exchanges.Model.answer`.

    An answer has at most the tokens that the plan has room for. Every piece has the counts so far.
    """
    request = self._request(question)
    loop = asyncio.get_running_loop()
    delivered: asyncio.Queue[NextToken | ModelError] = asyncio.Queue()

    def deliver(step: NextToken | ModelError) -> None:
      loop.call_soon_threadsafe(delivered.put_nowait, step)

    pieces = GrowingAnswer(self._vocabulary, question.stop, prompt_tokens=len(request.prompt))
    ticket = self.engine.submit(request, deliver)
    with contextlib.ExitStack() as stack:
      stack.callback(self.engine.cancel, ticket)
      while not pieces.finish:
        step = await delivered.get()
        if isinstance(step, ModelError):
          raise step
        yield pieces.add(step)

  def close(self, drain_seconds: float = 0.0) -> None:
    """Refuse new questions, finish the others in the given time, and free the thread."""
    self.engine.close(drain_seconds)

  def _request(self, question: Question) -> Request:
    """The question in tokens. Raises ValueError if this model cannot answer it."""
    most = min(slots.ALTERNATIVES, self._vocabulary.size)
    check(question, alternatives=most)
    tokens, room = self.tokens(question.prompt), self.engine.plan
    check_length(tokens, room.max_prompt)
    return Request(
      tokens,
      min(question.max_tokens or room.max_tokens, room.max_tokens),
      temperature=question.temperature,
      top_p=float('inf') if question.top_p is None else question.top_p,
      seed=question.seed,
      alternatives=question.alternatives,
    )


def check(question: Question, *, alternatives: int) -> None:
  """Raise ValueError unless the numbers of a question are in range.

  Args:
    question: The question.
    alternatives: Most that a model reports.
  """
  ranges.check({'max_tokens': question.max_tokens}, least=1, integer=True)
  ranges.check({'temperature': question.temperature}, least=0)
  ranges.check({'top_p': question.top_p}, above=0, most=1)
  ranges.check({'seed': question.seed}, least=0, below=1 << 63, integer=True)
  asked = {'alternatives': question.alternatives}
  ranges.check(asked, least=0, most=alternatives, integer=True)
  if not all(question.stop):
    raise ValueError('a stop text is empty, and would end every answer before its beginning.')


def check_length(tokens: Sized, most: int) -> None:
  """Raise ValueError if a prompt has more tokens than a model reads."""
  if len(tokens) > most:
    raise ValueError(
      f'the prompt has {len(tokens)} tokens, and the model reads at most {most}: shorten it.'
    )
