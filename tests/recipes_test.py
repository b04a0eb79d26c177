"""The recipes: the paper's table, public sizes, commands, and two tiny steps on shipped rows."""

import dataclasses
import math
import pathlib
import re
import shlex

import gin
import numpy as np
import pytest

from cascades import infer, losses, train
from cascades.checkpoints import store
from cascades.data import answer_sources, corpus
from cascades.inference import answers, memories, trained_model
from cascades.models import configs, t5
from cascades.predictions import shards
from cascades.settings import checking, reading
from cascades.tasks import catalog, sources
from cascades.tokenizers import train_sentencepiece
from cascades.training import optimizers, setup
from tests import tiny

RECIPES = pathlib.Path(__file__).parents[1] / 'gin_configs' / 'recipes'

# Wang et al. 2024, https://arxiv.org/abs/2406.00060, table 1, which also says Adafactor throughout.
ALL_LOSSES = ('xent', 'cat_xent', 'dist', 'cat_dist')
TABLE = [
  # suite, size, losses, steps, learning rate, batch, dropout
  ('superglue', 'small', ALL_LOSSES, 10_000, 5e-5, 64, 0.1),
  ('superglue', 'large', ('xent',), 5000, 1e-5, 512, 0.1),
  ('wmt22', 'small', ALL_LOSSES, 4000, 5e-5, 32, 0.1),
  ('wmt22', 'large', ('xent',), 1000, 1e-5, 1024, 0.1),
  ('flan2021', 'small', ALL_LOSSES, 10_000, 1e-3, 64, 0.1),
  ('flan2021', 'large', ('xent',), 60_000, 3e-5, 128, 0.05),
]
ROWS = {f'cat_{row[0]}_{row[1]}_{loss}': (loss, row) for row in TABLE for loss in row[2]}
LARGE = 'cat_superglue_large_xent'

# As counted in the published checkpoints, the logits' table included.
PARAMETERS = {
  't5_base': 222_903_552,
  't5_large': 737_668_096,
  't5_1_1_small': 76_961_152,
  't5_1_1_base': 247_577_856,
  't5_1_1_large': 783_150_080,
  't5_1_1_xl': 2_849_757_184,
  't5_1_1_xxl': 11_135_332_352,
  'mt5_base': 582_401_280,
  'mt5_xxl': 12_921_057_280,
}
FLAN_T5 = {
  name.replace('t5_1_1', 'flan_t5'): count for name, count in PARAMETERS.items() if '1_1' in name
}


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def configure(recipe, *bindings):
  program = 'infer' if recipe.endswith('infer') else 'train'
  return reading.configure(f'cascades.{program}', [f'recipes/{recipe}.gin'], bindings)


def macro(name):
  return gin.query_parameter(f'{name}/macro.value')


def reference(name):
  """The function that a macro refers to."""
  return macro(name).configurable.wrapped


def test_every_row_of_the_table_has_a_recipe():
  assert len(ROWS) == 15
  assert {path.stem for path in RECIPES.glob('cat_*.gin')} == set(ROWS)


@pytest.mark.parametrize('recipe', ROWS)
def test_a_recipe_says_what_the_table_says(recipe):
  loss, (suite, size, _, steps, learning_rate, batch, dropout) = ROWS[recipe]
  configure(recipe, 'VOCABULARY=None')
  arguments = gin.get_bindings('train.train')
  data, model, step = arguments['data'], arguments['small'].config, arguments['step']
  assert (data.task.name, arguments['schedule'].train_steps) == (suite, steps)
  assert data.batch_size == batch
  assert model.dropout_rate == dropout
  assert [float(step.learning_rate(number)) for number in (0, 500)] == [learning_rate] * 2
  assert reference('OPTIMIZER') is optimizers.adafactor
  assert reference('LOSS') is getattr(losses, loss)
  assert (
    configs.count_parameters(model)
    == {
      'small': PARAMETERS['mt5_base' if suite == 'wmt22' else 't5_1_1_base'],
      'large': PARAMETERS['mt5_xxl' if suite == 'wmt22' else 't5_1_1_xxl'],
    }[size]
  )


def test_c4_is_learned_as_t5_learned_it():
  for recipe, model in (('c4_large', 't5_large'), ('c4_small', 't5_base')):
    configure(recipe, 'VOCABULARY=None')
    arguments = gin.get_bindings('train.train')
    assert arguments['schedule'].train_steps * arguments['data'].batch_size * 512 == 2**35
    learning_rate = arguments['step'].learning_rate
    rates = [float(learning_rate(step)) for step in (0, 10_000, 40_000)]
    assert rates == pytest.approx([0.01, 0.01, 0.005])
    assert configs.count_parameters(arguments['small'].config) == PARAMETERS[model]
    gin.clear_config()


