"""Each program as the real command, in the home of someone who has never run one.

JAX reads its environment when it is imported, so functions that are tested here say nothing about
what a command does: whether it compiles anew at each start, and what it prints that nobody wants.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]
SET_BY_TESTS = ('JAX_', 'XLA_', 'NPROC', 'TF_', 'TPU_', 'PYTEST_')
DATA = ('--gin.TASK=@local.local_jsonl()', '--gin.local.local_jsonl.name=mine')
LENGTHS = "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 8}"
MODEL = (
  '--gin.MODEL=@t5.Config()', '--gin.t5.Config.vocab_size=260', '--gin.t5.Config.emb_dim=8',
  '--gin.t5.Config.num_heads=1', '--gin.t5.Config.head_dim=8', '--gin.t5.Config.mlp_dim=8',
  '--gin.t5.Config.num_encoder_layers=2', '--gin.t5.Config.num_decoder_layers=2',
)  # fmt: skip
CHECKPOINT = '--gin.CHECKPOINT_PATH=runs/large'


class Newcomer:
  """A new home, and real commands in it."""

  def __init__(self, home: pathlib.Path):
    self.home = home
    self.cache = home / '.cache' / 'cascades' / 'jax'
    rows = tiny.write_rows(home, rows=16)
    self.data = (*DATA, f'--gin.local.local_jsonl.splits={rows}', LENGTHS)

  def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
      name: value for name, value in os.environ.items() if not name.startswith(SET_BY_TESTS)
    }
    return subprocess.run(
      [sys.executable, '-m', f'cascades.{program}', *arguments],
      capture_output=True,
      text=True,
      cwd=self.home,
      env=environment | {'HOME': str(self.home), 'PYTHONPATH': str(ROOT)},
      check=False,
    )

  def train(self, run: str) -> subprocess.CompletedProcess:
    return self.run(
      'train', '--gin_file=runs/train.gin', *self.data, *MODEL, '--gin.TRAIN_STEPS=1',
      '--gin.BATCH_SIZE=8', '--gin.LEARNING_RATE=1e-3', f'--gin.MODEL_DIR={run}',
    )  # fmt: skip

  def compiled(self) -> set[str]:
    """Names of the programs in the compilation cache."""
    return {path.name for path in self.cache.glob('*-cache')}


@pytest.fixture(scope='module')
def newcomer(tmp_path_factory):
  return Newcomer(tmp_path_factory.mktemp('home'))


@pytest.fixture(scope='module')
def first(newcomer):
  """The first command ever run in the home."""
  return newcomer.train('runs/large')


def quiet(result):
  """Whether a command has ended well, with nothing on stderr."""
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stderr == ''
  return True


def test_training_greets_a_newcomer_with_nothing_on_stderr(first):
  assert quiet(first)
  assert 'step 1/1' in first.stdout


def test_a_first_start_fills_the_compilation_cache_and_a_second_one_adds_nothing(newcomer, first):
  assert quiet(first)
  compiled = newcomer.compiled()
  assert {name.partition('-')[0] for name in compiled} >= {'jit_init', 'jit_train_step'}
  assert quiet(newcomer.train('runs/second'))
  assert newcomer.compiled() == compiled


@pytest.fixture(scope='module')
def answered(newcomer, first):
  """The programs that were compiled before, between and after two inferences."""
  assert quiet(first)
  compiled = [newcomer.compiled()]
  for name in ('large', 'small'):
    output = f'--gin.INFER_OUTPUT_DIR=runs/{name}/predictions'
    assert quiet(
      newcomer.run('infer', '--gin_file=runs/infer.gin', *newcomer.data, CHECKPOINT, output)
    )
    compiled.append(newcomer.compiled())
  return compiled


@pytest.mark.slow
def test_answers_come_from_the_program_that_the_first_command_compiled(answered):
  before, between, after = answered
  assert before != between == after


@pytest.mark.slow
@pytest.mark.usefixtures('answered')
def test_every_other_program_starts_quietly(newcomer):
  commands = (
    ('evaluate', "--gin.SMALL={'small': 'runs/small/predictions'}",
     '--gin.LARGE=runs/large/predictions', '--gin.EVAL_OUTPUT_DIR=runs/report'),
    ('cache_teacher', *newcomer.data, CHECKPOINT, '--gin.TEACHER_CACHE=runs/cache'),
    ('prune', CHECKPOINT, '--gin.MODEL_DIR=runs/pruned', '--gin.HEAD=1'),
    ('export', CHECKPOINT, '--gin.OUTPUT_DIR=runs/exported'),
    ('convert', '--gin.SOURCE=runs/exported', '--gin.MODEL_DIR=runs/converted',
     '--gin.VOCABULARY=@vocabularies.bytes_vocabulary()'),
  )  # fmt: skip
  for program, *arguments in commands:
    assert quiet(newcomer.run(program, f'--gin_file=runs/{program}.gin', *arguments))
  assert quiet(newcomer.run('predictions', 'check', 'runs/small/predictions/test'))


@pytest.mark.slow
def test_planning_starts_quietly(newcomer):
  recipe = ('--gin_file=recipes/demo_small.gin', '--topology=v5e:2x2')
  result = newcomer.run('plan', *recipe)
  assert quiet(result)
  assert 'verdict' in result.stdout


def test_a_flag_is_refused_by_programs_that_do_not_honor_it(newcomer):
  for program, flag in (
    ('train', '--topology=v5e:4x4'),
    ('evaluate', '--multihost'),
  ):
    result = newcomer.run(program, flag)
    assert result.returncode == 1
    assert 'Unknown command line flag' in result.stderr
