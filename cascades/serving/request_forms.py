"""Requests in the form of OpenAI's API, and the questions that they ask.

The types here are the description at /openapi.json too. A field that is not listed is refused by
name. Fields of `IGNORED` change no answer, and the response names those that a request has. Of
others, such as `n`, only the value that asks for nothing more is accepted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from cascades.serving.exchanges import Message, Question
from cascades.serving.refusals import Refusal

MOST_SEED = (1 << 63) - 1
DEFAULT_TEMPERATURE = 0.0  # OpenAI's is 1; policies are calibrated on greedy answers

# In JSON, 1.0 is a whole number too.
Count: TypeAlias = (
  Annotated[int, Meta(ge=1, le=1 << 31)] | Annotated[float, Meta(ge=1, le=1 << 31, multiple_of=1)]
)
Seed: TypeAlias = (
  Annotated[int, Meta(ge=-MOST_SEED - 1, le=MOST_SEED)]
  | Annotated[float, Meta(ge=-MOST_SEED - 1, lt=MOST_SEED, multiple_of=1)]
)
Tops: TypeAlias = (
  Annotated[int, Meta(ge=0, le=20)] | Annotated[float, Meta(ge=0, le=20, multiple_of=1)]
)
TextTops: TypeAlias = (
  Annotated[int, Meta(ge=0, le=5)] | Annotated[float, Meta(ge=0, le=5, multiple_of=1)]
)
Nothing = Annotated[list[Any], Meta(max_length=0)]
Zero = Annotated[float, Meta(ge=0, le=0)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Stop: TypeAlias = StopText | Annotated[list[StopText], Meta(max_length=4)] | None
Form = TypeVar('Form', bound=msgspec.Struct)


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
  """Text in a list of contents."""

  type: Literal['text']
  text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
  """Message of a chat, as clients write it or give an answer back."""

  role: Literal['system', 'developer', 'user', 'assistant']
  content: str | list[TextPart] | None = None
  refusal: str | None = None
  name: str | None = None
  tool_calls: Nothing | None = None
  annotations: Nothing | None = None
  function_call: None = None
  audio: None = None

  def message(self) -> Message:
    """The message as models read it."""
    content = self.content
    if isinstance(content, list):
      content = ''.join(each.text for each in content)
    role = 'system' if self.role == 'developer' else self.role
    return Message(role, (self.refusal or '') if content is None else content)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
  """Options of a stream."""

  include_usage: bool | None = None
  include_obfuscation: bool | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
  """Format of an answer that is text."""

  type: Literal['text']


class CascadeFields(msgspec.Struct, forbid_unknown_fields=True):
  """Wishes that OpenAI's API has no field for.

  `provisional` streams the small answer as it is written, and replaces it if it is deferred.
  """

  provisional: bool | None = None


class CommonFields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
  """Fields of both APIs."""

  model: str
  max_tokens: Count | None = None
  temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
  top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
  seed: Seed | None = None
  stop: Stop = None
  stream: bool | None = None
  stream_options: StreamOptions | None = None
  cascade: CascadeFields | None = None
  n: Literal[1] | None = None
  presence_penalty: Zero | None = None
  frequency_penalty: Zero | None = None
  logit_bias: Annotated[dict[str, float], Meta(max_length=0)] | None = None
  user: str | None = None


class ChatRequest(CommonFields, forbid_unknown_fields=True, kw_only=True):
  """Body of POST /v1/chat/completions."""

  messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)]
  max_completion_tokens: Count | None = None
  logprobs: bool | None = None
  top_logprobs: Tops | None = None
  response_format: TextFormat | None = None
  tools: Nothing | None = None
  tool_choice: Literal['none', 'auto'] | None = None
  functions: Nothing | None = None
  metadata: dict[str, str] | None = None
  store: bool | None = None
  service_tier: str | None = None
  parallel_tool_calls: bool | None = None
  prompt_cache_key: str | None = None
  safety_identifier: str | None = None
  reasoning_effort: str | None = None
  verbosity: str | None = None

  def question(self) -> Question:
    """The question, without limits and defaults of the server."""
    bounds = [bound for bound in (self.max_tokens, self.max_completion_tokens) if bound]
    prompt = tuple(message.message() for message in self.messages)
    tops = self.top_logprobs or 0 if self.logprobs else 0
    return _question(self, prompt, min(bounds, default=None), tops)


class CompletionRequest(CommonFields, forbid_unknown_fields=True, kw_only=True):
  """Body of POST /v1/completions."""

  prompt: (
    Annotated[str, Meta(min_length=1)]
    | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1, max_length=1)]
  )
  logprobs: TextTops | None = None
  best_of: Literal[1] | None = None

  def question(self) -> Question:
    """The question, without limits and defaults of the server."""
    prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
    return _question(self, prompt, self.max_tokens, self.logprobs or 0)


IGNORED = (
  'user', 'metadata', 'store', 'service_tier', 'parallel_tool_calls', 'prompt_cache_key',
  'safety_identifier', 'reasoning_effort', 'verbosity',
)  # fmt: skip

# Reasons for refusing other values of fields that are known, and unknown fields that clients send.
_REASONS: Mapping[str, str] = MappingProxyType({
  'n': 'one answer is given a request',
  'best_of': 'one answer is given a request',
  'tools': 'tools are not called',
  'functions': 'tools are not called',
  'tool_choice': 'tools are not called',
  'response_format': 'answers are text',
  'logit_bias': 'probabilities are not changed',
  'presence_penalty': 'probabilities are not changed',
  'frequency_penalty': 'probabilities are not changed',
  'prompt': 'a request has one prompt, a text',
  'echo': 'prompts are not repeated',
  'suffix': 'texts are continued, not filled in',
})  # fmt: skip


class Asked(NamedTuple):
  """A request, understood.

  Attributes:
    model: Name that was asked for.
    question: What is asked.
    stream: The answer is streamed.
    usage: A stream ends with the counts of tokens.
    logprobs: The response has log-probabilities.
    provisional: The client can replace text that it was sent; None for the server's default.
    ignored: Fields that have no effect.
  """

  model: str
  question: Question
  stream: bool
  usage: bool
  logprobs: bool
  provisional: bool | None
  ignored: tuple[str, ...]


def parse(body: bytes, form: type[ChatRequest] | type[CompletionRequest], most: int) -> Asked:
  """Understand a request.

  Args:
    body: JSON.
    form: `ChatRequest` or `CompletionRequest`.
    most: Longest answer in tokens, which is also the default.

  Raises:
    Refusal: With status 400, naming the field.
  """
  request = _decoded(body, form)
  question = request.question()
  if (question.max_tokens or 0) > most:
    raise Refusal(
      400,
      f'max_tokens: expected at most {most} tokens of an answer, found {question.max_tokens}.',
      param='max_tokens',
    )
  options = request.stream_options or StreamOptions()
  ignored = [name for name in IGNORED if getattr(request, name, None) is not None]
  if request.top_p is not None and not question.temperature:
    ignored.append('top_p')
  if getattr(request, 'top_logprobs', None) and not request.logprobs:
    ignored.append('top_logprobs')
  if request.stream_options is not None and not request.stream:
    ignored.append('stream_options')
  elif options.include_obfuscation:
    ignored.append('stream_options.include_obfuscation')
  if isinstance(request, ChatRequest):
    named = [f'messages[{i}].name' for i, each in enumerate(request.messages) if each.name]
    ignored += named[:8]
  logprobs = request.logprobs is not None and request.logprobs is not False
  return Asked(
    model=request.model,
    question=question._replace(max_tokens=question.max_tokens or most),
    stream=bool(request.stream),
    usage=bool(options.include_usage),
    logprobs=logprobs,
    provisional=request.cascade.provisional if request.cascade else None,
    ignored=tuple(ignored),
  )


def _question(
  request: CommonFields, prompt: Any, max_tokens: float | None, alternatives: float
) -> Question:
  temperature = request.temperature
  stop = [request.stop] if isinstance(request.stop, str) else request.stop or ()
  temperature = DEFAULT_TEMPERATURE if temperature is None else temperature
  return Question(
    prompt=prompt,
    max_tokens=None if max_tokens is None else int(max_tokens),
    temperature=temperature,
    top_p=request.top_p if temperature else None,
    seed=int(request.seed or 0) & MOST_SEED,
    stop=tuple(stop),
    alternatives=int(alternatives),
  )


def _decoded(body: bytes, form: type[Form]) -> Form:
  try:
    return msgspec.json.decode(body, type=form)
  except msgspec.ValidationError as error:
    message, param = _explained(str(error))
    raise Refusal(400, message, param=param) from error
  except (ValueError, RecursionError) as error:
    raise Refusal(400, f'The body is no JSON object: {error}.') from error


def _explained(message: str) -> tuple[str, str | None]:
  """Message and field of an error of msgspec."""
  if unknown := re.fullmatch(
    r'Object contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?', message
  ):
    name, outer = unknown[1], unknown[2]
    param = f'{outer}.{name}' if outer else name
    reason = _REASONS.get(name, 'the field is not understood')
    return f'{param:.200}: {reason}; leave it out.', param
  text, _, path = message.partition(' - at `$')
  param = path.strip('`.') or None
  if missing := re.fullmatch(r'Object missing required field `(.*)`', text):
    param = f'{param}.{missing[1]}' if param else missing[1]
    return f'{param}: the field is required.', param
  name = re.split(r'[.\[]', param or '')[0]
  reason = f': {_REASONS[name]}' if name in _REASONS else ''
  text = text[:1].lower() + text[1:].replace('`', '')
  return f'{param or "The body"}: {text}{reason}.', param
