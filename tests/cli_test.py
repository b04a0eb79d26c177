"""The command line: files, bindings, help, and errors as one sentence."""

import logging
import os
import pathlib
import re
import subprocess
import sys

import gin
import jax.numpy as jnp
import pytest

from cascades import cli, losses, plan
from cascades.settings import checking
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def fresh_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def value(name):
  return gin.query_parameter(name)


def test_recipes_are_found_beside_folders_of_the_same_name(tmp_path, monkeypatch):
  for name in ('runs', 'recipes'):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does: the folders are packages now
  cli.configure('cascades.train', ['recipes/demo_large.gin'], [])


def test_bindings_on_the_command_line_override_files(tmp_path):
  file = tmp_path / 'mine.gin'
  file.write_text("include 'runs/train.gin'\nTRAIN_STEPS = 5\nMODEL_DIR = 'there'\n")
  cli.configure('cascades.train', [str(file)], ['TRAIN_STEPS=7'])
  assert value('TRAIN_STEPS/macro.value') == 7
  assert value('MODEL_DIR/macro.value') == 'there'


@pytest.mark.parametrize(
  ('binding', 'name', 'expected'),
  [
    ('MODEL_DIR=runs/demo/large', 'MODEL_DIR/macro.value', 'runs/demo/large'),
    ("MODEL_DIR='runs/demo'", 'MODEL_DIR/macro.value', 'runs/demo'),
    ('MODEL_DIR=gs://bucket/run', 'MODEL_DIR/macro.value', 'gs://bucket/run'),
    ('SEED=3', 'SEED/macro.value', 3),
    ('LEARNING_RATE=1e-3', 'LEARNING_RATE/macro.value', 1e-3),
    ('VOCABULARY=None', 'VOCABULARY/macro.value', None),
    ("SPLITS=['a', 'b']", 'SPLITS/macro.value', ['a', 'b']),
    ("LENGTHS={'inputs': 3}", 'LENGTHS/macro.value', {'inputs': 3}),
    ('train.seed=4', 'train.train.seed', 4),
    ('train.train.seed=4', 'train.train.seed', 4),
  ],
)
def test_values_mean_what_they_look_like(binding, name, expected):
  cli.configure('cascades.train', ['runs/train.gin'], [binding])
  assert value(name) == expected


def test_functions_of_the_package_can_be_named_and_bound():
  bindings = ['LOSS=@losses.cat_dist', 'losses.cat_dist.w=0.25', 'setup.Step.loss=%LOSS']
  cli.configure('cascades.train', [], bindings)
  args = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]]), jnp.array([1]), jnp.ones(1)
  bound = gin.get_configurable('losses.cat_dist')(*args)
  assert bound == losses.cat_dist(*args, w=0.25) != losses.cat_dist(*args)


@pytest.mark.parametrize(
  ('binding', 'hint'),
  [
    ('LOSS=@losses.cat_dst', 'losses.cat_dist'),
    ('OPTIMIZER=@optimizers.adam', 'optimizers.adamw'),
    ('train.sead=3', 'sead'),
  ],
)
def test_an_unknown_name_is_an_error_that_suggests_the_nearest(binding, hint):
  with pytest.raises(ValueError, match=hint):
    cli.configure('cascades.train', [], [binding])


@pytest.mark.parametrize(
  ('line', 'hint'),
  [
    ('from cascades import optimizers', 'from cascades.training import optimizers'),
    ('from cascades.tasks import vocabularies', 'from cascades.tokenizers import vocabularies'),
    ('import cascades.train_step', 'from cascades.training import train_step'),
  ],
)
def test_an_import_of_a_module_that_lies_elsewhere_is_told_where(line, hint, tmp_path):
  file = tmp_path / 'mine.gin'
  file.write_text(f'from __gin__ import dynamic_registration\n{line}\n')
  with pytest.raises(ImportError, match=hint):
    cli.configure('cascades.train', [str(file)], [])


def test_a_missing_file_is_an_error_that_says_where_it_was_looked_for():
  with pytest.raises(OSError, match='nowhere'):
    cli.configure('cascades.train', ['nowhere.gin'], [])


@pytest.mark.parametrize(
  'recipe', sorted((ROOT / 'gin_configs').rglob('*.gin')), ids=lambda p: p.name
)
def test_every_recipe_parses_and_is_short(recipe):
  program = (
    'evaluate' if 'evaluate' in recipe.name else 'infer' if 'infer' in recipe.name else 'train'
  )
  cli.configure(f'cascades.{program}', [str(recipe)], [])
  if recipe.parent.name == 'recipes':
    lines = recipe.read_text().splitlines()
    assert len(lines) <= 25
    assert any(re.match(r'#\s+python -m cascades\.', line) for line in lines), 'name its command'


