"""Operations and bytes of a JAX function, counted from its jaxpr without running or compiling it.

The body of a loop counts once per iteration. XLA's own cost analysis counts it once in total, which
is wrong by the number of layers if they are scanned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval


class Work(NamedTuple):
  """Operation counts of a function, on all devices together."""

  flops: float = 0.0  # of matrix products and convolutions: two per multiplication
  elementwise: float = 0.0  # one per number that any other arithmetic outputs or reduces
  bytes: float = 0.0  # read and written by matrix products, as if all operands were in memory

  def __add__(self, other: Any) -> Work:
    return Work(*(a + b for a, b in zip(self, other, strict=True)))

  def times(self, count: float) -> Work:
    """Multiply all counts."""
    return Work(*(count * a for a in self))


def flops_of(function: Callable[..., Any], *arguments: Any) -> float:
  """Count the FLOPs of matrix products, forward and backward, recomputed ones included.

  Args:
    function: A function of arrays, jitted or not.
    *arguments: Its arguments, arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: A matrix product is inside a loop whose length is data.
  """
  return work_of(function, *arguments).flops


def work_of(function: Callable[..., Any], *arguments: Any) -> Work:
  """Count all operations of a function except those that no result needs; see `flops_of`."""
  compiled = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
  jaxpr = compiled.trace(*arguments).jaxpr.jaxpr
  needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return count(needed)


def count(jaxpr: core.Jaxpr) -> Work:
  """Count the operations of one evaluation of a jaxpr."""
  return sum(map(_count_equation, jaxpr.eqns), Work())


def _count_equation(equation: Any) -> Work:
  name, params = equation.primitive.name, equation.params
  if name in PRODUCTS:
    arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
    size = sum(a.size * a.dtype.itemsize for a in arrays)
    return Work(flops=PRODUCTS[name](equation), bytes=size)
  inner = [count(jaxpr) for jaxpr in _bodies(params)]
  if name == 'cond':
    return max(inner)
  if name == 'while':
    return _count_while(inner)
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
  """Yield the jaxprs among an equation's parameters, alone or in tuples."""
  for value in params.values():
    for element in value if isinstance(value, tuple | list) else (value,):
      if isinstance(element, core.ClosedJaxpr | core.Jaxpr):
        yield element.jaxpr if isinstance(element, core.ClosedJaxpr) else element


def _count_while(inner: list[Work]) -> Work:
  work = sum(inner, Work())
  if work.flops:
    raise ValueError(
      'a while loop of unknown length contains matrix products, which cannot be counted: give the '
      'loop a fixed length (jax.lax.scan, or jax.lax.fori_loop between constants).'
    )
  return work


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
  """Rows [m, k], each multiplied by the [k, n] matrix of its group."""
  left, right = (v.aval for v in equation.invars[:2])
  return 2.0 * left.size * right.shape[-1]


def _convolution(equation: Any) -> float:
  """Padding counts as input, so this is exact without padding only."""
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
