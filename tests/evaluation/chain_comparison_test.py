import numpy as np
import pytest

from cascades import costs, deferral, metrics
from cascades.evaluation import chains as names
from cascades.evaluation.chain_comparison import compare_chains
from cascades.evaluation.chains import Chains
from cascades.evaluation.comparison import Settings
from cascades.evaluation.quantities import Quantity
from cascades.types import Decider
from tests import synthetic_tables

SKILLS = {'1b': -0.5, '3b': 0.3, '8b': 0.8, 'large': 1.8}
AVERAGE = deferral.DECIDERS['average']
PROMPTS = 12


def tables(split, *, sizes=None, judge=metrics.accuracy):
  """Tables of four models, with tokens and dollars of every row."""
  models = {}
  for seed, (name, skill) in enumerate(SKILLS.items()):
    own = []
    for task, size in (sizes or {'a': 60, 'b': 30}).items():
      table = synthetic_tables.table(
        f'{task}{split}', size=size, skill=skill, seed=seed, parameters=10 ** (3 + seed),
        judged_by=[judge],
      )  # fmt: skip
      columns = {
        'prompt_tokens': np.full(size, PROMPTS) + 0.0,
        'dollars': table.lengths * 4.0**seed,
      }
      own.append(
        table._replace(
          task=task, split=split, columns=columns,
          inputs=[f'{split} {text}' for text in table.inputs],
          manifest={**table.manifest, 'task': task, 'split': split},
        )
      )  # fmt: skip
    models[name] = own
  return models


REPORT, FIT = tables('test'), tables('validation')


def compare(chains, report=REPORT, fit=FIT, *, deciders=(AVERAGE,), **options):
  settings = Settings(resamples=1)
  return compare_chains(report, fit, deciders=deciders, chains=chains, settings=settings, **options)


def only(*models):
  return {name: REPORT[name] for name in models}, {name: FIT[name] for name in models}


def test_two_models_give_the_curve_of_todays_comparison_bit_for_bit():
  comparison = synthetic_tables.comparison()
  small, large = synthetic_tables.small_and_large()
  results = compare_chains(
    {**small, 'large': large}, None,
    deciders=[AVERAGE, deferral.DECIDERS['sum']], chains=Chains(), settings=comparison.settings,
  )  # fmt: skip
  assert len(results) == 4
  for result in results:
    curve, todays = result.curves[names.CHAIN], comparison.at(result.models[0], result.score).curve
    np.testing.assert_array_equal(curve.quality, todays.quality)
    np.testing.assert_array_equal(curve.cost, todays.cost)
    np.testing.assert_array_equal(curve.shares[:, 1], todays.deferral_rate)
    np.testing.assert_array_equal(curve.thresholds[:, 0], todays.threshold)


def test_thresholds_are_chosen_on_one_split_and_reported_on_another():
  (result,) = compare(Chains(models=['1b', '3b', '8b'], axes=['flops']))
  assert result.models == ('1b', '3b', '8b', 'large')
  assert result.fit_split == 'validation'
  assert {names.CHAIN, names.PAIRS, names.BEST} < set(result.curves)
  for name in (names.CHAIN, names.PAIRS, names.BEST):
    curve = result.curves[name]
    for own, realized, promised in ((REPORT, 'quality', 'cost'), (FIT, 'fit_quality', 'fit_cost')):
      scores = {model: np.concatenate([AVERAGE.score(t) for t in own[model]]) for model in own}
      right = {m: np.concatenate([t.statistics['accuracy'][:, 0] for t in own[m]]) for m in own}
      paid = {m: np.concatenate([costs.per_row(t, 'flops') for t in own[m]]) for m in own}
      for row, quality, cost in zip(
        curve.thresholds, getattr(curve, realized),
        getattr(curve, promised), strict=True,
      ):  # fmt: skip
        expected = [0.0, 0.0]
        for i in range(90):
          for model, threshold in zip(result.models, row, strict=True):
            if np.isnan(threshold):
              continue
            expected[1] += paid[model][i]
            if threshold == np.inf or not scores[model][i] >= threshold:
              expected[0] += right[model][i]
              break
        assert (quality, cost) == pytest.approx((expected[0] / 90, expected[1] / 90))
  assert (np.diff(result.curves[names.BEST].fit_cost) > 0).all()
  assert (np.diff(result.curves[names.BEST].fit_quality) > 0).all()


