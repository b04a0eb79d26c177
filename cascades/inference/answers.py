"""Answers of a trained model: decoded or scored batches, and rows of tables made of them.

`Generator` and `Scorer` read batches of tokens and know neither tasks nor tables: a server or a
stream calls them directly. `predictor` and `scorer` turn their answers into rows of a table.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from cascades import decoding, metrics
from cascades.data.converters import Tokens
from cascades.data.corpus import Corpus
from cascades.data.prompts import given_options, given_targets
from cascades.data.records import Records
from cascades.decoding import TokenScores
from cascades.inference.trained_model import TrainedModel
from cascades.predictions import rows
from cascades.runtime import partitioning, profiling, ranges
from cascades.tasks.task import Record, Task
from cascades.types import Batch, Generation, Params, Prompt, Vocabulary

# Rows of a table for the numbered rows of a task's split, in any order, each with its number.
RowReader: TypeAlias = Callable[
  [Corpus, Records, Sequence[int]], Iterator[tuple[int, rows.JsonRow]]
]
Candidates: TypeAlias = Literal['targets', 'options']

CANDIDATES: Mapping[str, Callable[[Record], Sequence[Tokens]]] = MappingProxyType(
  {'targets': given_targets, 'options': given_options}
)
NORMALIZED = metrics.length_normalized_accuracy.name


class ScoredCandidate(NamedTuple):
  """A given answer of n tokens, end of sequence included, under teacher forcing."""

  tokens: Int[np.ndarray, 'n']
  logprobs: Float[np.ndarray, 'n']
  correct: Bool[np.ndarray, 'n']  # True where a token is the model's first choice
  alternatives: Float[np.ndarray, 'n A'] | None  # log-probabilities, most likely token first


class Answered(NamedTuple):
  """Answers to a batch of prompts, and what their rows store besides.

  Attributes:
    generation: Tokens, log-probabilities and mask.
    numbers: Numbers of each answer, by names of COLUMNS.
    by_token: Numbers of each token, by names of TOKEN_COLUMNS.
  """

  generation: Generation
  numbers: Mapping[str, Int[np.ndarray, 'B']] = MappingProxyType({})
  by_token: Mapping[str, Float[np.ndarray, 'B T']] = MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
  """Choice of the tokens of an answer.

  Attributes:
    temperature: 0 decodes greedily; above 0, tokens are sampled at this temperature.
    top_k: Number of most probable tokens to sample from; None for all.
    top_p: Probability mass of the nucleus to sample from; None for all.
    seed: Seed of the samples. A row's answer depends on it and on the row's number alone.
  """

  temperature: float = 0.0
  top_k: int | None = None
  top_p: float | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    ranges.check({'TEMPERATURE': self.temperature}, least=0)
    ranges.check({'TOP_K': self.top_k}, least=1, integer=True)
    ranges.check({'TOP_P': self.top_p}, above=0, most=1)
    ranges.check({'SEED': self.seed}, least=0, below=1 << 63, integer=True)
    if not self.temperature and (self.top_k is not None or self.top_p is not None):
      name = 'TOP_P' if self.top_k is None else 'TOP_K'
      raise ValueError(
        f'{name} says how tokens are drawn, and TEMPERATURE={self.temperature:g} draws none: raise '
        f'TEMPERATURE, or leave {name} out.'
      )

  def sampler(self) -> decoding.Sampler:
    """Function from logits to tokens."""
    if not self.temperature:
      return decoding.greedy
    return functools.partial(
      decoding.sample, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
    )


class Generator:
  """Decodes answers to batches of prompts.

  The program is compiled once for each shape of prompts and reused by later calls. Calls must be
  inside `partitioning.use`, on the mesh that holds the model.
  """

  def __init__(
    self,
    model: TrainedModel,
    max_tokens: int,
    options: DecodingOptions = DecodingOptions(),
    *,
    alternatives: int = 0,
  ) -> None:
    """Prepares the program.

    Args:
      model: A loaded model.
      max_tokens: Longest answer in tokens, end of sequence included.
      options: Temperature, cuts and seed; greedy by default.
      alternatives: Number of most likely tokens at each position, to return their
        log-probabilities.
    """

    @jax.jit
    def generate(params: Params, prompts: Prompt, row_ids: Array) -> Generation:
      return decoding.generate(
        nnx.merge(model.graph, params),
        prompts,
        max_len=max_tokens,
        eos_id=model.vocabulary.eos_ids,
        sampler=options.sampler(),
        key=jax.random.key(options.seed),
        row_ids=row_ids,
        alternatives=alternatives,
      )

    self.model = model
    self._generate = generate

  def generate(self, prompts: Prompt, row_ids: Int[np.ndarray, 'B']) -> Generation:
    """Decode one answer for each prompt.

    Args:
      prompts: Prompts padded on the right; a prompt of length 0 gets no answer.
      row_ids: Number of each prompt. A sample depends on the seed, the row id and the prompt, not
        on the other prompts of the batch.

    Returns:
      Tokens, log-probabilities, mask and alternatives, [B, max_tokens] each, as NumPy arrays on
      every process.
    """
    placed = partitioning.place_whole((prompts, np.asarray(row_ids, np.int32)))
    return partitioning.fetch(self._generate(self.model.params, *placed))

  def answer(self, prompts: Prompt, row_ids: Int[np.ndarray, 'B']) -> Answered:
    """The same for `predictor`."""
    return Answered(self.generate(prompts, row_ids))


class Scorer:
  """Scores target tokens of batches under teacher forcing.

  The program is compiled once for each shape of batches and reused by later calls. Calls must be
  inside `partitioning.use`, on the mesh that holds the model.
  """

  def __init__(self, model: TrainedModel, *, alternatives: int = 0) -> None:
    @jax.jit
    def score(params: Params, batch: Batch) -> TokenScores:
      merged = nnx.merge(model.graph, params)
      axes = partitioning.block_axes(len(batch.targets), jax.tree.leaves(merged.table)[0].shape)
      return decoding.score(merged, batch, alternatives=alternatives, axes=axes)

    self.model = model
    self._score = score

  def score(self, batch: Batch) -> TokenScores:
    """Log-probabilities of the batch's targets, as NumPy arrays on every process."""
    return partitioning.fetch(self._score(self.model.params, partitioning.place_whole(batch)))


