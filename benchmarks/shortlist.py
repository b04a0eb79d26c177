"""Drafts from a shortlist beside drafts from the whole vocabulary: costs, acceptance and speed.

    python -m benchmarks.shortlist runs/smollm2_pair

The folder is that of `benchmarks.smollm2_drafter`. The shortlist is the tokens that the large
model's training answers have most often. Questions are answered greedily and without loss, one at a
time, with the large model alone and with drafts; turns alternate.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from benchmarks import bars, drafting_speed
from benchmarks.bars import Measured
from benchmarks.speculative import load, prompts
from cascades.runtime import partitioning

GAMMAS, MOST = (1, 2, 3), 5


def rows(folder: pathlib.Path, options: argparse.Namespace) -> Iterator[Measured]:
  """Measurements at each length, with and without the shortlist."""
  large, small = (load(str(folder / name)) for name in ('large', 'small'))
  batch = prompts(large, options.rows, str(folder / 'questions.jsonl'))
  single = drafting_speed.one_by_one(batch, np.arange(options.rows))
  answers = folder / 'answers' / 'train'
  short = drafting_speed.from_shortlist(small, large, answers, options.tokens)
  drafters = {
    f'of {small.vocab_size} tokens': small,
    f'of {options.tokens} and the prompt': short,
  }
  for length, (name, drafter) in itertools.product(options.lengths, drafters.items()):
    yield from drafting_speed.speeds(
      f'{length} tokens, drafts {name}', drafter, large, single, longest=length, gammas=GAMMAS,
      most=MOST, turns=options.turns, at_least=1.0,
    )  # fmt: skip
    jax.clear_caches()  # an operating system maps no more than some dozen programs


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--tokens', type=int, default=1024, help='of the shortlist')
  parser.add_argument('--rows', type=int, default=6, help='questions that are answered')
  parser.add_argument('--lengths', type=int, nargs='+', default=[16, 64], help='of the answers')
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--output', default=bars.RESULTS / 'shortlist.json')
  options = parser.parse_args()
  settings = {name: getattr(options, name) for name in ('tokens', 'rows', 'lengths', 'turns')}
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    bars.report('Drafts from a shortlist', rows(options.folder, options), options.output, settings)


if __name__ == '__main__':
  main()
