"""The official validation set of MultiRC, where it is present, and random answers to it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from tests.real_data import real


def rows() -> tuple[Sequence[str], Sequence[str]]:
  """Label of each answer of the validation set, 'True' or 'False', and its question."""
  path = real('superglue/MultiRC/val.jsonl')
  labeled = [
    (str(bool(answer['label'])), f'{passage["idx"]}-{question["idx"]}')
    for passage in map(json.loads, path.read_text('utf-8').rstrip('\n').split('\n'))
    for question in passage['passage']['questions']
    for answer in question['answers']
  ]
  assert len(labeled) == 4848
  targets, groups = zip(*labeled, strict=True)
  return targets, groups


def guesses(targets: Sequence[str], right: float, generator: np.random.Generator) -> list[str]:
  """Answers that are right with a probability; a few are no label."""
  other = {'True': 'False', 'False': 'True'}
  draws = generator.random(len(targets))
  return [
    target if draw < right else 'Perhaps' if draw > 0.98 else other[target]
    for target, draw in zip(targets, draws, strict=True)
  ]
