"""Outcome matrices of `routing_*` folders."""

from __future__ import annotations

import gzip
import json

import numpy as np


def matrix(folder):
  """Losses of the models on the prompts, nan where a model was not run, and the prompts' tasks."""
  with gzip.open(folder / 'scores.csv.gz', 'rt') as file:
    rows = [line.rstrip('\n').split(',')[1:] for line in file][1:]
  scores = np.array([[float(value or 'nan') for value in row] for row in rows])
  with gzip.open(folder / 'prompts.jsonl.gz', 'rt') as file:
    tasks = [json.loads(line)['task'] for line in file]
  return 1 - scores, tasks
