"""The report: one self-contained HTML page, without other files or network access."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from cascades import costs
from cascades.evaluation.comparison import Comparison, PairedAnswers
from cascades.reporting import (
  chain_charts,
  chain_tables,
  charts,
  decisions,
  findings,
  operating_point,
  reliability,
  summary,
)
from cascades.reporting.escaping import page_environment, shorten
from cascades.reporting.operating_point import Headline
from cascades.reporting.palette import PALETTE
from cascades.reporting.summary import SummaryTable

MAX_CHARACTERS = 400  # of a prompt, target or answer
CAPTIONS = {
  'curves': (
    'Quality against cost: each point is a threshold of the score, from no deferral (left end) to '
    'all. Bands are pointwise. Dotted lines, the chords, show random deferral.'
  ),
  'differences': 'Difference in quality at equal deferral rate, with paired pointwise bands.',
  'scores': 'Gain of each score over random deferral.',
  'tasks': 'Quality against deferral rate on each task.',
  'decomposition': (
    'Contributions to the mean quality of examples: A1 of those that the small model keeps, A2 of '
    'those that are deferred to the large one. They sum to the quality of the cascade.'
  ),
  'shares': (
    'Share of the examples that each model answers at each threshold: those of a score of at least '
    'the threshold are deferred to the large model.'
  ),
  'chains': (
    'Quality against cost: the chain asks its models in order, pairs are the best two models at '
    'each cost, best chains those of any length. Controls are oracles, which know all answers, '
    'random choices, and routers, which decide before any answer. Diamonds are single models. '
    'Discarded answers are charged.'
  ),
  'reliability': (
    'Mean quality of the answers of both models in bins of the confidence of the small model, with '
    'the number of examples of each bin below. Deferral gains where the two lie apart.'
  ),
  'separation': (
    'Distribution of the score. A good score puts examples where the large model is better to the '
    'right-hand side of the others.'
  ),
}


@dataclasses.dataclass(frozen=True)
class Report:
  """Options of the files that an evaluation writes.

  Attributes:
    title: Title of report.html.
    points: Points of each curve in curves.json at most.
    examples: Examples of each group in report.html at most.
    interactive: Draw charts that a threshold moves on; False for a page of images without scripts.
  """

  title: str = 'Comparison of cascades'
  points: int = 1000
  examples: int = 8
  interactive: bool = True


class ExampleRow(NamedTuple):
  """One example with both answers, as texts to show."""

  id: str
  prompt: str
  targets: str
  small: str
  large: str
  score: float
  small_quality: float
  large_quality: float


class ExampleGroup(NamedTuple):
  """Examples of one small model that have something in common."""

  model: str
  title: str
  rows: tuple[ExampleRow, ...]


def render(
  comparison: Comparison,
  figures: Mapping[str, bytes],
  options: Report,
  provenance: Mapping[str, str],
) -> str:
  """Renders the report. Texts from outside are escaped, and their control characters shown.

  Args:
    comparison: The comparison to report.
    figures: SVG images by name.
    options: Options of the report.
    provenance: Texts that say how the comparison was made, by name.

  Returns:
    HTML.
  """
  headline = operating_point.headline(comparison)
  scripts = _scripts(comparison, headline) if options.interactive else None
  bins = {
    model: reliability.reliability(answers, comparison.scores[0], comparison.metric)
    for model, answers in comparison.answers.items()
  }
  return (
    page_environment()
    .from_string(resource('report.html.j2'))
    .render(
      title=options.title,
      policy=content_policy(scripts),
      style=resource('report.css'),
      scripts=scripts,
      charts=options.interactive,
      comparison=comparison,
      headline=headline,
      chains_lead=operating_point.is_of_chains(comparison),
      findings=findings.sentences(comparison),
      meaning=summary.meaning(comparison.scores[0]),
      colors={model: charts.color(index) for index, model in enumerate(comparison.flops)},
      tasks=charts.tasks(comparison),
      reliabilities=bins,
      chains=[(result, chain_charts.strokes(result)) for result in chain_charts.shown(comparison)],
      palette=PALETTE,
      units=costs.UNITS,
      tables=_tables(comparison),
      figures={name: base64.b64encode(image).decode() for name, image in figures.items()},
      captions=CAPTIONS,
      examples=list(pick(comparison, options.examples)),
      manifests=[
        (model, manifest['task'], _entries(manifest), _lines(manifest['config']))
        for model, manifests in comparison.manifests.items()
        for manifest in manifests
      ],
      provenance=[(name, _lines(text)) for name, text in provenance.items() if text],
    )
  )


def _tables(comparison: Comparison) -> list[SummaryTable]:
  """Tables of the page: models, comparisons, and all others."""
  first, *others = summary.tables(comparison)
  seeds = [decisions.seed_averages(comparison)] if comparison.averages else []
  compared = decisions.table(comparison)
  decided = [compared] if compared else []
  return [first, *seeds, *decided, *others, *chain_tables.tables(comparison)]


class Scripts(NamedTuple):
  """Scripts of an interactive page, in their order, and the data that they read."""

  first: str
  data: str
  library: str
  last: str


def _scripts(comparison: Comparison, headline: Headline) -> Scripts:
  point = headline.point
  model = next(iter(comparison.flops)) if point is None else point.model
  data = charts.draw(comparison, point)._asdict() | {
    'start': {'model': [*comparison.flops].index(model), 'rate': point.rate if point else 0.0}
  }
  return page_scripts(data, 'report.js')


def page_scripts(data: Any, own: str) -> Scripts:
  """Scripts of a page with charts: its own, a resource, reads the data after `drawing.js`.

  Args:
    data: 'document' and 'roots' of `charts.as_document`, and what the page's own script reads.
    own: Name of the resource.
  """
  return Scripts(
    first="document.documentElement.classList.add('scripted')",
    data=as_script_data(data),
    library=charts.library(),
    last=resource('drawing.js') + resource(own),
  )


def as_script_data(value: Any) -> str:
  r"""Encodes JSON for a script element: ASCII, and '<', '>' and '&' as '\u003c' and so on."""
  text = json.dumps(value, allow_nan=False)
  return text.translate({ord(sign): f'\\u{ord(sign):04x}' for sign in '<>&'})


def content_policy(scripts: Scripts | None) -> str:
  """Content security policy: these very scripts, images in the page, and no network."""
  policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
  if scripts is None:
    return policy
  digests = [
    hashlib.sha256(text.encode()).digest()
    for text in (scripts.first, scripts.library, scripts.last)
  ]
  sources = ' '.join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
  return f'{policy}; script-src {sources}'


def resource(name: str) -> str:
  return resources.files('cascades.reporting').joinpath(name).read_text('utf-8')


def pick(comparison: Comparison, count: int) -> Iterator[ExampleGroup]:
  """Yields for each small model examples that its score orders well and badly.

  Args:
    comparison: The comparison, with the answers of every small model.
    count: Examples of each group at most.
  """
  sign = 1 if comparison.metric.higher_is_better else -1
  for model, answers in comparison.answers.items():
    gain = sign * (answers.large_quality - answers.small_quality)
    order = np.argsort(-answers.score, kind='stable')
    rising = order[::-1]
    groups = (
      ('easiest: lowest scores', rising),
      ('hardest: highest scores', order),
      (
        'regretted deferrals: highest scores where the large model is worse',
        order[gain[order] < 0],
      ),
      ('regretted keeps: lowest scores where the large model is better', rising[gain[rising] > 0]),
    )
    for title, rows in groups:
      examples = tuple(_example(answers, int(row), comparison.sizes.keys()) for row in rows[:count])
      yield ExampleGroup(model, title, examples)


def _example(answers: PairedAnswers, row: int, tasks: Collection[str]) -> ExampleRow:
  small, large = answers.small, answers.large
  return ExampleRow(
    id=_short_id(small.ids[row], tasks),
    prompt=shorten(small.inputs[row], MAX_CHARACTERS),
    targets=shorten(' | '.join(small.targets[row]), MAX_CHARACTERS),
    small=shorten(small.predictions[row], MAX_CHARACTERS),
    large=shorten(large.predictions[row], MAX_CHARACTERS),
    score=float(answers.score[row]),
    small_quality=float(answers.small_quality[row]),
    large_quality=float(answers.large_quality[row]),
  )


def _short_id(pooled: str, tasks: Collection[str]) -> str:
  """Id without the task that pooling put before it, unless that tells tasks apart."""
  task = next(task for task in tasks if pooled.startswith(f'{task}/'))
  own = pooled.removeprefix(f'{task}/')
  return own if len(tasks) == 1 or own.startswith(task) else pooled


def _entries(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Entries as texts; the configuration is shown apart."""
  return [
    (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    for name, value in manifest.items()
    if name != 'config'
  ]


def _lines(text: str) -> list[str]:
  return text.split('\n')
