"""Columns of each test word of a small model: alone, as a drafter, and before a deferral."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks.drafters import LENGTHS, load
from cascades import decoding, deferral, divergences, metrics
from cascades.data.corpus import Data
from cascades.inference import speculation
from cascades.inference.answers import DecodingOptions
from cascades.inference.speculation import Speculation
from cascades.inference.trained_model import TrainedModel
from cascades.target_distributions import RULES
from cascades.tasks import catalog
from cascades.teachers import Logits
from cascades.types import Batch, Generation, LanguageModel, Params, Prompt

SPLIT, BATCH = 'test', 512
WORDS, DRAFTED = 2048, 512  # answered and read, and drafted in lossless decoding
WIDTH = 32  # of all prompts, so that one program serves them all
GAMMA, TEMPERATURES, METRIC = 5, (0, 1), metrics.word_accuracy

Columns = Mapping[str, np.ndarray]  # of each word, by name
Graphs = tuple[nnx.GraphDef, nnx.GraphDef]
EosIds = tuple[int, ...]
Answers = Sequence[Sequence[str]]  # right ones of each word


@functools.partial(jax.jit, static_argnames=('graph', 'eos_ids', 'temperature'))
def answered(
  graph: nnx.GraphDef,
  params: Params,
  prompt: Prompt,
  row_ids: Array,
  *,
  eos_ids: EosIds,
  temperature: float,
) -> Generation:
  """Answers of one model."""
  return decoding.generate(
    nnx.merge(graph, params), prompt, max_len=LENGTHS['targets'], eos_id=eos_ids,
    sampler=DecodingOptions(temperature).sampler(), key=jax.random.key(0), row_ids=row_ids,
  )  # fmt: skip


def forced_logits(model: LanguageModel[Any], prompt: Prompt, answer: Generation) -> Array:
  """Logits of an encoder-decoder model before each token of an answer."""
  before = jnp.pad(answer.tokens[:, :-1], ((0, 0), (1, 0)))
  batch = Batch(before, answer.tokens, answer.mask.astype(jnp.float32), prompt.tokens)
  return model.readout(model.hidden(batch))


@functools.partial(jax.jit, static_argnames='graphs')
def agreement(
  graphs: Graphs, params: tuple[Params, Params], prompt: Prompt, answer: Generation
) -> dict[str, Array]:
  """Share of each answer's tokens that a drafter would have accepted, expected and greedy."""
  small, large = (
    forced_logits(nnx.merge(graph, own), prompt, answer)
    for graph, own in zip(graphs, params, strict=True)
  )
  by_token = {
    'expected': 1 - divergences.total_variation(small, (Logits(large),), answer.tokens),
    'greedy': jnp.argmax(small, -1) == jnp.argmax(large, -1),
  }
  size = answer.mask.sum(1)
  return {name: (each * answer.mask).sum(1) / size for name, each in by_token.items()}


@functools.partial(jax.jit, static_argnames=('graphs', 'eos_ids', 'temperature'))
def drafted(
  graphs: Graphs,
  params: tuple[Params, Params],
  prompt: Prompt,
  row_ids: Array,
  *,
  eos_ids: EosIds,
  temperature: float,
) -> Speculation:
  """Lossless answers of both models."""
  models = [nnx.merge(graph, own) for graph, own in zip(graphs, params, strict=True)]
  pair = speculation.SpeculativePair(
    models[0], models[1], RULES['lossless'].target, options=DecodingOptions(temperature)
  )
  return speculation.generate(
    pair, prompt, max_len=LENGTHS['targets'], eos_id=eos_ids, gamma=GAMMA, row_ids=row_ids
  )


class TestWords(NamedTuple):
  """Test words in batches of one shape."""

  prompts: Sequence[Prompt]
  row_ids: Sequence[np.ndarray]
  right: Sequence[Answers]


