"""Training steps compiled for absent hardware, shared by the compile-only benchmarks.

Compilation effort is reduced (`EFFORT`): programs of a real run are scheduled better, with the same
products and collectives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from cascades import losses, plan
from cascades.data.corpus import Data
from cascades.models import decoder
from cascades.performance import topologies
from cascades.runtime import partitioning
from cascades.training import optimizers, setup
from cascades.training.answer_format import AnswerFormat
from cascades.training.setup import AbstractRun, LargeModel, SmallModel, Step
from cascades.types import Batch, ModelConfig

EFFORT = {'exec_time_optimization_effort': -1.0}

# Small widths, so that a program compiles in 15 s; the number of layers costs no compile time.
SMALL = decoder.DecoderConfig(
  vocab_size=8192, emb_dim=512, num_heads=8, num_kv_heads=8, num_layers=12, head_dim=64,
  mlp_dim=2048, dtype='bfloat16',
)  # fmt: skip
LARGE = dataclasses.replace(SMALL, emb_dim=1024, num_heads=16, num_kv_heads=16, num_layers=24)


class Cell(NamedTuple):
  """A training step and its arguments."""

  step: jax.stages.Wrapped
  abstract: AbstractRun
  batch: Batch

  @property
  def arguments(self) -> tuple[Any, ...]:
    return self.abstract.state, self.abstract.frozen, self.batch

  def compile(self) -> Any:
    on_tpu = self.batch.targets.sharding.mesh.devices.flat[0].platform == 'tpu'
    options: Any = EFFORT if on_tpu else None
    return self.step.lower(*self.arguments).compile(compiler_options=options)


def cell(
  loss: losses.CascadeLoss,
  *,
  rows: int,
  length: int,
  small: ModelConfig = SMALL,
  large: ModelConfig | None = LARGE,
  large_dtype: str = 'bfloat16',
  cached: AnswerFormat | None = None,
  block_length: int | None = None,
) -> Cell:
  """Build a step on the active mesh, for decoder-only rows of `length` positions.

  Its teachers are the large model that runs beside it, and answers `cached` in a format.
  """
  step = Step(learning_rate=optimizers.constant(1e-3), loss=loss, block_length=block_length)
  abstract = setup.abstract_run(
    SmallModel(small), LargeModel(large, dtype=large_dtype), step.transform
  )
  data = Data(lengths={'inputs': length // 2, 'targets': length // 2}, batch_size=rows)
  batch = plan.batch_shapes(small, data)
  if cached is not None:
    batch = batch._replace(teachers=(_answers(cached, batch.targets),))
  return Cell(setup.compiled_step(abstract, step), abstract, batch)


def _answers(form: AnswerFormat, targets: Any) -> Any:
  """Abstract answers of a teacher cache to the targets of a batch."""
  return jax.tree.map(
    lambda column: jax.ShapeDtypeStruct(
      (*targets.shape, *column.shape[1:]), column.dtype, sharding=targets.sharding
    ),
    form.abstract(1),
  )


def mesh(topology: str, count: int | None = None, **axes: int) -> jax.sharding.Mesh:
  """Mesh of the first `count` chips of a topology, by default of all."""
  return partitioning.make_mesh(**axes, devices=topologies.of(topology).devices[:count])


def sizes(tree: Any, itemsize: Callable[[Any], int]) -> float:
  """Total bytes of all arrays, with `itemsize` bytes per element."""
  return float(sum(leaf.size * itemsize(leaf) for leaf in jax.tree.leaves(tree)))


def wide_vocabulary(vocab_size: int) -> tuple[ModelConfig, ModelConfig]:
  """Two models whose widths are those of Gemma 3's 270 M and 1 B, of a few layers each."""
  small = dataclasses.replace(SMALL, vocab_size=vocab_size, emb_dim=640, num_layers=4)
  return small, dataclasses.replace(small, emb_dim=1152, num_layers=6)
