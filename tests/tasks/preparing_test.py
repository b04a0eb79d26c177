"""What is prepared from local rows reads back as they do. Writes with TFDS."""

import json
from typing import Any, NamedTuple

import pytest
import tensorflow_datasets as tfds
from etils import epath

from cascades import browse_tasks as commands
from cascades.tasks import catalog, preparing, sources, superglue, tfds_directories
from cascades.tasks.datasets import Dataset
from cascades.tasks.sources import Sources


def same(rows, others):
  """Whether these are the same rows in any order, of which TFDS has one of its own."""
  return sorted(map(repr, rows)) == sorted(map(repr, others))


class Made(NamedTuple):
  """A data set of these examples, whose only split is train."""

  dataset: Dataset
  examples: Any
  splits: tuple[str, ...] = ('train',)
  needs: str = ''

  def where(self, split):
    return 'here'


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


# A label that is missing, nested numbers, lists, an object of lists, truth values, numbers with a
# point, parallel text and dashes in names.
@pytest.mark.parametrize(
  'name',
  [
    'superglue_multirc',
    'superglue_wsc',
    'flan_squad_v2',
    'flan_bool_q',
    'flan_stsb',
    'flan_arc_easy',
    'flan_dart',
    'wmt22_en_ja',
    'c4_causal_lm',
  ],
)
def test_a_prepared_directory_has_the_local_examples(name, tmp_path):
  local = catalog.get(name, sample=True).origin
  counts = preparing.prepare(local, tmp_path)
  task = catalog.get(name, tfds_data_dir=str(tmp_path))
  read = task.origin
  assert read.location(task.splits[0]) == str(
    tmp_path / local.dataset.builder / local.dataset.version
  )
  for split in local.splits:
    examples = list(local.examples(split))
    assert counts[split] == len(examples) > 0
    assert same(read.examples(split), examples)
    assert list(read.examples(split)) == list(read.examples(split))


@pytest.mark.parametrize('name', ['boolq', 'record'])
def test_a_prepared_directory_gives_the_rows_of_the_official_files(tmp_path, hand_written, name):
  local = superglue.task(name, Sources(hand_written))
  preparing.prepare(local.origin, tmp_path)
  prepared = superglue.task(name, Sources(tfds_data_dir=tmp_path))
  for split in prepared.splits:
    assert same(prepared.rows(split), local.rows(split))
  assert prepared.fingerprint('train') != local.fingerprint('train')


@pytest.fixture
def rte(tmp_path):
  """300 rows as FLAN slices them."""
  rows = [{'premise': f'p{i}', 'hypothesis': f'h{i}', 'label': i % 2, 'idx': i} for i in range(300)]
  write(tmp_path / 'local' / 'RTE' / 'train.jsonl', rows)
  return catalog.get('flan_rte', str(tmp_path / 'local'))


def test_slices_of_a_prepared_directory_are_by_its_size(tmp_path, rte):
  assert preparing.prepare(rte.origin, tmp_path) == {'train': 300}
  prepared = catalog.get('flan_rte', tfds_data_dir=str(tmp_path))
  places = {'local': Sources(tmp_path / 'local'), 'prepared': Sources(None, tmp_path)}
  for split, part, numbers in (
    ('train', 'train[:-200]', range(100)),
    ('validation', 'train[-200:]', range(100, 300)),
  ):
    for task, where in ((rte, 'local'), (prepared, 'prepared')):
      read = list(
        sources.read(task.origin.dataset, part, places[where], lambda n, e: [(n, e['idx'])])
      )
      assert [number for number, _ in read] == list(numbers)
      assert len(list(task.rows(split))) == len(numbers)
  indices = {
    part: {e['idx'] for e in slice_of(rte.origin.dataset, part, places['prepared'])}
    for part in ('train[:-200]', 'train[-200:]')
  }
  assert sorted(i for some in indices.values() for i in some) == list(range(300))


def slice_of(dataset, part, where):
  return sources.read(dataset, part, where, lambda _, example: [example])


def test_a_split_without_rows_is_left_out_and_then_named(tmp_path, rte):
  preparing.prepare(rte.origin, tmp_path)
  prepared = catalog.get('flan_rte', tfds_data_dir=str(tmp_path))
  with pytest.raises(ValueError, match=r'1\.0\.2 has no split validation, only train'):
    list(prepared.rows('test'))


def test_one_directory_serves_every_task_of_the_data_set(tmp_path):
  matched = catalog.get('flan_mnli_matched', sample=True)
  assert set(preparing.prepare(matched.origin, tmp_path)) == set(matched.origin.dataset.sizes)
  mismatched = catalog.get('flan_mnli_mismatched', tfds_data_dir=str(tmp_path))
  assert len(list(mismatched.rows('test'))) == len(list(matched.rows('test')))


def test_rows_may_be_read_shuffled_and_by_name_alone(tmp_path, rte):
  preparing.prepare(rte.origin, tmp_path)
  loaded = tfds.load('super_glue/rte:1.0.2', split='train', data_dir=tmp_path, shuffle_files=True)
  assert {int(row['idx']) for row in tfds.as_numpy(loaded)} == set(range(300))
  builder = tfds.builder_from_directory(tmp_path / 'super_glue' / 'rte' / '1.0.2')
  assert not builder.info.disable_shuffling
  assert builder.info.features['label'].names == ['entailment', 'not_entailment']


def test_a_directory_that_is_there_is_refused_before_anything_is_read(tmp_path, rte):
  preparing.prepare(rte.origin, tmp_path)
  nothing = catalog.get('flan_rte', str(tmp_path / 'nowhere'))
  with pytest.raises(FileExistsError, match=r'1\.0\.2 exists already\. Delete it'):
    preparing.prepare(nothing.origin, tmp_path)