@dataclasses.dataclass(frozen=True)
class Pair:
  """A large model, its answers to the test words, and what small models do beside it."""

  large: TrainedModel
  words: TestWords
  answers: Mapping[int, Sequence[Generation]]  # by temperature
  drafted: TestWords

  def columns(self, small: TrainedModel) -> dict[str, np.ndarray]:
    """Columns of each word.

    `alpha 1` is the expected acceptance of the drafts along a sample of the large model, `alpha 0`
    the share of first choices that agree along its greedy answer; `accepted`, `rejected`, `calls`
    and `tokens` are the counts of lossless decoding at a temperature, of fewer words.
    """
    batches = [
      *(
        self._alone(small, *batch)
        for batch in zip(*self.words, *self.answers.values(), strict=True)
      ),
      *(self._drafting(small, *batch) for batch in zip(*self.drafted, strict=True)),
    ]
    names = dict.fromkeys(name for batch in batches for name in batch)
    return {name: np.concatenate([b[name] for b in batches if name in b]) for name in names}

  def _alone(
    self, small: TrainedModel, prompt: Prompt, row_ids: np.ndarray, right: Answers,
    greedy: Generation, sample: Generation,
  ) -> dict[str, np.ndarray]:  # fmt: skip
    """Columns of a batch of words that the small model answers, and of its agreement."""
    eos_ids = tuple(self.large.vocabulary.eos_ids)
    pair = (small.graph, self.large.graph), (small.params, self.large.params)
    answer = answered(small.graph, small.params, prompt, row_ids, eos_ids=eos_ids, temperature=0)
    columns = {
      'score': deferral.average(np.asarray(answer.logprobs), np.asarray(answer.mask)),
      'alpha 0': agreement(*pair, prompt, greedy)['greedy'],
      'alpha 1': agreement(*pair, prompt, sample)['expected'],
    }
    return {
      'small right': judged(answer, small, right),
      'large right': judged(greedy, small, right),
      **{name: np.asarray(column)[: len(right)] for name, column in columns.items()},
    }

  def _drafting(
    self, small: TrainedModel, prompt: Prompt, row_ids: np.ndarray, right: Answers
  ) -> dict[str, np.ndarray]:
    """Columns of a batch of words that both models answer."""
    columns: dict[str, Array] = {}
    for temperature in TEMPERATURES:
      run = drafted(
        (small.graph, self.large.graph), (small.params, self.large.params), prompt, row_ids,
        eos_ids=tuple(self.large.vocabulary.eos_ids), temperature=temperature,
      )  # fmt: skip
      columns |= {
        f'accepted {temperature}': run.counts.accepted,
        f'rejected {temperature}': run.counts.rejected,
        f'calls {temperature}': run.counts.large_calls,
        f'tokens {temperature}': run.answer.mask.sum(1),
      }
    return {name: np.asarray(column)[: len(right)] for name, column in columns.items()}


def judged(answer: Generation, model: TrainedModel, right: Answers) -> np.ndarray:
  """1 for each right answer, 0 for others; repeated rows at the end are left out."""
  tokens, mask = np.asarray(answer.tokens), np.asarray(answer.mask)
  texts = [model.vocabulary.decode(tokens[row][mask[row]]) for row in range(len(right))]
  pairs = zip(right, texts, strict=True)
  return np.array([METRIC.statistics(given, text)[0] for given, text in pairs])


def read_words(model: TrainedModel, count: int) -> TestWords:
  """Words of the test split at equal distances."""
  data = Data(task=catalog.get('cmudict_g2p'), lengths=LENGTHS, batch_size=BATCH)
  corpus = data.corpus(model.vocabulary, model.architecture)
  (records,) = corpus.open(SPLIT).per_task
  numbers = np.linspace(0, len(records) - 1, count).astype(int).tolist()
  buckets = list(corpus.buckets(records, numbers, batch_size=BATCH))
  prompts = [corpus.prompts(records, bucket, batch_size=BATCH) for bucket in buckets]
  padded = [
    Prompt(jnp.pad(tokens, ((0, 0), (0, WIDTH - tokens.shape[1]))), length)
    for tokens, length in prompts
  ]
  row_ids = [
    np.resize(bucket.indices, len(prompt.length)).astype(np.int32)
    for bucket, prompt in zip(buckets, prompts, strict=True)
  ]
  right = [[r.row.answers for r in records.read(bucket.indices)] for bucket in buckets]
  return TestWords(padded, row_ids, right)


def open_pair(path: pathlib.Path, *, count: int = WORDS, few: int = DRAFTED) -> Pair:
  """The large model of a run directory, with its answers to the test words."""
  large = load(path)
  words = read_words(large, count)
  answers = {
    temperature: [
      answered(
        large.graph, large.params, prompt, row_ids,
        eos_ids=tuple(large.vocabulary.eos_ids), temperature=temperature,
      )
      for prompt, row_ids in zip(words.prompts, words.row_ids, strict=True)
    ]
    for temperature in TEMPERATURES
  }  # fmt: skip
  return Pair(large, words, answers, read_words(large, few))
