"""A small model of an online cascade: a language model that ranks the texts of the classes.

The probability of class y is that of its text behind the prompt, among the texts of all classes:

    p_y = P(text_y | prompt) / sum_z P(text_z | prompt)

as `infer` ranks options, whose best one it is. A cache is learned by steps on the log-likelihood
of the expert's class.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from cascades import decoding
from cascades.data import converters
from cascades.inference import trained_model
from cascades.inference.answers import Scorer
from cascades.inference.fine_tuned import learner
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.runtime import partitioning, ranges
from cascades.tasks import tokenize
from cascades.tasks.task import Row, both
from cascades.types import Batch


@dataclasses.dataclass(frozen=True)
class GenerativeConfig:
  """Rank classification by a checkpoint of `train` or `convert`.

  Attributes:
    path: Run directory, or a checkpoint in one.
    options: Texts of the classes, as the model was trained to write them.
    prompt: Text of a query, with {inputs}, as in the model's training.
    tokens: Longest prompt in tokens, end of sequence included; longer ones are cut.
    which: 'last', 'best', or the number of a step.
    epochs: Passes over each cache; 0 leaves the weights as they are.
    batch: Queries of a step, and those that are ranked together.
    rate: Learning rate of Adam.
  """

  path: str
  options: Sequence[str]
  prompt: str = '{inputs}'
  tokens: int = 128
  which: Any = 'last'
  epochs: int = 1
  batch: int = 8
  rate: float = 1e-4

  def __post_init__(self) -> None:
    ranges.check({'tokens': self.tokens, 'batch': self.batch}, least=1, integer=True)
    ranges.check({'epochs': self.epochs}, least=0, integer=True)
    ranges.check({'rate': self.rate}, above=0)
    if '{inputs}' not in self.prompt:
      raise ValueError(f'prompt={self.prompt!r:.200} has no {{inputs}}, where the query stands.')

  def build(self, classes: int, seed: int) -> Generative:
    """The model of the checkpoint.

    Raises:
      ValueError: There is no such checkpoint, or there are not as many options as classes.
    """
    if len(self.options) != classes:
      raise ValueError(
        f'options={list(self.options)!r:.200} are {len(self.options)} texts of {classes} classes: '
        'give one for each of OPTIONS, in its order.'
      )
    devices = _devices()
    with devices.use():
      model = trained_model.load(Checkpoint(self.path, self.which), rules=devices.rules)
    return Generative(model, self, seed)


class Generative:
  """The model; a cache is learned in one compiled program."""

  def __init__(self, model: TrainedModel, config: GenerativeConfig, seed: int) -> None:
    """Prepares the programs.

    Args:
      model: A loaded model.
      config: Texts, rates and sizes.
      seed: Seed of the order of the queries in each pass.
    """
    self._config, self._devices, self._scorer = config, _devices(), Scorer(model)
    vocabulary = model.vocabulary
    longest = max(len(vocabulary.encode(option)) for option in config.options)
    end = np.array([vocabulary.eos_id], np.int32)
    self._converter = converters.FeatureConverter(
      converters.CONVERTERS[model.architecture],
      {'inputs': config.tokens, 'targets': longest + 1},
      start=np.array([] if vocabulary.bos_id is None else [vocabulary.bos_id], np.int32),
      inputs_end=end,
      targets_end=end,
    )
    optimizer = optax.adam(config.rate)
    self._moments: Any = optimizer.init(model.params) if config.epochs else ()
    self._updates, self._key = 0, jax.random.key(seed)
    names = ('model', 'vocabulary', 'step', 'checkpoint_identity')
    identity = repr([model.described[name] for name in names])
    self._identity = hashlib.sha256(identity.encode()).hexdigest()

    def loss(params: Any, batch: Batch, fits: Array) -> Float[Array, '']:
      weights = batch.weights * fits[:, None]
      scores = decoding.score(nnx.merge(model.graph, params), batch._replace(weights=weights))
      return -jnp.sum(scores.logprobs) / jnp.sum(weights)

    self._learn = jax.jit(learner(loss, optimizer, epochs=config.epochs, batch=config.batch))

  def prepare(self, texts: Sequence[str]) -> Batch:
    """Prompts with the text of each class, those of a query one after another."""
    options, vocabulary = tuple(self._config.options), self._scorer.model.vocabulary
    rows = [Row('', self._config.prompt.replace('{inputs}', text), (), options) for text in texts]
    examples = [
      [self._converter.example(record.inputs, option)]
      for record in tokenize.row_by_row(rows, both(vocabulary), 0)
      for option in record.options
    ]
    width, encoder_width = self._converter.width, self._converter.encoder_width
    return converters.without_segments(
      converters.assemble(examples, width=width, encoder_width=encoder_width)
    )

  def predict(self, prepared: Batch, rows: Int[np.ndarray, 'n']) -> Float[np.ndarray, 'n Y']:
    """Probabilities of the texts of the classes, in batches of one size."""
    size, classes = self._config.batch, len(self._config.options)
    totals = np.zeros((len(rows), classes))
    for begin in range(0, len(rows), size):
      own = rows[begin : begin + size]
      candidates = (np.resize(own, size)[:, None] * classes + np.arange(classes)).reshape(-1)
      with self._devices.use():
        scores = self._scorer.score(_rows(prepared, candidates))
      summed = np.asarray(scores.logprobs, float).sum(1).reshape(size, classes)
      totals[begin : begin + size] = summed[: len(own)]
    ones = np.exp(totals - totals.max(1, keepdims=True))
    return ones / ones.sum(1, keepdims=True)

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Learn to write the texts of the classes, `epochs` times in random orders."""
    if not self._config.epochs:
      return
    right = np.arange(len(texts)) * len(self._config.options) + np.asarray(labels)
    examples = _rows(self.prepare(texts), right)
    key = jax.random.fold_in(self._key, self._updates)
    model = self._scorer.model
    with self._devices.use():
      params, self._moments = self._learn(model.params, self._moments, examples, key)
    self._scorer.model = model._replace(params=params)
    self._updates += 1

  def state(self) -> Mapping[str, np.ndarray]:
    """The checkpoint's identity; weights, moments and the number of updates if it learns."""
    identity = {'identity': np.array(self._identity)}
    if not self._config.epochs:
      return identity
    leaves = jax.tree.leaves((self._scorer.model.params, self._moments))
    stored = {f'{i}': np.asarray(leaf) for i, leaf in enumerate(leaves)}
    return {**identity, **stored, 'updates': np.array(self._updates)}

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Continue from a `state`.

    Raises:
      ValueError: It is that of another checkpoint.
    """
    if str(state['identity']) != self._identity:
      raise ValueError(
        f'{self._config.path} holds another checkpoint than when this stream began: restore it, '
        'name its step with `which`, or answer the stream anew with OVERWRITE=True.'
      )
    if not self._config.epochs:
      return
    model = self._scorer.model
    before, structure = jax.tree.flatten((model.params, self._moments))
    leaves = [jax.device_put(state[f'{i}'], leaf.sharding) for i, leaf in enumerate(before)]
    params, self._moments = jax.tree.unflatten(structure, leaves)
    self._scorer.model = model._replace(params=params)
    self._updates = int(state['updates'])


def _devices() -> partitioning.Devices:
  """The first device: a small model needs no more."""
  return partitioning.Devices(mesh=lambda: partitioning.make_mesh(devices=jax.local_devices()[:1]))


def _rows(batch: Batch, rows: Int[np.ndarray, 'n']) -> Batch:
  return jax.tree.map(lambda column: np.asarray(column)[rows], batch)
