"""Answers of a model behind a URL, as rows of tables of predictions."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from cascades.data.records import Records
from cascades.inference import answers
from cascades.inference.endpoint_client import Client, EndpointError, Reply, paid
from cascades.inference.endpoints import Api, Requests
from cascades.inference.pending_tables import PendingTable
from cascades.inference.responses import Responses
from cascades.predictions import imported, rows, shards
from cascades.predictions.importers import openai
from cascades.predictions.importers.answers import Answer
from cascades.runtime import files
from cascades.tasks.task import Record, Task

log = logging.getLogger(__name__)

PARSERS: Mapping[Api, Callable[[Any], Answer]] = MappingProxyType(
  {'chat': openai.chat, 'completions': openai.completion}
)
MOST_REFUSED = 8  # rows in front of the first answer
UNREADABLE = 'Leave log-probabilities out of all rows with LOGPROBS=False and OVERWRITE=True.'


class EndpointModel:
  """Answers prompts with a model behind a URL; a context manager that ends its connections."""

  def __init__(self, requests: Requests) -> None:
    """Prepares a client; nothing is sent.

    Args:
      requests: Model, form of the requests, and limits.

    Raises:
      ValueError: The environment does not hold the key.
    """
    self.requests, self.address = requests, requests.address
    self._endpoint, self._alternatives = requests.endpoint, requests.alternatives
    self._prices = requests.endpoint.limits.priced
    self._parse = PARSERS[requests.endpoint.api]
    self._measured: bool | None = None  # True once answers have log-probabilities
    self._answered = self._refused = 0
    self._reason = ''  # of the last refusal
    self.client = Client(
      requests.address.url,
      key=requests.endpoint.key(),
      limits=requests.endpoint.limits,
      responses=Responses(files.absolute(requests.endpoint.responses_dir)),
    )

  def __enter__(self) -> EndpointModel:
    return self

  def __exit__(self, *exception: object) -> None:
    self.client.__exit__(*exception)

  @property
  def described(self) -> dict[str, Any]:
    """Model and form of the requests, for manifests."""
    return self.requests.described

  def notes(self) -> list[str]:
    """Requests, retries and dollars so far, for progress lines."""
    budget = self.client.budget
    notes = [f'{budget.requests} requests']
    if self.client.retries:
      notes.append(f'{self.client.retries} retries')
    return [*notes, f'${budget.dollars:.4g}'] if self._prices else notes

  def resume(self, table: PendingTable) -> None:
    """Compare the answers of a run with those of the shards that an earlier one wrote."""
    counts = recorded(table)
    if counts['measured'] or counts['unmeasured']:
      self._measured = counts['measured'] > 0
    self._answered += counts['rows'] - counts['refused']

  def read(
    self, task: Task, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, rows.JsonRow]]:
    """Yield rows of a table for numbered rows of a split, in the order in which answers arrive.

    Raises:
      EndpointError: The server or the budget ends the run. Responses on their way are stored first.
    """
    ahead = iter(numbers)
    sent: dict[str, concurrent.futures.Future[Reply]] = {}
    waiting: dict[concurrent.futures.Future[Reply], list[tuple[int, Record]]] = {}
    with concurrent.futures.ThreadPoolExecutor(self._endpoint.limits.concurrency) as pool:
      try:
        while True:
          room = 2 * self._endpoint.limits.concurrency - len(waiting)
          for number in itertools.islice(ahead, room):
            (record,) = split.read([number])
            request = self.requests.body(record.row.inputs, number)
            content = json.dumps(request)
            if content not in sent:  # equal prompts get the same response
              sent[content] = pool.submit(self.client.ask, self.requests.path, request)
            waiting.setdefault(sent[content], []).append((number, record))
          if not waiting:
            break
          done, _ = concurrent.futures.wait(waiting, return_when='FIRST_COMPLETED')
          sent = {content: reply for content, reply in sent.items() if reply not in done}
          for reply in done:
            for number, record in waiting.pop(reply):
              yield number, self._row(task, record, reply.result())
      except BaseException:
        self.client.end()
        pool.shutdown(cancel_futures=True)
        raise
    self._check_refusals(least=1)

  def _row(self, task: Task, record: Record, reply: Reply) -> rows.JsonRow:
    """Row of a reply. One that is refused has the answer '' without tokens, which defers first."""
    if reply.refusal:
      return self._refused_row(task, record, reply.refusal, reply)
    try:
      answer = self._parse(_unmeasured(reply.body))
    except (ValueError, OverflowError) as error:  # a call of a tool, or an answer that was filtered
      return self._refused_row(task, record, str(error), reply)
    self._answered += 1
    try:
      if self._endpoint.logprobs:
        answer = self._parse(reply.body)
      self._check_measured(record, answer)
      row = self._answered_row(task, record, answer, reply)
      rows.parse(row, 'predict')
    except (ValueError, OverflowError) as error:
      raise EndpointError(
        f'{self.address} answered row {record.row.id!r:.80} with numbers that cannot be read: '
        f'{error}. {UNREADABLE}'
      ) from error
    return row

  def _answered_row(self, task: Task, record: Record, answer: Answer, reply: Reply) -> rows.JsonRow:
    logprobs, tops = answer.logprobs or (), answer.details.alternatives
    if self._alternatives and not logprobs:
      tops = ()
    row = answers.table_row(
      record,
      answer=answer.prediction,
      tokens=[imported.NO_TOKEN] * len(logprobs),
      logprobs=logprobs,
      statistics=answers.judged(task.metrics, record, answer.prediction),
      numbers={**answer.details.columns, **self._numbers(reply)},
      alternatives=[values[: self._alternatives] for values in tops]
      if self._alternatives and tops is not None
      else None,
    )
    if answer.is_cut_off:
      row['aux']['cut_off'] = True
    return row

  def _refused_row(self, task: Task, record: Record, reason: str, reply: Reply) -> rows.JsonRow:
    self._refused, self._reason = self._refused + 1, reason
    self._check_refusals(least=MOST_REFUSED)
    row = answers.table_row(
      record,
      answer='',
      tokens=[],
      logprobs=[],
      statistics=answers.judged(task.metrics, record, ''),
      numbers=self._numbers(reply),
      alternatives=[] if self._alternatives else None,
    )
    row['aux']['refused'] = reason
    return row

  def _numbers(self, reply: Reply) -> dict[str, float]:
    """Seconds and dollars of a response, if there was one."""
    price = paid(self._prices, reply.body) if self._prices else None
    priced = {} if price is None else {'dollars': price}
    return {'seconds': reply.seconds, **priced} if reply.body else {}

  def _check_refusals(self, *, least: int) -> None:
    """Raise EndpointError if so many rows are refused, and none is answered."""
    if self._answered or self._refused < least:
      return
    way = 'REQUEST={"NAME": value} adds fields to requests, and None leaves one out.'
    if self._endpoint.logprobs and 'logprob' in self._reason:
      way = UNREADABLE
    raise EndpointError(
      f'{self.address} refuses every row, {self._refused} so far: {self._reason}. {way}'
    )

  def _check_measured(self, record: Record, answer: Answer) -> None:
    """Raise EndpointError if some answers have log-probabilities and others have none."""
    measured = answer.logprobs is not None
    if not self._endpoint.logprobs or (not measured and not answer.prediction):
      return
    if self._measured is None and not measured:
      log.warning('%s gives no log-probabilities: the table has none.', self.address)
    if self._measured not in (None, measured):
      raise EndpointError(
        f'{self.address} gave {"" if measured else "no "}log-probabilities for row '
        f'{record.row.id!r:.80}, unlike for others: a score would compare the measured with the '
        f'unmeasured. {UNREADABLE}'
      )
    self._measured = measured


def recorded(table: PendingTable) -> collections.Counter[str]:
  """Numbers of rows in the shards that are written, and of those refused, cut off and measured."""
  counts: collections.Counter[str] = collections.Counter()
  task, mode = table.described['task'], table.described['mode']
  missing = table.missing()
  for index in range(table.shard_count):
    if index in missing:
      continue
    path = table.directory / shards.shard_name(task, mode, index, table.shard_count)
    for line in path.read_bytes().split(b'\n')[:-1]:
      row = json.loads(line)
      counts['rows'] += 1
      counts.update(name for name in ('refused', 'cut_off') if name in row['aux'])
      if row['aux']['length'] or row['prediction']:
        counts['measured' if row['aux']['length'] else 'unmeasured'] += 1
  return counts


def manifest(table: PendingTable, provenance: Callable[[], Mapping[str, str]]) -> Mapping[str, Any]:
  """Provenance of a table, and the numbers of rows that were refused or cut off."""
  counts = recorded(table)
  return {**provenance(), 'cut_off': counts['cut_off'], 'refused': counts['refused']}


def size(numbered: tuple[int, rows.JsonRow]) -> tuple[int, int]:
  """Number of rows (1) and of tokens, as the server reports them, for progress reports."""
  return 1, int(numbered[1]['aux'].get('generated_tokens', 0))


def _unmeasured(body: Mapping[str, Any]) -> Mapping[str, Any]:
  """The response without log-probabilities."""
  choices = [
    {**choice, 'logprobs': None} if isinstance(choice, dict) else choice
    for choice in body['choices']
  ]
  return {**body, 'choices': choices}
