import itertools

import pytest

from cascades.tasks import sources
from cascades.tasks.flan import text_formatting
from cascades.tasks.flan.definition import PromptFields

TASKS = {task.name: task for task in text_formatting.TASKS}
FIELD = {'true_case': 'lower', 'fix_punct': 'no_punct', 'word_segment': 'no_space'}


def formed(name, text):
  return list(TASKS[name].preprocess({'en': text}))


def test_slices_are_those_of_the_table_and_do_not_overlap():
  assert [(t.name, t.train, t.validation) for t in text_formatting.TASKS] == [
    ('true_case', 'train[0:30000]', 'train[30000:30200]'),
    ('fix_punct', 'train[30200:60200]', 'train[60200:60400]'),
    ('word_segment', 'train[60400:90400]', 'train[90400:90600]'),
  ]
  size = text_formatting.DATASET.sizes['train']
  slices = [part for t in text_formatting.TASKS for part in (t.train, t.validation)]
  rows = [set(range(size)[slice(*sources.parse_slice(part)[1:])]) for part in slices]
  rows.append(set(range(size)[-3000:]))
  assert [len(block) for block in rows] == [30_000, 200] * 3 + [3000]
  assert not any(a & b for a, b in itertools.combinations(rows, 2))
  assert {(t.test, t.rows, t.metrics) for t in text_formatting.TASKS} == {
    ('train[-3000:]', 30_000, ('edit_distance_cased', 'edit_distance'))
  }


@pytest.mark.parametrize(
  ('name', 'text', 'damaged'),
  [
    ('true_case', 'Ærø is in Denmark.', 'ærø is in denmark.'),
    ('fix_punct', 'Café: 10 a.m.-6 p.m. (snake_case)', 'Café 10 am6 pm snake_case'),
    ('word_segment', 'It is 5 p.m.', 'Itis5p.m.'),
    ('word_segment', 'Impressum', 'Impressum'),
  ],
)
def test_a_text_is_damaged_and_the_text_itself_is_the_answer(name, text, damaged):
  assert formed(name, text) == [PromptFields({FIELD[name]: damaged}, (text,))]


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('true_case', 'add to cart'),
    ('true_case', ''),
    ('fix_punct', 'Add to cart'),
    ('fix_punct', '***'),
    ('fix_punct', '- - -'),
    ('word_segment', ''),
    ('word_segment', '  '),
  ],
)
def test_a_text_that_does_not_change_or_vanishes_is_left_out(name, text):
  assert formed(name, text) == []


@pytest.mark.parametrize(('name', 'count'), [('true_case', 10), ('fix_punct', 8)])
def test_sample_rows_that_do_not_change_are_left_out(name, count):
  task = TASKS[name]
  everything = sources.Sources(sample=True)
  rows = list(sources.read(task.dataset, task.train, everything, lambda _, ex: task.preprocess(ex)))
  assert len(rows) == count
  for row in rows:
    assert row.texts[FIELD[name]] not in ('', row.answers[0])


def test_real_sentences_lose_only_what_the_task_takes_away(real_data):
  text = (real_data / 'wmt' / 'newstest2021.en-ru.src.en').read_text(encoding='utf-8')
  sentences = [line for line in text.split('\n') if line]
  assert len(sentences) == 1002
  counts = dict.fromkeys(TASKS, 0)
  for sentence, name in itertools.product(sentences, TASKS):
    for fields in formed(name, sentence):
      counts[name] += 1
      damaged = fields.texts[FIELD[name]]
      assert fields.answers == (sentence,)
      if name == 'true_case':
        assert not any(c.isupper() for c in damaged)
        assert damaged.casefold() == sentence.casefold()
      elif name == 'fix_punct':
        assert all(c.isalnum() or c.isspace() or c == '_' for c in damaged)
        assert list(filter(str.isalnum, damaged)) == list(filter(str.isalnum, sentence))
        assert damaged.count(' ') == sentence.count(' ')
      else:
        assert ' ' not in damaged
        assert list(damaged) == [c for c in sentence if c != ' ']
  assert counts == {
    'true_case': sum(any(c.isupper() for c in sentence) for sentence in sentences),
    'fix_punct': sum(not sentence.replace(' ', '').isalnum() for sentence in sentences),
    'word_segment': 1002,
  }
