"""Points of a sweep, their names, and their stages."""

import pathlib
import re

import gin
import pytest

from cascades import cli
from cascades.settings import checking
from launch import points, stages
from launch.sweeps import demo, table1


def config(**fields):
  settings = points.empty()
  settings.output_dir = 'out'
  settings.update(fields)
  return settings


def names(settings):
  return [point.name for point in points.all_points(settings)]


def test_a_grid_is_all_combinations_and_seeds():
  settings = config(
    grid={'LOSS': ('@losses.xent', '@losses.dist'), 'LEARNING_RATE': (0.5,)}, seeds=(0, 7)
  )
  assert names(settings) == [
    'LEARNING_RATE=0.5,LOSS=losses.xent,SEED=0',
    'LEARNING_RATE=0.5,LOSS=losses.xent,SEED=7',
    'LEARNING_RATE=0.5,LOSS=losses.dist,SEED=0',
    'LEARNING_RATE=0.5,LOSS=losses.dist,SEED=7',
  ]


def test_a_list_of_points_is_taken_as_it_is_and_with_a_grid_all_of_both():
  listed = ({'LOSS': '@losses.xent'}, {'LOSS': '@losses.dist', 'losses': {'dist': {'w': 0.3}}})
  settings = config(points=listed, grid={'BATCH_SIZE': (8, 16)})
  assert [point.values for point in points.all_points(settings)][2:] == [
    {'LOSS': '@losses.dist', 'losses.dist.w': 0.3, 'BATCH_SIZE': size, 'SEED': 0}
    for size in (8, 16)
  ]


def test_a_binding_with_dots_is_written_in_steps():
  settings = config()
  settings.grid.losses = {'cat_dist': {'w': (0.25, 0.5)}}
  assert names(settings) == ['losses.cat_dist.w=0.25,SEED=0', 'losses.cat_dist.w=0.5,SEED=0']


def test_bindings_can_be_added_to_what_a_file_says():
  settings = config(
    train={'gin_file': 'x.gin', 'bindings': {'A': 1, 't5': {'Config': {'emb_dim': 8}}}}
  )
  for binding in ('A=2', 't5.Config.mlp_dim=16', 'lora.Config.rank=4', "B={'a': 'b=c'}"):
    points.bind(settings.train.bindings, binding)
  assert points.flat(settings.train.bindings.to_dict()) == {
    'A': '2', 't5.Config.emb_dim': 8, 't5.Config.mlp_dim': '16', 'lora.Config.rank': '4',
    'B': "{'a': 'b=c'}",
  }  # fmt: skip


def test_a_grid_that_grows_keeps_the_names_of_its_points():
  small = config(grid={'LOSS': ('@losses.xent',)})
  large = config(grid={'LOSS': ('@losses.xent', '@losses.dist')}, seeds=(0, 1))
  assert set(names(small)) < set(names(large))


@pytest.mark.parametrize(
  ('value', 'name'),
  [
    ('@losses.cat_xent', 'losses.cat_xent'),
    ('@optimizers.cosine()', 'optimizers.cosine'),
    ('recipes/cat_superglue_small_xent.gin', 'cat_superglue_small_xent'),
    (1e-05, '1e-05'),
    (None, 'None'),
  ],
  ids=str,
)
def test_names_are_readable(value, name):
  assert names(config(grid={'X': (value,)})) == [f'X={name},SEED=0']


def test_names_are_safe_and_tell_alike_values_apart():
  values = ("{'inputs': 8}", "{'inputs': [8]}", '../../x', 'a b', 'a/b', '', 'x' * 300, 'x' * 301)
  distinct = names(config(grid={'X': values}))
  assert len(set(distinct)) == len(values)
  assert all(re.fullmatch(r'[A-Za-z0-9._+~=,-]{1,140}', name) for name in distinct)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'gird': {'LOSS': (1,)}}, 'no field gird'),
    ({'grid': {'LOSS': ()}}, 'grid.LOSS is'),
    ({'grid': {'LOSS': '@losses.xent'}}, 'a list of one or more'),
    ({'seeds': ()}, 'seeds is empty'),
    ({'points': ({'X': 1}, {'X': 1})}, 'several points are called X=1,SEED=0'),
  ],
  ids=str,
)
def test_what_is_no_sweep_is_said(fields, message):
  with pytest.raises(ValueError, match=message):
    points.all_points(config(**fields))


