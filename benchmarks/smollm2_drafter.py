"""A shallow drafter of SmolLM2-135M, for `benchmarks.speculative` and `benchmarks.assisted`.

    python -m benchmarks.smollm2_drafter runs/smollm2_pair --source=SmolLM2-135M-Instruct.Q4_1.gguf
      --train=gsm8k.train.jsonl --test=gsm8k.test.jsonl
    python -m benchmarks.smollm2_drafter runs/smollm2_seed1 --seed=1 --beside=runs/smollm2_pair
      --train=gsm8k.train.jsonl --test=gsm8k.test.jsonl

Converts the model, prunes it to its first and last layer, lets it answer training questions (JSON
lines with `input`, `target` and maybe `rationale`) greedily in its chat format, trains the pruned
model on these answers, and exports both. In the folder are then `large`, `small`, `exported/large`,
`exported/small`, and held-out `questions.jsonl`, on which the share of accepted drafts is measured.
Finished steps are skipped. With `--outcomes` the pruned model learns as many cached
log-probabilities of each token of the answers, by JSD, in place of the tokens alone. `--seed` is of
the order of the training rows; `--beside` takes the large model, its answers and the pruned one
from another folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import optax
from etils import epath

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.distillspec_pairs import answered_by_large
from benchmarks.own_rows import read
from benchmarks.speculative import ANSWER, jitted_pair, load, prompts
from benchmarks.speculative_rules import BLOCK, PROMPT
from cascades import cache_teacher, infer, losses, train
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Data
from cascades.inference.trained_model import Checkpoint
from cascades.interop import companions
from cascades.runtime import partitioning
from cascades.tasks import chats, local
from cascades.training import optimizers, setup

ROOT = pathlib.Path(__file__).parents[1]
HELD_OUT = 64
CHARACTERS = 240  # of a question, which with its template then fits into PROMPT tokens
BATCH, LEARNING_RATE = 8, 1e-3


def command(program: str, directory: pathlib.Path, **macros: object) -> None:
  """Run a program that writes a directory, unless that exists."""
  if directory.exists():
    return
  bindings = [f'--gin.{name}={value}' for name, value in macros.items()]
  words = ['-m', f'cascades.{program}', f'--gin_file=runs/{program}.gin', *bindings]
  subprocess.run([sys.executable, *words], cwd=ROOT, check=True)


def share(folder: pathlib.Path, beside: pathlib.Path) -> None:
  """Link what the seeds of a pair share."""
  for name in ('large', 'answers', 'pruned'):
    path = beside / name
    if not path.exists():
      path.symlink_to((folder / name).resolve(strict=True))


def questions(source: pathlib.Path, path: pathlib.Path, count: int) -> str:
  """First questions of a file that are not long, as `inputs`, with solutions as `targets`."""
  short = (row for row in read(source) if len(row['input']) <= CHARACTERS)
  pairs = (
    {'inputs': row['input'], 'targets': row.get('rationale') or row['target']}
    for row in itertools.islice(short, count)
  )
  lines = map(json.dumps, pairs)
  path.write_text('\n'.join([*lines, '']))
  return str(path)


def drafter(folder: pathlib.Path, path: str, *, seed: int, steps: int, outcomes: int) -> None:
  """Answers of the large model to the questions, and the pruned model trained on them."""
  task = local.local_jsonl(name='questions', splits={'train': path}, targets_key=None)
  data = Data(
    task=chats.chat(task, epath.Path(folder / 'large') / companions.FOLDER),
    lengths={'inputs': PROMPT, 'targets': ANSWER},
    batch_size=64,
    records_dir=str(folder / 'records'),
  )
  large, answers = str(folder / 'large'), folder / 'answers'
  if not answers.is_symlink():
    infer.infer(Checkpoint(large), infer.Output(str(answers)), data=data, splits=('train',))
  sources = AnswerSources(fixed_fraction=0, on_policy_fraction=0, large_answers=str(answers))
  data = dataclasses.replace(data, batch_size=BATCH, sources=sources)
  teacher = setup.LargeModel()
  if outcomes:
    answered = answered_by_large(data.task, answers)
    data = dataclasses.replace(data, task=answered, sources=AnswerSources())
    cache_teacher.cache_teacher(
      Checkpoint(large, precision=None, weights='float32'),
      str(folder / 'outputs'),
      data=data,
      answers=cache_teacher.Answers(top_k=outcomes),
      splits=('train',),
    )
    teacher = setup.LargeModel(teacher_cache=str(folder / 'outputs'))
  train.train(
    str(folder / 'small'),
    small=setup.SmallModel(initial_checkpoint_path=str(folder / 'pruned')),
    large=teacher,
    data=data,
    step=setup.Step(
      learning_rate=optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, steps // 10, steps),
      optimizer=optimizers.adamw,
      loss=losses.distillspec_jsd if outcomes else losses.xent,
    ),
    schedule=setup.Schedule(train_steps=steps, log_every=8, save_every=32, keep=1),
    seed=seed,
  )


def acceptance(folder: pathlib.Path) -> Iterator[Measured]:
  """Share of accepted drafts on held-out questions, before and after training."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    large = load(str(folder / 'large'))
    prompt = prompts(large, BATCH, str(folder / 'questions.jsonl'))
    for name in ('pruned', 'small'):
      small = load(str(folder / name))
      generate = jitted_pair(small, large, ANSWER, BLOCK)
      counts = jax.tree.map(np.sum, generate(small.params, large.params, prompt).counts)
      share = float(counts.accepted / (counts.accepted + counts.rejected))
      yield Measured(f'accepted drafts, {name}', share, '', note=f'{BATCH} questions')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  models = parser.add_mutually_exclusive_group(required=True)
  models.add_argument('--source', help='what `python -m cascades.convert` reads')
  models.add_argument('--beside', type=pathlib.Path, help='folder of another seed')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--train', type=pathlib.Path, required=True)
  parser.add_argument('--test', type=pathlib.Path, required=True)
  parser.add_argument('--questions', type=int, default=512, help='of --train, the first ones')
  parser.add_argument('--steps', type=int, default=128, help=f'of {BATCH} rows')
  parser.add_argument('--outcomes', type=int, default=0, help='log-probabilities of a token')
  parser.add_argument('--output', default=bars.RESULTS / 'smollm2_drafter.json')
  options = parser.parse_args()
  folder = options.folder.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  large, pruned = folder / 'large', folder / 'pruned'
  if options.beside:
    share(options.beside.absolute(), folder)
  command('convert', large, SOURCE=options.source, MODEL_DIR=large)
  command('prune', pruned, CHECKPOINT_PATH=large, MODEL_DIR=pruned, HEAD=1, TAIL=1)
  questions(options.test, folder / 'questions.jsonl', HELD_OUT)
  rows = questions(options.train, folder / 'train.jsonl', options.questions)
  drafter(folder, rows, seed=options.seed, steps=options.steps, outcomes=options.outcomes)
  for name in ('small', 'large'):
    directory = folder / 'exported' / name
    command('export', directory, CHECKPOINT_PATH=folder / name, OUTPUT_DIR=directory)
  settings = {name: getattr(options, name) for name in ('questions', 'steps', 'seed', 'outcomes')}
  settings['batch'] = BATCH
  bars.report('A drafter of SmolLM2', acceptance(folder), options.output, settings)


if __name__ == '__main__':
  main()
