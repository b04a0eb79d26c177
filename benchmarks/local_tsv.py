"""The pipeline of the README on tab-separated files: TREC and SST-2, with the majority class.

    python -m benchmarks.local_tsv --data=../shared/data/flan_tasks

`--data` holds `<task>.train.jsonl` and `<task>.test.jsonl` with keys input and target. Each becomes
a TSV and a task.gin in the output directory; the rest are commands that a user would type. Models
are randomly initialized and see only these few thousand rows.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import pathlib
import shlex
import subprocess
import sys

from benchmarks import bars
from benchmarks.bars import Measured

TASKS = {'trec': 48, 'sst2': 64}  # the longest inputs in tokens
PIECES = 4000
VALIDATION_ROWS = 500  # the last ones of the training file

TASK = """from __gin__ import dynamic_registration
from cascades.tasks import local
from cascades.tokenizers import vocabularies
TASK = @local.local_tsv()
TASK_FEATURE_LENGTHS = {{'inputs': {length}, 'targets': 8}}
VOCABULARY = @vocabularies.sentencepiece()
vocabularies.sentencepiece.path = '{directory}/pieces.model'
local.local_tsv.name = '{name}'
local.local_tsv.splits = {{
  'train': '{directory}/train.tsv', 'validation': '{directory}/validation.tsv',
  'test': '{directory}/test.tsv'}}
"""


def prepare(source: pathlib.Path, name: str, length: int, directory: pathlib.Path) -> float:
  """Write the TSVs and task.gin, and return the accuracy of train's majority class on test."""
  directory.mkdir(parents=True, exist_ok=True)
  train, test = (read(source / f'{name}.{split}.jsonl') for split in ('train', 'test'))
  splits = {
    'train': train[:-VALIDATION_ROWS], 'validation': train[-VALIDATION_ROWS:], 'test': test
  }  # fmt: skip
  for split, rows in splits.items():
    lines = ('\t'.join([' '.join(row['input'].split()), row['target']]) for row in rows)
    (directory / f'{split}.tsv').write_text('\n'.join([*lines, '']), encoding='utf-8')
  (directory / 'task.gin').write_text(TASK.format(name=name, length=length, directory=directory))
  majority = collections.Counter(row['target'] for row in train).most_common(1)[0][0]
  return sum(row['target'] == majority for row in test) / len(test)


def read(path: pathlib.Path) -> list[dict[str, str]]:
  with path.open(encoding='utf-8') as file:
    return [json.loads(line) for line in file]


def commands(directory: pathlib.Path) -> list[str]:
  """Commands that a user would type, one line each."""
  task = f'--gin_file={directory}/task.gin'
  train = f'python -m cascades.train --gin_file=recipes/local_train.gin {task}'
  size = f'--gin.VOCAB_SIZE={PIECES + 100} --gin.t5.Config.dropout_rate=0.1'
  large, small = f'{directory}/large', f'{directory}/small'
  infer = f'python -m cascades.infer --gin_file=runs/infer.gin {task}'
  return [
    f'python -m cascades.browse_tasks train_vocabulary --task={directory}/train.tsv '
    f'--size={PIECES} --output={directory}/pieces.model',
    f'{train} --gin_file=models/t5_mini.gin {size} --gin.MODEL_DIR={large}',
    f'{train} --gin_file=models/t5_nano.gin {size} --gin.MODEL_DIR={small} '
    f'--gin.LOSS=@losses.cat_xent --gin.LARGE_CHECKPOINT_PATH={large}',
    *(
      f'{infer} --gin.CHECKPOINT_PATH={model} --gin.INFER_OUTPUT_DIR={model}/predictions'
      for model in (large, small)
    ),
    'python -m cascades.evaluate --gin_file=runs/evaluate.gin '
    f"""--gin.SMALL="{{'small': '{small}/predictions'}}" --gin.LARGE={large}/predictions """
    f'--gin.EVAL_OUTPUT_DIR={directory}/evaluation',
  ]


def accuracies(directory: pathlib.Path) -> dict[str, float]:
  """Accuracy of both models alone and the area above the chord, under the paper's rule."""
  with (directory / 'evaluation' / 'summary.csv').open() as file:
    records = [r for r in csv.DictReader(file) if r['score'] in ('average', '')]
  quantities = ('small alone', 'large alone', 'area above chord')
  return {r['quantity']: float(r['value']) for r in records if r['quantity'] in quantities}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--output_dir', type=pathlib.Path, default=pathlib.Path('runs/local_tsv'))
  parser.add_argument('--output', default=bars.RESULTS / 'local_tsv.json')
  arguments = parser.parse_args()
  measured = []
  for name, length in TASKS.items():
    directory = arguments.output_dir / name
    majority = prepare(arguments.data, name, length, directory)
    for line in commands(directory):
      print(line, flush=True)
      subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
    quantities = {'majority class': majority, **accuracies(directory)}
    measured += [Measured(f'{name}: {what}', value, '') for what, value in quantities.items()]
  bars.report('tab-separated files', measured, arguments.output, vars(arguments))


if __name__ == '__main__':
  main()
