"""The models of a cascade, in this process or behind URLs: planned, opened and closed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cascades import costs
from cascades.inference import endpoints
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import progress
from cascades.runtime.partitioning import Devices
from cascades.serving import local_model, speculative_model
from cascades.serving.breaker import Breaker, GuardedModel
from cascades.serving.exchanges import Model, Role
from cascades.serving.legs import Member
from cascades.serving.local_model import LocalModel
from cascades.serving.prompt_reader import Messages
from cascades.serving.served_policy import ServedPolicy
from cascades.serving.slots import Room
from cascades.serving.speculative_model import Drafting, SpeculativeModel
from cascades.tasks.chats import PromptFormat

ENDPOINT_FIELDS = ('api', 'key_variable', 'system', 'fields', 'logprobs')


class Drafts(NamedTuple):
  """A small model that drafts answers of a large one, for which it is loaded once more.

  Attributes:
    path: Run directory of the small model.
    fields: Fields of `speculative_model.Drafting`.
  """

  path: str
  fields: Mapping[str, Any]

  def drafting(self) -> Drafting:
    """Use of the drafts. Raises ValueError for fields that there are not, or out of range."""
    names = [field.name for field in dataclasses.fields(Drafting)]
    if unknown := set(self.fields) - set(names):
      raise ValueError(
        f'DRAFTING has {", ".join(map(repr, sorted(unknown)))}; it takes {", ".join(names)}.'
      )
    return Drafting(**self.fields)


class MemberOptions(NamedTuple):
  """A model, as settings name it.

  Attributes:
    role: Its role: of two models, in capitals the name of its setting; else its key in MODELS.
    path: Run directory, one of its checkpoints, or a URL.
    name: Name in responses; None for that of the directory or of the model at the URL.
    endpoint: Fields of `endpoints.Endpoint`, for a URL.
    prices: Fields of `costs.Prices`, in dollars per token; without them nothing has a price.
    seconds: Longest time of an answer.
    failures: Failures in a row after which the model is left alone.
    pause: Seconds for which it is left alone.
    drafts: Model that drafts its answers; None for a model that writes alone.
    in_models: True if it is named in MODELS.
  """

  role: Role
  path: str
  name: str | None
  endpoint: Mapping[str, Any]
  prices: Mapping[str, float]
  seconds: float
  failures: int
  pause: float
  drafts: Drafts | None = None
  in_models: bool = False

  @property
  def setting(self) -> str:
    """Name of the setting."""
    return f'MODELS[{self.role!r}]' if self.in_models else self.role.upper()

  @property
  def endpoint_setting(self) -> str:
    """Name of the setting of its endpoint."""
    return f'ENDPOINTS[{self.role!r}]' if self.in_models else f'{self.setting}_ENDPOINT'

  @property
  def prices_setting(self) -> str:
    """Name of the setting of its prices."""
    return f'PRICES[{self.role!r}]' if self.in_models else f'{self.setting}_PRICES'

  @property
  def is_remote(self) -> bool:
    """True for a model behind a URL."""
    return endpoints.is_url(self.path)

  def priced(self) -> costs.Prices | None:
    """Prices, if there are any. Raises ValueError if they are none."""
    return costs.prices(self.prices, self.prices_setting) if self.prices else None

  def address(self) -> endpoints.Address:
    """Address of a URL, under the name of the settings. Raises ValueError."""
    with self._naming('CHECKPOINT_PATH', self.setting):
      return endpoints.parse(self.path)

  def endpoint_of(self) -> endpoints.Endpoint:
    """Form of requests to a URL. Raises ValueError for fields that there are not."""
    setting = self.endpoint_setting
    if unknown := set(self.endpoint) - set(ENDPOINT_FIELDS):
      raise ValueError(
        f'{setting} has {", ".join(map(repr, sorted(unknown)))}; it takes '
        f'{", ".join(ENDPOINT_FIELDS)}.'
      )
    with self._naming('API_KEY_VARIABLE', f"{setting}['key_variable']"):
      endpoint = endpoints.Endpoint(**self.endpoint)
      endpoint.key()
      return endpoint

  def check_measured(self, policy: ServedPolicy) -> None:
    """Raise ValueError if a policy reads log-probabilities that are not requested."""
    rule = policy.rule_of(self.role)
    if rule is None:
      return
    reads = {'token_logprobs', 'alternatives', 'two alternatives'} & set(rule.decider.reads)
    if self.is_remote and reads and not self.endpoint_of().logprobs:
      raise ValueError(
        f'The decider {rule.decider.name!r} reads log-probabilities, and {self.endpoint_setting} '
        'requests none: set its logprobs to True, or choose another decider.'
      )

  def plan(self, local: LocalOptions) -> list[str]:
    """Lines about the model, which is not loaded.

    Raises:
      ValueError, OSError: There is no such checkpoint, or a setting of it is wrong.
    """
    return _plan(self, local)

  def opened(self, local: LocalOptions) -> contextlib.AbstractAsyncContextManager[OpenMember]:
    """Context manager of the model.

    Raises:
      ValueError, OSError: There is no such model, or a setting of it is wrong.
    """
    return _opened(self, local)

  @contextlib.contextmanager
  def _naming(self, setting: str, own: str) -> Iterator[None]:
    """Context manager whose ValueErrors name this model's setting in the place of another."""
    try:
      yield
    except ValueError as error:
      raise ValueError(str(error).replace(setting, own)) from error


