import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import online, online_costs
from cascades.online_costs import bayes_deferring, episode_cost

TWO = online.OnlineSettings(
  classes=2, next_costs=(1.0, 100.0), caches=(8, 16), decays=(0.97, 0.95), kappas=(0.4, 0.3),
  gate_rates=(7e-4, 7e-4),
)  # fmt: skip


def by_enumeration(deferring, losses, costs, mu):
  """Expected cost over the levels that may answer, each with its probability and its bill."""
  total, chance = 0.0, 1.0
  for i, loss in enumerate(losses):
    last = i == len(losses) - 1
    answers = chance * (1 if last else 1 - deferring[i])
    total += answers * (loss + mu * sum(costs[1 : i + 1]))
    chance *= 0 if last else deferring[i]
  return total


def test_the_episode_cost_is_that_of_enumerating_who_answers():
  rng = np.random.default_rng(0)
  for _ in range(20):
    N = int(rng.integers(2, 5))
    d, losses, costs = rng.random(N), rng.random(N), np.sort(rng.random(N))
    R = online_costs.reach(d)
    assert R[0] == 1
    np.testing.assert_allclose(R[1:], R[:-1] * d[:-1], rtol=1e-6)
    ends = np.append(d[:-1], 0.0)
    assert float(jnp.sum(R * (1 - ends))) == pytest.approx(1, abs=1e-6)
    expected = by_enumeration(d, losses, costs, 0.3)
    assert float(episode_cost(d, losses, costs, mu=0.3)) == pytest.approx(expected, abs=1e-6)


def test_limits_of_the_gates_use_the_first_model_or_pay_for_all():
  losses, costs = np.array([0.5, 0.3, 0.1]), np.array([1.0, 2.0, 50.0])
  assert float(episode_cost(np.zeros(3), losses, costs, mu=0.1)) == pytest.approx(0.5)
  assert float(episode_cost(np.ones(3), losses, costs, mu=0.1)) == pytest.approx(5.2 + 0.1)


def test_the_gradient_is_the_reach_times_what_deferring_adds():
  """dJ/dd_i = R_i (mu c_i+1 + V_i+1 - L_i), V the expected cost of the levels behind."""
  rng = np.random.default_rng(1)
  d, losses, costs, mu = rng.random(4), rng.random(4), np.array([1.0, 2.0, 3.0, 9.0]), 0.1
  gradient = jax.grad(lambda d: episode_cost(d, losses, costs, mu=mu))(jnp.asarray(d))
  R = np.asarray(online_costs.reach(d))
  for i in range(3):
    behind = float(episode_cost(d[i + 1 :], losses[i + 1 :], costs[i + 1 :], mu=mu))
    expected = R[i] * (mu * costs[i + 1] + behind - losses[i])
    assert float(gradient[i]) == pytest.approx(expected, abs=1e-5)
  assert float(gradient[3]) == 0


def test_backward_induction_finds_the_best_of_all_gates():
  rng = np.random.default_rng(2)
  for _ in range(30):
    losses, costs = rng.random(4), np.sort(rng.random(4))
    mu = float(rng.choice([0.0, 0.2, 2.0]))
    best = min(
      float(episode_cost(np.array([*bits, 0.0]), losses, costs, mu=mu))
      for bits in itertools.product([0.0, 1.0], repeat=3)
    )
    gates = bayes_deferring(losses, costs, mu=mu)
    assert float(episode_cost(gates, losses, costs, mu=mu)) == pytest.approx(best, abs=1e-6)
  assert bayes_deferring(np.array([0.5, 0.2]), np.array([1.0, 2.0]), mu=0.1)[0] == 1
  assert bayes_deferring(np.array([0.5, 0.2]), np.array([1.0, 3.0]), mu=0.1)[0] == 0


def test_a_perfect_and_free_expert_is_never_worse_and_a_dear_one_is_never_asked():
  losses, costs = np.array([0.4, 0.0]), np.array([1.0, 100.0])
  assert bayes_deferring(losses, costs, mu=0.0).tolist() == [1, 0]
  assert bayes_deferring(losses, costs, mu=1e6).tolist() == [0, 0]


