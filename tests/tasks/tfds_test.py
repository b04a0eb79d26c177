"""TFDS as the truth: what our tables say of published data sets is what its builders say."""

import inspect
import itertools
import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.text import super_glue

from cascades.tasks import c4, catalog, sources, superglue, tfds_directories
from cascades.tasks import features as features_lib
from cascades.tasks.flan import coreference
from cascades.tasks.sources import Sources
from cascades.tasks.task import Task


def published():
  """Each data set that TFDS has a builder for, with the splits that tasks read of it."""
  found = {}
  for name in catalog.names():
    task = catalog.get(name)
    assert isinstance(task, Task)
    if task.origin and task.origin.dataset.in_tfds:
      dataset = task.origin.dataset
      _, splits = found.setdefault(dataset.builder, (dataset, set()))
      splits.update(task.origin.splits, dataset.sizes)
  for dataset in (c4.dataset('realnewslike'), coreference.WSC273.dataset):
    found[dataset.builder] = (dataset, set(dataset.sizes))
  return found


PUBLISHED = published()


def builder_of(dataset, folder):
  return tfds.builder(f'{dataset.builder}:{dataset.version}', data_dir=folder)


@pytest.fixture(scope='module')
def builders(tmp_path_factory):
  """A builder of each data set, with nothing downloaded; TFDS refuses an unknown version here."""
  folder = tmp_path_factory.mktemp('tfds')
  return {name: builder_of(dataset, folder) for name, (dataset, _) in PUBLISHED.items()}


def test_there_are_this_many_data_sets():
  suites = [name.split('/')[0] for name in PUBLISHED]
  # Of 69 FLAN tasks three read para_crawl/enda, MNLI's two glue/mnli, and eight SuperGLUE's.
  assert suites.count('super_glue') == len(superglue.DATASETS) == 9
  assert suites.count('c4') == 2
  assert len(PUBLISHED) == 71


def test_each_has_a_builder_with_that_configuration_and_version(builders):
  for name, (dataset, _) in PUBLISHED.items():
    assert builders[name].info.full_name == f'{dataset.builder}/{dataset.version}'


@pytest.mark.parametrize('name', PUBLISHED)
def test_fields_have_the_names_the_nesting_the_kinds_and_the_labels_of_tfds(builders, name):
  dataset, _ = PUBLISHED[name]
  assert list(differences(dataset.features, builders[name].info.features, name)) == []


def differences(ours, theirs, path):
  """What two descriptions of a field do not agree on."""
  match ours:
    case tuple():
      if not isinstance(theirs, tfds.features.ClassLabel) or tuple(theirs.names) != ours:
        yield f'{path}: {theirs}'
    case dict() if isinstance(theirs, tfds.features.Sequence):  # TFDS gives an object of lists
      for key, feature in ours.items():
        assert isinstance(feature, list), path
        yield from differences(feature[0], theirs.feature[key], f'{path}.{key}')
    case dict():
      for key, feature in ours.items():
        yield from differences(feature, theirs[key], f'{path}.{key}')
    case [item]:
      if isinstance(theirs, tfds.features.Sequence):
        yield from differences(item, theirs.feature, f'{path}[]')
      else:
        yield f'{path}: {theirs}'
    case _:
      kinds = {str: 'OSU', int: 'iu', float: 'f', bool: 'b'}[ours]
      is_label = isinstance(theirs, tfds.features.ClassLabel)
      if is_label or theirs.shape != () or np.dtype(theirs.np_dtype).kind not in kinds:
        yield f'{path}: {theirs}'


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    (('b', 'a'), tfds.features.ClassLabel(names=['a', 'b'])),
    (('a', 'b'), tfds.features.Text()),
    (int, tfds.features.ClassLabel(names=['a', 'b'])),
    (int, tfds.features.Scalar(np.bool_)),
    (float, tfds.features.Scalar(np.int32)),
    (str, tfds.features.Sequence(tfds.features.Text())),
    ([str], tfds.features.Text()),
    ({'x': [str]}, tfds.features.Sequence({'x': np.int32})),
    ({'x': {'y': str}}, tfds.features.FeaturesDict({'x': {'y': np.float32}})),
  ],
)
def test_a_difference_would_be_found(ours, theirs):
  assert list(differences(ours, theirs, 'field'))


class _Files:
  """In the place of TFDS's download manager: every file is the same empty folder."""

  def __init__(self, folder):
    self.manual_dir = self.download_dir = epath.Path(folder)

  def extract(self, urls):
    return tf.nest.map_structure(lambda _: self.manual_dir, urls)

  download = download_and_extract = extract

  def iter_archive(self, _):
    return iter(())


def split_names(builder, folder):
  """The splits that a builder would make, or those that its code names if it opens files first."""
  if isinstance(getattr(builder, 'subsets', None), dict):
    return set(map(str, builder.subsets))
  if builder.name in ('c4', 'cnn_dailymail', 'xsum'):
    code = inspect.getsource(type(builder)._split_generators)
    return {name.lower() for name in re.findall(r'tfds\.Split\.([A-Z]+)', code)}
  made = builder._split_generators(_Files(folder))
  return set(map(str, made)) if isinstance(made, dict) else {str(one.name) for one in made}


