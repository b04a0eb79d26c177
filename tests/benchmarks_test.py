"""Benchmarks on a few rows: they measure the named quantities, whatever the speed."""

import gzip
import importlib
import json
import re
import subprocess

import numpy as np
import pytest

from benchmarks import bars, c4_scale, feeding, mixture, speculation_claims, startup, tokenizing
from benchmarks.bars import Measured
from cascades.tasks.task import Mixture, Row, both
from cascades.tokenizers import train_sentencepiece, vocabularies

# The others are imported: bars, steps to compile, a task, tables, methods, vectors.
BENCHMARKS = sorted(
  path.stem
  for path in bars.RESULTS.parent.glob('[a-z]*.py')
  if "if __name__ == '__main__':" in path.read_text()
)


@pytest.mark.parametrize(
  ('measured', 'met'),
  [
    (Measured('rate', 20_000, 'rows/s', at_least=20_000), True),
    (Measured('rate', 19_999, 'rows/s', at_least=20_000), False),
    (Measured('time', 0.99, 's', at_most=1), True),
    (Measured('time', 1.0, 's', at_most=1), False),
    (Measured('time', 1.0, 's'), None),
  ],
)
def test_a_number_meets_or_misses_its_bar(measured, met):
  assert measured.met is met


def test_a_report_names_machine_and_commit_and_writes_every_number(tmp_path, capsys):
  measured = [
    Measured('speed', np.float64(12_345.6), 'rows/s', at_least=20_000, note='alone'),
    Measured('time', 0.25, 's'),
  ]
  output = tmp_path / 'new' / 'results.json'
  bars.report('Title', measured, output, {'rows': 3, 'output': output}, {'more': np.int64(1)})
  written = json.loads(output.read_text())
  assert [
    (row['what'], row['value'], row['bar'], row['met'], row['note']) for row in written['rows']
  ] == [('speed', 12_345.6, '>= 20,000', False, 'alone'), ('time', 0.25, None, None, '')]
  assert set(written['machine']) == {'processor', 'cores', 'load', 'python'}
  assert written['commit']
  assert (written['settings'], written['details']) == ({'rows': 3}, {'more': 1})
  title, _, speed, _, where = capsys.readouterr().out.splitlines()
  assert title == 'Title'
  assert speed.split() == ['speed', '12,346', 'rows/s', '>=', '20,000', 'MISSED', 'alone']
  assert where.endswith('rows 3')


def test_rows_of_an_interrupted_measurement_are_printed_and_written(tmp_path, capsys):
  def measure():
    yield Measured('first', 1.0, 's')
    raise KeyboardInterrupt

  output = tmp_path / 'results.json'
  with pytest.raises(KeyboardInterrupt):
    bars.report('Title', measure(), output, {'rows': 2})
  assert [row['what'] for row in json.loads(output.read_text())['rows']] == ['first']
  assert capsys.readouterr().out.splitlines()[-1].startswith('first')


@pytest.mark.parametrize('name', BENCHMARKS)
def test_a_benchmark_writes_its_rows_into_the_folder_of_results(name):
  """By default, under its own name, through `bars.report`."""
  assert importlib.import_module(f'benchmarks.{name}').main
  source = (bars.RESULTS.parent / f'{name}.py').read_text()
  assert f"default=bars.RESULTS / '{name}.json'" in source
  assert 'bars.report(' in source


@pytest.mark.parametrize('path', sorted(bars.RESULTS.glob('*.json')), ids=lambda path: path.stem)
def test_a_committed_result_names_no_path_of_a_machine(path):
  assert not re.findall(r'(?<=["\s])/\w+/\S*', path.read_text())


def test_memory_that_is_taken_is_the_process_s_own():
  before = bars.memory()
  taken = np.ones(1 << 27, np.uint8)  # so that little else moves the sum
  after = bars.memory()
  assert after['private'] - before['private'] == pytest.approx(taken.nbytes, rel=0.2)
  assert after['peak'] >= after['private']


def test_the_mixture_has_the_tasks_and_rates_of_flan():
  tasks = mixture.flan(5)
  assert len(tasks.tasks) == 69
  assert sum(task.rate for task in tasks.tasks) == 188_371
  assert {len(list(task.rows('train'))) for task in tasks.tasks} == {5}
  assert len(list(mixture.flan(2000).tasks[9].rows('train'))) == 1659  # all that it has


