"""Annotations: evaluated where they can be, and what they say about functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from jaxtyping import Float

from cascades.settings import type_hints
from cascades.training import optimizers, setup

if TYPE_CHECKING:
  from nowhere import Unknown


class Walk(Protocol):
  def __call__(self, start: int, *, step: int = 1) -> int: ...


def annotated(a: Unknown, b: Float[Unknown, 'N'], c: int, d, *, e: str | None = None) -> Unknown:
  del a, b, c, d, e


def test_annotations_that_cannot_be_evaluated_accept_everything():
  assert type_hints.of_arguments(annotated) == {'c': int, 'e': str | None}
  assert type_hints.of_arguments(functools.partial(annotated, 1))['c'] is int
  assert type_hints.of_result(annotated) is Any
  assert type_hints.of_arguments(optimizers.linear)['total_steps'] is int


def test_every_annotation_of_the_training_configuration_is_understood():
  for config in (setup.SmallModel, setup.LargeModel, setup.Step, setup.Schedule, setup.Failures):
    assert type_hints.of_arguments(config).keys() == type_hints.parameters(config).keys()


def test_what_a_function_returns_tells_whether_it_has_to_be_called():
  hints = type_hints.of_arguments(setup.Step)
  linear, adamw = map(type_hints.of_result, (optimizers.linear, optimizers.adamw))
  assert type_hints.certainly_returns(linear, hints['learning_rate'])
  assert not type_hints.may_return(adamw, hints['learning_rate'])
  assert not type_hints.certainly_returns(adamw, hints['optimizer'])
  assert type_hints.certainly_returns(setup.SmallModel, setup.SmallModel | None)
  assert not type_hints.may_return(setup.LargeModel, setup.SmallModel)


def test_the_call_of_a_function_follows_from_its_annotation():
  assert type_hints.call_of(Walk) == (1, ['step'])
  assert type_hints.call_of(Callable[[int, str], None] | None) == (2, [])
  assert type_hints.call_of(Callable[..., None]) is None
