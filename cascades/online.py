"""Online cascade learning: small models learn from an expert's answers while they serve.

Levels 1 .. N-1 are small models and level N is the expert, of costs c_1 < ... < c_N. Behind each
small model a gate reads its probabilities p_i, and d_i is its probability of deferring. With losses
L_i, the reach of a level and the expected cost of a query are

    R_1 = 1,   R_i+1 = R_i d_i,   J = sum_i R_i [(1 - d_i) L_i + d_i mu c_i+1],   d_N = 0

where mu trades loss for cost. The expert is asked during a warm-up, where all gates defer, and
where jumps, ever rarer, pass over a level that would have answered. Its answers, and nothing else,
train the small models, in caches of a fixed size, and the gates, by

    sum_i [(d_i - z_i)^2 + lambda |theta_i|^2] + sum_i prod_(k<i) d_k [(1 - d_i) L_i + d_i mu c_i+1]

with z_i = min(kappa_i + 1[model i is wrong], 1), without kappa_i in the warm-up. Nie et al. 2024,
https://arxiv.org/abs/2402.04513. Gold labels are read nowhere.

Axes: N levels, Y classes, H hidden units of a gate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from cascades.online_costs import reach

Gates: TypeAlias = Mapping[str, Array]  # parameters of all gates, one after another
ClassLoss: TypeAlias = Callable[[Float[Array, '*n Y'], Int[Array, '']], Float[Array, '*n']]
Reason: TypeAlias = Literal['answer', 'warm-up', 'jump', 'gate']

HIDDEN = 128
UNCERTAIN = 0.5  # threshold of the gates without a budget
LEAST = 1e-7  # probability
PENALTY = 1e-4  # lambda


def negative_log_likelihood(
  probabilities: Float[Array, '*n Y'], label: Int[Array, '']
) -> Float[Array, '*n']:
  """Loss -log p_y, of probabilities of at least LEAST."""
  return -jnp.log(jnp.maximum(probabilities[..., label], LEAST))


def double_softmax(
  probabilities: Float[Array, '*n Y'], label: Int[Array, '']
) -> Float[Array, '*n']:
  """Cross entropy of probabilities that are taken for logits, as the authors' program computes it.

  It lies in [0.313, 1.313] for two classes, and sets the scale of the paper's values of mu.
  """
  return -jax.nn.log_softmax(probabilities)[..., label]


def next_level(level: int, levels: int) -> int:
  """Level after a jump: the next one, as in the authors' program."""
  del levels
  return level + 1


def expert_level(level: int, levels: int) -> int:
  """Level after a jump: the expert, as in the paper."""
  del level
  return levels - 1


@dataclasses.dataclass(frozen=True)
class OnlineSettings:
  """Settings of a cascade; tuples have an entry for each small model, the cheapest first.

  Attributes:
    classes: Number Y of classes.
    next_costs: Cost c_i+1 of the level after each small model; the last is the expert's.
    caches: Answers of the expert on which a small model is trained together.
    decays: b of the probability b ** U of a jump, after U updates of the small model.
    kappas: Tolerance of errors, in [0, 0.5): with MSE alone a gate defers where the probability of
      an error exceeds (0.5 - kappa) / (1 - kappa).
    gate_rates: Learning rates of the gates.
    mu: Price of cost in units of loss.
    loss: Loss L of a small model.
    jump: Level after a jump, of the level before it and the number of levels.
    warm_up: Updates of every small model that end the warm-up.
    first_updates: Updates of every small model after which gates learn.
    gain: Step of the threshold that keeps a budget; see `keep_share`.
  """

  classes: int
  next_costs: tuple[float, ...] = (1182.0,)
  caches: tuple[int, ...] = (8,)
  decays: tuple[float, ...] = (0.97,)
  kappas: tuple[float, ...] = (0.4,)
  gate_rates: tuple[float, ...] = (7e-4,)
  mu: float = 1e-3
  loss: ClassLoss = negative_log_likelihood
  jump: Callable[[int, int], int] = next_level
  warm_up: int = 10
  first_updates: int = 2
  gain: float = 0.1

  def __post_init__(self) -> None:
    names = ('next_costs', 'caches', 'decays', 'kappas', 'gate_rates')
    sizes = {name: len(getattr(self, name)) for name in names}
    if len(set(sizes.values())) != 1 or not self.small:
      raise ValueError(
        f'{", ".join(f"{size} {name}" for name, size in sizes.items())}: give each as many '
        'numbers as there are small models.'
      )
    bounds: dict[str, Callable[[float], bool]] = {
      'next_costs': lambda x: 0 <= x < math.inf,
      'caches': lambda x: x >= 1,
      'decays': lambda x: 0 <= x <= 1,
      'kappas': lambda x: 0 <= x < 0.5,
      'gate_rates': lambda x: 0 < x < math.inf,
    }
    for name, fits in bounds.items():
      if bad := [x for x in getattr(self, name) if not fits(x)]:
        raise ValueError(f'{name} has {bad[0]}, which is out of range.')
    if self.classes < 2 or not 0 <= self.mu < math.inf or not 0 < self.gain < math.inf:
      raise ValueError(
        f'classes={self.classes} must be 2 or more, mu={self.mu} 0 or more and gain={self.gain} '
        'positive.'
      )

  @property
  def small(self) -> int:
    """Number N - 1 of small models."""
    return len(self.caches)


