"""Metrics of a server, in the form of Prometheus, and the drift alarms of its policy.

Everything here runs on the thread of the event loop.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition

from cascades import drift
from cascades.evaluation import policy
from cascades.evaluation.policy import Threshold
from cascades.serving.breaker import Breaker, BreakerState
from cascades.serving.exchanges import Exchange, Leg, Role
from cascades.serving.metering import Log

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)
DECISION_SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1)
TOKENS_PER_SECOND = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
SCORES = (-10, -3, -1, -0.3, -0.1, 0, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 2, 3, 10)
ALPHA = 0.05  # largest probability of any false alarm about the thresholds of a task, ever
MOST_FLAGS = 20  # values of a label

# By model and task.
PolicyEntries: TypeAlias = Mapping[tuple[Role, str], Threshold]


class Metrics:
  """Counters and histograms of exchanges, and monitors of the scores."""

  def __init__(self, entries: PolicyEntries | None = None, *, seed: int | None = None):
    """Metrics of no exchange.

    Args:
      entries: Entries of the policy by model and task; None without a policy.
      seed: Seed of the numbers that order equal scores; None for one that nobody can predict.
    """
    self.registry = CollectorRegistry()
    self._new: Mapping[str, Any] = {'registry': self.registry, 'namespace': 'cascade'}
    counter: Callable[..., Counter] = functools.partial(Counter, **self._new)
    gauge: Callable[..., Gauge] = functools.partial(Gauge, **self._new)
    histogram: Callable[..., Histogram] = functools.partial(Histogram, **self._new)
    self._requests = counter('requests', 'Requests.', ['status', 'author'])
    self._decisions = counter('decisions', 'Decisions of the policy.', ['deferred'])
    self._levels = counter(
      'level_decisions', 'Decisions about the answers of each model.', ['role', 'deferred']
    )
    self._routed = counter('routed', 'Choices of the router.', ['role'])
    self._audited = counter('audited', 'Requests that all models answered for the log.')
    self._flags = counter('flags', 'Answers that are not as the policy asked.', ['flag'])
    self._seconds = histogram(
      'request_seconds', 'Time to the end of a response.', ['author'], buckets=SECONDS
    )
    self._decision_seconds = histogram(
      'decision_seconds', 'Time of a decision.', buckets=DECISION_SECONDS
    )
    role = ['role']
    self._model_seconds = histogram(
      'model_seconds', 'Time of an answer of a model.', role, buckets=SECONDS
    )
    self._queue_seconds = histogram(
      'queue_seconds', 'Time that a question waits in a model.', role, buckets=SECONDS
    )
    self._speed = histogram(
      'tokens_per_second', 'Tokens of an answer by its time.', role, buckets=TOKENS_PER_SECOND
    )
    tokens = {'prompt': 'read', 'cached': 'read from a cache of prompts', 'generated': 'written'}
    self._tokens = {
      name: counter(f'{name}_tokens', f'Tokens that are {text}.', role)
      for name, text in tokens.items()
    }
    self._discarded = counter('discarded_tokens', 'Tokens written in vain.')
    self._dollars = counter('dollars', 'Price of answers.', role)
    self._failures = counter('model_failures', 'Answers that failed.', role)
    self._scores: Histogram | None = None
    self._alarms = gauge(
      'drift_alarm',
      '1 if the stream left what the policy was calibrated on.',
      ['role', 'task', 'monitor'],
    )
    self._rows = gauge('drift_rows', 'Rows that the monitors have seen.', ['role', 'task'])
    self._gauges: dict[str, Gauge] = {}
    self._uniform = np.random.default_rng(seed).random
    self.watch(entries or {})

  def watch(self, entries: PolicyEntries) -> None:
    """Begin to monitor the scores of a policy, and forget those of another one.

    Args:
      entries: Entries of the policy by model and task; several tasks may have one entry.
    """
    alpha = ALPHA / max(len({role for role, _ in entries}), 1)
    self._entries = {(role, task): (role, entry.task) for (role, task), entry in entries.items()}
    self._streams = {
      (role, entry.task): _Stream(role, entry, alpha) for (role, _), entry in entries.items()
    }
    self._alarms.clear()
    self._rows.clear()
    if self._scores is not None:
      self.registry.unregister(self._scores)
    edges = {edge for entry in entries.values() for edge in (*entry.edges, entry.value)}
    self._scores = Histogram(
      'score',
      'Deferral scores.',
      buckets=sorted(edge for edge in edges if math.isfinite(edge)) or SCORES,
      **self._new,
    )
    for stream in self._streams.values():
      self._show(stream)

  def record(self, exchange: Exchange) -> None:
    """Count an exchange."""
    author = exchange.author or 'nobody'
    self._requests.labels(str(exchange.status), author).inc()
    self._seconds.labels(author).observe(exchange.seconds)
    self._discarded.inc(exchange.discarded_tokens)
    if exchange.flag:
      self._flags.labels(self._flag(exchange.flag)).inc()
    for leg in exchange.legs:
      self._record_leg(leg)
    self._audited.inc(exchange.is_audit and exchange.answered == exchange.roles)
    if exchange.routed is not None:
      self._routed.labels(exchange.routed.role or 'nobody').inc()
    for decision in exchange.decisions:
      self._levels.labels(decision.role, str(decision.deferred).lower()).inc()
    if exchange.decisions:
      self._record_decision(exchange)

  def watch_breaker(self, role: str, breaker: Breaker) -> None:
    """Show the state of a model's circuit breaker."""
    for state in get_args(BreakerState):
      name, text = 'breaker_state', '1 for the state of the circuit breaker.'
      is_in = functools.partial(_is_in, breaker, state)
      self.gauge(name, text, is_in, role=role, state=state)

  def watch_log(self, log: Log) -> None:
    """Show whether exchanges are logged."""
    self.gauge('log_rows', 'Rows that are logged.', lambda: log.written)
    self.gauge('log_lost', 'Exchanges that could not be logged.', lambda: log.lost)
    self.gauge('log_failing', '1 while the log cannot be written.', lambda: bool(log.failure))

  def gauge(self, name: str, text: str, value: Callable[[], float], **labels: str) -> None:
    """Show a number that is asked for when metrics are read.

    Args:
      name: Name without the prefix.
      text: Description.
      value: Function that gives the number.
      **labels: Labels; the names must be those of the first gauge of the name.
    """
    if name not in self._gauges:
      self._gauges[name] = Gauge(name, text, list(labels), **self._new)
    gauge = self._gauges[name]
    (gauge.labels(**labels) if labels else gauge).set_function(value)

  def alarms(self) -> list[tuple[str, str, str]]:
    """Model, task and monitor of each alarm that was raised."""
    return [
      (s.role, s.task, name)
      for s in self._streams.values()
      for name, on in s.alarms().items()
      if on
    ]

  def exposition(self) -> bytes:
    """All metrics in the text form of Prometheus, `CONTENT_TYPE`."""
    return exposition.generate_latest(self.registry)

  def _record_leg(self, leg: Leg) -> None:
    self._model_seconds.labels(leg.role).observe(leg.seconds)
    self._queue_seconds.labels(leg.role).observe(leg.queue_seconds)
    for name, counter in self._tokens.items():
      counter.labels(leg.role).inc(getattr(leg, f'{name}_tokens'))
    if leg.generated_tokens and leg.seconds > leg.queue_seconds:
      speed = leg.generated_tokens / (leg.seconds - leg.queue_seconds)
      self._speed.labels(leg.role).observe(speed)
    self._dollars.labels(leg.role).inc(leg.dollars or 0.0)
    if leg.error:
      self._failures.labels(leg.role).inc()

  def _record_decision(self, exchange: Exchange) -> None:
    self._decision_seconds.observe(exchange.decision_seconds)
    self._decisions.labels(str(exchange.deferred).lower()).inc()
    score = None if exchange.is_bound else exchange.score
    if score is not None and self._scores is not None:
      self._scores.observe(score)
    for decision in exchange.decisions:
      key = self._entries.get((decision.role, exchange.task))
      if key is not None:
        stream = self._streams[key]
        score = None if decision.is_bound else decision.score
        stream.update(score, deferred=decision.deferred, uniform=self._uniform())
        self._show(stream)

  def _show(self, stream: _Stream) -> None:
    self._rows.labels(stream.role, stream.task).set(stream.rows)
    alarms = stream.alarms()
    for name in policy.MONITORED:
      if name in alarms:
        self._alarms.labels(stream.role, stream.task, name).set(alarms[name])
      else:
        with contextlib.suppress(KeyError):
          self._alarms.remove(stream.role, stream.task, name)

  def _flag(self, flag: str) -> str:
    """The flag, or 'other' after many different ones, which would be as many time series."""
    shown = {sample.labels['flag'] for metric in self._flags.collect() for sample in metric.samples}
    return flag if flag in shown or len(shown) < MOST_FLAGS else 'other'


