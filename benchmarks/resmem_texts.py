"""ResMem on classes of texts: perceptrons of several widths on hashed TF-IDF, for `resmem`."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from cascades import hashed_words, resmem
from cascades.resmem import Lookup

FOLDER = 'flan_tasks'
FEATURES = 256
WIDTHS = (2, 8, 64)
SHARES = (0.1, 0.3, 1.0)
STEPS, RATE = 300, 1e-2
TUNED = 400  # entries that choose a lookup


class Texts(NamedTuple):
  """Vectors and labels of one part of a set."""

  x: Float[np.ndarray, 'N F']
  y: Int[np.ndarray, 'N']


class Perceptron(NamedTuple):
  """Hidden states and logits of texts."""

  hidden: Float[Array, 'N W']
  logits: Float[Array, 'N L']


def read(data: pathlib.Path, name: str) -> tuple[Texts, Texts, int]:
  """Training and test texts of a set, and its number of classes."""
  lines = lambda file: (data / FOLDER / file).read_text().splitlines()
  if name == 'AG News':
    rows = [json.loads(line) for line in lines('ag_news.official_test.jsonl')]
    order = np.random.default_rng(0).permutation(len(rows))
    parts = [[rows[i] for i in order[:6000]], [rows[i] for i in order[6000:]]]
  else:
    stem = {'TREC': 'trec', 'SST-2': 'sst2'}[name]
    parts = [[json.loads(x) for x in lines(f'{stem}.{split}.jsonl')] for split in ('train', 'test')]
  counts = [hashed_words.counts([row['input'] for row in rows]) for rows in parts]
  fitted = hashed_words.fit(counts[0], FEATURES)
  classes = parts[0][0]['options']
  train, test = (
    Texts(hashed_words.embed(fitted, table), np.array([classes.index(r['target']) for r in rows]))
    for table, rows in zip(counts, parts, strict=True)
  )
  return train, test, len(classes)


def fit(train: Texts, classes: int, width: int, seed: int) -> Callable[[Any], Perceptron]:
  """Function from vectors to hidden states and logits, trained by Adam on all texts at once."""
  keys = jax.random.split(jax.random.key(seed), 2)
  scale = lambda fan_in: fan_in**-0.5
  params = {
    'in': jax.random.normal(keys[0], (FEATURES, width)),  # texts have length 1
    'bias': jnp.zeros(width),
    'out': scale(width) * jax.random.normal(keys[1], (width, classes)),
    'prior': jnp.zeros(classes),
  }
  optimizer = optax.adam(RATE)

  def apply(params: Any, x: Array) -> Perceptron:
    hidden = jnp.tanh(x @ params['in'] + params['bias'])
    return Perceptron(hidden, hidden @ params['out'] + params['prior'])

  @jax.jit
  def run(params: Any, x: Array, y: Array) -> Any:
    def loss(params: Any) -> Array:
      logits = apply(params, x).logits
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(state: Any, _: None) -> tuple[Any, None]:
      updates, moments = optimizer.update(jax.grad(loss)(state[0]), state[1])
      return (optax.apply_updates(state[0], updates), moments), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=STEPS)[0][0]

  trained = run(params, jnp.asarray(train.x), jnp.asarray(train.y))
  return lambda x: apply(trained, jnp.asarray(x))


@functools.partial(jax.jit, static_argnames=('k', 'mix'))
def _classify(inputs: Any, sigma: Array, option: Array, *, k: int, mix: str) -> Array:
  logits, distance, memory_logits, labels, near = inputs
  given: dict[str, Any] = {mix: option}
  lookup = Lookup(k, sigma, **given)
  return resmem.classify(logits, distance, memory_logits[near], labels[near], lookup)


def classify(inputs: Any, lookup: Lookup) -> Array:
  """Predictions, compiled once for each number of neighbors."""
  mix = 'temperature' if lookup.interpolation is None else 'interpolation'
  option = jnp.float32(getattr(lookup, mix))
  return _classify(inputs, jnp.float32(lookup.sigma), option, k=lookup.k, mix=mix)


def remembered(
  memory: Perceptron, labels: Int[np.ndarray, 'N'], test: Perceptron, *, interpolate: bool
) -> tuple[Float[np.ndarray, 'Q L'], Lookup]:
  """Predictions for test texts with a memory that leave-one-out has tuned, and its lookup."""
  y = jnp.asarray(labels)
  k = min(max(resmem.NEIGHBORS), len(y) - 1)
  tuned = jnp.asarray(np.random.default_rng(0).permutation(len(y))[:TUNED])
  near = resmem.nearest(memory.hidden[tuned], memory.hidden, k, excluded=tuned)
  distance = resmem.distances(memory.hidden[tuned], memory.hidden, near)
  lookups = list(resmem.grid(float(jnp.median(distance)), k, interpolate=interpolate))
  inputs = (memory.logits[tuned], distance, memory.logits, y, near)
  lookup, _ = resmem.tune(lambda choice: classify(inputs, choice), y[tuned], lookups)
  near = resmem.nearest(test.hidden, memory.hidden, lookup.k)
  distance = resmem.distances(test.hidden, memory.hidden, near)
  return np.asarray(classify((test.logits, distance, memory.logits, y, near), lookup)), lookup


def accuracy(p: Any, y: Int[np.ndarray, 'N']) -> float:
  """Share of texts whose label has the largest entry."""
  return float(np.mean(np.asarray(p).argmax(1) == y))


def flops(width: int, classes: int, entries: int = 0) -> float:
  """FLOPs of a text: the perceptron, and the search."""
  return 2.0 * (FEATURES * width + width * classes + entries * width)


def run(data: pathlib.Path, name: str, seed: int) -> dict[str, Any]:
  """Accuracy of all widths and memories of a set, and curves of the width-2 cascades."""
  train, test, classes = read(data, name)
  order = np.random.default_rng(seed).permutation(len(train.y))
  result: dict[str, Any] = {'widths': {}}
  models = {width: fit(train, classes, width, seed) for width in WIDTHS}
  outputs = {width: model(test.x) for width, model in models.items()}
  predictions: dict[str, Any] = {}
  for width, model in models.items():
    entry: dict[str, Any] = {
      'base': accuracy(outputs[width].logits, test.y),
      'train': accuracy(model(train.x).logits, train.y),
    }
    for share in SHARES:
      rows = order[: int(share * len(order))]
      for way in ('resmem', 'knn_lm'):
        p, lookup = remembered(
          model(train.x[rows]), train.y[rows], outputs[width], interpolate=way == 'knn_lm'
        )
        entry[f'{way} {share}'] = accuracy(p, test.y)
        entry[f'{way} {share} lookup'] = lookup._asdict()
        if width == WIDTHS[0] and share == 1.0:
          predictions[way] = resmem.clip(p)
    result['widths'][str(width)] = entry
  small, large = outputs[WIDTHS[0]], outputs[WIDTHS[-1]]
  predictions['base'] = jax.nn.softmax(small.logits)
  right = np.asarray(large.logits).argmax(1) == test.y
  result['cascades'] = {
    way: {
      'quality': curve(p, test.y, right).tolist(),
      'small': flops(WIDTHS[0], classes, 0 if way == 'base' else len(train.y)),
      'large': flops(WIDTHS[-1], classes),
      'bytes': 0 if way == 'base' else 4 * len(train.y) * (WIDTHS[0] + classes + 1),
    }
    for way, p in predictions.items()
  }
  result['fresh'] = fresh(train, test, classes, order, seed)
  return result


def fresh(
  train: Texts, test: Texts, classes: int, order: Int[np.ndarray, 'N'], seed: int
) -> Mapping[str, Mapping[str, float]]:
  """Accuracy with the base on one half of the texts, and a memory of that half or the other."""
  seen, unseen = np.split(order[: 2 * (len(order) // 2)], 2)
  results = {}
  for width in WIDTHS:
    model = fit(Texts(train.x[seen], train.y[seen]), classes, width, seed)
    output = model(test.x)
    results[str(width)] = {'base': accuracy(output.logits, test.y)} | {
      name: accuracy(
        remembered(model(train.x[rows]), train.y[rows], output, interpolate=False)[0], test.y
      )
      for name, rows in (('seen', seen), ('fresh', unseen))
    }
  return results


def curve(p: Any, y: Any, large: Any) -> Float[np.ndarray, '101']:
  """Accuracy at 0 to 100 % deferral, the least probable answers first."""
  p = np.asarray(p)
  own = (p.argmax(1) == y).astype(float)
  return deferral_curve(-p.max(1), own, np.asarray(large, float))


def deferral_curve(
  score: Float[np.ndarray, 'N'], small: Float[np.ndarray, 'N'], large: Float[np.ndarray, 'N']
) -> Float[np.ndarray, '101']:
  """Mean quality at 0 to 100 % deferral, the highest scores first."""
  order = np.argsort(-score, kind='stable')
  gain = np.concatenate([[0.0], np.cumsum((large - small)[order])]) / len(order)
  return small.mean() + np.interp(np.linspace(0, 1, 101), np.linspace(0, 1, len(gain)), gain)
