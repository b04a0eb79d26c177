"""Tables of predictions made from answers that other systems wrote."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from etils import epath

from cascades import costs, metrics
from cascades.predictions import rows, shards
from cascades.predictions.importers import columns, lm_eval, openai, serving
from cascades.predictions.importers.answers import Answer

Line: TypeAlias = tuple[int, Any]  # number and JSON value
Judge: TypeAlias = Callable[[Answer], Mapping[str, Sequence[float]]]
CanJudge: TypeAlias = Callable[[Answer], bool]
UNKNOWN = 'unknown'
MAX_BYTES = 1 << 32  # of a source, unpacked
NO_TOKEN = -1  # in the place of ids that the source does not hold


@dataclasses.dataclass(frozen=True)
class Source:
  """Description of a source of answers.

  Attributes:
    format: Name in FORMATS.
    path: The file: JSON lines, or CSV or TSV for 'columns', also as .gz.
    columns: Names in the source by ours, for 'columns'.
    labels: Table with the targets, and prompts if it holds them, by id; None if the source does.
    label_columns: Names in that table by ours.
    filter: Filter of lm-evaluation-harness to take; of a log, 'all' or 'both' takes the exchanges
      in which all models answered, 'audit' those of them that were drawn for it.
    choice: Index of the choice to take where a response has several.
    ignore_logprobs: Leave out log-probabilities, where only some rows have them.
  """

  format: str
  path: str
  columns: str = ''
  labels: str | None = None
  label_columns: str = 'id,inputs,targets'
  filter: str | None = None
  choice: int | None = None
  ignore_logprobs: bool = False


FORMATS: Mapping[str, Callable[[Source], Callable[[Any], Answer | None]]] = {
  'columns': lambda source: partial(columns.answer, columns=columns.parse(source.columns)),
  'openai-chat': lambda source: partial(openai.chat, choice=source.choice),
  'openai-completions': lambda source: partial(openai.completion, choice=source.choice),
  'batch': lambda source: partial(openai.batch, choice=source.choice),
  'lm-eval': lambda source: partial(lm_eval.sample, name=source.filter),
  'log': lambda source: partial(
    serving.exchange, answered=source.filter, judged=source.labels is not None
  ),
}


def read(source: Source) -> list[Answer]:
  """Answers of a source, each with an id, a prompt and targets.

  Raises:
    ValueError: naming the file, the line, and what was expected.
  """
  if source.format not in FORMATS:
    raise ValueError(f'--format={source.format!r} is none of {", ".join(FORMATS)}.')
  answers = []
  parse = FORMATS[source.format](source)
  filters: set[str] = set()
  present: set[str] = set()
  for number, record in lines(source.path):
    present.update(record if isinstance(record, dict) else ())
    if source.format == 'lm-eval' and isinstance(record, dict):
      filters.add(str(record.get('filter') or 'none'))
    if (answer := _parsed(source.path, number, parse, record)) is not None:
      answers.append(answer._replace(line=number))
  if source.filter is None and len(filters) > 1:
    raise ValueError(
      f'{source.path} holds answers of the filters {", ".join(sorted(filters))}: take one with '
      '--filter.'
    )
  if not answers:
    raise ValueError(f'{source.path} holds no answer; a table has one or more rows.')
  if absent := sorted(set(columns.parse(source.columns).values()) - present):
    raise ValueError(
      f'{source.path} has no column {", ".join(absent)}, which --columns names; it has '
      f'{", ".join(sorted(present))}.'
    )
  answers = _with_targets(answers, source)
  seen: dict[str, int] = {}
  for answer in answers:
    if (first := seen.setdefault(answer.id or '', answer.line)) != answer.line:
      raise ValueError(
        f'{source.path}, line {answer.line}: id {answer.id!r} stands in line {first} too'
      )
  return _measured(answers, source)


def unpacked(path: str) -> str:
  """Text of a file of UTF-8, packed as .gz or not.

  Raises:
    ValueError: naming the file.
  """
  data = epath.Path(path).read_bytes()
  try:
    if path.endswith('.gz'):
      with gzip.open(io.BytesIO(data)) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
      raise ValueError(f'more than {MAX_BYTES:,} bytes')
    return data.decode('utf-8-sig')
  except (ValueError, OSError, EOFError) as error:
    raise ValueError(f'{path} is no file of UTF-8 text that can be read: {error}.') from error


def lines(path: str) -> Iterator[Line]:
  """Rows of a file of JSON lines, CSV or TSV, with the number of their line.

  Raises:
    ValueError: naming the file, and the line where there is one.
  """
  text, name = unpacked(path), path.removesuffix('.gz')
  if name.endswith(('.csv', '.tsv')):
    yield from _table(path, text, '\t' if name.endswith('.tsv') else ',')
    return
  for number, line in enumerate(text.split('\n'), start=1):
    if line.strip():
      try:
        yield number, json.loads(line, parse_constant=rows.refuse_constant)
      except (ValueError, RecursionError) as error:
        raise ValueError(f'{path}, line {number}: no valid JSON: {error}') from error


def _table(path: str, text: str, delimiter: str) -> Iterator[Line]:
  reader = csv.DictReader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
  try:
    names = reader.fieldnames or ()
    if twice := [name for name in names if names.count(name) > 1]:
      raise ValueError(f'the header names the column {twice[0]!r} twice')
    for record in reader:
      if None in record or None in record.values():
        raise ValueError(f'another number of columns than {len(names)}')
      yield reader.line_num, {name: value or None for name, value in record.items()}
  except (ValueError, csv.Error) as error:
    raise ValueError(f'{path}, line {reader.line_num}: {error}') from error


def _parsed(path: str, number: int, parse: Callable[[Any], Any], record: Any) -> Any:
  try:
    if not isinstance(record, dict):
      raise ValueError(f'expected an object, found {record!r:.80}')
    return parse(record)
  except (ValueError, OverflowError) as error:
    raise ValueError(f'{path}, line {number}: {error}') from error


def _with_targets(answers: Sequence[Answer], source: Source) -> list[Answer]:
  """Answers with the ids, prompts and targets of the labels, or with the numbers of their lines."""
  if source.labels is None:
    return [answer._replace(id=answer.id or str(i)) for i, answer in enumerate(answers)]
  parse = partial(columns.answer, columns=columns.parse(source.label_columns))
  labels = [_parsed(source.labels, *_order(parse, line)) for line in lines(source.labels)]
  if any(answer.id is None for answer in answers):
    if len(labels) != len(answers):
      raise ValueError(
        f'{source.path} has {len(answers)} answers without ids, which are labeled by their order, '
        f'and {source.labels} has {len(labels)} labels.'
      )
    answers = [a._replace(id=label.id) for a, label in zip(answers, labels, strict=True)]
  by_id = {label.id: label for label in labels}
  if source.format == 'log':  # of which a sample may be labeled
    answers = [answer for answer in answers if answer.id in by_id]
    if not answers:
      raise ValueError(f'{source.labels} has labels of no answer in {source.path}.')
  if absent := [answer.id for answer in answers if answer.id not in by_id]:
    raise ValueError(
      f'{source.labels} has no label of {len(absent)} of {len(answers)} answers, such as '
      f'{absent[0]!r}.'
    )
  return [
    answer._replace(targets=by_id[answer.id].targets, inputs=by_id[answer.id].inputs)
    for answer in answers
  ]


def _order(parse: Callable[[Any], Any], line: Line) -> tuple[int, Callable[[Any], Any], Any]:
  return line[0], parse, line[1]


def _measured(answers: Sequence[Answer], source: Source) -> list[Answer]:
  """Answers whose log-probabilities all are given, or none."""
  absent = [answer.line for answer in answers if answer.logprobs is None]
  if absent and len(absent) < len(answers) and not source.ignore_logprobs:
    raise ValueError(
      f'{source.path}, line {absent[0]}: no log-probabilities, and {len(answers) - len(absent)} of '
      f'{len(answers)} answers have them: a score would compare the measured with the unmeasured. '
      'Request them for all, or leave them out with --ignore_logprobs.'
    )
  if not absent and not source.ignore_logprobs:
    return list(answers)
  return [a._replace(logprobs=None, details=a.details._replace(alternatives=None)) for a in answers]


def write(
  source: Source,
  directory: epath.PathLike,
  *,
  task: str,
  split: str,
  parameters: int,
  metric: str | None = None,
  model: str | None = None,
  overwrite: bool = False,
) -> Mapping[str, Any]:
  """Write the table of a source; one of another source is not replaced unless asked for.

  Args:
    source: The source.
    directory: Directory of a split.
    task: Name of the task.
    split: Name of the split.
    parameters: Parameters of the model, or an estimate, for its FLOPs per token.
    metric: Metric that judges the answers by their targets; None for the source's own judgement,
      or else accuracy.
    model: Name of the model; None for the one that the source names.
    overwrite: Replace another table.

  Returns:
    The manifest.

  Raises:
    FileExistsError: if the directory holds another table of the task.
    ValueError: if the source cannot be read, a number is out of its range, or only some rows are
      judged. No file is touched then.
  """
  answers = read(source)
  judge, can_judge = _judge(answers, metric, source.path)
  records = [_record(answer, judge, source.path) for answer in answers]
  digest = hashlib.sha256(epath.Path(source.path).read_bytes()).hexdigest()
  options = dataclasses.asdict(source) | {'path': epath.Path(source.path).name}
  manifest: dict[str, Any] = {
    'task': task,
    'split': split,
    'mode': 'predict',
    'rows': len(records),
    'shards': 1,
    'model': {'name': model or next((a.model for a in answers if a.model), UNKNOWN)},
    'parameters': parameters,
    'flops_per_token': costs.flops_per_token(parameters),
    'checkpoint': UNKNOWN,
    'step': 0,
    'vocabulary': UNKNOWN,
    'decoding': {},
    'precision': UNKNOWN,
    'metrics': list(records[0]['aux']['statistics']),
    'config': '',
    'imported': options | {'sha256': digest},
    'cut_off': sum(answer.is_cut_off for answer in answers),
  }
  if unlabelled := sum(not can_judge(answer) for answer in answers):
    manifest['unlabelled'] = unlabelled
  fingerprint = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
  path = epath.Path(directory)
  present = _present(path, task)
  stored = _stored(path, task)
  if stored.get('fingerprint') == fingerprint:
    return stored
  if present and not overwrite:
    raise FileExistsError(
      f'{path} holds another table of task {task!r}: choose another directory, or replace the '
      'table with --overwrite.'
    )
  path.mkdir(parents=True, exist_ok=True)
  # The table in place is read until its manifest is replaced: shards of its names are not touched.
  count = 2 if stored.get('shards') == 1 else 1
  manifest |= {'shards': count, 'fingerprint': fingerprint}
  for index in range(count):
    own = shards.shard_rows(len(records), index, count)
    shards.write_shard(
      path, task, 'predict', index, count, records[own.start : own.stop], fingerprint=fingerprint
    )
  shards.write_manifest(path, manifest)
  written = tuple(shards.shard_name(task, 'predict', index, count) for index in range(count))
  for file in present:
    if not file.name.startswith((*written, shards.manifest_name(task, 'predict'))):
      file.unlink(missing_ok=True)
  return manifest


def _present(path: epath.Path, task: str) -> list[epath.Path]:
  """Files of the task's table."""
  name = shards.stem(task, 'predict')
  return [f for f in path.iterdir() if f.name.startswith(f'{name}.')] if path.exists() else []


