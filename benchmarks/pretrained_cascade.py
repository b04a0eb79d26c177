"""A cascade of two pretrained models on TREC and SST-2, with the commands of a user.

    python -m benchmarks.pretrained_cascade --source=smollm2.gguf --data=../shared/data/flan_tasks

`--source` is what `python -m cascades.convert` reads; `--data` holds `<task>.train.jsonl` and
`<task>.test.jsonl` with keys input and target. The model is fine-tuned as the large one, a few of
its layers as the small one. For comparison, logistic regression is fitted to features of the
models before fine-tuning, on the first `--frozen_rows`.
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
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.own_rows import read
from cascades.checkpoints import store
from cascades.data import materialize
from cascades.data.corpus import Corpus
from cascades.models import configs
from cascades.models.abstract import abstract_model
from cascades.predictions import shards
from cascades.runtime import partitioning
from cascades.tasks import local
from cascades.tokenizers import vocabularies
from cascades.types import Batch

TASKS = {'trec': 40, 'sst2': 48}  # the longest inputs in tokens
TARGETS = 8
VALIDATION_ROWS = 500  # the last ones of the training file
HEAD, TAIL = 4, 4  # the layers of the small model

TASK = """from __gin__ import dynamic_registration
from cascades.tasks import local
TASK = @local.local_jsonl()
TASK_FEATURE_LENGTHS = {{'inputs': {length}, 'targets': {targets}}}
local.local_jsonl.name = '{name}'
local.local_jsonl.splits = {{
  'train': '{directory}/train.jsonl', 'validation': '{directory}/validation.jsonl',
  'test': '{directory}/test.jsonl'}}
"""


def prepare(source: pathlib.Path, name: str, directory: pathlib.Path, test_rows: int) -> None:
  """Write the splits and task.gin."""
  directory.mkdir(parents=True, exist_ok=True)
  train, test = (read(source / f'{name}.{split}.jsonl') for split in ('train', 'test'))
  splits = {
    'train': train[:-VALIDATION_ROWS], 'validation': train[-VALIDATION_ROWS:],
    'test': test[:test_rows],
  }  # fmt: skip
  for split, rows in splits.items():
    lines = (json.dumps({'inputs': row['input'], 'targets': row['target']}) for row in rows)
    (directory / f'{split}.jsonl').write_text('\n'.join([*lines, '']))
  settings = {'length': TASKS[name], 'targets': TARGETS, 'name': name, 'directory': directory}
  (directory / 'task.gin').write_text(TASK.format(**settings))


def starts(source: str, root: pathlib.Path) -> list[str]:
  """Commands that convert the large model and prune the small one out of it."""
  return [
    f'python -m cascades.convert --gin_file=runs/convert.gin --gin.SOURCE={source} '
    f'--gin.MODEL_DIR={root}/pretrained',
    f'python -m cascades.prune --gin_file=runs/prune.gin --gin.CHECKPOINT_PATH={root}/pretrained '
    f'--gin.MODEL_DIR={root}/pruned --gin.HEAD={HEAD} --gin.TAIL={TAIL}',
  ]


def cascade(root: pathlib.Path, name: str, steps: int, tokens: int) -> list[str]:
  directory = root / name
  task = f'--gin_file={directory}/task.gin'
  short = f'--gin.TRAIN_STEPS={steps} --gin.BATCH_SIZE=1 --gin.PACK_LENGTH={tokens} '
  short += '--gin.VALIDATION_ROWS=64'  # one at a time
  models = {model: f'--gin.MODEL_DIR={directory}/{model} {task} {short}' for model in MODELS}
  infer = f'python -m cascades.infer --gin_file=runs/infer.gin {task} --gin.BATCH_SIZE=32'
  return [
    f'python -m cascades.train --gin_file=recipes/smollm2_large.gin {models["large"]} '
    f'--gin.INITIAL_CHECKPOINT_PATH={root}/pretrained',
    f'python -m cascades.train --gin_file=recipes/smollm2_small.gin {models["small"]} '
    f'--gin.INITIAL_CHECKPOINT_PATH={root}/pruned --gin.LARGE_CHECKPOINT_PATH={directory}/large',
    *(
      f'{infer} --gin.CHECKPOINT_PATH={directory}/{model} --gin.MODE={mode} '
      f'--gin.INFER_OUTPUT_DIR={directory}/{model}/{mode}'
      for model in MODELS
      for mode in ('predict', 'score')
    ),
    'python -m cascades.evaluate --gin_file=runs/evaluate.gin '
    f"""--gin.SMALL="{{'small': '{directory}/small/predict'}}" """
    f'--gin.LARGE={directory}/large/predict --gin.EVAL_OUTPUT_DIR={directory}/evaluation',
  ]


MODELS = {'large': 'pretrained', 'small': 'pruned'}  # and what each starts from


def features(
  checkpoint: pathlib.Path, name: str, directory: pathlib.Path, split: str, count: int
) -> Any:
  """Hidden state of the last token of each prompt before fine-tuning, and the targets."""
  where, step = store.locate(checkpoint)
  config = configs.from_description(store.read_description(where)['model'])
  task = local.local_jsonl(name, {split: directory / f'{split}.jsonl'})
  lengths = {'inputs': TASKS[name], 'targets': TARGETS}
  vocabulary = vocabularies.load(where)
  corpus = Corpus(task, vocabulary, config.architecture, lengths, materialize.DIRECTORY)
  (records,) = corpus.open(split).parts
  rows = range(len(records))[:count]
  states, answers = np.zeros((len(rows), config.emb_dim), np.float32), [''] * len(rows)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    graph, abstract = abstract_model(config)
    params = store.restore_params(where, abstract, which=step)
    prompted = jax.jit(lambda params, prompt: last_state(nnx.merge(graph, params), prompt))
    for bucket in corpus.buckets(records, rows, batch_size=32):
      prompt = corpus.prompts(records, bucket, batch_size=32)
      states[bucket.indices] = np.asarray(prompted(params, prompt))[: len(bucket.indices)]
      for index, record in zip(bucket.indices, records.read(bucket.indices), strict=True):
        answers[index] = record.row.targets
  return states, answers


def last_state(model: Any, prompt: Any) -> jax.Array:
  hidden = model.hidden(Batch(prompt.tokens, prompt.tokens, prompt.tokens))
  return hidden[np.arange(len(prompt.tokens)), prompt.length - 1]


def frozen_baseline(
  checkpoint: pathlib.Path, name: str, directory: pathlib.Path, rows: int
) -> tuple[float, float]:
  """Test loss, in nats a row, and accuracy of logistic regression on frozen features."""
  from sklearn import linear_model, pipeline, preprocessing

  train, test = (features(checkpoint, name, directory, split, rows) for split in ('train', 'test'))
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(), linear_model.LogisticRegressionCV(Cs=5, max_iter=500)
  )
  model.fit(*train)
  column = {label: i for i, label in enumerate(model.classes_)}
  chances = model.predict_proba(test[0])
  right = chances[np.arange(len(chances)), [column[answer] for answer in test[1]]]
  return -float(np.log(right).mean()), float((model.predict(test[0]) == test[1]).mean())


def scored_loss(directory: pathlib.Path) -> float:
  """Mean over rows of -log p(answer), its end included, in nats."""
  (table,) = shards.read(directory / 'test', mode='score')
  return -float(np.where(table.mask, table.logprobs, 0.0).sum(axis=1).mean())


def evaluated(directory: pathlib.Path) -> dict[str, float]:
  """Accuracy of both models alone and the area above the chord, under the paper's rule."""
  with (directory / 'evaluation' / 'summary.csv').open() as file:
    rows = [row for row in csv.DictReader(file) if row['score'] in ('average', '')]
  quantities = ('small alone', 'large alone', 'area above chord')
  return {row['quantity']: float(row['value']) for row in rows if row['quantity'] in quantities}


