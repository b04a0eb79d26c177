"""Predict the resource use of a training run on devices that are not attached.

    python -m cascades.plan --gin_file=recipes/c4_small.gin --topology=v5e:4x4 \\
      --large_model=models/t5_large.gin --gin.LOSS=@losses.cat_xent

Takes the recipe, the bindings and the mesh of `cascades.train`, compiles the same step for the
topology, and prints parameters, memory, FLOPs, collectives and the roofline; the same as JSON in
`output`. Only gin files are read and, if it exists, the large checkpoint's model.json.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from cascades.checkpoints import store
from cascades.data.corpus import Data
from cascades.models import configs
from cascades.performance import flops, roofline, topologies
from cascades.performance.roofline import Plan
from cascades.performance.topologies import Topology
from cascades.runtime import files, partitioning
from cascades.runtime.partitioning import Devices
from cascades.tokenizers import vocabularies
from cascades.training import setup, utilization
from cascades.training.setup import AbstractRun, LargeModel, SmallModel, Step
from cascades.types import Batch, ModelConfig

log = logging.getLogger(__name__)

# Settings that a recipe may require for training, and that a plan can do without.
OPTIONAL_SETTINGS = ('MODEL', 'INITIAL_CHECKPOINT_PATH', 'LARGE_CHECKPOINT_PATH')


def plan(
  topology: str = '',
  *,
  small: SmallModel,
  data: Data,
  step: Step,
  large: LargeModel = LargeModel(),
  devices: Devices = Devices(),
  effort: float = 0.0,
  output: str = 'runs/plan.json',
) -> Plan:
  """Plan `train.train` with the same arguments on other devices.

  Args:
    topology: Devices such as v4:2x2x4 or v5e:4x4.
    small: The model that is trained.
    data: The shape of batches; its task is not read.
    step: The computation of a training step.
    large: The frozen large model; its `config` stands for a checkpoint that does not exist yet.
    devices: Mesh and sharding rules.
    effort: Effort of the compiler. -1 takes a fifth of the time for large models, and makes a
      somewhat worse program.
    output: File of the plan as JSON; empty for none.

  Returns:
    The plan. That a step does not fit into memory is a result.

  Raises:
    ValueError: for settings that do not fit together.
  """
  if not topology:
    raise ValueError('no devices are given: name some, as --topology=v4:2x2x4 or v5e:4x4 does.')
  step.check_batch(data.batch_size)
  if large.teacher_cache is not None:
    raise ValueError(
      'a plan computes the large model in every step and does not read TEACHER_CACHE: leave it out.'
    )
  target = topologies.of(topology)
  config = small.config or _config_of(
    small.initial_checkpoint_path, '--gin_file', 'INITIAL_CHECKPOINT_PATH'
  )
  if not config.vocab_size:
    log.info('no vocabulary is read: planned for bytes. VOCAB_SIZE sets another size.')
  config = configs.with_vocabulary(config, vocabularies.bytes_vocabulary().size)
  small = dataclasses.replace(small, config=config)
  if large.config is None and large.checkpoint_path is not None:
    path = large.checkpoint_path
    large = dataclasses.replace(
      large, config=_config_of(path, '--large_model', 'LARGE_CHECKPOINT_PATH')
    )
  if large.config is not None:
    large = dataclasses.replace(
      large, config=configs.with_vocabulary(large.config, config.vocab_size)
    )
  with devices.use(devices=target.devices):
    if data.batch_size % (shards := partitioning.row_shards()):
      raise ValueError(
        f'BATCH_SIZE={data.batch_size} does not split over the {shards} devices of --topology='
        f'{topology}: choose a multiple of {shards}.'
      )
    abstract = setup.abstract_run(small, large, step.transform, rules=devices.rules)
    batch = batch_shapes(config, data)
    models = {'small': config, 'large': large.config}
    parameters = {
      name: configs.count_parameters(model) for name, model in models.items() if model is not None
    }
    compiled_step = setup.compiled_step(abstract, step)
    result = measure(compiled_step, abstract, batch, target, parameters, effort=effort)
  log.info('%s\n%s', topology, roofline.format_table(result))
  if output:
    files.write(files.absolute(output), json.dumps(roofline.to_json(result), indent=2))
  return result


def measure(
  step: jax.stages.Wrapped,
  abstract: AbstractRun,
  batch: Batch,
  topology: Topology,
  parameters: Mapping[str, int],
  *,
  effort: float = 0.0,
) -> Plan:
  """Count a step's operations and bytes, and compile it if libtpu is installed.

  Args:
    step: The result of `setup.compiled_step`.
    abstract: The run's abstract arrays.
    batch: An abstract batch.
    topology: The devices.
    parameters: Number of parameters of each model.
    effort: Effort of the compiler, as in `plan`.
  """
  arguments = abstract.state, abstract.frozen, batch
  needs = utilization.model_flops(abstract, batch)
  uncompiled = Plan(
    topology,
    parameters,
    {
      'trained parameters': roofline.device_bytes(abstract.state.params),
      'optimizer state': roofline.device_bytes(abstract.state.opt_state),
      'frozen parameters': roofline.device_bytes(abstract.frozen),
      'batch': roofline.device_bytes(batch),
    },
    flops.flops_of(step, *arguments),
    needs.step + needs.token * batch.targets.size,
    batch.targets.size,
  )
  if not topology.can_compile:
    return uncompiled
  options: Any = {'exec_time_optimization_effort': effort} if effort else None
  try:
    program = step.lower(*arguments).compile(compiler_options=options)
    return uncompiled._replace(compiled=roofline.analyze(program))
  except jax.errors.JaxRuntimeError as error:
    refused = roofline.out_of_memory(error)
    if refused is None:
      raise
    return uncompiled._replace(compile_error=refused)


def batch_shapes(small: ModelConfig, data: Data) -> Batch:
  """An abstract training batch on the active mesh."""
  sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec(partitioning.BATCH))

  def array(width: int, dtype: str = 'int32') -> Any:
    return jax.ShapeDtypeStruct((data.batch_size, width), dtype, sharding=sharding)

  lengths, packed = data.lengths, data.pack_length is not None
  if small.architecture == 'encoder_decoder':
    width, encoder = lengths['targets'], array(lengths['inputs'])
  else:
    width, encoder = data.pack_length or lengths['inputs'] + lengths['targets'], None
  return Batch(
    inputs=array(width),
    targets=array(width),
    weights=array(width, 'float32'),
    encoder=encoder,
    segments=array(width) if packed else None,
    positions=array(width) if packed else None,
  )


def _config_of(path: str | None, instead: str, name: str) -> ModelConfig:
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
