import numpy as np

from cascades import costs
from cascades.evaluation.chains import ChainCurve, ChainResult, Single
from cascades.evaluation.quantities import RATES
from cascades.reporting import findings, operating_point
from tests import synthetic_tables


def of_curve(quality, *, margin=0.0, metric='accuracy', small_cost=2000.0):
  """Headline of one small model whose curve has these qualities at equal steps."""
  comparison = synthetic_tables.comparison(metric)
  rates = np.linspace(0, 1, len(quality))
  cascade = comparison.at('cat')
  curve = cascade.curve._replace(
    quality=np.array(quality),
    deferral_rate=rates,
    threshold=np.append(np.inf, -rates[1:]),
    cost=costs.cascade(rates, small=small_cost, large=comparison.large_flops),
  )
  band = np.interp(RATES, rates, quality)
  cascade = cascade._replace(curve=curve, low=band - margin, high=band + margin)
  return operating_point.headline(
    comparison._replace(flops={'cat': small_cost}, cascades=(cascade,))
  )


def test_the_cheapest_threshold_that_retains_the_quality_is_said():
  result = of_curve([0.5, 0.7, 0.785, 0.79, 0.8])
  assert result.sentence == (
    "Defer 50.0 % and get 98.1 % of the large model's quality at 0.62 of its cost."
  )
  assert result.rule == (
    'Rule: the cheapest threshold with a quality of at least 98 % of that of the large model. Its '
    'accuracy is 0.7850 [0.7850, 0.7850], a pointwise 95 % interval. The threshold was chosen on '
    'the rows that it is reported on.'
  )
  assert result.point.threshold == -0.5


def test_a_cascade_that_costs_more_than_the_large_model_beats_nothing():
  result = of_curve([0.5, 0.6, 0.7, 0.79, 0.8], small_cost=6000.0)
  assert result.sentence == 'No threshold beats the best single model here.'
  assert result.rule.startswith(
    'The large model alone reaches 0.8000, at 1.00 of the cost of the large model. The best '
    'threshold reaches 0.7900 [0.7900, 0.7900] at 1.12.'
  )


def test_a_small_model_that_suffices_is_beaten_only_by_more_than_noise():
  quality = [0.79, 0.83, 0.82, 0.81, 0.8]
  assert of_curve(quality, margin=0.01).sentence == (
    "Defer 25.0 % and get 103.7 % of the large model's quality at 0.38 of its cost."
  )
  noisy = of_curve(quality, margin=0.05)
  assert noisy.sentence == 'No threshold beats the best single model here.'
  assert 'The best threshold reaches 0.8300 [0.7800, 0.8800] at 0.38.' in noisy.rule


def test_the_best_single_model_may_be_the_small_one():
  result = of_curve([0.8, 0.9, 0.6])
  assert (
    result.sentence
    == "Defer 50.0 % and get 112.5 % of cat's quality at 0.62 of the large " + ("model's cost.")
  )


def test_errors_are_said_as_numbers():
  result = of_curve([0.5, 0.3, 0.2, 0.2], metric='phoneme_error_rate', small_cost=800.0)
  assert result.sentence == 'Defer 66.7 % and get 0.2000 where the large model has 0.2000 at ' + (
    '0.72 of its cost.'
  )
  assert 'a phoneme_error_rate of at most 0.2041' in result.rule


def test_one_score_for_all_rows_has_no_threshold():
  assert of_curve([0.5, 0.8]).sentence.startswith('There is no threshold to choose')


def of_chain(quality, *, models=('a', 'b', 'large'), axis='dollars', cost=(1.0, 2.0, 4.0)):
  """Headline of a comparison with one chain, whose point i costs i + 1."""
  points = len(quality)
  shares = np.full((points, len(models)), 0.1)
  shares[:, -1] = 1 - shares[:, :-1].sum(axis=1)
  curve = ChainCurve(
    np.arange(1.0, points + 1), np.array(quality), shares, np.zeros((points, len(models))),
    np.empty(0), np.empty(0), {},
  )  # fmt: skip
  alone = np.linspace(0.5, 0.8, len(models)).tolist()
  singles = dict(zip(models, map(Single, cost, alone), strict=True))
  result = ChainResult(models, 'average', axis, True, 'train', singles, 'large', {'chain': curve})
  return synthetic_tables.comparison()._replace(chains=(result,))


def test_the_headline_is_about_the_chain_and_the_axis_that_are_asked_for():
  comparison = of_chain([0.5, 0.785, 0.79, 0.8])
  result = operating_point.headline(comparison)
  assert result.sentence == (
    "Let a answer 10.0 %, b 10.0 % and the large model 80.0 %, and get 98.1 % of the large model's "
    'quality at 0.50 of its cost in dollars per query.'
  )
  assert "thresholds from the split 'train'" in result.rule
  pair = operating_point.headline(comparison._replace(chains=()))
  assert result.point == pair.point is not None


def test_a_pair_on_another_axis_is_said_with_its_unit():
  result = operating_point.headline(
    of_chain([0.5, 0.79], models=('a', 'large'), axis='seconds', cost=(1.0, 4.0))
  )
  assert result.sentence == (
    "Defer 90.0 % and get 98.8 % of the large model's quality at 0.50 of its cost in seconds per "
    'query.'
  )


def test_a_chain_that_is_no_cheaper_than_a_single_model_of_such_quality_beats_nothing():
  for quality in ([0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.7]):
    result = operating_point.headline(of_chain(quality))
    assert result.sentence == 'No threshold beats the best single model here.'
    assert result.rule.startswith('The large model alone reaches 0.8000 at 4 dollars per query.')


def test_further_axes_are_findings():
  comparison = of_chain([0.5, 0.785])
  (dollars,) = comparison.chains
  comparison = comparison._replace(chains=(dollars, dollars._replace(axis='seconds')))
  sentences = findings.sentences(comparison)
  assert 'By seconds per query: Let a answer 10.0 %' in ''.join(sentences)
  assert not any(text.startswith('By dollars') for text in sentences)


def test_pairs_at_the_default_axis_lead_where_it_is_the_first_of_several():
  comparison = of_chain([0.5, 0.785], models=('xent', 'large'), cost=(1.0, 4.0))
  (dollars,) = comparison.chains
  default = dollars._replace(axis='flops per token')
  comparison = comparison._replace(chains=(default, dollars))
  pair = operating_point.headline(comparison._replace(chains=()))
  assert operating_point.headline(comparison) == pair
  assert any(text.startswith('By dollars per query') for text in findings.sentences(comparison))
