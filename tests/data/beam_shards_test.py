"""Shards by a pipeline: divided without loss, and the same bytes as those of local processes.

Tests with Beam are skipped where it is not installed: its version of protobuf excludes others.
"""

import gzip
import json
import re
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascades.data import beam_shards, materialize
from cascades.tasks import c4, local
from cascades.tasks.sources import Sources
from cascades.tasks.task import Row, both
from cascades.tokenizers import vocabularies
from tests.tiny_tasks import ROOT, spelling, tiny_task

BYTES = both(vocabularies.bytes_vocabulary(100))


@pytest.fixture
def documents(tmp_path):
  """C4 in three files of 5, 1 and 40 documents."""
  folder, number = tmp_path / 'c4', 0
  folder.mkdir()
  for file, count in enumerate((5, 1, 40)):
    with gzip.open(folder / f'c4-train.{file:05d}-of-01024.json.gz', 'wt') as stream:
      for _ in range(count):
        stream.write(json.dumps({'text': f'document {number} ' * (1 + number * 7 % 90)}) + '\n')
        number += 1
  return folder


@pytest.fixture
def beam():
  return pytest.importorskip('apache_beam')


def pipeline(*flags, readers=2):
  return beam_shards.ShardPipeline(['--runner=DirectRunner', *flags], readers)


def contents(records):
  return {path.name: path.read_bytes() for path in records.directory.iterdir()}


def test_shards_begin_in_the_file_that_their_reader_opens():
  counts = [(2, 4), (0, 5), (1, 1)]  # in any order
  assert list(beam_shards.divided(counts, rows_per_shard=2)) == [(0, 0, (0, 3)), (2, 6, (3, 5))]
  existing = frozenset({0, 2, 3})
  stretches = list(beam_shards.divided(counts, rows_per_shard=2, existing=existing))
  assert stretches == [(0, 0, (1, 2)), (2, 6, (4, 5))]


