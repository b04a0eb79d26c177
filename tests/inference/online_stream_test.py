import dataclasses

import numpy as np
import pytest

from cascades import online, online_costs
from cascades.inference import online_stream
from cascades.inference.levels import EncoderConfig, LinearConfig, RecordedConfig
from cascades.inference.online_stream import ExpertError
from cascades.online_step import CallBudget, Query
from tests.interop import encoders_test

TWO = online.OnlineSettings(
  classes=2, next_costs=(1.0, 100.0), caches=(8, 16), decays=(0.97, 0.95), kappas=(0.4, 0.3),
  gate_rates=(7e-3, 7e-3), mu=1e-3,
)  # fmt: skip
WORDS = [
  'red',
  'green',
  'blue',
  'one',
  'two',
  'three',
  'cold',
  'warm',
  'fast',
  'slow',
  'old',
  'new',
]


PIECES = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'hello', 'world', 'good', 'evening']


def encoder(directory):
  """Folder of a tiny encoder of four words."""
  encoders_test.write(directory / 'encoder', 'bert')
  (directory / 'encoder' / 'vocab.txt').write_text('\n'.join(PIECES) + '\n')
  return str(directory / 'encoder')


class Seen:
  """Logistic regression on the first dimensions of points, which texts number."""

  def __init__(self, points, dimensions):
    self.points, self.linear = points[:, :dimensions], np.zeros(dimensions)
    self.batches = []

  def prepare(self, texts):
    return self.points[[int(text) for text in texts]]

  def predict(self, prepared, rows):
    ones = 1 / (1 + np.exp(-prepared[rows] @ self.linear))
    return np.stack([1 - ones, ones], 1)

  def partial_fit(self, texts, labels):
    self.batches.append(list(zip(texts, labels, strict=True)))
    x = self.prepare(texts)
    for _ in range(5):
      ones = 1 / (1 + np.exp(-x @ self.linear))
      self.linear = self.linear + 0.3 * x.T @ (np.asarray(labels) - ones) / len(labels) * 8


class Sure:
  """Level that is sure of the first class, and learns nothing; None runs nowhere."""

  def __init__(self, probabilities):
    self.probabilities = probabilities

  def prepare(self, texts):
    return np.array([self.probabilities] * len(texts))

  def predict(self, prepared, rows):
    assert self.probabilities is not None, 'this level is not to run'
    return prepared[rows]


def synthetic(count, *, seed=0, noise=0.05):
  """Points, gold labels of a linear rule, and an expert that errs in a share of the answers."""
  rng = np.random.default_rng(seed)
  points = rng.normal(size=(count, 10))
  gold = (points @ rng.normal(size=10) > 0).astype(int)
  said = np.where(rng.random(count) < noise, 1 - gold, gold)
  return points, gold, said


def answers(settings, small, said, count, **options):
  queries = [Query(number, f'q{number}', str(number)) for number in range(count)]
  state = options.pop('state', None) or online.start(settings, seed=0)
  expert = options.pop('expert', lambda query: int(said[query.number]))
  return list(online_stream.run(settings, small, expert, queries, state, seed=7, **options))


def streamed(mu, count=2500, **options):
  points, gold, said = synthetic(count)
  small = [Seen(points, 4), Seen(points, 10)]
  got = answers(dataclasses.replace(TWO, mu=mu), small, said, count, **options)
  return got, gold, said, small


