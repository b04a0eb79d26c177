"""Table 1 of Cascade-Aware Training, https://arxiv.org/abs/2406.00060: a data set, all four losses.

python -m launch.sweep --config=launch/sweeps/table1.py:superglue (or wmt22, flan2021)
  --config.output_dir=gs://bucket/table1/superglue --config.log_dir=runs/table1/superglue
  --binding=DATA_DIR=gs://bucket/data --config.infer.bindings.DATA_DIR=gs://bucket/data
  --config.large.bindings.INITIAL_CHECKPOINT_PATH=gs://bucket/t5_1_1_xxl
  --config.train.bindings.INITIAL_CHECKPOINT_PATH=gs://bucket/t5_1_1_base
  --large_launcher='launch.tpu_vm --name={point} --zone=... --accelerator_type=v5litepod-128'
  --launcher='launch.tpu_vm --name={point} --zone=... --accelerator_type=v4-32' --parallel=2
"""

import ml_collections

from launch import points

LOSSES = ('xent', 'cat_xent', 'dist', 'cat_dist')
SPLITS = {'superglue': 'validation', 'wmt22': 'validation', 'flan2021': 'paper'}
# The large models: the paper trained them on other pods than the small ones.
LARGE_FSDP, SMALL_FSDP = 64, 16  # chips; the rest is data parallel


def get_config(suite: str = 'superglue') -> ml_collections.ConfigDict:
  if suite not in SPLITS:
    raise ValueError(f'table1.py:{suite}: unknown suite; choose from {", ".join(SPLITS)}.')
  config = points.empty()
  config.output_dir = f'runs/sweeps/table1/{suite}'
  data = {'DATA_DIR': 'data'}
  config.large.gin_file = f'recipes/cat_{suite}_large_xent.gin'
  config.large.bindings = {
    **data,
    'INITIAL_CHECKPOINT_PATH': 'runs/t5_1_1_xxl',
    'partitioning': {'make_mesh': {'fsdp': LARGE_FSDP}},
  }
  config.train.bindings = {
    **data,
    'INITIAL_CHECKPOINT_PATH': 'runs/t5_1_1_base',
    'partitioning': {'make_mesh': {'fsdp': SMALL_FSDP}},
  }
  config.infer.gin_file = f'recipes/{suite}_infer.gin'
  config.infer.bindings = {**data, 'SPLITS': (SPLITS[suite],)}
  config.evaluate.gin_file = 'runs/evaluate.gin'
  config.evaluate.bindings = {'SPLITS': SPLITS[suite]}
  config.points = tuple(
    {points.GIN_FILE: f'recipes/cat_{suite}_small_{loss}.gin'} for loss in LOSSES
  )
  config.alone = (f'recipes/cat_{suite}_small_xent.gin',)
  return config
