"""Claims of the paper as differences of points, each with the quantity and the seeds planned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from benchmarks import cat_grid
from benchmarks.cat_grid import (
  BASE_SEEDS,
  EQUAL_FLOPS,
  FEW_SEEDS,
  SECOND,
  SEEDS,
  SIZES,
  TUNED,
  Cell,
)
from benchmarks.cat_statistics import QUANTITIES

AREA, AT_20, ALONE, ORDERING = QUANTITIES
Family = Literal['primary', 'secondary', 'mechanism', 'sensitivity', 'length']


class Term(NamedTuple):
  """A point's quantity under a deferral score, with its sign in a difference."""

  sign: int
  cell: Cell
  score: str = 'average'


class Claim(NamedTuple):
  """The claim that a signed sum of terms is above 0, on one task."""

  task: str
  name: str
  text: str
  quantity: str
  terms: tuple[Term, ...]
  family: Family
  seeds: int


def claims() -> Iterator[Claim]:
  """All claims; those of one name on several tasks are one sentence of the protocol."""
  for task, sizes in SIZES.items():
    seeds = BASE_SEEDS if task == 'g2p' else FEW_SEEDS
    of_task = _pretraining if task in cat_grid.PRETRAINING else _base
    yield from of_task(task, sizes[0], seeds)
  yield from _mechanism('g2p', SEEDS['g2p'])
  yield from _sensitivity('g2p', BASE_SEEDS)
  yield from _lengths('g2p', SEEDS['g2p'])


def _lengths(task: str, seeds: int) -> Iterator[Claim]:
  """What CAT-Xent adds to Xent after training for longer."""
  for length in cat_grid.LENGTHS:
    plain = Cell(task, SIZES[task][0], 'xent', length=length)
    for quantity in (AREA, ALONE):
      yield Claim(
        task, f'L {length:g}x, {quantity}', f'CAT-Xent is better after {length:g}x the steps',
        quantity, (Term(1, plain._replace(loss='cat_xent')), Term(-1, plain)), 'length', seeds,
      )  # fmt: skip


def _sensitivity(task: str, seeds: int) -> Iterator[Claim]:
  """The primary comparisons of area with other rates than the tuned ones."""
  for loss in ('xent', 'dist'):
    for name, rates in (
      ('second rates', (SECOND, SECOND)),
      ('its second rate', (SECOND, TUNED)),
      (f"{loss}'s second rate", (TUNED, SECOND)),
    ):
      first, second = (
        Cell(task, SIZES[task][0], own, factor=factor)
        for own, factor in zip((f'cat_{loss}', loss), rates, strict=True)
      )
      yield Claim(
        task, f'R cat_{loss}, {name}', f'CAT-{loss.title()} cascades better, at {name}', AREA,
        (Term(1, first), Term(-1, second)), 'sensitivity', seeds,
      )  # fmt: skip


def _pretraining(task: str, size: str, seeds: int) -> Iterator[Claim]:
  """Next-token accuracy after pre-training (the paper's appendix E), which is no primary claim."""
  for loss in ('xent', 'dist'):
    terms = (Term(1, Cell(task, size, f'cat_{loss}')), Term(-1, Cell(task, size, loss)))
    for quantity in QUANTITIES:
      yield Claim(
        task, f'E cat_{loss}, {quantity}', f'CAT-{loss.title()} predicts next tokens better',
        quantity, terms, 'secondary', seeds,
      )  # fmt: skip


def _base(task: str, size: str, seeds: int) -> Iterator[Claim]:
  def minus(first: str, second: str, *scores: str) -> tuple[Term, ...]:
    scores = scores or ('average', 'average')
    cells = Cell(task, size, first), Cell(task, size, second)
    return Term(1, cells[0], scores[0]), Term(-1, cells[1], scores[1])

  def claim(
    name: str, text: str, quantity: str, terms: tuple[Term, ...], family: Family = 'secondary'
  ) -> Claim:
    return Claim(task, name, text, quantity, terms, family, seeds)

  for quantity, short in ((AREA, 'area'), (AT_20, '20 %')):
    for loss in ('xent', 'dist'):
      yield claim(
        f'P cat_{loss}, {short}', f'CAT-{loss.title()} cascades better than {loss.title()}',
        quantity, minus(f'cat_{loss}', loss), 'primary',
      )  # fmt: skip
  yield claim('S dist alone', 'Dist answers better alone than Xent', ALONE, minus('dist', 'xent'))
  yield claim(
    'S cat_xent above dist', 'CAT-Xent cascades better than Dist at low cost', AT_20,
    minus('cat_xent', 'dist'),
  )  # fmt: skip
  yield claim(
    'S cat_xent alone', 'CAT-Xent answers better alone than Xent', ALONE, minus('cat_xent', 'xent')
  )
  for loss in ('xent', 'dist'):
    yield claim(
      f'S cat_{loss} ordering', f'CAT-{loss.title()} orders its answers better', ORDERING,
      minus(f'cat_{loss}', loss),
    )  # fmt: skip
  for other in ('minimum', 'sum', 'maximum', 'quantile 0.4', 'quantile 0.8'):
    yield claim(
      f'S average above {other}', f'The average defers better than the {other} (C.1), Xent', AREA,
      minus('xent', 'xent', 'average', other),
    )  # fmt: skip
  yield claim(
    'S average above edge_inference', 'The average defers better than EdgeInference, Xent', AREA,
    minus('xent', 'xent', 'average', 'edge_inference'),
  )  # fmt: skip
  yield claim(
    'S cat_xent, learned', 'CAT-Xent still helps under a learned decider', AREA,
    minus('cat_xent', 'xent', 'post_hoc_quantile', 'post_hoc_quantile'),
  )  # fmt: skip
  yield claim(
    'S without the end', 'The average defers better with the end of sequence, Xent', AREA,
    minus('xent', 'xent', 'average', 'average without the end'),
  )  # fmt: skip


