"""Descriptions of functions and values: the same for the same, others for others."""

import functools
import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from cascades import losses
from cascades.training import described, train_step


def plain(value):
  return described.plain(value, bound={})


def test_functions_are_described_by_what_they_do():
  description = plain(losses.cat_dist)
  assert description['function'] == 'losses.cat_dist'
  assert description['token_mask']['function'] == 'masks.either_correct'
  assert description['w'] == 0.5
  assert plain(train_step.valid_tokens) == {'function': 'train_step.valid_tokens'}


OWN = """
import functools
import numpy as np

SCALE = 1.0
TABLE = {'b': [1.0]}

def helper(x):
  return x + 1

def decorated(weight):
  def wrap(function):
    @functools.wraps(function)
    def weighted(x):
      return weight * function(x) * TABLE['b'][0]
    return weighted
  return wrap

@decorated(2.0)
def loss(x):
  return SCALE * helper(x)

class Weighted:
  def __init__(self, weight):
    self.weight = weight

  def __call__(self, x):
    return self.weight * x

  def method(self, x):
    return self.weight * x

weighted = Weighted(3.0)
method = weighted.method
table = functools.partial(loss, np.array([4.0, 5.0]))
names = functools.partial(loss, {'a', 'b', 'c'})
"""


def own(folder, name, *change):
  """A function of a user's module, after a change of the module."""
  path = folder / 'my_losses.py'
  path.write_text(OWN.replace(*change) if change else OWN)
  spec = importlib.util.spec_from_file_location('my_losses', path)
  module = importlib.util.module_from_spec(spec)
  sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
  spec.loader.exec_module(module)
  sys.dont_write_bytecode = before
  return plain(getattr(module, name))


@pytest.mark.parametrize(
  ('name', 'before', 'now'),
  [
    ('loss', 'SCALE = 1.0', 'SCALE = 1.5'),
    ('loss', "'b': [1.0]", "'b': [2.0]"),
    ('loss', 'x + 1', 'x + 2'),
    ('loss', 'SCALE * helper(x)', 'SCALE - helper(x)'),
    ('loss', '@decorated(2.0)', '@decorated(2.5)'),
    ('weighted', 'Weighted(3.0)', 'Weighted(3.5)'),
    ('method', 'Weighted(3.0)', 'Weighted(3.5)'),
    ('table', '5.0]', '5.5]'),
    ('names', "'c'}", "'d'}"),
  ],
)
def test_other_functions_of_the_users_own_are_described_otherwise(tmp_path, name, before, now):
  assert before in OWN
  assert own(tmp_path, name) != own(tmp_path, name, before, now)


@pytest.mark.parametrize('name', ['loss', 'weighted', 'method', 'table', 'names'])
def test_comments_and_other_functions_change_no_description(tmp_path, name):
  text = own(tmp_path, name)
  assert text == own(tmp_path, name, 'x + 1', '(x +   1)  # one more')
  assert text == own(tmp_path, name, 'SCALE = 1.0', 'SCALE = 1.0\nOTHER = 7')


def test_sets_have_one_order_in_every_process():
  program = (
    'from cascades.training import described; print(described.plain({*"abcdefgh"}, bound={}))'
  )
  command = [sys.executable, '-c', program]
  text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert text.strip() == str(plain({*'abcdefgh'}))


def test_long_values_are_described_briefly_and_tell_apart():
  values = functools.partial(max, [*range(10_000)]), functools.partial(max, [*range(10_001)])
  first, second = map(plain, values)
  assert first != second
  assert len(str(first)) < 200
  assert plain(np.arange(5)) != plain(np.arange(6))
