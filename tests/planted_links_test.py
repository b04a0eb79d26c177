"""Folders of strangers: links in place of every file that a program writes lead nowhere."""

import os
import pathlib
import shutil

import pytest

from cascades import evaluate
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.runtime import locking, stopping
from tests import tiny


def train(folder):
  # Every update is refused, so that skipped.jsonl is written too.
  settings = tiny.settings(folder, model_dir=str(folder / 'out'), train_steps=2)
  settings |= {'accept': lambda metrics: metrics['loss'] < 0, 'on_bad_step': stopping.go_on}
  tiny.train(**settings, provenance=lambda: {'config': 'X = 1'})


def infer(folder):
  tiny.infer(
    checkpoint_path=str(folder / 'run'), infer_output_dir=str(folder / 'out'),
    task=tiny.task(folder), task_feature_lengths=tiny.LENGTHS, batch_size=16, shard_rows=16,
    mesh=tiny.one_device, records_dir=str(folder / 'records'),
  )  # fmt: skip


def cache_teacher(folder):
  tiny.cache_teacher(
    checkpoint_path=str(folder / 'run'), directory=str(folder / 'out'), task=tiny.task(folder),
    task_feature_lengths=tiny.LENGTHS, batch_size=16, mesh=tiny.one_device, splits=['test'],
    records_dir=str(folder / 'records'),
  )  # fmt: skip


def report(folder):
  tables = Tables({'small': str(folder / 'answers')}, str(folder / 'answers'))
  evaluate.evaluate(tables, str(folder / 'out'), settings=Settings(resamples=20))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A run and its answers, to start from."""
  folder = tmp_path_factory.mktemp('made')
  tiny.train(**tiny.settings(folder, train_steps=1))
  infer(folder)
  (folder / 'out').rename(folder / 'answers')
  return folder


def written(out):
  """Files that a program writes, but for those of Orbax and TensorBoard, which name them anew."""
  paths = [path.relative_to(out) for path in sorted(out.rglob('*')) if path.is_file()]
  return [p for p in paths if not p.parts[0].startswith('checkpoint_') and p.parts[0] != 'train']


def refused(program, folder):
  """The message of a refusal; None if the program came to its end."""
  try:
    program(folder)
  except (OSError, ValueError) as error:
    return str(error)
  return None


@pytest.mark.parametrize(
  'program',
  [
    pytest.param(train, marks=pytest.mark.slow),
    infer,
    cache_teacher,
    pytest.param(report, marks=pytest.mark.slow),
  ],
)
def test_no_program_follows_a_link_in_place_of_a_file_that_it_writes(made, tmp_path, program):
  first, second = tmp_path / 'first', tmp_path / 'second'
  for folder in (first, second):
    shutil.copytree(made, folder)
  program(first)
  names = written(first / 'out')
  assert len(names) > 3
  if program is train:
    names += [pathlib.Path(locking.LOCK)]
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  for name in names:
    (second / 'out' / name).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(precious, second / 'out' / name)
  for _ in names:  # a link is refused by the name of the file, or replaced by it
    refusal = refused(program, second)
    if refusal is None:
      break
    links = [second / 'out' / name for name in names if name.name in refusal]
    next(link for link in links if link.is_symlink()).unlink()
  assert refused(program, second) is None
  assert precious.read_text() == 'precious'
