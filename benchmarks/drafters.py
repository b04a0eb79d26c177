"""Drafts of small models that were trained with different losses.

    python -m benchmarks.drafters runs/demo runs/seed1 runs/seed2

Each argument is a folder of `launch.demo`, of a seed of its own. Every small model drafts greedily
and without loss for the large model of its folder, on the validation words. Differences from plain
cross-entropy have Student's interval over the folders.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import nnx

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.cat_seeds import BASELINE, LOSSES, over_seeds
from cascades.data.corpus import Data
from cascades.inference import speculation, trained_model
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning
from cascades.target_distributions import RULES
from cascades.tasks import catalog
from cascades.types import Params, Prompt

GAMMA, BATCH = 5, 256
LENGTHS = {'inputs': 24, 'targets': 24}


def load(path: pathlib.Path) -> TrainedModel:
  return trained_model.load(trained_model.Checkpoint(str(path)), rules=partitioning.RULES)


def drafted(small: TrainedModel, large: TrainedModel) -> dict[str, float]:
  """Acceptance, and tokens for each call of the large model, over the validation words."""

  @jax.jit
  def generate(small_params: Params, params: Params, prompt: Prompt) -> speculation.Speculation:
    models = nnx.merge(small.graph, small_params), nnx.merge(large.graph, params)
    pair = speculation.SpeculativePair(*models, RULES['lossless'].target)
    return speculation.generate(
      pair, prompt, max_len=LENGTHS['targets'], eos_id=large.vocabulary.eos_ids, gamma=GAMMA
    )

  data = Data(task=catalog.get('cmudict_g2p'), lengths=LENGTHS, batch_size=BATCH)
  corpus = data.corpus(large.vocabulary, large.architecture)
  (records,) = corpus.open('validation').per_task
  accepted = rejected = calls = tokens = 0
  for bucket in corpus.buckets(records, range(len(records)), batch_size=BATCH):
    answers = generate(
      small.params, large.params, corpus.prompts(records, bucket, batch_size=BATCH)
    )
    rows = slice(len(bucket.indices))  # the last row is repeated
    accepted += int(answers.counts.accepted[rows].sum())
    rejected += int(answers.counts.rejected[rows].sum())
    calls += int(answers.counts.large_calls[rows].sum())
    tokens += int(answers.answer.mask[rows].sum())
  return {'acceptance': accepted / (accepted + rejected), 'tokens per large call': tokens / calls}


def compared(by_seed: list[Mapping[str, Mapping[str, float]]]) -> Iterator[Measured]:
  """Mean of each loss over the seeds, and its difference from the baseline."""
  for quantity in ('acceptance', 'tokens per large call'):
    for loss in LOSSES:
      values = [seed[loss][quantity] for seed in by_seed]
      note = ', '.join(f'{value:.4f}' for value in values)
      yield Measured(f'{quantity}, {loss}', float(np.mean(values)), '', note=note)
    for loss in LOSSES:
      if loss == BASELINE:
        continue
      difference = over_seeds([seed[loss][quantity] - seed[BASELINE][quantity] for seed in by_seed])
      note = f'95 % over seeds: {difference["low"]:+.4f} to {difference["high"]:+.4f}'
      yield Measured(f'{quantity}, {loss} - {BASELINE}', difference['mean'], '', note=note)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folders', nargs='+', type=pathlib.Path)
  parser.add_argument('--output', default=bars.RESULTS / 'drafters.json')
  options = parser.parse_args()
  by_seed = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    for folder in options.folders:
      large = load(folder / 'large')
      by_seed.append({loss: drafted(load(folder / loss), large) for loss in LOSSES})
      print(folder.name, by_seed[-1], flush=True)
  settings = {'gamma': GAMMA, 'folders': len(options.folders)}
  bars.report('Drafters', list(compared(by_seed)), options.output, settings, details=by_seed)


if __name__ == '__main__':
  main()
