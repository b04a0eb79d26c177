"""The arithmetic of the benchmark of small model aided training, without its runs."""

import json
import sys

import numpy as np
import pytest

from benchmarks import salt, salt_figure
from benchmarks.salt import ARMS, BASELINE, Arm

SIZES = {'model': 1000, 'teacher': 150, 'pool tokens': 2048}


def test_an_arm_pays_for_its_teacher_and_for_the_scores_of_its_rows():
  steps = np.array([1, 2, 10])
  plain = 6 * 1000 * salt.TOKENS
  np.testing.assert_allclose(salt.flops(Arm(), steps, SIZES), plain * steps)
  aided = salt.flops(Arm(distill=2), steps, SIZES) / plain
  np.testing.assert_allclose(aided, [1.05, 2.1, 10.1])
  selected = salt.flops(Arm(selected=2), steps, SIZES)
  np.testing.assert_allclose(selected, plain * steps + 2 * 150 * 2048)


def test_thirds_of_the_tokens_are_by_the_teachers_loss():
  teacher, model = np.array([3.0, 0.1, 2.0, 0.2, 9.0, 2.5]), np.arange(6.0)
  assert salt.by_slice(model, teacher) == {'all': 2.5, 'easy': 2.0, 'medium': 3.5, 'hard': 2.0}


def measured():
  levels = {BASELINE: 2.4, 'RKD': 2.5, 'SALT': 2.3, 'SALT_DS': 2.35, 'LONGER': 2.2}
  flops = {BASELINE: 10.0, 'RKD': 11.0, 'SALT': 10.5, 'SALT_DS': 11.5, 'LONGER': 12.0}
  arms = {
    name: {
      'last': [dict.fromkeys(('all', *salt.SLICES), level + seed) for seed in (0.0, 0.1)],
      'steps': [100, 200],
      'flops': [5.0, flops[name]],
      'curves': [[3.0, level], [3.0, level + 0.1]],
    }
    for name, level in levels.items()
  }
  return {'arms': arms, 'sizes': SIZES}


def test_equal_flops_are_those_of_a_run_without_a_teacher_of_its_own_length():
  runs = measured()['arms']
  assert salt.at_equal('flops', runs, 'RKD') == pytest.approx([0.2, 0.2])  # 2.5 - 2.3
  assert salt.at_equal('flops', runs, BASELINE) == pytest.approx([0.0, 0.0])


def test_seconds_are_those_of_measured_steps_and_of_scored_batches():
  timed = {'plain': 2.0, 'aided': 3.0, 'scores': 0.5}
  steps = np.array([1, 2, 10])
  np.testing.assert_allclose(salt.seconds(Arm(), steps, timed, 4), [2, 4, 20])
  np.testing.assert_allclose(salt.seconds(Arm(distill=2), steps, timed, 4), [3, 6, 22])
  np.testing.assert_allclose(salt.seconds(Arm(selected=2), steps, timed, 4), [4, 6, 22])


def test_seconds_are_added_to_results_without_training(tmp_path, monkeypatch):
  path = tmp_path / 'salt.json'
  path.write_text(
    json.dumps({'title': 'T', 'commit': 'abc', 'settings': {'steps': 2}, 'details': measured()})
  )
  monkeypatch.setattr(salt, 'timed_steps', lambda: {'plain': 2.0, 'aided': 3.0, 'scores': 0.5})
  salt.add_seconds(path, tmp_path / 'salt.png')
  written = json.loads(path.read_text())
  assert written['settings'] == {'commit of the runs': 'abc', 'steps': 2}
  rows = {row['what']: row['value'] for row in written['rows']}
  # 200 steps of RKD, all with a teacher, cost as much as 300 of BASELINE, beyond LONGER's 200
  assert rows[f'RKD: seconds over {BASELINE}'] == pytest.approx(1.5)
  assert rows[f'RKD - {BASELINE}: at equal seconds'] == pytest.approx(2.5 - 2.2)
  assert rows['seconds of a step with a teacher over one without'] == pytest.approx(1.5)


def test_rows_and_figure_name_every_arm(tmp_path):
  numbers = salt.with_seconds(measured(), {'plain': 2.0, 'aided': 2.2, 'scores': 0.5})
  rows = {row.what: row for row in salt.summarize(numbers)}
  assert rows[f'RKD - {BASELINE}: all'].value == pytest.approx(0.1)
  assert rows[f'RKD - {BASELINE}: at equal FLOPs'].note == '+0.2000 .. +0.2000 over seeds'
  assert rows['SALT_DS - SALT: all'].value == pytest.approx(0.05)
  assert rows[f'RKD: FLOPs over {BASELINE}'].value == pytest.approx(1.1)
  assert rows['seconds of a step with a teacher over one without'].value == pytest.approx(1.1)
  salt_figure.draw(numbers['arms'], tmp_path / 'salt.png')
  assert (tmp_path / 'salt.png').read_bytes()[:4] == b'\x89PNG'