def _stored(path: epath.Path, task: str) -> Mapping[str, Any]:
  """Manifest of the task's table; empty if there is no complete one."""
  try:
    (table,) = shards.read(path, task=task)
  except (FileNotFoundError, ValueError):
    return {}
  return table.manifest


def _judge(answers: Sequence[Answer], metric: str | None, path: str) -> tuple[Judge, CanJudge]:
  """Statistics of an answer by metric, and whether it holds what they need."""
  names = sorted(set.intersection(*(set(answer.qualities) for answer in answers)))
  if metric is None and names:
    return lambda answer: {name: [answer.qualities[name], 1.0] for name in names}, lambda _: True
  if metric is None and any(answer.qualities for answer in answers):
    # To judge all by their targets would replace the judgements that some have.
    first = min(answers, key=lambda answer: (len(answer.qualities), answer.line))
    raise ValueError(
      f'{path}, line {first.line}: judged by {", ".join(first.qualities) or "nothing"}, but no '
      'metric judges every answer: complete the source, or judge all by targets with --metric.'
    )
  by_name = metrics.by_name(metric or 'accuracy')
  return (
    lambda answer: {
      by_name.name: list(by_name.statistics(answer.targets or [''], answer.prediction))
    },
    lambda answer: answer.targets is not None,
  )


def _record(answer: Answer, judge: Judge, path: str) -> rows.JsonRow:
  """Row of an answer. Raises ValueError, naming the line, if a number is out of its range."""
  record = rows.build(
    id=answer.id or '',
    inputs=answer.inputs or '',
    targets=answer.targets or [''],
    answer=answer.prediction,
    tokens=[NO_TOKEN] * len(answer.logprobs or ()),
    logprobs=answer.logprobs or (),
    statistics=judge(answer),
    details=answer.details,
  )
  _parsed(path, answer.line, partial(rows.parse, mode='predict'), record)
  return record