def _is_in(breaker: Breaker, state: BreakerState) -> float:
  return float(breaker.state == state)


class _Stream:
  """Stream of rows that reach one threshold. Quality is not observed."""

  def __init__(self, role: Role, entry: Threshold, alpha: float):
    self.role, self.task = role, entry.task
    self._monitor = policy.monitor(entry, alpha=alpha)
    self._state = drift.start(self._monitor)
    self._scored = True  # False once scores are known for some rows only, which proves nothing

  @property
  def rows(self) -> int:
    """Number of rows."""
    return int(self._state.observed[0])

  def update(self, score: float | None, *, deferred: bool, uniform: float) -> None:
    """Take one more row into account; a score of None is not known."""
    observed = np.array([deferred, not deferred, np.nan], float)
    before, self._scored = self._state, self._scored and score is not None
    self._state = drift.update(self._monitor, before, score or 0.0, observed, uniform=uniform)
    if not self._scored:  # alarms about scores stay as they are
      for new, old in ((self._state.invested, before.invested), (self._state.peak, before.peak)):
        new[0] = old[0]

  def alarms(self) -> dict[str, bool]:
    """Alarms by name of the monitor, of what is observed."""
    raised = map(bool, drift.alarms(self._monitor, self._state))
    alarms = dict(zip(policy.MONITORED, raised, strict=True))
    alarms.pop('quality')
    if not self._scored and not alarms['scores']:
      del alarms['scores']
    return alarms
