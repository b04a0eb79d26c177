"""Answer a stream by small models that learn from an expert, which is asked less and less.

    python -m cascades.stream --gin_file=runs/stream.gin --gin.STREAM=reviews.jsonl
      --gin.OPTIONS="['negative', 'positive']" --gin.EXPERT=http://host:port/v1#model
      --gin.STREAM_DIR=runs/reviews

Each line of STREAM is {"id": ..., "inputs": ..., "targets": ...}; gold `targets` are optional, and
are reported and never learned from. The expert answers at first, while the models of LEVELS and
their gates learn from it (`online`); then it is asked where all gates defer. Writes one row a query
to STREAM_DIR/answers.jsonl, and summary.json, stream.png and stream.svg at the end. A run that is
killed goes on behind its last checkpoint: no query is answered twice, and no answer is paid for
twice, since responses of an endpoint are stored before they are used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cascades import online, online_costs
from cascades.inference import (
  class_names,
  endpoints,
  experts,
  online_stream,
  stream_files,
  stream_shifts,
  stream_state,
)
from cascades.inference.levels import Level, LevelConfig, LinearConfig
from cascades.inference.online_stream import CallBudget, ExpertError, Query, StreamAnswer
from cascades.inference.stream_files import Saved, StreamFolder, StreamRow
from cascades.inference.stream_shifts import Shift
from cascades.inference.stream_tally import StreamTally
from cascades.online import OnlineSettings, OnlineState
from cascades.reporting import figures, stream_figures
from cascades.runtime import files, locking, progress, ranges

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class StreamSource:
  """The stream and its answers.

  Attributes:
    path: JSON lines, or '-' for standard input.
    options: Texts of the classes.
    directory: Folder of the answers and of checkpoints.
    save_every: Queries between checkpoints.
    overwrite: Answers the stream anew.
    shifts: Changes of the order of the rows and of the expert, to see what they do.
  """

  path: str
  options: Sequence[str]
  directory: str
  save_every: int = 500
  overwrite: bool = False
  shifts: Sequence[Shift] = ()

  def __post_init__(self) -> None:
    ranges.check({'SAVE_EVERY': self.save_every}, least=1, integer=True)
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
    search_mu: Keeps `calls` by a bisection of mu over several runs, each over the whole stream, in
      place of a threshold that moves; for recorded answers.
    delay: Queries after which an answer is learned from; it is given at once.
  """

  source: str | None = None
  endpoint: endpoints.Endpoint = endpoints.Endpoint()
  max_tokens: int = 16
  calls: int | None = None
  share: float | None = None
  search_mu: bool = False
  delay: int = 0

  def __post_init__(self) -> None:
    ranges.check({'BUDGET_CALLS': self.calls, 'EXPERT_TOKENS': self.max_tokens}, least=1)
    ranges.check({'BUDGET_SHARE': self.share}, least=0, most=1)
    ranges.check({'EXPERT_DELAY': self.delay}, least=0, integer=True)
    if self.calls is not None and self.share is not None:
      raise ValueError('BUDGET_CALLS and BUDGET_SHARE are two budgets: give one.')
    is_url = self.source is not None and endpoints.is_url(self.source)
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


