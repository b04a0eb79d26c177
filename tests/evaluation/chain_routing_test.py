"""Routers beside chains: rules of the fit split, measured on other rows as by hand."""

import json

import numpy as np
import pytest

from cascades import curves, deferral, evaluate, metrics
from cascades.evaluation import chains as names
from cascades.evaluation import fitted
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.learned import Learned
from cascades.evaluation.quantities import Quantity
from cascades.evaluation.tables import Tables
from cascades.predictions import shards
from cascades.reporting import figures
from cascades.types import Decider
from tests.evaluation import learned_test
from tests.evaluation.chain_comparison_test import AVERAGE, FIT, REPORT, compare, only

DIGITS = Decider(
  'digits', lambda table: np.array([float(sum(map(ord, text)) % 7) for text in table.inputs]),
  ['inputs'], 5e5,
)  # fmt: skip
GAINS = {
  text: float(gain)
  for models in (REPORT, FIT)
  for small, large in zip(models['1b'], models['large'], strict=True)
  for text, gain in zip(
    small.inputs, (large.statistics['accuracy'] - small.statistics['accuracy'])[:, 0], strict=True
  )
}
SEER = Decider('digits', lambda table: np.array([GAINS[t] for t in table.inputs]), ['inputs'])
NOISE = Decider('noise', lambda t: DIGITS.score(t) + t.lengths % 3, ['predictions'])
UNITED, ROUTER = names.UNITED.format('digits'), names.ROUTER.format('digits')


def columns(models, deciders=(AVERAGE, DIGITS)):
  """Scores of the router and the chain, qualities and costs of 1b and large, over all rows."""
  first = models['1b']
  after, before = (np.concatenate([own.score(table) for table in first]) for own in deciders)
  quality, cost = (
    [np.concatenate([read(table) for table in models[name]]) for name in ('1b', 'large')]
    for read in (lambda t: t.statistics['accuracy'][:, 0], lambda t: t.columns['dollars'])
  )
  return before, after, quality, cost


def by_hand(models, a, b, *, discarded=True):
  """Mean cost and quality of the rule (a, b), row by row."""
  before, after, quality, cost = columns(models)
  paid = right = 0.0
  for row in range(len(before)):
    if before[row] >= a:
      right, paid = right + quality[1][row], paid + cost[1][row]
    elif after[row] >= b:
      right += quality[1][row]
      paid += cost[1][row] + (cost[0][row] if discarded else 0)
    else:
      right, paid = right + quality[0][row], paid + cost[0][row]
  return paid / len(before), right / len(before)


@pytest.mark.parametrize('discarded', [True, False])
def test_rules_of_router_and_chain_are_chosen_on_one_split_and_reported_on_another(discarded):
  chains = Chains(axes=['dollars'], charge_discarded=discarded)
  (result,) = compare(chains, *only('1b', 'large'), deciders=[AVERAGE, DIGITS])
  curve = result.curves[UNITED]
  assert len(curve.cost) > 3
  assert (np.diff(curve.fit_cost) > 0).all()
  assert (np.diff(curve.fit_quality) > 0).all()
  for i, (a, b) in enumerate(zip(curve.outer, curve.thresholds[:, 0], strict=True)):
    for models, cost, quality in ((REPORT, 'cost', 'quality'), (FIT, 'fit_cost', 'fit_quality')):
      expected = by_hand(models, a, b, discarded=discarded)
      assert (getattr(curve, cost)[i], getattr(curve, quality)[i]) == pytest.approx(expected)
  np.testing.assert_allclose(curve.shares.sum(axis=1), 1)
  assert not curve.unanswered.any()


def parents(models, deciders=(AVERAGE, DIGITS)):
  """Deferral curves of the router and of the chain."""
  before, after, (small, large), (cheap, dear) = columns(models, deciders)
  own, other = (np.column_stack([quality, np.ones(len(small))]) for quality in (small, large))
  for score, first, added in ((before, cheap, dear - cheap), (after, cheap, dear)):
    cost = curves.cost_by_rate(score, first, added)
    yield curves.deferral_curve(score, own, other, metrics.ratio, cost)


@pytest.mark.parametrize(
  'deciders', [(AVERAGE, DIGITS), (NOISE, SEER)], ids=['good chain', 'good router']
)
def test_on_the_fit_split_the_rules_are_never_below_the_router_or_the_chain(deciders):
  (result,) = compare(Chains(axes=['dollars']), *only('1b', 'large'), deciders=deciders)
  curve = result.curves[UNITED]
  for parent in parents(FIT, deciders):
    best = np.interp(parent.cost, curve.fit_cost, curve.fit_quality)
    assert (best >= parent.quality - 1e-12).all()


