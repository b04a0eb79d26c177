import functools
import tracemalloc

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cascades import curves, deferral, metrics
from cascades.predictions import alignment
from tests import synthetic_tables

RULES = [rule for name, rule in deferral.PAPER.items() if name != 'random']
answers = st.lists(st.lists(st.floats(-50, 0), min_size=1, max_size=12), min_size=1, max_size=6)


def padded(rows):
  """Log-probabilities and mask; the padding holds numbers that would be noticed."""
  width = max(map(len, rows))
  logprobs = np.array([row + [99.0] * (width - len(row)) for row in rows])
  mask = np.array([[True] * len(row) + [False] * (width - len(row)) for row in rows])
  return logprobs, mask


def test_rules_agree_with_numbers_worked_by_hand():
  row = [-0.1, -2.0, -0.3, -0.05]
  logprobs, mask = padded([row, row[:1]])

  def first(rule, **options):
    return -rule(logprobs, mask, **options)[0]

  assert first(deferral.total) == pytest.approx(-2.45)
  assert first(deferral.average) == pytest.approx(-0.6125)
  for q, value in [
    (0, -2.0), (0.1, -1.49), (0.25, -0.725), (0.4, -0.26), (0.5, -0.2), (0.8, -0.08), (1, -0.05),
  ]:  # fmt: skip
    assert first(deferral.quantile, q=q) == pytest.approx(value)


@given(answers, st.floats(0, 1))
def test_rules_equal_a_loop_over_rows(rows, q):
  logprobs, mask = padded(rows)
  for rule, literal in [
    (deferral.average, np.mean),
    (deferral.total, np.sum),
    (deferral.minimum, np.min),
    (deferral.maximum, np.max),
    (lambda a, b: deferral.quantile(a, b, q=q), lambda row: np.quantile(row, q)),
  ]:
    expected = [-literal(np.array(row)) for row in rows]
    np.testing.assert_allclose(rule(logprobs, mask), expected, atol=1e-9)


@given(st.floats(-50, 0))
def test_all_rules_coincide_on_one_token(logprob):
  logprobs, mask = padded([[logprob]])
  for rule in RULES:
    np.testing.assert_allclose(rule(logprobs, mask), [-logprob], rtol=1e-12)


@given(st.floats(-50, 0), st.integers(1, 9))
def test_equal_tokens_make_every_rule_but_the_sum_equal_and_the_sum_n_times_it(logprob, n):
  logprobs, mask = padded([[logprob] * n])
  for name, rule in deferral.PAPER.items():
    if name != 'random':
      times = n if name == 'sum' else 1
      np.testing.assert_allclose(rule(logprobs, mask), [-times * logprob], rtol=1e-9)


@given(answers)
def test_confidences_are_ordered_as_their_definitions_say(rows):
  logprobs, mask = padded(rows)
  low, q4, q8, high, mean, total = (
    -deferral.PAPER[name](logprobs, mask)
    for name in ('minimum', 'quantile 0.4', 'quantile 0.8', 'maximum', 'average', 'sum')
  )
  tolerance = 1e-9
  for smaller, larger in [(total, low), (low, q4), (q4, q8), (q8, high), (low, mean), (mean, high)]:
    assert (smaller <= larger + tolerance).all()
  assert (high <= 0).all()


@given(answers, st.randoms())
def test_the_order_of_tokens_does_not_matter(rows, chance):
  shuffled = [chance.sample(row, len(row)) for row in rows]
  for rule in RULES:
    np.testing.assert_allclose(rule(*padded(rows)), rule(*padded(shuffled)), atol=1e-9)


@given(answers)
def test_padding_changes_nothing(rows):
  logprobs, mask = padded(rows)
  wider = np.pad(logprobs, ((0, 0), (0, 3)), constant_values=-7.0), np.pad(mask, ((0, 0), (0, 3)))
  for rule in RULES:
    np.testing.assert_array_equal(rule(logprobs, mask), rule(*wider))


def test_sum_and_average_order_equal_lengths_alike_and_unequal_ones_differently():
  generator = np.random.default_rng(0)
  logprobs = -generator.exponential(size=(50, 6))
  everywhere = np.ones_like(logprobs, bool)
  by_total, by_average = (
    np.argsort(rule(logprobs, everywhere)) for rule in (deferral.total, deferral.average)
  )
  np.testing.assert_array_equal(by_total, by_average)

  long_and_sure, short_and_unsure = [-0.2] * 6, [-0.9]
  rows = padded([long_and_sure, short_and_unsure])
  assert deferral.total(*rows).argmax() == 0
  assert deferral.average(*rows).argmax() == 1


