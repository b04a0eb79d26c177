"""Tasks that have been read from real files, and their numbers of rows.

    python -m benchmarks.real_rows --data=../shared/data --markdown=docs/tasks.md

Reads every split of every task from the folder, texts of other layouts that it converts to the
published fields, and every other table of rows in it; with --markdown it writes the list of tasks.
What the folder lacks is left out, and said.
"""

from __future__ import annotations

import argparse
import collections
import json
import logging
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

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
- **converted rows**: real texts that a test or this script converts to the published fields; `rows
  read` of the script's. XQuAD's English rows are those of SQuAD, DialogSum's dialogues stand for
  SAMSum's, WMT22 for WMT16, NQ-open's development set for that of TFDS, and CNN/DailyMail has
  articles whose first line stands for the highlights;
- **hand-written rows**: only the 8 to 20 sample rows that ship with the task. Names, types, and
  label orders of the fields are checked against the definitions of TensorFlow Datasets.

The FLAN2021 templates are reworded, so numbers measured with them do not compare with published
FLAN numbers.
"""


class Conversion(NamedTuple):
  """Real texts that become rows of a data set.

  Attributes:
    file: file below `generation_tasks`.
    split: the data set's split that they are read as.
    convert: a line's fields as published; None leaves the line out.
  """

  file: str
  split: str
  convert: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]


def _dialogue(row: Mapping[str, Any]) -> Mapping[str, Any]:
  return {'dialogue': row['document'], 'summary': row['summaries'][0]}


def _question(row: Mapping[str, Any]) -> dict[str, Any]:
  answers = {'text': row['answers']}
  return {name: row[name] for name in ('title', 'context', 'question')} | {'answers': answers}


CONVERSIONS: Mapping[str, tuple[Conversion, ...]] = {
  'flan_xsum': (
    Conversion(
      'xsum_1000',
      'test',
      lambda row: {'document': row['document'], 'summary': row['summaries'][0]},
    ),
  ),
  'flan_cnn_dailymail': (
    Conversion(
      'cnn_dm_articles_1000',
      'test',
      lambda row: {
        'article': row['document'],
        'highlights': row['document'].partition('\n')[0].partition('. ')[0],
      },
    ),
  ),
  'flan_samsum': (
    Conversion('dialogsum_dev', 'validation', _dialogue),
    Conversion('dialogsum_test', 'test', _dialogue),
  ),
  'flan_natural_questions': (
    Conversion(
      'nq_open_dev',
      'validation',
      lambda row: {'question': row['question'], 'answer': row['answers']},
    ),
  ),
  'flan_squad_v1': (Conversion('xquad_en', 'validation', _question),),
  'flan_squad_v2': (
    Conversion('xquad_en', 'validation', lambda row: _question(row) | {'is_impossible': False}),
  ),
  'flan_wmt16_translate_deen': (
    Conversion(
      'wmt22_de_en_both',
      'test',
      lambda row: (
        {'de': row['source'], 'en': row['target']} if row['direction'] == 'de-en' else None
      ),
    ),
  ),
}


def converted(data: pathlib.Path, name: str) -> dict[str, int]:
  """Read the texts that are rows of a task when converted; numbers of rows by the task's split.

  Splits of which the folder has no texts are left out.

  Raises:
    ValueError: if a row cannot be used.
  """
  counts = {}
  with tempfile.TemporaryDirectory() as folder:
    task = catalog.get(name, data_dir=folder, tfds_data_dir='/nowhere')
    assert isinstance(task, Task)
    assert task.origin
    for conversion in CONVERSIONS[name]:
      source = data / 'generation_tasks' / f'{conversion.file}.jsonl.gz'
      if not source.exists():
        continue
      parse = lambda _, line, convert=conversion.convert: convert(textfiles.json_object(line))
      rows = textfiles.parsed_lines(source, parse, malformed='error')
      file = pathlib.Path(folder) / task.origin.dataset.builder / f'{conversion.split}.jsonl'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(''.join(json.dumps(row) + '\n' for row in rows if row))
    for split in task.splits:
      try:
        task.origin.location(split)
      except FileNotFoundError:
        continue
      counts[split] = sum(1 for _ in task.rows(split))
  return counts


FILES = """## Where files go

`DATA_DIR` (`--data_dir` of `browse_tasks`) is one folder for all data sets. In it, or one folder
deeper, lie the files that the publishers provide, under their own names, plain or with `.gz` added:

- **SuperGLUE**: the unpacked archives, such as `RTE/train.jsonl`. FLAN2021 reads the same files.
- **WMT22**: test sets as [sacreBLEU](https://github.com/mjpost/sacrebleu) keeps them (XML, or one
  text a line) for validation (2021) and test (2022), the reference beside the source, such as
  `newstest2021.en-zh.ref.A.zh`; training pairs of one's own as TSV.
- **FLAN2021**: JSON lines with the field names of TensorFlow Datasets, one file a split, such as
  `xsum/train.jsonl`; or a folder that TFDS has prepared, in `TFDS_DATA_DIR`.
- **C4**: the `.json.gz` files of AllenAI's release.
- **Streams**: the files named below, with the experts' labels.

`python -m cascades.browse_tasks list NAME --data_dir=FOLDER` says which file each task has
found or lacks, and `check` reads them all. A file of your own is not in this list: it is a task
of its own (`local_jsonl`, `local_tsv`).
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
    counts = {split.split: split.rows for split in splits}
    if not splits and task.name in CONVERSIONS:
      counts = converted(data, task.name)
    records.append(
      {
        'task': task.name,
        'suite': task.suite or 'package',
        'metrics': list(task.metrics),
        'published': dict(task.sizes),
        'read': counts,
        'problems': [problem for split in splits for problem in split.problems],
        'state': _state(task, bool(splits), bool(counts)),
        'files': _files(task),
      }
    )
  return records


def _state(task: Task, is_read: bool, is_converted: bool) -> str:
  if task.suite == '' or is_read:
    return 'official files'
  return 'converted rows' if task.name in CONVERTED or is_converted else 'hand-written rows'


def _files(task: Task) -> str:
  """Files below DATA_DIR; only their names, where all are in the same folder."""
  return task.origin.required_files if task.origin else ''


def other_files(data: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Numbers of rows of files that do not belong to the official layout of a task."""
  for folder in ('flan_tasks', 'mt_tanaka_en_ja', 'mt_libreoffice_help', 'pretrain_en'):
    if not (data / folder).is_dir():
      print(f'There is no {data / folder}: its rows are left out.')
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
  lines += ['', FILES, '| files below `DATA_DIR` | tasks |', '|---|---|']
  by_files: dict[str, list[str]] = {}
  for record in records:
    by_files.setdefault(record['files'], []).append(record['task'])
  for files, names in by_files.items():
    if files:
      code = ' '.join(f'`{file}`' for file in files.split())
      lines.append(f'| {code} | {" ".join(names)} |')
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
