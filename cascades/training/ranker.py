"""Training of rankers: from an encoder's weights or none, by a loss over a query's candidates.

Axes: B queries of a batch, C candidates, the relevant one first.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax import Array
from jaxtyping import Float

from cascades import ranking
from cascades.checkpoints import finished, store
from cascades.models import bert, rankers
from cascades.models.rankers import RankerConfig
from cascades.runtime import files, progress, ranges
from cascades.training import optimizers
from cascades.training.ranking_data import RankingData, RankingExamples
from cascades.training.setup import Schedule
from cascades.types import Params, Vocabulary

log = logging.getLogger(__name__)

SETTINGS = 'training.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingStep:
  """A training step.

  Attributes:
    learning_rate: Maps the number of earlier updates to the rate.
    optimizer: The optimizer.
    loss: Loss of the candidates' scores.
    batch_size: Queries of a batch.
    negatives: Documents of a query besides its relevant one.
    frozen: Leave the encoder as it is, and train what stands behind it.
    seed: Seed of the examples, and of weights without an origin.
  """

  learning_rate: optax.Schedule
  optimizer: optimizers.Optimizer = optimizers.adamw
  loss: ranking.RankingLoss = ranking.contrastive
  batch_size: int = 16
  negatives: int = 4
  frozen: bool = False
  seed: int = 0

  def __post_init__(self) -> None:
    sizes = {'BATCH_SIZE': self.batch_size, 'NEGATIVES': self.negatives}
    ranges.check(sizes, least=1, integer=True)
    ranges.check({'SEED': self.seed}, least=0, integer=True)


BatchScores: TypeAlias = Callable[[Any, Mapping[str, Any], int], Float[Array, 'B C']]


class RankerState(NamedTuple):
  """State of a run: all weights, the optimizer's state of the trained ones, and the step."""

  params: Params
  optimizer: Any
  step: Array


def trained(params: Params, *, frozen: bool) -> Params:
  """Weights that are trained: all, or those outside the encoder."""
  chosen = {name: leaf for name, leaf in params.items() if not (frozen and name == 'encoder')}
  if not chosen:
    raise ValueError(
      'FREEZE=True leaves nothing to train: the scorer has no weights. Give a WIDTH, which adds a '
      'linear map, or train the encoder.'
    )
  return chosen


def init(config: RankerConfig, seed: int, encoder: Params | None = None) -> Params:
  """Random weights, with those of an encoder in their place."""
  build = lambda: nnx.to_pure_dict(nnx.state(config.build(jax.random.key(seed))))
  params = jax.jit(build)()
  return params if encoder is None else {**params, 'encoder': encoder}


def tokenize(
  examples: RankingExamples, vocabulary: Vocabulary, config: RankerConfig
) -> dict[str, Any]:
  """Arrays of a batch: of queries and documents, or of their pairs for a cross-encoder."""
  documents = [text for own in examples.documents for text in own]
  count = len(examples.documents[0])
  if config.scorer == 'cross':
    repeated = [text for text in examples.queries for _ in range(count)]
    rows, firsts = rankers.pair_rows(vocabulary, repeated, documents, config)
    pairs = rankers.pad_pairs(rows, firsts, vocabulary.pad_id, config)
    arrays: dict[str, Any] = {'pairs': [leaf[: len(rows)] for leaf in pairs]}
  else:
    arrays = {}
    for name, texts, most in (
      ('queries', examples.queries, config.query_tokens),
      ('documents', documents, config.document_tokens),
    ):
      rows = bert.token_rows(vocabulary, texts, most)
      padded = bert.pad_rows(rows, vocabulary.pad_id, most)
      arrays[name] = [leaf[: len(rows)] for leaf in padded]
  if examples.teacher is not None:
    arrays['teacher'] = examples.teacher
  return arrays


def batch_scores(module: Any, batch: Mapping[str, Any], count: int) -> Float[Array, 'B C']:
  """Scores of each query's `count` candidates."""
  if 'pairs' in batch:
    return module.score_pairs(*batch['pairs']).reshape(-1, count)
  query = module.encode_queries(*batch['queries'])
  document = module.encode_documents(*batch['documents'])
  grouped = rankers.Encoded(*(leaf.reshape(-1, count, *leaf.shape[1:]) for leaf in document))
  return module.score(rankers.Encoded(query.vectors[:, None], query.mask[:, None]), grouped)