@pytest.mark.slow
def test_the_expert_is_asked_less_and_less_and_a_higher_price_asks_it_less():
  """The synthetic stream of the specification, shorter: trends alone."""
  calls = []
  for mu in (0.0, 3e-3, 1e-2):
    got, gold, said, _ = streamed(mu)
    decisions = [answer.choice for answer, _ in got]
    assert [d.reason for d in decisions[:160]] == ['warm-up'] * 160
    assert decisions[160].reason != 'warm-up'
    called = np.array([d.level == 2 for d in decisions])
    assert called.sum() == got[-1][1].calls
    calls.append(int(called.sum()))
    if mu == 3e-3:
      assert called[-500:].mean() < called[160:660].mean()
      accuracy = np.mean([answer.label == g for (answer, _), g in zip(got, gold, strict=True)])
      assert accuracy > np.mean(said == gold) - 0.03
      assert called.mean() < 0.5
  assert calls == sorted(calls, reverse=True)
  assert calls[-1] >= 0.8 * online_costs.least_calls(2500, caches=TWO.caches, decays=TWO.decays)


def test_blocks_decide_exactly_as_query_by_query():
  """Also with models that train in the middle of a block, and levels that are rarely reached."""
  together, _, _, trained = streamed(3e-3, 700)
  alone, _, _, also = streamed(3e-3, 700, block=1)
  for (a, s), (b, t) in zip(together, alone, strict=True):
    assert a._replace(deferring=(), probabilities=()) == b._replace(deferring=(), probabilities=())
    np.testing.assert_allclose(a.deferring, b.deferring, atol=1e-6)
    np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-12)
    assert (s.updates, s.calls) == (t.updates, t.calls)
  np.testing.assert_array_equal(trained[1].linear, also[1].linear)


def test_queries_behind_a_gap_are_answered_before_what_is_waited_for():
  points, _, said = synthetic(10)
  read = []

  def arriving():
    for number in range(10):
      read.append(number)
      yield Query(number, f'q{number}', str(number))
      if number == 3:
        yield None

  small = [Seen(points, 4), Seen(points, 10)]
  expert = lambda query: int(said[query.number])
  stream = online_stream.run(TWO, small, expert, arriving(), online.start(TWO, seed=0), seed=7)
  assert [next(stream)[0].query.number for _ in range(4)] == [0, 1, 2, 3] == read
  assert len(list(stream)) == 6


@pytest.mark.parametrize('block', [1, 7])
def test_words_and_an_encoder_decide_to_the_last_bit_alike_in_blocks_and_alone(tmp_path, block):
  """Also where texts of other lengths stand beside them, and where few reach the encoder."""
  folder = encoder(tmp_path)
  rng = np.random.default_rng(0)
  lines = [' '.join(rng.choice(PIECES[5:], rng.integers(1, 30))) for _ in range(500)]
  said = [int('hello' in line) ^ int(rng.random() < 0.1) for line in lines]

  def streamed_in(size):
    small = [LinearConfig(columns=64, rate=0.3).build(2, 0), EncoderConfig(folder).build(2, 1)]
    queries = (Query(i, str(i), line) for i, line in enumerate(lines))
    return list(
      online_stream.run(
        TWO, small, lambda query: said[query.number], queries, online.start(TWO, seed=0), seed=7,
        block=size, budget=CallBudget(250, 500),
      )
    ), small  # fmt: skip

  (together, trained), (alone, also) = streamed_in(128), streamed_in(block)
  assert [answer for answer, _ in together] == [answer for answer, _ in alone]
  assert {answer.choice.level for answer, _ in alone} == {0, 1, 2}
  for a, b in zip(trained, also, strict=True):
    for name, value in a.state().items():
      np.testing.assert_array_equal(b.state()[name], value)


def test_small_models_learn_from_the_experts_answers_alone_and_each_once_in_order():
  got, _, said, small = streamed(3e-3, 700)
  asked = [answer.query.number for answer, _ in got if answer.choice.level == 2]
  for model in small:
    learned = [pair for batch in model.batches for pair in batch]
    expected = [(str(number), int(said[number])) for number in asked]
    assert learned == expected[: len(learned)]
    assert len(learned) >= len(expected) - 16