@pytest.mark.parametrize('model', [*PARAMETERS, *FLAN_T5])
def test_models_have_the_published_numbers_of_parameters(model):
  reading.configure('cascades.train', [f'models/{model}.gin'], [])
  assert (
    configs.count_parameters(gin.get_configurable(t5.T5Config)()) == (PARAMETERS | FLAN_T5)[model]
  )


@pytest.mark.parametrize(
  'recipe',
  sorted(
    {path.stem for path in RECIPES.glob('*.gin')}
    - {'local_train', 'smollm2_large', 'smollm2_small'}
  ),
)
def test_the_command_of_a_recipe_says_all_that_is_required(recipe):
  text = (RECIPES / f'{recipe}.gin').read_text()
  program, shown = re.search(
    r'^#   python -m (\S+)((?:.*\n#     )*.*)', text, re.MULTILINE
  ).groups()
  files, bindings = [], []
  for argument in shlex.split(shown.replace('#', ' ')):
    flag, _, value = argument.replace('--gin.', '--gin_bindings=', 1).partition('=')
    {'--gin_file': files, '--gin_bindings': bindings}[flag].append(value)
  assert files == [f'recipes/{recipe}.gin']
  checking.finish(reading.configure(program, files, bindings))


def test_the_weight_of_a_small_teacher_may_decay():
  configure(
    'salt_lm', 'DATA_DIR=data', 'MODEL_DIR=run', 'TEACHER_CHECKPOINT_PATH=teacher',
    'OMEGA_SCHEDULE=@losses.linear_decay()', 'OMEGA=0.75', 'RHO=0.5', 'DISTILL_STEPS=3',
  )  # fmt: skip
  loss = gin.get_bindings('train.train')['step'].loss
  logits, teacher = np.random.default_rng(0).normal(size=(2, 4, 7))
  args = logits, teacher, np.arange(4), np.ones(4)
  for step, omega in enumerate([0.75, 0.5, 0.25, 0.0, 0.0]):
    expected = losses.salt(*args, omega=omega, rho=0.5)[0]
    np.testing.assert_allclose(loss(*args, step=step)[0], expected, rtol=1e-5)


CONFIGS = {
  'train': (corpus.Data, answer_sources.AnswerSources, setup.SmallModel, setup.LargeModel,
            setup.Step, setup.Schedule, setup.Failures),
  'infer': (corpus.Data, trained_model.Checkpoint, memories.Recall, answers.DecodingOptions,
            infer.Output),
  'cache_teacher': (corpus.Data, trained_model.Checkpoint),
  'prune': (corpus.Data,),
}  # fmt: skip
INNER = ('@memories.Recall()',)  # configs in others


@pytest.mark.parametrize('program', CONFIGS)
def test_every_field_of_a_config_object_has_a_macro(program):
  reading.configure(f'cascades.{program}', [f'runs/{program}.gin'], [])
  for config in CONFIGS[program]:
    bound = gin.get_bindings(config, resolve_references=False)
    values = [value for value in map(str, bound.values()) if value not in INNER]
    assert all(re.fullmatch(r'%[A-Z_]+', value) for value in values)
    fields = {field.name for field in dataclasses.fields(config)}
    # The sizes of a large model are those of its checkpoint, but for a plan; only `train` packs
    # and samples, and only `infer` has a memory.
    others = set() if program == 'train' else {'pack_length', 'selection', 'sources'}
    others |= set() if program == 'infer' else {'memory'}
    assert set(bound) == fields - ({'config'} if config is setup.LargeModel else others)


@pytest.mark.parametrize('name', ['INITIAL_CHECKPOINT_PATH', 'LARGE_CHECKPOINT_PATH'])
def test_a_row_with_a_large_model_does_not_start_without_its_checkpoints(name):
  needed = {'INITIAL_CHECKPOINT_PATH', 'LARGE_CHECKPOINT_PATH', 'MODEL_DIR'}
  bindings = [f'{other}=there' for other in needed - {name}]
  settings = configure('cat_wmt22_small_dist', *bindings)
  with pytest.raises(ValueError, match=f'{name} is required'):
    checking.finish(settings)


@pytest.mark.parametrize('program', ['train', 'infer'])
def test_where_rows_are_looked_for_is_said_once_for_all_tasks(program):
  given = {
    'data_dir': 'here', 'tfds_data_dir': 'there', 'allow_download': True, 'sample': True,
    'malformed': 'skip',
  }  # fmt: skip
  bindings = [f'{name.upper()}={value}' for name, value in given.items()]
  reading.configure(f'cascades.{program}', [f'runs/{program}.gin'], bindings)
  assert gin.get_bindings(catalog.get) == given | {'name': None}
  assert gin.get_bindings(catalog.mixture)['sources'] == sources.Sources(**given)