class Waiting(NamedTuple):
  """An answer of the expert that is learned from when query number `due` comes."""

  due: int
  query: Any
  probabilities: tuple[tuple[float, ...], ...]
  label: int | None


class OnlineState(NamedTuple):
  """State between two queries; the parameters of the small models are elsewhere.

  Attributes:
    gates: Parameters of the gates.
    moments: State of their optimizer.
    caches: Queries with the expert's labels that each small model is to be trained on.
    updates: Number U of updates of each small model.
    calls: Answers of the expert that were paid for.
    threshold: Gates defer above it.
    share: Share of the queries after the warm-up that the expert answers; None for no budget.
    waiting: Answers of the expert that are not learned from yet.
    spent: Price of all calls; their number without prices.
    unit: Price in which a budget counts: the mean of the calls of the warm-up.
  """

  gates: Gates
  moments: Any
  caches: tuple[tuple[tuple[Any, int], ...], ...]
  updates: tuple[int, ...]
  calls: int = 0
  threshold: float = UNCERTAIN
  share: float | None = None
  waiting: tuple[Waiting, ...] = ()
  spent: float = 0.0
  unit: float = 1.0


class LevelChoice(NamedTuple):
  """Level that answers a query, from 0; and why it is not an earlier one."""

  level: int
  reason: Reason


def jump_probability(decay: float, updates: int) -> float:
  """Probability b ** U that a level which would answer is passed over."""
  return float(decay) ** updates


def gate_target(
  wrong: Float[Array, '*n'], kappa: Float[Array, '*n'], *, warm: Array | bool
) -> Float[Array, '*n']:
  """Target z of a gate: 1 where the model is wrong, else kappa, or 0 in the warm-up."""
  return jnp.where(warm, wrong, jnp.minimum(wrong + kappa, 1.0))


def gate(gates: Gates, probabilities: Float[Array, '*n N Y']) -> Float[Array, '*n N']:
  """Probabilities of deferring, sigmoid(ReLU(p W + b) v + c) for each small model."""
  hidden = jnp.einsum('...ny,nyh->...nh', probabilities, gates['hidden']) + gates['hidden_bias']
  logits = jnp.einsum('...nh,nh->...n', jax.nn.relu(hidden), gates['output'])
  return jax.nn.sigmoid(logits + gates['output_bias'])


def gate_loss(
  gates: Gates,
  probabilities: Float[Array, 'N Y'],
  label: Int[Array, ''],
  settings: OnlineSettings,
  *,
  warm: Array | bool,
) -> Float[Array, '']:
  """Loss of all gates on a query that the expert answered; see the module.

  The small models get no gradient from it: their probabilities are numbers here.
  """
  d = gate(gates, probabilities)
  wrong = (jnp.argmax(probabilities, -1) != label).astype(d.dtype)
  z = gate_target(wrong, jnp.asarray(settings.kappas), warm=warm)
  losses = settings.loss(probabilities, label)
  penalty = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gates))
  following = settings.mu * jnp.asarray(settings.next_costs)
  expected = jnp.sum(reach(d) * ((1 - d) * losses + d * following))
  return jnp.sum((d - z) ** 2) + PENALTY * penalty + expected


def start(settings: OnlineSettings, *, seed: int, share: float | None = None) -> OnlineState:
  """State before the first query, with random gates."""
  first, second, third, fourth = jax.random.split(jax.random.key(seed), 4)
  N, Y = settings.small, settings.classes

  def uniform(key: Array, *shape: int, fan_in: int) -> Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1) / np.sqrt(fan_in)

  gates = {
    'hidden': uniform(first, N, Y, HIDDEN, fan_in=Y),
    'hidden_bias': uniform(second, N, HIDDEN, fan_in=Y),
    'output': uniform(third, N, HIDDEN, fan_in=HIDDEN),
    'output_bias': uniform(fourth, N, fan_in=HIDDEN),
  }
  empty: tuple[tuple[Any, int], ...] = ()
  return OnlineState(gates, optax.scale_by_adam().init(gates), (empty,) * N, (0,) * N, share=share)