def run(line: str) -> None:
  print(line, flush=True)
  subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--source', required=True)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--tasks', nargs='+', default=list(TASKS), choices=TASKS)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--tokens', type=int, default=256, help='of a step')
  parser.add_argument('--test_rows', type=int, default=500)
  parser.add_argument('--frozen_rows', type=int, default=2000)
  parser.add_argument('--output_dir', type=pathlib.Path, default='runs/pretrained_cascade')
  parser.add_argument('--output', default=bars.RESULTS / 'pretrained_cascade.json')
  options = parser.parse_args()
  root = options.output_dir.absolute()
  for line in starts(options.source, root):
    run(line)
  measured = []
  for name in options.tasks:
    directory = root / name
    prepare(options.data, name, directory, options.test_rows)
    for line in cascade(root, name, options.steps, options.tokens):
      run(line)
    answers = [row['targets'] for row in read(directory / 'test.jsonl')]
    majority = max(collections.Counter(answers).values()) / len(answers)
    measured.append(Measured(f'{name}: majority class of the test rows', majority, 'of rows'))
    for model, start in MODELS.items():
      loss, accuracy = frozen_baseline(root / start, name, directory, options.frozen_rows)
      tuned = scored_loss(directory / model / 'score')
      measured += [
        Measured(f'{name}: {model}, frozen features, accuracy', accuracy, 'of rows'),
        Measured(f'{name}: {model}, frozen features, loss', loss, 'nats/row'),
        Measured(f'{name}: {model}, fine-tuned, loss', tuned, 'nats/row', at_most=loss),
      ]
    for what, value in evaluated(directory).items():
      measured.append(Measured(f'{name}: {what}', value, 'of rows'))
  bars.report('pretrained cascade', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
