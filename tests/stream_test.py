import collections
import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cascades import online
from cascades import stream as program
from cascades.inference import endpoints, stream_files, stream_shifts
from cascades.inference.levels import LinearConfig, RecordedConfig
from cascades.predictions import rows as prediction_rows
from cascades.runtime import progress
from tests import openai_server, synthetic_tables
from tests.endpoint_tables import limits

OPTIONS = ('negative', 'positive')
GOOD, BAD = ['great', 'fine', 'lovely', 'warm'], ['awful', 'poor', 'dull', 'cold']
OFTEN = 1e9  # share of the time for checkpoints
PLAIN = ['the', 'film', 'a', 'plot', 'cast', 'scene', 'long', 'music']


def reviews(count, *, seed=0, noise=0.0):
  """Rows of short reviews, with gold labels and an expert that errs in a share of them."""
  rng = np.random.default_rng(seed)
  for number in range(count):
    label = int(rng.integers(2))
    words = [*rng.choice(PLAIN, 4), *rng.choice((BAD, GOOD)[label], 2)]
    said = 1 - label if rng.random() < noise else label
    yield {
      'id': f'r{number}', 'inputs': ' '.join(words), 'targets': OPTIONS[label],
      'expert': f'It is {OPTIONS[said]}.',
    }  # fmt: skip


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def go(
  folder, name='run', *, expert=None, overwrite=False, save_every=50, path=None, shifts=(),
  every_level=False, **changes,
):  # fmt: skip
  source = program.StreamSource(
    path or str(folder / 'reviews.jsonl'), OPTIONS, str(folder / name), save_every, OFTEN,
    overwrite, shifts, every_level,
  )  # fmt: skip
  options = {'levels': (LinearConfig(columns=256),), 'next_costs': (100.0,), **changes}
  return program.stream(source, expert or program.ExpertOptions(), program.OnlineOptions(**options))


def answers(folder, name='run'):
  return [json.loads(line) for line in (folder / name / 'answers.jsonl').read_text().splitlines()]


def killed_at(done, monkeypatch, run):
  """A run that dies at the checkpoint of so many queries."""
  saved = stream_files.StreamFolder.save

  def dies(self, content):
    if content.values['done'] == done:
      raise KeyboardInterrupt
    saved(self, content)

  monkeypatch.setattr(stream_files.StreamFolder, 'save', dies)
  with pytest.raises(KeyboardInterrupt):
    run()
  monkeypatch.setattr(stream_files.StreamFolder, 'save', saved)


@pytest.fixture
def folder(tmp_path):
  write(tmp_path / 'reviews.jsonl', reviews(400, noise=0.02))
  return tmp_path


def test_a_small_model_takes_over_from_the_expert(folder):
  summary = go(folder, expert=program.ExpertOptions(calls=160))
  own = answers(folder)
  assert [row['id'] for row in own] == [f'r{number}' for number in range(400)]
  assert {row['reason'] for row in own[:80]} == {'warm-up'}
  assert summary['calls'] == sum(row['level'] == 2 for row in own)
  assert summary['calls'] == pytest.approx(160, abs=6)
  assert summary['shares']['accuracy'] > 0.9
  assert summary['shares']['accuracy'] == pytest.approx(np.mean([row['correct'] for row in own]))
  late = [row['correct'] for row in own[300:] if row['level'] == 1]
  assert len(late) > 20
  assert np.mean(late) > 0.85
  for name in ('summary.json', 'stream.png', 'stream.svg'):
    assert (folder / 'run' / name).stat().st_size > 100
  costs = {row['level']: row['cost'] for row in own}
  assert costs == {1: 0.0, 2: 100.0}
  assert summary['cost'] == 100 * summary['calls']


