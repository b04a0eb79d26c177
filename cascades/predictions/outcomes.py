"""Outcomes of any number of models on the same prompts, as one matrix.

A CSV has a column `id` and one column of qualities a model, an empty cell where a model did not
answer; JSON lines have `id`, `quality`, an object by model, and `prompt` if they like. Costs are a
CSV with the columns `model` and `cost`. Any of them may be packed, as .gz.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from cascades.predictions.imported import lines


class OutcomeMatrix(NamedTuple):
  """Qualities of J models on N prompts.

  Attributes:
    ids: Id of each prompt.
    prompts: Text of each prompt; empty texts where there is none.
    models: Name of each model.
    quality: Quality of each answer; nan where there is none.
    cost: Cost of each model.
  """

  ids: tuple[str, ...]
  prompts: tuple[str, ...]
  models: tuple[str, ...]
  quality: Float[np.ndarray, 'N J']
  cost: Float[np.ndarray, 'J']

  @property
  def losses(self) -> Float[np.ndarray, 'N J']:
    """1 - quality."""
    return 1 - self.quality

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
    costs: Cost of each model by name, or a CSV of them.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file cannot be read, naming the line; ids or models repeat; a quality is no number
      from 0 to 1; a model has no cost, or no answer; or a prompt has no text.
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
    model_costs(costs, models),
  )  # fmt: skip


def _row(where: str, record: Any) -> tuple[str, dict[str, float]]:
  """Id and qualities of a line."""
  if not isinstance(record, dict) or not record.get('id'):
    raise ValueError(f'{where}: no `id`; expected one in every line.')
  cells = record.get('quality', {k: v for k, v in record.items() if k != 'id'})
  if not isinstance(cells, Mapping):
    raise ValueError(f'{where}: `quality` is {cells!r:.80}; expected an object by model.')
  return str(record['id']), {model: _number(where, model, cell) for model, cell in cells.items()}


def _number(where: str, model: str, cell: Any) -> float:
  if cell is None:
    return math.nan
  try:
    value = float(cell)
  except (TypeError, ValueError):
    value = math.nan
  if not 0 <= value <= 1:
    raise ValueError(
      f'{where}: the quality of model {model!r} is {cell!r:.80}; expected a number from 0 to 1, or '
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
