"""Continuous batching: answers join and leave a running batch at every step.

A thread of the engine alone runs the model. It reads waiting prompts into free slots, gives every
running answer its next token, and repeats; without requests it sleeps. Callers submit from any
thread and are called back with each token.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.serving import slots
from cascades.serving.answer_text import NextToken
from cascades.serving.exchanges import Finish, ModelError
from cascades.serving.slots import Room, RoomPlan, RowStates, RunningBatch

log = logging.getLogger(__name__)

PROMPT_TOKENS = 512  # read between two steps of the running answers, or one prompt
MOST_FAILURES = 3  # steps that fail one after another before the engine gives up


class Request(NamedTuple):
  """A prompt in tokens, and how its answer is decoded."""

  prompt: Int[np.ndarray, 'n']
  max_tokens: int
  temperature: float = 0.0  # 0 is greedy
  top_p: float = np.inf  # inf for all
  seed: int = 0
  alternatives: int = 0


# Called in the engine's thread with each token, or once with the error that ends the answer.
Deliver: TypeAlias = Callable[[NextToken | ModelError], None]


class Ticket:
  """A submitted request."""

  def __init__(self, request: Request, deliver: Deliver) -> None:
    self.request, self.ended = request, False
    self.submitted = self.admitted = time.monotonic()
    self._deliver = deliver

  def deliver(self, step: NextToken | ModelError) -> None:
    """Call back, until the answer has ended. A caller that is gone has canceled."""
    if self.ended:
      return
    self.ended = isinstance(step, ModelError) or step.finish is not None
    try:
      self._deliver(step)
    except Exception as error:  # the caller's, such as that of an event loop that is closed
      log.warning('An answer has lost its reader: %r', error)
      self.ended = True


class Engine:
  """Answers requests with the slots of one model, in a thread that starts with it."""

  def __init__(self, model: TrainedModel, room: Room, *, mesh: Mesh, rules: partitioning.Rules):
    """Plans the memory and starts the thread, which compiles all programs before it answers.

    Args:
      model: A model on the mesh.
      room: Slots, lengths, and number of requests that may wait.
      mesh: Mesh of the model.
      rules: Sharding rules of the model.

    Raises:
      ValueError: The memory does not hold the model and its slots.
    """
    self.plan: RoomPlan = slots.plan(model.graph, model.params, room)
    self.failure = ''  # why the engine is dead
    self._model, self._max_waiting = model, room.max_waiting
    self._mesh, self._rules = mesh, rules
    self._waiting: collections.deque[Ticket] = collections.deque()
    self._running: dict[int, Ticket] = {}  # by slot
    self._rows: RowStates = slots.free_rows(self.plan.slots)
    self._changed = threading.Condition()
    self._warm = threading.Event()
    self._deadline: float | None = None  # of answers, once the engine is closing
    self._seconds = 1.0  # an answer takes, on average
    self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
    self._thread.start()

  @property
  def ready(self) -> bool:
    """True once all programs are compiled, until the engine closes or dies."""
    return self._warm.is_set() and not self.failure and self._deadline is None

  @property
  def running(self) -> int:
    """Number of answers that have a slot."""
    return len(self._running)

  @property
  def waiting(self) -> int:
    """Number of requests that wait for one."""
    return len(self._waiting)

  def wait_until_ready(self) -> None:
    """Wait for the programs. Raises ModelError if they could not be compiled."""
    self._warm.wait()
    if self.failure:
      raise ModelError(self.failure)

  def submit(self, request: Request, deliver: Deliver) -> Ticket:
    """Queue a request.

    Args:
      request: Prompt and options; the prompt is not empty, and no longer than the plan allows.
      deliver: Receives the answer.

    Raises:
      ModelError: The queue is full, or the engine is closing or dead.
    """
    ticket = Ticket(request, deliver)
    with self._changed:
      if self.failure:
        raise ModelError(self.failure)
      if self._deadline is not None:
        raise ModelError('the model is shutting down', retry_after=self._seconds)
      free = self.plan.slots - len(self._running)
      if len(self._waiting) >= self._max_waiting + free:
        seconds = self._seconds * (1 + len(self._waiting) / self.plan.slots)
        raise ModelError(
          f'{len(self._running)} answers are running and {len(self._waiting)} requests wait, which '
          'is all that there is room for',
          retry_after=max(1.0, seconds),
        )
      self._waiting.append(ticket)
      self._changed.notify()
    return ticket

  def cancel(self, ticket: Ticket) -> None:
    """Give the slot of a request back at the next step; it is delivered nothing from then on."""
    with self._changed:
      ticket.ended = True
      if ticket in self._waiting:
        self._waiting.remove(ticket)

  def close(self, drain_seconds: float = 0.0) -> None:
    """Refuse new requests, finish the others in the given time, and stop the thread.

    Answers that are not finished by then end with a ModelError.
    """
    with self._changed:
      self._deadline = time.monotonic() + drain_seconds
      self._changed.notify()
    self._thread.join()

  def _run(self) -> None:
    try:
      with partitioning.use(self._mesh, self._rules):
        self._serve()
      self._abandon(self._take_all(), 'the model is shutting down', retry_after=self._seconds)
    except BaseException as error:
      with self._changed:
        self.failure = f'the model has stopped: {error!r:.200}'
      log.critical('The engine is dead: %r', error)
      self._abandon(self._take_all(), self.failure)
    finally:
      self._warm.set()

  def _serve(self) -> None:
    """Compile all programs, and take steps until the engine closes."""
    model, failures = self._model, 0
    self._batch = RunningBatch(model.graph, model.params, self.plan, vocab_size=model.vocab_size)
    self._warm.set()
    while (admitted := self._next_tickets()) is not None:
      try:
        self._step(admitted)
        failures = 0
      except Exception as error:
        failures += 1
        log.exception('A step of the model failed.')
        self._abandon(admitted, f'the model failed: {error!r:.200}')
        if failures == MOST_FAILURES:
          raise
        self._batch.clear()

  def _next_tickets(self) -> list[Ticket] | None:
    """Wait for something to do; requests that get a slot now, or None to stop."""
    with self._changed:
      while not self._running and not self._waiting and self._deadline is None:
        self._changed.wait()
      if self._deadline is not None and (
        time.monotonic() >= self._deadline or not (self._running or self._waiting)
      ):
        return None
      return self._admissible()

  def _admissible(self) -> list[Ticket]:
    """Take waiting requests for the free slots, as many as do not hold up the others long."""
    admitted: list[Ticket] = []
    free = self.plan.slots - sum(not ticket.ended for ticket in self._running.values())
    tokens = 0
    while self._waiting and len(admitted) < free:
      ticket = self._waiting[0]
      tokens += len(ticket.request.prompt)
      if admitted and tokens > PROMPT_TOKENS:
        break
      self._waiting.popleft()
      admitted.append(ticket)
    return admitted

  def _take_all(self) -> list[Ticket]:
    with self._changed:
      tickets = list(self._waiting)
      self._waiting.clear()
    return tickets

  def _abandon(
    self, tickets: Sequence[Ticket], message: str, retry_after: float | None = None
  ) -> None:
    """End these and all running answers with an error."""
    for ticket in {*tickets, *self._running.values()}:
      ticket.deliver(ModelError(message, retry_after))
    self._running.clear()
    self._rows.active[:] = False

  def _step(self, admitted: Sequence[Ticket]) -> None:
    """Drop canceled answers, read the admitted prompts, and decode one token of every answer."""
    for slot in [slot for slot, ticket in self._running.items() if ticket.ended]:
      self._release(slot)
    for ticket in admitted:
      slot = int(np.flatnonzero(~self._rows.active)[0])
      self._read(slot, ticket)
    if self._running:
      report = any(ticket.request.alternatives for ticket in self._running.values())
      chosen = self._batch.decode(self._rows, report=report)
      for slot in list(self._running):
        self._append(slot, chosen, slot)

  def _read(self, slot: int, ticket: Ticket) -> None:
    """Read a prompt into a slot, and deliver the first token."""
    request, rows = ticket.request, self._rows
    ticket.admitted = time.monotonic()
    rows.steps[slot], rows.active[slot] = 0, True
    rows.temperature[slot], rows.top_p[slot] = request.temperature, request.top_p
    if request.temperature:
      rows.keys[slot] = slots.row_key(request.seed)
    self._running[slot] = ticket
    first = RowStates(*(column[slot : slot + 1] for column in rows))
    report = bool(request.alternatives)
    chosen = self._batch.read(slot, request.prompt, first, report=report)
    self._append(slot, chosen, 0)

  def _append(self, slot: int, chosen: slots.Chosen, index: int) -> None:
    """Append the token at `index` of a step to the answer of a slot, and deliver it."""
    rows, ticket = self._rows, self._running[slot]
    token, request = int(chosen.tokens[index]), ticket.request
    rows.tokens[slot] = token
    rows.steps[slot] += 1
    finish: Finish | None = None
    if token in self._model.vocabulary.eos_ids:
      finish = 'stop'
    elif rows.steps[slot] >= request.max_tokens:
      finish = 'length'
    ticket.deliver(
      NextToken(
        token=token,
        logprob=float(chosen.logprobs[index]),
        alternatives=_most_likely(chosen, index, request.alternatives),
        finish=finish,
        queue_seconds=ticket.admitted - ticket.submitted,
      )
    )
    if finish:
      self._release(slot)

  def _release(self, slot: int) -> None:
    ticket = self._running.pop(slot)
    self._rows.active[slot] = False
    self._rows.temperature[slot] = 0.0  # free rows draw nothing
    self._seconds += 0.1 * (time.monotonic() - ticket.admitted - self._seconds)


def _most_likely(chosen: slots.Chosen, row: int, count: int) -> tuple[tuple[int, float], ...]:
  """Ids and log-probabilities of the most likely tokens of a row."""
  if not count or chosen.top_tokens is None or chosen.top_logprobs is None:
    return ()
  top = (chosen.top_tokens[row, :count].tolist(), chosen.top_logprobs[row, :count].tolist())
  return tuple(zip(*top, strict=True))