def test_a_level_is_reached_between_validations_or_never():
  steps, curve = [50, 100, 150], [3.0, 2.0, 1.0]
  assert [salt.step_of(level, steps, curve) for level in (3.5, 3.0, 1.5)] == [50, 50, 125]
  assert salt.step_of(0.9, steps, curve) is None
  assert salt.step_of(2.0, steps, [3.0, 1.0, 2.5]) == 75  # the first time counts
  rows = {row.what: row.value for row in salt.summarize(measured())}
  # From 3.0 after 100 steps to 2.2 and 2.3 after 200; BASELINE ends at 2.4 and 2.5.
  parity = "first step at BASELINE's last loss"
  assert rows[f'LONGER: {parity}'] == pytest.approx(100 + 50 * (0.6 / 0.8 + 0.5 / 0.7))
  assert f'RKD: {parity}' not in rows


def test_earlier_results_are_summarized_as_they_were_measured(tmp_path, monkeypatch):
  output, figure = tmp_path / 'salt.json', tmp_path / 'salt.png'
  options = ['--summarize', '--output', str(output), '--figure', str(figure)]
  monkeypatch.setattr(sys, 'argv', ['salt', *options])
  with pytest.raises(SystemExit, match='does not exist: run the benchmark first'):
    salt.main()
  earlier = {'title': 'T', 'commit': 'abc', 'machine': {'cores': 2}, 'settings': {'steps': 2}}
  output.write_text(json.dumps(earlier | {'rows': [], 'details': measured()}))
  salt.main()
  written = json.loads(output.read_text())
  assert {name: written[name] for name in earlier} == earlier
  assert [row['what'] for row in written['rows']] == [
    row.what for row in salt.summarize(measured())
  ]
  assert figure.exists()


def test_the_figure_has_the_range_over_seeds(tmp_path, monkeypatch):
  bands = []
  monkeypatch.setattr(
    salt_figure.figures, 'encode', lambda figure, _: bands.append(figure.axes[0].collections) or b''
  )
  salt_figure.draw(measured()['arms'], tmp_path / 'salt.png')
  heights = [np.ptp(band.get_paths()[0].vertices[:, 1]) for band in bands[0]]
  # From 3.0, where both seeds agree, down to the better one at the end.
  np.testing.assert_allclose(heights, [0.6, 0.5, 0.7, 0.65, 0.8])


def test_arms_differ_in_the_numbers_of_their_steps_alone(monkeypatch, tmp_path):
  commands = {}
  for name, arm in ARMS.items():
    monkeypatch.setattr(
      salt, 'command', lambda *_, name=name, **settings: commands.update({name: settings})
    )
    salt.train(tmp_path, name, salt.MODEL, arm, seed=0)
  assert commands['SALT']['DISTILL_STEPS'] == salt.DISTILL_STEPS
  differ = {
    name: {
      key for key in {*own, *commands[BASELINE]} if own.get(key) != commands[BASELINE].get(key)
    }
    - {'MODEL_DIR', 'TEACHER_CHECKPOINT_PATH', 'SELECTED', 'SELECTED_ROWS'}
    for name, own in commands.items()
  }
  assert differ == {
    BASELINE: set(),
    'RKD': {'DISTILL_STEPS'},
    'SALT': {'DISTILL_STEPS'},
    'SALT_DS': {'DISTILL_STEPS', 'SELECTED_STEPS'},
    'SELECTION': {'SELECTED_STEPS'},
    'LONGER': {'TRAIN_STEPS'},
  }


def test_documents_are_split_without_overlap(monkeypatch, tmp_path):
  import gzip

  documents = [f'document {number} ' * 5 for number in range(60)]
  source = tmp_path / 'docs.jsonl.gz'
  source.write_bytes(gzip.compress('\n'.join(json.dumps({'text': t}) for t in documents).encode()))
  monkeypatch.setattr(salt, 'VALIDATION_BYTES', 500)
  salt.write_data(source, tmp_path / 'data', train_bytes=2000)
  train, validation = (
    set((tmp_path / 'data' / f'c4-{split}.00000-of-00001.json').read_text().splitlines())
    for split in ('train', 'validation')
  )
  assert not train & validation
  assert sum(map(len, validation)) >= 500 - len(validation)
  assert len(train) > len(validation) > 0
