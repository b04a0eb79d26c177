"""A small model of an online cascade: an encoder of sentences that is fine-tuned on its cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from cascades.inference import encoders
from cascades.interop.pretrained import open_encoder
from cascades.models import bert
from cascades.types import Vocabulary


@dataclasses.dataclass(frozen=True)
class FineTunedConfig:
  """Softmax on the vectors of an encoder, all of whose weights are trained by Adam.

  Attributes:
    folder: Folder of an encoder of sentence-transformers or Hugging Face.
    epochs: Passes over each cache.
    batch: Texts of a step.
    rate: Learning rate.
    tokens: Length to which texts are cut and padded.
  """

  folder: str
  epochs: int = 5
  batch: int = 8
  rate: float = 1e-4
  tokens: int = 128

  def build(self, classes: int, seed: int) -> FineTuned:
    """The classifier before it has learned anything.

    Raises:
      CheckpointError: The folder holds no encoder.
    """
    pretrained = open_encoder(self.folder)
    return FineTuned(encoders.load(pretrained), pretrained.vocabulary, self, classes, seed)


class TokenRows(NamedTuple):
  """Texts as tokens of one length, so that nothing depends on the texts beside them."""

  tokens: Int[np.ndarray, 'n S']
  mask: Bool[np.ndarray, 'n S']


class FineTuned:
  """The classifier; a cache is learned in one compiled program."""

  def __init__(
    self, model: bert.Bert, vocabulary: Vocabulary, config: FineTunedConfig, classes: int, seed: int
  ) -> None:
    """Prepares the classifier; its head is 0, so that probabilities are uniform at first.

    Args:
      model: The encoder.
      vocabulary: Its tokenizer.
      config: Rates and sizes.
      classes: Number of classes.
      seed: Seed of the order of the texts in each pass.
    """
    self._vocabulary, self._config = vocabulary, config
    self._length = min(config.tokens, model.config.max_length)
    graph, params = nnx.split(model)
    width = model.config.emb_dim
    head = {'kernel': jnp.zeros((width, classes)), 'bias': jnp.zeros(classes)}
    optimizer = optax.adam(config.rate)
    self._weights: Any = (params, head)
    self._moments: Any = optimizer.init(self._weights)
    self._updates, self._key = 0, jax.random.key(seed)

    def logits(weights: Any, tokens: Array, mask: Array) -> Float[Array, 'B Y']:
      vectors = nnx.merge(graph, weights[0]).embed(tokens, mask) * np.sqrt(width)
      return vectors @ weights[1]['kernel'] + weights[1]['bias']

    def loss(weights: Any, rows: tuple[Array, Array, Array], fits: Array) -> Float[Array, '']:
      tokens, mask, labels = rows
      read = logits(weights, tokens, mask)
      losses = optax.softmax_cross_entropy_with_integer_labels(read, labels)
      return jnp.sum(losses * fits) / jnp.sum(fits)

    self._logits = jax.jit(logits)
    self._learn = jax.jit(learner(loss, optimizer, epochs=config.epochs, batch=config.batch))

  def prepare(self, texts: Sequence[str]) -> TokenRows:
    """Tokens of the texts."""
    vocabulary = self._vocabulary
    start = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    most = self._length - len(start) - 1
    tokens = np.full((len(texts), self._length), vocabulary.pad_id, np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, ids in enumerate(vocabulary.encode_all(list(texts))):
      text = [*start, *ids[:most], vocabulary.eos_id]
      tokens[row, : len(text)], mask[row, : len(text)] = text, True
    return TokenRows(tokens, mask)

  def predict(self, prepared: TokenRows, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """Softmax of the rows, in batches of one size."""
    size, logits = self._config.batch, []
    for begin in range(0, len(rows), size):
      chosen = np.resize(rows[begin : begin + size], size)
      logits.append(self._logits(self._weights, prepared.tokens[chosen], prepared.mask[chosen]))
    together = np.asarray(jnp.concatenate(logits), float)[: len(rows)]
    ones = np.exp(together - together.max(1, keepdims=True))
    return ones / ones.sum(1, keepdims=True)

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Learn from the texts, `epochs` times in random orders."""
    rows = self.prepare(texts)
    key = jax.random.fold_in(self._key, self._updates)
    examples = rows.tokens, rows.mask, np.asarray(labels)
    self._weights, self._moments = self._learn(self._weights, self._moments, examples, key)
    self._updates += 1

  def state(self) -> Mapping[str, np.ndarray]:
    """Weights, moments of Adam, and the number of updates."""
    leaves = jax.tree.leaves((self._weights, self._moments))
    stored = {f'{i}': np.asarray(leaf) for i, leaf in enumerate(leaves)}
    return {**stored, 'updates': np.array(self._updates)}

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Continue from a `state`."""
    before, structure = jax.tree.flatten((self._weights, self._moments))
    leaves = [jnp.asarray(state[f'{i}']) for i in range(len(before))]
    self._weights, self._moments = jax.tree.unflatten(structure, leaves)
    self._updates = int(state['updates'])


def learner(
  loss: Callable[..., Array], optimizer: optax.GradientTransformation, *, epochs: int, batch: int
) -> Callable[..., tuple[Any, Any]]:
  """Program that passes over a cache `epochs` times, in random orders.

  Args:
    loss: Sum of the losses of a batch over the sum of its weights, from parameters, the examples,
      and weights of 1, or 0 for examples that fill the batch up.
    optimizer: Its steps.
    epochs: Passes.
    batch: Examples of a step.

  Returns:
    A function from parameters, the optimizer's state, a tree of arrays with a row for each example,
    and a key, to new parameters and state.
  """

  def learn(weights: Any, moments: Any, examples: Any, key: Array) -> tuple[Any, Any]:
    count = len(jax.tree.leaves(examples)[0])
    steps = -(-count // batch)
    orders = jax.vmap(lambda k: jax.random.permutation(k, count))(jax.random.split(key, epochs))
    padded = jnp.pad(orders, ((0, 0), (0, steps * batch - count))).reshape(-1, batch)
    fits = jnp.tile(jnp.arange(steps * batch) < count, epochs).reshape(-1, batch)

    def step(carry: Any, numbered: Any) -> tuple[Any, None]:
      (weights, moments), (rows, fit) = carry, numbered
      gradient = jax.grad(loss)(weights, jax.tree.map(lambda x: x[rows], examples), fit)
      change, moments = optimizer.update(gradient, moments, weights)
      return (optax.apply_updates(weights, change), moments), None

    (weights, moments), _ = jax.lax.scan(step, (weights, moments), (padded, fits))
    return weights, moments

  return learn
