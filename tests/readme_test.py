"""Code and commands of the README work as shown."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest
import tokenizers

from cascades import curves, deferral
from cascades.data import materialize
from cascades.tasks.task import both
from cascades.tokenizers import vocabularies
from tests import tiny
from tests.golden import twins
from tests.interop import twin_folders

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language):
  fenced = re.findall(r'^```(\w*)\n(.*?)^```$', README, re.MULTILINE | re.DOTALL)
  return [text for name, text in fenced if name == language]


@pytest.fixture
def shown(tmp_path, monkeypatch):
  """The README's modules as files that can be imported."""
  names = []
  for block in blocks('python'):
    name = re.match(r'# (\w+)\.py', block)[1]
    (tmp_path / f'{name}.py').write_text(block)
    names.append(name)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  gin.clear_config()
  yield tmp_path
  gin.clear_config()
  for name in names:
    sys.modules.pop(name, None)


def test_every_file_that_it_links_to_exists():
  links = re.findall(r'\]\(([^)]+)\)', README)
  local = [link for link in links if not link.startswith('http')]
  assert local
  assert all((ROOT / link).exists() for link in local)


def test_every_extension_has_at_most_ten_lines():
  assert len(blocks('python')) == 3
  assert all(len(re.findall(r'^.+$', block, re.MULTILINE)) <= 10 for block in blocks('python'))


def test_a_custom_loss(shown):
  del shown
  loss = importlib.import_module('my_losses').cat_smoothed
  logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
  ids = logits.argmax(-1)
  total, count = loss(logits, logits, ids, np.ones(6, np.float32))
  logprobs = np.asarray(jax.nn.log_softmax(logits))
  expected = -0.9 * logprobs[np.arange(6), ids].sum() - 0.1 * logprobs.mean(-1).sum()
  np.testing.assert_allclose((total, count), (expected, 6), rtol=1e-5)


def test_a_custom_rule(shown):
  del shown
  rule = importlib.import_module('my_rules').first_token
  logprobs = np.array([[-1.0, -9.0], [-3.0, 0.0], [0.0, 0.0]])
  mask = np.array([[1, 1], [1, 1], [0, 0]], bool)
  np.testing.assert_array_equal(rule(logprobs, mask), [1.0, 3.0, deferral.NO_TOKENS])
  order, _ = curves.reachable(rule(logprobs, mask))
  np.testing.assert_array_equal(order, [2, 1, 0])


def test_a_custom_task(shown):
  task = importlib.import_module('my_tasks').doubling()
  records = materialize.materialize(task, 'test', both(vocabularies.bytes_vocabulary()), str(shown))
  assert len(records) == 100
  assert next(iter(records.read([3]))).row.answers == ('1806',)


def arguments(module):
  """What the README tells a reader to type to use one of its modules."""
  (text,) = re.findall(rf'`(--import {module} [^`]+)`', README)
  return text


def test_a_loss_and_a_task_train_in_an_empty_folder_with_what_a_reader_types(shown):
  sizes = '--gin.TRAIN_STEPS=1 --gin.WARMUP_STEPS=0 --gin.BATCH_SIZE=4 --gin.VALIDATION_ROWS=4'
  lengths = """--gin.TASK_FEATURE_LENGTHS="{'inputs': 16, 'targets': 8}" """
  train = (
    'python -m cascades.train --gin_file=recipes/local_train.gin --gin_file=models/t5_nano.gin '
  )
  train += f'{arguments("my_tasks")} {sizes} {lengths}'
  small = f'{train} {arguments("my_losses")} --gin.LARGE_CHECKPOINT_PATH=large --gin.MODEL_DIR=mine'
  run_there(f'{train} --gin.MODEL_DIR=large && {small}', shown)
  configuration = (shown / 'mine' / 'config.gin').read_text()
  assert 'my_losses.cat_smoothed' in configuration
  assert 'my_tasks.doubling' in configuration


