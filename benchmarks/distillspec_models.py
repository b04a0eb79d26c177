"""Columns of each test row of a small model: alone, as a drafter, and before a deferral."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks.distillspec_pairs import DistilledPair
from benchmarks.drafters import load
from cascades import decoding, deferral, divergences
from cascades.data.answer_sources import Unanswered
from cascades.data.corpus import Data
from cascades.inference import speculation
from cascades.inference.answers import DecodingOptions, Scorer
from cascades.inference.speculation import Speculation
from cascades.inference.trained_model import TrainedModel
from cascades.target_distributions import RULES
from cascades.teachers import Logits
from cascades.training import on_policy
from cascades.types import Batch, Generation, Params, Prompt

SPLIT = 'test'
GAMMA, TEMPERATURES = 5, (0, 1)

Columns = Mapping[str, np.ndarray]  # of each row, by name
Graphs = tuple[nnx.GraphDef, nnx.GraphDef]
EosIds = tuple[int, ...]
Right = Sequence[Sequence[str]]  # answers of each row


@functools.partial(jax.jit, static_argnames=('graph', 'length', 'eos_ids', 'temperature'))
def answered(
  graph: nnx.GraphDef,
  params: Params,
  prompt: Prompt,
  row_ids: Array,
  *,
  length: int,
  eos_ids: EosIds,
  temperature: float,
) -> Generation:
  """Answers of one model."""
  return decoding.generate(
    nnx.merge(graph, params), prompt, max_len=length, eos_id=eos_ids,
    sampler=DecodingOptions(temperature).sampler(), key=jax.random.key(0), row_ids=row_ids,
  )  # fmt: skip


@functools.partial(jax.jit, static_argnames=('graph', 'encodes'))
def states(
  graph: nnx.GraphDef, params: Params, prompt: Prompt, answer: Generation, *, encodes: bool
) -> Array:
  """Hidden states [B, T, D] of one model before each token of an answer."""
  rows, length = answer.tokens.shape
  start = Prompt(jnp.zeros((rows, 1), jnp.int32), jnp.ones(rows, jnp.int32))
  given = Unanswered(start, prompt) if encodes else Unanswered(prompt, None)
  hidden = nnx.merge(graph, params).hidden(on_policy.teacher_forced(given, answer, length))
  before = given.context.length[:, None] - 1 + jnp.arange(length)
  return jnp.take_along_axis(hidden, before[..., None], axis=1)


@functools.partial(jax.jit, static_argnames='graphs')
def agreement(
  graphs: Graphs, params: tuple[Params, Params], hidden: tuple[Array, Array], answer: Generation
) -> dict[str, Array]:
  """Share of each answer's tokens that a drafter would have accepted, expected and greedy."""
  small, large = (
    nnx.merge(graph, own).readout(states)
    for graph, own, states in zip(graphs, params, hidden, strict=True)
  )
  by_token = {
    'expected': 1 - divergences.total_variation(small, (Logits(large),), answer.tokens),
    'greedy': jnp.argmax(small, -1) == jnp.argmax(large, -1),
  }
  size = answer.mask.sum(1)
  return {name: (each * answer.mask).sum(1) / size for name, each in by_token.items()}


@functools.partial(jax.jit, static_argnames=('graphs', 'length', 'eos_ids', 'temperature'))
def drafted(
  graphs: Graphs,
  params: tuple[Params, Params],
  prompt: Prompt,
  row_ids: Array,
  *,
  length: int,
  eos_ids: EosIds,
  temperature: float,
) -> Speculation:
  """Lossless answers of both models."""
  models = [nnx.merge(graph, own) for graph, own in zip(graphs, params, strict=True)]
  pair = speculation.SpeculativePair(
    models[0], models[1], RULES['lossless'].target, options=DecodingOptions(temperature)
  )
  return speculation.generate(
    pair, prompt, max_len=length, eos_id=eos_ids, gamma=GAMMA, row_ids=row_ids
  )


class TestBatch(NamedTuple):
  """Test rows of one shape."""

  prompt: Prompt
  row_ids: np.ndarray
  right: Right
  forced: Batch  # the same rows with the task's answers


class LargeAnswer(NamedTuple):
  """The large model's answers to a batch, and its hidden states before each of their tokens."""

  generation: Generation
  states: Array


