"""Draw the deferral curve of a table of your own, and choose a threshold.

    python examples/curve_from_table.py [TABLE.csv [PICTURE.png]]

The table has a row for each example, with the columns

    id,small_correct,large_correct,confidence

of which the middle two are 1 if that model's answer is correct, else 0, and `confidence` is any
number that is high when the small model is sure of its answer. It may come from any system: a
classifier, an API, a person. Without a table, one of 500 simulated examples is written and read.
"""

import csv
import pathlib
import sys
import tempfile

import numpy as np
from matplotlib.figure import Figure

from cascades import costs, curves

SMALL_COST, LARGE_COST = 1.0, 10.0  # of one answer, in any unit: FLOPs, cents, seconds
BUDGET = 0.3  # largest share of examples that may be deferred


def simulate(path: pathlib.Path, size: int = 500) -> None:
  """Writes a table of two models whose chances of a correct answer fall with its difficulty."""
  generator = np.random.default_rng(0)
  difficulty = generator.normal(size=size)
  small, large = (
    generator.random(size) < 1 / (1 + np.exp(3 * (difficulty - skill))) for skill in (0.2, 1.5)
  )
  confidence = 1 / (1 + np.exp(difficulty + generator.normal(scale=0.7, size=size)))
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['id', 'small_correct', 'large_correct', 'confidence'])
    writer.writerows(
      zip(range(size), small.astype(int), large.astype(int), confidence, strict=True)
    )


def read(path: pathlib.Path, names: tuple[str, ...]) -> list[np.ndarray]:
  """Reads columns of numbers."""
  with path.open(newline='') as file:
    rows = list(csv.DictReader(file))
  return [np.array([float(row[name]) for row in rows]) for name in names]


def draw(curve: curves.Curve, threshold: float, path: pathlib.Path) -> None:
  """Saves a picture of the curve, of random deferral, and of the point at the threshold."""
  point = int(np.flatnonzero(curve.threshold == threshold)[0])
  figure = Figure(figsize=(5, 3.5), layout='constrained')
  axes = figure.add_subplot()
  axes.plot(curve.cost, curve.quality, label='deferral by confidence')
  axes.plot(curve.cost[[0, -1]], curve.quality[[0, -1]], ':', label='random deferral')
  axes.plot(curve.cost[point], curve.quality[point], 'o', label=f'confidence <= {-threshold:.3g}')
  axes.set(xlabel='mean cost of an answer', ylabel='accuracy')
  axes.legend(loc='lower right', frameon=False)
  figure.savefig(path, dpi=150)


def main(table: pathlib.Path, picture: pathlib.Path) -> None:
  small, large, confidence = read(table, ('small_correct', 'large_correct', 'confidence'))
  curve = curves.deferral_curve(
    -confidence,  # higher scores are deferred first
    small[:, None],
    large[:, None],
    finalize=lambda sums: sums[..., 0] / len(confidence),
    cost=lambda rate: costs.cascade(rate, small=SMALL_COST, large=LARGE_COST),
  )
  threshold = curves.threshold_for(curve, BUDGET)
  deferred = -confidence >= threshold
  quality = np.where(deferred, large, small).mean()
  print(f'accuracy: small {small.mean():.4f}, large {large.mean():.4f}')
  print(f'area under the curve: {curves.area(curve):.4f}')
  print(f'area above random deferral: {curves.area_above_chord(curve):+.4f}')
  print(f'threshold: defer if confidence <= {-threshold:.6g}')
  print(f'there: {deferred.mean():.1%} deferred, accuracy {quality:.4f}')
  draw(curve, threshold, picture)
  print(f'picture: {picture}')


if __name__ == '__main__':
  paths = [pathlib.Path(argument) for argument in sys.argv[1:]]
  if not paths:
    paths = [pathlib.Path(tempfile.mkdtemp()) / 'table.csv']
    simulate(paths[0])
  main(paths[0], paths[1] if paths[1:] else paths[0].with_suffix('.png'))
