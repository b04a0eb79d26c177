"""Abstract models: graph definitions, and shapes, dtypes and shardings of parameters."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding

from cascades.models import quantization
from cascades.models.bert import BertConfig
from cascades.models.rankers import RankerConfig
from cascades.runtime import partitioning
from cascades.runtime.partitioning import RULES, Rules
from cascades.types import ModelConfig, Params

DTYPES = ('float32', 'bfloat16', 'int8')  # of weights


def abstract_model(
  config: ModelConfig | BertConfig | RankerConfig, rules: Rules = RULES, *, dtype: str = 'float32'
) -> tuple[nnx.GraphDef, Params]:
  """Describe a model on the active mesh without allocating its parameters.

  Args:
    config: Configuration of the model.
    rules: Pairs of logical axis and mesh axes.
    dtype: Dtype of the weights, one of `DTYPES`. 'int8' quantizes matrices and embedding tables
      and leaves all other parameters in float32.

  Returns:
    The graph definition, and a nested dict of `jax.ShapeDtypeStruct` with shardings.

  Raises:
    ValueError: The dtype is unknown.
  """
  if dtype not in DTYPES:
    raise ValueError(f'Unknown dtype of weights {dtype!r}; choose one of {", ".join(DTYPES)}.')
  graph, state = jax.eval_shape(lambda: nnx.split(config.build(jax.random.key(0))))
  mesh, int8 = partitioning.active_mesh(), dtype == 'int8'

  def describe(variable: nnx.Variable) -> Any:
    shape, metadata = variable.get_value().shape, variable.get_metadata()
    axes, inputs = metadata.get('out_sharding') or (None,) * len(shape), metadata.get('inputs')
    spec = partitioning.partition_spec(shape, axes, mesh.shape, rules)
    dense = jax.ShapeDtypeStruct(
      shape, 'float32' if int8 else dtype, sharding=NamedSharding(mesh, spec)
    )
    if int8 and inputs:
      return quantization.abstract(dense, quantization.scale_shape(shape, inputs))
    return dense

  is_variable = lambda node: isinstance(node, nnx.Variable)
  return graph, nnx.to_pure_dict(jax.tree.map(describe, state, is_leaf=is_variable))


def init_params(config: ModelConfig, seed: int, abstract: Params) -> Params:
  """Initialize random parameters, sharded as `abstract` is; equal numbers on every mesh."""

  def init() -> Params:
    return nnx.to_pure_dict(nnx.state(config.build(jax.random.key(seed))))

  return jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))()
