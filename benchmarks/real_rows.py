"""Tasks that have been read from real files, and their numbers of rows.

    python -m benchmarks.real_rows --data=../shared/data --markdown=docs/tasks.md

Reads every split of every task from the folder, and every other table of rows in it; with
--markdown it writes the list of tasks.
"""

from __future__ import annotations

import argparse
import collections
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import bars
from benchmarks.bars import Measured
from cascades.tasks import catalog, checking, local, textfiles
from cascades.tasks.sources import Sources
from cascades.tasks.task import Mixture, Task

# Real texts whose published fields are assembled from a converted file, in tests/tasks.
CONVERTED = {
  'flan_ag_news_subset', 'flan_openbookqa', 'flan_arc_challenge', 'flan_arc_easy', 'flan_trec',
  'flan_piqa', 'flan_winogrande', 'flan_sst2', 'flan_imdb_reviews', 'flan_trivia_qa',
  'flan_bool_q', 'flan_true_case', 'flan_fix_punct', 'flan_word_segment',
  'flan_wmt16_translate_ruen', 'c4_span_corruption', 'c4_prefix_lm', 'c4_causal_lm',
}  # fmt: skip
INTRODUCTION = """# Tasks

Written by `python -m benchmarks.real_rows --markdown=docs/tasks.md`. Sizes are the published rows
of each split; for FLAN2021 those of the training slice and, as `paper`, those that the CAT paper
evaluates on. The state says which data the code has been run on:

- **official files**: real rows in the official layout, `rows read` of them; some files are excerpts
  (the first 1,000 training rows of BoolQ, 32 queries of ReCoRD);
- **converted rows**: real texts that a test converts to the published fields;
- **hand-written rows**: only the 8 to 20 sample rows that ship with the task. Names, types, and
  label orders of the fields are checked against the definitions of TensorFlow Datasets.

The FLAN2021 templates are reworded, so numbers measured with them do not compare with published
FLAN numbers.
"""


def tasks(data: pathlib.Path) -> Iterator[Task]:
  for make in catalog.tasks().values():
    task = make(Sources(data, tfds_data_dir='/nowhere', malformed='skip'))
    assert not isinstance(task, Mixture)
    yield task


def read(data: pathlib.Path) -> list[dict[str, Any]]:
  """Read every split of every task that has rows in the folder."""
  records = []
  for task in tasks(data):
    splits = [split for split in checking.check(task) if split.where]
    records.append(
      {
        'task': task.name,
        'suite': task.suite or 'package',
        'metrics': list(task.metrics),
        'published': dict(task.sizes),
        'read': {split.split: split.rows for split in splits},
        'problems': [problem for split in splits for problem in split.problems],
        'state': _state(task, bool(splits)),
      }
    )
  return records


def _state(task: Task, is_read: bool) -> str:
  if task.suite == '' or is_read:
    return 'official files'
  return 'converted rows' if task.name in CONVERTED else 'hand-written rows'


def other_files(data: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Numbers of rows of files that do not belong to the official layout of a task."""
  for file in sorted((data / 'flan_tasks').glob('*.jsonl')):
    rows = local.local_jsonl(
      file.stem, {'all': str(file)}, inputs_key='input', targets_key='target', options_key='-'
    )
    yield f'flan_tasks/{file.name}', sum(1 for _ in rows.rows('all'))
  for folder in ('mt_tanaka_en_ja', 'mt_libreoffice_help'):
    for file in sorted((data / folder).glob('*.tsv')):
      rows = local.local_tsv(file.stem, {'all': str(file)})
      yield f'{folder}/{file.name}', sum(1 for _ in rows.rows('all'))
  for file in sorted((data / 'pretrain_en').glob('*.jsonl.gz')):
    parse = lambda _, line: textfiles.json_object(line)
    yield (
      f'pretrain_en/{file.name}',
      sum(1 for _ in textfiles.parsed_lines(file, parse, malformed='error')),
    )


def markdown(records: list[dict[str, Any]]) -> str:
  lines = [INTRODUCTION, '| task | suite | metrics | published rows | rows read | state |']
  lines.append('|---|---|---|---|---|---|')
  for record in records:
    published, rows = (
      ', '.join(f'{split} {count:,}' for split, count in record[key].items())
      for key in ('published', 'read')
    )
    metrics = ', '.join(record['metrics']).replace('|', '\\|')
    cells = (record['task'], record['suite'], metrics, published, rows, record['state'])
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', default='../shared/data', type=pathlib.Path)
  parser.add_argument('--markdown', type=pathlib.Path, help='file to write the list of tasks to')
  parser.add_argument('--output', default=bars.RESULTS / 'real_rows.json')
  arguments = parser.parse_args()
  if not arguments.data.is_dir():
    raise SystemExit(f'There is no folder {arguments.data}: --data names the real rows.')
  logging.disable(logging.INFO)
  began = time.monotonic()
  records = read(arguments.data)
  for record in records:
    if record['read']:
      print(f'{record["task"]:<40}{record["read"]}  published {record["published"]}')
    for problem in record['problems']:
      print(f'  {problem}')
  others = dict(other_files(arguments.data))
  for name, count in others.items():
    print(f'{name:<60}{count:>8,}')
  if arguments.markdown:
    arguments.markdown.write_text(markdown(records))
  states = collections.Counter(record['state'] for record in records)
  measured = [Measured(f'tasks run on {state}', states[state], 'tasks') for state in sorted(states)]
  measured.append(Measured('reading everything', time.monotonic() - began, 's'))
  details = {'tasks': records, 'others': others}
  bars.report('rows of real files', measured, arguments.output, vars(arguments), details)


if __name__ == '__main__':
  main()
