"""A training step put together: both models' definitions, where every array goes, what is compiled.

Nothing here holds numbers: `train` fills a blueprint from checkpoints, `plan` compiles it for
machines that are not there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from cascades import losses
from cascades.models import configs, lora
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.training import train_step
from cascades.training.train_step import Frozen, ModelDef, TrainState
from cascades.types import Batch, ModelConfig


class Blueprint(NamedTuple):
  """Two models without their numbers: shapes, types and places of all that a step reads."""

  small: ModelDef
  large: ModelDef | None
  state: TrainState
  frozen: Frozen

  @property
  def models(self) -> dict[str, Any]:
    """As `train_step` and `eval_step` take them."""
    return {'small': self.small, 'large': self.large}


def blueprint(
  small: ModelConfig,
  large: ModelConfig | None,
  optimizer: optax.GradientTransformation,
  *,
  adapters: lora.LoraConfig | None = None,
  large_dtype: str = 'float32',
  rules: partitioning.Rules = partitioning.RULES,
  large_rules: partitioning.Rules | None = None,
  vocab_size: int | None = None,
) -> Blueprint:
  """On the mesh that is in use. `large_rules` place the large model, by default as the small one.
  The loss sees the small model's first `vocab_size` entries, all if None.

  With adapters those are the state, and the small model's own weights are frozen beside them.
  """
  dtype = (adapters or lora.LoraConfig()).dtype
  graph, whole = abstract_model(small, rules, dtype=dtype)
  trained = lora.abstract(whole, configs.linear_maps(small), adapters) if adapters else whole
  init = functools.partial(train_step.init_state, optimizer=optimizer, seed=0)
  state = partitioning.like_parameters(jax.eval_shape(init, trained), trained)
  definition = ModelDef(graph, vocab_size or small.vocab_size, adapters.scale if adapters else 1.0)
  base = whole if adapters else None
  if large is None:
    return Blueprint(definition, None, state, Frozen(None, base))
  large_graph, params = abstract_model(
    large, rules if large_rules is None else large_rules, dtype=large_dtype
  )
  return Blueprint(definition, ModelDef(large_graph, large.vocab_size), state, Frozen(params, base))


def compiled_step(
  parts: Blueprint,
  optimizer: optax.GradientTransformation,
  *,
  loss: losses.CascadeLoss,
  **options: Any,
) -> Any:
  """`train_step` as XLA runs it: the state is given away, and comes back where it was."""
  step = functools.partial(
    train_step.train_step, **parts.models, optimizer=optimizer, loss=loss, **options
  )
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(places(parts.state), None),
    compiler_options=_compiler_options(jax.sharding.get_mesh()),
  )


def _compiler_options(mesh: jax.sharding.Mesh) -> dict[str, str] | None:
  """On TPU, weights are gathered whole. By default XLA passes their shards round a ring while they
  are multiplied, which sends nine shards where seven of eight are missing, and compiles slowly."""
  tpu = not mesh.empty and mesh.devices.flat[0].platform == 'tpu'
  return {'xla_jf_spmd_threshold_for_windowed_einsum_mib': '1000000'} if tpu else None


def on_batches(
  step: Any, frozen: Frozen, compiled: Callable[[jax.stages.Compiled, Batch], None]
) -> Callable[[TrainState, Batch], tuple[TrainState, train_step.Totals]]:
  """The step as a loop calls it: with this process's rows. `compiled` hears of the program."""
  program: Any = None

  def run(state: TrainState, batch: Batch) -> tuple[TrainState, train_step.Totals]:
    nonlocal program
    batch = partitioning.place_batch(batch)
    if program is None:
      program = step.lower(state, frozen, batch).compile()
      compiled(program, batch)
    state, totals = program(state, frozen, batch)
    partitioning.wait_on_virtual_devices(totals)
    return state, totals

  return run


def places(tree: Any) -> Any:
  """The sharding of every array."""
  return jax.tree.map(lambda leaf: leaf.sharding, tree)