def test_a_rule_is_evaluated_in_an_empty_folder_with_what_a_reader_types(shown):
  tables = ROOT / 'tests' / 'golden' / 'before_move' / 'work' / 'predictions'
  run_there(
    f'python -m cascades.evaluate --gin_file=runs/evaluate.gin {arguments("my_rules")} '
    f"""--gin.SMALL="{{'small': '{tables / 'small'}'}}" --gin.LARGE={tables / 'large'} """
    '--gin.RESAMPLES=20 --gin.EVAL_OUTPUT_DIR=report',
    shown,
  )
  assert 'first token' in (shown / 'report' / 'summary.csv').read_text()


def run_there(commands, folder):
  """Shell commands in a folder, on one device."""
  flags = os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  one_device = {**os.environ, 'XLA_FLAGS': flags}
  words = ['bash', '-euo', 'pipefail', '-c', commands.replace('python -m', f'{sys.executable} -m')]
  subprocess.run(words, check=True, cwd=folder, env=one_device)


def command_block(word):
  (text,) = (block for block in blocks('sh') if word in block)
  return text


def run_shown(commands, folder, *replacements):
  """Commands as shown, in a folder with rows and the README's task.gin, with smaller sizes."""
  tiny.write_rows(folder, rows=64)
  (task,) = (block for block in blocks('') if 'local_jsonl' in block)
  (folder / 'task.gin').write_text(task)
  for old, new in replacements:
    assert old in commands
    commands = commands.replace(old, new)
  run_there(commands, folder)


def pretrained(folder, name, **settings):
  """A tiny random model with a tokenizer, as a Hugging Face folder."""
  symbols = ['<pad>', '</s>', '<unk>', *'abcdefghABCDEFGH'][: twins.VOCAB]
  model = tokenizers.models.WordLevel({name: i for i, name in enumerate(symbols)}, '<unk>')
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  twin_folders.twin(folder, name)
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings |= {'eos_token': '</s>', 'pad_token': '<pad>'}
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))


@pytest.mark.slow
def test_the_way_from_pretrained_weights_to_a_report(shown):
  """Unchanged but for the number of steps and layers, on a tiny random model."""
  pretrained(shown / 'downloaded', 'gemma3')
  _, mark, commands = command_block('cascades.prune').partition('# convert')
  run_shown(
    f'SOURCE=downloaded\n{mark}{commands}',
    shown,
    ('HEAD=4 --gin.TAIL=4', 'HEAD=1 --gin.TAIL=1'),
    (
      '--gin_file=task.gin \\\n  --gin.INITIAL',
      '--gin_file=task.gin --gin.TRAIN_STEPS=21 --gin.INITIAL',
    ),
  )
  assert (shown / 'runs' / 'mine' / 'report' / 'report.html').exists()


@pytest.mark.slow
def test_the_way_from_scratch(shown):
  """Unchanged but for the number of steps and pieces."""
  run_shown(
    command_block('models/t5_mini.gin'),
    shown,
    ('--size=4000', '--size=280'),
    ('recipes/local_train.gin', 'recipes/local_train.gin --gin.TRAIN_STEPS=101'),
  )
  assert (shown / 'runs' / 'scratch' / 'small' / 'checkpoint_101').exists()


@pytest.mark.slow
def test_the_commands_for_two_pretrained_checkpoints(shown):
  """Unchanged except for steps and batch size, on tiny random checkpoints."""
  for name in ('flan-t5-base', 'flan-t5-xxl'):
    pretrained(shown / 'downloads' / name, 't5_1_1', tokenizer_class='T5Tokenizer')
  sizes = ('TRAIN_STEPS=2000', 'TRAIN_STEPS=2'), ('SIZE=64', 'SIZE=8')
  run_shown(command_block('flan-t5-xxl'), shown, *sizes)
  exported = {file.name for file in (shown / 'exported' / 'small').iterdir()}
  assert {'model.safetensors', 'config.json', 'tokenizer.json'} <= exported
