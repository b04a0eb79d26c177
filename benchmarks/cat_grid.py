"""The points of the reproduction: parts of the protocol in their order, and what each point needs.

A point is a training run of a small model and its answers to the validation and test rows. Its name
lists the values in which it differs from `Cell`'s defaults, so that parts share their points.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launch import points

TUNED, SECOND, EQUAL_FLOPS, TUNING_SEED = 0.0, -1.0, 0.0, 1000
FACTORS = (0.25, 0.5, 1.0, 2.0)  # of the task's learning rate, tried for each loss
FEW_FACTORS = {'classification': FACTORS[1:]}
TUNING_SEEDS = {'g2p': 5}  # from TUNING_SEED on, of the tasks that train fast; 1 elsewhere
BASE = ('xent', 'cat_xent', 'dist', 'cat_dist')
MASKS = ('cat_xent_l', 'cat_xent_s', 'cat_dist_l', 'cat_dist_s')
LAGGED = ('cat_xent_lagged',)
RIVALS = ('gatekeeper', 'cat_gatekeeper', 'xent')  # second stages, and their control
NOISES, LENGTHS, WEIGHTS = (0.1, 0.3), (2.0, 4.0), (0.25, 0.75)
NORMALIZERS = ('examples', 'kept_tokens')
SEEDS = {'g2p': 10}  # of the tasks that train fast
FEW_SEEDS = 5
BASE_SEEDS = 20  # of the base losses at G2P's smallest size
SIZES = {
  'g2p': ('nano', 'narrow', 'shallow'),
  'classification': ('4+4', '8+7'),
  'tanaka': ('nano',),
  'libreoffice_zh': ('nano',),
  'libreoffice_ja': ('nano',),
  'libreoffice_ru': ('nano',),
  'pretrain_causal': ('nano',),
  'pretrain_span': ('nano',),
}
PRETRAINING = ('pretrain_causal', 'pretrain_span')  # the paper's appendix E
ADDED = ('middle',)  # fields of `Cell`
LATE = ('libreoffice_zh', 'libreoffice_ja', 'libreoffice_ru')  # behind the mechanism on G2P


class Cell(NamedTuple):
  """The values of a point.

  Fields: `task` and `size` name a pair; `loss` is of `cascades.losses`, or an ablation's; `w` is
  the weight of the cross-entropy in a distillation; `normalizer` divides a batch's loss; `noise` is
  the share of training tokens that are replaced at random; `length` multiplies the steps, 0 for as
  many as CAT's FLOPs allow cross-entropy; `start` is the loss of the model that a second stage
  starts from; `factor` multiplies the learning rate, 0 for the one that tuning has chosen, -1 for
  its second best; `middle` is the loss of the middle model, of the largest size, which teaches
  beside the large one.
  """

  task: str
  size: str
  loss: str
  w: float = 0.5
  normalizer: str = 'valid_tokens'
  noise: float = 0.0
  length: float = 1.0
  start: str = ''
  factor: float = TUNED
  seed: int = 0
  middle: str = ''

  @property
  def values(self) -> dict[str, Any]:
    """The fields but the seed that are not their defaults."""
    fields = self._asdict()
    defaults = self._field_defaults
    return {
      name: value
      for name, value in fields.items()
      if name != 'seed' and (name not in defaults or value != defaults[name])
    }

  @property
  def name(self) -> str:
    return _name(self)

  @property
  def tuning(self) -> list[Cell]:
    """Points whose validation quality, the mean over their seeds, gives this one's rate."""
    if self.factor not in (TUNED, SECOND):
      return []
    return _tuning(self.task, self.size, [self.loss], self.start)

  @property
  def needs(self) -> list[Cell]:
    """Points that must be complete before this one: its tuning, and what it starts from."""
    sized = [self._replace(length=1.0)] if self.length == EQUAL_FLOPS else []
    others = [cell for cell in (self.origin, self.later) if cell]
    return [*self.tuning, *others, *sized]

  @property
  def recorded(self) -> dict[str, Any]:
    """The fields of a summary; those that later parts added only where they are set."""
    fields = self._asdict()
    return {name: value for name, value in fields.items() if name not in ADDED or value}

  @property
  def later(self) -> Cell | None:
    """The point whose model stands between this one's and the large one."""
    if not self.middle:
      return None
    return Cell(self.task, SIZES[self.task][-1], self.middle, noise=self.noise, seed=self.seed)

  @property
  def origin(self) -> Cell | None:
    """The point whose model a second stage starts from, or AdaSPEC refers to."""
    loss = 'dist' if self.loss == 'adaspec' else self.start
    if not loss:
      return None
    factor = 1.0 if self.seed >= TUNING_SEED else TUNED
    return Cell(self.task, self.size, loss, factor=factor, seed=self.seed)


