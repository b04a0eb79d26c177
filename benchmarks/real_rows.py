"""Which tasks have been read from real files, and how many rows there were.

    python -m benchmarks.real_rows --data=../shared/data --markdown=docs/tasks.md

Every split of every task is read from the folder, and so is every other table of rows in it; with
--markdown the list of tasks with their state is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from cascades.tasks import catalog, checking, local, textfiles
from cascades.tasks.sources import Sources
from cascades.tasks.task import Mixture, Task

# Real texts whose published fields had to be put together from a converted file: in tests/tasks.
CONVERTED = {
  'flan_ag_news_subset', 'flan_openbookqa', 'flan_arc_challenge', 'flan_arc_easy', 'flan_trec',
  'flan_piqa', 'flan_winogrande', 'flan_sst2', 'flan_imdb_reviews', 'flan_trivia_qa',
  'flan_bool_q', 'flan_true_case', 'flan_fix_punct', 'flan_word_segment',
  'flan_wmt16_translate_ruen', 'c4_span_corruption', 'c4_prefix_lm', 'c4_causal_lm',
}  # fmt: skip
INTRODUCTION = """# The tasks

Written by `python -m benchmarks.real_rows --markdown=docs/tasks.md`. Sizes are the published rows
of each split; of FLAN2021 those of the training slice and, as `paper`, those that the CAT paper
judges. The state says what the code has been run on here:

- **official files**: real rows in the official layout, `rows read` of them, from files that may be
  parts (BoolQ's first 1,000 training rows, 32 queries of ReCoRD);
- **converted rows**: real texts, put into the published fields by a test;
- **hand-written rows**: only the 8 to 20 rows of our own words that ship with the task. Names,
  kinds and label orders of the fields are checked against TensorFlow Datasets' own definitions.

FLAN2021's templates are in our own words, so numbers measured with them do not compare with
published FLAN numbers.
"""


def tasks(data: pathlib.Path) -> Iterator[Task]:
  for make in catalog.tasks().values():
    made = make(Sources(data, tfds_data_dir='/nowhere', malformed='skip'))
    assert not isinstance(made, Mixture)
    yield made


def read(data: pathlib.Path) -> list[dict[str, Any]]:
  """Every split of every task that has rows in the folder."""
  found = []
  for task in tasks(data):
    splits = [one for one in checking.check(task) if one.where]
    found.append(
      {
        'task': task.name,
        'suite': task.suite or 'package',
        'metrics': list(task.metrics),
        'published': dict(task.sizes),
        'read': {one.split: one.rows for one in splits},
        'problems': [problem for one in splits for problem in one.problems],
        'state': _state(task, bool(splits)),
      }
    )
  return found


def _state(task: Task, is_read: bool) -> str:
  if task.suite == '' or is_read:
    return 'official files'
  return 'converted rows' if task.name in CONVERTED else 'hand-written rows'


def other_files(data: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Rows of the files that belong to no task's official layout."""
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


def markdown(found: list[dict[str, Any]]) -> str:
  lines = [INTRODUCTION, '| task | suite | metrics | published rows | rows read | state |']
  lines.append('|---|---|---|---|---|---|')
  for one in found:
    published, rows = (
      ', '.join(f'{split} {count:,}' for split, count in one[key].items())
      for key in ('published', 'read')
    )
    metrics = ', '.join(one['metrics']).replace('|', '\\|')
    cells = (one['task'], one['suite'], metrics, published, rows, one['state'])
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--data', default='../shared/data', type=pathlib.Path)
  parser.add_argument('--markdown', type=pathlib.Path, help='where the list of tasks goes')
  parser.add_argument('--output', type=pathlib.Path, help='where the figures go, as JSON')
  arguments = parser.parse_args()
  if not arguments.data.is_dir():
    raise SystemExit(f'There is no folder {arguments.data}: --data names the real rows.')
  logging.disable(logging.INFO)
  began = time.monotonic()
  found = read(arguments.data)
  for one in found:
    if one['read']:
      print(f'{one["task"]:<40}{one["read"]}  published {one["published"]}')
    for problem in one['problems']:
      print(f'  {problem}')
  others = dict(other_files(arguments.data))
  for name, count in others.items():
    print(f'{name:<60}{count:>8,}')
  states = [one['state'] for one in found]
  print({state: states.count(state) for state in sorted(set(states))})
  print(f'{time.monotonic() - began:.0f} s')
  if arguments.markdown:
    arguments.markdown.write_text(markdown(found))
  if arguments.output:
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps({'tasks': found, 'others': others}, indent=2))


if __name__ == '__main__':
  main()