def test_the_summary_has_the_policies_beside_the_cascade_by_what_was_recorded(folder):
  summary = go(folder, expert=program.ExpertOptions(calls=160))
  own, given = answers(folder), list(reviews(400, noise=0.02))
  expert = np.mean([row['targets'] in row['expert'] for row in given])
  assert summary['baselines']['levels']['expert'] == {'accuracy': expert, 'known': 1.0}
  guess = [OPTIONS[int(np.argmax(row['probabilities'][0]))] for row in own]
  alone = np.mean([word == row['targets'] for word, row in zip(guess, given, strict=True)])
  assert summary['baselines']['best single level'] == {'level': 1, 'accuracy': alone}
  static = summary['baselines']['best static']
  assert static['calls'] <= summary['calls']
  lost = static['accuracy'] - summary['shares']['accuracy']
  assert static['regret'] == pytest.approx(400 * lost)
  svg = (folder / 'run' / 'stream.svg').read_text()
  assert svg.count('id="legend') == 2
  write(folder / 'reviews.jsonl', [{k: v for k, v in r.items() if k != 'targets'} for r in given])
  assert go(folder, 'unlabeled')['baselines'] == {}


def test_each_level_may_run_on_each_query_for_the_summary_and_changes_no_answer(folder):
  two = {
    'levels': (LinearConfig(columns=256), LinearConfig(columns=64, words=1)), 'caches': (8, 8),
    'next_costs': (1.0, 100.0), 'decays': (0.9, 0.9), 'kappas': (0.4, 0.4),
    'gate_rates': (7e-4,) * 2, 'expert': program.ExpertOptions(calls=150),
  }  # fmt: skip
  lazy = go(folder, 'lazy', **two)
  every = go(folder, every_level=True, **two)
  chosen = lambda rows: [(row['id'], row['level'], row['answer'], row['deferring']) for row in rows]
  assert chosen(answers(folder)) == chosen(answers(folder, 'lazy'))
  assert {len(row['probabilities']) for row in answers(folder)} == {2}
  assert lazy['baselines']['best static']['small models'] == 1
  assert every['baselines']['best static']['small models'] == 2
  assert every['shares'] == lazy['shares']


def test_progress_is_logged_and_in_tensorboard(folder, caplog):
  with caplog.at_level(logging.INFO):
    summary = go(folder)
  last = [line for line in caplog.messages if line.startswith('query 400/400')][-1]
  assert f'cost {summary["cost"] / 400:.4g}' in last
  assert f'accuracy {summary["shares"]["accuracy"]:.1%}' in last
  events = progress.read_events(folder / 'run')
  assert {name: value for step, name, value in events if step == 400} == {
    **{name: pytest.approx(value, abs=1e-6) for name, value in summary['shares'].items()},
    'cost of a query': pytest.approx(summary['cost'] / 400),
  }


def test_gold_labels_change_no_answer(folder):
  judged = {'correct', 'small_correct', 'expert_correct'}
  go(folder, expert=program.ExpertOptions(calls=150))
  before = [{k: v for k, v in row.items() if k not in judged} for row in answers(folder)]
  rows = [json.loads(line) for line in (folder / 'reviews.jsonl').read_text().splitlines()]
  other = [{**row, 'targets': OPTIONS[number % 2]} for number, row in enumerate(rows)]
  write(folder / 'reviews.jsonl', other)
  go(folder, 'other', expert=program.ExpertOptions(calls=150))
  after = [{k: v for k, v in row.items() if k not in judged} for row in answers(folder, 'other')]
  assert after == before


def test_a_run_that_is_killed_anywhere_comes_out_the_same(folder, monkeypatch):
  go(folder, 'whole')
  killed_at(150, monkeypatch, lambda: go(folder))
  assert len(answers(folder)) >= 100  # some behind the checkpoint, which are cut off
  with open(folder / 'run' / 'answers.jsonl', 'ab') as file:
    file.write(b'{"id": "r1')  # a line that the kill has cut
  go(folder)
  assert answers(folder) == answers(folder, 'whole')
  with np.load(folder / 'run' / 'state.npz') as a, np.load(folder / 'whole' / 'state.npz') as b:
    assert sorted(a.files) == sorted(b.files)
    for name in set(a.files) - {'values'}:
      np.testing.assert_array_equal(a[name], b[name])


