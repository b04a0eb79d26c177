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


@pytest.mark.parametrize(
  'split', ['', '.', '..', '../up', 'a/b', 'a\\b', 'a\nb', '\ud800', 'x' * 201]
)
def test_a_split_that_cannot_be_a_file_name_is_refused(split):
  with pytest.raises(ValueError, match='cannot name a split of task mine'):
    Task(name='mine', splits=('train', split), read=lambda _: [], fingerprint=str)


@pytest.mark.parametrize('field', ['splits', 'metrics'])
def test_a_text_in_the_place_of_a_tuple_is_refused(field):
  with pytest.raises(ValueError, match=f"{field} of task mine is the text 'ab'.*: \\('ab',\\)"):
    Task(**{'name': 'mine', 'splits': ('a',), 'read': str, 'fingerprint': str, field: 'ab'})


@pytest.mark.parametrize(
  ('row', 'reason'),
  [
    (Row('1', 'a', 'yes'), "row '1': answers is 'yes', expected a tuple of texts"),
    (Row('1', 'a', None), "row '1': answers is None"),
    (Row('1', 'a', ('yes', 2)), r"row '1': answers is \('yes', 2\)"),
    (Row('1', 'a', ('y',), 'yn'), "row '1': options is 'yn'"),
    (Row(1, 'a', ('y',)), 'is no Row with texts'),
    (('1', 'a', ('y',)), 'is no Row with texts'),
  ],
)
def test_a_row_of_other_types_is_named(row, reason):
  task = Task(name='mine', splits=('train',), read=lambda _: [row], fingerprint=str)
  with pytest.raises(ValueError, match=f'mine, split train.*{reason}'):
    list(task.rows('train'))
