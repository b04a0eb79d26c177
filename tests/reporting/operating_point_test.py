import numpy as np

from cascades import costs
from cascades.evaluation.quantities import RATES
from cascades.reporting import operating_point
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