def test_the_sum_defers_long_answers_and_the_average_does_not():
  generator = np.random.default_rng(1)
  lengths = generator.integers(2, 60, size=2000)
  rows = padded([(-generator.exponential(size=n)).tolist() for n in lengths])
  assert np.corrcoef(deferral.total(*rows), lengths)[0, 1] > 0.9
  assert abs(np.corrcoef(deferral.average(*rows), lengths)[0, 1]) < 0.1


def test_an_answer_without_tokens_defers_first_and_still_has_a_finite_score():
  logprobs, mask = np.array([[0.0, 0.0], [-30.0, -40.0]]), np.array([[False] * 2, [True] * 2])
  for rule in RULES:
    score = rule(logprobs, mask)
    assert score[0] > score[1]
    assert np.isfinite(score).all()
    statistics = np.ones((2, 2))
    curve = curves.deferral_curve(score, statistics, statistics, metrics.ratio, lambda rate: rate)
    np.testing.assert_array_equal(curve.deferral_rate, [0, 0.5, 1])


def test_the_control_is_repeatable_and_knows_nothing():
  logprobs, mask = padded([[-float(i)] for i in range(4000)])
  score = deferral.random(logprobs, mask, seed=3)
  np.testing.assert_array_equal(score, deferral.random(logprobs * 2, mask, seed=3))
  assert (score != deferral.random(logprobs, mask, seed=4)).any()
  assert abs(np.corrcoef(score, logprobs[:, 0])[0, 1]) < 0.05


def test_a_quantile_level_outside_the_unit_interval_is_refused():
  with pytest.raises(ValueError, match=r'q is 80; the level of a quantile lies in \[0, 1\]'):
    deferral.quantile(*padded([[-1.0]]), q=80)


def test_a_rule_becomes_a_score_of_a_table():
  table = synthetic_tables.table('a', size=7)
  score = deferral.as_score(deferral.average)(table)
  np.testing.assert_array_equal(score, deferral.average(table.logprobs, table.mask))


@pytest.mark.parametrize('name', deferral.PAPER)
def test_long_tables_are_scored_in_blocks_to_the_same_bits(name, monkeypatch):
  lengths = np.array([0, *np.random.default_rng(1).integers(1, 12, size=48), 500])
  table = synthetic_tables.table('a', size=50)._replace(
    token_logprobs=-np.random.default_rng(2).exponential(size=lengths.sum()), lengths=lengths
  )
  rule = deferral.PAPER[name]
  expected = rule(table.logprobs, table.mask)
  sizes, padded = [], type(table).padded

  def counted(table, *rows):
    logprobs, mask = padded(table, *rows)
    sizes.append(mask.size)
    return logprobs, mask

  monkeypatch.setattr(type(table), 'padded', counted)
  monkeypatch.setattr(deferral, 'MOST_CELLS', 100)
  wrapped = functools.wraps(rule.func if isinstance(rule, functools.partial) else rule)(
    lambda *arrays: rule(*arrays)  # as gin does
  )
  for form in (rule, wrapped):
    np.testing.assert_array_equal(deferral.as_score(form)(table), expected)
  assert sorted(sizes)[-3:-2] <= [100]
  assert len(sizes) > 10 or name == 'random'


def test_a_rule_of_others_sees_the_whole_table(monkeypatch):
  monkeypatch.setattr(deferral, 'MOST_CELLS', 10)
  table = synthetic_tables.table('a', size=50)
  ranks = deferral.as_score(lambda logprobs, mask: np.argsort(mask.sum(1)).astype(float))(table)
  assert sorted(ranks) == list(range(50))


def test_one_long_answer_does_not_cost_every_row_its_length():
  lengths = np.append(np.full(9_999, 10), 8192)
  table = synthetic_tables.table('a', size=1)._replace(
    token_logprobs=-np.linspace(0, 9, lengths.sum()), lengths=lengths
  )
  tracemalloc.start()
  score = deferral.as_score(deferral.minimum)(table)
  selected = alignment.select(
    table._replace(
      **dict.fromkeys(('ids', 'inputs', 'targets', 'predictions'), ['x'] * 10_000), statistics={}
    ),
    range(10_000),
  )
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  np.testing.assert_array_equal(selected.token_logprobs, table.token_logprobs)
  assert score[-1] == 9
  assert peak < 30e6  # padded, one array of numbers alone has 655 MB


def with_alternatives(probabilities, lengths):
  """A table whose tokens have the alternatives of these probabilities."""
  table = synthetic_tables.table('a', size=len(lengths))
  with np.errstate(divide='ignore'):
    alternatives = np.log(np.array(probabilities, float))
  logprobs = alternatives[:, 0] if len(alternatives) else np.empty(0)
  return table._replace(
    token_logprobs=logprobs, lengths=np.array(lengths), alternatives=alternatives
  )