def test_a_finished_run_goes_on_with_rows_that_arrive_later(folder):
  go(folder)
  before = answers(folder)
  later = [
    *reviews(400, noise=0.02),
    *({**row, 'id': f'l{n}'} for n, row in enumerate(reviews(30))),
  ]
  write(folder / 'reviews.jsonl', [*reviews(400, noise=0.02), *later])
  go(folder)
  assert answers(folder)[:400] == before
  assert len(answers(folder)) == 430


def test_an_answer_is_never_paid_for_twice(folder):
  """The responses of an endpoint outlive a run that is killed before its checkpoint."""
  write(folder / 'words.jsonl', [{'inputs': ' '.join(w)} for w in ('ab', 'ba', 'abc', 'cab') * 5])
  options = {
    'parameters': 1e6, 'logprobs': False, 'responses_dir': str(folder / 'responses'),
    'limits': limits(concurrency=1),
  }  # fmt: skip
  with openai_server.running() as server:
    expert = program.ExpertOptions(f'{server.url}#large', endpoints.Endpoint(**options))
    source = {'expert': expert, 'path': str(folder / 'words.jsonl')}
    go(folder, 'first', **source)
    asked = len(server.requests)
    assert 0 < asked <= 20
    go(folder, 'second', **source)
    assert len(server.requests) == asked
  assert {row['answer'] for row in answers(folder, 'first')} == {''}  # letters name no class
  assert json.loads((folder / 'first' / 'summary.json').read_text())['counts']['unparsable'] == 20


def names_a_class(response, request):
  """Change of the test server: an expert that knows the good words."""
  text = request['messages'][-1]['content']
  response['choices'][0]['message']['content'] = OPTIONS[any(word in text for word in GOOD)]
  return response


def endpoint(server, folder, **changes):
  return program.ExpertOptions(
    f'{server.url}#large',
    endpoints.Endpoint(
      parameters=1e6, logprobs=False, responses_dir=str(folder / 'responses'),
      limits=limits(concurrency=1, tries=1, **changes),
    ),
  )  # fmt: skip


def test_an_endpoint_that_fails_leaves_the_answer_to_the_small_model_and_the_row_says_so(folder):
  with openai_server.running() as server:
    server.change = names_a_class
    server.faults.extend([None] * 90 + [openai_server.status(500)] * 20)
    summary = go(folder, expert=endpoint(server, folder), mu=0.0)
  failed = [row for row in answers(folder) if 'failed' in row]
  assert len(failed) == summary['counts']['failed'] == 20
  assert all('500' in row['failed'] and row['answer'] in OPTIONS for row in failed)
  assert summary['calls'] == sum(row['level'] == 2 for row in answers(folder)) - 20


@pytest.mark.slow
def test_an_expert_behind_a_url_is_paid_once_for_each_query_under_sigkill(folder):
  """Only a request that is on its way when the process is killed may be sent again."""
  rows = [{**row, 'inputs': f'{n} {row["inputs"]}'} for n, row in enumerate(reviews(600))]
  write(folder / 'reviews.jsonl', rows)
  with openai_server.running() as server:
    server.change, server.delay = names_a_class, 0.004
    bindings = [
      f'--gin.STREAM={folder / "reviews.jsonl"}', '--gin.SAVE_EVERY=50', '--gin.PARAMETERS=1e6',
      f'--gin.EXPERT={server.url}#large', f'--gin.RESPONSES_DIR={folder / "responses"}',
    ]  # fmt: skip
    kills = 0
    for count in (30, 77, 130):
      process = subprocess.Popen(command(folder, *bindings), stderr=subprocess.DEVNULL)
      while len(server.requests) < count and process.poll() is None:
        time.sleep(0.001)
      kills += process.poll() is None
      process.kill()
      process.wait()
    subprocess.run(command(folder, *bindings), check=True, stderr=subprocess.DEVNULL)
    asked = collections.Counter(server.prompts)
  own = answers(folder)
  assert [row['id'] for row in own] == [f'r{number}' for number in range(600)]
  assert kills == 3
  assert len(asked) == sum(row['level'] == 2 for row in own)
  assert sum(asked.values()) - len(asked) <= kills
  assert max(asked.values()) <= 2