def test_the_stages_of_a_point_hang_together():
  settings = demo.get_config()
  chosen = {point.name: point for point in points.all_points(settings)}
  assert len(chosen) == 24
  point = chosen['LEARNING_RATE=0.02,LOSS=losses.cat_dist,SEED=1']
  train, infer, evaluate = points.stages_of(settings, point)
  run, large = f'runs/sweeps/demo/{point.name}', 'runs/sweeps/demo/large'
  assert train.words() == [
    'cascades.train', '--gin_file=recipes/demo_small.gin', '--gin.LEARNING_RATE=0.02',
    '--gin.LOSS=@losses.cat_dist', '--gin.SEED=1', f'--gin.MODEL_DIR={run}',
    f'--gin.LARGE_CHECKPOINT_PATH={large}',
  ]  # fmt: skip
  assert infer.bindings['CHECKPOINT_PATH'] == run
  assert evaluate.bindings['SMALL'] == repr({point.name: infer.bindings['INFER_OUTPUT_DIR']})
  trained, answered = points.stages_of_large(settings)
  assert trained.bindings == {'MODEL_DIR': large}
  assert answered.bindings['INFER_OUTPUT_DIR'] == evaluate.bindings['LARGE']


def test_a_loss_that_asks_the_large_model_nothing_gets_none():
  settings = demo.get_config()
  for point in points.all_points(settings):
    bindings = points.stages_of(settings, point)[0].bindings
    assert ('LARGE_CHECKPOINT_PATH' in bindings) == (point.values['LOSS'] != '@losses.xent')


def test_a_large_model_that_is_there_is_not_trained():
  settings = demo.get_config()
  settings.large.gin_file, settings.large.run_dir = '', 'runs/demo/large'
  (infer,) = points.stages_of_large(settings)
  assert infer.bindings['CHECKPOINT_PATH'] == 'runs/demo/large'
  settings.large.gin_file = 'recipes/demo_large.gin'
  with pytest.raises(ValueError, match='leave one empty'):
    points.all_points(settings)


@pytest.mark.parametrize(
  'settings',
  [demo.get_config(), *map(table1.get_config, table1.SPLITS)],
  ids=lambda c: c.output_dir,
)
def test_every_command_of_the_examples_is_understood(settings):
  """Parsed as on the command line, up to the call of the program."""
  runs = [
    points.stages_of_large(settings),
    *(points.stages_of(settings, p) for p in points.all_points(settings)),
  ]
  for stage in {stage.words()[1]: stage for run in runs for stage in run}.values():
    gin.clear_config()
    bindings = [f'{name}={value}' for name, value in stage.bindings.items()]
    checking.finish(cli.configure(f'cascades.{stage.program}', stage.gin_files, bindings))
  gin.clear_config()


def test_what_has_finished_is_known_by_its_command_and_by_all_that_its_recipes_include(tmp_path):
  included, recipe = tmp_path / 'included.gin', tmp_path / 'recipe.gin'
  included.write_text('X = 1\n')
  recipe.write_text(f"include '{included}'\n")
  stage = stages.Stage('train', 'train', (str(recipe),), {'A': '1'})
  ran = []

  def start(words):
    ran.append(words)
    return 0

  assert stages.run(stage, tmp_path, lambda _: 3) == 3
  assert stages.run(stage, tmp_path, start) == 0
  assert stages.run(stage, tmp_path, start) is None
  assert ran == [['cascades.train', f'--gin_file={recipe}', '--gin.A=1']]
  included.write_text('X = 2\n')
  with pytest.raises(ValueError, match='finished under another recipe'):
    stages.run(stage, tmp_path, start)
  included.write_text('X = 1\n')
  with pytest.raises(ValueError, match='finished under another recipe'):
    stages.run(stage._replace(bindings={'A': '2'}), tmp_path, start)
  assert pathlib.Path(tmp_path / '.finished' / 'train').exists()
