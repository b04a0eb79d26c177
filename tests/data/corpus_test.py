"""The rows of a program: a task where one is needed, none where none is."""

import pytest

from cascades.data.corpus import Data
from tests import tiny


def test_rows_without_a_task_are_refused_with_the_macros_that_name_one():
  with pytest.raises(ValueError, match='MIXTURE_OR_TASK_NAME, or give a TASK'):
    Data(lengths=tiny.LENGTHS, batch_size=8).corpus(tiny.VOCABULARY, 'encoder_decoder')


def test_another_task_replaces_the_rows_and_keeps_the_rest(tmp_path):
  data = Data(task=None, lengths=tiny.LENGTHS, batch_size=8, records_dir=str(tmp_path / 'records'))
  corpus = data.corpus(tiny.VOCABULARY, 'encoder_decoder', task=tiny.task(tmp_path))
  assert [task.name for task in corpus.tasks] == ['backwards']
  assert (corpus.lengths, corpus.directory) == (tiny.LENGTHS, str(tmp_path / 'records'))


@pytest.mark.parametrize(
  ('change', 'name'),
  [
    ({'batch_size': 0}, 'BATCH_SIZE=0'),
    ({'batch_size': -4}, 'BATCH_SIZE=-4'),
    ({'pack_length': 0}, 'PACK_LENGTH=0'),
    ({'lengths': {'inputs': -1}}, r"TASK_FEATURE_LENGTHS\['inputs'\]=-1"),
  ],
)
def test_sizes_that_make_no_sense_are_refused_by_name(change, name):
  with pytest.raises(ValueError, match=f'{name} must be a whole number at least 1'):
    Data(**{'lengths': {'inputs': 4}, 'batch_size': 2, **change})
