"""Operations and bytes of a JAX function, counted from its jaxpr: nothing is run or compiled.

A loop's body counts as often as it runs. XLA's own cost analysis counts it once, which for layers
under a scan is wrong by their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval


class Work(NamedTuple):
  """What a function does, on all devices together."""

  flops: float = 0.0  # of matrix products and convolutions: two for each multiplication
  elementwise: float = 0.0  # one for each number that any other arithmetic makes or reduces
  bytes: float = 0.0  # that matrix products read and write, as if each went through memory

  def __add__(self, other: Any) -> Work:
    return Work(*(a + b for a, b in zip(self, other, strict=True)))

  def times(self, count: float) -> Work:
    return Work(*(count * a for a in self))


def flops_of(function: Callable[..., Any], *arguments: Any) -> float:
  """Operations of the matrix products, forward and backward, recomputed ones included.

  `arguments` may be `jax.ShapeDtypeStruct`s.
  """
  return work_of(function, *arguments).flops


def work_of(function: Callable[..., Any], *arguments: Any) -> Work:
  """All that is counted. What no result needs is left out, as XLA leaves it out.

  Raises ValueError for a matrix product inside a loop whose length the program decides.
  """
  compiled = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
  jaxpr = compiled.trace(*arguments).jaxpr.jaxpr
  needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return count(needed)


def count(jaxpr: core.Jaxpr) -> Work:
  """The work of one evaluation."""
  return sum(map(_of_equation, jaxpr.eqns), Work())


def _of_equation(equation: Any) -> Work:
  name, params = equation.primitive.name, equation.params
  if name in PRODUCTS:
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    size = sum(a.size * a.dtype.itemsize for a in arrays)
    return Work(flops=PRODUCTS[name](equation), bytes=size)
  inner = [count(jaxpr) for jaxpr in _bodies(params)]
  if name == 'cond':
    return max(inner)
  if name == 'while':
    return _unknown_length(inner)
  if name == 'scan':
    return inner[0].times(params['length'])
  if name == 'shard_map':
    sizes = params['mesh'].shape
    return inner[0].times(math.prod(sizes[axis] for axis in params['newly_manual_axes']))
  if name == 'pallas_call':
    return inner[0].times(math.prod(params['grid_mapping'].grid))
  if inner and not name.startswith(REDUCTIONS):
    return sum(inner, Work())
  return Work(elementwise=_elementwise(equation))


def _bodies(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """The jaxprs among an equation's parameters, alone or in tuples."""
  for value in params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if isinstance(one, core.ClosedJaxpr | core.Jaxpr):
        yield one.jaxpr if isinstance(one, core.ClosedJaxpr) else one


def _unknown_length(inner: list[Work]) -> Work:
  whole = sum(inner, Work())
  if whole.flops:
    raise ValueError(
      'a while loop of unknown length holds matrix products, which cannot be counted: give the '
      'loop a fixed length (jax.lax.scan, or jax.lax.fori_loop between constants).'
    )
  return whole


def _elementwise(equation: Any) -> float:
  name = equation.primitive.name
  if name in MOVES:
    return 0.0
  variables = equation.invars if name.startswith(REDUCTIONS) else equation.outvars
  return float(max((getattr(v.aval, 'size', 0) for v in variables), default=0))


def _dot(equation: Any) -> float:
  (contracted, _), _ = equation.params['dimension_numbers']
  left, out = equation.invars[0].aval, equation.outvars[0].aval
  return 2.0 * out.size * math.prod(left.shape[axis] for axis in contracted)


def _ragged_dot(equation: Any) -> float:
  """[m, k] rows, each by the [k, n] matrix of its group."""
  left, right = (v.aval for v in equation.invars[:2])
  return 2.0 * left.size * right.shape[-1]


def _convolution(equation: Any) -> float:
  """As if the padding were read too; exact without padding."""
  kernel, out = equation.invars[1].aval, equation.outvars[0].aval
  features = kernel.shape[equation.params['dimension_numbers'].rhs_spec[0]]
  return 2.0 * out.size * kernel.size / features


PRODUCTS: dict[str, Callable[[Any], float]] = {
  'dot_general': _dot,
  'ragged_dot_general': _ragged_dot,
  'conv_general_dilated': _convolution,
}

REDUCTIONS = ('reduce', 'argmax', 'argmin', 'cum', 'sort', 'scatter')

MOVES = {
  'bitcast_convert_type', 'broadcast_in_dim', 'concatenate', 'convert_element_type', 'copy',
  'dynamic_slice', 'dynamic_update_slice', 'gather', 'iota', 'pad', 'reshape', 'rev', 'select_n',
  'sharding_constraint', 'slice', 'split', 'squeeze', 'stop_gradient', 'transpose',
}  # fmt: skip
