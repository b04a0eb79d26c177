"""Caches that a run accepts and rejects, with invented answers."""

import functools
import itertools

import numpy as np
import pytest

from cascades import losses
from cascades.data.corpus import Corpus
from cascades.tasks.task import Mixture, Row, Task
from cascades.tokenizers import vocabularies
from cascades.training import cached_teacher, teacher_cache
from cascades.training.answer_format import AnswerFormat
from cascades.training.setup import LargeModel
from tests import tiny

ROWS = [Row(f'r{n}', 'a b', ('A ' * (n % 4 + 1),)) for n in range(7)]


def some_task(name='mine', *, rows=ROWS, **options):
  read = lambda split: rows
  return Task(
    name, ('train', 'validation'), read, lambda split: 'v1',
    vocabulary=lambda: tiny.VOCABULARY, **options,
  )  # fmt: skip


def corpus_of(directory, task=None, **changes):
  settings = {
    'task': task or some_task(), 'vocabulary': tiny.VOCABULARY, 'lengths': tiny.LENGTHS,
    'architecture': 'encoder_decoder', 'directory': str(directory / 'records'),
  }  # fmt: skip
  return Corpus(**settings | changes)


def write(corpus, directory, *, splits=('train',), form=None, ids='r{}', **changes):
  """A cache of this corpus, whose answers number the tokens of each task from 0."""
  form = form or AnswerFormat()
  for task in corpus.tasks:
    for split in splits:
      lengths = corpus.target_lengths(corpus.open(split, tasks=[task]))
      location = teacher_cache.location(directory, task.name, split)
      producer = {'checkpoint_identity': 'c', 'vocab_size': 24, **form._asdict(), 'shards': 1}
      identity = producer | corpus.identity(task, split) | changes
      teacher_cache.begin(location, identity, {}, write=True)
      vocabularies.save(corpus.vocabulary, location)
      records = np.zeros(lengths.sum(), form.record)
      records['ids'] = np.arange(len(records)).reshape(-1, *[1] * bool(form.top_k))
      names = [ids.format(row) for row in range(len(lengths))]
      teacher_cache.write_shard(location, 0, names, lengths, records)
  return str(directory)


def fit(directory, corpus, *, loss=losses.cat_xent, vocab_size=24, checkpoint=None):
  return cached_teacher.load(
    directory, corpus, loss=loss, vocab_size=vocab_size, checkpoint=checkpoint
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'lengths': {'inputs': 8, 'targets': 9}}, "'targets': 8} there and .*'targets': 9} here"),
    ({'vocabulary': vocabularies.bytes_vocabulary()}, 'vocabulary is .* there and .* here'),
    ({'task': some_task(version='2')}, "definition is '1' there and '2' here"),
    ({'architecture': 'decoder_only'}, "architecture is 'encoder_decoder' there"),
    ({'task': some_task('another')}, 'another/train holds no teacher cache'),
  ],
  ids=['lengths', 'vocabulary', 'version', 'architecture', 'task'],
)
def test_a_cache_of_something_else_is_refused_by_the_name_of_what_differs(
  tmp_path, changes, message
):
  directory = write(corpus_of(tmp_path), tmp_path / 'cache')
  fit(directory, corpus_of(tmp_path))
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    fit(directory, corpus_of(tmp_path, **changes))


def test_a_cache_of_more_entries_than_the_small_model_has_is_refused(tmp_path):
  directory = write(corpus_of(tmp_path), tmp_path / 'cache')
  with pytest.raises(ValueError, match=r'chooses among 24 vocabulary entries, .* VOCAB_SIZE=23'):
    fit(directory, corpus_of(tmp_path), vocab_size=23)
  assert fit(directory, corpus_of(tmp_path), vocab_size=25).vocab_size == 24


@pytest.mark.parametrize('loss', [losses.dist, functools.partial(losses.cat_dist, w=0.1)])
def test_first_choices_alone_are_refused_by_losses_that_distil(tmp_path, loss):
  first = write(corpus_of(tmp_path), tmp_path / 'first')
  few = write(corpus_of(tmp_path), tmp_path / 'few', form=AnswerFormat(2))
  fit(few, corpus_of(tmp_path), loss=loss)
  with pytest.raises(
    ValueError,
    match=r'first choices only .* `python -m cascades.cache_teacher` and TOP_K=16',
  ):
    fit(first, corpus_of(tmp_path), loss=loss)


def test_the_tasks_of_a_mixture_have_a_cache_each_of_one_kind(tmp_path):
  other = some_task('other', rows=[Row('r0', 'b', ('A B',))])
  corpus = corpus_of(tmp_path, Mixture('two', (some_task(), other)))
  directory = write(corpus, tmp_path / 'cache')
  cache = fit(directory, corpus)
  values = cache.answers(corpus.open('train'))
  # Rows 0 and 1 have 2 and 3 tokens, the end of sequence included; row 7 is the other task's first.
  assert values([1, 7]).ids.tolist() == [2, 3, 4, 0, 1, 2]
  write(corpus_of(tmp_path, other), tmp_path / 'kinds', form=AnswerFormat(2))
  write(corpus_of(tmp_path), tmp_path / 'kinds')
  with pytest.raises(ValueError, match='top_k is 2 there and None here'):
    fit(str(tmp_path / 'kinds'), corpus)