def run(*arguments, **environment):
  return subprocess.run(
    [sys.executable, '-m', *arguments],
    capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, check=False,
  )  # fmt: skip


@pytest.mark.slow
def test_a_program_from_the_command_line_trains_and_profiles(tmp_path):
  """Everything from a file of the user's own rows; the configuration lies beside the result."""
  paths = tiny.write_rows(tmp_path)
  done = run(
    'cascades.train', '--gin_file=runs/train.gin', '--profile_steps=2:2',
    '--gin.TASK=@local.local_jsonl()', "--gin.local.local_jsonl.name='mine'",
    f'--gin.local.local_jsonl.splits={paths}', '--gin.MODEL=@t5.Config()',
    '--gin.t5.Config.vocab_size=260', '--gin.t5.Config.emb_dim=8', '--gin.t5.Config.num_heads=1',
    '--gin.t5.Config.head_dim=8', '--gin.t5.Config.mlp_dim=8',
    '--gin.t5.Config.num_encoder_layers=1', '--gin.t5.Config.num_decoder_layers=1',
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}", '--gin.TRAIN_STEPS=3',
    '--gin.BATCH_SIZE=8', '--gin.LEARNING_RATE=1e-3', f'--gin.MODEL_DIR={tmp_path}/run',
    f'--gin.RECORDS_DIR={tmp_path}/records', '--gin.LOG_EVERY=1',
  )  # fmt: skip
  assert done.returncode == 0, done.stdout + done.stderr
  assert re.search(
    r'\d\d:\d\d:\d\d  step 3/3  loss .* lr .* tok/s  .* step/s  ETA 0 s', done.stdout
  )
  config = (tmp_path / 'run' / 'config.gin').read_text()
  assert 't5.Config.emb_dim = 8' in config
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize(
  ('program', 'argument', 'message'),
  [
    ('train', '--gin.LOSS=@losses.cat_dst', 'Did you mean losses.cat_dist'),
    ('evaluate', '--gin_file=nothing.gin', 'nothing.gin'),  # starts faster
    ('evaluate', '--gin_file=runs/evaluate.gin', 'SMALL is required'),
  ],
)
def test_an_error_is_one_message_and_a_bad_exit(program, argument, message):
  done = run(f'cascades.{program}', argument)
  assert done.returncode == 1
  assert message in done.stderr
  assert done.stderr.startswith(f'cascades.{program}: error: ')
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('program', ['train', 'infer', 'evaluate', 'speculate'])
def test_help_shows_examples_settings_arguments_and_the_recipes_that_fit(program):
  done = run(f'cascades.{program}', '--help')
  assert done.returncode == 0
  text = ' '.join(done.stdout.split())
  assert done.stdout.count(f'  python -m cascades.{program} ') >= 3
  assert ('demo_large.gin' in text) == (program == 'train')
  assert ('demo_infer.gin' in text) == (program == 'infer')
  assert '(SEED) Seed of' in text
  files = set(re.findall(r'--(?:gin_file|large_model)=([\w/]+\.gin)', text)) - {'task.gin'}
  assert all((ROOT / 'gin_configs' / file).exists() for file in files)
  assert re.search(r'^  SEED = 0 +\S', done.stdout, re.MULTILINE), 'with its meaning'
  assert '(required)' in done.stdout


@pytest.mark.parametrize('command', ['cascades.train', 'cascades'])
def test_help_imports_neither_jax_nor_tensorflow(command):
  arguments = ['--help'] if command == 'cascades.train' else ['train', '--help']
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', command, *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  assert done.stdout.startswith('Train a model')
  imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
  assert 'cascades.cli' in imported
  assert not {'jax', 'flax', 'tensorflow', 'seqio', 'cascades.losses'} & imported


@pytest.mark.parametrize('program', ['evaluate', 'calibrate'])
def test_evaluation_starts_without_jax_or_tensorflow(program):
  code = (
    f"import sys; from cascades import cli; cli.configure('cascades.{program}', [], []); "
    f"import cascades.{program}; print({{'jax', 'tensorflow'}} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True
  )
  assert done.stdout.strip() == 'set()'


RECIPE = 'recipes/cat_flan2021_small_cat_dist.gin'