@pytest.mark.parametrize(
  ('kappa', 'error'), [(0.15, 0.412), (0.3, 0.286), (0.35, 0.231), (0.4, 0.167), (0.45, 0.091)]
)
def test_kappa_is_an_error_that_is_tolerated(kappa, error):
  assert online_costs.tolerated_error(kappa) == pytest.approx(error, abs=5e-4)
  e = online_costs.tolerated_error(kappa)
  assert kappa + (1 - kappa) * e == pytest.approx(0.5)  # the optimum of the squared error alone


def test_the_target_of_a_gate_is_kappa_or_one_and_plain_in_the_warm_up():
  wrong, kappa = jnp.array([0.0, 1.0]), jnp.array([0.4, 0.4])
  np.testing.assert_allclose(online.gate_target(wrong, kappa, warm=False), [0.4, 1.0])
  np.testing.assert_allclose(online.gate_target(wrong, kappa, warm=True), [0.0, 1.0])


def one_level(**changes):
  return online.OnlineSettings(**{'classes': 2, 'next_costs': (636.0,), **changes})


def test_a_gate_is_a_perceptron_and_its_loss_is_the_sum_that_one_computes_by_hand():
  state = online.start(TWO, seed=3)
  gates = jax.tree.map(np.float64, state.gates)
  p, label = np.array([[0.7, 0.3], [0.1, 0.9]]), 1
  total, passed = 0.0, 1.0
  for i in range(2):
    hidden = np.maximum(p[i] @ gates['hidden'][i] + gates['hidden_bias'][i], 0)
    d = 1 / (1 + math.exp(-(hidden @ gates['output'][i] + gates['output_bias'][i])))
    assert float(online.gate(state.gates, p)[i]) == pytest.approx(d, abs=1e-6)
    z = 1.0 if p[i].argmax() != label else TWO.kappas[i]
    loss, price = -math.log(p[i][label]), TWO.mu * TWO.next_costs[i]
    weights = sum(float((np.square(value[i])).sum()) for value in gates.values())
    total += (d - z) ** 2 + 1e-4 * weights + passed * ((1 - d) * loss + d * price)
    passed *= d
  value = online.gate_loss(state.gates, jnp.asarray(p), jnp.asarray(label), TWO, warm=False)
  assert float(value) == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_the_best_constant_gate_is_the_formula():
  """d* = clip(E z' - (mu c - E CE) / 2, 0, 1), where the probabilities are always the same."""
  settings = one_level(kappas=(0.3,))
  gates = jax.tree.map(jnp.zeros_like, online.start(settings, seed=0).gates)
  p, error = jnp.array([[0.8, 0.2]]), 0.2

  @jax.vmap
  def expected(bias):
    given = {**gates, 'output_bias': bias[None]}
    right, wrong = (
      online.gate_loss(given, p, jnp.asarray(label), settings, warm=False) for label in (0, 1)
    )
    return (1 - error) * right + error * wrong

  biases = jnp.linspace(-4, 4, 4001)
  best = float(jax.nn.sigmoid(biases[jnp.argmin(expected(biases))]))
  loss = -(1 - error) * math.log(0.8) - error * math.log(0.2)
  formula = 0.3 + 0.7 * error - (settings.mu * 636.0 - loss) / 2
  assert best == pytest.approx(np.clip(formula, 0, 1), abs=2e-3)


def test_the_loss_of_the_authors_program_softens_probabilities_twice():
  p = jnp.array([1.0, 0.0])
  assert float(online.double_softmax(p, jnp.asarray(0))) == pytest.approx(0.3133, abs=5e-5)
  assert float(online.double_softmax(p, jnp.asarray(1))) == pytest.approx(1.3133, abs=5e-5)
  seven = jnp.eye(7)[0]
  assert float(online.double_softmax(seven, jnp.asarray(0))) == pytest.approx(1.165, abs=5e-4)
  assert float(online.double_softmax(seven, jnp.asarray(3))) == pytest.approx(2.165, abs=5e-4)


def walk(settings, count, *, label=1, state=None):
  """Queries that the expert answers, without any model behind."""
  state = state or online.start(settings, seed=0)
  p = np.full((settings.small, settings.classes), 1 / settings.classes)
  for number in range(count):
    for level in online.due(settings, state):
      state = online.trained(state, level)
    state = online.learn(settings, state, number, p, label)
  return state


