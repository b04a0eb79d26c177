"""Losses x learning rates x seeds on the pronouncing dictionary, with the large model of the demo.

python -m launch.sweep --config=launch/sweeps/demo.py --config.seeds='(0,)' --parallel=2
"""

import ml_collections

from launch import points


def get_config() -> ml_collections.ConfigDict:
  config = points.empty()
  config.output_dir = 'runs/sweeps/demo'
  config.large.gin_file = 'recipes/demo_large.gin'
  config.train.gin_file = 'recipes/demo_small.gin'
  config.infer.gin_file = 'recipes/demo_infer.gin'
  config.evaluate.gin_file = 'runs/evaluate.gin'
  config.grid.LOSS = ('@losses.xent', '@losses.cat_xent', '@losses.dist', '@losses.cat_dist')
  config.grid.LEARNING_RATE = (1e-2, 2e-2)
  config.seeds = (0, 1, 2)
  config.alone = ('@losses.xent',)  # needs no large model
  return config
