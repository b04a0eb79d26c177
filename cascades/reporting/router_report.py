"""The page of `python -m cascades.route`, MODE=evaluate: one file with its charts and tables."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from cascades.evaluation.router_pool import FEW, RouterPool
from cascades.evaluation.router_trials import CONTROL, ROUTER, SHARES, Trials
from cascades.reporting import charts, report, router_charts
from cascades.reporting.escaping import page_environment, shorten
from cascades.reporting.palette import PALETTE
from cascades.reporting.router_figures import BAND
from cascades.reporting.summary import Cell, SummaryTable, percent

MAX_CHARACTERS = 160  # of a prompt
CAPTIONS = {
  'curve': (
    'Each point is a price of a unit of cost, from the cheapest model of all prompts to the best '
    'predicted model of each. Diamonds are single models, the dotted line is ZeroRouter, which '
    'mixes models whatever the prompt.'
  ),
  'shares': (
    'Share of the test prompts that each model answers. Models that are gray in the chart above '
    'answer none, or fewer than eight others.'
  ),
  'map': (
    'Test prompts on a plane, projected by t-SNE so that neighbors stay neighbors; distances '
    'between groups mean little. The color is that of the model that answers at the price above.'
  ),
  'trials': 'Mean quality of each router over the trials, with the band from the 2nd to the 98th '
  'percentile. In each trial, prompts and unseen models are drawn again.',
}


def render(pool: RouterPool, trials: Trials, image: bytes) -> str:
  """Renders the page. Texts from outside are escaped, and their control characters shown.

  Args:
    pool: The router of the first trial.
    trials: All trials.
    image: Figure of the trials as SVG, for readers without scripts.

  Returns:
    HTML.
  """
  content, roots = charts.as_document(router_charts.draw(pool, SHARES, trials.quality))
  values = router_charts.values(pool)
  middle = (values['x'][0] + values['x'][-1]) / 2  # the page opens there
  values['start'] = int(np.argmin(np.abs(np.array(values['x']) - middle)))
  data = {'document': content, 'roots': roots, 'values': values}
  scripts = report.page_scripts(data, 'router.js')
  return (
    page_environment()
    .from_string(report.resource('router.html.j2'))
    .render(
      policy=report.content_policy(scripts),
      style=report.resource('report.css'),
      scripts=scripts,
      headline=headline(trials),
      description=_description(pool, trials),
      dearest=f'{pool.model_cost.max():.3g}',
      models=_legend(pool),
      routers=dict(zip(trials.quality, PALETTE, strict=False)),
      captions=CAPTIONS,
      clusters=clusters(pool),
      joins=joins(pool),
      areas=areas(trials),
      image=base64.b64encode(image).decode(),
    )
  )


def headline(trials: Trials) -> str:
  """Sentence about the sign test."""
  test, count = trials.sign_test(), len(trials.test_rows)
  own, control = (
    np.mean([numbers.area for numbers in trials.numbers[name]]) for name in (trials.method, CONTROL)
  )
  name = 'The router' if trials.method == ROUTER else f'The router of METHOD={trials.method!r}'
  return (
    f'{name} has the larger area than ZeroRouter in {test.first_only} of {count} trials and '
    f'the smaller in {test.second_only}: {own:.4f} against {control:.4f} on average '
    f'(sign test, p {test.p:.2g}).'
  )


def _description(pool: RouterPool, trials: Trials) -> str:
  return (
    f'Charts and tables of prompts are of the first trial: {len(pool.models)} models that the '
    f'router has not seen before, {trials.test_rows[0]} test prompts, {len(pool.sizes)} clusters. '
    'The router knows the models by their answers to the validation prompts alone. Costs are those '
    'that are paid; where they differ by prompt, the router decides by its estimates of them.'
  )


def _legend(pool: RouterPool) -> list[dict[str, Any]]:
  """Models that answer anywhere along the curve, those that answer most first."""
  shades = router_charts.colors(pool)
  order = np.argsort(-pool.shares.sum(axis=0), kind='stable').tolist()
  return [
    {'index': model, 'name': shorten(pool.models[model], 60), 'color': shades[model]}
    for model in order
    if pool.shares[:, model].any()
  ]


def clusters(pool: RouterPool) -> SummaryTable:
  """Best model of each cluster, predicted and measured."""
  best_single = int(np.argmax(pool.model_quality))
  rows = []
  for k in np.argsort(-pool.sizes, kind='stable').tolist():
    if not pool.sizes[k]:
      continue
    predicted, measured = int(np.argmin(pool.predicted[k])), int(np.argmax(pool.measured[k]))
    examples = [shorten(text, MAX_CHARACTERS) for text in pool.examples[k]]
    rows.append(
      (
        Cell(str(k)),
        Cell(examples[0], examples[1] if len(examples) > 1 else ''),
        Cell(str(pool.sizes[k])),
        Cell(shorten(pool.models[predicted], 40), f'{pool.measured[k, predicted]:.3f}'),
        Cell(shorten(pool.models[measured], 40), f'{pool.measured[k, measured]:.3f}'),
        Cell(f'{pool.measured[k, best_single]:.3f}'),
      )
    )
  return SummaryTable(
    'Which model wins where',
    'Clusters of prompts by their size, each with the test prompts nearest to its center: the '
    'model of the least predicted loss, the one that is best on the test prompts, and the one '
    f'that is best on all of them, {shorten(pool.models[best_single], 40)}, with their quality on '
    'the test prompts of the cluster. The dot is the model that answers most of '
    'them at the price above.',
    ('cluster', 'prompts like', 'test prompts', 'predicted best', 'best', 'best of all'),
    tuple(rows),
  )


def joins(pool: RouterPool) -> SummaryTable:
  """Areas before and after each model joins the others."""
  rows = tuple(
    (
      Cell(shorten(pool.models[own.model], 40)),
      Cell(f'{pool.model_cost[own.model]:.4g}'),
      Cell(f'{pool.model_quality[own.model]:.4f}'),
      Cell(f'{own.without:.4f}'),
      *(Cell(f'{area - own.without:+.4f}') for area in own.few),
      Cell(f'{own.every - own.without:+.4f}', f'{own.answers} answers'),
      Cell(percent(own.share)),
    )
    for own in pool.joined
  )
  return SummaryTable(
    'A new model joins',
    'Each model in turn joins the others by its answers to some validation prompts, nothing else '
    'is fitted again: area of the router without it, and what is added by 10, by 50 (means of 3 '
    'draws) and by all answers. The share is of the test prompts that it gets at the price 0.',
    (
      'model', 'cost', 'quality', 'area without it', *(f'with {count} answers' for count in FEW),
      'with all', 'best predicted for',
    ),
    rows,
  )  # fmt: skip


def areas(trials: Trials) -> SummaryTable:
  """Numbers of each router over the trials."""
  rows = []
  for name, own in trials.numbers.items():
    area, half, qnc, peak = np.array(own).T
    low, high = np.percentile(area, BAND)
    reached = np.median(qnc)
    rows.append(
      (
        Cell(name),
        Cell(f'{area.mean():.4f}', f'[{low:.4f}, {high:.4f}]'),
        Cell(f'{half.mean():.4f}'),
        Cell(percent(reached) if np.isfinite(reached) else 'never'),
        Cell(f'{peak.mean():.4f}'),
      )
    )
  return SummaryTable(
    'Areas',
    'Mean area under quality over cost as share of the dearest model, with its band; area up to '
    'half that cost; quality-neutral cost, the median of the least cost that reaches the most '
    'accurate model, as a share of its cost; and the best quality.',
    ('router', 'area', 'area (50 %)', 'quality-neutral cost', 'peak'),
    tuple(rows),
  )