def test_certain_jumps_leave_all_to_the_expert_and_impossible_ones_never_occur():
  points, gold, said = synthetic(300)
  small = lambda: [Seen(points, 4), Seen(points, 10)]
  jumping = answers(dataclasses.replace(TWO, decays=(1.0, 1.0)), small(), said, 300)
  assert {answer.choice.level for answer, _ in jumping} == {2}
  assert jumping[-1][1].calls == 300
  accuracy = np.mean([answer.label == g for (answer, _), g in zip(jumping, gold, strict=True)])
  assert accuracy == np.mean(said == gold)
  still = answers(dataclasses.replace(TWO, decays=(0.0, 0.0)), small(), said, 300)
  assert {answer.choice.reason for answer, _ in still} <= {'warm-up', 'answer', 'gate'}


def test_a_frozen_cascade_is_a_static_one():
  points, _, said = synthetic(300)
  got, _, _, small = streamed(3e-3, 700)
  state = got[-1][1]
  weights = [model.linear.copy() for model in small]
  for model in small:
    model.points = points[:, : len(model.linear)]
  frozen = answers(TWO, small, said, 300, state=state, learning=False)
  for model, before in zip(small, weights, strict=True):
    np.testing.assert_array_equal(model.linear, before)
  assert frozen[-1][1].updates == state.updates
  for answer, _ in frozen[:50]:
    p = np.array([[m.predict(m.prepare([answer.query.text]), [0])[0] for m in small]])
    d = np.asarray(online.gate(state.gates, np.float32(p)))[0]
    ran = len(answer.deferring)
    np.testing.assert_allclose(answer.deferring, d[:ran], atol=1e-6)
    if answer.choice.reason == 'answer':
      assert d[answer.choice.level] <= 0.5
      assert answer.label == p[0, answer.choice.level].argmax()


@pytest.mark.parametrize('calls', [300, 600])
def test_a_budget_of_calls_is_met_within_a_percent_of_the_stream(calls):
  got, _, _, _ = streamed(3e-3, 2000, budget=CallBudget(calls, 2000))
  assert got[-1][1].calls == pytest.approx(calls, abs=7)


def test_an_expert_that_fails_leaves_the_answer_to_the_last_small_model():
  points, _, said = synthetic(40)

  def expert(query):
    if query.number == 20:
      raise ExpertError('it is down')
    return None if query.number == 10 else int(said[query.number])

  got = answers(TWO, [Seen(points, 4), Seen(points, 10)], said, 40, expert=expert)
  answer, state = got[20]
  assert answer.failed == 'it is down'
  assert answer.label == np.argmax(answer.probabilities[-1])
  assert state.calls == got[19][1].calls
  silent, after = got[10]
  assert silent.label is None
  assert after.calls == got[9][1].calls + 1
  assert after.caches == got[9][1].caches


def test_levels_that_are_not_reached_do_not_run():
  small = [Sure((0.9, 0.1)), Sure(None)]
  state = online.start(TWO, seed=0)._replace(updates=(500, 500), threshold=1.0)
  got = answers(TWO, small, [0] * 400, 400, state=state)
  assert {answer.choice.level for answer, _ in got} == {0}


def texts(count):
  rng = np.random.default_rng(5)
  return [' '.join(rng.choice(WORDS, 6)) for _ in range(count)]


def test_a_linear_model_is_scikit_learns_and_goes_on_from_its_state():
  lines = texts(60)
  labels = [int('red' in line) + int('old' in line) for line in lines]
  model = LinearConfig(columns=256).build(3, 0)
  rows = np.arange(20)
  np.testing.assert_allclose(model.predict(model.prepare(lines[:20]), rows), 1 / 3)
  model.partial_fit(lines[:40], labels[:40])
  prepared = model.prepare(lines[:20])
  np.testing.assert_allclose(
    model.predict(prepared, rows), model._model.predict_proba(prepared), atol=1e-12
  )
  other = LinearConfig(columns=256).build(3, 0)
  other.restore(model.state())
  for each in (model, other):
    each.partial_fit(lines[40:], labels[40:])
  for a, b in zip(model.state().values(), other.state().values(), strict=True):
    np.testing.assert_array_equal(a, b)


