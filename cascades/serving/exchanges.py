"""Questions to the models of a server, their answers, and the record of a request.

A `Question` goes to a `Model`, in this process or behind a URL, which answers in `Piece`s. One
request to the cascade is an `Exchange`: a `Leg` for each model that was asked, and who answered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

Finish: TypeAlias = Literal['stop', 'length']
Role: TypeAlias = str  # 'small' and 'large', or the names of a longer chain
PAIR: tuple[Role, Role] = ('small', 'large')
NOBODY = ''  # in the place of a model that answers


class Message(NamedTuple):
  """One message of a chat."""

  role: str
  content: str


AnyPrompt: TypeAlias = str | tuple[Message, ...]


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

  prompt: AnyPrompt
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

  def count(self, prompt: AnyPrompt, /) -> float:
    """Tokens that it reads of a prompt; nan if it cannot tell before it answers."""
    ...

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
  is_audit: bool = False  # True if it was asked for the log alone


class LevelDecision(NamedTuple):
  """Decision about the answer of a model, or before it.

  Attributes:
    role: The model.
    score: Deferral score of its answer, or of the prompt.
    threshold: Threshold that it was compared with; inf never defers.
    seconds: Time of the decision.
    flag: Why the score is none of an answer: '', 'no score'.
    is_bound: True if the score is only the least that the answer could have got, since the model
      was stopped when that was certain.
  """

  role: Role
  score: float
  threshold: float
  seconds: float = 0.0
  flag: str = ''
  is_bound: bool = False

  @property
  def deferred(self) -> bool:
    """True if another model has to answer, or nobody."""
    return self.score >= self.threshold


class Routed(NamedTuple):
  """Choice of a router.

  Attributes:
    role: Model that is asked first; NOBODY if the prompt is left unanswered.
    predicted_loss: Mean loss that it is predicted to have on prompts like this one.
    drift: Share of the validation prompts that are nearer to another one than this prompt is to
      any, see `prompt_drift`.
    seconds: Time of the choice, the embedding of the prompt included.
  """

  role: Role
  predicted_loss: float
  drift: float
  seconds: float = 0.0


class Shadow(NamedTuple):
  """Decision of a policy that is tried out and decides nothing.

  Attributes:
    score: Score of its first decision; None if it only routes.
    threshold: Threshold of that one.
    deferred: True if some answer would have been deferred.
    author: Model whose answer it would have given, NOBODY for an abstention; None if that is not
      known, since a model that it would have asked has not answered.
  """

  score: float | None
  threshold: float | None
  deferred: bool
  author: Role | None


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
    flag: Why the answer is not the one that the policy asked for: '', 'large model failed', ....
    seconds: Time from the arrival of the request to the end of its response.
    status: HTTP status of the response.
    decisions: Decisions of the policy, level by level.
    roles: Models of the cascade, asked or not.
    routed: Choice of the policy's router; None without one.
    is_audit: True if the request was drawn to be answered by all models.
    shadow: Decision of another policy on the same answers; None without one.
  """

  id: str
  time: float
  key: str
  task: str
  question: Question
  legs: tuple[Leg, ...]
  author: Role | None
  flag: str
  seconds: float
  status: int
  decisions: tuple[LevelDecision, ...] = ()
  roles: tuple[Role, ...] = PAIR
  routed: Routed | None = None
  is_audit: bool = False
  shadow: Shadow | None = None

  @property
  def score(self) -> float | None:
    """Score of the first decision; None without one."""
    return self.decisions[0].score if self.decisions else None

  @property
  def threshold(self) -> float | None:
    """Threshold of the first decision; inf never defers."""
    return self.decisions[0].threshold if self.decisions else None

  @property
  def deferred(self) -> bool:
    """True if the policy deferred, whether or not another model answered."""
    return any(decision.deferred for decision in self.decisions)

  @property
  def is_bound(self) -> bool:
    """True if the score is only a bound, since the model was stopped when it was certain."""
    return bool(self.decisions) and self.decisions[0].is_bound

  @property
  def decision_seconds(self) -> float:
    """Time of all decisions."""
    routing = self.routed.seconds if self.routed else 0.0
    return routing + sum(decision.seconds for decision in self.decisions)

  @property
  def answer(self) -> Leg | None:
    """Leg of the answer, the author's last one; None if nobody answered."""
    legs = [leg for leg in self.legs if leg.role == self.author and not leg.is_audit]
    return legs[-1] if legs else None

  @property
  def answered(self) -> tuple[Role, ...]:
    """Models of the cascade that answered to the end."""
    complete = {leg.role for leg in self.legs if leg.finish is not None}
    return tuple(role for role in self.roles if role in complete)

  @property
  def discarded_tokens(self) -> int:
    """Tokens that the policy asked for and that are not part of the answer."""
    asked = sum(leg.generated_tokens for leg in self.legs if not leg.is_audit)
    return asked - (self.answer.generated_tokens if self.answer else 0)
