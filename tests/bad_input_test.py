"""Bad tables are refused by name by the programs, and nothing that exists is touched."""

import re
import subprocess
import sys

import numpy as np
import pytest

from cascades import calibrate, evaluate
from cascades.evaluation.calibration import Demands
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.tables import Tables
from cascades.predictions import markers, rows
from cascades.reporting import figures
from cascades.reporting.report import Report
from tests import synthetic_tables


def write(directory, *, size=40, first=0, task='a', confidence=None, **changes):
  """Table of answers with a confidence, and without log-probabilities."""
  generator = np.random.default_rng(first)
  table = [
    rows.build(
      id=f'q{i}', inputs=f'question {i}', targets=['yes'], answer='yes', tokens=[], logprobs=[],
      statistics={'accuracy': [float(generator.random() < 0.7), 1]},
      details=rows.NO_DETAILS._replace(columns={'confidence': confidence or generator.random()}),
    )
    for i in range(first, first + size)
  ]  # fmt: skip
  synthetic_tables.write(directory / 'test', task, table, shards=1, **changes)
  return str(directory)


@pytest.fixture(scope='module', autouse=True)
def no_figures():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(figures, 'draw', lambda _: {})
    yield


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Folder with good tables, a report and a policy."""
  root = tmp_path_factory.mktemp('finished')
  small, large = write(root / 'small'), write(root / 'large', first=0, confidence=0.5)
  evaluate_tables(root, small, large)
  calibrate_tables(root, small, large)
  return root


def evaluate_tables(root, small, large, **options):
  evaluate.evaluate(
    Tables({'s': small}, large), str(root / 'report'), settings=Settings(resamples=10),
    report=Report(interactive=False), overwrite=True, **options,
  )  # fmt: skip


def calibrate_tables(root, small, large, demands=None):
  calibrate.calibrate(
    Tables({'s': small}, large, split='test'), str(root / 'policy.json'),
    demands or Demands(quality=0.3), decider='confidence', overwrite=True,
  )  # fmt: skip


def contents(root):
  files = [root / 'policy.json', *(root / 'report').rglob('*')]
  return {str(path): path.read_bytes() for path in files if path.is_file()}


def out_of_range(directory):
  """Table with a confidence that its system should not have written."""
  path = write(directory)
  (shard,) = (directory / 'test').glob('*-of-00001')
  data = re.sub(rb'"confidence": ?', b'"confidence": 1', shard.read_bytes(), count=1)
  fingerprint = ''
  markers.write(shard, data, rows=40, fingerprint=fingerprint)
  return path


GREEDY = {'sampler': 'greedy', 'temperature': 0.0}
BAD = {
  'other tasks': (lambda d: write(d, task='b'), r"answers the tasks \['b'\].*TASKS"),
  'other rows': (lambda d: write(d, first=1), "1 of 40 examples have no answer by the .*'q"),
  'other decoding': (
    lambda d: write(d, decoding={**GREEDY, 'temperature': 1.0}),
    r"temperature \(1.0 and .*ALLOW_DIFFERENCES=\['temperature'\]",
  ),
  'another version': (
    lambda d: write(d, definition='2'), r"definition \('2' and .*ALLOW_DIFFERENCES"
  ),
  'a confidence out of range': (out_of_range, r'test/a-predict.jsonl.*, line 1: aux.confidence'),
  'no labels': (lambda d: write(d, unlabelled=40), '40 of 40 rows .* have no target'),
  'one row': (lambda d: write(d, size=1), 'row'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
@pytest.mark.parametrize('program', [evaluate_tables, calibrate_tables])
def test_bad_tables_are_refused_by_name_and_nothing_is_overwritten(
  finished, tmp_path, name, program
):
  make, message = BAD[name]
  small = make(tmp_path / 'small')
  size = 1 if name == 'one row' else 40
  large = write(tmp_path / 'large', size=size, definition='1', decoding=GREEDY)
  before = contents(finished)
  with pytest.raises(ValueError, match=message):
    program(finished, small, large)
  assert contents(finished) == before


def test_missing_prices_are_refused_by_name_and_nothing_is_overwritten(finished):
  tables = str(finished / 'small'), str(finished / 'large')
  before = contents(finished)
  with pytest.raises(ValueError, match=r"no dollars .*DOLLARS=\{'s': "):
    evaluate_tables(finished, *tables, chains=Chains(axes=['dollars']))
  demands = Demands(cost=1.0, cost_axis='dollars', most_cost=2.0)
  with pytest.raises(ValueError, match="40 of 40 rows of task 'a' have no dollars"):
    calibrate_tables(finished, *tables, demands=demands)
  assert contents(finished) == before


def test_equal_scores_leave_no_threshold_to_choose(tmp_path, capsys):
  small, large = (write(tmp_path / name, confidence=0.5) for name in ('small', 'large'))
  evaluate_tables(tmp_path, small, large)
  assert 'There is no threshold to choose: all rows have one score.' in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_refuses_in_one_sentence(finished):
  done = subprocess.run(
    [sys.executable, '-m', 'cascades.evaluate', '--gin_file=runs/evaluate.gin',
     f'--gin.SMALL={finished}/small', f'--gin.LARGE={finished}/large', '--gin.OVERWRITE=True',
     f'--gin.EVAL_OUTPUT_DIR={finished}/report', "--gin.COST_AXES=['dollars']"],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 1
  assert done.stderr.startswith("cascades.evaluate: error: COST_AXES has 'dollars', and model")
  assert len(done.stderr.strip().splitlines()) == 2  # and how to get a traceback
