import collections
import subprocess
import sys

import pytest

from cascades import metrics
from cascades.tasks import catalog, sources


@pytest.fixture(scope='module')
def ours():
  return {name: catalog.get(name, sample=True) for name in catalog.names()}


def test_our_tasks_are_found_by_name_and_as_many_as_published(ours):
  assert all(task.name == name for name, task in ours.items())
  suites = collections.Counter(task.suite for task in ours.values())
  assert suites == {
    '': 1, 'superglue': 9, 'wmt22': 6, 'flan2021': 69, 'c4': 3, 'streams': 4,
  }  # fmt: skip


def test_mixtures_are_found_by_name():
  assert {name: len(catalog.get(name).tasks) for name in catalog.mixtures()} == {
    'superglue': 8, 'wmt22': 6, 'flan2021': 69, 'flan2021_accuracy': 39,
    'flan2021_accuracy_plotted': 32, 'flan2021_bleu': 8,
  }  # fmt: skip


def test_a_mixture_of_ones_own_has_its_rates():
  mixture = catalog.mixture({'flan_rte': 7, 'flan_cb': None, 'superglue_cb': None})
  assert [task.rate for task in mixture.tasks] == [7, 200, None]
  assert mixture.splits == ('train', 'validation', 'test')
  with pytest.raises(ValueError, match=r"There is no task 'flan_rt'\. Did you mean flan_rte"):
    catalog.mixture({'flan_rt': 1})


def test_every_task_has_hand_written_rows_in_every_split(ours):
  """At least seven examples of each split's data set, of which a task may leave out a few."""
  for name, task in ours.items():
    if not name.startswith('cmudict'):
      slices = getattr(task.origin, 'slices', {})
      for split in task.splits:
        published, *_ = sources.parse_slice(slices.get(split, split))
        assert len(list(task.origin.examples(published))) >= 7, (name, split)
        rows = list(task.rows(split))
        assert len(rows) >= 6, (name, split)
        assert len({row.id for row in rows}) == len(rows)


def test_every_task_has_a_labeled_hand_written_row_to_train_on(ours):
  for name, task in ours.items():
    if not name.startswith('cmudict'):
      rows = list(task.rows('train'))
      assert len(rows) >= 5, name
      assert all(row.answers for row in rows), name


def test_every_hand_written_file_has_eight_rows_or_more():
  files = list(sources.SAMPLES.rglob('*.*'))
  assert len(files) > 70
  for file in files:
    assert 8 <= len(file.read_text().strip().split('\n')) <= 20, file


def test_every_task_has_training_rows_a_description_and_known_metrics(ours):
  for task in ours.values():
    assert 'train' in task.splits
    assert task.description
    assert task.metrics
    for metric in task.metrics:
      assert metrics.by_name(metric).name == metric


def test_places_are_handed_to_the_task(hand_written):
  task = catalog.get('superglue_rte', data_dir=str(hand_written))
  assert next(task.rows('train')).id == 'rte/train/0'


@pytest.mark.parametrize(
  ('wrong', 'right'), [('cmudict', 'cmudict_g2p'), ('superglue_bolq', 'superglue_boolq')]
)
def test_an_unknown_name_suggests_the_nearest(wrong, right):
  with pytest.raises(ValueError, match=f"no task '{wrong}'. Did you mean {right}"):
    catalog.get(wrong)


def test_a_name_like_no_other_tells_how_to_list_what_there_is():
  with pytest.raises(
    ValueError, match=r"no task 'zzz'\. `python -m cascades\.browse_tasks list` shows"
  ):
    catalog.get('zzz')


def test_a_wrong_name_does_not_import_seqio():
  code = """
import sys
from cascades.tasks import catalog, sources
try: catalog.get('mine')
except ValueError: pass
print({'seqio', 'tensorflow', 'jax', 'grain'} & set(sys.modules))
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == 'set()'
