"""The README's two ways to a cascade on rows of one's own, with the commands that stand there.

    python -m benchmarks.own_rows pretrained --source=smollm2.gguf --data=../shared/data
    python -m benchmarks.own_rows scratch --tasks trec ag_news tanaka --data=../shared/data

`--data` holds the files named in `FILES`: JSON lines with keys input and target, or sentence pairs.
Rows are shuffled with a fixed seed where a file has no splits. Each task becomes a folder with
train, validation and test rows and a task.gin, in which the commands run unchanged; finished steps
are not repeated. Quality is accuracy for labels and BLEU of characters for translations, whose
baselines are the majority class and logistic regression on TF-IDF of words and pairs of words.
"""

from __future__ import annotations

import argparse
import collections
import csv
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import bars
from benchmarks.bars import Measured

ROOT = pathlib.Path(__file__).parents[1]
WAYS = {'pretrained': 'cascades.prune', 'scratch': 'models/t5_mini.gin'}  # and a word of the block
FILES = {
  'trec': ('flan_tasks/trec.train.jsonl', 'flan_tasks/trec.test.jsonl'),
  'polarity': ('flan_tasks/mr_sentence_polarity.all.jsonl',),
  'ag_news': ('flan_tasks/ag_news.official_test.jsonl',),
  'tanaka': ('mt_tanaka_en_ja/train.tsv', 'mt_tanaka_en_ja/dev.tsv', 'mt_tanaka_en_ja/test.tsv'),
}
TRANSLATION = {'tanaka'}
SPLITS = ('train', 'validation', 'test')
DEFERRED = 0.2  # share of rows whose quality and cost are reported

Row = dict[str, str]


def read(path: pathlib.Path) -> list[Row]:
  """Rows with `input` and `target` of JSON lines, or of lines with two tab-separated texts."""
  with path.open(encoding='utf-8') as file:
    if path.suffix == '.jsonl':
      return [json.loads(line) for line in file]
    pairs = (line.rstrip('\n').split('\t') for line in file)
    return [{'input': source, 'target': target} for source, target in pairs]


def split(parts: Sequence[list[Row]], held_out: int) -> dict[str, list[Row]]:
  """Train, validation, and test rows of files that hold one, two, or three of these splits."""
  if len(parts) == 3:
    return dict(zip(SPLITS, parts, strict=True))
  if len(parts) == 2:
    train, test = parts
    return {'train': train[:-500], 'validation': train[-500:], 'test': test}
  rows = list(parts[0])
  random.Random(0).shuffle(rows)
  kept = len(rows) - held_out
  return {
    'train': rows[: kept - 500],
    'validation': rows[kept - 500 : kept],
    'test': rows[kept:],
  }


def prepare(rows: dict[str, list[Row]], directory: pathlib.Path, task: str) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  for name, members in rows.items():
    lines = (json.dumps({'inputs': row['input'], 'targets': row['target']}) for row in members)
    (directory / f'{name}.jsonl').write_text('\n'.join([*lines, '']))
  text = block('local_jsonl', language='')
  if task in TRANSLATION:
    text = text.replace("'inputs': 128, 'targets': 16", "'inputs': 32, 'targets': 48")
    text += "local.local_jsonl.metrics = ('bleu_char',)\n"
  (directory / 'task.gin').write_text(text)


def block(word: str, *, language: str = 'sh') -> str:
  """The README's fenced block that contains a word."""
  readme = (ROOT / 'README.md').read_text()
  fenced = re.findall(r'^```(\w*)\n(.*?)^```$', readme, re.MULTILINE | re.DOTALL)
  (text,) = (text for name, text in fenced if name == language and word in text)
  return text


def run(commands: str, directory: pathlib.Path, source: str | None) -> float:
  """Seconds of the commands in the directory."""
  paths = [pathlib.Path(sys.executable).parent, os.environ['PATH']]
  variables = {'PATH': os.pathsep.join(map(str, paths)), 'PYTHONPATH': str(ROOT)}
  started = time.monotonic()
  subprocess.run(
    ['bash', '-euo', 'pipefail', '-c', commands],
    check=True,
    cwd=directory,
    env={**os.environ, **variables, 'SOURCE': source or ''},
  )
  return time.monotonic() - started