@dataclasses.dataclass(frozen=True)
class LocalOptions:
  """Options of the models in this process.

  Attributes:
    room: Slots or memory of each, and lengths.
    which: Checkpoint of a run directory: 'last', 'best', or a step.
    precision: Type of the activations.
    weights: Type that holds the weights; None for `precision`.
    prompts: Format of a text, as PROMPTS of `infer`; None reads it as a prompt of training.
    messages: 'template' reads chats by the chat template, 'text' a single message as a text; None
      chooses by the model.
    devices: Mesh and sharding rules.
  """

  room: Room = dataclasses.field(default_factory=Room)
  which: Any = 'last'
  precision: str = 'float32'
  weights: str | None = None
  prompts: PromptFormat | None = None
  messages: Messages | None = None
  devices: Devices = dataclasses.field(default_factory=Devices)

  def checkpoint(self, path: str) -> Checkpoint:
    """Checkpoint of a run directory."""
    return Checkpoint(path, self.which, self.precision, self.weights)


class OpenMember(NamedTuple):
  """A model that is ready to be asked, or about to be.

  Attributes:
    member: The model, behind a circuit breaker.
    breaker: The circuit breaker.
    described: Size and checkpoint as in manifests, to compare with a policy.
    reasons: Reasons why it cannot be asked yet, or any more.
  """

  member: Member
  breaker: Breaker
  described: Mapping[str, Any]
  reasons: Callable[[], Sequence[str]]


def _plan(options: MemberOptions, local: LocalOptions) -> list[str]:
  prices = options.priced()
  _check_drafts(options)
  if options.is_remote:
    endpoint = options.endpoint_of()
    key = f'key of {endpoint.key_variable}' if endpoint.key_variable else 'no key'
    where = f'{options.address()} ({endpoint.api}, {key})'
  else:
    _refuse_endpoint(options)
    room = local_model.plan(local.checkpoint(options.path), local.room, local.devices)
    where = f'{options.path}: {room}'
    if options.drafts:
      drafting = options.drafts.drafting()
      where = (
        f'{options.path}, one answer at a time, {progress.format_bytes(room.weight_bytes)} of '
        f'weights; {options.drafts.path} drafts {drafting.drafts} tokens by the rule '
        f'{drafting.rule!r}, alpha {drafting.alpha:g}'
      )
  fields = dataclasses.asdict(prices) if prices else {}
  dollars = ', '.join(f'{name} {value:g}' for name, value in fields.items() if value)
  return [
    f'{options.role} model: {where}',
    f'  dollars per token: {dollars or ("0" if prices else "not known")}',
  ]


@contextlib.asynccontextmanager
async def _opened(options: MemberOptions, local: LocalOptions) -> AsyncIterator[OpenMember]:
  prices = options.priced()
  _check_drafts(options)
  breaker = Breaker(failures=options.failures, pause=options.pause)

  def member(model: Model) -> Member:
    return Member(GuardedModel(model, breaker), prices, options.seconds)

  if options.is_remote:
    from cascades.serving.remote_model import RemoteModel  # needs the extra `serve`

    remote = RemoteModel(
      options.address(), options.endpoint_of(), name=options.name, seconds=options.seconds
    )
    described = {'checkpoint_identity': str(options.address())}
    try:
      yield OpenMember(member(remote), breaker, described, list)
    finally:
      await remote.aclose()
    return
  _refuse_endpoint(options)
  model = _loaded(options, local)

  def reasons() -> list[str]:
    if model.failure:
      return [f'the {options.role} model is dead: {model.failure}']
    return [] if model.ready else [f'the {options.role} model is compiling']

  try:
    yield OpenMember(member(model), breaker, model.described, reasons)
  finally:
    model.close()


def _loaded(options: MemberOptions, local: LocalOptions) -> LocalModel | SpeculativeModel:
  """The model of a run directory, with drafts of another if options name one."""
  checkpoint = local.checkpoint(options.path)
  common: dict[str, Any] = {
    'devices': local.devices,
    'name': options.name,
    'prompts': local.prompts,
    'messages': local.messages,
  }
  if options.drafts is None:
    return local_model.load(checkpoint, local.room, **common)
  drafter = local.checkpoint(options.drafts.path)
  drafting = options.drafts.drafting()
  return speculative_model.load(drafter, checkpoint, local.room, drafting, **common)


def _check_drafts(options: MemberOptions) -> None:
  """Raise ValueError for drafts where both models are not in this process."""
  if options.drafts and (options.is_remote or endpoints.is_url(options.drafts.path)):
    raise ValueError(
      'DRAFTING is for two models in this process, and SMALL or LARGE is a URL: leave it out, or '
      'name run directories.'
    )


def _refuse_endpoint(options: MemberOptions) -> None:
  if options.endpoint:
    raise ValueError(
      f'{options.endpoint_setting} is for a URL, and {options.setting}={options.path!r:.200} is '
      'none: leave it out, or write http://host:port/v1#model.'
    )
