"""Settings from gin files and the command line: what programs get, and what is refused by name."""

import importlib
import os
import subprocess
import sys

import gin
import pytest

from cascades import losses
from cascades.settings import checking, reading
from cascades.training import optimizers

RECIPE = 'recipes/demo_small.gin'
OWN_LOSSES = """
from functools import partial
from cascades import losses, masks

def stepless(small, teachers, targets, weights):
  return 0, 0

cat_mine = partial(
  losses.cascade_loss, token_loss=losses.cross_entropy, token_mask=masks.either_correct)
"""


@pytest.fixture(scope='module')
def own_modules(tmp_path_factory):
  path = tmp_path_factory.mktemp('modules')
  (path / 'losses_of_mine.py').write_text(OWN_LOSSES)
  return path


@pytest.fixture(autouse=True)
def folder(tmp_path, own_modules, monkeypatch):
  """An empty folder of a user, who has a module of losses."""
  monkeypatch.syspath_prepend(own_modules)
  monkeypatch.chdir(tmp_path)
  gin.clear_config()
  yield tmp_path
  gin.clear_config()


def finish(*bindings, program='train', files=(RECIPE,), imported=(), **options):
  program = f'cascades.{program}'
  settings = reading.configure(program, files, bindings, imported=imported)
  optional = getattr(importlib.import_module(program), 'OPTIONAL_SETTINGS', ())
  checking.finish(settings, optional=frozenset(optional), **options)


def train(*bindings, **options):
  finish('MODEL_DIR=run', *bindings, **options)


def macro(name):
  value = gin.query_parameter(f'{name}/macro.value')
  return getattr(getattr(value, 'configurable', None), 'wrapped', value)


@pytest.mark.parametrize(
  ('binding', 'expected'),
  [
    ('SAMPLE=false', False), ('SAMPLE=on', True), ('ALLOW_DOWNLOAD=no', False),
    ('LARGE_CHECKPOINT_PATH=none', None), ('HANG_TIMEOUT=None', None), ('LOG_EVERY=7', 7),
    ('LEARNING_RATE=1e-3', 1e-3), ('LOSS=cat_xent', losses.cat_xent),
    ('LOSS=losses.cat_xent', losses.cat_xent), ('LOSS=@losses.dist', losses.dist),
    ('OPTIMIZER=adafactor', optimizers.adafactor), ('SCHEDULE=linear', optimizers.linear),
    ('LOSS_NORMALIZING_FACTOR=0.5', 0.5),
  ],
)  # fmt: skip
def test_a_value_is_what_its_argument_wants(binding, expected):
  train(binding)
  assert macro(binding.partition('=')[0]) == expected


@pytest.mark.parametrize(
  'name',
  ['20261128', '1e3', '(try 1)/x', '[a]/x', '{a}', '@tmp/x', '%x', '5#x', 'a b', 'none', "it's"],
)
def test_any_name_is_a_fine_folder(name):
  finish(f'MODEL_DIR={name}')
  assert macro('MODEL_DIR') == name


def test_a_value_of_a_gin_file_is_checked_as_one_of_the_command_line(folder):
  (folder / 'mine.gin').write_text("t5.Config.logits_via_embedding = 'off'\n\nKEEP = 'two'\n")
  with pytest.raises(ValueError, match=r"^mine.gin, line 3: KEEP is the text 'two'; expected a wh"):
    train(files=[RECIPE, 'mine.gin'])
  gin.clear_config()
  train('KEEP=2', files=[RECIPE, 'mine.gin'])
  assert gin.query_parameter('t5.Config.logits_via_embedding') is False


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('BATCH_SIZE=64k', "^BATCH_SIZE is the text '64k'; expected a whole number"),
    ('BATCH_SIZE=4.5', '^BATCH_SIZE is 4.5; expected a whole number'),
    ('TRAIN_STEPS=1e1', 'written 10'),
    ('LEARNING_RATE=fast', "^LEARNING_RATE is the text 'fast'; expected a number"),
    ('SAMPLE=maybe', "^SAMPLE is the text 'maybe'; expected True or False"),
    ('LOSS=cat_xnet', 'expected a function .* Did you mean @losses.cat_xent'),
    ('LOSS=@losses.xent()', r'^LOSS=@losses.xent\(\) calls the function: write @losses.xent,'),
    ('LOSS=@losses.cross_entropy', 'cannot be called as losses.cross_entropy'),
    ('SCHEDULE=@optimizers.linear', r'write @optimizers.linear\(\)'),
    ('MODEL=@t5.Config', r'write @t5.Config\(\)'),
    ('train.train.small=@t5.Config()', 'returns a T5Config; expected a SmallModel'),
    ('TASK=mine', "^TASK is the text 'mine'; expected a Task"),
    ('TASK=@local.local_jsonl()', '^local.local_jsonl.name is required'),
    ("TASK_FEATURE_LENGTHS={'inputs': 'x'}", r"^TASK_FEATURE_LENGTHS\['inputs'\] is the text 'x'"),
    ("TASK_FEATURE_LENGTHS={'inputs': 3", '^TASK_FEATURE_LENGTHS=.*not closed'),
    ('BATCH_SIZE=', 'no value'),
    ('BATCH_SIZE', 'no value'),
    ('x.y=3', 'no module x is known'),
  ],
)
def test_a_wrong_value_is_named_with_what_is_expected(binding, message):
  with pytest.raises(ValueError, match=message):
    train(binding)


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('TRAIN_STEP=10', '^there is no setting TRAIN_STEP. Did you mean TRAIN_STEPS'),
    ('optimizers.adafactor.clip_norm=1.0', '^nothing reads optimizers.adafactor.clip_norm'),
    ('SPLITS=test', 'does not read SPLITS, which is a setting of .*infer'),
    ('DATA_DIR=x', 'does not read DATA_DIR with these settings'),
  ],
)
def test_what_nothing_reads_is_an_error_or_by_option_a_warning(binding, message):
  task = ('TASK=@cmudict.task()',)
  with pytest.raises(ValueError, match=message):
    train(binding, *task)
  gin.clear_config()
  warnings = []
  train(binding, *task, on_unread=warnings.append)
  assert len([text for text in warnings if text.startswith(message.strip('^')[:20])]) <= 1
  assert warnings