def test_every_axis_reports_the_costs_of_its_single_models():
  chains = Chains(
    models=['1b', '8b'],
    axes=['flops per token', 'flops', 'seconds', 'dollars', 'large calls'],
    seconds={name: {'prompt': 0.0, 'generated': 1.0} for name in SKILLS},
  )
  results = {result.axis: result for result in compare(chains)}
  lengths = np.concatenate([table.lengths for table in REPORT['8b']])
  expected = {
    'flops per token': 2e5,
    'flops': 2e5 * (lengths.mean() + PROMPTS),
    'seconds': lengths.mean(),
    'dollars': 16 * lengths.mean(),
    'large calls': 0.0,
  }
  assert {axis: result.singles['8b'].cost for axis, result in results.items()} == pytest.approx(
    expected
  )
  assert results['large calls'].singles['large'].cost == 1


def test_discarded_answers_are_charged_unless_they_are_left_out():
  charged, free = (
    compare(Chains(axes=['dollars'], charge_discarded=charge), *only('1b', 'large'))[0]
    for charge in (True, False)
  )
  dearest = charged.singles['large'].cost
  assert charged.curves[names.CHAIN].cost[-1] == pytest.approx(dearest + charged.singles['1b'].cost)
  assert free.curves[names.CHAIN].cost[-1] == pytest.approx(dearest)
  assert (charged.discarded, free.discarded) == (True, False)


def test_the_decision_is_charged_in_flops():
  costly = AVERAGE._replace(flops=1e6)
  results = [
    compare(Chains(axes=['flops']), *only('1b', 'large'), deciders=[decider])[0]
    for decider in (AVERAGE, costly)
  ]
  cheap, dear = (result.curves[names.CHAIN].cost for result in results)
  np.testing.assert_allclose(dear, cheap + 1e6)


def test_a_router_pays_for_the_chosen_model_alone():
  router = Decider(
    'length', lambda table: np.array([len(t) for t in table.inputs]) + 0.0, ['inputs'], 5e5
  )
  (result,) = compare(Chains(axes=['flops']), *only('1b', 'large'), deciders=[AVERAGE, router])
  curve = result.curves['router length']
  assert curve.cost[0] == pytest.approx(result.singles['1b'].cost + 5e5)
  assert curve.cost[-1] == pytest.approx(result.singles['large'].cost + 5e5)
  assert curve.quality[-1] == pytest.approx(result.singles['large'].quality)


def test_controls_bound_the_chain_and_start_at_single_models():
  (result,) = compare(Chains(models=['1b', '3b', '8b'], axes=['dollars']))
  area = Quantity('area')
  oracle, router = result.curves[names.ORACLE], result.curves[names.ORACLE_ROUTER]
  for name in (names.CHAIN, names.PAIRS, names.BEST):
    assert oracle.metrics[area] >= result.curves[name].metrics[area]
  assert router.metrics[area] >= oracle.metrics[area]  # it does not pay for discarded answers
  chord = result.curves[names.RANDOM]
  assert chord.cost[0] == pytest.approx(result.singles['1b'].cost)
  assert chord.cost[-1] == pytest.approx(sum(single.cost for single in result.singles.values()))
  mixed = result.curves[names.RANDOM_ROUTER]
  assert set(zip(mixed.cost, mixed.quality, strict=True)) <= {
    tuple(single) for single in result.singles.values()
  }
  best = max(result.singles, key=lambda name: np.mean([
    row for table in FIT[name] for row in table.statistics['accuracy'][:, 0]
  ]))  # fmt: skip
  assert result.best_single == best


