import dataclasses

import pytest

from cascades.inference import baselines
from cascades.tasks.task import Row
from tests import tiny_tasks

WORDS = {'pos': 'good great fine', 'neg': 'bad awful poor'}


def rows(count, *, start=0):
  """Reviews, two of three positive, with one word that tells and one that does not."""
  table = []
  for i in range(start, start + count):
    label = 'neg' if i % 3 == 0 else 'pos'
    table.append(Row(f'r{i}', f'{WORDS[label].split()[i % 3]} film number{i}', (label,)))
  return table


def task(**changes):
  splits = {'train': rows(60), 'validation': rows(30, start=60)}
  tiny = tiny_tasks.tiny_task([])
  return dataclasses.replace(tiny, read=splits.__getitem__, **changes)


def test_the_most_frequent_target_and_a_regression_on_words_are_judged():
  assert baselines.judge(task(), 'validation') == {
    'most frequent target': {'accuracy': pytest.approx(2 / 3)},
    'TF-IDF + logistic regression': {'accuracy': 1.0},
  }


def test_every_metric_of_the_task_judges_them():
  judged = baselines.judge(task(metrics=('accuracy', 'f1[neg|pos]')), 'validation')
  assert judged['most frequent target'] == {'accuracy': pytest.approx(2 / 3), 'f1[neg|pos]': 0.0}


def test_inputs_without_words_leave_the_most_frequent_target():
  blank = [row._replace(inputs='?') for row in rows(30)]
  tiny = dataclasses.replace(task(), read=lambda _: blank)
  assert list(baselines.judge(tiny, 'validation')) == ['most frequent target']


def test_sorted_training_rows_are_taken_from_everywhere(monkeypatch):
  ordered = sorted(rows(60), key=lambda row: row.answers)
  splits = {'train': ordered, 'validation': rows(30, start=60)}
  monkeypatch.setattr(baselines, 'MOST_FITTED', 20)
  tiny = dataclasses.replace(task(), read=splits.__getitem__)
  assert baselines.judge(tiny, 'validation')['TF-IDF + logistic regression']['accuracy'] == 1.0


def no_answers(row):
  return row._replace(answers=())


@pytest.mark.parametrize(
  'change',
  [
    {'splits': ('validation',)},
    {'joins_rows': True},
    {'read': lambda _: [row._replace(answers=(row.id,)) for row in rows(60)]},
    {'read': lambda _: [row._replace(answers=('one',)) for row in rows(60)]},
    {'read': {'train': rows(60), 'validation': list(map(no_answers, rows(9)))}.__getitem__},
  ],
  ids=['no training', 'joined', 'many targets', 'one target', 'no labels'],
)
def test_tasks_that_have_no_cheap_answers_have_no_baselines(change):
  assert baselines.judge(dataclasses.replace(task(), **change), 'validation') == {}


def test_missing_training_data_give_no_baselines():
  def read(split):
    raise FileNotFoundError(split)

  assert baselines.judge(dataclasses.replace(task(), read=read), 'validation') == {}


def test_rows_that_are_trained_on_are_not_judged():
  assert baselines.judge(task(), 'train') == {}
