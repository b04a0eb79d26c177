"""Samples of lm-evaluation-harness, as `--log_samples` writes them, one a line.

They hold no log-probabilities of tokens. The confidence in a choice is its share in the softmax of
the choices' log-probabilities; generated answers have none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cascades.predictions.importers.answers import Answer, field, number
from cascades.predictions.rows import Details

METRICS = {'acc': 'accuracy', 'exact_match': 'exact_match'}  # and ours of the same meaning


def sample(record: Any, *, name: str | None = None) -> Answer | None:
  """Answer of a sample, or None for one of another filter.

  Args:
    record: The sample.
    name: Name of the filter to take.
  """
  own = field(record, 'filter', str, default='none')
  if name is not None and own != name:
    return None
  qualities = {
    metric: number(record[key], key)
    for key, metric in METRICS.items()
    if record.get(key) is not None
  }
  if not qualities:
    raise ValueError(f'none of the metrics {", ".join(METRICS)}')
  prompts, options = _requests(record.get('arguments'))
  responses = field(record, 'filtered_resps', (list, str), default=None)
  if responses is None:
    responses = field(record, 'resps', list)
  answer = Answer(
    str(field(record, 'doc_id', int)), '', inputs=prompts[0] if prompts else '', qualities=qualities
  )
  scores = _scores(responses)
  if scores is None:
    return answer._replace(prediction=_text(responses), targets=[str(record.get('target', ''))])
  if len(options) != len(scores):
    raise ValueError(f'{len(scores)} responses to {len(options)} requests')
  shares = np.exp(scores - scores.max())
  return answer._replace(
    prediction=options[int(scores.argmax())].strip(),
    targets=_targets(record.get('target'), options),
    details=Details(columns={'confidence': float(shares.max() / shares.sum())}),
  )


def _requests(arguments: Any) -> tuple[list[str], list[str]]:
  """Prompts of the requests, and their continuations where those are texts."""
  pairs = list(arguments.values()) if isinstance(arguments, dict) else arguments
  if not isinstance(pairs, list):
    raise ValueError(f'arguments: expected the requests, found {arguments!r:.80}')
  requests = [list(pair.values()) if isinstance(pair, dict) else pair for pair in pairs]
  if not all(isinstance(p, list) and p and isinstance(p[0], str) for p in requests):
    raise ValueError(f'arguments: expected prompts first, found {arguments!r:.80}')
  return [p[0] for p in requests], [p[1] for p in requests if len(p) > 1 and isinstance(p[1], str)]


def _scores(responses: Any) -> np.ndarray | None:
  """Log-probability of each choice, or None for generated texts."""
  if not isinstance(responses, list) or not responses:
    return None
  pairs = [r[0] if isinstance(r, list) and len(r) == 1 else r for r in responses]
  if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
    return None
  try:
    scores = np.array([float(pair[0]) for pair in pairs])
  except (TypeError, ValueError):
    return None
  if np.isnan(scores).any() or scores.max() == -math.inf:
    raise ValueError(f'filtered_resps: expected log-probabilities, found {responses!r:.80}')
  return scores


def _text(responses: Any) -> str:
  while isinstance(responses, list):
    if not responses:
      return ''
    responses = responses[0]
  return str(responses)


def _targets(target: Any, options: Sequence[str]) -> list[str]:
  """Texts of the right choices, which samples give as an index, or several, or a text."""
  try:
    indices = json.loads(target) if isinstance(target, str) else target
  except (ValueError, RecursionError):
    return [str(target)]
  indices = indices if isinstance(indices, list) else [indices]
  if all(type(index) is int and 0 <= index < len(options) for index in indices) and indices:
    return [options[index].strip() for index in indices]
  return [str(target)]