def test_router_and_chain_are_compared_with_both_by_differences_of_area():
  (result,) = compare(Chains(axes=['dollars']), *only('1b', 'large'), deciders=[AVERAGE, DIGITS])
  area = {name: curve.metrics[Quantity('area')] for name, curve in result.curves.items()}
  for pair in ((UNITED, names.CHAIN), (UNITED, ROUTER), (names.CHAIN, ROUTER)):
    assert result.differences[pair].value == pytest.approx(area[pair[0]] - area[pair[1]])


def test_without_a_fit_split_routers_stay_alone():
  report, _ = only('1b', 'large')
  (result,) = compare(Chains(axes=['dollars']), report, None, deciders=[AVERAGE, DIGITS])
  assert ROUTER in result.curves
  assert UNITED not in result.curves


@pytest.mark.parametrize('abstention', [0.0, 0.4, 1.0])
def test_rows_that_nobody_answers_have_the_stated_quality_and_pay_the_small_answer(abstention):
  chains = Chains(axes=['dollars'], fit_split='validation', abstention=abstention)
  (result,) = compare(chains, *only('1b', 'large'))
  curve = result.curves[names.ABSTAINING]
  for i, (a, b) in enumerate(zip(curve.outer, curve.thresholds[:, 0], strict=True)):
    for models, cost, quality in ((REPORT, 'cost', 'quality'), (FIT, 'fit_cost', 'fit_quality')):
      _, after, (small, large), (cheap, dear) = columns(models)
      nobody, deferred = after >= a, (after >= b) & ~(after >= a)
      right = np.where(nobody, abstention, np.where(deferred, large, small))
      paid = cheap + deferred * dear
      expected = paid.mean(), right.mean()
      assert (getattr(curve, cost)[i], getattr(curve, quality)[i]) == pytest.approx(expected)
    after = columns(REPORT)[1]
    assert curve.unanswered[i] == pytest.approx(np.mean(after >= a))
  chain = [*parents(FIT)][1]
  best = np.interp(chain.cost, curve.fit_cost, curve.fit_quality)
  assert (best >= chain.quality - 1e-12).all()
  if abstention == 1:  # nobody is as good as anybody, and cheaper than the large model
    assert not curve.shares[:, 1].any()
    assert curve.fit_quality[-1] == pytest.approx(1)
  assert (names.ABSTAINING, names.CHAIN) in result.differences


def test_errors_of_unanswered_rows_are_those_of_the_stated_quality():
  wrong = metrics.Metric(
    'errors', lambda targets, text: np.array([float(text not in targets), 1.0]), metrics.ratio,
    higher_is_better=False,
  )  # fmt: skip
  chains = Chains(axes=['dollars'], fit_split='validation', abstention=0.4)
  (errors,), (right,) = (
    compare(chains, *only('1b', 'large'), metric=metric) for metric in (wrong, metrics.accuracy)
  )
  own, other = (result.curves[names.ABSTAINING] for result in (errors, right))
  np.testing.assert_allclose(own.quality, 1 - other.quality)
  np.testing.assert_allclose(own.fit_quality, 1 - other.fit_quality)


@pytest.mark.parametrize(
  ('options', 'metric', 'sentence'),
  [
    ({'abstention': 0.3}, None, r"ABSTENTION=0.3 needs rows .* FIT_SPLIT='validation'"),
    ({'abstention': 1.5}, None, 'ABSTENTION=1.5 is no quality from 0 to 1'),
    ({'abstention': True}, None, 'ABSTENTION=True is no quality'),
    (
      {'abstention': 0.3, 'fit_split': 'validation', 'models': ['1b', '8b']}, None,
      'ABSTENTION=0.3 is for chains of two models; CHAIN gives 1b, 8b, large',
    ),
    (
      {'abstention': 0.3, 'fit_split': 'validation'}, 'bleu',
      'ABSTENTION=0.3 is the quality of single rows that nobody answers, and bleu is no bounded',
    ),
    ({'decisions': {'average': {'flops': 1}}}, None, r"DECISIONS\['average'\]=.* is no cost of a"),
    ({'decisions': {'average': {'seconds': -1}}}, None, r"DECISIONS\['average'\].* of 0 or"),
    ({'decisions': {'average': 0.1}}, None, r"DECISIONS\['average'\]=0.1 is no cost"),
  ],
)  # fmt: skip
def test_what_cannot_be_decided_is_refused_by_name(options, metric, sentence):
  with pytest.raises(ValueError, match=sentence):
    compare(Chains(**options), metric=metric)


