"""Seconds of answers with the drafters of `distillspec`, at the planner's number of drafts.

    python -m benchmarks.distillspec_speed --pair=smollm2 --rows=8 runs/smollm2_pair
      --arms start 'xent, fixed' 'tvd, fixed' 'tvd, target_generated'

Test rows are answered greedily and without loss, one at a time, with the large model alone and with
the model of each arm beside it; turns alternate. `--work` is that of `benchmarks.distillspec`.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence

import jax

from benchmarks import bars, drafting_speed
from benchmarks.bars import Measured
from benchmarks.distillspec import START, Seed
from benchmarks.distillspec_models import read_rows
from benchmarks.distillspec_pairs import PAIRS
from benchmarks.drafters import load
from cascades.runtime import partitioning

GAMMAS, MOST = (1, 3, 5), 7


def rows(seed: Seed, arms: Sequence[str], count: int, turns: int) -> Iterator[Measured]:
  """Measurements of each arm."""
  setting, large = seed.setting, load(seed.folder / 'large')
  (batch,) = read_rows(setting, seed.folder, large, count)
  single = drafting_speed.one_by_one(batch.prompt, batch.row_ids)
  for arm in arms:
    small = load(seed.folder / setting.start if arm == START else seed.path(arm))
    yield from drafting_speed.speeds(
      arm, small, large, single, longest=setting.answer, gammas=GAMMAS, most=MOST, turns=turns,
      at_least=1.0,
    )  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path, help='of the first seed')
  parser.add_argument('--pair', choices=PAIRS, default='g2p')
  parser.add_argument('--arms', nargs='+', default=[START])
  parser.add_argument('--rows', type=int, default=32, help='test rows that are answered')
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--work', type=pathlib.Path, default=pathlib.Path('runs/distillspec'))
  parser.add_argument('--output', default=bars.RESULTS / 'distillspec_speed.json')
  options = parser.parse_args()
  work = options.work.resolve() / options.pair
  seed = Seed(PAIRS[options.pair], options.folder.resolve(), 0, work)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    measured = list(rows(seed, options.arms, options.rows, options.turns))
  settings = {'rows': options.rows, 'turns': options.turns, 'tokens': seed.setting.answer}
  bars.report('Seconds of distilled drafters', measured, options.output, settings)


if __name__ == '__main__':
  main()