def test_lower_is_better_where_the_metric_says_so():
  wrong = metrics.Metric(
    'errors',
    lambda targets, text: np.array([float(text not in targets), 1.0]),
    metrics.ratio,
    higher_is_better=False,
  )
  report, fit = (tables(split, judge=metrics.accuracy) for split in ('test', 'validation'))
  chains = Chains(models=['1b', '8b'], axes=['dollars'])
  (right,) = compare(chains, report, fit, metric=metrics.accuracy)
  (errors,) = compare(chains, report, fit, metric=wrong)
  for name, curve in right.curves.items():
    np.testing.assert_allclose(errors.curves[name].quality, 1 - curve.quality)
    np.testing.assert_allclose(errors.curves[name].cost, curve.cost)
    assert errors.curves[name].metrics[Quantity('area')] == pytest.approx(
      1 - curve.metrics[Quantity('area')]
    )


def test_equal_scores_leave_the_single_models():
  equal = Decider('equal', lambda table: np.zeros(len(table.ids)), ['predictions'])
  (result,) = compare(Chains(models=['1b', '8b'], axes=['dollars']), deciders=[equal])
  assert set(np.unique(result.curves[names.CHAIN].shares)) <= {0, 1}


def test_one_row_is_enough():
  report, fit = (tables(split, sizes={'a': 1}) for split in ('test', 'validation'))
  (result,) = compare(Chains(models=['1b', '3b', '8b'], axes=['flops']), report, fit)
  assert len(result.curves[names.CHAIN].cost) >= 1


def without(models, column):
  return {
    name: [t._replace(columns={k: v for k, v in t.columns.items() if k != column}) for t in own]
    for name, own in models.items()
  }


@pytest.mark.parametrize(
  ('options', 'sentence'),
  [
    ({'models': ['1b', '2b']}, "CHAIN names '2b', and the small models are '1b', '3b', '8b'"),
    ({'models': '1b'}, "CHAIN='1b' is no list of different models"),
    ({'models': ['1b', '1b']}, 'is no list of different models'),
    ({'axes': ['euros']}, r"COST_AXES=\['euros'\] is no list of axes of cost among flops"),
    ({'axes': 'flops'}, "COST_AXES='flops' is no list"),
    ({'axes': ['seconds']}, "COST_AXES has 'seconds', and model '1b' .*: 90 of 90 .* SECONDS="),
    ({'dollars': {'gpt': {'prompt': 1, 'generated': 1}}}, "DOLLARS has prices of 'gpt'"),
    ({'dollars': {'1b': {'prompt': 1}}}, r"DOLLARS\['1b'\]=.* gives no prices: .*generated"),
    ({'seconds': {'1b': {'prompt': -1, 'generated': 1}}}, r"SECONDS\['1b'\].*The price prompt=-1"),
  ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_by_name(options, sentence):
  with pytest.raises(ValueError, match=sentence):
    compare(Chains(**options))


def test_a_chain_without_a_split_to_choose_thresholds_on_is_refused():
  with pytest.raises(ValueError, match=r"the chain 1b, 8b, large must be .*FIT_SPLIT='validation'"):
    compare(Chains(models=['1b', '8b']), fit=None)
  with pytest.raises(ValueError, match="FIT_SPLIT='test' is the split that is reported"):
    compare(Chains(models=['1b', '8b']), fit=REPORT)
  fewer = {name: own[:1] for name, own in FIT.items()}
  with pytest.raises(ValueError, match=r"reported split has the tasks \['a', 'b'\] and .* \['a'\]"):
    compare(Chains(models=['1b', '8b']), fit=fewer)


def test_inputs_that_both_splits_hold_are_counted(caplog):
  shared = {
    name: [t._replace(inputs=r.inputs) for t, r in zip(own, REPORT[name], strict=True)]
    for name, own in FIT.items()
  }
  compare(Chains(models=['1b', '8b']), fit=shared)
  assert '90 reported rows have inputs that thresholds were chosen on' in caplog.text


def test_tokens_that_a_table_does_not_have_are_missed_by_name():
  report, fit = (without(own, 'prompt_tokens') for own in (REPORT, FIT))
  with pytest.raises(ValueError, match=r"COST_AXES has 'flops'.* 90 of 90 .* prompt_tokens"):
    compare(Chains(axes=['flops']), report, fit)
