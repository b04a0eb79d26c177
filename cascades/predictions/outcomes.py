"""Outcomes of any number of models on the same prompts, as one matrix.

A CSV has a column `id` and one column of qualities a model, an empty cell where a model did not
answer; JSON lines have `id`, `quality`, an object by model, and `prompt` if they like. Costs are a
CSV with the columns `model` and `cost`; or, where they differ by prompt, with `id` and a column of
costs a model, or JSON lines with `id` and `cost`, an object by model. Any of them may be packed, as
.gz.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades.predictions.imported import lines

TOKENS = 'prompt_tokens'
HIGHEST = {'quality': 1.0, 'cost': math.inf, TOKENS: math.inf}
EXPECTED = {
  'quality': 'a number from 0 to 1', 'cost': 'a finite number of 0 or more',
  TOKENS: 'a number of 0 or more',
}  # fmt: skip


class OutcomeMatrix(NamedTuple):
  """Qualities of J models on N prompts.

  Attributes:
    ids: Id of each prompt.
    prompts: Text of each prompt; empty texts where there is none.
    models: Name of each model.
    quality: Quality of each answer; nan where there is none.
    cost: Cost of each model, the mean of its answers' if they differ.
    prompt_cost: Cost of each answer, nan where there is none; None if each model has one cost.
    tokens: Tokens of each prompt for each model, nan where there is no answer; None if no part of
      the costs is one of them.
    token_price: Price of such a token of each model, which `prompt_cost` contains; nan of models
      without; None with `tokens`.
  """

  ids: tuple[str, ...]
  prompts: tuple[str, ...]
  models: tuple[str, ...]
  quality: Float[np.ndarray, 'N J']
  cost: Float[np.ndarray, 'J']
  prompt_cost: Float[np.ndarray, 'N J'] | None = None
  tokens: Float[np.ndarray, 'N J'] | None = None
  token_price: Float[np.ndarray, 'J'] | None = None

  @property
  def losses(self) -> Float[np.ndarray, 'N J']:
    """1 - quality."""
    return 1 - self.quality

  @property
  def read_cost(self) -> Float[np.ndarray, 'N J'] | None:
    """Part of `prompt_cost` that is the price of the prompt's own tokens; None if none is."""
    if self.tokens is None or self.token_price is None:
      return None
    return np.where(np.isnan(self.token_price), 0.0, self.token_price * self.tokens)

  def select(
    self, rows: np.ndarray | slice = slice(None), models: Sequence[int] | None = None
  ) -> OutcomeMatrix:
    """Some prompts, by index or mask, of some models, by index."""
    index = np.arange(len(self.ids))[rows]
    every = np.arange(len(self.models))
    columns = every if models is None else every[[*models]]
    return OutcomeMatrix(
      tuple(self.ids[i] for i in index),
      tuple(self.prompts[i] for i in index),
      tuple(self.models[j] for j in columns),
      self.quality[np.ix_(index, columns)],
      self.cost[columns],
      None if self.prompt_cost is None else self.prompt_cost[np.ix_(index, columns)],
      None if self.tokens is None else self.tokens[np.ix_(index, columns)],
      None if self.token_price is None else self.token_price[columns],
    )


def read(
  path: epath.PathLike, *, prompts: epath.PathLike | None = None,
  costs: epath.PathLike | Mapping[str, float],
) -> OutcomeMatrix:  # fmt: skip
  """Matrix of a file.

  Args:
    path: CSV, TSV or JSON lines.
    prompts: File of texts with the columns or fields `id` and `prompt` (or `text`); None if they
      stand in JSON lines, or there are none.
    costs: Cost of each model by name, or a file of them or of those of each answer.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file cannot be read, naming the line; ids or models repeat; a quality is no number
      from 0 to 1; a model or an answer has no cost; a model has no answer; or a prompt has no text.
  """
  own_texts: dict[str, str] = {}
  rows: dict[str, Mapping[str, Any]] = {}
  for number, record in lines(str(path)):
    name, own = _row(f'{path}, line {number}', record)
    if name in rows:
      raise ValueError(f'{path}, line {number}: the id {name!r} stands in another line too.')
    rows[name] = own
    if isinstance(record.get('prompt'), str) and 'quality' in record:
      own_texts[name] = record['prompt']
  models = tuple(dict.fromkeys(model for own in rows.values() for model in own))
  if not rows or not models:
    raise ValueError(f'{path} holds no outcome: expected a column of qualities for each model.')
  quality = np.array([[own.get(model, np.nan) for model in models] for own in rows.values()])
  if (empty := np.flatnonzero(np.isnan(quality).all(axis=0))).size:
    raise ValueError(f'{path}: model {models[empty[0]]!r} has no answer; leave its column out.')
  if prompts is not None:
    own_texts = texts(prompts)
    if absent := [name for name in rows if name not in own_texts]:
      raise ValueError(
        f'{prompts} has no prompt of {len(absent)} of {len(rows)} rows of {path}, such as '
        f'{absent[0]!r}.'
      )
  return OutcomeMatrix(
    tuple(rows), tuple(own_texts.get(name, '') for name in rows), models, quality,
    *read_costs(costs, tuple(rows), models, quality),
  )  # fmt: skip


def _row(where: str, record: Any, what: str = 'quality') -> tuple[str, dict[str, float]]:
  """Id of a line, and its qualities or costs."""
  if not isinstance(record, dict) or not record.get('id'):
    raise ValueError(f'{where}: no `id`; expected one in every line.')
  cells = record.get(what, {k: v for k, v in record.items() if k != 'id'})
  if not isinstance(cells, Mapping):
    raise ValueError(f'{where}: `{what}` is {cells!r:.80}; expected an object by model.')
  numbers = {model: _number(where, what, model, cell) for model, cell in cells.items()}
  return str(record['id']), numbers


