"""A small model of an online cascade: a language model that ranks the texts of the classes.

The probability of class y is that of its text behind the prompt, among the texts of all classes:

    p_y = P(text_y | prompt) / sum_z P(text_z | prompt)

as `infer` ranks options, whose best one it is; the prompt is read once, and the text of each class
behind it. A cache is learned by steps on the log-likelihood of the expert's class.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from cascades import decoding
from cascades.data import converters
from cascades.inference import trained_model
from cascades.inference.fine_tuned import learner
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.interop import companions
from cascades.runtime import files, partitioning, ranges
from cascades.tasks import tokenize
from cascades.tasks.chats import PromptFormat
from cascades.tasks.task import Record, Row, Task, both
from cascades.types import Batch, LanguageModel, Params, Prompt


@dataclasses.dataclass(frozen=True)
class GenerativeConfig:
  """Rank classification by a checkpoint of `train` or `convert`.

  Attributes:
    path: Run directory, or a checkpoint in one.
    options: Texts of the classes, as the model was trained to write them.
    prompt: Text of a query, with {inputs}, as in the model's training.
    prompts: Format of the prompt, as PROMPTS of `infer`: `chats.chat` is the template of a chat
      model, and `chats.continuation` continues the text; None is that of training here.
    tokens: Longest prompt in tokens, special ones included; the texts of longer ones are cut.
    which: 'last', 'best', or the number of a step.
    epochs: Passes over each cache; 0 leaves the weights as they are.
    batch: Queries of a step, and those that are ranked together.
    rate: Learning rate of Adam.
  """

  path: str
  options: Sequence[str]
  prompt: str = '{inputs}'
  prompts: PromptFormat | None = None
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


class RankedQueries(NamedTuple):
  """Prompts, and the text of each class behind them.

  Attributes:
    prompts: Prompts padded to one width.
    answers: Tokens of the texts, padded to one width.
    lengths: Number of tokens of each.
  """

  prompts: Prompt
  answers: Int[np.ndarray, 'n Y L']
  lengths: Int[np.ndarray, 'n Y']


class Generative:
  """The model; a cache is learned in one compiled program."""

  def __init__(self, model: TrainedModel, config: GenerativeConfig, seed: int) -> None:
    """Prepares the programs.

    Args:
      model: A loaded model.
      config: Texts, rates and sizes.
      seed: Seed of the order of the queries in each pass.

    Raises:
      ValueError: The prompt of an empty query is longer than `tokens`.
    """
    self._config, self._devices, self._model = config, _devices(), model
    vocabulary = model.vocabulary
    task = Task('prompt', (), read=lambda _: (), fingerprint=lambda _: '')
    if config.prompts:
      folder = files.absolute(model.described['checkpoint']) / companions.FOLDER
      task = config.prompts(task, folder, model.architecture)
    special = task.special_tokens
    self._tokenize, self._cut_at_end = task.tokenize or tokenize.row_by_row, special.prompt_end
    ids = lambda token, used: np.array([token] if used and token is not None else [], np.int32)
    (empty,) = self._records([''])
    texts = [*empty.options, *vocabulary.encode_all(list(config.options))]
    self._converter = converters.FeatureConverter(
      converters.CONVERTERS[model.architecture],
      {'inputs': config.tokens, 'targets': max(map(len, texts)) + special.answer_end},
      start=ids(vocabulary.bos_id, special.start),
      inputs_end=ids(vocabulary.eos_id, special.prompt_end),
      targets_end=ids(vocabulary.eos_id, special.answer_end),
    )
    if len(empty.inputs) >= config.tokens:
      raise ValueError(
        f'tokens={config.tokens}, and the prompt of an empty query has {len(empty.inputs)}: raise '
        '`tokens`, or shorten `prompt`.'
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

    @jax.jit
    def ranked(params: Params, queries: RankedQueries) -> Float[Array, 'B Y']:
      return option_logprobs(nnx.merge(model.graph, params), queries)

    self._learn = jax.jit(learner(loss, optimizer, epochs=config.epochs, batch=config.batch))
    self._ranked = ranked

  def _records(self, texts: Sequence[str]) -> list[Record]:
    """Tokens of the prompts, and of the texts of the classes behind each."""
    options, vocabularies = tuple(self._config.options), both(self._model.vocabulary)
    rows = [Row('', self._config.prompt.replace('{inputs}', text), (), options) for text in texts]
    return list(self._tokenize(rows, vocabularies, 0))

  def _fitting(self, texts: Sequence[str]) -> list[Record]:
    """The same; where a prompt is continued, texts are cut until it fits."""
    records = self._records(texts)
    most = len(records) if self._cut_at_end else 0
    for number, text in enumerate(texts[most:], most):
      while len(records[number].inputs) > self._config.tokens:
        text = text[: len(text) * self._config.tokens // len(records[number].inputs)]
        (records[number],) = self._records([text])
    return records

  def prepare(self, texts: Sequence[str]) -> RankedQueries:
    """Prompts of the texts, and tokens of the classes behind each."""
    examples = [
      [self._converter.example(record.inputs, option) for option in record.options]
      for record in self._fitting(texts)
    ]
    prompts = converters.pad([own[0].prompt for own in examples], self._converter.prompt_width)
    width = self._converter.lengths['targets']
    answers = converters.pad([example.targets for own in examples for example in own], width)
    shape = len(examples), len(self._config.options)
    tokens, lengths = np.asarray(answers.tokens), np.asarray(answers.length)
    return RankedQueries(prompts, tokens.reshape(*shape, width), lengths.reshape(shape))

  def predict(
    self, prepared: RankedQueries, rows: Int[np.ndarray, 'n']
  ) -> Float[np.ndarray, 'n Y']:
    """Probabilities of the texts of the classes, in batches of one size."""
    size, totals = self._config.batch, np.zeros((len(rows), len(self._config.options)))
    for begin in range(0, len(rows), size):
      count = min(size, len(rows) - begin)
      batch = _rows(prepared, np.resize(rows[begin : begin + count], size))
      with self._devices.use():
        logprobs = self._ranked(self._model.params, partitioning.place_whole(batch))
        totals[begin : begin + count] = partitioning.fetch(logprobs)[:count]
    ones = np.exp(totals - totals.max(1, keepdims=True))
    return ones / ones.sum(1, keepdims=True)

  def partial_fit(self, texts: Sequence[str], labels: Sequence[int]) -> None:
    """Learn to write the texts of the classes, `epochs` times in random orders."""
    if not self._config.epochs:
      return
    examples = [
      [self._converter.example(record.inputs, record.options[label])]
      for record, label in zip(self._fitting(texts), labels, strict=True)
    ]
    width, encoder_width = self._converter.width, self._converter.encoder_width
    batch = converters.assemble(examples, width=width, encoder_width=encoder_width)
    key = jax.random.fold_in(self._key, self._updates)
    with self._devices.use():
      params, self._moments = self._learn(
        self._model.params, self._moments, converters.without_segments(batch), key
      )
    self._model = self._model._replace(params=params)
    self._updates += 1

  def state(self) -> Mapping[str, np.ndarray]:
    """The checkpoint's identity; weights, moments and the number of updates if it learns."""
    identity = {'identity': np.array(self._identity)}
    if not self._config.epochs:
      return identity
    leaves = jax.tree.leaves((self._model.params, self._moments))
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
    before, structure = jax.tree.flatten((self._model.params, self._moments))
    leaves = [jax.device_put(state[f'{i}'], leaf.sharding) for i, leaf in enumerate(before)]
    params, self._moments = jax.tree.unflatten(structure, leaves)
    self._model = self._model._replace(params=params)
    self._updates = int(state['updates'])


