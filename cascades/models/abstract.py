"""Models without their numbers: definitions, and shapes, dtypes and shardings of parameters."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding

from cascades.models import quantization
from cascades.runtime import partitioning
from cascades.runtime.partitioning import RULES, Rules
from cascades.types import ModelConfig, Params

DTYPES = ('float32', 'bfloat16', 'int8')  # that weights are held in


def _is_variable(node: Any) -> bool:
  return isinstance(node, nnx.Variable)


def abstract_model(
  config: ModelConfig, rules: Rules = RULES, *, dtype: str = 'float32'
) -> tuple[nnx.GraphDef, Params]:
  """A model's definition, and the shapes, dtype and places of its parameters; nothing is made.

  'int8' quantises the matrices and leaves what else there is in float32. Like all that places
  arrays, on the mesh that is in `use`.
  """
  if dtype not in DTYPES:
    raise ValueError(f'weights cannot be held as {dtype!r}: choose one of {", ".join(DTYPES)}.')
  graph, state = jax.eval_shape(lambda: nnx.split(config.build(jax.random.key(0))))
  mesh, narrow = partitioning.active_mesh(), dtype == 'int8'

  def describe(variable: nnx.Variable) -> Any:
    shape, metadata = variable.get_value().shape, variable.get_metadata()
    names, inputs = metadata.get('out_sharding') or (None,) * len(shape), metadata.get('inputs')
    place = NamedSharding(mesh, partitioning.partition_spec(shape, names, mesh.shape, rules))
    wide = jax.ShapeDtypeStruct(shape, 'float32' if narrow else dtype, sharding=place)
    if narrow and inputs:
      return quantization.abstract(wide, quantization.scale_shape(shape, inputs))
    return wide

  return graph, nnx.to_pure_dict(jax.tree.map(describe, state, is_leaf=_is_variable))


def init_params(config: ModelConfig, seed: int, abstract: Params) -> Params:
  """Random parameters, made where they belong; the same numbers on every mesh."""

  def init() -> Params:
    return nnx.to_pure_dict(nnx.state(config.build(jax.random.key(seed))))

  return jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()