def _number(where: str, what: str, model: str, cell: Any) -> float:
  if cell is None:
    return math.nan
  try:
    value = float(cell)
  except (TypeError, ValueError):
    value = math.nan
  if not (0 <= value <= HIGHEST[what] and math.isfinite(value)):
    raise ValueError(
      f'{where}: the {what} of model {model!r} is {cell!r:.80}; expected {EXPECTED[what]}, or '
      'nothing where it did not answer.'
    )
  return value


def texts(path: epath.PathLike) -> dict[str, str]:
  """Texts by id of a file. Raises ValueError, naming the line that has none."""
  by_id = {}
  for number, record in lines(str(path)):
    text = record.get('prompt', record.get('text')) if isinstance(record, dict) else None
    if not isinstance(text, str) or 'id' not in record:
      raise ValueError(f'{path}, line {number}: expected `id` and `prompt`.')
    by_id[str(record['id'])] = text
  return by_id


def token_counts(path: epath.PathLike) -> dict[str, list[float]]:
  """Tokens of each prompt of a file by model, nan where they are not given.

  JSON lines have `prompt_tokens`, an object by model, and tables a column `prompt_tokens:NAME`.

  Raises:
    ValueError: A number of tokens is none, naming the line.
  """
  by_prompt = []
  for number, record in lines(str(path)):
    columns = {n.partition(':')[2]: c for n, c in record.items() if n.startswith(f'{TOKENS}:')}
    own = record.get(TOKENS, columns)
    where = f'{path}, line {number}'
    if not isinstance(own, Mapping):
      raise ValueError(
        f'{where}: `{TOKENS}` is {own!r:.80}; expected an object by model, or of a table a column '
        f'`{TOKENS}:NAME` for each model.'
      )
    by_prompt.append({model: _number(where, TOKENS, model, own[model]) for model in own})
  models = dict.fromkeys(model for own in by_prompt for model in own)
  return {model: [own.get(model, math.nan) for own in by_prompt] for model in models}


def read_costs(
  costs: epath.PathLike | Mapping[str, float], ids: Sequence[str], models: Sequence[str],
  quality: Float[np.ndarray, 'N J'],
) -> tuple[Float[np.ndarray, 'J'], Float[np.ndarray, 'N J'] | None]:  # fmt: skip
  """Cost of each model, and of each answer if the costs of a model differ.

  Args:
    costs: Cost of each model by name, or a file of them or of those of each answer.
    ids: Id of each prompt.
    models: Name of each model.
    quality: Quality of each answer; nan where there is none.

  Raises:
    ValueError: A model or an answer has no cost, or a cost is negative or not finite.
  """
  records = [] if isinstance(costs, Mapping) else [*lines(str(costs))]
  if not (records and isinstance(records[0][1], dict) and 'id' in records[0][1]):
    return model_costs(costs, models), None
  by_id: dict[str, Mapping[str, float]] = {}
  for number, record in records:
    name, own = _row(f'{costs}, line {number}', record, 'cost')
    if name in by_id:
      raise ValueError(f'{costs}, line {number}: the id {name!r} stands in another line too.')
    by_id[name] = own
  by_answer = [[by_id.get(name, {}).get(model, math.nan) for model in models] for name in ids]
  return answer_costs(np.array(by_answer), ids, models, quality)


def answer_costs(
  by_answer: Float[np.ndarray, 'N J'], ids: Sequence[str], models: Sequence[str],
  quality: Float[np.ndarray, 'N J'],
) -> tuple[Float[np.ndarray, 'J'], Float[np.ndarray, 'N J'] | None]:  # fmt: skip
  """Mean cost of each model, and the costs of its answers if those of any model differ.

  Costs without an answer are left out. Raises ValueError if an answer has no cost.
  """
  answered = np.isfinite(quality)
  if (lacking := np.argwhere(answered & np.isnan(by_answer))).size:
    row, model = lacking[0]
    raise ValueError(
      f'{len(lacking)} of {answered.sum()} answers have no cost, such as that of '
      f'{models[model]!r} to {ids[row]!r}: give the costs of all.'
    )
  own = np.where(answered, by_answer, np.nan)
  if (np.nanmin(own, axis=0) == np.nanmax(own, axis=0)).all():
    return np.nanmin(own, axis=0), None
  return np.nanmean(own, axis=0), own


def model_costs(
  costs: epath.PathLike | Mapping[str, float], models: Sequence[str]
) -> Float[np.ndarray, 'J']:
  """Cost of each model. Raises ValueError if one has none, or it is negative or not finite."""
  by_model: Mapping[str, Any] = (
    costs
    if isinstance(costs, Mapping)
    else {str(r.get('model')): r.get('cost') for _, r in lines(str(costs))}
  )
  if absent := [model for model in models if by_model.get(model) is None]:
    raise ValueError(
      f'{len(absent)} of {len(models)} models have no cost, such as {absent[0]!r}: give the costs '
      'of all, or leave these models out.'
    )
  values = []
  for model in models:
    try:
      value = float(by_model[model])
    except (TypeError, ValueError):
      value = math.nan
    if not (math.isfinite(value) and value >= 0):
      raise ValueError(
        f'Model {model!r} costs {by_model[model]!r:.80}; a cost is a finite number of 0 or more.'
      )
    values.append(value)
  return np.array(values)
