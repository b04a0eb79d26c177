import subprocess
import sys

import pytest

from cascades import metrics
from cascades.tasks import catalog


def test_our_tasks_are_listed_and_found_by_name():
  assert catalog.names() == ('cmudict_g2p', 'superglue_boolq', 'superglue_rte')
  for name in catalog.names():
    assert catalog.get(name).name == name


def test_every_task_has_training_validation_and_known_metrics():
  for name in catalog.names():
    task = catalog.get(name)
    assert {'train', 'validation'} <= set(task.splits)
    assert task.description
    for metric in task.metrics:
      assert metrics.by_name(metric).name == metric


def test_places_are_handed_to_the_task(hand_written):
  task = catalog.get('superglue_rte', data_dir=str(hand_written))
  assert next(task.rows('train')).id == 'rte/train/0'


@pytest.mark.parametrize(
  ('wrong', 'right'), [('cmudict', 'cmudict_g2p'), ('superglue_bolq', 'superglue_boolq')]
)
def test_an_unknown_name_suggests_the_nearest(wrong, right):
  with pytest.raises(ValueError, match=f"no task '{wrong}'. Did you mean {right}?"):
    catalog.get(wrong)


def test_a_name_like_no_other_lists_what_there_is():
  with pytest.raises(ValueError, match=r"no task 'zzz'\. Ours are cmudict_g2p, superglue_boolq"):
    catalog.get('zzz')


def test_a_wrong_name_does_not_import_seqio():
  code = """
import sys
from cascades.tasks import catalog
try: catalog.get('mine')
except ValueError: pass
print({'seqio', 'tensorflow', 'jax', 'grain'} & set(sys.modules))
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert out.stdout.strip() == 'set()'
