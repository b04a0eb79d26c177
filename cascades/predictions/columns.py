"""Rows of a table of predictions in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cascades.predictions.rows import PredictionRow
from cascades.types import COLUMNS, TOKEN_COLUMNS, Predictions


def of_rows(table: Sequence[PredictionRow], manifest: Mapping[str, Any]) -> Predictions:
  """Table of rows in columns.

  Args:
    table: One or more rows.
    manifest: Manifest of the table.
  """
  return Predictions(
    task=manifest['task'],
    split=manifest['split'],
    ids=[row.id for row in table],
    inputs=[row.inputs for row in table],
    targets=[row.targets for row in table],
    predictions=[row.prediction for row in table],
    token_logprobs=np.concatenate([row.logprobs for row in table]),
    lengths=np.array([len(row.logprobs) for row in table]),
    statistics={
      name: np.array([row.statistics[name] for row in table], float) for name in manifest['metrics']
    },
    manifest=manifest,
    groups=[row.group for row in table if row.group is not None],
    slices=[row.slice or '' for row in table] if any(row.slice for row in table) else (),
    columns={
      name: np.array([row.columns.get(name, np.nan) for row in table], float)
      for name in COLUMNS
      if any(name in row.columns for row in table)
    },
    alternatives=_alternatives(table),
    by_token={
      name: np.concatenate(
        [np.array(row.by_token.get(name, [None] * len(row.logprobs)), float) for row in table]
      )
      for name in TOKEN_COLUMNS
      if any(name in row.by_token for row in table)
    },
  )


def _alternatives(table: Sequence[PredictionRow]) -> np.ndarray | None:
  """Alternatives of all tokens, padded by minus infinity; None unless every row has them."""
  positions = [values for row in table for values in row.alternatives or ()]
  if any(row.alternatives is None for row in table):
    return None
  array = np.full((len(positions), max(map(len, positions), default=0)), -np.inf)
  for position, values in zip(array, positions, strict=True):
    position[: len(values)] = values
  return array