def plan_bindings(*bindings):
  settings = cli.configure('cascades.plan', [RECIPE], bindings)
  checking.finish(settings, optional=frozenset(plan.OPTIONAL_SETTINGS))
  return gin.get_bindings('plan.plan')


def test_a_plan_takes_the_settings_that_the_recipe_and_the_command_line_give_training():
  bound = plan_bindings('MICROBATCHES=4', 'plan.output=there.json', 'LARGE_DTYPE=int8')
  assert bound['step'].microbatches == 4
  assert bound['output'] == 'there.json'
  assert bound['large'].dtype == 'int8'
  assert bound['data'].batch_size == 64
  assert bound['step'].loss.__wrapped__ == losses.cat_dist
  assert bound['data'].task is None, 'a plan reads no rows'
  assert bound['large'].checkpoint_path is None, 'the recipe requires one, and a plan does not'


def test_a_plan_requires_a_batch_size():
  with pytest.raises(ValueError, match='BATCH_SIZE is required'):
    plan_bindings('BATCH_SIZE=%gin.REQUIRED')


def test_a_large_model_is_read_from_its_file_and_leaves_nothing_bound():
  large = cli.model_of('cascades.plan', 'models/flan_t5_xxl.gin')
  assert (large.emb_dim, large.num_heads) == (4096, 64)
  bound = plan_bindings()
  assert bound['small'].config.emb_dim < 4096
  assert bound['large'].config is None


@pytest.mark.parametrize(
  ('binding', 'macro'),
  [('train.log_every=10', 'LOG_EVERY'), ('train.pack_length=8', 'PACK_LENGTH')],
)
def test_an_argument_of_a_config_object_is_an_error_that_names_its_macro(binding, macro):
  with pytest.raises(ValueError, match=f'Did you mean {macro}'):
    cli.configure('cascades.train', [RECIPE], [binding])


def test_a_plan_without_a_topology_says_what_one_looks_like():
  done = run('cascades.plan', f'--gin_file={RECIPE}')
  assert done.returncode == 1
  assert '--topology=v4:2x2x4' in done.stderr


def test_no_arguments_at_all_are_answered_with_what_to_give():
  done = run('cascades.evaluate')
  assert done.returncode == 1
  assert 'no gin file is given: name one, as --gin_file=runs/evaluate.gin does' in done.stderr


def run_evaluate(*arguments):
  """The program that starts fastest."""
  given = ('--gin.LARGE=l', '--gin.EVAL_OUTPUT_DIR=o', "--gin.SMALL={'x': 'y'}")
  return run('cascades.evaluate', '--gin_file=runs/evaluate.gin', *given, *arguments)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('BATCH_SIZE=3', 'write --gin.BATCH_SIZE=3'),
    ('--gin.LARGE=\x1b[2J\u202e', r'\x1b[2J\u202e'),
  ],
)
def test_a_wrong_argument_is_answered_in_a_visible_sentence(argument, message):
  done = run_evaluate(argument)
  assert done.returncode == 1
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not {'\x1b', '\u202e'} & {*done.stderr}


def test_what_nothing_reads_can_be_a_warning():
  done = run_evaluate('--gin.RESAMPLE=3', '--unread_settings=warn')
  assert 'there is no setting RESAMPLE. Did you mean RESAMPLES?' in done.stdout
  assert 'l/test' in done.stderr, 'the tables that do not exist'


@pytest.mark.parametrize(
  'error', [TypeError, KeyError, AttributeError, RecursionError, MemoryError]
)
def test_any_error_ends_in_a_sentence_and_by_option_with_its_stack(error, capsys):
  for traceback in (False, True):
    with pytest.raises(SystemExit) as ended, cli.ending('cascades.train', traceback=traceback):
      raise error('a name\x1b[2J')
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert r'a name\x1b[2J' in printed
    assert '--traceback prints where' in printed
    assert '\x1b' not in printed
    assert ('Traceback' in printed) is traceback


def test_log_lines_show_what_would_act_on_a_terminal():
  record = logging.LogRecord('x', logging.INFO, '', 0, 'tensor %s\nfits', ('\x1b[2J\u202e',), None)
  assert cli.VisibleFormatter('%(message)s').format(record) == 'tensor \\x1b[2J\\u202e\nfits'


def test_ctrl_c_while_modules_are_imported_ends_in_a_line():
  code = (
    "import sys; sys.argv = ['-m']; import os, signal, cascades; "
    'os.kill(os.getpid(), signal.SIGINT)'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr.count('\n')) == (130, 1)
  assert done.stderr.startswith('interrupted')
