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
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cascades import online, online_costs
from cascades.inference import (
  class_names,
  experts,
  online_stream,
  stream_files,
  stream_hindsight,
  stream_shifts,
  stream_state,
)
from cascades.inference.levels import Level
from cascades.inference.online_stream import ExpertError
from cascades.inference.stream_files import CheckpointPace, Saved, StreamFolder, StreamRow
from cascades.inference.stream_options import ExpertOptions, OnlineOptions, StreamSource
from cascades.inference.stream_tally import Heard, StreamTally
from cascades.online import OnlineSettings, OnlineState
from cascades.online_step import CallBudget, Query, StreamAnswer
from cascades.reporting import figures, stream_figures
from cascades.runtime import files, locking, progress

log = logging.getLogger(__name__)


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
  if (expert.calls or expert.dollars) is not None and source.path == '-':
    raise ValueError(
      'BUDGET_CALLS and BUDGET_DOLLARS are of a whole stream, and standard input has no known '
      'length: give BUDGET_SHARE.'
    )
  described = _described(source, expert, cascade)
  directory = files.absolute(source.directory)
  asking = experts.open_expert(expert.source, expert.endpoint, expert.max_tokens)
  with locking.held(directory), StreamFolder(directory) as folder, asking as asked:
    saved = folder.begin(described, overwrite=source.overwrite)
    run = _StreamRun(source, expert, settings, levels, folder, asked, described, cascade.seed)
    run.go(saved)
    beside = stream_hindsight.baselines(folder.answers(), levels=len(levels) + 1)
    summary = {
      'shares': run.shares(), 'counts': dict(run.tally.numbers), 'calls': run.state.calls,
      'updates': list(run.state.updates), 'cost': run.tally.cost,
      'baselines': beside.numbers,
      **({} if expert.dollars is None else {'dollars': run.state.spent}),
      'settings': described, 'provenance': dict(provenance()),
    }  # fmt: skip
    files.write(directory / 'summary.json', json.dumps(summary, indent=1) + '\n')
    figure = stream_figures.draw(folder.answers(), beside.curves, levels=len(levels) + 1)
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
    'budget': [expert.calls, expert.share, expert.dollars],
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
    self.tally = StreamTally(self.source.options, self.settings.next_costs)
    self.pending: dict[int, StreamRow] = {}  # rows that are not answered yet
    self.done = 0  # queries that an earlier run has answered
    self.total = stream_files.length(self.source.path)
    self.pace = CheckpointPace(self.source.save_every, self.source.save_share)
    self.expert = stream_shifts.shifted(
      self.source.shifts, self._expert, classes=self.settings.classes, seed=self.seed
    )

  def go(self, saved: Saved | None) -> None:
    """Answer all queries that are left, and save every few of them."""
    if saved:
      self._restore(saved)
      log.info('%s: goes on behind query %d', self.folder.directory, self.done)
    budget = None
    if self.options.calls is not None:
      budget = CallBudget(self.options.calls, self.total or 0)
    elif self.options.dollars is not None:
      budget = CallBudget(self.options.dollars, self.total or 0, self._price)
    answers = online_stream.run(
      self.settings, self.levels, self.expert, self._queries(), self.state, seed=self.seed,
      budget=budget, delay=self.options.delay, every_level=self.source.every_level,
    )  # fmt: skip
    with progress.Events(self.folder.directory, first_step=self.done) as events:
      for answer in self._reported(answers):
        self.done = answer.query.number + 1
        if self.pace.due(self.done):
          self._save(events)
      self._save(events)

  def shares(self) -> dict[str, float]:
    """Accuracy and the share of the queries that each level answered, so far."""
    return self.tally.shares(small=len(self.levels), calls=self.state.calls)

  def notes(self) -> list[str]:
    """The same for progress lines."""
    shares = [f'{name} {value:.1%}' for name, value in self.shares().items()]
    return [*shares, f'cost {self._mean_cost():.4g}']

  def _mean_cost(self) -> float:
    return self.tally.cost / max(self.tally.numbers['queries'], 1)

  def _reported(
    self, answers: Iterator[tuple[StreamAnswer, OnlineState]]
  ) -> Iterator[StreamAnswer]:
    """Write the answers, count them, and log progress."""
    left = None if self.total is None else self.total - self.done
    report = progress.Counted[Any]('query', left or 0, lambda _: (1, 0), self.notes)
    for answer, state in report(answers) if left else self._logged(answers):
      self.state = state
      heard = self._heard(answer)
      given = self.pending.pop(answer.query.number)
      self.folder.write([self.tally.row(answer, given, heard)])
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

  def _queries(self) -> Iterator[Query | None]:
    """Queries behind those that are answered; a row whose id occurred before is left out."""
    arriving: Iterable[StreamRow | None] = stream_files.rows(self.source.path)
    if stream_shifts.reorders(self.source.shifts):
      arriving = stream_shifts.ordered(self.source.shifts, [row for row in arriving if row])
    self.tally.numbers.pop('duplicates', None)  # an earlier run has read the same rows
    number = 0
    for pair in stream_files.identified(arriving, self._repeated):
      if pair is None:
        yield None
        self.folder.flush()  # what has arrived is answered
        continue
      identity, row = pair
      if number >= self.done:
        self.pending[number] = row
        yield Query(number, identity, row.inputs)
      number += 1

  def _repeated(self, number: int, identity: str) -> None:
    self.tally.numbers['duplicates'] += 1
    log.warning('row %d has the id %.80r of an earlier one and is left out', number, identity)

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

  def _heard(self, answer: StreamAnswer) -> Heard | None:
    """Class that the expert gives, also where it is not asked but its answers are recorded.

    Where it fails, the last small model answers, if it runs.
    """
    small = self.settings.small
    if answer.choice.level == small:
      return Heard(answer.label)
    if isinstance(self.asked, experts.EndpointExpert):
      return None
    try:
      return Heard(self.expert(answer.query))
    except ExpertError:
      last = answer.probabilities[small - 1 :]
      return Heard(int(np.argmax(last[0]))) if last else None

  def _price(self, query: Query) -> float:
    """Dollars of the answer that the expert has just given."""
    if isinstance(self.asked, experts.EndpointExpert):
      price = self.asked.price
    else:
      price = self.pending[query.number].dollars
    if price is None:
      raise ValueError(
        f'The price of the answer to {query.id!r:.80} is not known, and BUDGET_DOLLARS counts it: '
        'recorded answers need the key "dollars" of their rows, and those of a URL their usage.'
      )
    return price

  def _save(self, events: progress.Events) -> None:
    """Write a checkpoint."""
    values = {
      'described': self.described, 'done': self.done, 'numbers': dict(self.tally.numbers),
      'cost': self.tally.cost,
    }  # fmt: skip
    with self.pace.measured():
      self.folder.save(stream_state.pack(self.state, self.levels, values))
      events.write(self.done, {**self.shares(), 'cost of a query': self._mean_cost()})

  def _restore(self, saved: Saved) -> None:
    """Go on from a checkpoint."""
    self.state = stream_state.unpack(saved, self.state, self.levels)
    values = saved.values
    self.tally = StreamTally(
      self.source.options, self.settings.next_costs, values['numbers'], cost=values['cost']
    )
    self.done = saved.values['done']


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.stream')