def test_entropy_and_margin_agree_with_numbers_worked_by_hand():
  """Rows of tokens (1/2, 1/4; 1/4 beyond) and (1, 0), and of the first one alone, and of none."""
  table = with_alternatives([(0.5, 0.25), (1.0, 0.0), (0.5, 0.25)], [2, 1, 0])
  single = 0.5 * np.log(2) + 2 * 0.25 * np.log(4)  # 1.0397 nats
  np.testing.assert_allclose(
    deferral.DECIDERS['entropy'].score(table), [single / 2, single, deferral.NO_TOKENS]
  )
  assert single == pytest.approx(1.0397, abs=1e-4)
  np.testing.assert_allclose(
    deferral.DECIDERS['margin'].score(table), [-0.625, -0.25, deferral.NO_TOKENS]
  )


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(2, 6), st.randoms())
def test_entropy_and_margin_equal_a_loop_and_keep_their_bounds(lengths, count, chance):
  rows = [[chance.random() + 1e-3 for _ in range(count + 1)] for _ in range(sum(lengths))]
  full = -np.sort(-np.array(rows) / np.sum(rows, axis=1, keepdims=True))
  table = with_alternatives(full[:, :count], lengths)
  entropy, margin = (deferral.DECIDERS[name].score(table) for name in ('entropy', 'margin'))
  ends = np.cumsum(lengths)
  for row, (begin, end) in enumerate(zip(ends - lengths, ends, strict=True)):
    of_tokens = [-sum(p * np.log(p) for p in token if p > 0) for token in full[begin:end]]
    assert entropy[row] == pytest.approx(np.mean(of_tokens))  # exact: the tail is one token
    assert 0 <= entropy[row] <= np.log(count + 1) + 1e-12
    assert -margin[row] == pytest.approx(
      np.mean([token[0] - token[1] for token in full[begin:end]])
    )
  fewer = with_alternatives(full[:, : count - 1], lengths)
  assert (deferral.DECIDERS['entropy'].score(fewer) <= entropy + 1e-12).all()


def test_length_and_first_token_agree_with_numbers_worked_by_hand():
  logprobs, mask = padded([[-0.5, -2.0, -0.1], [-3.0]])
  np.testing.assert_array_equal(deferral.length(logprobs, mask), [3, 1])
  np.testing.assert_array_equal(deferral.first_token(logprobs, mask), [0.5, 3.0])


@given(answers, st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_several_quantiles_are_those_of_each_level_to_the_bit(rows, levels):
  columns = deferral.quantiles(*padded(rows), levels=levels)
  for column, q in zip(columns.T, levels, strict=True):
    np.testing.assert_array_equal(column, -deferral.quantile(*padded(rows), q=q))


def test_confidence_is_the_column_with_its_sign_turned():
  table = synthetic_tables.table('a', size=3)._replace(
    columns={'confidence': np.array([0.2, 1, 0])}
  )
  np.testing.assert_array_equal(deferral.DECIDERS['confidence'].score(table), [-0.2, -1, 0])


@pytest.mark.parametrize('name', deferral.DECIDERS)
def test_a_decider_refuses_a_table_without_what_it_reads_and_names_it(name):
  decider = deferral.DECIDERS[name]
  bare = synthetic_tables.table('a', size=3)._replace(
    token_logprobs=np.empty(0), lengths=np.zeros(3, int)
  )
  if name == 'random':
    assert decider.score(bare).shape == (3,)
    return
  (read,) = decider.reads
  assert not decider.before_answer
  assert deferral.missing(decider.reads, bare) == [read]
  with pytest.raises(
    ValueError, match=f"'{name}' reads {read}, which rows of task 'a' do not have"
  ):
    decider.score(bare)


def test_a_decider_gives_the_score_of_its_rule_to_the_bit():
  table = synthetic_tables.table('a', size=9)
  for name, rule in deferral.PAPER.items():
    np.testing.assert_array_equal(
      deferral.DECIDERS[name].score(table), deferral.as_score(rule)(table)
    )


def test_some_rows_without_tokens_are_scored_and_some_without_confidence_are_not():
  table = synthetic_tables.table('a', size=2)._replace(
    token_logprobs=np.array([-1.0]), lengths=np.array([1, 0]),
    columns={'confidence': np.array([0.5, np.nan])},
  )  # fmt: skip
  assert deferral.DECIDERS['average'].score(table).tolist() == [1, deferral.NO_TOKENS]
  with pytest.raises(ValueError, match="'confidence' reads confidence"):
    deferral.DECIDERS['confidence'].score(table)


def test_a_margin_needs_two_alternatives():
  with pytest.raises(ValueError, match="'margin' reads two alternatives, which rows of task"):
    deferral.DECIDERS['margin'].score(with_alternatives([(0.5,)], [1]))


def test_the_paper_compares_six_indicators_and_a_control():
  assert list(deferral.PAPER) == [
    'average', 'minimum', 'maximum', 'sum', 'quantile 0.4', 'quantile 0.8', 'random',
  ]  # fmt: skip
