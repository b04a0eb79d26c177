"""One row of a table of predictions: building and checking it.

The first keys are T5X's; what a cascade needs lies under `aux`:

    {"inputs": {"inputs_pretokenized": str, "targets_pretokenized": str},
     "prediction": str (mode predict) | "score": float (mode score),
     "aux": {"scores": float, "id": str, "targets": [str], "tokens": [int],
             "token_logprobs": [float], "length": int, "statistics": {metric: [float]},
             "correct": [0 | 1], "options": [str], "option_scores": [float],
             "option_lengths": [int], "group": str}}

The last five are optional; `option_lengths` are in tokens, and rows of one `group`, such as all
answers to one question, are right only together. Log-probabilities are finite, in float32
precision: minus infinity is written as the lowest float32; what is no log-probability is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

Mode: TypeAlias = Literal['predict', 'score']
Row: TypeAlias = dict[str, Any]

LOWEST = float(str(np.finfo(np.float32).min))
ROUNDING = 1e-4  # a log-softmax in float32 may end so far above 0


class Parsed(NamedTuple):
  """What evaluation takes from a row."""

  id: str
  inputs: str
  targets: list[str]
  prediction: str
  logprobs: list[float]
  statistics: dict[str, list[float]]
  group: str | None = None


def build(
  *,
  id: str,
  inputs: str,
  targets: Sequence[str],
  answer: str | float,
  tokens: Sequence[int],
  logprobs: Sequence[float],
  statistics: Mapping[str, Sequence[float]],
  correct: Sequence[bool] | None = None,
  options: Sequence[str] | None = None,
  option_scores: Sequence[float] | None = None,
  option_lengths: Sequence[int] | None = None,
  group: str | None = None,
) -> Row:
  """One row: `answer` is the text that was predicted, or the score of what was given.

  `targets` are all that would be right, `logprobs` those of `tokens`, end of sequence included.
  With options, `tokens` and `logprobs` belong to the best of them; `option_lengths` count their
  tokens, end of sequence included.
  """
  kept = _finite(logprobs)
  aux: dict[str, Any] = {
    'scores': float(sum(kept)),
    'id': id,
    'targets': list(targets),
    'tokens': [int(token) for token in tokens],
    'token_logprobs': kept,
    'length': len(kept),
    'statistics': {name: [float(x) for x in values] for name, values in statistics.items()},
  }
  if correct is not None:
    aux['correct'] = [int(bit) for bit in correct]
  if options is not None and option_scores is not None:
    aux |= {'options': list(options), 'option_scores': _finite(option_scores)}
    if option_lengths is not None:
      aux['option_lengths'] = [int(length) for length in option_lengths]
  if group is not None:
    aux['group'] = group
  return {
    'inputs': {'inputs_pretokenized': inputs, 'targets_pretokenized': targets[0]},
    **({'prediction': answer} if isinstance(answer, str) else {'score': _finite([answer])[0]}),
    'aux': aux,
  }


def _finite(logprobs: Sequence[float]) -> list[float]:
  """In float32 precision and its shortest digits; nan stays, to be refused."""
  return [max(float(str(value)), LOWEST) for value in np.asarray(logprobs, np.float32)]


def parse(record: Any, mode: Mode) -> Parsed:
  """What a row says, if it says it as the module's docstring does."""
  inputs, aux = get(record, 'inputs', dict), get(record, 'aux', dict)
  targets = get(aux, 'targets', list)
  if not targets or not all(isinstance(target, str) for target in targets):
    raise ValueError(f'aux.targets must be one or more texts, found {targets!r:.80}')
  logprobs = _numbers(aux, 'token_logprobs')
  if logprobs and max(logprobs) > ROUNDING:
    raise ValueError(f'{max(logprobs)} is no log-probability: it is above 0')
  lengths = {'length': get(aux, 'length', int), 'token_logprobs': len(logprobs)}
  lengths |= {name: len(_numbers(aux, name)) for name in ('tokens', 'correct') if name in aux}
  if len(set(lengths.values())) > 1 or 'tokens' not in aux:
    raise ValueError(f'tokens and their log-probabilities must be equally many, found {lengths}')
  statistics = get(aux, 'statistics', dict)
  return Parsed(
    id=get(aux, 'id', str),
    inputs=get(inputs, 'inputs_pretokenized', str),
    targets=targets,
    prediction=get(record, 'prediction', str) if mode == 'predict' else _best(record, inputs, aux),
    logprobs=[min(value, 0.0) for value in logprobs],
    statistics={name: _numbers(statistics, name) for name in statistics},
    group=get(aux, 'group', str) if 'group' in aux else None,
  )


def best_option(scores: Sequence[float], lengths: Sequence[int] | None = None) -> int:
  """The option of highest log-probability, or of highest per token; of equals, the first."""
  return int(np.argmax(scores if lengths is None else np.divide(scores, lengths)))


def _best(record: Row, inputs: Row, aux: Row) -> str:
  """In score mode: the option of highest score, or the given target if there are no options."""
  if not math.isfinite(get(record, 'score', (int, float))):
    raise ValueError('score must be finite')
  if 'options' not in aux:
    return get(inputs, 'targets_pretokenized', str)
  options, scores = get(aux, 'options', list), _numbers(aux, 'option_scores')
  if not options or len(options) != len(scores):
    raise ValueError(f'{len(options)} options have {len(scores)} scores')
  if not all(isinstance(option, str) for option in options):
    raise ValueError(f'options must be texts, found {options!r:.80}')
  if 'option_lengths' in aux:
    lengths = _numbers(aux, 'option_lengths')
    if len(lengths) != len(options) or min(lengths) < 1:
      raise ValueError(f'option_lengths must be {len(options)} counts of tokens, found {lengths}')
  return options[best_option(scores)]


def get(record: Any, name: str, kind: type | tuple[type, ...]) -> Any:
  """The named entry, if it is there and of that kind."""
  if not isinstance(record, dict) or name not in record:
    raise ValueError(f'no {name!r} in {record!r:.80}')
  value = record[name]
  if not isinstance(value, kind) or isinstance(value, bool):
    wanted = getattr(kind, '__name__', 'number')
    raise ValueError(f'{name} must be a {wanted}, found {value!r:.80}')
  return value


def _numbers(record: Row, name: str) -> list[float]:
  values = get(record, name, list)
  if not set(map(type, values)) <= {int, float} or not all(map(math.isfinite, values)):
    raise ValueError(f'{name} must hold finite numbers, found {values!r:.80}')
  return values