@functools.cache
def _name(cell: Cell) -> str:
  config = points.empty()
  config.points, config.seeds = [cell.values], (cell.seed,)
  (point,) = points.all_points(config)
  return point.name


def parts() -> dict[str, list[Cell]]:
  """Cells of each part of the protocol, in the order of their runs."""
  early = [task for task in SIZES if task not in (*LATE, *PRETRAINING)]
  ordered = {f'{task}: base': _base(task, SIZES[task][0]) for task in early}
  ordered |= _mechanism('g2p', SIZES['g2p'][0], range(SEEDS['g2p']))
  ordered |= {f'{task}: base': _base(task, SIZES[task][0]) for task in LATE}
  ordered |= {f'{task}: base': _base(task, SIZES[task][0]) for task in PRETRAINING}
  ordered['classification: capacity'] = _base('classification', SIZES['classification'][1])
  return ordered


def _base(task: str, size: str) -> list[Cell]:
  """The four losses of the paper's main comparison, tuned and over all seeds."""
  few = SEEDS.get(task, FEW_SEEDS)
  seeds = BASE_SEEDS if (task, size) == ('g2p', SIZES['g2p'][0]) else few
  listed = [{'task': task, 'size': size, 'loss': loss} for loss in BASE]
  return [*_tuning(task, size, BASE), *_cells(range(seeds), listed)]


def _mechanism(task: str, size: str, seeds: Sequence[int]) -> dict[str, list[Cell]]:
  """What else is asked of one task: noise, length, capacity, masks, rivals, weights."""

  def cells_of(losses: Sequence[str], **values: Any) -> list[dict[str, Any]]:
    return [{'task': task, 'size': size, 'loss': loss, **values} for loss in losses]

  noisy = [cell for noise in NOISES[::-1] for cell in cells_of(BASE, noise=noise)]
  longer = [cell for length in LENGTHS for cell in cells_of(BASE[:2], length=length)]
  weighed = [cell for w in WEIGHTS for cell in cells_of(BASE[2:], w=w)]
  divided = [cell for name in NORMALIZERS for cell in cells_of(BASE, normalizer=name)]
  masks = (*MASKS, 'cat_xent_eos')
  rivals = cells_of(RIVALS, start='xent') + cells_of(['adaspec'])
  tuned_rivals = [*_tuning(task, size, RIVALS, 'xent'), *_tuning(task, size, ['adaspec'])]
  second = _cells(range(BASE_SEEDS), cells_of(BASE, factor=SECOND))
  return {
    f'{task}: second rates': second,
    f'{task}: noise': _cells(seeds, noisy),
    f'{task}: length': _cells(seeds, longer),
    f'{task}: equal FLOPs': _cells(seeds, cells_of(['xent'], length=EQUAL_FLOPS)),
    f'{task}: three models': _three(task, seeds),
    f'{task}: capacity': [cell for other in SIZES[task][1:] for cell in _base(task, other)],
    f'{task}: masks': [*_tuning(task, size, masks), *_cells(seeds, cells_of(masks))],
    f'{task}: lagged': [*_tuning(task, size, LAGGED), *_cells(seeds, cells_of(LAGGED))],
    f'{task}: rivals': [*tuned_rivals, *_cells(seeds, rivals)],
    f'{task}: weights': _cells(seeds, weighed),
    f'{task}: normalizers': _cells(seeds, divided),
  }


def _three(task: str, seeds: Sequence[int]) -> list[Cell]:
  """Small and middle models of cascades of three: plain, cascade-aware, and taught by the last."""
  small, *_, middle = SIZES[task]
  plain, aware = BASE[:2]
  listed = [{'size': size, 'loss': loss} for size in (middle, small) for loss in (plain, aware)]
  listed.append({'size': small, 'loss': aware, 'middle': aware})
  tuned = [cell for size in (middle, small) for cell in _tuning(task, size, BASE[:2])]
  return [*tuned, *_cells(seeds, [{'task': task, **values} for values in listed])]


def _tuning(task: str, size: str, losses: Sequence[str], start: str = '') -> list[Cell]:
  """Points that choose the learning rates, with seeds that no test uses."""
  return [
    Cell(task, size, loss, start=start, factor=factor, seed=TUNING_SEED + number)
    for number in range(TUNING_SEEDS.get(task, 1))
    for loss in losses
    for factor in FEW_FACTORS.get(task, FACTORS)
  ]


def _cells(seeds: Sequence[int], listed: Sequence[Mapping[str, Any]]) -> list[Cell]:
  """Every listed cell with every seed, seed by seed, so that any prefix is balanced."""
  return [Cell(**values, seed=seed) for seed in seeds for values in listed]


def cells() -> Iterator[tuple[str, Cell]]:
  """Part and cell of each point once, in the order of the protocol."""
  seen = set()
  for part, listed in parts().items():
    for cell in listed:
      if cell not in seen:
        seen.add(cell)
        yield part, cell