def test_a_file_may_serve_several_programs(folder):
  (folder / 'task.gin').write_text(
    "TASK = @local.local_jsonl()\nlocal.local_jsonl.name = 'mine'\n"
    "local.local_jsonl.splits = {'test': 'test.jsonl'}\nPIECES = 'x.model'\n"
    "TASK_FEATURE_LENGTHS = {'inputs': 8, 'targets': 8}\nPACK_LENGTH = 16\n"
    'VOCABULARY = @vocabularies.sentencepiece()\nvocabularies.sentencepiece.path = %PIECES\n'
  )
  paths = ('CHECKPOINT_PATH=a', 'INFER_OUTPUT_DIR=b')
  finish(*paths, program='infer', files=['runs/infer.gin', 'task.gin'])
  gin.clear_config()
  finish('BATCH_SIZE=8', program='plan', files=['recipes/smollm2_small.gin', 'task.gin'])
  gin.clear_config()
  (folder / 'task.gin').open('a').write('TRAIN_STEP = 3\n')
  with pytest.raises(ValueError, match=r'^task.gin, line 9: there is no setting TRAIN_STEP'):
    finish(*paths, program='infer', files=['runs/infer.gin', 'task.gin'])


@pytest.mark.parametrize('text', ['import losses_of_mine\nLOSS = @losses_of_mine.cat_mine\n', ''])
def test_functions_of_ones_own_are_known_without_ceremony(folder, text):
  (folder / 'mine.gin').write_text(text)
  bindings, imported = ([], []) if text else (['LOSS=@losses_of_mine.cat_mine'], ['losses_of_mine'])
  train(*bindings, files=[RECIPE, 'mine.gin'], imported=imported)
  assert macro('LOSS') is sys.modules['losses_of_mine'].cat_mine


def test_a_loss_that_cannot_be_called_with_a_step_is_refused():
  with pytest.raises(ValueError, match=r"stepless .*unexpected keyword argument 'step'"):
    train('LOSS=stepless', imported=['losses_of_mine'])


def test_a_list_of_one_may_be_a_plain_name():
  files, paths = ['runs/evaluate.gin'], ('LARGE=l', 'EVAL_OUTPUT_DIR=o')
  finish(*paths, 'SMALL=runs/x', 'TASKS=mine', 'COSTS=2.0', program='evaluate', files=files)
  assert [macro(name) for name in ('SMALL', 'TASKS', 'COSTS')] == [('runs/x',), ('mine',), (2.0,)]


@pytest.mark.parametrize('binding', ['SPLITS=validation', 'SPLIT=validation'])
@pytest.mark.parametrize('program', ['evaluate', 'infer'])
def test_splits_are_called_alike_in_all_programs(program, binding):
  paths = {
    'evaluate': ("SMALL={'x': 'y'}", 'LARGE=l', 'EVAL_OUTPUT_DIR=o'),
    'infer': ('CHECKPOINT_PATH=a', 'INFER_OUTPUT_DIR=b', "TASK_FEATURE_LENGTHS={'inputs': 4}",
              'MIXTURE_OR_TASK_NAME=cmudict_g2p'),
  }  # fmt: skip
  finish(*paths[program], binding, program=program, files=[f'runs/{program}.gin'])
  assert macro('SPLITS') == {'evaluate': 'validation', 'infer': ('validation',)}[program]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('# a\nTRAIN_STEPS = {1: 2\n', 'mine.gin: the file ends inside a bracket'),
    ('# a\nTRAIN_STEPS = 3 4\n', 'mine.gin, line 2: Expected newline'),
    ('# a\n\nLOSS = @losses.cat_xnet\n', r'mine.gin, line 3: there is no losses.cat_xnet. Did'),
    ('# a\nfoo.bar = 3\n', 'mine.gin, line 2: no module foo is known'),
    ("include 'nowhere.gin'\n", 'there is no gin file nowhere.gin in'),
    ("include 'mine.gin'\n", 'include each other in a circle'),
  ],
)
def test_an_error_in_a_file_names_file_and_line(folder, text, message):
  (folder / 'mine.gin').write_text(text)
  with pytest.raises((ValueError, OSError), match=message):
    train(files=[RECIPE, 'mine.gin'])