def predictor(
  answer: Callable[[Prompt, Int[np.ndarray, 'B']], Answered],
  vocabulary: Vocabulary,
  batch_size: int,
  profiler: profiling.Profiler,
) -> RowReader:
  """Reader of rows of decoded answers, with prompts of similar length in a batch.

  Args:
    answer: Answers prompts with these row ids, as `Generator.answer` does.
    vocabulary: Decodes the answers.
    batch_size: Most prompts of a batch; where there are fewer, the last prompt is repeated up to a
      power of two.
    profiler: Traces batches.
  """

  def read(
    corpus: Corpus, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, rows.JsonRow]]:
    (task,) = corpus.tasks
    for count, bucket in enumerate(corpus.buckets(split, numbers, batch_size=batch_size), 1):
      prompts = corpus.prompts(split, bucket, batch_size=batch_size)
      with profiler.step(count):
        row_ids = np.resize(bucket.indices, len(prompts.length))
        answered = answer(prompts, row_ids)
      lengths = np.asarray(prompts.length).tolist()
      for index, (number, record) in enumerate(
        zip(bucket.indices.tolist(), split.read(bucket.indices), strict=True)
      ):
        mask = answered.generation.mask[index]
        generation, by_token = _tokens((answered.generation, dict(answered.by_token)), index, mask)
        text = vocabulary.decode(generation.tokens)
        columns = {name: values[index] for name, values in answered.numbers.items()}
        yield (
          number,
          table_row(
            record,
            answer=text,
            tokens=generation.tokens,
            logprobs=generation.logprobs,
            statistics=judged(task.metrics, record, text),
            numbers={
              'prompt_tokens': lengths[index],
              'generated_tokens': len(generation.tokens),
              **columns,
            },
            alternatives=generation.alternatives,
            by_token=by_token,
          ),
        )

  return read