def test_decisions_cost_what_is_given_on_each_axis_and_unknown_costs_are_named():
  given = {'average': {'dollars': 7.0}, 'digits': {'dollars': 3.0}}
  free, paid = (
    compare(Chains(axes=['dollars'], decisions=decisions), *only('1b', 'large'),
            deciders=[AVERAGE, DIGITS])[0]
    for decisions in ({}, given)
  )  # fmt: skip
  for name, cost in ((names.CHAIN, 7), (ROUTER, 3)):
    np.testing.assert_allclose(paid.curves[name].cost, free.curves[name].cost + cost)
  assert (free.uncharged, paid.uncharged) == (('average', 'digits'), ())
  (flops,) = compare(Chains(axes=['flops']), *only('1b', 'large'), deciders=[AVERAGE, DIGITS])
  assert flops.uncharged == ()


def test_a_learned_router_is_united_with_the_chain_and_reported(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(figures, 'draw', lambda _: {})
  for split in ('train', 'validation', 'test'):
    learned_test.write(tmp_path, split)
  prices = {name: {'prompt': 0, 'generated': s} for name, s in (('xent', 1), ('large', 5))}
  evaluate.evaluate(
    Tables({'xent': f'{tmp_path}/xent'}, f'{tmp_path}/large'), f'{tmp_path}/report',
    learned=Learned(['linear_router_words'], split='train'), settings=Settings(resamples=20),
    chains=Chains(
      axes=['flops', 'seconds'], fit_split='validation', seconds=prices, abstention=0.5,
      decisions={'linear_router_words': {'seconds': 0.5}},
    ),
  )  # fmt: skip
  root, output = tmp_path, ' '.join(capsys.readouterr().out.split())
  flops, seconds = json.loads((root / 'report' / 'curves.json').read_text())['chains']
  name = names.UNITED.format('linear_router_words')
  page = (root / 'report' / 'report.html').read_text()
  for text in (name, names.ABSTAINING, 'unanswered)'):
    assert text in page
  assert 'unanswered)' in output
  assert flops['uncharged_decisions'] == []
  assert seconds['uncharged_decisions'] == ['average']
  assert 'Decisions of &#39;average&#39; have no cost in seconds' in page
  pairs = {(entry['curve'], entry['control']) for entry in flops['differences']}
  assert {(name, 'chain'), (name, 'router linear_router_words')} < pairs
  assert max(seconds['curves'][names.ABSTAINING]['unanswered']) > 0
  router = fitted.read(root / 'report' / 'learned' / 'xent' / 'linear_router_words.json').decider()
  small, large = (shards.read(f'{root}/{model}/validation') for model in ('xent', 'large'))
  before = np.concatenate([router.score(table) for table in small])
  after = np.concatenate([deferral.DECIDERS['average'].score(table) for table in small])
  own, other = (np.vstack([t.statistics['accuracy'] for t in m]) for m in (small, large))
  # 15 tokens of 2,000 and 16,000 FLOPs; 5 of them are written, in 1 and 5 seconds each.
  for chain, first, last, deciding in ((flops, 3e4, 24e4, router.flops), (seconds, 5, 25, 0.5)):
    best = chain['curves'][name]
    parents = ((before, first + deciding, last - first), (after, first, last))
    for score, base, extra in parents:
      curve = curves.deferral_curve(score, own, other, metrics.ratio, lambda d: base + d * extra)  # noqa: B023
      quality = np.interp(curve.cost, best['fit_cost'], best['fit_quality'])
      assert (quality >= curve.quality - 1e-12).all()


def test_learned_scores_and_routers_decide_in_chains_of_three(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(figures, 'draw', lambda _: {})
  for split in ('train', 'validation', 'test'):
    learned_test.write(tmp_path, split)

  def run(split):
    learned = Learned(['logistic', 'linear_router_words', 'guarded_knn_words'], split=split)
    small = {name: f'{tmp_path}/{name}' for name in ('xent', 'cat')}
    return evaluate.evaluate(
      Tables(small, f'{tmp_path}/large'), f'{tmp_path}/{split}', settings=Settings(resamples=2),
      learned=learned, chains=Chains(
        ['xent', 'cat'], ['flops'], ['logistic'] if split == 'train' else ['average'], 'validation'
      ),
    ).chains[0]  # fmt: skip

  other = run('train')
  assert other.score == 'logistic'
  for name in ('linear_router_words', 'guarded_knn_words'):
    curve = other.curves[names.ROUTER.format(name)]
    assert curve.shares.shape == (len(curve.outer), 3)
    assert len(curve.fit_cost) == len(curve.outer)
  assert 'No rule of router' not in caplog.text
  same = run('validation')  # what the routers have learned from chooses nothing
  curve = same.curves[names.ROUTER.format('linear_router_words')]
  assert (len(curve.outer), len(curve.fit_cost)) == (33, 0)
  assert "No rule of router 'linear_router_words' is chosen on FIT_SPLIT" in caplog.text