def _mechanism(task: str, seeds: int) -> Iterator[Claim]:
  size, *larger = SIZES[task]

  def gain(**changes: object) -> tuple[Term, ...]:
    """What CAT-Xent adds to Xent in some setting."""
    at = Cell(task, size, 'xent')._replace(**changes)  # type: ignore[arg-type]
    return Term(1, at._replace(loss='cat_xent')), Term(-1, at)

  def less(first: tuple[Term, ...], second: tuple[Term, ...]) -> tuple[Term, ...]:
    return (*first, *(term._replace(sign=-term.sign) for term in second))

  def claim(name: str, text: str, terms: tuple[Term, ...], quantity: str = AREA) -> Claim:
    return Claim(task, name, text, quantity, terms, 'mechanism', seeds)

  base = {loss: Term(1, Cell(task, size, loss)) for loss in (*cat_grid.BASE, *cat_grid.MASKS)}
  for loss in ('xent', 'dist'):
    cat, only_large, only_small = (base[f'cat_{loss}{mask}'] for mask in ('', '_l', '_s'))
    yield claim(
      f'M {loss}: or above L', f'The OR mask is better than the large model\'s, {loss}',
      (cat, only_large._replace(sign=-1)),
    )  # fmt: skip
    yield claim(
      f'M {loss}: S is slow', f'The small model\'s mask is far from converged, {loss}',
      (base[loss], only_small._replace(sign=-1)), ALONE,
    )  # fmt: skip
  for noise in cat_grid.NOISES:
    yield claim(f'M noise {noise:g}', f'CAT-Xent wins with {noise:.0%} noise', gain(noise=noise))
  yield claim(
    'M noise helps', 'CAT-Xent gains more with 30 % noise than without',
    less(gain(noise=0.3), gain()),
  )  # fmt: skip
  yield claim(
    'M capacity', 'CAT-Xent gains more at the smallest size than at the largest',
    less(gain(), gain(size=larger[-1])),
  )  # fmt: skip
  yield claim(
    'M convergence', 'CAT-Xent gains more after 1x than after 4x the steps',
    less(gain(), gain(length=4.0)),
  )  # fmt: skip
  long = Term(-1, Cell(task, size, 'xent', length=EQUAL_FLOPS))
  yield claim(
    'M equal FLOPs', 'CAT-Xent is better than Xent trained for the same FLOPs',
    (base['cat_xent'], long),
  )  # fmt: skip
  yield claim(
    'M the end is not dropped', 'CAT-Xent is better if it never drops the end of sequence',
    (Term(1, Cell(task, size, 'cat_xent_eos')), base['cat_xent']._replace(sign=-1)),
  )  # fmt: skip
  yield claim(
    'M lagged', 'CAT-Xent is better if the mask is of a lagged small model',
    (Term(1, Cell(task, size, *cat_grid.LAGGED)), base['cat_xent']._replace(sign=-1)),
  )  # fmt: skip
  second = {
    loss: Cell(task, size, loss, start='xent') for loss in ('xent', 'gatekeeper', 'cat_gatekeeper')
  }
  for first, other in (('gatekeeper', 'xent'), ('cat_gatekeeper', 'gatekeeper')):
    yield claim(
      f'M {first} above {other}', f'{first} orders better than {other}, second stages',
      (Term(1, second[first]), Term(-1, second[other])), ORDERING,
    )  # fmt: skip
  yield claim(
    'M adaspec above dist', "AdaSPEC's mask is better than none, Dist",
    (Term(1, Cell(task, size, 'adaspec')), base['dist']._replace(sign=-1)),
  )  # fmt: skip
  for w in cat_grid.WEIGHTS:
    at = Cell(task, size, 'dist', w=w)
    yield claim(
      f'M w {w:g}', f'CAT-Dist is better than Dist at w = {w:g}',
      (Term(1, at._replace(loss='cat_dist')), Term(-1, at)),
    )  # fmt: skip
  for name in cat_grid.NORMALIZERS:
    yield claim(
      f'M {name}', f'CAT-Xent is better than Xent, divided by {name}', gain(normalizer=name)
    )
