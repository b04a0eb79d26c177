"""Code and commands of the README work as shown."""

import importlib
import json
import pathlib
import re
import subprocess
import sys

import gin
import jax
import numpy as np
import pytest
import tokenizers

from cascades import cli, curves, deferral
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
  (shown / 'my.gin').write_text(
    'from __gin__ import dynamic_registration\nimport my_losses\nLOSS = @my_losses.cat_smoothed\n'
  )
  cli.configure('cascades.train', ['recipes/demo_small.gin', 'my.gin'], [])
  loss = gin.query_parameter('LOSS/macro.value').configurable.wrapped
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


@pytest.mark.slow
def test_the_four_commands(shown):
  """Unchanged and in another folder, except for the number of steps."""
  tiny.write_rows(shown, rows=64)
  (task,) = (block for block in blocks('') if 'local_jsonl' in block)
  (shown / 'task.gin').write_text(task)
  (commands,) = (block for block in blocks('sh') if 'cascades.evaluate' in block)
  commands = commands.replace('python -m', f'{sys.executable} -m').replace(
    'recipes/local_train.gin --gin', 'recipes/local_train.gin --gin.TRAIN_STEPS=101 --gin'
  )
  subprocess.run(['bash', '-euo', 'pipefail', '-c', commands], check=True, cwd=shown)
  assert (shown / 'runs' / 'mine' / 'report' / 'report.html').exists()


@pytest.mark.slow
def test_the_commands_for_two_pretrained_checkpoints(shown):
  """Unchanged except for steps and batch size, on tiny random checkpoints."""
  tiny.write_rows(shown, rows=64)
  (task,) = (block for block in blocks('') if 'local_jsonl' in block)
  (shown / 'task.gin').write_text(task)
  symbols = ['<pad>', '</s>', '<unk>', *'abcdefghABCDEFGH'][: twins.VOCAB]
  model = tokenizers.models.WordLevel({name: i for i, name in enumerate(symbols)}, '<unk>')
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  for name in ('flan-t5-base', 'flan-t5-xxl'):
    folder = twin_folders.twin(shown / 'downloads' / name, 't5_1_1')
    tokenizer.save(str(folder / 'tokenizer.json'))
    settings = {'tokenizer_class': 'T5Tokenizer', 'eos_token': '</s>', 'pad_token': '<pad>'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  (commands,) = (block for block in blocks('sh') if 'cascades.convert' in block)
  commands = commands.replace('python -m', f'{sys.executable} -m')
  commands = commands.replace('TRAIN_STEPS=2000', 'TRAIN_STEPS=2').replace('SIZE=64', 'SIZE=8')
  subprocess.run(['bash', '-euo', 'pipefail', '-c', commands], check=True, cwd=shown)
  exported = {file.name for file in (shown / 'exported' / 'small').iterdir()}
  assert {'model.safetensors', 'config.json', 'tokenizer.json'} <= exported