def scorer(
  token_scorer: Scorer, batch_size: int, profiler: profiling.Profiler, candidates: Candidates
) -> RowReader:
  """Reader of rows of scores of given answers, with the best one of each row.

  Args:
    token_scorer: Scores the tokens of the answers.
    batch_size: Most given answers of a batch.
    profiler: Traces batches.
    candidates: 'targets' scores the target of each row; 'options' ranks its options.

  Raises:
    ValueError: if `candidates` is neither.
  """
  if candidates not in CANDIDATES:
    raise ValueError(f'candidates is {candidates!r}; it must be one of {", ".join(CANDIDATES)}.')
  given = CANDIDATES[candidates]

  def scored(
    corpus: Corpus, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, ScoredCandidate]]:
    batches = corpus.candidates(split, numbers, batch_size=batch_size, of=given)
    for count, (row_numbers, _, batch) in enumerate(batches, 1):
      with profiler.step(count):
        scores = token_scorer.score(batch)
      for index, number in enumerate(row_numbers.tolist()):
        columns = _tokens((batch.targets, *scores), index, batch.weights[index] > 0)
        yield number, ScoredCandidate(*columns)

  def read(
    corpus: Corpus, split: Records, numbers: Sequence[int]
  ) -> Iterator[tuple[int, rows.JsonRow]]:
    (task,) = corpus.tasks
    pairs = scored(corpus, split, numbers)
    for number, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
      (record,) = split.read([number])
      yield number, _best_row(task, record, [scores for _, scores in group], candidates)

  return read


def metric_names(names: Sequence[str], candidates: Candidates | None) -> list[str]:
  """Names of the metrics of a table.

  Args:
    names: Metrics of the task.
    candidates: Answers that are scored; None for decoded answers.
  """
  if candidates == 'targets':
    return [metrics.token_accuracy.name]
  return [*names, NORMALIZED] if candidates == 'options' else list(names)


def size(numbered: tuple[int, rows.JsonRow]) -> tuple[int, int]:
  """Number of rows (1) and of tokens of a numbered row, for progress reports."""
  return 1, numbered[1]['aux']['length']


def _best_row(
  task: Task, record: Record, scored: Sequence[ScoredCandidate], candidates: Candidates
) -> rows.JsonRow:
  """The row of the candidate of highest total log-probability."""
  totals = [float(candidate.logprobs.sum(dtype=np.float64)) for candidate in scored]
  best = rows.best_option(totals)
  tokens, logprobs, correct, alternatives = scored[best]
  columns: dict[str, Any] = {
    'statistics': {metrics.token_accuracy.name: [correct.sum(), correct.size]}
  }
  if candidates == 'options':
    options, lengths = record.row.options, [len(candidate.tokens) for candidate in scored]
    best_per_token = options[rows.best_option(totals, lengths)]
    statistics = judged(task.metrics, record, options[best])
    statistics[NORMALIZED] = judged(['accuracy'], record, best_per_token)['accuracy']
    columns = {
      'statistics': statistics,
      'options': options,
      'option_scores': totals,
      'option_lengths': lengths,
    }
  return table_row(
    record,
    answer=totals[best],
    tokens=tokens,
    logprobs=logprobs,
    correct=correct.tolist(),
    alternatives=alternatives,
    **columns,
  )


def _tokens(columns: Any, row: int, mask: Any) -> Any:
  """A tree of columns [B, T, ...] at the tokens of a row, True in `mask`."""
  return jax.tree.map(lambda column: np.asarray(column)[row, mask], columns)


def judged(names: Sequence[str], record: Record, text: str) -> dict[str, Any]:
  """Statistics of these metrics; zeros, which add nothing, for a row without a label."""
  named = [metrics.by_name(name) for name in names]
  if record.row.answers:
    return {metric.name: metric.statistics(record.row.answers, text) for metric in named}
  return {metric.name: 0 * metric.statistics([''], '') for metric in named}


def table_row(
  record: Record,
  *,
  numbers: Mapping[str, float] = MappingProxyType({}),
  alternatives: Sequence[Sequence[float]] | Float[np.ndarray, 'n A'] | None = None,
  by_token: Mapping[str, Float[np.ndarray, 'n']] = MappingProxyType({}),
  **columns: Any,
) -> rows.JsonRow:
  """Row of a table for a record; `columns` are the other arguments of `rows.build`."""
  row = record.row
  details = rows.Details(
    group=row.group,
    columns=numbers,
    alternatives=None if alternatives is None else [list(values) for values in alternatives],
    by_token=by_token,
  )
  return rows.build(
    id=row.id,
    inputs=row.inputs,
    targets=row.answers or ('',),
    details=details,
    **columns,
  )