@pytest.mark.parametrize('name', PUBLISHED)
def test_splits_have_the_names_of_tfds(builders, name, tmp_path):
  _, splits = PUBLISHED[name]
  assert splits
  assert splits <= split_names(builders[name], tmp_path)


def kinds(value):
  """The types in an example, whatever the lengths of its lists."""
  match value:
    case dict():
      return {key: kinds(one) for key, one in value.items()}
    case list():
      return [kinds(one) for one in value[:1]]
  return type(value)


def mocked(dataset, split, folder):
  """Random rows with the types of the builder, as our reader of TFDS directories takes them."""
  with tfds.testing.mock_data(num_examples=3):
    rows = builder_of(dataset, folder).as_dataset(split=split)
    return [
      features_lib.encode(dataset.features, tfds_directories.plain(row))
      for row in tfds.as_numpy(rows)
    ]


# Of this configuration no rows ship.
@pytest.mark.parametrize('name', sorted(PUBLISHED.keys() - {'c4/realnewslike'}))
def test_random_rows_of_tfds_and_hand_written_rows_have_equal_types(name, tmp_path):
  dataset, splits = PUBLISHED[name]
  split = min(splits, key=lambda s: (s != 'train', s))
  for ours, theirs in itertools.product(
    itertools.islice(sources.examples(dataset, split, Sources(sample=True)), 3),
    mocked(dataset, split, tmp_path),
  ):
    assert kinds_agree(kinds(ours), kinds(theirs)), (kinds(ours), kinds(theirs))


def kinds_agree(ours, theirs):
  match ours, theirs:
    case dict(), dict():
      return list(ours) == list(theirs) and all(kinds_agree(ours[k], theirs[k]) for k in ours)
    case list(), list():
      return not (ours and theirs) or kinds_agree(ours[0], theirs[0])
  return ours is theirs


def parsed_by_tfds(builder, file, split):
  """Rows of an official SuperGLUE file, by the code with which TFDS prepares them."""
  alone = types.SimpleNamespace(builder_config=builder.builder_config)
  generate = super_glue.SuperGlue._generate_examples
  for _, example in generate(alone, str(file), tfds.Split(split)):
    label = example.get('label', -1)
    if label != -1:
      example['label'] = builder.info.features['label'].encode_example(label)
    yield dict(example)


def same_rows(builder, name, folder, files):
  dataset, count = superglue.DATASETS[name], 0
  for split, file in files.items():
    ours = sources.examples(dataset, split, Sources(folder))
    theirs = parsed_by_tfds(builder, file, split)
    for one, other in zip(ours, theirs, strict=True):
      assert one == other
      count += 1
  return count


@pytest.mark.parametrize('name', superglue.DATASETS)
def test_official_superglue_files_read_as_tfds_reads_them(builders, name, hand_written, tmp_path):
  dataset = superglue.DATASETS[name]
  files = {split: hand_written / file for split, file in dataset.files.items()}
  if not files['train'].exists():  # of plain rows, hand-written ones have the official form too
    files = write_official(dataset, tmp_path)
    hand_written = tmp_path
  files = {split: file for split, file in files.items() if tfds_can_read(file, split)}
  assert files
  assert same_rows(builders[f'super_glue/{name}'], name, hand_written, files)


def write_official(dataset, folder):
  """The rows that ship, as the official file has them: labels by name, or truth values."""
  with (sources.SAMPLES / f'{dataset.builder}.jsonl').open() as lines:
    rows = [json.loads(line) for line in lines]
  file = folder / dataset.files['train']
  file.parent.mkdir(parents=True)
  official = [_official(dataset, row) for row in rows if row['label'] != -1]
  file.write_text(''.join(json.dumps(row) + '\n' for row in official))
  return {'train': file}


def _official(dataset, row):
  labels = dataset.features['label']
  index = row['label'] if isinstance(row['label'], int) else labels.index(row['label'])
  if labels == ('False', 'True'):
    return row | {'label': bool(index)}
  return row | {'label': index if dataset.builder.endswith('/copa') else labels[index]}


def tfds_can_read(file, split):
  """TFDS needs an index everywhere, and a label in all but the test file."""
  lines = file.read_text().split('\n') if file.exists() else []
  rows = [json.loads(line) for line in lines if line]
  numbered = bool(rows) and all('idx' in row for row in rows)
  nested = numbered and isinstance(rows[0].get('passage'), dict)
  return numbered and (nested or split == 'test' or all('label' in row for row in rows))


# Of ReCoRD only a few rows are there, without numbers.
@pytest.mark.parametrize('name', sorted(superglue.DATASETS.keys() - {'record'}))
def test_real_superglue_files_read_as_tfds_reads_them(builders, name, real_data):
  dataset = superglue.DATASETS[name]
  files = {s: real_data / 'superglue' / f for s, f in dataset.files.items() if s != 'train'}
  files = {split: file for split, file in files.items() if tfds_can_read(file, split)}
  assert files
  assert same_rows(builders[f'super_glue/{name}'], name, real_data, files)