# One shape and rate for all, no dropout, no recomputation: few programs, which compile quickly.
TINY = (
  'VOCAB_SIZE=512', 't5.Config.emb_dim=16', 't5.Config.num_heads=2',
  't5.Config.head_dim=8', 't5.Config.mlp_dim=16', 't5.Config.num_encoder_layers=1',
  't5.Config.num_decoder_layers=1', 't5.Config.remat_policy=none',
  "t5.Config.mlp_activations=('gelu', 'linear')", 't5.Config.logits_via_embedding=False',
  "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 16}", 'BATCH_SIZE=8', 'SAMPLE=True',
)  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Folder of records and a vocabulary that all runs share."""
  path = tmp_path_factory.mktemp('recipes')
  rows = catalog.get('c4_span_corruption', sample=True).read('train')
  train_sentencepiece.train_sentencepiece(
    (row.inputs for row in rows), path / 'tiny.model', size=400
  )
  return path


def run(folder, recipe, *bindings):
  program = infer.infer if recipe.endswith('infer') else train.train
  settings = configure(recipe, *TINY, f'RECORDS_DIR={folder}/records', *bindings)
  gin.bind_parameter('partitioning.Devices.mesh', tiny.one_device)
  checking.finish(settings, on_unread=checking.warn)  # TINY serves all programs
  return gin.get_configurable(program)()


def train_tiny(folder, recipe, *bindings):
  return run(
    folder, recipe, f'VOCABULARY_PATH={folder}/tiny.model', f'MODEL_DIR={folder}/{recipe}',
    'VOCABULARY=@vocabularies.sentencepiece()',
    'vocabularies.sentencepiece.path=%VOCABULARY_PATH', 'vocabularies.sentencepiece.extra_ids=100',
    'TRAIN_STEPS=2', 'SCHEDULE=@optimizers.constant()', 'WARMUP_STEPS=0', 'LEARNING_RATE=3e-2',
    'DROPOUT_RATE=0.0', 'LOG_EVERY=1', *bindings,
  )  # fmt: skip


@pytest.fixture(scope='module')
def history(folder):
  """Log values of a large model, written to `large`, that is right now and then."""
  values = train_tiny(
    folder, LARGE, f'MODEL_DIR={folder}/large', 'INITIAL_CHECKPOINT_PATH=None', 'TRAIN_STEPS=30',
    'VALIDATION_ROWS=16',
  )  # fmt: skip
  gin.clear_config()
  return values


@pytest.fixture
def large(folder, history):
  return folder / 'large'


def test_a_mixture_is_validated_while_it_is_learned(history):
  assert len(history) == 30
  assert history[-1]['loss'] < history[0]['loss']
  assert math.isfinite(history[-1]['validation/loss'])


TRAINED = {recipe: loss for recipe, (loss, _) in ROWS.items()} | {
  'c4_large': 'xent', 'c4_small': 'dist',
}  # fmt: skip


# The other crossings are slow.
CROSSED = {'cat_superglue_small_cat_dist'}


@pytest.mark.parametrize(
  'recipe',
  [
    pytest.param(recipe, marks=[] if recipe in CROSSED else pytest.mark.slow)
    for recipe in sorted(TRAINED.keys() - {LARGE})
  ],
)
def test_a_recipe_takes_two_steps(folder, large, recipe):
  beside = TRAINED[recipe] != 'xent'
  bindings = ['train.validation=None']
  if beside:
    bindings.append(f'LARGE_CHECKPOINT_PATH={large}')
  if recipe in ROWS:
    bindings.append(f'INITIAL_CHECKPOINT_PATH={large}')
  else:
    bindings.append(f'LOSS=@losses.{TRAINED[recipe]}')
  history = train_tiny(folder, recipe, *bindings)
  assert len(history) == 2
  for values in history:
    assert math.isfinite(values['loss'])
    # Where neither model is right, nothing is left to learn of a cascade's loss.
    assert min(values['loss'], values['grad_norm']) > 0 or values['neither'] == 1
    assert ('neither' in values) == beside
  assert store.locate(folder / recipe)[1] == 2


@pytest.mark.parametrize(
  ('recipe', 'tables'),
  [('superglue_infer', 8), ('wmt22_infer', 12), ('flan2021_infer', 32), ('c4_infer', 1)],
)
def test_answers_of_every_task_get_a_table_of_their_own(folder, large, recipe, tables):
  run(
    folder, recipe, f'CHECKPOINT_PATH={large}', f'INFER_OUTPUT_DIR={folder}/{recipe}', 'MODE=score'
  )
  tables_read = [
    table
    for split in macro('SPLITS')
    for table in shards.read(folder / recipe / split, mode='score')
  ]
  assert len(tables_read) == tables
  assert all(len(table.ids) == table.manifest['rows'] > 0 for table in tables_read)
