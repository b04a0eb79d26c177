"""Questions to the models of a server, their answers, and the record of a request.

A `Question` goes to a `Model`, in this process or behind a URL, which answers in `Piece`s. One
request to the cascade is an `Exchange`: a `Leg` for each model that was asked, and who answered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

Finish: TypeAlias = Literal['stop', 'length']
Role: TypeAlias = Literal['small', 'large']


class Message(NamedTuple):
  """One message of a chat."""

  role: str
  content: str


class Question(NamedTuple):
  """A prompt, and how its answer is decoded.

  Attributes:
    prompt: A text to be continued or answered as in training, or the messages of a chat.
    max_tokens: Longest answer in tokens, end of sequence included; None for the model's longest.
    temperature: 0 decodes greedily.
    top_p: Probability mass to sample from; None for all.
    seed: Seed of the samples.
    stop: Texts that end the answer, and are not part of it.
    alternatives: Number of most likely tokens at each position to report.
  """

  prompt: str | tuple[Message, ...]
  max_tokens: int | None = None
  temperature: float = 0.0
  top_p: float | None = None
  seed: int = 0
  stop: tuple[str, ...] = ()
  alternatives: int = 0


class Token(NamedTuple):
  """One token of an answer; `logprob` is that of the untempered softmax, None if unknown.

  The end of sequence is a token without text. `content` is what the token stands for alone, which
  is no valid UTF-8 where a character takes several tokens.
  """

  content: bytes
  logprob: float | None
  alternatives: tuple[tuple[bytes, float], ...] = ()  # most likely first
  id: int | None = None


class Piece(NamedTuple):
  """Text that an answer grows by, with the tokens behind it.

  The texts of all pieces are the answer. Text waits until its characters are complete and it
  cannot become part of a stop text. The last piece has `finish` and the counts.
  """

  text: str
  tokens: tuple[Token, ...] = ()
  finish: Finish | None = None
  prompt_tokens: int = 0
  cached_tokens: int = 0
  generated_tokens: int = 0
  queue_seconds: float = 0.0


class ModelError(OSError):
  """A model that cannot answer now: it is down, slow, over its budget, or out of room.

  Attributes:
    retry_after: Seconds after which another try may succeed; None if unknown.
  """

  def __init__(self, message: str, retry_after: float | None = None):
    super().__init__(message)
    self.retry_after = retry_after


class Model(Protocol):
  """Something that answers questions, one or many at a time."""

  @property
  def name(self) -> str: ...

  def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
    """Answer in pieces; closing the generator cancels the answer and frees its room.

    Raises:
      ValueError: The question cannot be answered by this model, such as a prompt that is too long.
      ModelError: The model cannot answer now.
    """
    ...


class Leg(NamedTuple):
  """Contribution of one model to an exchange."""

  role: Role
  model: str
  text: str
  tokens: Sequence[Token]
  prompt_tokens: int
  cached_tokens: int
  generated_tokens: int
  queue_seconds: float
  seconds: float
  dollars: float | None
  finish: Finish | None  # None if the answer was cut off before its end
  error: str = ''


class Shadow(NamedTuple):
  """Decision of a policy that is tried out and decides nothing."""

  score: float
  threshold: float
  deferred: bool


class Exchange(NamedTuple):
  """One request to the cascade, finished or not.

  Attributes:
    id: Id of the response.
    time: Seconds since the epoch at which the request arrived.
    key: Name of the key that asked, '' without keys; never the secret.
    task: Task of the policy whose threshold decided.
    question: What was asked.
    legs: Models that were asked, in order; the last one that answered gave the answer.
    author: Who answered; None if nobody did.
    score: Deferral score of the small answer, or of the prompt; None without one.
    threshold: Threshold that it was compared with; inf never defers.
    deferred: True if the policy deferred, whether or not the large model answered.
    flag: Why the answer is not the one that the policy asked for: '', 'large model failed', ....
    decision_seconds: Time of the decision.
    seconds: Time from the arrival of the request to the end of its response.
    status: HTTP status of the response.
    shadow: Decision of another policy on the same small answer; None without one.
  """

  id: str
  time: float
  key: str
  task: str
  question: Question
  legs: tuple[Leg, ...]
  author: Role | None
  score: float | None
  threshold: float | None
  deferred: bool
  flag: str
  decision_seconds: float
  seconds: float
  status: int
  shadow: Shadow | None = None

  @property
  def discarded_tokens(self) -> int:
    """Tokens that were generated and are not part of the answer, the author's last one."""
    answers = [number for number, leg in enumerate(self.legs) if leg.role == self.author]
    last = answers[-1] if answers else None
    return sum(leg.generated_tokens for number, leg in enumerate(self.legs) if number != last)