def test_generated_rows_have_the_lengths_that_are_said_and_never_change():
  rows = [Row(str(i), '', ('',)) for i in range(4000)]
  vocabulary = both(vocabularies.bytes_vocabulary())
  records = list(mixture.random_tokens(rows, vocabulary, 3, seed=1))
  again = list(mixture.random_tokens(rows[:9], vocabulary, 3, seed=1))
  other = list(mixture.random_tokens(rows[:9], vocabulary, 4, seed=1))
  assert [r.inputs.tolist() for r in records[:9]] == [r.inputs.tolist() for r in again]
  assert [r.inputs.tolist() for r in records[:9]] != [r.inputs.tolist() for r in other]
  for field, (mean, deviation) in (('inputs', mixture.INPUTS), ('targets', mixture.TARGETS)):
    counts = [len(getattr(record, field)) for record in records]
    assert np.mean(counts) == pytest.approx(np.exp(mean + deviation**2 / 2), rel=0.05)
  assert all(3 <= id < mixture.IDS for record in records[:50] for id in record.inputs.tolist())
  assert len(records[0].row.inputs) == mixture.CHARACTERS_PER_TOKEN * len(records[0].inputs)


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  return str(tmp_path_factory.mktemp('records'))


@pytest.fixture
def settings(directory, monkeypatch):
  few = mixture.flan(3).tasks[:4]
  monkeypatch.setattr(mixture, 'flan', lambda rows: Mixture('few', few))
  return feeding.Settings(
    rows=3,
    directory=directory,
    batch_size=4,
    intervals=2,
    seconds=0.01,
  )


@pytest.mark.parametrize('way', feeding.WAYS)
def test_a_way_of_feeding_is_measured_and_held_to_bars(way, settings, monkeypatch):
  monkeypatch.setattr(feeding, 'STEPS', (0, 7))
  result = feeding.measure(way, settings)
  assert [row['others'] for row in result['resumed']] == [0, 0]
  assert ('by turns' in result) == (way == 'encoder-decoder')
  assert all(rows > 0 and of_cpu > 0 for rows, _, of_cpu in result['steady'])
  packs = [examples > rows for rows, examples, _ in result['steady']]
  assert packs == [way.endswith('packed')] * 2
  measured = list(feeding.held_to_bars(way, json.loads(json.dumps(result))))
  assert [row.what for row in measured if row.met is not None] == [
    f'{way}: {what}'
    for what in (
      'first batch', 'steady', 'memory beyond imports', 'resumed, unlike uninterrupted',
    )
  ]  # fmt: skip


def test_a_resumed_batch_that_differs_is_counted():
  def feed(step):
    late = step == 3  # starting there, it is one batch behind
    return ((np.array([number - late]),) for number in range(step, step + 9))

  assert feeding.resumed(feed, 2)['others'] == 0
  assert feeding.resumed(feed, 3)['others'] == feeding.COMPARED


def test_row_by_row_feeds_the_same_tasks(settings):
  joined = settings.corpus(feeding.WAYS[0]).open('train')
  batch = next(feeding.row_by_row(joined, 4))
  assert {name: array.shape for name, array in batch.items()} == {
    'inputs': (4, 512),
    'targets': (4, 128),
  }
  assert (batch['targets'].max(axis=1) > 0).all()


def test_sentences_are_of_equal_length_and_lose_only_the_end():
  text = tokenizing.generated(200)
  sentences = tokenizing.cut(text)
  assert {len(sentence) for sentence in sentences} == {145}
  assert text.startswith(''.join(sentences))
  assert len(text) - 145 * len(sentences) < 145


def test_the_rows_of_a_split_go_through_the_sentences_again_and_again():
  rows = list(tokenizing.task(['one', 'two', 'three'], 5).rows('train'))
  assert [row.inputs for row in rows] == ['one', 'two', 'three', 'one', 'two']
  assert len({row.id for row in rows}) == 5


def test_a_shard_and_the_library_are_timed_by_turns():
  rows = list(tokenizing.task(tokenizing.cut(tokenizing.generated(200)), 300).rows('train'))
  calls = []

  def alone(sentences):
    calls.append(len(sentences))

  shard, bare = tokenizing.by_turns('bytes', vocabularies.bytes_vocabulary(), alone, rows, 2)
  assert calls == [256, 44, 256, 44]
  assert (shard.at_least, bare.at_least) == (40_000, None)
  assert 0 < shard.value < bare.value