def test_other_rows_under_the_same_names_are_refused(tmp_path):
  corpus = corpus_of(tmp_path)
  directory = write(corpus, tmp_path / 'cache', ids='s{}')
  with pytest.raises(ValueError, match="mine, split train has: row 0 is 's0' there and 'r0' here"):
    fit(directory, corpus).answers(corpus.open('train'))
  fewer = corpus_of(tmp_path / 'fewer', some_task(rows=ROWS[:5]))
  directory = write(corpus, tmp_path / 'more')
  with pytest.raises(ValueError, match='7 of 23 target tokens there and 5 of 16 here'):
    fit(directory, fewer).answers(fewer.open('train'))


LAYOUTS = [('encoder_decoder', None), ('decoder_only', None), ('decoder_only', 20)]


def examples(batch):
  """The target tokens of every example of a batch, and the answers that stand there."""
  segments = np.ones_like(batch.targets) if batch.segments is None else batch.segments
  for row, segment in itertools.product(range(len(segments)), range(1, segments.max() + 1)):
    here = (segments[row] == segment) & (batch.weights[row] > 0)
    if here.any():
      yield batch.targets[row][here].tolist(), batch.teachers[0].ids[row][here].tolist()


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(('architecture', 'pack'), LAYOUTS)
def test_answers_stand_where_their_targets_stand_in_every_epoch(tmp_path, architecture, pack, seed):
  corpus = corpus_of(tmp_path, architecture=architecture)
  cache = fit(write(corpus, tmp_path / 'cache'), corpus)
  split = corpus.open('train')
  starts = np.cumsum([0, *corpus.target_lengths(split)])
  # Which example it is, the answers tell: of all tokens there are, they are the numbers.
  expected = {
    (*tokens, 1, begin): list(range(begin, end))
    for (_, tokens), (begin, end) in zip(
      split.tokens(range(7)), itertools.pairwise(starts.tolist()), strict=True
    )
  }
  batches = corpus.training(0, batch_size=4, seed=seed, pack=pack, teacher=cache.answers)
  seen = set()
  for batch in itertools.islice(batches, 5):
    for targets, ids in examples(batch):
      assert ids == expected[*targets, ids[0]]
      seen.add(ids[0])
    assert not batch.teachers[0].ids[batch.weights == 0].any()
  assert seen == set(starts[:-1].tolist())


def test_training_takes_the_vocabulary_of_its_cache_and_refuses_before_it_claims_a_directory(
  tmp_path,
):
  symbols = vocabularies.symbols([*'ab', 'A', 'B'])
  task = some_task()
  directory = write(corpus_of(tmp_path, task, vocabulary=symbols), tmp_path / 'cache')
  settings = tiny.settings(
    tmp_path, task=task, vocabulary=None, teacher_cache=directory, loss=losses.dist
  )
  assert cached_teacher.vocabulary(directory, task) == symbols != task.vocabulary()
  with pytest.raises(ValueError, match='first choices only'):
    tiny.train(**settings)
  assert not (tmp_path / 'run' / 'model.json').exists()


def fit_all(directories, corpus, *, loss=losses.cat_xent):
  return cached_teacher.load_all(directories, corpus, loss=loss, vocab_size=24)


def test_several_caches_give_a_teacher_each_in_their_order(tmp_path):
  corpus = corpus_of(tmp_path)
  first = write(corpus, tmp_path / 'middle')
  second = write(corpus, tmp_path / 'large', form=AnswerFormat(2))
  caches = fit_all([first, second], corpus)
  middle, large = caches.answers(corpus.open('train'))([1])
  assert middle.ids.tolist() == [2, 3, 4]
  assert large.ids.tolist() == [[2, 2], [3, 3], [4, 4]]
  batch = next(corpus.training(0, batch_size=4, seed=0, teacher=caches.answers))
  one, other = batch.teachers
  assert (one.ids[..., None] == other.ids).all()
  assert caches.has_split(corpus.tasks, 'train')
  write(corpus, tmp_path / 'middle', splits=['validation'])
  assert not caches.has_split(corpus.tasks, 'validation')


def test_caches_that_do_not_fit_each_other_or_their_loss_are_refused(tmp_path):
  corpus = corpus_of(tmp_path)
  few, many = (
    write(corpus, tmp_path / str(size), form=AnswerFormat(2), vocab_size=size) for size in (23, 24)
  )
  with pytest.raises(ValueError, match=r'\(23 in .*, 24 in .*\): make all with VOCAB_SIZE=23'):
    fit_all([few, many], corpus)
  compared = [
    write(corpus, tmp_path / name, form=AnswerFormat(2, reference=True), reference_identity='r')
    for name in ('b', 'c')
  ]
  fit_all(compared[:1], corpus, loss=losses.adaspec)
  with pytest.raises(ValueError, match=r'one large model, and 2 are given.*alone as TEACHER_CACHE'):
    fit_all(compared, corpus, loss=losses.adaspec)


def test_a_list_of_caches_names_each_once_and_no_checkpoint():
  assert LargeModel().caches == ()
  assert LargeModel(teacher_cache='a').caches == ('a',)
  assert LargeModel(teacher_cache=['a', 'b']).caches == ('a', 'b')
  for wrong in ([], ['a', 'a'], ''):
    with pytest.raises(ValueError, match='no list of different directories'):
      LargeModel(teacher_cache=wrong)
  with pytest.raises(ValueError, match='TEACHER_CACHE names 2: leave LARGE_CHECKPOINT_PATH out'):
    LargeModel(checkpoint_path='c', teacher_cache=['a', 'b'])