def test_the_warm_up_lasts_ten_updates_of_the_slowest_model():
  before = walk(TWO, 159)
  assert online.warming_up(TWO, before)
  state = walk(TWO, 161)
  assert state.updates == (20, 10)
  assert not online.warming_up(TWO, state)
  assert [online.jump_probability(b, U) for b, U in zip(TWO.decays, (20, 10), strict=True)] == [
    pytest.approx(0.544, abs=5e-4), pytest.approx(0.599, abs=5e-4)
  ]  # fmt: skip


def test_caches_hold_the_experts_answers_in_order_and_each_is_learned_once():
  settings, seen = one_level(caches=(3,)), []
  state, p = online.start(settings, seed=0), np.array([[0.5, 0.5]])
  for number in range(11):
    for level in online.due(settings, state):
      seen += state.caches[level]
      state = online.trained(state, level)
      assert state.caches[level] == ()
    state = online.learn(settings, state, number, p, number % 2)
  assert seen == [(number, number % 2) for number in range(9)]


def test_an_answer_without_a_class_is_not_learned_from():
  state = walk(TWO, 60)
  after = online.learn(TWO, state, 'a', np.full((2, 2), 0.5), None)
  assert after is state


def scan(settings, state, deferring, uniforms):
  return online.decide(settings, state, deferring.__getitem__, uniforms)


def test_a_level_answers_unless_its_gate_or_a_jump_defers():
  state = walk(TWO, 170)._replace(updates=(20, 10))
  never = [0.999, 0.999]
  assert scan(TWO, state, [0.2, 0.9], never) == (0, 'answer')
  assert scan(TWO, state, [0.6, 0.2], never) == (1, 'answer')
  assert scan(TWO, state, [0.6, 0.7], never) == (2, 'gate')
  assert scan(TWO, state, [0.2, 0.2], [0.5, 0.999]) == (1, 'answer')  # a jump of one level
  assert scan(TWO, state, [0.2, 0.2], [0.5, 0.5]) == (2, 'jump')
  straight = online.OnlineSettings(**{**vars(TWO), 'jump': online.expert_level})
  assert scan(straight, state, [0.2, 0.2], [0.5, 0.999]) == (2, 'jump')
  assert scan(TWO, state._replace(share=0.1, threshold=1.05), [1.0, 1.0], [0, 0]) == (0, 'answer')


def test_a_jump_is_as_frequent_as_its_probability():
  settings = one_level(decays=(0.9,))
  state = online.start(settings, seed=0)._replace(updates=(12,))
  draws = np.random.default_rng(0).random(20_000)
  share = np.mean([scan(settings, state, [0.0], [u]).level == 1 for u in draws])
  assert share == pytest.approx(0.9**12, abs=4 * math.sqrt(0.25 / len(draws)))
  none = one_level(decays=(0.0,))
  assert all(scan(none, state, [0.0], [u]).level == 0 for u in draws[:100])


def test_a_gate_learns_the_error_of_its_model():
  """Constant probabilities, wrong in a fifth of the answers: d goes to kappa + (1 - kappa) e."""
  settings = one_level(kappas=(0.3,), mu=0.0, loss=lambda p, y: 0.0 * p[..., 0], gate_rates=(3e-3,))
  state = walk(settings, 81)
  state = state._replace(updates=(10,))
  p, rng = np.array([[0.3, 0.7]]), np.random.default_rng(0)
  outputs = []
  for _ in range(1500):
    label = int(rng.random() >= 0.2)
    state = online.learn(settings, state._replace(caches=((),)), 0, p, label)
    outputs.append(float(online.gate(state.gates, p)[0]))
  assert np.mean(outputs[-500:]) == pytest.approx(0.3 + 0.7 * 0.2, abs=0.05)


@pytest.mark.parametrize(
  ('queries', 'caches', 'decays', 'simulated'),
  [
    (12500, (8, 16), (0.97, 0.95), 648), (5352, (8, 16), (0.97, 0.90), 400),
    (3833, (8, 16), (0.80, 0.90), 173), (3256, (8, 16), (0.97, 0.95), 465),
    (12500, (8, 16, 32), (0.99, 0.97, 0.95), 880),
  ],
)  # fmt: skip
def test_the_floor_of_calls_is_the_formula_and_a_simulation(queries, caches, decays, simulated):
  """The numbers of the paper's settings, from the specification."""
  calls = online_costs.least_calls(queries, caches=caches, decays=decays)
  assert calls == pytest.approx(simulated, rel=0.05)