def test_a_table_of_the_experts_answers_is_asked_by_id(folder):
  rows = [json.loads(line) for line in (folder / 'reviews.jsonl').read_text().splitlines()]
  answered = [
    prediction_rows.build(
      id=row['id'], inputs=row['inputs'], targets=[row['targets']], answer=row['expert'],
      tokens=[], logprobs=[], statistics={'accuracy': [1]},
    )
    for row in rows
  ]  # fmt: skip
  synthetic_tables.write(folder / 'table', 'reviews', answered)
  write(folder / 'reviews.jsonl', [{k: v for k, v in r.items() if k != 'expert'} for r in rows])
  go(folder, expert=program.ExpertOptions(str(folder / 'table')))
  assert answers(folder)[0]['answer'] in OPTIONS


def test_an_expert_without_an_answer_is_replaced_after_the_warm_up_and_an_error_in_it(folder):
  rows = list(reviews(400, noise=0.02))
  for row in rows[200:]:
    del row['expert']
  write(folder / 'reviews.jsonl', rows)
  summary = go(folder, mu=0.0)
  failed = [row for row in answers(folder) if 'failed' in row]
  assert len(failed) == summary['counts']['failed'] > 0
  assert 'has no key "expert"' in failed[0]['failed']
  assert all(row['answer'] in OPTIONS for row in failed)
  del rows[10]['expert']
  write(folder / 'reviews.jsonl', rows)
  with pytest.raises(OSError, match='cannot answer query 11, in the warm-up'):
    go(folder, 'other')


def test_duplicates_and_answers_without_a_class_are_counted(folder):
  rows = list(reviews(100))
  rows[20]['id'] = 'r3'
  rows[30]['expert'] = 'I cannot say.'
  write(folder / 'reviews.jsonl', rows)
  counts = go(folder)['counts']
  assert (counts['duplicates'], counts['unparsable'], counts['queries']) == (1, 1, 99)


def test_gold_labels_outside_the_options_are_counted_and_judge_nothing(folder):
  rows = list(reviews(100))
  rows[20]['targets'], rows[21]['targets'] = 'neutral', ['mixed', ' Positive']
  write(folder / 'reviews.jsonl', rows)
  counts = go(folder)['counts']
  assert (counts['label outside the options'], counts['labeled']) == (1, 99)
  assert 'correct' not in answers(folder)[20]


def test_duplicates_are_counted_once_by_a_run_that_goes_on(folder, monkeypatch):
  rows = list(reviews(200))
  rows[20]['id'], rows[170]['id'] = 'r3', 'r120'
  write(folder / 'reviews.jsonl', rows)
  killed_at(100, monkeypatch, lambda: go(folder))
  assert go(folder)['counts']['duplicates'] == 2


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    ('{"id": "x", "inputs": "the fi', 'line 401: the stream ends in the middle of a line'),
    ('{"id": "x"}\n', 'line 401: Object missing required field `inputs`'),
    ('[1]\n', 'line 401: Expected `object`'),
  ],
)
def test_a_damaged_row_is_named_and_the_answers_before_it_are_kept(folder, line, reason):
  with open(folder / 'reviews.jsonl', 'a') as file:
    file.write(line)
  with pytest.raises(stream_files.StreamError, match=reason):
    go(folder)
  assert len(answers(folder)) >= 350


def test_other_settings_are_refused_and_a_damaged_checkpoint_is_named(folder):
  go(folder)
  with pytest.raises(FileExistsError, match=r'mu is 0.001 there and 0.1 here.*OVERWRITE=True'):
    go(folder, mu=0.1)
  go(folder, mu=0.1, overwrite=True)
  state = folder / 'run' / 'state.npz'
  state.write_bytes(state.read_bytes()[:100])
  with pytest.raises(ValueError, match=r'state.npz is damaged'):
    go(folder, mu=0.1)


