"""Answers of a new model are predicted as by a slow Gaussian, and asked in a useful order."""

import numpy as np
import pytest

from cascades import validation_order
from cascades.universal_routing import one_hot


def population(seed, models, prompts=120, topics=4):
  """Losses of models with an ability for each topic."""
  rng = np.random.default_rng(seed)
  topic = rng.integers(0, topics, prompts)
  ability = rng.normal(size=(models, 1)) + 0.7 * rng.normal(size=(models, topics))
  easy = rng.normal(size=prompts)
  chance = 1 / (1 + np.exp(2 * (ability[:, topic] + easy)))
  return (rng.random((models, prompts)) < chance).T.astype(float), topic


def test_two_models_have_the_factor_of_their_difference():
  losses = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, np.nan]])
  known = validation_order.factors(losses)
  np.testing.assert_allclose(known.mean, [0.5, 1, 0])
  np.testing.assert_allclose(np.abs(known.loadings), [[0.5], [0], [0]], atol=1e-12)
  np.testing.assert_allclose(known.noise, [0.01, 0.01, 0.01])
  # An answer of 1 to the first prompt: nothing is learned about the others, which do not vary.
  predicted = validation_order.predict(known, np.array([0]), np.array([1.0]))
  np.testing.assert_allclose(predicted, [1, 1, 0])


def test_predictions_are_the_conditional_means_of_a_gaussian():
  losses, _ = population(0, 8, prompts=10)
  known = validation_order.factors(losses)
  asked, own = np.array([1, 4, 7]), np.array([0.0, 1.0, 1.0])
  covariance = known.loadings @ known.loadings.T + np.diag(known.noise)
  rest = np.setdiff1d(np.arange(10), asked)
  gain = covariance[np.ix_(rest, asked)] @ np.linalg.inv(covariance[np.ix_(asked, asked)])
  expected = np.clip(known.mean[rest] + gain @ (own - known.mean[asked]), 0, 1)
  predicted = validation_order.predict(known, asked, own)
  np.testing.assert_allclose(predicted[rest], expected)
  np.testing.assert_array_equal(predicted[asked], own)


def test_each_next_prompt_lowers_the_variance_of_the_groups_means_by_most():
  losses, topic = population(1, 6, prompts=9, topics=3)
  known = validation_order.factors(losses)
  groups = one_hot(topic, 4).T  # the last one is empty
  chosen = validation_order.order(known, groups, 4).tolist()

  def variance(asked):
    B = known.loadings[asked]
    posterior = np.linalg.inv(np.eye(B.shape[1]) + (B / known.noise[asked, None]).T @ B)
    means = [known.loadings[topic == k].mean(axis=0) for k in range(3)]
    variance = sum((topic == k).mean() * means[k] @ posterior @ means[k] for k in range(3))
    error = validation_order.standard_error(known, groups, np.array(asked))
    assert error == pytest.approx(np.sqrt(variance))
    return variance

  for index in range(4):
    rest = [v for v in range(9) if v not in chosen[:index]]
    assert variance(chosen[: index + 1]) == pytest.approx(
      min(variance([*chosen[:index], v]) for v in rest)
    )


def test_planned_prompts_tell_more_of_new_models_than_random_ones():
  errors = {'planned': [], 'random': [], 'plain': []}
  for seed in range(15):
    losses, topic = population(seed, 30)
    known, groups = validation_order.factors(losses[:, :20]), one_hot(topic, 4).T
    share = groups / groups.sum(axis=1, keepdims=True)
    planned = validation_order.order(known, groups, 12)
    random = np.random.default_rng(seed).permutation(120)[:12]
    for new in losses[:, 20:].T:
      predicted = {
        'planned': validation_order.predict(known, planned, new[planned]),
        'random': validation_order.predict(known, random, new[random]),
        'plain': np.full(120, new[random].mean()),
      }
      for name, values in predicted.items():
        errors[name].append(np.square(share @ values - share @ new).mean())
  mean = {name: np.mean(values) for name, values in errors.items()}
  assert mean['planned'] < mean['random'] < mean['plain']


def test_an_order_needs_known_models_and_as_many_prompts():
  losses, topic = population(0, 5, prompts=6)
  known, groups = validation_order.factors(losses), one_hot(topic, 4).T
  for count in (0, 7):
    with pytest.raises(ValueError, match=f'{count} of 6 validation prompts cannot be asked'):
      validation_order.order(known, groups, count)
  with pytest.raises(ValueError, match='1 known model; an order of prompts is learned from two'):
    validation_order.factors(losses[:, :1])
  losses[2] = np.nan
  with pytest.raises(ValueError, match='No known model answered 1 of 6 validation prompts'):
    validation_order.factors(losses)