def test_a_file_is_read_as_utf_8_whatever_the_locale(folder):
  (folder / 'mine.gin').write_bytes("MODEL_DIR = 'größe'\n".encode())
  (folder / 'latin.gin').write_bytes("MODEL_DIR = 'größe'\n".encode('latin-1'))
  code = (
    'import gin; from cascades.settings import reading\n'
    "reading.configure('cascades.evaluate', ['mine.gin'], [])\n"
    "print(ascii(gin.query_parameter('MODEL_DIR/macro.value')))\n"
    "reading.configure('cascades.evaluate', ['latin.gin'], [])\n"
  )
  ascii_locale = {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False,
    env={**os.environ, **ascii_locale, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )  # fmt: skip
  assert done.stdout.strip() == ascii('größe')
  assert 'latin.gin, line 1: a gin file is UTF-8' in done.stderr


def test_a_misspelt_file_is_told_the_nearest():
  with pytest.raises(FileNotFoundError, match=r'Did you mean recipes/demo_large\.gin'):
    train(files=['recipes/demo_larg.gin'])


def test_everything_that_is_required_is_listed_at_once():
  with pytest.raises(ValueError, match=r'^MODEL_DIR is required.*Also required: MODEL, TASK_FEAT'):
    finish(files=['runs/train.gin'])


@pytest.mark.parametrize(
  ('binding', 'hint'),
  [
    ('train.rules=x', r'Did you mean partitioning\.Devices\.rules\?'),
    ('train.large_checkpoint_path=x', 'Did you mean LARGE_CHECKPOINT_PATH'),
    ('train.large_dtype=x', 'Did you mean LARGE_DTYPE'),
    ('train.task_feature_lengths=x', 'Did you mean TASK_FEATURE_LENGTHS'),
    ('train.log_every=3', 'Did you mean LOG_EVERY'),
  ],
)
def test_an_argument_that_moved_is_told_where(binding, hint):
  with pytest.raises(ValueError, match=hint):
    train(binding)


@pytest.mark.parametrize(
  ('bindings', 'message'),
  [
    (['batch_size=10'], 'there is no setting batch_size. Did you mean BATCH_SIZE'),
    (["MODEL_DIR=''"], "MODEL_DIR is the text ''; expected a text that is not empty"),
    (['SEED=%SEED'], 'SEED = %SEED never becomes a value'),
    (['SEED=%STEPS', 'STEPS=%SEED'], '%SEED never becomes a value'),
    (['TASK=cmudict_g2p'], 'named by MIXTURE_OR_TASK_NAME=cmudict_g2p'),
  ],
)
def test_settings_that_give_nothing_are_refused(bindings, message):
  with pytest.raises(ValueError, match=message):
    train(*bindings)


def test_a_plan_without_files_asks_for_one():
  with pytest.raises(ValueError, match='no gin file is given: name one, as --gin_file=runs/train'):
    finish(program='plan', files=())


def test_a_large_model_is_a_file_with_one():
  with pytest.raises(ValueError, match=r'--large_model=runs/train.gin: the file sets no MODEL'):
    reading.model_of('cascades.plan', 'runs/train.gin')


@pytest.mark.parametrize('content', ['1/0', 'def f(:', 'raise SystemExit(3)'])
def test_a_module_that_does_not_run_is_named(folder, monkeypatch, content):
  monkeypatch.syspath_prepend(folder)
  name = f'broken_{len(content)}'
  (folder / f'{name}.py').write_text(content)
  with pytest.raises(ImportError, match=f'--import={name} cannot be imported: '):
    finish(imported=(name,))


@pytest.mark.parametrize('value', ['true', '“abc”', ''])
def test_what_is_no_value_in_a_file_is_said_in_a_sentence(folder, value):
  (folder / 'mine.gin').write_text(f'SAMPLE = {value}\n')
  with pytest.raises(ValueError, match=r'mine.gin, line 1: this is no value;'):
    finish(files=(RECIPE, 'mine.gin'))