def stream(
  source: StreamSource,
  expert: ExpertOptions,
  cascade: OnlineOptions,
  *,
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> dict[str, Any]:
  """Answer a stream, from its last checkpoint if there is one.

  Args:
    source: The stream and the folder of its answers.
    expert: The expert and its budget.
    cascade: Small models and their rates.
    provenance: Gives the configuration and versions that are recorded in the summary.

  Returns:
    The summary.

  Raises:
    FileExistsError: The folder holds answers to another stream or of other settings.
    OSError: The expert cannot answer in the warm-up, or a file cannot be written.
    ValueError: A setting is out of range, or a row or file is damaged.
  """
  if expert.search_mu:
    return _search(source, expert, cascade, provenance)
  settings = cascade.settings(len(source.options))
  levels = [
    config.build(len(source.options), cascade.seed + i) for i, config in enumerate(cascade.levels)
  ]
  if expert.calls is not None and source.path == '-':
    raise ValueError(
      'BUDGET_CALLS is of a whole stream, and standard input has no known length: give '
      'BUDGET_SHARE.'
    )
  described = _described(source, expert, cascade)
  directory = files.absolute(source.directory)
  asking = experts.open_expert(expert.source, expert.endpoint, expert.max_tokens)
  with locking.held(directory), StreamFolder(directory) as folder, asking as asked:
    saved = folder.begin(described, overwrite=source.overwrite)
    run = _StreamRun(source, expert, settings, levels, folder, asked, described, cascade.seed)
    run.go(saved)
    summary = {
      'shares': run.shares(), 'counts': dict(run.tally.numbers), 'calls': run.state.calls,
      'updates': list(run.state.updates),
      'settings': described, 'provenance': dict(provenance()),
    }  # fmt: skip
    files.write(directory / 'summary.json', json.dumps(summary, indent=1) + '\n')
    figure = stream_figures.draw(folder.answers(), levels=len(levels) + 1)
    for image_format in figures.FORMATS:
      files.write(directory / f'stream.{image_format}', figures.encode(figure, image_format))
  log.info('%s: %s; see summary.json and stream.png there', directory, ', '.join(run.notes()))
  return summary


def _search(
  source: StreamSource,
  expert: ExpertOptions,
  cascade: OnlineOptions,
  provenance: Callable[[], Mapping[str, str]],
) -> dict[str, Any]:
  """Answer a stream with several mu, each in a folder of its own, until calls are as budgeted.

  A mu whose folder is complete is not answered again, so that a search which is killed goes on.
  The summary of the nearest one is returned, and written with all trials to `search.json`.
  """
  assert expert.calls is not None
  directory = files.absolute(source.directory)
  summaries: dict[float, dict[str, Any]] = {}

  def calls(mu: float) -> int:
    own = dataclasses.replace(source, directory=str(directory / f'mu-{mu:.8g}'))
    fixed = dataclasses.replace(expert, calls=None, search_mu=False)
    summaries[mu] = stream(own, fixed, dataclasses.replace(cascade, mu=mu), provenance=provenance)
    log.info('MU=%.8g: %d calls; the budget is %d', mu, summaries[mu]['calls'], expert.calls)
    return summaries[mu]['calls']

  mu = online_costs.price_for(calls, expert.calls, first=cascade.mu)
  search = {
    'trials': [{'mu': price, 'calls': own['calls']} for price, own in summaries.items()],
    'budget': expert.calls,
    'mu': mu,
    'directory': f'mu-{mu:.8g}',
    'summary': summaries[mu],
  }
  files.write(directory / 'search.json', json.dumps(search, indent=1) + '\n')
  off = summaries[mu]['calls'] / expert.calls - 1
  report = log.info if abs(off) <= online_costs.TOLERANCE else log.warning
  report(
    '%s: of %d trials, MU=%.8g is nearest to BUDGET_CALLS=%d, with %d calls (%+.1f%%)',
    directory, len(summaries), mu, expert.calls, summaries[mu]['calls'], 100 * off,
  )  # fmt: skip
  return {**summaries[mu], 'search': search['trials'], 'mu': mu}


def _described(
  source: StreamSource, expert: ExpertOptions, cascade: OnlineOptions
) -> dict[str, Any]:
  """Settings in which two runs are the same, as JSON."""
  named = lambda function: getattr(function, '__name__', str(function))
  options = dataclasses.asdict(cascade)
  content = {
    **options,
    'levels': [str(level) for level in cascade.levels],
    'loss': named(cascade.loss),
    'jump': named(cascade.jump),
    'options': list(source.options),
    'expert': expert.source,
    'budget': [expert.calls, expert.share],
    'delay': expert.delay,
    'shifts': [str(shift) for shift in source.shifts],
  }
  return json.loads(json.dumps(content))


@dataclasses.dataclass
class _StreamRun:
  """A run over a stream, between its files and the cascade."""

  source: StreamSource
  options: ExpertOptions
  settings: OnlineSettings
  levels: Sequence[Level]
  folder: StreamFolder
  asked: experts.Asked | None
  described: Mapping[str, Any]
  seed: int

  def __post_init__(self) -> None:
    self.state = online.start(self.settings, seed=self.seed, share=self.options.share)
    self.tally = StreamTally(self.source.options)
    self.pending: dict[int, StreamRow] = {}  # rows that are not answered yet
    self.done = 0  # queries that an earlier run has answered
    self.total = stream_files.length(self.source.path)

  def go(self, saved: Saved | None) -> None:
    """Answer all queries that are left, and save every few of them."""
    if saved:
      self._restore(saved)
      log.info('%s: goes on behind query %d', self.folder.directory, self.done)
    budget = self.options.calls and CallBudget(self.options.calls, self.total or 0)
    expert = stream_shifts.shifted(
      self.source.shifts, self._expert, classes=self.settings.classes, seed=self.seed
    )
    answers = online_stream.run(
      self.settings, self.levels, expert, self._queries(), self.state, seed=self.seed,
      budget=budget or None, delay=self.options.delay,
    )  # fmt: skip
    with progress.Events(self.folder.directory, first_step=self.done) as events:
      for answer in self._reported(answers):
        self.done = answer.query.number + 1
        if not self.done % self.source.save_every:
          self._save()
          events.write(self.done, self.shares())
      self._save()
      events.write(self.done, self.shares())

  def shares(self) -> dict[str, float]:
    """Accuracy and the share of the queries that each level answered, so far."""
    return self.tally.shares(small=len(self.levels), calls=self.state.calls)

  def notes(self) -> list[str]:
    """The same for progress lines."""
    return [f'{name} {value:.1%}' for name, value in self.shares().items()]

  def _reported(
    self, answers: Iterator[tuple[StreamAnswer, OnlineState]]
  ) -> Iterator[StreamAnswer]:
    """Write the answers, count them, and log progress."""
    left = None if self.total is None else self.total - self.done
    report = progress.Counted[Any]('query', left or 0, lambda _: (1, 0), self.notes)
    for answer, state in report(answers) if left else self._logged(answers):
      self.state = state
      given = self.pending.pop(answer.query.number)
      self.folder.write([self.tally.row(answer, given)])
      yield answer

  def _logged(
    self, answers: Iterator[tuple[StreamAnswer, OnlineState]]
  ) -> Iterator[tuple[StreamAnswer, OnlineState]]:
    """Log progress of a stream of unknown length."""
    last = time.monotonic()
    for item in answers:
      yield item
      if time.monotonic() - last > progress.SECONDS_BETWEEN_LINES:
        last = time.monotonic()
        log.info('query %d  %s', self.done, '  '.join(self.notes()))

  def _queries(self) -> Iterator[Query]:
    """Queries behind those that are answered; a row whose id occurred before is left out."""
    seen: set[bytes] = set()
    number = 0
    arriving: Iterable[StreamRow] = stream_files.rows(self.source.path)
    if stream_shifts.reorders(self.source.shifts):
      arriving = stream_shifts.ordered(self.source.shifts, list(arriving))
    for row_number, row in enumerate(arriving, 1):
      identity = str(row_number if row.id is None else row.id)
      digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
      if digest in seen:
        self.tally.numbers['duplicates'] += 1
        log.warning(
          'row %d has the id %.80r of an earlier one and is left out', row_number, identity
        )
        continue
      seen.add(digest)
      if number >= self.done:
        self.pending[number] = row
        yield Query(number, identity, row.inputs)
      number += 1

  def _expert(self, query: Query) -> int | None:
    """Class that the expert gives."""
    try:
      if self.asked is not None:
        text = self.asked(query)
      elif (own := self.pending[query.number].expert) is not None:
        text = own
      else:
        raise ExpertError(f'row {query.id!r:.80} has no key "expert", and EXPERT is not given')
    except ExpertError as error:
      if not online.warming_up(self.settings, self.state):
        raise
      raise OSError(
        f'The expert cannot answer query {query.number + 1}, in the warm-up, in which nothing else '
        f'can: {error}. Rerun the same command to go on.'
      ) from error
    return class_names.named_class(text, self.source.options)

  def _save(self) -> None:
    """Write a checkpoint."""
    values = {'described': self.described, 'done': self.done, 'numbers': dict(self.tally.numbers)}
    self.folder.save(stream_state.pack(self.state, self.levels, values))

  def _restore(self, saved: Saved) -> None:
    """Go on from a checkpoint."""
    self.state = stream_state.unpack(saved, self.state, self.levels)
    self.tally = StreamTally(self.source.options, saved.values['numbers'])
    self.done = saved.values['done']


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.stream')
