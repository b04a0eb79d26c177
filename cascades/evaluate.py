"""Compare cascades from their tables of predictions.

    python -m cascades.evaluate --gin_file=runs/evaluate.gin
      --gin.SMALL="{'xent': 'runs/xent/predictions', 'cat': 'runs/cat/predictions'}"
      --gin.LARGE="'runs/large/predictions'" --gin.EVAL_OUTPUT_DIR="'runs/evaluation'"

Leaves report.html, curves.json, summary.csv, config.gin and figures/ in the output directory, and
prints the main tables. No model is run: another deferral rule costs seconds.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
from etils import epath
from jaxtyping import Bool
from rich.text import Text

from cascades import deferral, metrics
from cascades.bootstrap import Estimate
from cascades.evaluation import comparison, grouped
from cascades.evaluation.comparison import Comparison, Settings
from cascades.evaluation.grouped import Shares
from cascades.evaluation.pooling import Weights
from cascades.predictions import alignment, shards
from cascades.predictions.rows import Mode
from cascades.reporting import escaping, exports, figures, report, summary
from cascades.runtime import files
from cascades.types import DeferralRule, Metric, Predictions, Score


def evaluate(
  small: Mapping[str, str] | Sequence[str],
  large: str,
  output_dir: str,
  *,
  split: str = 'test',
  tasks: Sequence[str] | None = None,
  mode: Mode = 'predict',
  rules: Mapping[str, DeferralRule] | None = None,
  scores: Mapping[str, Score] | None = None,
  metric: Metric | str | None = None,
  weights: Weights | None = None,
  costs: Sequence[float] = (),
  qualities: Sequence[float] = (),
  baseline: str | None = None,
  resamples: int = 1000,
  confidence: float = 0.95,
  seed: int = 0,
  dedupe_inputs: bool = False,
  points: int = 1000,
  examples: int = 8,
  title: str = 'Cascades compared',
  provenance: Callable[[], Mapping[str, str]] = dict,
) -> Comparison:
  """Join the tables of each small model with the large one's, compare, and write what was found.

  `small`: directories by name, or directories named by their last part; each holds `split`/.
  `rules` (all of the paper if None) and `scores`, which may read whole tables, are by name; the
  first is the one the report leads with. `metric`: the tables' first if None; one that they have
  no statistics of judges their texts. `costs` in FLOPs per token, `qualities`, `baseline` and
  `weights`: see `comparison.Settings`. `dedupe_inputs` keeps the first row of each distinct input.
  `points`: how many of each curve curves.json has at most; `examples`: how many of each kind the
  report shows.
  """
  named = _named(small)
  theirs = _read(large, split, tasks, mode)
  ours = {name: _joined(path, theirs, split, tasks, mode) for name, path in named.items()}
  sizes = {table.task: len(table.ids) for table in theirs} if dedupe_inputs else {}
  if dedupe_inputs:
    kept = [alignment.distinct_inputs(table) for table in theirs]
    theirs = list(map(alignment.select, theirs, kept))
    ours = {name: list(map(alignment.select, own, kept)) for name, own in ours.items()}
  rules = deferral.PAPER if rules is None else rules
  settings = Settings(weights, costs, qualities, baseline, resamples, confidence, seed)
  judged_by = [_metric(metric, table) for table in theirs]
  compared = comparison.compare(
    ours,
    theirs,
    scores={name: deferral.as_score(rule) for name, rule in rules.items()} | dict(scores or {}),
    metrics=judged_by,
    settings=settings,
  )
  everyone = {**ours, report.LARGE: theirs}
  compared = compared._replace(
    others=_others(everyone, judged_by, compared.settings),
    questions=_questions(ours, theirs, compared),
    sizes_with_repeats=sizes,
  )
  runs = [report.Run(name, one.task, one.manifest) for name in everyone for one in everyone[name]]
  directory = files.absolute(output_dir)
  _write(
    directory, compared, runs, title=title, points=points, examples=examples, made_by=provenance()
  )
  for task, size in sizes.items():
    line = f'Task {task}: {compared.sizes[task]} of {size} rows have distinct inputs.'
    print(escaping.visible(line))
  _print([summary.models(compared), *([summary.pairs(compared)] if compared.versus else [])])
  print('Report:', escaping.visible(str(directory / 'report.html')))
  return compared


def _write(
  directory: epath.Path,
  compared: Comparison,
  runs: Sequence[report.Run],
  *,
  title: str,
  points: int,
  examples: int,
  made_by: Mapping[str, str],
) -> None:
  """All files of an evaluation, the report last."""
  drawn = figures.draw(compared)
  pictures = {
    kind: {name: figures.encode(figure, kind) for name, figure in drawn.items()}
    for kind in figures.KINDS
  }
  page = report.render(
    compared,
    summary.tables(compared),
    pictures['svg'],
    runs,
    title=title,
    examples=examples,
    provenance=made_by,
  )
  values = json.dumps(exports.as_json(compared, points=points), allow_nan=False)
  contents = {
    **{
      f'figures/{name}.{kind}': data for kind in pictures for name, data in pictures[kind].items()
    },
    'curves.json': values.encode(),
    'summary.csv': _csv(exports.records(compared)),
    'config.gin': made_by.get('config', '').encode(),
    'report.html': page.encode(),
  }
  for name, data in contents.items():
    files.write(directory / name, data)


def _named(small: Mapping[str, str] | Sequence[str]) -> Mapping[str, str]:
  if isinstance(small, Mapping):
    named = dict(small)
  else:
    named = {epath.Path(path).name: path for path in small}
    if len(named) < len(small):
      raise ValueError(
        f'{len(small)} small models have only the names {", ".join(named)}: name them yourself, '
        'small={"name": "directory", ...}.'
      )
  if not named or report.LARGE in named:
    raise ValueError(
      'Comparing needs one or more small models, small={"name": "directory", ...}, none of them '
      f'called {report.LARGE!r}; found {", ".join(named) or "none"}.'
    )
  return named


def _read(directory: str, split: str, tasks: Sequence[str] | None, mode: Mode) -> list[Predictions]:
  place = files.absolute(directory) / split
  found = [table for task in tasks or (None,) for table in shards.read(place, task=task, mode=mode)]
  for table in found:
    if unlabelled := table.manifest.get('unlabelled', 0):
      raise ValueError(
        f'{unlabelled} of {table.manifest["rows"]} rows of task {table.task!r} in {place} have no '
        'target, so that no metric can judge their answers: evaluate on a split that has them.'
      )
  return found


def _joined(
  directory: str,
  large: Sequence[Predictions],
  split: str,
  tasks: Sequence[str] | None,
  mode: Mode,
) -> list[Predictions]:
  """A small model's tables in the large one's order of tasks and rows."""
  found = {table.task: table for table in _read(directory, split, tasks, mode)}
  wanted = [table.task for table in large]
  if set(found) != set(wanted):
    raise ValueError(
      f'{directory}, split {split!r}, answers the tasks {sorted(found)} and the large model '
      f'{sorted(wanted)}: infer what is missing, or choose with tasks=[...].'
    )
  return [alignment.join(found[table.task], table)[0] for table in large]


def _metric(metric: Metric | str | None, table: Predictions) -> Metric:
  if isinstance(metric, Metric):
    return metric
  name = metric or table.manifest['metrics'][0]
  if table.manifest['mode'] == 'score' and name not in table.statistics:
    raise ValueError(
      f'Scored answers of task {table.task!r} were not written by the model, so that {name!r} '
      f'cannot judge them; the table has {", ".join(table.statistics)}.'
    )
  return metrics.by_name(name)


def _others(
  models: Mapping[str, Sequence[Predictions]], shown: Sequence[Metric], settings: Settings
) -> Mapping[str, Mapping[str, Estimate]]:
  """Every model by the metrics that all tables have besides the one that is compared."""
  stored = [set(table.statistics) for own in models.values() for table in own]
  names = sorted(set.intersection(*stored) - {metric.name for metric in shown})
  return {
    name: comparison.alone(models, [metrics.by_name(name)] * len(shown), settings=settings)
    for name in names
    if metrics.find(name)
  }


def _questions(
  small: Mapping[str, Sequence[Predictions]], large: Sequence[Predictions], compared: Comparison
) -> Mapping[str, Mapping[str, Shares]]:
  """How many groups of rows are wholly right, by the first score, of the tasks that have groups."""
  end, found, settings = 0, {}, compared.settings
  for number, theirs in enumerate(large):
    rows = slice(end, end := end + len(theirs.ids))
    if not theirs.groups or not _has_accuracy(theirs):
      continue
    found[theirs.task] = {
      name: grouped.shares(
        compared.answers[name].score[rows],
        theirs.groups,
        _right(tables_of[number]),
        _right(theirs),
        resamples=settings.resamples,
        confidence=settings.confidence,
        seed=settings.seed,
      )
      for name, tables_of in small.items()
    }
  return found


def _has_accuracy(table: Predictions) -> bool:
  """Stored, or to be had from the texts; what is scored without options is no answer."""
  return table.manifest['mode'] == 'predict' or metrics.accuracy.name in table.statistics


def _right(table: Predictions) -> Bool[np.ndarray, 'N']:
  accuracy = metrics.accuracy
  return accuracy.finalize(alignment.judge(table, accuracy).statistics[accuracy.name]) == 1


def _csv(records: Iterable[Mapping[str, Any]]) -> bytes:
  """Texts are made harmless for spreadsheets; numbers are written in full."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  for number, record in enumerate(records):
    if number == 0:
      writer.writerow(record)
    writer.writerow(
      escaping.cell(value) if isinstance(value, str) else value for value in record.values()
    )
  return buffer.getvalue().encode()


def _print(shown: Sequence[summary.Table]) -> None:
  """Tables that read well on a terminal and in a log; foreign text cannot act there."""
  console = rich.console.Console(highlight=False, markup=False, emoji=False)
  console = console if console.is_terminal else rich.console.Console(width=140, no_color=True)
  for table in shown:
    title = Text(escaping.visible(table.title))
    grid = rich.table.Table(title=title, title_justify='left', box=rich.box.SIMPLE)
    for name in table.header:
      grid.add_column(Text(escaping.visible(name)))
    for row in table.rows:
      grid.add_row(*(Text(escaping.visible(f'{cell.text} {cell.note}'.rstrip())) for cell in row))
    console.print(grid)


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.evaluate')