@pytest.mark.parametrize('pattern', ['calm', 'wild', 'drifting'])
@pytest.mark.parametrize('share', [0.02, 0.3, 0.9])
def test_a_budget_is_kept_on_any_stream(pattern, share):
  """Also where gates defer never, always, or more and more: the bound holds at every query."""
  settings = one_level()
  state = online.start(settings, seed=0, share=share)._replace(updates=(30,))
  rng = np.random.default_rng(0)
  calls, bound = 0, (0.5 + settings.gain) / settings.gain
  for n in range(1, 3001):
    d = {'calm': 0.2, 'wild': rng.random(), 'drifting': n / 3000}[pattern]
    called = scan(settings, state, [d], [rng.random()]).level == 1
    state = online.keep_share(settings, state, paid=float(called))
    calls += called
    assert abs(calls - share * n) <= bound + 1e-9


@pytest.mark.parametrize('prices', ['equal', 'rising', 'heavy-tailed'])
@pytest.mark.parametrize('gates', ['calm', 'wild', 'drifting'])
def test_a_budget_of_money_is_kept_within_a_percent_on_any_stream(prices, gates):
  """Prices drift, too: the bound holds at every query, and so does 1 % at the end."""
  settings, length, share, unit = one_level(), 20_000, 0.2, 3e-3
  state = online.start(settings, seed=0, share=share)._replace(updates=(30,), unit=unit)
  rng = np.random.default_rng(0)
  price = {
    'equal': np.full(length, unit),
    'rising': unit * np.linspace(0.5, 3, length),
    'heavy-tailed': unit * np.minimum(rng.pareto(1.5, length) + 0.3, 20),
  }[prices]
  spent = 0.0
  for n in range(1, length + 1):
    d = {'calm': 0.2, 'wild': rng.random(), 'drifting': n / length}[gates]
    called = scan(settings, state, [d], [rng.random()]).level == 1
    paid = float(price[n - 1]) if called else 0.0
    state = online.keep_share(settings, state, paid=paid)
    spent += paid
    assert spent / unit - share * n <= 0.5 / settings.gain + price.max() / unit + 1e-9
  assert spent == pytest.approx(share * unit * length, rel=0.01)


def test_what_a_budget_leaves_after_the_warm_up():
  assert online_costs.share_left(500, 5160, spent=160, seen=160) == pytest.approx(340 / 5000)
  with pytest.raises(ValueError, match='160 calls in the first 160 queries, and the budget is 100'):
    online_costs.share_left(100, 5160, spent=160, seen=160)


def test_the_largest_small_models_that_pay():
  assert online_costs.largest_small_cost(0.5, 70.0) == pytest.approx(17.5)
  assert online_costs.largest_small_cost(0.5, 70.0, epochs=5) == pytest.approx(35 / 6)


@pytest.mark.parametrize(
  ('changes', 'reason'),
  [
    ({'caches': (8, 16)}, '1 next_costs, 2 caches'),
    ({'kappas': (0.5,)}, 'kappas has 0.5'),
    ({'decays': (1.5,)}, 'decays has 1.5'),
    ({'classes': 1}, 'classes=1 must be 2 or more'),
    ({'mu': math.nan}, 'mu=nan'),
  ],
)
def test_settings_out_of_range_are_refused(changes, reason):
  with pytest.raises(ValueError, match=reason):
    one_level(**changes)


@pytest.mark.parametrize('first', [1e-4, 1e-3, 3.0])
def test_bisection_finds_the_price_of_a_budget(first):
  """Calls 1000 / (1 + mu / .01) are 400 at mu = .015."""
  tried = []

  def calls(mu):
    tried.append(mu)
    return round(1000 / (1 + mu / 0.01))

  assert online_costs.price_for(calls, 400, first=first) == pytest.approx(0.015, rel=0.02)
  assert len(tried) == len(set(tried)) < 20


def test_a_budget_below_the_floor_ends_where_doubling_changes_nothing():
  tried = []
  assert online_costs.price_for(lambda mu: tried.append(mu) or 200, 100, first=0.5) == 0.5
  assert tried == [0.5, 1.0, 2.0]
  with pytest.raises(ValueError, match='above 0'):
    online_costs.price_for(lambda mu: 1, 100, first=0.0)
