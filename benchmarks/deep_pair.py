"""Seconds of answers of a deep model with shallow drafters, all trained on real words.

    python -m benchmarks.deep_pair runs/deep_pair

Trains the models of docs/speculative.md, "Where drafts save seconds", in the folder (a second
run resumes or skips that), and answers test words of `cmudict_g2p` greedily, each up to its end of
sequence, with the large model alone and with both, without loss. Turns alternate, and medians of
ratios are reported.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import bars, drafting_speed
from benchmarks.bars import Measured
from benchmarks.distillspec_models import judged, read_rows
from benchmarks.distillspec_pairs import PAIRS
from benchmarks.drafters import LENGTHS, load
from cascades import metrics
from cascades.inference.answers import Generator
from cascades.inference.latency import TimedBatch
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.types import Prompt

ROOT = pathlib.Path(__file__).parents[1]
WORDS, MOST = 256, 7  # answered words, and drafts that the planner may choose
GAMMAS = (1, 3, 5, 7)
# The demo's large model with a decoder as deep as that of T5's small model.
DEEP = {'t5.Config.num_decoder_layers': 6, 'TRAIN_STEPS': 6000, 'LEARNING_RATE': 1e-3}
DRAFTERS = {'nano': 'demo_small', 'mini': 'demo_large'}  # and their recipes


def train(folder: pathlib.Path, name: str) -> None:
  """Train a model: a drafter by its recipe, the large model by that of the demo's."""
  bindings: dict[str, object] = {'MODEL_DIR': repr(str(folder / name))}
  if name not in DRAFTERS:
    bindings |= DEEP
  command = [
    *('-m', 'cascades.train', f'--gin_file=recipes/{DRAFTERS.get(name, "demo_large")}.gin'),
    *(f'--gin.{key}={value}' for key, value in bindings.items()),
  ]
  subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


class Words(NamedTuple):
  """Test words in batches of one shape, and their right answers."""

  batches: Sequence[TimedBatch]
  right: Sequence[Sequence[str]]


def words(model: TrainedModel, batch: int) -> Words:
  """Test words at equal distances, `batch` at a time."""
  ((prompts, row_ids, right, _),) = read_rows(PAIRS['g2p'], pathlib.Path(), model, WORDS)
  width = int(np.max(prompts.length))
  tokens, lengths = np.asarray(prompts.tokens)[:, :width], np.asarray(prompts.length)
  return Words(
    [
      TimedBatch(Prompt(tokens[own], lengths[own]), row_ids[own], batch)
      for own in (slice(start, start + batch) for start in range(0, WORDS, batch))
    ],
    right,
  )


def right(name: str, model: TrainedModel) -> Measured:
  """Share of the words that a model answers as the dictionary does."""
  ((batch,), given) = words(model, WORDS)
  answer = Generator(model, LENGTHS['targets']).generate(batch.prompts, batch.row_ids)
  correct = judged(answer, model, given, metrics.word_accuracy)
  return Measured(f'words right, {name}', float(correct[:, 0].mean()), '')


def rows(folder: pathlib.Path, turns: int) -> Iterator[Measured]:
  """Measurements of both drafters at batches of 1 and 8."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    large = load(folder / 'large')
    drafters = {name: load(folder / name) for name in DRAFTERS}
    for name, model in {**drafters, 'large': large}.items():
      yield right(name, model)
    for batch in (1, 8):
      for name, small in drafters.items():
        yield from drafting_speed.speeds(
          f'{name}, batch {batch}', small, large, words(large, batch).batches,
          longest=LENGTHS['targets'], gammas=GAMMAS, most=MOST, turns=turns,
          at_least=1.3 if batch == 1 else 1.0,
        )  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--turns', type=int, default=7)
  parser.add_argument('--train', action='store_true', help='train and measure nothing')
  parser.add_argument('--output', default=bars.RESULTS / 'deep_pair.json')
  options = parser.parse_args()
  for name in ('nano', 'large', 'mini'):
    train(options.folder.absolute(), name)
  if options.train:
    return
  settings = {'words': WORDS, 'turns': options.turns}
  bars.report('A deep model and shallow drafters', rows(options.folder, options.turns),
              options.output, settings)  # fmt: skip


if __name__ == '__main__':
  main()