def test_documents_are_written_as_in_the_json_release(tmp_path):
  characters = c4_scale.write_documents(tokenizing.generated(20_000), 400, tmp_path)
  (file,) = tmp_path.iterdir()
  with gzip.open(file, 'rt') as lines:
    texts = [json.loads(line)['text'] for line in lines]
  assert len(texts) == 400
  assert sum(map(len, texts)) == characters
  assert np.mean([len(text) for text in texts]) == pytest.approx(2040, rel=0.2)


def test_what_all_of_c4_takes_is_the_slope_times_its_documents():
  # 3600 s for as many documents as there are is an hour, whatever the start of a process takes.
  def of(share):
    documents = round(share * c4_scale.ALL)
    steady = {'memory of the reader': 5 << 20, 'memory of a worker': 5 << 20, 'seconds': 1.0}
    grows = {'cpu': 7.0 + 3600 * share, 'cpu of the reader': 360 * share}
    sizes = {'bytes': 2**40 * share, 'rows': 3 * documents, 'memory of the feed': 2**31 * share}
    return {'documents': documents, **steady, **grows, **sizes}

  measured = {row.what: row for row in c4_scale.held_to_bars([of(0.1), of(0.2), of(0.4)])}
  values = {name.removeprefix('estimate: '): row.value for name, row in measured.items()}
  assert values['all of C4, on one core'] == pytest.approx(1)
  assert values['with many cores, at least'] == pytest.approx(0.1)
  assert values['on disk'] == pytest.approx(1)
  assert values['rows'] == pytest.approx(3 * c4_scale.ALL / 1e6)
  assert values['memory of the feed'] == pytest.approx(2)
  assert measured['linear: R squared'].met
  assert measured['memory of a worker: growth'].value == 1
  assert measured['estimate: memory of the feed'].met is None


@pytest.mark.slow
def test_a_few_documents_are_materialized_and_measured(tmp_path, tmp_path_factory):
  text = tokenizing.generated(20_000)
  model = tmp_path_factory.mktemp('model') / 'sentences.model'
  train_sentencepiece.train_sentencepiece(tokenizing.cut(text), model, size=400)
  c4_scale.write_documents(text, 12, tmp_path)
  costs = c4_scale.measure(tmp_path, str(model), 4)
  assert costs['rows'] >= 3
  assert costs['cpu'] > costs['cpu of the reader'] >= 0
  assert costs['memory of a worker'] > 10 << 20
  assert costs['bytes'] > 4 * 568 * costs['rows']


def test_a_start_says_when_it_spoke_and_what_it_imported():
  listing = startup.run(startup.LISTS['browse_tasks show'])
  assert not listing.imported
  assert 0 < listing.first <= listing.all
  with pytest.raises(subprocess.CalledProcessError, match='browse_tasks'):
    startup.run(('cascades.browse_tasks', 'nothing'))


def test_points_of_the_sweep_are_compared_with_the_sequence_cascade_at_as_many_calls():
  curve = lambda *quality: {'large_calls': [0.0, 2.0, 4.0], 'quality': list(quality)}
  seeds = [{'bad': curve(0.2, 0.2, 0.6), 'good': curve(0.2, 0.4, 0.6)} for _ in range(2)]
  point = lambda rule, gamma, quality, calls: {
    'rule': rule, 'temperature': 0.0, 'gamma': gamma, 'quality': quality, 'large_calls': calls,
    'rejection_rate': [0.1, 0.1], 'tokens': [4.0, 4.0],
  }  # fmt: skip
  points = {
    'small-temperature0': point('small', None, [0.2, 0.2], [0.0, 0.0]),
    'large-temperature0': point('large', None, [0.6, 0.6], [4.0, 4.0]),
    'lossless-gamma5-temperature0': point('lossless', 5, [0.6, 0.6], [3.0, 3.0]),
    'opt-alpha0-gamma5-temperature0': point('opt', 5, [0.5, 0.6], [1.0, 3.0]),
  }
  measured = {'points': points, 'sequence': {'0': seeds}}
  own = speculation_claims.compared(measured, 0.0, 5)['opt-alpha0-gamma5-temperature0']
  assert speculation_claims.best_sequence(seeds) == 'good'
  assert own['quality - sequence']['mean'] == pytest.approx(((0.5 - 0.3) + (0.6 - 0.5)) / 2)
  assert own['calls - lossless']['mean'] == pytest.approx(-1.0)
  counted = {row.what: row.value for row in speculation_claims.rows(measured, 5)}
  assert counted['T 0: worse than the small model'] == 0
  assert counted['opt-alpha0-gamma5-temperature0: quality'] == pytest.approx(0.55)
