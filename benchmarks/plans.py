"""Plans of the paper's settings, with open models instead of closed ones.

    python -m benchmarks.plans

Wang et al. 2024, https://arxiv.org/abs/2406.00060, train on 16 TPU v4 with batch 64, and on 128
TPU v5e. Sizes are those of gin_configs/models and activations are bfloat16; `large_dtype` is
the type of the large model's weights. A model is sharded over as many chips as divide its width.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, NamedTuple

from benchmarks import bars, compiling
from benchmarks.bars import Measured
from cascades import cli, losses, plan
from cascades.data.corpus import Data
from cascades.models import configs
from cascades.performance import roofline, topologies
from cascades.runtime import partitioning
from cascades.training import optimizers, setup
from cascades.training.setup import LargeModel, SmallModel, Step


class Setting(NamedTuple):
  name: str
  topology: str
  small: str
  large: str
  batch_size: int
  lengths: dict[str, int]
  mesh: dict[str, int]
  large_dtype: str = 'bfloat16'
  microbatches: int = 1


FLAN, C4 = {'inputs': 1024, 'targets': 256}, {'inputs': 512, 'targets': 512}

SETTINGS = (
  Setting('T5-large, FLAN-T5-XXL', 'v4:2x2x4', 'flan_t5_large', 'flan_t5_xxl', 64, FLAN,
          {'fsdp': 16}),
  Setting('T5-large, FLAN-T5-XXL', 'v5e:8x16', 'flan_t5_large', 'flan_t5_xxl', 128, FLAN,
          {'data': 8, 'fsdp': 16}),
  Setting('T5-base, T5-large on C4', 'v4:2x2x4', 't5_base', 't5_large', 64, C4, {'fsdp': 16}),
  Setting('Gemma-2B, Gemma-27B', 'v4:2x2x4', 'gemma_2_2b', 'gemma_2_27b', 64,
          {'inputs': 768, 'targets': 256}, {'fsdp': 16}),
  Setting('Gemma-2B, Gemma-27B', 'v5e:8x16', 'gemma_2_2b', 'gemma_2_27b', 128,
          {'inputs': 768, 'targets': 256}, {'data': 2, 'fsdp': 64}),
)  # fmt: skip


def model(name: str) -> configs.LanguageModelConfig:
  config = cli.model_of('cascades.plan', f'models/{name}.gin')
  return dataclasses.replace(config, dtype='bfloat16', remat_policy='full')


def plan_of(setting: Setting, *, compiles: bool) -> roofline.Plan:
  small, large = model(setting.small), model(setting.large)
  machines = topologies.of(setting.topology)._replace(can_compile=compiles)
  step = Step(
    learning_rate=optimizers.constant(1e-3),
    loss=losses.cat_dist,
    microbatches=setting.microbatches,
  )
  with partitioning.use(partitioning.make_mesh(**setting.mesh, devices=machines.devices)):
    abstract = setup.abstract_run(
      SmallModel(small), LargeModel(large, dtype=setting.large_dtype), step.transform
    )
    data = Data(lengths=setting.lengths, batch_size=setting.batch_size)
    batch = plan.batch_shapes(small, data)
    counts = {
      'small': configs.count_parameters(small),
      'large': configs.count_parameters(large),
    }
    effort = compiling.EFFORT['exec_time_optimization_effort']
    compiled_step = setup.compiled_step(abstract, step)
    return plan.measure(compiled_step, abstract, batch, machines, counts, effort=effort)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', type=int, nargs='+', help='numbers of settings, from 0')
  parser.add_argument('--abstract', action='store_true', help='compile nothing')
  parser.add_argument('--output', default=bars.RESULTS / 'plans.json')
  options = parser.parse_args()
  records: list[Any] = []
  measured: list[Measured] = []
  for number in options.only or range(len(SETTINGS)):
    setting = SETTINGS[number]
    computed = plan_of(setting, compiles=not options.abstract)
    print(f'{setting.name}, batch {setting.batch_size}, {setting.lengths}, {setting.mesh}')
    print(roofline.format_table(computed), flush=True)
    records.append({'setting': setting._asdict(), 'plan': roofline.to_json(computed)})
    where = f'{setting.name}, {setting.topology}'
    if computed.fits is not None:
      measured.append(Measured(f'{where}: fits', float(computed.fits), '', at_least=1))
    if computed.seconds:
      milliseconds = 1e3 * computed.seconds.at_least
      measured.append(Measured(f'{where}: minimum step time', milliseconds, 'ms'))
    bars.report("plans of the paper's settings", measured, options.output, vars(options), records)


if __name__ == '__main__':
  main()