def _devices() -> partitioning.Devices:
  """The first device: a small model needs no more."""
  return partitioning.Devices(mesh=lambda: partitioning.make_mesh(devices=jax.local_devices()[:1]))


def _rows(queries: RankedQueries, rows: Int[np.ndarray, 'n']) -> RankedQueries:
  return jax.tree.map(lambda column: column[rows], queries)


def option_logprobs(model: LanguageModel[Any], queries: RankedQueries) -> Float[Array, 'B Y']:
  """Log-probabilities of given answers behind their prompts, each of which is read once.

  A cache is a value: every answer extends that of the prompt alone.
  """
  width = queries.answers.shape[-1]
  logits, cache = model.prefill(queries.prompts, width)
  first = jax.nn.log_softmax(logits)[:, None]

  def total(answer: tuple[Array, Array]) -> Float[Array, 'B']:
    tokens, length = answer
    read, _ = model.extend(tokens[:, :-1], cache)
    logprobs = jnp.concatenate([first, jax.nn.log_softmax(read)], 1)
    chosen = jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(jnp.arange(width) < length[:, None], chosen, 0), 1)

  by_class = jnp.moveaxis(jnp.asarray(queries.answers), 1, 0), jnp.asarray(queries.lengths).T
  return jax.lax.map(total, by_class).T