def test_without_local_rows_the_places_looked_at_are_named(tmp_path):
  task = catalog.get('superglue_cb', str(tmp_path), str(tmp_path / 'tfds'))
  with pytest.raises(FileNotFoundError, match=r'No rows for split test of super_glue/cb\. Looked'):
    preparing.prepare(task.origin, tmp_path / 'tfds')
  assert not (tmp_path / 'tfds').exists()


def test_what_is_no_published_data_set_cannot_be_prepared(tmp_path, capsys):
  assert commands.main(['prepare', 'cmudict_g2p', '--tfds_data_dir', str(tmp_path)]) == 1
  assert 'cmudict_g2p is not made from a published data set' in capsys.readouterr().err


def test_a_malformed_row_is_named_and_leaves_nothing_behind(tmp_path, rte):
  file = tmp_path / 'local' / 'RTE' / 'train.jsonl'
  write(file, [*map(json.loads, file.read_text().splitlines()), {'premise': 'no more'}])
  with pytest.raises(ValueError, match=r"train\.jsonl, line 301: there is no field 'hypothesis'"):
    preparing.prepare(rte.origin, tmp_path / 'tfds')
  assert tfds_directories.find(rte.origin.dataset, epath.Path(tmp_path / 'tfds')) is None
  assert list((tmp_path / 'tfds' / 'super_glue' / 'rte').iterdir()) == []
  skipping = catalog.get('flan_rte', str(tmp_path / 'local'), malformed='skip')
  assert preparing.prepare(skipping.origin, tmp_path / 'tfds') == {'train': 300}


def test_what_is_being_written_is_not_taken_for_a_data_set(tmp_path):
  data = Dataset('halved', '1.0.0', {}, {'text': str})
  seen = []

  def examples(_):
    for i in range(3):
      seen.append(tfds_directories.find(data, epath.Path(tmp_path)))
      yield {'text': str(i)}
    partial = next((tmp_path / 'halved').glob('*1.0.0'))
    assert partial.name != '1.0.0'
    # As if killed after writing this and before the name was given.
    (partial.with_name(f'{partial.name}.copy_1.0.0')).mkdir()
    (partial.with_name(f'{partial.name}.copy_1.0.0') / 'dataset_info.json').touch()

  assert preparing.prepare(Made(data, examples), tmp_path) == {'train': 3}
  assert seen == [None] * 3
  found = tfds_directories.find(data._replace(version='2.0.0'), epath.Path(tmp_path))
  assert found == tmp_path / 'halved' / '1.0.0'


def test_a_directory_of_another_version_is_read_and_named(tmp_path, rte, caplog):
  preparing.prepare(rte.origin, tmp_path)
  newer = rte.origin.dataset._replace(version='9.9.9')
  assert len(list(sources.examples(newer, 'train', Sources(tfds_data_dir=tmp_path)))) == 300
  assert 'super_glue/rte: reading version 1.0.2' in caplog.text


def test_of_several_versions_the_newest_is_read(tmp_path, rte):
  for version in ('1.9.0', '1.10.0', '0.11.0'):
    write(tmp_path / 'super_glue' / 'rte' / version / 'dataset_info.json', [])
  found = tfds_directories.find(rte.origin.dataset, epath.Path(tmp_path))
  assert found.name == '1.10.0'


@pytest.mark.parametrize(
  ('features', 'label', 'reason'),
  [
    (
      {'label': ('not_entailment', 'entailment')},
      1,
      r"has labels \['not_entailment', 'entailment'\] of 'label', expected \('entailment', ",
    ),
    ({'label': int}, 7, "row 0 of split train: the label 7 of 'label' is none of"),
    ({}, None, "row 0 of split train: there is no field 'label'"),
  ],
)
def test_a_directory_of_other_fields_or_labels_is_refused(tmp_path, rte, features, label, reason):
  other = rte.origin.dataset._replace(
    features={'premise': str, 'hypothesis': str, 'idx': int} | features
  )
  example = {'premise': 'p', 'hypothesis': 'h', 'idx': 0, **dict.fromkeys(features, label)}
  preparing.prepare(Made(other, lambda _: iter([example])), tmp_path)
  with pytest.raises(ValueError, match=f'{tmp_path}.*{reason}'):
    list(sources.examples(rte.origin.dataset, 'train', Sources(None, tmp_path)))


class Offline:
  """In the place of a builder on a machine without a network."""

  def __init__(self, name, data_dir):
    self.name = name

  def download_and_prepare(self):
    raise ConnectionError(f'Failed to resolve the host of {self.name}')


@pytest.mark.parametrize('name', ['wmt22_en_zh', 'stream_imdb'])
def test_what_tfds_has_no_builder_for_is_never_asked_of_it(monkeypatch, tmp_path, name):
  def refuse(*_, **__):
    raise AssertionError('TFDS was asked')

  monkeypatch.setattr(tfds, 'builder', refuse)
  task = catalog.get(name, str(tmp_path), str(tmp_path), allow_download=True)
  with pytest.raises(FileNotFoundError, match='no builder'):
    list(task.rows('train'))
  assert commands.main(['download', name, f'--tfds_data_dir={tmp_path}']) == 1


def test_without_a_network_a_download_fails_with_the_ways_out(monkeypatch, tmp_path):
  monkeypatch.setattr(tfds, 'builder', Offline)
  task = catalog.get('superglue_cb', str(tmp_path), str(tmp_path), allow_download=True)
  with pytest.raises(OSError, match='TFDS could not prepare') as caught:
    list(task.rows('train'))
  for part in (
    'super_glue/cb:1.0.2',
    'Failed to resolve',
    'CB/train.jsonl',
    'tfds_data_dir',
  ):
    assert part in str(caught.value)
