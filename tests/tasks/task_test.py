import pytest

from cascades.tasks.task import Row, Task, both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import spelling, tiny_task


def test_the_first_answer_is_the_target():
  assert Row('a', 'r e a d', ('R EH1 D', 'R IY1 D')).targets == 'R EH1 D'


def test_a_row_without_answers_has_an_empty_target():
  assert Row('a', 'question', ()).targets == ''


def test_rows_come_in_the_same_order_every_time():
  task = tiny_task(spelling(5))
  assert list(task.rows('train')) == list(task.rows('train')) == spelling(5)


def test_an_unknown_split_is_named_with_the_known_ones():
  with pytest.raises(ValueError, match="no split 'test'; its splits are train, validation"):
    tiny_task([]).rows('test')


@pytest.mark.parametrize('name', ['', 'a/b', '../up', '.hidden', 'two words', 'a\nb'])
def test_a_name_that_cannot_be_a_file_name_is_refused(name):
  with pytest.raises(ValueError, match='cannot name a task'):
    tiny_task([], name=name)


@pytest.mark.parametrize('name', ['cmudict_g2p', 'sst2.v1', 'wmt22:en-ja', 'Задача'])
def test_usual_names_are_accepted(name):
  assert tiny_task([], name=name).name == name


def test_defining_a_task_reads_nothing():
  def explode(_split):
    raise AssertionError('read')

  task = Task(name='lazy', splits=('train',), read=explode, fingerprint=explode)
  assert task.vocabulary().size == 259


def test_both_uses_one_vocabulary_twice():
  vocabulary = vocabularies.bytes_vocabulary()
  assert both(vocabulary) == (vocabulary, vocabulary)
