"""The report: one page that needs nothing else, neither scripts nor files nor the network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import numpy as np

from cascades.evaluation.comparison import Answers, Comparison
from cascades.reporting.escaping import shorten, visible
from cascades.reporting.summary import Table

LARGE = 'large alone'  # the large model's name beside the small ones'
LONGEST = 400  # characters of a text that are shown
CAPTIONS = {
  'curves': 'Quality against cost. Bands are pointwise; random deferral lies on the dotted lines.',
  'differences': 'Difference of quality at equal deferral rate, with its paired pointwise band.',
  'scores': 'How far each score lifts the curve above random deferral.',
  'tasks': 'Each task by itself.',
  'decomposition': 'What kept and deferred examples contribute to the mean quality of examples.',
  'separation': 'Examples by score: a good score has "large is better" to the right.',
}


class Run(NamedTuple):
  """What made one table of predictions."""

  model: str
  task: str
  manifest: Mapping[str, Any]


class Example(NamedTuple):
  id: str
  prompt: str
  targets: str
  small: str
  large: str
  score: float
  small_quality: float
  large_quality: float


class Examples(NamedTuple):
  model: str
  title: str
  rows: tuple[Example, ...]


def render(
  compared: Comparison,
  tables: Sequence[Table],
  figures: Mapping[str, bytes],
  runs: Sequence[Run],
  *,
  title: str,
  examples: int,
  provenance: Mapping[str, str],
) -> str:
  """HTML with the figures (SVG) inside. Every text from elsewhere is escaped and made visible."""
  environment = jinja2.Environment(
    autoescape=True,
    finalize=lambda value: visible(value) if type(value) is str else value,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  template = resources.files('cascades.reporting').joinpath('report.html.j2').read_text('utf-8')
  return environment.from_string(template).render(
    title=title,
    compared=compared,
    tables=tables,
    figures=[
      (name, caption, base64.b64encode(figures[name]).decode())
      for name, caption in CAPTIONS.items()
      if name in figures
    ],
    examples=list(pick(compared, examples)),
    runs=[(run, _entries(run.manifest), _lines(run.manifest['config'])) for run in runs],
    provenance=[(name, _lines(text)) for name, text in provenance.items() if text],
  )


def pick(compared: Comparison, count: int) -> Iterator[Examples]:
  """For each small model the examples that show what its score gets right and wrong."""
  sign = 1 if compared.metric.higher_is_better else -1
  for model, answers in compared.answers.items():
    gain = sign * (answers.large_quality - answers.small_quality)
    order = np.argsort(-answers.score, kind='stable')
    groups = (
      ('Deferred first', order),
      ('Kept longest although the large model is better', order[::-1][gain[order[::-1]] > 0]),
      ('Deferred first although the large model is worse', order[gain[order] < 0]),
    )
    for title, rows in groups:
      yield Examples(model, title, tuple(_example(answers, int(i)) for i in rows[:count]))


def _example(answers: Answers, row: int) -> Example:
  small, large = answers.small, answers.large
  return Example(
    id=small.ids[row],
    prompt=shorten(small.inputs[row], LONGEST),
    targets=shorten(' | '.join(small.targets[row]), LONGEST),
    small=shorten(small.predictions[row], LONGEST),
    large=shorten(large.predictions[row], LONGEST),
    score=float(answers.score[row]),
    small_quality=float(answers.small_quality[row]),
    large_quality=float(answers.large_quality[row]),
  )


def _entries(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
  return [
    (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    for name, value in manifest.items()
    if name != 'config'
  ]


def _lines(text: str) -> list[str]:
  return text.split('\n')