@pytest.mark.parametrize(
  ('make', 'reason'),
  [
    (lambda: program.StreamSource('a', ('yes', 'Yes'), 'b'), 'give two or more different texts'),
    (lambda: program.ExpertOptions(calls=3, share=0.1), 'BUDGET_SHARE are 2 budgets'),
    (
      lambda: program.ExpertOptions('http://a/v1#b', endpoints.Endpoint(parameters=1), dollars=1),
      'BUDGET_DOLLARS needs prices per token',
    ),
    (
      lambda: program.ExpertOptions('runs/table', endpoints.Endpoint(parameters=7e9)),
      "EXPERT='runs/table' is none",
    ),
    (lambda: program.OnlineOptions(caches=(8, 16)).settings(2), 'LEVELS names 1 small models'),
  ],
)
def test_settings_that_do_not_fit_are_refused(make, reason):
  with pytest.raises(ValueError, match=reason):
    make()


def test_a_budget_of_dollars_is_kept_by_what_recorded_answers_cost(folder, monkeypatch):
  """Prices that double in the middle: fewer calls are made then."""
  rows = [
    {**row, 'dollars': 0.002 if n < 1000 else 0.004}
    for n, row in enumerate(reviews(2000, noise=0.1))
  ]
  write(folder / 'reviews.jsonl', rows)
  money = {'expert': program.ExpertOptions(dollars=1.6), 'gain': 0.2}
  summary = go(folder, 'whole', **money)
  price = {row['id']: row['dollars'] for row in rows}
  called = [row['id'] for row in answers(folder, 'whole') if row['level'] == 2]
  assert summary['dollars'] == pytest.approx(sum(price[id] for id in called))
  assert summary['dollars'] == pytest.approx(1.6, rel=0.01)
  killed_at(1500, monkeypatch, lambda: go(folder, **money))
  assert go(folder, **money)['dollars'] == summary['dollars']
  assert answers(folder) == answers(folder, 'whole')
  del rows[700]['dollars'], rows[40]['dollars']
  write(folder / 'reviews.jsonl', rows)
  with pytest.raises(ValueError, match="price of the answer to 'r40' is not known"):
    go(folder, 'other', **money)


@pytest.mark.slow
def test_a_price_is_searched_that_spends_the_budget_and_a_killed_search_goes_on(
  folder, monkeypatch
):
  write(folder / 'reviews.jsonl', reviews(400, noise=0.15))
  expert = program.ExpertOptions(calls=320, search_mu=True)
  options = {'expert': expert, 'mu': 2e-3, 'decays': (0.9,), 'gate_rates': (1e-2,),
             'loss': online.double_softmax}  # fmt: skip
  summary = go(folder, **options)
  assert summary['calls'] == pytest.approx(320, abs=15)
  search = json.loads((folder / 'run' / 'search.json').read_text())
  assert search['mu'] == summary['mu']
  assert len(search['trials']) > 1
  nearest = min(search['trials'], key=lambda trial: abs(trial['calls'] - 320))
  assert nearest == {'mu': summary['mu'], 'calls': summary['calls']}
  assert len(answers(folder, f'run/{search["directory"]}')) == 400

  def asked(*arguments):
    raise AssertionError('a complete trial is answered anew')

  monkeypatch.setattr(program._StreamRun, '_expert', asked)
  assert go(folder, **options)['calls'] == summary['calls']


def test_shifts_of_the_rows_and_the_expert_are_those_of_the_settings(folder):
  longer = stream_shifts.SortedByLength()
  summary = go(folder, shifts=(longer, stream_shifts.MissingExpert(0.5)))
  lengths = {row['id']: len(row['inputs']) for row in reviews(400, noise=0.02)}
  ordered = [lengths[row['id']] for row in answers(folder)]
  assert ordered == sorted(ordered)
  assert len(ordered) == 400
  assert summary['counts']['failed'] > 20
  with pytest.raises(FileExistsError, match='shifts'):
    go(folder)