def baselines(rows: dict[str, list[Row]]) -> dict[str, float]:
  """Accuracy on the test rows of what needs no language model."""
  from sklearn import feature_extraction, linear_model, pipeline

  (train, answers), (test, right) = (
    zip(*((row['input'], row['target']) for row in rows[name]), strict=True)
    for name in ('train', 'test')
  )
  majority = collections.Counter(answers).most_common(1)[0][0]
  words = feature_extraction.text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
  linear = pipeline.make_pipeline(words, linear_model.LogisticRegression(C=10, max_iter=1000))
  return {
    'majority class': right.count(majority) / len(right),
    'TF-IDF and logistic regression': float(linear.fit(train, answers).score(test, right)),
  }


def evaluated(report: pathlib.Path) -> dict[str, Any]:
  """Quality of both models, the area above the chord, and a point of the curve."""
  with (report / 'summary.csv').open() as file:
    records = [record for record in csv.DictReader(file) if record['score'] in ('average', '')]
  quantities = ('small alone', 'large alone', 'area above chord')
  results = {
    record['quantity']: tuple(float(record[name]) for name in ('value', 'low', 'high'))
    for record in records
    if record['quantity'] in quantities
  }
  data = json.loads((report / 'curves.json').read_text())
  (curve,) = (entry['curve'] for entry in data['cascades'] if entry['score'] == 'average')
  rates, qualities = curve['deferral_rate'], curve['quality']
  above = next(i for i, rate in enumerate(rates) if rate >= DEFERRED)
  share = (DEFERRED - rates[above - 1]) / (rates[above] - rates[above - 1])
  quality = qualities[above - 1] + share * (qualities[above] - qualities[above - 1])
  costs = data['flops_per_token']
  cost = costs['small']['small'] / costs['large'] + DEFERRED
  results[f'deferring {DEFERRED:.0%}'] = (quality, None, None)
  results[f'cost of deferring {DEFERRED:.0%}, of the large model'] = (cost, None, None)
  return results


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('way', choices=WAYS)
  parser.add_argument('--source', help='pretrained weights, as `cascades.convert` takes them')
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--tasks', nargs='+', default=['trec', 'polarity'], choices=FILES)
  parser.add_argument('--test_rows', type=int, default=1000, help='of files without splits')
  parser.add_argument('--output_dir', type=pathlib.Path, default='runs/own_rows')
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'own_rows.json')
  options = parser.parse_args()
  measured = []
  for task in options.tasks:
    directory = (options.output_dir / options.way / task).absolute()
    rows = split([read(options.data / file) for file in FILES[task]], options.test_rows)
    prepare(rows, directory, task)
    commands = block(WAYS[options.way])
    if options.way == 'scratch':  # the README refers to the last commands of the other block
      commands += 'for model' + block(WAYS['pretrained']).partition('for model')[2]
      commands = commands.replace('runs/mine', 'runs/scratch')
    else:
      commands = '# convert' + commands.partition('# convert')[2]
    seconds = run(commands, directory, options.source)
    counts = ', '.join(f'{len(members)} {name}' for name, members in rows.items())
    measured.append(Measured(f'{task}: all commands', seconds, 's', note=f'{counts} rows'))
    for what, value in ({} if task in TRANSLATION else baselines(rows)).items():
      measured.append(Measured(f'{task}: {what}', value, ''))
    for what, (value, low, high) in evaluated(next(directory.glob('runs/*/report'))).items():
      note = '' if low is None else f'[{low:.4f}, {high:.4f}]'
      measured.append(Measured(f'{task}: {what}', value, '', note=note))
  bars.report(f"rows of one's own, {options.way}", measured, options.output, vars(options))


if __name__ == '__main__':
  main()
