"""Next-token training of one attention layer: a direction that retrieves, a part that composes.

    python -m experiments.next_token_mechanics

Gradient descent on the key-query matrix of one attention layer with a fixed head, beside the
max-margin solution of the data's token-priority graph. See next_token_mechanics.md.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from benchmarks import bars
from benchmarks.bars import Measured
from experiments import attention_layer, priority_graph

HERE = pathlib.Path(__file__).parent
K, T, N = 8, 5, 48  # tokens, length of a prompt, prompts


class Examples(NamedTuple):
  """Prompts with their next tokens, fresh prompts, and the embeddings of one data set."""

  prompts: Int[np.ndarray, 'n T']
  labels: Int[np.ndarray, 'n']
  fresh: Int[np.ndarray, 'm T']
  E: Float[np.ndarray, 'K d']


def sample(seed: int, *, cyclic: bool, dimensions: int = K) -> Examples:
  """Data of planted priorities: each last token orders groups of tokens at random.

  The next token is drawn among the prompt's tokens of the highest group, in proportion to weights
  of the tokens. Groups have one token each, or three at most if `cyclic`. Which graph the data
  have is read from the data: a group is an SCC only where they show both orders.
  """
  random = np.random.default_rng(seed)
  size = 3 if cyclic else 1
  groups = np.stack([random.permutation(K) // size for _ in range(K)])  # [z, k]; 0 is the highest
  weights = random.uniform(0.5, 2.0, size=(K, K))
  last = random.integers(0, K // 2, size=N)  # half of the tokens end prompts: more prompts of each
  prompts = np.concatenate([random.integers(0, K, size=(N, T - 1)), last[:, None]], axis=1)
  labels = np.empty(N, int)
  for row, prompt in enumerate(prompts):
    group = groups[prompt[-1], prompt]
    p = np.where(group == group.min(), weights[prompt[-1], prompt], 0.0)
    labels[row] = random.choice(prompt, p=p / p.sum())
  fresh = random.integers(0, K, size=(400, T))
  fresh[:, -1] = random.integers(0, K // 2, size=400)
  E = (
    attention_layer.orthonormal(K, seed) if dimensions == K
    else attention_layer.gaussian(K, dimensions, seed)
  )  # fmt: skip
  return Examples(prompts, labels, fresh, E)


def highest(
  examples: Examples, prompts: Int[np.ndarray, 'n T']
) -> tuple[Bool[np.ndarray, 'n T'], Bool[np.ndarray, 'n']]:
  """Positions of the SCC with priority over all other tokens, and the prompts that have one."""
  graph = priority_graph.edges(examples.prompts, examples.labels, K)
  above, scc = priority_graph.priority(graph), priority_graph.components(graph)
  z = prompts[:, -1, None]
  same = scc[z, prompts][:, :, None] == scc[z, prompts][:, None, :]
  over = above[z[:, :, None], prompts[:, :, None], prompts[:, None, :]]
  top = (same | over).all(axis=2)
  return top, top.any(axis=1)


Carry: TypeAlias = tuple[jax.Array, optax.OptState]


@functools.partial(jax.jit, static_argnums=0)
def descend(
  optimizer: optax.GradientTransformation,
  W: jax.Array,
  data: tuple[jax.Array, jax.Array, jax.Array],
  steps: jax.Array,
) -> jax.Array:
  """W of each data set after `steps` more steps; data are E, prompts and labels, stacked."""

  def one_set(W: jax.Array, E: jax.Array, prompts: jax.Array, labels: jax.Array) -> jax.Array:
    def update(_: jax.Array, carry: Carry) -> Carry:
      W, state = carry
      gradient = jax.grad(attention_layer.loss)(W, E, prompts, labels)
      change, state = optimizer.update(gradient, state, W)
      return optax.apply_updates(W, change), state

    return jax.lax.fori_loop(0, steps, update, (W, optimizer.init(W)))[0]

  return jax.vmap(one_set)(W, *data)


PLAIN = optax.sgd(1.0)
NORMALIZED = optax.chain(optax.normalize_by_update_norm(eps=1e-300), optax.sgd(0.05))


class Trajectory(NamedTuple):
  """Measurements [sets, checkpoints] of a descent."""

  steps: Int[np.ndarray, 'c']
  cosine: Float[np.ndarray, 's c']  # of W and the max-margin direction
  separating: Float[np.ndarray, 's c']  # the same outside the cyclic subspace
  finite: Float[np.ndarray, 's c']  # distance to the finite component in it, relative
  trained: Float[np.ndarray, 's c']  # attention on the highest SCC: mean over training prompts
  fresh: Float[np.ndarray, 's c']  # and over fresh prompts that have one
  norm: Float[np.ndarray, 's c']


def follow(
  sets: Sequence[Examples], optimizer: optax.GradientTransformation, steps: Sequence[int]
) -> Trajectory:
  """Descent from W = 0, measured after each number of steps."""
  with jax.enable_x64(True):
    data = tuple(
      jnp.stack([jnp.asarray(values) for values in column])
      for column in zip(*((s.E, s.prompts, s.labels) for s in sets), strict=True)
    )
    d = sets[0].E.shape[1]
    W = jnp.zeros((len(sets), d, d))
    path = []
    for before, after in zip([0, *steps], steps, strict=False):
      W = descend(optimizer, W, data, jnp.asarray(after - before))
      path.append(np.asarray(W))
  values = [_measure(examples, np.stack(path)[:, i]) for i, examples in enumerate(sets)]
  return Trajectory(np.array(steps), *map(np.stack, zip(*values, strict=True)))


def _measure(examples: Examples, path: Float[np.ndarray, 'c d d']) -> list[Float[np.ndarray, 'c']]:
  E, prompts, labels, fresh = examples.E, examples.prompts, examples.labels, examples.fresh
  graph = priority_graph.edges(prompts, labels, K)
  direction = priority_graph.svm(graph, E).ravel()
  basis = priority_graph.cyclic_basis(graph, E)
  finite = priority_graph.finite_component(prompts, labels, E).ravel() @ basis
  flat = path.reshape(len(path), -1)
  outside = flat - flat @ basis @ basis.T
  away = np.linalg.norm(flat @ basis - finite, axis=1) / max(np.linalg.norm(finite), 1e-300)
  return [
    cosine(flat, direction),
    cosine(outside, direction),
    away if basis.shape[1] else np.full(len(path), np.nan),
    np.array([_on_highest(examples, W, prompts) for W in path]),
    np.array([_on_highest(examples, W, fresh) for W in path]),
    np.linalg.norm(flat, axis=1),
  ]


def cosine(
  vectors: Float[np.ndarray, 'c D'], direction: Float[np.ndarray, 'D']
) -> Float[np.ndarray, 'c']:
  return vectors @ direction / np.linalg.norm(vectors, axis=1) / np.linalg.norm(direction)


def _on_highest(
  examples: Examples, W: Float[np.ndarray, 'd d'], prompts: Int[np.ndarray, 'n T']
) -> float:
  top, has_one = highest(examples, prompts)
  values = (examples.E @ W @ examples.E.T)[prompts, prompts[:, -1:]]
  weights = np.exp(values - values.max(axis=1, keepdims=True))
  share = (weights * top).sum(axis=1) / weights.sum(axis=1)
  return float(share[has_one].mean())


def experiments(count: int, steps: int) -> dict[str, Trajectory]:
  """Trajectory of each case: graph, embeddings and optimizer."""
  powers = [10**power for power in range(8) if 10**power <= steps]
  few = [power for power in powers if power <= 10_000]
  acyclic = [sample(seed, cyclic=False) for seed in range(count)]
  cyclic = [sample(seed, cyclic=True) for seed in range(count)]
  return {
    'acyclic, normalized': follow(acyclic, NORMALIZED, few),
    'acyclic': follow(acyclic, PLAIN, powers),
    'cyclic': follow(cyclic, PLAIN, powers),
    'cyclic, not orthogonal': follow(
      [sample(seed, cyclic=True, dimensions=2 * K) for seed in range(count)], PLAIN, powers
    ),
  }


def measured(trajectories: dict[str, Trajectory]) -> Iterator[Measured]:
  for name, path in trajectories.items():
    for what, values, worst in (
      ('cosine to max margin', path.cosine, np.min),
      ('the same outside the cyclic subspace', path.separating, np.min),
      ('distance to the finite component', path.finite, np.max),
      ('attention on the highest SCC', path.trained, np.min),
      ('the same, fresh prompts', path.fresh, np.min),
    ):
      last = values[:, -1]
      if np.isnan(last).all():
        continue
      note = f'{worst.__name__} {worst(last):.4f}; median after {path.steps[0]} step: '
      note += f'{np.median(values[:, 0]):.4f}'
      yield Measured(f'{name}: {what}', float(np.median(last)), 'median', note=note)


def draw(trajectories: dict[str, Trajectory], path: pathlib.Path) -> None:
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
  panels = (
    ('cosine', 'cosine of W and the max-margin solution'),
    ('finite', 'relative distance to the finite component'),
    ('fresh', 'attention on the highest SCC, fresh prompts'),
  )
  for axis, (field, title) in zip(axes, panels, strict=True):
    for color, (name, trajectory) in enumerate(trajectories.items()):
      values = getattr(trajectory, field)
      if np.isnan(values).all():
        continue
      low, middle, high = np.percentile(values, [0, 50, 100], axis=0)
      axis.plot(trajectory.steps, middle, f'C{color}', label=name)
      axis.fill_between(trajectory.steps, low, high, color=f'C{color}', alpha=0.15)
    axis.set(xscale='log', xlabel='steps', title=title)
  axes[1].set_yscale('log')
  axes[0].legend(fontsize='small')
  figure.savefig(path, dpi=80)
  plt.close(figure)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--count', type=int, default=20, help='data sets of each case')
  parser.add_argument('--steps', type=int, default=100_000, help='of plain gradient descent')
  parser.add_argument('--output', type=pathlib.Path, default=HERE / 'next_token_mechanics.json')
  options = parser.parse_args()
  trajectories = experiments(options.count, options.steps)
  details = {
    name: {field: np.median(values, axis=0).tolist() if values.ndim > 1 else values.tolist()
           for field, values in trajectory._asdict().items()}
    for name, trajectory in trajectories.items()
  }  # fmt: skip
  rows = list(measured(trajectories))
  bars.report('next-token mechanics', rows, options.output, vars(options), details)
  draw(trajectories, options.output.with_suffix('.png'))


if __name__ == '__main__':
  main()
