import re

import pytest

from cascades.evaluation.tables import Tables
from tests import synthetic_tables

SKILLS = {'xent': 0.0, 'cat': 0.5, 'large': 1.6}


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
  """Directories of tables of two tasks by model; the small models' rows are in another order."""
  root = tmp_path_factory.mktemp('tables')
  for name, skill in SKILLS.items():
    for task, size in (('a', 7), ('b', 5)):
      rows = synthetic_tables.records(task, size=size, skill=skill)
      if name != 'large':
        rows = rows[::-1]
      synthetic_tables.write(root / name / 'test', task, rows)
  return {name: str(root / name) for name in SKILLS}


def test_small_models_get_the_large_ones_order_of_tasks_and_rows(directories):
  small, large = Tables({'x': directories['xent']}, directories['large'], tasks=['b', 'a']).read()
  assert list(small) == ['x']
  assert [table.task for table in small['x']] == [table.task for table in large] == ['b', 'a']
  for table, reference in zip(small['x'], large, strict=True):
    assert table.ids == reference.ids
    assert table.targets == reference.targets
    assert table.predictions != reference.predictions


def test_all_tasks_of_the_large_model_are_read_unless_some_are_chosen(directories):
  _, large = Tables([directories['cat']], directories['large']).read()
  assert [table.task for table in large] == ['a', 'b']
  _, large = Tables([directories['cat']], directories['large'], tasks=['b']).read()
  assert [table.task for table in large] == ['b']


def test_a_task_is_compared_once(directories):
  with pytest.raises(ValueError, match="The tasks name 'a' more than once"):
    Tables([directories['cat']], directories['large'], tasks=['a', 'b', 'a']).read()


def written(directory, *, inputs='question', **changes):
  rows = synthetic_tables.records('a', size=5)
  for number, row in enumerate(rows):
    row['inputs']['inputs_pretokenized'] = f'{inputs} {number}'
  synthetic_tables.write(directory / 'test', 'a', rows, **changes)
  return str(directory)


GREEDY = {'temperature': 0.0, 'seed': 0, 'max_tokens': 8}
USUAL = {'definition': '1', 'precision': 'float32', 'weights': 'float32', 'decoding': GREEDY}


@pytest.mark.parametrize(
  ('changes', 'name', 'values'),
  [
    ({'inputs': 'problem'}, 'inputs', "'problem 0' and 'question 0'"),
    ({'definition': '0'}, 'definition', "'0' and '1'"),
    ({'definition': '0 chat 2 f00d'}, 'definition', "'0' and '1'"),
    ({'precision': 'bfloat16'}, 'precision', "'bfloat16' and 'float32'"),
    ({'weights': 'int8'}, 'weights', "'int8' and 'float32'"),
    ({'decoding': {**GREEDY, 'temperature': 5.0}}, 'temperature', '5.0 and 0.0'),
    ({'decoding': {**GREEDY, 'max_tokens': 9}}, 'max_tokens', '9 and 8'),
  ],
)
def test_tables_that_were_not_made_alike_are_refused_by_name_unless_allowed(
  tmp_path, changes, name, values
):
  large = written(tmp_path / 'large', **USUAL)
  small = written(tmp_path / 'small', **{**USUAL, **changes})
  with pytest.raises(ValueError, match=re.escape(f'{name} ({values})')) as error:
    Tables([small], large).read()
  assert f"ALLOW_DIFFERENCES=['{name}" in str(error.value)
  Tables([small], large, allow_differences=[name, 'seed']).read()


def test_what_may_differ_is_not_refused(tmp_path):
  large = written(tmp_path / 'large', **USUAL)
  chats = {'definition': '1 chat 2 f00d', 'vocabulary': 'b0d', 'checkpoint': 'elsewhere'}
  small = written(tmp_path / 'small', **{**USUAL, **chats, 'decoding': {**GREEDY, 'seed': 3}})
  older = written(tmp_path / 'older', decoding={'max_tokens': 8})  # with fewer properties
  Tables([small, older], large).read()


def test_models_without_names_are_named_by_their_directories(directories):
  large = directories['large']
  small, _ = Tables([directories['cat'], directories['xent']], large).read()
  assert list(small) == ['cat', 'xent']
  with pytest.raises(ValueError, match='2 small models have only the names cat: name them'):
    Tables([directories['cat'], '/elsewhere/cat'], large).read()


@pytest.mark.parametrize(
  ('names', 'reported'), [((), 'none'), (('cat', 'large alone'), 'cat, large alone')]
)
def test_no_model_and_the_large_ones_name_are_refused(directories, names, reported):
  small = dict.fromkeys(names, directories['cat'])
  with pytest.raises(ValueError, match=f"none of them called 'large alone'; found {reported}"):
    Tables(small, directories['large']).read()


def test_tables_of_other_tasks_are_refused_by_name(directories, tmp_path):
  synthetic_tables.write(tmp_path / 'test', 'a', synthetic_tables.records('a', size=7))
  with pytest.raises(
    ValueError, match=r"answers the tasks \['a'\] and the large model \['a', 'b'\]"
  ):
    Tables({'x': str(tmp_path)}, directories['large']).read()
  with pytest.raises(FileNotFoundError, match='validation does not exist'):
    Tables([directories['cat']], directories['large'], split='validation').read()


@pytest.mark.parametrize('model', ['cat', 'large'])
def test_rows_without_targets_are_refused(directories, tmp_path, model):
  rows = synthetic_tables.records('a')
  for name in ('cat', 'large'):
    entries = {'unlabelled': 3} if name == model else {}
    synthetic_tables.write(tmp_path / name / 'test', 'a', rows, **entries)
  with pytest.raises(ValueError, match=r"3 of 60 rows of task 'a' in .* have no target"):
    Tables([str(tmp_path / 'cat')], str(tmp_path / 'large')).read()


def test_tables_are_those_of_the_mode(tmp_path):
  for mode in ('predict', 'score'):
    rows = synthetic_tables.records('a', size=5)
    for row in rows:
      if mode == 'score':
        del row['prediction']
        row['score'] = -1.0
    synthetic_tables.write(tmp_path / 'test', 'a', rows, mode=mode)
    small, large = Tables({'x': str(tmp_path)}, str(tmp_path), mode=mode).read()
    assert [table.manifest['mode'] for table in (*small['x'], *large)] == [mode] * 2


def test_a_table_in_the_folder_of_another_split_is_refused(tmp_path):
  synthetic_tables.write(tmp_path / 'validation', 'a', synthetic_tables.records('a', size=4))
  with pytest.raises(ValueError, match="says split 'test': folders are named"):
    Tables({'x': str(tmp_path)}, str(tmp_path), split='validation').read()


@pytest.mark.parametrize('options', [{'mode': 'guess'}, {'split': '../test'}], ids=str)
def test_a_mode_or_split_that_names_no_tables_is_refused(options):
  with pytest.raises(ValueError, match=f'{next(iter(options.values()))!r}'):
    Tables({'x': 'small'}, 'large', **options)


def test_an_allowed_difference_is_a_property_of_the_tables(directories):
  small, large = directories['xent'], directories['large']
  with pytest.raises(ValueError, match=r"ALLOW_DIFFERENCES=\['temperatur'\] names no property"):
    Tables({'small': small}, large, allow_differences=['temperatur']).read()