def test_an_encoder_is_read_by_a_head_that_learns_and_goes_on(tmp_path):
  config, labels = EncoderConfig(encoder(tmp_path)), [0, 1] * 4
  lines = ['hello world', 'good evening'] * 4
  model, other = (config.build(2, 0) for _ in range(2))
  rows = np.arange(8)
  for _ in range(20):
    model.partial_fit(lines, labels)
  p = model.predict(model.prepare(lines), rows)
  assert (p.argmax(1) == labels).all()
  other.restore(model.state())
  np.testing.assert_array_equal(other.predict(other.prepare(lines), rows), p)


def test_a_linear_model_learns_two_classes():
  lines = texts(400)
  labels = [int('red' in line) for line in lines]
  model = LinearConfig(columns=1024, words=1).build(2, 0)
  for start in range(0, 320, 8):
    model.partial_fit(lines[start : start + 8], labels[start : start + 8])
  p = model.predict(model.prepare(lines[320:]), np.arange(80))
  assert np.mean(p.argmax(1) == labels[320:]) > 0.85


def test_an_answer_without_a_class_is_paid_for_and_leaves_caches_as_they_are():
  points, _, _ = synthetic(5)
  got = answers(TWO, [Seen(points, 4), Seen(points, 10)], None, 5, expert=lambda query: None)
  assert [state.calls for _, state in got] == [1, 2, 3, 4, 5]
  assert got[-1][1].caches == ((), ())
  assert got[-1][0].label is None


def test_a_late_answer_is_given_at_once_and_learned_from_when_it_arrives():
  points, _, said = synthetic(300)
  small = [Seen(points, 4), Seen(points, 10)]
  got = answers(TWO, small, said, 300, delay=25)
  assert [answer.label for answer, _ in got[:100]] == said[:100].tolist()
  assert len(got[24][1].caches[0]) == 0  # nothing has arrived
  assert len(got[24][1].waiting) == 25
  assert [text for text, _ in got[25][1].caches[1]] == ['0']
  reasons = [answer.choice.reason for answer, _ in got]
  assert reasons.count('warm-up') == 160 + 25  # the last of the warm-up arrives 25 queries later
  for block in (1, 7):
    other = [Seen(points, 4), Seen(points, 10)]
    again = answers(TWO, other, said, 300, delay=25, block=block)
    assert [answer.choice for answer, _ in again] == [answer.choice for answer, _ in got]


def test_a_recorded_model_is_as_probable_as_the_counts_say(tmp_path):
  """Prior 1 and PRIOR = 4 on the diagonal: 5/7 for its class, then 5/9 after two others."""
  path = tmp_path / 'second.jsonl'
  path.write_text('{"inputs": "a", "answer": "Sad."}\n{"inputs": "b", "answer": "?"}\n')
  model = RecordedConfig(str(path), ('glad', 'sad', 'mad')).build(3, 0)
  prepared = model.prepare(['a', 'b'])
  p = model.predict(prepared, np.arange(2))
  np.testing.assert_allclose(p, [[1 / 7, 5 / 7, 1 / 7], [1 / 3] * 3])
  model.partial_fit(['a', 'a'], [2, 2])
  np.testing.assert_allclose(model.predict(prepared, np.arange(1)), [[1 / 9, 5 / 9, 3 / 9]])
  other = RecordedConfig(str(path), ('glad', 'sad', 'mad')).build(3, 0)
  other.restore(model.state())
  np.testing.assert_array_equal(
    other.predict(prepared, np.arange(2)), model.predict(prepared, np.arange(2))
  )
  with pytest.raises(ValueError, match="no answer to 'c'"):
    model.prepare(['c'])
  path.write_text('{"inputs": "a"}\n')
  with pytest.raises(ValueError, match='line 1: a row needs'):
    RecordedConfig(str(path), ('glad', 'sad')).build(2, 0)
