"""What a training run would need of machines that are not there yet.

    python -m cascades.plan --gin_file=recipes/c4_small.gin --topology=v5e:4x4 \\
      --large_model=models/t5_large.gin --gin.LOSS=@losses.cat_xent

Takes the recipe, the bindings and the mesh of `cascades.train`, compiles the same step for the
topology, and prints parameters, memory, FLOPs, collectives and the roofline; the same as JSON in
`output`. Nothing is read but gin files and, if it is there, the large checkpoint's model.json.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from cascades import losses
from cascades.checkpoints import store
from cascades.models import configs, lora
from cascades.performance import flops, roofline, topologies
from cascades.performance.roofline import Plan
from cascades.performance.topologies import Topology
from cascades.runtime import files, partitioning
from cascades.training import optimizers, setup, train_step, utilization
from cascades.training.setup import Blueprint
from cascades.types import Batch, ModelConfig

log = logging.getLogger(__name__)


def plan(
  topology: str = '',
  *,
  small: ModelConfig | None = None,
  large: ModelConfig | None = None,
  task_feature_lengths: Mapping[str, int],
  batch_size: int,
  learning_rate: optimizers.Schedule,
  optimizer: optimizers.Optimizer = optimizers.adafactor,
  loss: losses.CascadeLoss = losses.xent,
  large_checkpoint_path: str | None = None,
  large_dtype: str = 'float32',
  initial_checkpoint_path: str | None = None,
  adapters: lora.LoraConfig | None = None,
  normalizer: train_step.Normalizer | float = train_step.valid_tokens,
  microbatches: int = 1,
  block_length: int | None = None,
  readout_gradient_dtype: str = 'float32',
  pack_length: int | None = None,
  mesh: Callable[..., jax.sharding.Mesh] = partitioning.make_mesh,
  rules: partitioning.Rules = partitioning.RULES,
  large_rules: partitioning.Rules | None = None,
  accept: train_step.Accept = train_step.finite,
  effort: float = 0.0,
  output: str = 'runs/plan.json',
) -> Plan:
  """Plan `train.train` with these arguments on a `topology` such as v4:2x2x4.

  `large` stands for the large checkpoint while there is none. Raises ValueError for settings that
  do not fit together; a step that does not fit into memory is a result. An `effort` of -1 lets the
  compiler take less time, a fifth for large models, and makes a somewhat worse program.
  """
  found = topologies.of(topology)
  small = small or _model_of(initial_checkpoint_path, 'MODEL', 'INITIAL_CHECKPOINT_PATH')
  if large is None and large_checkpoint_path is not None:
    large = _model_of(large_checkpoint_path, '--large_model', 'LARGE_CHECKPOINT_PATH')
  transform = optimizer(learning_rate)
  with partitioning.use(mesh(devices=found.devices), rules):
    parts = setup.blueprint(
      small,
      large,
      transform,
      adapters=adapters,
      large_dtype=large_dtype,
      rules=rules,
      large_rules=large_rules,
    )
    batch = batch_shapes(small, task_feature_lengths, batch_size, pack_length)
    step = setup.compiled_step(
      parts,
      transform,
      loss=loss,
      normalizer=normalizer,
      microbatches=microbatches,
      block_length=block_length,
      gradient_dtype=readout_gradient_dtype,
      accept=accept,
    )
    sizes = {'small': small, 'large': large}
    counts = {k: configs.count_parameters(v) for k, v in sizes.items() if v is not None}
    made = measure(step, parts, batch, found, counts, effort=effort)
  log.info('%s\n%s', topology, roofline.format_table(made))
  if output:
    files.write(files.absolute(output), json.dumps(roofline.to_json(made), indent=2))
  return made


def measure(
  step: jax.stages.Wrapped,
  parts: Blueprint,
  batch: Batch,
  found: Topology,
  counts: Mapping[str, int],
  *,
  effort: float = 0.0,
) -> Plan:
  """Count the step's work, and compile it if that can be done here."""
  arguments = parts.state, parts.frozen, batch
  needs = utilization.needs(parts, batch)
  result = Plan(
    found,
    counts,
    {
      'trained parameters': roofline.device_bytes(parts.state.params),
      'optimiser state': roofline.device_bytes(parts.state.opt_state),
      'frozen parameters': roofline.device_bytes(parts.frozen),
      'batch': roofline.device_bytes(batch),
    },
    flops.flops_of(step, *arguments),
    needs.step + needs.token * batch.targets.size,
    batch.targets.size,
  )
  if not found.can_compile:
    return result
  options: Any = {'exec_time_optimization_effort': effort} if effort else None
  try:
    compiled = step.lower(*arguments).compile(compiler_options=options)
    return result._replace(compiled=roofline.analyze(compiled))
  except jax.errors.JaxRuntimeError as error:
    refused = roofline.out_of_memory(error)
    if refused is None:
      raise
    return result._replace(compile_error=refused)


def batch_shapes(
  small: ModelConfig, lengths: Mapping[str, int], batch_size: int, pack_length: int | None = None
) -> Batch:
  """A batch as training makes it, on the mesh that is in use."""
  sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(partitioning.BATCH))

  def make(width: int, dtype: str = 'int32') -> Any:
    return jax.ShapeDtypeStruct((batch_size, width), dtype, sharding=sharding)

  if small.architecture == 'encoder_decoder':
    width, encoder = lengths['targets'], make(lengths['inputs'])
  else:
    width, encoder = pack_length or lengths['inputs'] + lengths['targets'], None
  packed = pack_length is not None
  return Batch(
    inputs=make(width),
    targets=make(width),
    weights=make(width, 'float32'),
    encoder=encoder,
    segments=make(width) if packed else None,
    positions=make(width) if packed else None,
  )


def _model_of(path: str | None, instead: str, name: str) -> ModelConfig:
  try:
    if path is not None:
      return configs.from_description(store.read_description(path)['model'])
  except (OSError, store.CheckpointError) as error:
    raise ValueError(
      f'{name} {path} cannot be read ({error}): name a gin file with its sizes, as '
      f'{instead}=models/t5_large.gin does.'
    ) from error
  raise ValueError(f'neither {instead} nor {name} is given: name sizes, or a run that has them.')


if __name__ == '__main__':
  from cascades import cli

  cli.main('cascades.plan')