def test_three_levels_answer_with_a_recorded_second_model_and_go_on_after_a_kill(
  folder, monkeypatch
):
  other = reviews(400, seed=0, noise=0.1)  # the same texts until the first noise is drawn
  rows = list(reviews(400, noise=0.02))
  answer = {row['inputs']: row['expert'] for row in other}
  recorded = folder / 'second.jsonl'
  write(recorded, [{'inputs': r['inputs'], 'answer': answer.get(r['inputs'], '?')} for r in rows])
  three = {
    'levels': (
      LinearConfig(columns=256), LinearConfig(columns=64, words=1),
      RecordedConfig(str(recorded), OPTIONS),
    ),
    'next_costs': (1.0, 20.0, 100.0), 'caches': (8, 8, 8), 'decays': (0.9, 0.9, 0.5),
    'kappas': (0.4, 0.4, 0.0), 'gate_rates': (7e-4,) * 3,
    'expert': program.ExpertOptions(calls=150),
  }  # fmt: skip
  summary = go(folder, 'whole', **three)
  assert summary['calls'] == pytest.approx(150, abs=6)
  assert {row['level'] for row in answers(folder, 'whole')} == {1, 2, 3, 4}
  killed_at(200, monkeypatch, lambda: go(folder, **three))
  go(folder, **three)
  assert answers(folder) == answers(folder, 'whole')


def test_late_answers_survive_a_kill(folder, monkeypatch):
  late = {'expert': program.ExpertOptions(delay=40)}
  go(folder, 'whole', **late)
  killed_at(100, monkeypatch, lambda: go(folder, **late))
  go(folder, **late)
  assert answers(folder) == answers(folder, 'whole')


def command(folder, *bindings):
  return [
    sys.executable, '-m', 'cascades.stream', '--gin_file=runs/stream.gin',
    f'--gin.STREAM_DIR={folder / "run"}', f'--gin.OPTIONS={list(OPTIONS)}',
    '--gin.levels.LinearConfig.columns=256', *bindings,
  ]  # fmt: skip


def test_the_command_answers_standard_input(folder):
  done = subprocess.run(
    command(
      folder, '--gin.STREAM=-', '--gin.BUDGET_SHARE=0.2', '--gin.EXPERT_DELAY=2',
      '--gin.SHIFTS=(@stream_shifts.NoisyExpert(),)', '--gin.stream_shifts.NoisyExpert.share=0.05',
    ),
    input=(folder / 'reviews.jsonl').read_bytes(), capture_output=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr.decode()
  assert len(answers(folder)) == 400
  calls = sum(row['level'] == 2 for row in answers(folder)[80:])
  assert calls == pytest.approx(0.2 * 320, abs=7)


@pytest.mark.slow
def test_the_command_answers_what_has_arrived_before_more_arrives(folder):
  lines = (folder / 'reviews.jsonl').read_bytes().splitlines(keepends=True)
  with subprocess.Popen(
    command(folder, '--gin.STREAM=-'), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
  ) as process:  # fmt: skip
    for count in (3, 73):
      process.stdin.write(b''.join(lines[:count][-70:]))
      process.stdin.flush()
      deadline = time.monotonic() + 60
      while not (folder / 'run' / 'answers.jsonl').exists() or len(answers(folder)) < count:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.stdin.close()
  assert process.returncode == 0
  assert len(answers(folder)) == 73


@pytest.mark.slow
def test_sigkill_anywhere_answers_each_query_once(folder):
  write(folder / 'reviews.jsonl', reviews(4000, noise=0.02))
  bindings = [f'--gin.STREAM={folder / "reviews.jsonl"}', '--gin.SAVE_EVERY=200']
  for pause in (0.3, 1.1, 2.0):
    process = subprocess.Popen(command(folder, *bindings), stderr=subprocess.DEVNULL)
    while not (folder / 'run' / 'state.npz').exists() and process.poll() is None:
      time.sleep(0.05)
    time.sleep(pause)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
  subprocess.run(command(folder, *bindings), check=True, stderr=subprocess.DEVNULL)
  killed = answers(folder)
  assert [row['id'] for row in killed] == [f'r{number}' for number in range(4000)]
  os.rename(folder / 'run', folder / 'killed')
  subprocess.run(command(folder, *bindings), check=True, stderr=subprocess.DEVNULL)
  assert answers(folder) == killed