def warming_up(settings: OnlineSettings, state: OnlineState) -> bool:
  """True until every small model has `warm_up` updates."""
  return min(state.updates) < settings.warm_up


def due(settings: OnlineSettings, state: OnlineState) -> list[int]:
  """Small models whose caches are full, which are trained before the next query."""
  sizes = zip(state.caches, settings.caches, strict=True)
  return [i for i, (cache, size) in enumerate(sizes) if len(cache) >= size]


def trained(state: OnlineState, level: int) -> OnlineState:
  """State after a small model was trained on its cache: the cache is empty."""
  caches = tuple(() if i == level else cache for i, cache in enumerate(state.caches))
  updates = tuple(count + (i == level) for i, count in enumerate(state.updates))
  return state._replace(caches=caches, updates=updates)


def decide(
  settings: OnlineSettings,
  state: OnlineState,
  deferring: Callable[[int], float],
  uniforms: Sequence[float],
) -> LevelChoice:
  """Choose the level that answers a query.

  Args:
    settings: Settings of the cascade.
    state: State before the query.
    deferring: Gives d of a small model, which is computed only where it is reached.
    uniforms: Random number in [0, 1) for each small model, which decides on its jump. Nothing
      jumps while the budget is exceeded.
  """
  if warming_up(settings, state):
    return LevelChoice(settings.small, 'warm-up')
  level, reason, within = 0, 'gate', state.share is None or state.threshold <= 1
  while level < settings.small:
    if deferring(level) > state.threshold:
      level += 1
      continue
    jumps = uniforms[level] < jump_probability(settings.decays[level], state.updates[level])
    if not (jumps and within):
      return LevelChoice(level, 'answer')
    level, reason = settings.jump(level, settings.small + 1), 'jump'
  return LevelChoice(settings.small, 'jump' if reason == 'jump' else 'gate')


def learn(
  settings: OnlineSettings,
  state: OnlineState,
  query: Any,
  probabilities: Float[np.ndarray, 'N Y'],
  label: int | None,
) -> OnlineState:
  """Learn from an answer of the expert, unless it has no class; its call is counted elsewhere.

  Args:
    settings: Settings of the cascade.
    state: State before the answer.
    query: Put into the caches beside the label.
    probabilities: Those of each small model.
    label: Class that the expert gave; None for an answer that names none.
  """
  if label is None:
    return state
  if min(state.updates) > settings.first_updates:
    warm = np.asarray(warming_up(settings, state))
    gates, moments = _gate_step(
      state.gates, state.moments, np.float32(probabilities), label, warm, settings
    )
    state = state._replace(gates=gates, moments=moments)
  return state._replace(caches=tuple((*cache, (query, label)) for cache in state.caches))


@jax.jit(static_argnums=5)
def _gate_step(
  gates: Gates, moments: Any, probabilities: Array, label: Array, warm: Array,
  settings: OnlineSettings,
) -> tuple[Gates, Any]:  # fmt: skip
  gradient = jax.grad(gate_loss)(gates, probabilities, label, settings, warm=warm)
  steps, moments = optax.scale_by_adam().update(gradient, moments)
  rates = jnp.asarray(settings.gate_rates)

  def moved(value: Array, step: Array) -> Array:
    return value - rates.reshape(-1, *[1] * (value.ndim - 1)) * step

  return jax.tree.map(moved, gates, steps), moments


def keep_share(settings: OnlineSettings, state: OnlineState, *, paid: float) -> OnlineState:
  """Move the threshold after a query behind the warm-up: by gain (paid / unit - share).

  Gates defer above it, so it rises with each call and falls otherwise. Below 0 every gate defers;
  above 1 none does, and nothing jumps. It never exceeds 1 by more than the step of one call, so
  that after any n queries of any stream, a drifting one included, calls of prices c_i <= c satisfy

      sum c_i / unit - share n <= 0.5 / gain + c / unit.

  Calls of price 1 = unit, which are counted, also keep it above -gain:

      |calls - share n| <= (0.5 + gain) / gain.

  Args:
    settings: Settings of the cascade.
    state: State after the query.
    paid: Price of its call; 0 if there was none.
  """
  if state.share is None:
    return state
  step = settings.gain * (paid / state.unit - state.share)
  return state._replace(threshold=state.threshold + step)