@dataclasses.dataclass(frozen=True)
class Pair:
  """A large model, its answers to the test rows, and what small models do beside it."""

  setting: DistilledPair
  large: TrainedModel
  batches: Sequence[TestBatch]
  answers: Sequence[Mapping[int, LargeAnswer]]  # of each batch, by temperature
  large_quality: Sequence[np.ndarray]
  drafted: Sequence[TestBatch]

  def columns(self, small: TrainedModel) -> dict[str, np.ndarray]:
    """Columns of each row.

    `alpha 1` is the expected acceptance of the drafts along a sample of the large model, `alpha 0`
    the share of first choices that agree along its greedy answer; `accepted`, `rejected`, `calls`
    and `tokens` are the counts of lossless decoding at a temperature, of fewer rows.
    """
    judge = Judge(self.setting, small)
    parts = [
      *(
        self._alone(judge, *each)
        for each in zip(self.batches, self.answers, self.large_quality, strict=True)
      ),
      *(self._drafting(small, batch) for batch in self.drafted),
    ]
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([p[name] for p in parts if name in p]) for name in names}

  def _alone(
    self,
    judge: Judge,
    batch: TestBatch,
    answers: Mapping[int, LargeAnswer],
    large_quality: np.ndarray,
  ) -> dict[str, np.ndarray]:
    """Columns of a batch of rows that the small model answers, and of its agreement."""
    small, large = judge.model, self.large
    answer = judge.answer(batch, 0)
    columns = {'score': deferral.average(np.asarray(answer.logprobs), np.asarray(answer.mask))}
    for temperature, quantity in zip(TEMPERATURES, ('greedy', 'expected'), strict=True):
      own = answers[temperature]
      hidden = judge.states(batch, own.generation), own.states
      shares = agreement(
        (small.graph, large.graph), (small.params, large.params), hidden, own.generation
      )
      columns[f'alpha {temperature}'] = np.asarray(shares[quantity])
    return {
      'small right': judge.quality(batch, answer),
      'large right': large_quality,
      **{name: column[: len(batch.right)] for name, column in columns.items()},
    }

  def _drafting(self, small: TrainedModel, batch: TestBatch) -> dict[str, np.ndarray]:
    """Columns of a batch of rows that both models answer."""
    columns: dict[str, Array] = {}
    for temperature in TEMPERATURES:
      run = drafted(
        (small.graph, self.large.graph), (small.params, self.large.params),
        batch.prompt, batch.row_ids, length=self.setting.answer,
        eos_ids=tuple(self.large.vocabulary.eos_ids), temperature=temperature,
      )  # fmt: skip
      columns |= {
        f'accepted {temperature}': run.counts.accepted,
        f'rejected {temperature}': run.counts.rejected,
        f'calls {temperature}': run.counts.large_calls,
        f'tokens {temperature}': run.answer.mask.sum(1),
      }
    return {name: np.asarray(column)[: len(batch.right)] for name, column in columns.items()}


class Judge:
  """A model, its answers, and their quality."""

  def __init__(self, setting: DistilledPair, model: TrainedModel) -> None:
    self.setting, self.model = setting, model
    self._scorer = Scorer(model)

  def answer(self, batch: TestBatch, temperature: int) -> Generation:
    return answered(
      self.model.graph, self.model.params, batch.prompt, batch.row_ids,
      length=self.setting.answer, eos_ids=tuple(self.model.vocabulary.eos_ids),
      temperature=temperature,
    )  # fmt: skip

  def states(self, batch: TestBatch, answer: Generation) -> Array:
    encodes = self.model.architecture == 'encoder_decoder'
    return states(self.model.graph, self.model.params, batch.prompt, answer, encodes=encodes)

  def quality(self, batch: TestBatch, answer: Generation) -> np.ndarray:
    """Statistics [n, K] of the answers, or of the likelihood of the task's; no repeated rows."""
    metric, size = self.setting.metric, len(batch.right)
    if metric is None:
      weights = np.asarray(batch.forced.weights)
      logprobs = np.where(weights > 0, self._scorer.score(batch.forced).logprobs, 0)
      return np.stack([logprobs.sum(1), weights.sum(1)], 1)[:size]
    return judged(answer, self.model, batch.right, metric)


def judged(
  answer: Generation, model: TrainedModel, right: Right, metric: metrics.Metric
) -> np.ndarray:
  """Statistics [n, K] of each answer; repeated rows at the end are left out."""
  tokens, mask = np.asarray(answer.tokens), np.asarray(answer.mask)
  texts = [model.vocabulary.decode(tokens[row][mask[row]]) for row in range(len(right))]
  pairs = zip(right, texts, strict=True)
  return np.array([metric.statistics(given, text) for given, text in pairs])


def read_rows(
  setting: DistilledPair, folder: pathlib.Path, model: TrainedModel, count: int
) -> list[TestBatch]:
  """Rows of the test split at equal distances, in batches of one shape."""
  lengths = {'inputs': setting.width, 'targets': setting.answer}
  size = min(count, setting.test_batch)
  data = Data(task=setting.task(folder), lengths=lengths, batch_size=size)
  corpus = data.corpus(model.vocabulary, model.architecture)
  split = corpus.open(SPLIT)
  (records,) = split.per_task
  numbers = np.linspace(0, len(records) - 1, count).astype(int).tolist()
  batches = []
  for bucket in corpus.buckets(records, numbers, batch_size=size):
    tokens, length = corpus.prompts(records, bucket, batch_size=size)
    (forced,) = corpus.ordered(split, bucket.indices, batch_size=size)
    batches.append(
      TestBatch(
        Prompt(jnp.pad(tokens, ((0, 0), (0, setting.width - tokens.shape[1]))), length),
        np.resize(bucket.indices, len(length)).astype(np.int32),
        [record.row.answers for record in records.read(bucket.indices)],
        forced,
      )
    )
  return batches


def open_pair(setting: DistilledPair, folder: pathlib.Path) -> Pair:
  """The large model of a folder, with its answers to the test rows."""
  large = load(folder / 'large')
  judge, batches = Judge(setting, large), read_rows(setting, folder, large, setting.words)
  answers = [
    {
      temperature: LargeAnswer(answer, judge.states(batch, answer))
      for temperature in TEMPERATURES
      for answer in [judge.answer(batch, temperature)]
    }
    for batch in batches
  ]
  quality = [
    judge.quality(batch, own[0].generation) for batch, own in zip(batches, answers, strict=True)
  ]
  few = read_rows(setting, folder, large, setting.drafted)
  return Pair(setting, large, batches, answers, quality, few)