@given(
  st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(1, 9), st.integers(1, 7),
  st.frozensets(st.integers(0, 30)),
)  # fmt: skip
def test_every_missing_shard_is_written_by_one_reader(rows, rows_per_shard, readers, existing):
  stretches = list(
    beam_shards.divided(
      enumerate(rows), rows_per_shard=rows_per_shard, existing=existing, readers=readers
    )
  )
  written = [i for stretch in stretches for i in range(*stretch.shard_range) if i not in existing]
  assert written == [i for i in range(-(-sum(rows) // rows_per_shard)) if i not in existing]
  for stretch in stretches:
    before = sum(rows[: stretch.file])
    assert stretch.rows_before == before
    for index in range(*stretch.shard_range):
      assert before <= index * rows_per_shard < before + rows[stretch.file]


def test_the_rows_of_all_files_are_those_of_the_split(documents):
  task = c4.causal_lm(Sources(documents))
  readers, rows = task.row_readers('train'), []
  assert len(readers) == 3
  for reader in readers:
    rows += reader(len(rows))
  assert rows == list(task.rows('train'))
  assert len(tiny_task(spelling(3)).row_readers('train')) == 1


def test_without_beam_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam.options.pipeline_options', None)
  with pytest.raises(ImportError, match=r'lm-cascades\[beam\]'):
    pipeline()


def test_flags_of_beam_need_a_runner(capsys):
  from cascades import browse_tasks

  with pytest.raises(SystemExit):
    browse_tasks.main(['materialize', 'superglue_rte', '--direct_num_workers=2'])
  assert 'unrecognized arguments: --direct_num_workers=2' in capsys.readouterr().err


CLUSTERS = {  # flags, by the class of Beam that reads them
  'FlinkRunner': {
    'FlinkRunnerOptions': {'flink_master': 'host:8081', 'parallelism': 8},
    'PortableOptions': {'environment_type': 'LOOPBACK'},
  },
  'SparkRunner': {
    'SparkRunnerOptions': {'spark_master_url': 'spark://host:7077'},
    'PortableOptions': {'environment_type': 'DOCKER'},
  },
  'PortableRunner': {'PortableOptions': {'job_endpoint': 'host:8099'}},
  'DataflowRunner': {
    'GoogleCloudOptions': {
      'project': 'mine',
      'region': 'us-east1',
      'temp_location': 'gs://mine/temporary',
    },
    'WorkerOptions': {'num_workers': 64},
  },
}


@pytest.mark.parametrize('runner', CLUSTERS)
def test_runners_of_clusters_get_the_pipeline_and_their_flags(
  beam, runner, hand_written, tmp_path, monkeypatch, capsys
):
  """Flags are read by Beam's own classes, and the pipeline is one that any runner can be sent."""
  from apache_beam.options import pipeline_options
  from apache_beam.runners.runner import create_runner

  from cascades import browse_tasks

  sent = []

  def run_pipeline(self, pipeline, options):
    sent.append((type(self).__name__, pipeline.to_runner_api(), options))
    raise OSError('no cluster')

  monkeypatch.setattr(type(create_runner(runner)), 'run_pipeline', run_pipeline)
  words = [f'--{name}={value}' for own in CLUSTERS[runner].values() for name, value in own.items()]
  code = browse_tasks.main(
    ['materialize', 'superglue_rte', f'--data_dir={hand_written}', '--split=train',
     f'--output={tmp_path}', f'--runner={runner}', *words]
  )  # fmt: skip
  assert (code, 'no cluster' in capsys.readouterr().err) == (1, True)
  ((name, protocol, options),) = sent
  assert name == runner
  labels = {transform.unique_name for transform in protocol.components.transforms.values()}
  assert {'count rows', 'write shards'} <= labels
  for view, own in CLUSTERS[runner].items():
    read = options.view_as(getattr(pipeline_options, view))
    assert {flag: getattr(read, flag) for flag in own} == own


@pytest.mark.parametrize('make', [c4.causal_lm, c4.span_corruption, c4.prefix_lm])
def test_documents_of_several_files_give_the_records_of_local_processes(
  beam, documents, tmp_path, make
):
  task = make(Sources(documents))
  write = lambda name, **how: materialize.materialize(
    task, 'train', BYTES, tmp_path / name, rows_per_shard=4, **how
  )
  here, there = write('local'), write('beam', write_shards=pipeline(readers=8))
  assert contents(here) == contents(there)
  assert len(there.manifest.shards) == 12


def test_real_rows_give_the_records_of_local_processes(beam, real_data, tmp_path):
  from cascades.tasks import catalog

  task = catalog.get('superglue_rte', real_data / 'superglue')
  for split in task.splits:
    write = lambda name, split=split, **how: materialize.materialize(
      task, split, BYTES, tmp_path / name, rows_per_shard=100, **how
    )
    assert contents(write('local')) == contents(write('beam', write_shards=pipeline()))


def test_finished_shards_are_not_written_again_and_counters_say_so(beam, tmp_path, caplog):
  task = tiny_task(spelling(37))
  write = lambda **how: materialize.materialize(
    task, 'train', BYTES, tmp_path / 'records', rows_per_shard=5, **how
  )
  records = write()
  expected = contents(records)
  partial = records.directory.with_name(f'.{records.directory.name}.partial')
  records.directory.rename(partial)
  (partial / 'manifest.json').unlink()
  for index in (2, 6):
    (partial / f'{index:05d}.json').unlink()
  (partial / '.writing-killed').mkdir()
  untouched = (partial / '00001.tokens').stat().mtime
  with caplog.at_level('INFO', 'cascades'):
    assert contents(write(write_shards=pipeline())) == expected
  assert '10 rows tokenized' in caplog.text
  assert '2 shards written and 6 that existed' in caplog.text
  assert (records.directory / '00001.tokens').stat().mtime == untouched


def test_a_row_that_cannot_be_used_is_an_error_that_names_file_and_line(beam, tmp_path):
  file = tmp_path / 'rows.jsonl'
  lines = [json.dumps({'inputs': 'a', 'targets': 'b'})] * 7
  file.write_text('\n'.join([*lines, '{"inputs": 3}', *lines]))
  task = local.local_jsonl('mine', {'train': file})
  with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}, line 8: 'inputs' has 3"):
    materialize.materialize(task, 'train', BYTES, tmp_path / 'r', write_shards=pipeline())


def test_equal_ids_are_an_error(beam, tmp_path):
  task = tiny_task([Row('1', 'a', ('b',)), Row('1', 'c', ('d',))])
  with pytest.raises(ValueError, match=r"^tiny, split train has two rows with the id '1'"):
    materialize.materialize(task, 'train', BYTES, tmp_path, write_shards=pipeline())


KILLED = """
import sys
from cascades.data import beam_shards, materialize
from cascades.tasks import local
from tests.data.beam_shards_test import BYTES
flags = ['--runner=DirectRunner', '--direct_running_mode=multi_processing']
flags.append('--direct_num_workers=2')
task = local.local_jsonl('mine', {'train': sys.argv[1]})
materialize.materialize(task, 'train', BYTES, sys.argv[2], rows_per_shard=2000,
                        write_shards=beam_shards.ShardPipeline(flags))
"""


@pytest.mark.slow
def test_a_killed_pipeline_of_several_processes_is_resumed(beam, tmp_path):
  file = tmp_path / 'rows.jsonl'
  file.write_text(''.join(
    json.dumps({'inputs': f'{n} ' * 40, 'targets': 'b' * (n % 90 + 1)}) + '\n'
    for n in range(60_000)
  ))  # fmt: skip
  command = [sys.executable, '-c', KILLED, file, tmp_path / 'beam']
  process = subprocess.Popen(command, cwd=ROOT)
  finished = lambda: len(list((tmp_path / 'beam').glob('mine/.*.partial/[0-9]*.json')))
  deadline = time.monotonic() + 60
  while finished() < 2:
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert 2 <= finished() < 30
  subprocess.run(command, cwd=ROOT, check=True, timeout=120)
  expected = materialize.materialize(
    local.local_jsonl('mine', {'train': file}), 'train', BYTES, tmp_path / 'local',
    rows_per_shard=2000,
  )  # fmt: skip
  (directory,) = (tmp_path / 'beam' / 'mine').iterdir()
  assert {path.name: path.read_bytes() for path in directory.iterdir()} == contents(expected)
