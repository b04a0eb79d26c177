"""Files of an evaluation: the report, its figures, and the numbers for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from cascades.evaluation.comparison import Comparison
from cascades.reporting import exports, figures, report
from cascades.reporting.report import Report
from cascades.runtime import files
from cascades.types import Predictions


def check(directory: epath.Path, models: Mapping[str, Sequence[Predictions]]) -> None:
  """Raise FileExistsError if the directory holds a report of other tables.

  Another report of the same tables takes seconds to make again, and may be replaced.

  Args:
    directory: Folder of the report.
    models: Tables to compare, by model.
  """
  if not (directory / 'curves.json').exists() and (directory / 'config.gin').exists():
    raise FileExistsError(
      f'{directory} holds the config.gin of something else, such as a training run. Choose another '
      'EVAL_OUTPUT_DIR, or replace it with OVERWRITE=True.'
    )
  try:
    present = json.loads((directory / 'curves.json').read_bytes())['tables']
  except (FileNotFoundError, ValueError, KeyError, TypeError):  # an older or unfinished report
    return
  compared = exports.tables({m: [table.manifest for table in own] for m, own in models.items()})
  for model in sorted({*compared, *present}):
    if present.get(model) != compared.get(model):
      raise FileExistsError(
        f'{directory} holds a report of other tables. Model {model!r} has there '
        f'{_origin(present.get(model))}, and here {_origin(compared.get(model))}. Choose another '
        'EVAL_OUTPUT_DIR, or replace the report with OVERWRITE=True.'
      )


def _origin(tables: Sequence[Mapping[str, Any]] | None) -> str:
  texts = [', '.join(f'{name} {value}' for name, value in t.items() if value) for t in tables or ()]
  return '; '.join(texts) or 'no table'


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
  for name in report.CAPTIONS:  # a report of fewer models or tasks has fewer figures
    for image_format in figures.FORMATS:
      if (path := f'figures/{name}.{image_format}') not in contents:
        (directory / path).unlink(missing_ok=True)
  for name, content in contents.items():
    files.write(directory / name, content)
