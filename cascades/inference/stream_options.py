"""Settings of a stream: its rows and files, the expert, and the cascade."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from cascades import online
from cascades.inference import endpoints, stream_shifts
from cascades.inference.levels import LevelConfig, LinearConfig
from cascades.inference.stream_shifts import Shift
from cascades.online import OnlineSettings
from cascades.runtime import ranges


@dataclasses.dataclass(frozen=True)
class StreamSource:
  """The stream and its answers.

  Attributes:
    path: JSON lines, or '-' for standard input.
    options: Texts of the classes.
    directory: Folder of the answers and of checkpoints.
    save_every: Queries between checkpoints.
    save_share: Largest share of the time that they take: where they are slow, they are rarer.
    overwrite: Answers the stream anew.
    shifts: Changes of the order of the rows and of the expert, to see what they do.
    every_level: Runs each level on each query, which changes no answer, so that the summary has
      what all of them would have answered.
  """

  path: str
  options: Sequence[str]
  directory: str
  save_every: int = 500
  save_share: float = 0.01
  overwrite: bool = False
  shifts: Sequence[Shift] = ()
  every_level: bool = False

  def __post_init__(self) -> None:
    ranges.check({'SAVE_EVERY': self.save_every}, least=1, integer=True)
    ranges.check({'SAVE_SHARE': self.save_share}, above=0)
    lowered = [str(option).strip().lower() for option in self.options]
    if len(set(lowered)) != len(lowered) or len(lowered) < 2 or not all(lowered):
      raise ValueError(f'OPTIONS={list(self.options)!r:.200}: give two or more different texts.')
    if self.path == '-' and stream_shifts.reorders(self.shifts):
      raise ValueError(
        'SHIFTS changes the order of the rows, which standard input gives once: name a file.'
      )


@dataclasses.dataclass(frozen=True)
class ExpertOptions:
  """The expert, and how often it may be asked.

  Attributes:
    source: URL of an endpoint; the directory of a table of its answers, by id, as `infer` writes
      it (INFER_OUTPUT_DIR/split); None for the key `expert` of the rows.
    endpoint: Requests to an endpoint.
    max_tokens: Longest answer of an endpoint, in its tokens.
    calls: Answers that the whole stream may take, the warm-up included; needs a file.
    share: Share of the queries after the warm-up, in place of `calls`.
    dollars: Money for the whole stream, in place of `calls`; of a URL with prices, or of rows that
      say what their recorded answers cost.
    search_mu: Keeps `calls` by a bisection of mu over several runs, each over the whole stream, in
      place of a threshold that moves; for recorded answers.
    delay: Queries that are answered before an answer is learned from; it is given at once.
  """

  source: str | None = None
  endpoint: endpoints.Endpoint = endpoints.Endpoint()
  max_tokens: int = 16
  calls: int | None = None
  share: float | None = None
  dollars: float | None = None
  search_mu: bool = False
  delay: int = 0

  def __post_init__(self) -> None:
    ranges.check({'BUDGET_CALLS': self.calls, 'EXPERT_TOKENS': self.max_tokens}, least=1)
    ranges.check({'BUDGET_SHARE': self.share}, least=0, most=1)
    ranges.check({'EXPERT_DELAY': self.delay}, least=0, integer=True)
    ranges.check({'BUDGET_DOLLARS': self.dollars}, above=0)
    budgets = {
      'BUDGET_CALLS': self.calls, 'BUDGET_SHARE': self.share, 'BUDGET_DOLLARS': self.dollars
    }  # fmt: skip
    given = [name for name, value in budgets.items() if value is not None]
    if len(given) > 1:
      raise ValueError(f'{" and ".join(given)} are {len(given)} budgets: give one.')
    is_url = self.source is not None and endpoints.is_url(self.source)
    if self.dollars is not None and is_url and not self.endpoint.limits.prices:
      raise ValueError(
        'BUDGET_DOLLARS needs prices per token: set PRICES, such as {"prompt": 2.5e-6, '
        '"generated": 1e-5}.'
      )
    if self.search_mu and (self.calls is None or is_url):
      raise ValueError(
        'SEARCH_MU answers the stream several times to spend BUDGET_CALLS, so it needs these, and '
        'recorded answers in place of a URL.'
      )
    if not is_url and self.endpoint.parameters is not None:
      raise ValueError(
        f'PARAMETERS and the settings behind it are for a URL, and EXPERT={self.source!r:.200} is '
        'none: leave them out, or write http://host:port/v1#model.'
      )


@dataclasses.dataclass(frozen=True)
class OnlineOptions:
  """Small models and the rates at which they and their gates learn; see `online.OnlineSettings`."""

  levels: Sequence[LevelConfig] = (LinearConfig(),)
  next_costs: Sequence[float] = (1182.0,)
  caches: Sequence[int] = (8,)
  decays: Sequence[float] = (0.97,)
  kappas: Sequence[float] = (0.4,)
  gate_rates: Sequence[float] = (7e-4,)
  mu: float = 1e-3
  loss: online.ClassLoss = online.negative_log_likelihood
  jump: Callable[[int, int], int] = online.next_level
  gain: float = 0.1
  seed: int = 0

  def settings(self, classes: int) -> OnlineSettings:
    """The settings for so many classes.

    Raises:
      ValueError: The numbers do not fit together.
    """
    tuples: dict[str, Any] = {
      name: tuple(getattr(self, name))
      for name in ('next_costs', 'caches', 'decays', 'kappas', 'gate_rates')
    }
    if len(self.levels) != len(tuples['caches']):
      raise ValueError(
        f'LEVELS names {len(self.levels)} small models, and CACHES has {len(tuples["caches"])} '
        'numbers: give one for each.'
      )
    return OnlineSettings(
      classes, mu=self.mu, loss=self.loss, jump=self.jump, gain=self.gain, **tuples
    )
