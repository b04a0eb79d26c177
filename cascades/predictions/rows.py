"""Rows of a table of predictions: built by inference, validated whenever they are read or written.

The first keys of a row are T5X's; those that a cascade needs lie under `aux`:

    {"inputs": {"inputs_pretokenized": str, "targets_pretokenized": str},
     "prediction": str (mode predict) | "score": float (mode score),
     "aux": {"scores": float, "id": str, "targets": [str], "tokens": [int],
             "token_logprobs": [float], "length": int, "statistics": {metric: [float]},
             "correct": [0 | 1], "options": [str], "option_scores": [float],
             "option_lengths": [int], "group": str, "slice": str,
             "top_logprobs": [[float]], "confidence": float, "prompt_tokens": int,
             "generated_tokens": int, "seconds": float, "dollars": float, "accepted": int,
             "rejected": int, "small_calls": int, "large_calls": int,
             "small_logprobs": [float | null], "drafted": [0 | 1]}}

Those from `correct` on are optional, and other keys are ignored. `option_lengths` are in tokens.
Rows of one `group`, such as all answers to one question, are correct only together; rows of one
`slice` belong to one population. `top_logprobs` are those of the most likely tokens at each
position. Answers that two models wrote together have the log-probabilities of the large one in
`token_logprobs`; those of the small one, null where it has not read the tokens before, are
`small_logprobs`, and `drafted` is 1 for the tokens that it wrote. Log-probabilities are finite, in
float32 precision: minus infinity is written as the lowest float32, and numbers above 0 are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from cascades.types import COLUMNS, TOKEN_COLUMNS

Mode: TypeAlias = Literal['predict', 'score']
JsonRow: TypeAlias = dict[str, Any]

LOWEST = float(str(np.finfo(np.float32).min))
ROUNDING = 1e-4  # a log-softmax in float32 may exceed 0 by so much
HIGHEST = float(np.finfo(np.float64).max)

Positive = Annotated[int, msgspec.Meta(gt=0, le=1 << 62)]
Finite = Annotated[float, msgspec.Meta(ge=-HIGHEST, le=HIGHEST)]
LogProbability = Annotated[float, msgspec.Meta(ge=-HIGHEST, le=ROUNDING)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Bit = Annotated[int, msgspec.Meta(ge=0, le=1)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=HIGHEST)]
TokenCount = Annotated[float, msgspec.Meta(ge=1, le=HIGHEST)]


class PredictionRow(NamedTuple):
  """A row as evaluation reads it."""

  id: str
  inputs: str
  targets: list[str]
  prediction: str
  logprobs: list[float]
  statistics: dict[str, list[float]]
  group: str | None = None
  slice: str | None = None
  columns: Mapping[str, float] = MappingProxyType({})
  alternatives: Sequence[Sequence[float]] | None = None  # most likely first
  by_token: Mapping[str, Sequence[float | None]] = MappingProxyType({})
  tokens: Sequence[float] = ()  # whole numbers, end of sequence included


class Details(NamedTuple):
  """Optional parts of a row.

  Attributes:
    group: Name of the group of examples that are correct only together.
    slice: Name of the population that the example belongs to.
    columns: Numbers, by names of COLUMNS.
    alternatives: Log-probabilities of the most likely tokens at the position of each token.
    by_token: Numbers of each token, by names of TOKEN_COLUMNS; nan where unknown.
  """

  group: str | None = None
  slice: str | None = None
  columns: Mapping[str, float] = MappingProxyType({})
  alternatives: Sequence[Sequence[float]] | None = None
  by_token: Mapping[str, Sequence[float] | np.ndarray] = MappingProxyType({})


class _Inputs(msgspec.Struct):
  inputs_pretokenized: str
  targets_pretokenized: Any = UNSET  # a text where a target is scored, and nowhere else read


class _Aux(msgspec.Struct):
  id: str
  targets: Annotated[list[str], msgspec.Meta(min_length=1)]
  tokens: list[Finite]
  token_logprobs: list[LogProbability]
  length: int
  statistics: dict[str, list[Finite]]
  correct: list[Finite] | UnsetType = UNSET
  group: str | UnsetType = UNSET
  slice: str | UnsetType = UNSET
  top_logprobs: list[list[LogProbability]] | UnsetType = UNSET
  confidence: Share | UnsetType = UNSET
  prompt_tokens: Amount | UnsetType = UNSET
  generated_tokens: Amount | UnsetType = UNSET
  seconds: Amount | UnsetType = UNSET
  dollars: Amount | UnsetType = UNSET
  accepted: Amount | UnsetType = UNSET
  rejected: Amount | UnsetType = UNSET
  small_calls: Amount | UnsetType = UNSET
  large_calls: Amount | UnsetType = UNSET
  small_logprobs: list[LogProbability | None] | UnsetType = UNSET
  drafted: list[Bit] | UnsetType = UNSET


class _ScoredAux(_Aux):
  options: list[str] | UnsetType = UNSET
  option_scores: list[Finite] | UnsetType = UNSET
  option_lengths: list[TokenCount] | UnsetType = UNSET


class _Predicted(msgspec.Struct):
  inputs: _Inputs
  aux: _Aux
  prediction: str


class _Scored(msgspec.Struct):
  inputs: _Inputs
  aux: _ScoredAux
  score: Finite


_TYPES: Mapping[Mode, Any] = {'predict': _Predicted, 'score': _Scored}
_DECODERS = {mode: msgspec.json.Decoder(schema) for mode, schema in _TYPES.items()}

NO_DETAILS = Details()


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
  details: Details = NO_DETAILS,
) -> JsonRow:
  """Row as a JSON object.

  Args:
    id: Name of the example, unique in its table.
    inputs: The prompt.
    targets: All accepted answers, at least one.
    answer: The predicted text (mode predict), or the log-probability of the given answer (mode
      score).
    tokens: Tokens of the answer, end of sequence included; of the best option if there are options.
    logprobs: Log-probability of each of the tokens.
    statistics: Statistics of the answer by metric name.
    correct: True for each token that is the model's first choice.
    options: Answers that were ranked.
    option_scores: Log-probability of each option.
    option_lengths: Tokens of each option, end of sequence included.
    details: What the row says besides its answer.
  """
  token_logprobs = _finite(logprobs)
  aux: dict[str, Any] = {
    'scores': float(sum(token_logprobs)),
    'id': id,
    'targets': list(targets),
    'tokens': [int(token) for token in tokens],
    'token_logprobs': token_logprobs,
    'length': len(token_logprobs),
    'statistics': {name: [float(x) for x in values] for name, values in statistics.items()},
  }
  if correct is not None:
    aux['correct'] = [int(bit) for bit in correct]
  if options is not None and option_scores is not None:
    aux |= {'options': list(options), 'option_scores': _finite(option_scores)}
    if option_lengths is not None:
      aux['option_lengths'] = [int(length) for length in option_lengths]
  if details.group is not None:
    aux['group'] = details.group
  if details.slice is not None:
    aux['slice'] = details.slice
  aux |= {name: float(value) for name, value in details.columns.items()}
  if details.alternatives is not None:
    aux['top_logprobs'] = [_finite(values) for values in details.alternatives]
  for name, values in details.by_token.items():
    flags = np.asarray(values).dtype.kind in 'bi'
    aux[name] = [
      int(value) if flags else None if math.isnan(value) else value for value in _finite(values)
    ]
  return {
    'inputs': {'inputs_pretokenized': inputs, 'targets_pretokenized': targets[0]},
    **({'prediction': answer} if isinstance(answer, str) else {'score': _finite([answer])[0]}),
    'aux': aux,
  }


def _finite(logprobs: Sequence[float] | np.ndarray) -> list[float]:
  """Shortest digits of float32, minus infinity as LOWEST; nan stays, to be refused by `parse`."""
  with np.errstate(over='ignore'):  # below the range of float32 is LOWEST, and above is refused
    values = np.asarray(logprobs, np.float32)
  return [max(float(str(value)), LOWEST) for value in values]


def decode(line: bytes, mode: Mode) -> PredictionRow:
  """Row of a line of JSON.

  Args:
    line: UTF-8 text of one object.
    mode: Mode of the table.

  Raises:
    ValueError: naming the field, the type expected and the value found.
  """
  try:
    return _checked(_DECODERS[mode].decode(line))
  except (msgspec.DecodeError, UnicodeDecodeError):
    # Half a surrogate pair is valid JSON that msgspec refuses. Of what is invalid, the slower way
    # names the value.
    return parse(json.loads(line, parse_constant=refuse_constant), mode)


def parse(record: Any, mode: Mode) -> PredictionRow:
  """Row of a JSON object.

  Args:
    record: The object, of the keys in the docstring of this module.
    mode: Mode of the table.

  Raises:
    ValueError: naming the field, the type expected and the value found.
  """
  return _checked(convert(record, _TYPES[mode]))


def convert(record: Any, schema: Any) -> Any:
  """Value of the type `schema` that a JSON value describes.

  Raises:
    ValueError: naming the field, the type expected and the value found.
  """
  try:
    return msgspec.convert(record, schema)
  except msgspec.ValidationError as error:
    message, _, path = str(error).partition(' - at `$')
    value = record
    # `[...]` stands for any key of a dictionary: the value is then the dictionary.
    for name, index in re.findall(r'\.(\w+)|\[(\d+)\]', path.partition('[...]')[0]):
      value = value[name or int(index)]
    field = path.strip('.`')
    raise ValueError(f'{f"{field}: " if field else ""}{message}, found {value!r:.80}') from error


def refuse_constant(name: str) -> NoReturn:
  """Refuse NaN and Infinity, for `json.loads(..., parse_constant=refuse_constant)`."""
  raise ValueError(f'{name} is not a number; log-probabilities and statistics must be finite')


def best_option(scores: Sequence[float], lengths: Sequence[float] | None = None) -> int:
  """Index of the option of highest log-probability, or of highest per token; the first of equals.

  Args:
    scores: Log-probability of each option.
    lengths: Number of tokens of each option, to compare log-probabilities per token.
  """
  return int(np.argmax(scores if lengths is None else np.divide(scores, lengths)))


def _checked(record: _Predicted | _Scored) -> PredictionRow:
  """Row of a record of the right types, if its lists are of the right lengths."""
  aux = record.aux
  lengths = {'length': aux.length, 'token_logprobs': len(aux.token_logprobs)}
  lengths['tokens'] = len(aux.tokens)
  if aux.correct is not UNSET:
    lengths['correct'] = len(aux.correct)
  if aux.top_logprobs is not UNSET:
    lengths['top_logprobs'] = len(aux.top_logprobs)
  by_token = {name: value for name in TOKEN_COLUMNS if (value := getattr(aux, name)) is not UNSET}
  lengths |= {name: len(values) for name, values in by_token.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f'aux has {lengths}; all must be the number of tokens of the answer')
  return PredictionRow(
    id=aux.id,
    inputs=record.inputs.inputs_pretokenized,
    targets=aux.targets,
    prediction=record.prediction if isinstance(record, _Predicted) else _best(record),
    logprobs=[min(value, 0.0) for value in aux.token_logprobs],
    statistics=aux.statistics,
    group=None if aux.group is UNSET else aux.group,
    slice=None if aux.slice is UNSET else aux.slice,
    columns={name: value for name in COLUMNS if (value := getattr(aux, name)) is not UNSET},
    alternatives=None
    if aux.top_logprobs is UNSET
    else [sorted((min(x, 0.0) for x in values), reverse=True) for values in aux.top_logprobs],
    by_token=by_token,
    tokens=aux.tokens,
  )


def _best(record: _Scored) -> str:
  """Option of highest score, or the target that was scored if there are no options."""
  options, scores, lengths = (
    record.aux.options,
    record.aux.option_scores,
    record.aux.option_lengths,
  )
  if options is UNSET:
    target = record.inputs.targets_pretokenized
    if not isinstance(target, str):
      raise ValueError(
        f'inputs.targets_pretokenized: expected the text that was scored, found {target!r:.80}'
      )
    return target
  if not options or scores is UNSET or len(options) != len(scores):
    raise ValueError(
      'aux.option_scores: expected one score for each of one or more options, found options '
      f'{options!r:.80} and scores {scores!r:.80}'
    )
  if lengths is not UNSET and len(lengths) != len(options):
    raise ValueError(
      f'aux.option_lengths: expected {len(options)} counts of tokens, found {lengths!r:.80}'
    )
  return options[best_option(scores)]