def compiled_step(
  graph: nnx.GraphDef, step: RankingStep, *, scores: BatchScores = batch_scores
) -> Callable[[RankerState, Mapping[str, Any]], tuple[RankerState, Array]]:
  """Function of a state, which it donates, and a batch that gives the next state and the loss."""
  transform = step.optimizer(step.learning_rate)

  def update(state: RankerState, batch: Mapping[str, Any]) -> tuple[RankerState, Array]:
    def loss(chosen: Params) -> Array:
      module = nnx.merge(graph, {**state.params, **chosen})
      own = scores(module, batch, 1 + step.negatives)
      return step.loss(own, batch.get('teacher')).mean()

    chosen = trained(state.params, frozen=step.frozen)
    value, gradient = jax.value_and_grad(loss)(chosen)
    updates, optimizer = transform.update(gradient, state.optimizer, chosen)
    params = {**state.params, **optax.apply_updates(chosen, updates)}
    return RankerState(params, optimizer, state.step + 1), value

  return jax.jit(update, donate_argnums=0)


def start(params: Params, step: RankingStep) -> RankerState:
  """State before the first step."""
  transform = step.optimizer(step.learning_rate)
  optimizer = transform.init(trained(params, frozen=step.frozen))
  return RankerState(params, optimizer, jnp.zeros((), jnp.int32))


def run(
  directory: epath.PathLike, config: RankerConfig, vocabulary: Vocabulary, data: RankingData,
  step: RankingStep, schedule: Schedule, *, encoder: Callable[[], Params | None],
  description: Mapping[str, Any], settings: Mapping[str, Any],
  asked_to_stop: Callable[[int], bool],
) -> float:  # fmt: skip
  """Trains a ranker in a run directory, or resumes from its last checkpoint.

  Args:
    directory: The run directory.
    config: Configuration of the ranker.
    vocabulary: Tokenizer of its encoder.
    data: The examples.
    step: Settings of a step.
    schedule: Length of the run and its intervals.
    encoder: Gives the encoder's first weights; None for random ones.
    description: Description of the ranker, for model.json.
    settings: What else a resumed run must have in common with this one.
    asked_to_stop: Tells after a step to save and stop.

  Returns:
    Mean loss since the last line of the log.

  Raises:
    CheckpointError: The directory belongs to another run.
    FloatingPointError: A loss is not finite.
  """
  directory = files.absolute(directory)
  store.write_description(directory, description)
  store.write_description(directory, settings, SETTINGS)
  graph, _ = jax.eval_shape(lambda: nnx.split(config.build(jax.random.key(0))))
  latest = finished.recover(directory)
  meter, window, mean = progress.Meter(schedule.train_steps), [], float('nan')
  with store.Checkpoints(directory, keep=schedule.keep) as checkpoints:
    first = None if latest else encoder()
    state = start(init(config, step.seed, first), step)
    if latest:
      state = RankerState(**checkpoints.restore(latest, state._asdict()))
      log.info('%s: resumed after step %d', directory, latest)
    update = compiled_step(graph, step)
    for number in range((latest or 0) + 1, schedule.train_steps + 1):
      examples = data.batch(step.seed, number, step.batch_size, step.negatives)
      state, loss = update(state, tokenize(examples, vocabulary, config))
      window.append(loss)
      last = number == schedule.train_steps
      stopping = not last and asked_to_stop(number)
      due = lambda every, number=number: every > 0 and number % every == 0
      if last or stopping or due(schedule.log_every) or number == (latest or 0) + 1:
        mean = float(np.mean(window))
        window = []
        if not np.isfinite(mean):
          raise FloatingPointError(
            f'the loss of step {number} is {mean}: lower LEARNING_RATE; the last checkpoint is '
            f'that of step {checkpoints.latest() or 0}.'
          )
        rates = meter.update(number, 0)
        line = progress.format_line(number, schedule.train_steps, {'loss': mean}, rates)
        log.info('%s', line)
      if last or stopping or due(schedule.save_every):
        checkpoints.save(number, state._asdict())
      if stopping:
        break
  return mean
