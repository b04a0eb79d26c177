"""Seconds of answers with the drafters of `distillspec`, at the planner's number of drafts.

    python -m benchmarks.distillspec_speed --pair=smollm2 --rows=8 runs/smollm2_pair
      --arms start 'xent, fixed' 'jsd, target_generated' --shortlist=1024

Test rows are answered without loss, one at a time, with the large model alone and with the model of
each arm beside it; turns alternate. Samples differ in length from one way to another, so that with
`--temperature` speeds are in tokens. `--work` is that of `benchmarks.distillspec`.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator

import jax

from benchmarks import bars, drafting_speed
from benchmarks.bars import Measured
from benchmarks.distillspec import START, Seed
from benchmarks.distillspec_models import read_rows
from benchmarks.distillspec_pairs import PAIRS
from benchmarks.drafters import load
from cascades.runtime import partitioning

GAMMAS, MOST = (1, 3, 5), 7


def rows(seed: Seed, options: argparse.Namespace) -> Iterator[Measured]:
  """Measurements of each arm."""
  setting, large = seed.setting, load(seed.folder / 'large')
  (batch,) = read_rows(setting, seed.folder, large, options.rows)
  single = drafting_speed.one_by_one(batch.prompt, batch.row_ids)
  for arm in options.arms:
    small = load(seed.folder / setting.start if arm == START else seed.path(arm))
    if options.shortlist:
      answers = seed.large_answers() / 'train'
      small = drafting_speed.from_shortlist(small, large, answers, options.shortlist)
    yield from drafting_speed.speeds(
      arm, small, large, single, longest=setting.answer, gammas=GAMMAS, most=MOST,
      turns=options.turns, at_least=1.0, temperature=options.temperature,
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
  parser.add_argument('--temperature', type=float, default=0.0)
  parser.add_argument('--shortlist', type=int, help='common tokens that are drafted; None for all')
  parser.add_argument('--work', type=pathlib.Path, default=pathlib.Path('runs/distillspec'))
  parser.add_argument(
    '--output', type=pathlib.Path, default=bars.RESULTS / 'distillspec_speed.json'
  )
  options = parser.parse_args()
  work = options.work.resolve() / options.pair
  seed = Seed(PAIRS[options.pair], options.folder.resolve(), 0, work)
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    measured = list(rows(seed, options))
  names = ('pair', 'rows', 'turns', 'shortlist', 'temperature')
  settings = {name: getattr(options, name) for name in names}
  settings['tokens'] = seed.setting.answer
  sampled = f'_temperature{options.temperature:g}' if options.temperature else ''
  output = options.output.with_stem(f'{options.output.stem}_{options.pair}{sampled}')
  bars.report('Seconds of distilled drafters', measured, output, settings)


if __name__ == '__main__':
  main()
