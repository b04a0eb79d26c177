"""Files of an evaluation: the report, its figures, and the numbers for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping

from etils import epath

from cascades.evaluation.comparison import Comparison
from cascades.reporting import exports, figures, report
from cascades.reporting.report import Report
from cascades.runtime import files


def write(
  directory: epath.Path, comparison: Comparison, options: Report, provenance: Mapping[str, str]
) -> None:
  """Writes figures/, curves.json, summary.csv, config.gin and, last, report.html.

  Args:
    directory: Folder to write to, local or remote.
    comparison: The comparison to report.
    options: Options of the report.
    provenance: Texts that say how the comparison was made, by name; 'config' goes to config.gin.
  """
  drawn = figures.draw(comparison)
  images = {
    image_format: {name: figures.encode(figure, image_format) for name, figure in drawn.items()}
    for image_format in figures.FORMATS
  }
  values = exports.as_json(comparison, points=options.points)
  contents = {
    f'figures/{name}.{image_format}': image
    for image_format, by_name in images.items()
    for name, image in by_name.items()
  } | {
    'curves.json': json.dumps(values, allow_nan=False).encode(),
    'summary.csv': exports.to_csv(exports.records(comparison)),
    'config.gin': provenance.get('config', '').encode(),
    'report.html': report.render(comparison, images['svg'], options, provenance).encode(),
  }
  for name, content in contents.items():
    files.write(directory / name, content)
