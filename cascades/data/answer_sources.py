"""Sources of the answers that a training step learns from: the task or one of the two models.

The rows of a step are those of the task's order in any case; a source answers them in its own way:

    fixed             the task's own answers
    target_generated  the large model's, from a table that `cascades.infer` wrote
    on_policy         samples of the small model as it is now: here only the prompts are read

Each step draws u1 and u2 from [0, 1), and takes `fixed` if u1 < lambda1, else `on_policy` if
u2 < lambda2, else `target_generated`. Both are functions of the seed and the step alone.

Reference: DistillSpec, Zhou et al. 2024, https://arxiv.org/abs/2310.08461, algorithm 1.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Int

from cascades import decoding
from cascades.data import batches, converters
from cascades.data.batches import Members, StepReader, TokenValues
from cascades.data.converters import FeatureConverter
from cascades.data.records import AnyRecords, MixtureRecords, Records, TokenStore
from cascades.predictions import shards
from cascades.runtime import ranges
from cascades.tasks import shuffling
from cascades.types import Batch, Prompt, Vocabulary

log = logging.getLogger(__name__)

AnswerSource: TypeAlias = Literal['fixed', 'target_generated', 'on_policy']

_DRAWS = 2  # of a step
_CHUNK = 4096  # rows whose text is in memory at a time
_NO_TOKENS = np.zeros(0, np.int32)


class Unanswered(NamedTuple):
  """Rows of a step whose answers are yet to be sampled.

  Attributes:
    context: the decoder's tokens before the answer.
    encoder: the encoder's tokens; None for a decoder-only model.
  """

  context: Prompt
  encoder: Prompt | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSources:
  """Shares of the sources, and the settings of those that depend on a model.

  Attributes:
    fixed_fraction: lambda1, the share of steps that train on the task's own answers.
    on_policy_fraction: lambda2, the share of the other steps that train on samples of the small
      model; the rest trains on answers of the large model.
    large_answers: Directory of the large model's answers to the training split, as `infer` wrote
      it; None if no step takes them.
    sample_every: Steps that take their samples from the model of the first of them.
    sample_tokens: Most tokens of a sample; None for the longest answers of the task.
    sampler: Draws the tokens of a sample.
  """

  fixed_fraction: float = 1.0
  on_policy_fraction: float = 1.0
  large_answers: str | None = None
  sample_every: int = 1
  sample_tokens: int | None = None
  sampler: decoding.Sampler = decoding.sample

  def __post_init__(self) -> None:
    fractions = {
      'FIXED_FRACTION': self.fixed_fraction,
      'ON_POLICY_FRACTION': self.on_policy_fraction,
    }
    ranges.check(fractions, least=0, most=1)
    lengths = {'SAMPLE_EVERY': self.sample_every, 'SAMPLE_TOKENS': self.sample_tokens}
    ranges.check(lengths, least=1, integer=True)
    shares = ', '.join(f'{name}={value:g}' for name, value in fractions.items())
    if self.share('target_generated') and self.large_answers is None:
      raise ValueError(
        f'{shares} leave {self.share("target_generated"):.3g} of the steps to answers of the large '
        "model: name the directory of a table that `cascades.infer` wrote with SPLITS=['train'] as "
        'LARGE_ANSWERS, or raise a fraction to 1.'
      )
    if self.large_answers is not None and not self.share('target_generated'):
      raise ValueError(
        f'{shares} leave no step to the answers of LARGE_ANSWERS={self.large_answers!r}: lower '
        'both fractions below 1, or leave LARGE_ANSWERS out.'
      )

  def share(self, source: AnswerSource) -> float:
    """Expected share of the steps that take a source."""
    shares = {'fixed': self.fixed_fraction}
    shares['on_policy'] = (1 - self.fixed_fraction) * self.on_policy_fraction
    shares['target_generated'] = (1 - self.fixed_fraction) * (1 - self.on_policy_fraction)
    return shares[source]

  def of_step(self, seed: int, step: int) -> AnswerSource:
    """The source of step `step`, counted from 0."""
    # The other hashes of a seed and a number are of two words.
    first, second = shuffling.mix(seed, step, np.arange(_DRAWS)) * 2.0**-64
    if first < self.fixed_fraction:
      return 'fixed'
    return 'on_policy' if second < self.on_policy_fraction else 'target_generated'

  def readers(
    self,
    records: MixtureRecords,
    vocabulary: Vocabulary,
    seed: int,
    *,
    teacher: TokenValues | None = None,
    vocab_size: int | None = None,
  ) -> Callable[[int], StepReader]:
    """Function from a step, counted from 0, to what reads its rows.

    Args:
      records: The training split.
      vocabulary: The run's.
      seed: The run's.
      teacher: Values of the target tokens of the task's own answers.
      vocab_size: Entries that the models have, by default those of the vocabulary.

    Raises:
      ValueError: if the task's own answers are to be learned and there are none, or the table of
        `large_answers` has another vocabulary or other rows.
      FileNotFoundError: if there is no such table, or it is unfinished.
    """
    readers: dict[AnswerSource, StepReader] = {'on_policy': read_prompts}
    if self.share('fixed'):
      batches.check_labeled(records)
      readers['fixed'] = functools.partial(batches.own_answers, teacher=teacher)
    if self.large_answers is not None:
      answers = read_table(self.large_answers, records, vocabulary, vocab_size)
      readers['target_generated'] = functools.partial(given_answers, answers)
    return lambda step: readers[self.of_step(seed, step)]


def read_prompts(
  records: AnyRecords, converter: FeatureConverter, members: Members, pack: int | None = None
) -> Unanswered:
  """Reads the prompts of a step's rows, each of one example, and no answer."""
  del pack
  prompts = ((inputs, _NO_TOKENS) for inputs, _ in records.tokens(np.concatenate(members)))
  examples = converter.examples(prompts)
  width = converter.prompt_width
  if converter.encoder_width is None:
    return Unanswered(converters.pad([example.context for example in examples], width), None)
  starts = [example.context for example in examples]
  encoder = converters.pad([example.prompt for example in examples], width)
  return Unanswered(converters.pad(starts, len(converter.start)), encoder)


def given_answers(
  answers: TokenStore,
  records: AnyRecords,
  converter: FeatureConverter,
  members: Members,
  pack: int | None = None,
) -> Batch:
  """Reads a step's rows, each of one example, with answers from a table in place of their own.

  An answer that was cut at the table's most tokens has no end of sequence, and gets none here.
  """
  del pack
  numbers = np.concatenate(members)
  converter = dataclasses.replace(converter, targets_end=_NO_TOKENS)
  pairs = zip(records.tokens(numbers), answers.read(numbers), strict=True)
  examples = converter.examples((prompt, answer) for (prompt, _), (_, answer) in pairs)
  batch = converters.assemble(
    [[example] for example in examples],
    width=converter.width,
    encoder_width=converter.encoder_width,
  )
  return converters.without_segments(batch)


def read_table(
  directory: epath.PathLike,
  records: MixtureRecords,
  vocabulary: Vocabulary,
  vocab_size: int | None = None,
) -> TokenStore:
  """Tokens of a model's answers to all rows of a split, in the order of the rows.

  Args:
    directory: The directory that `infer` was given; it holds a folder for each split.
    records: The split.
    vocabulary: The vocabulary that the answers must have.
    vocab_size: Entries that tokens may be, by default those of the vocabulary.

  Raises:
    ValueError: if the answers have another vocabulary, or are not those to these rows.
    FileNotFoundError: if there is no finished table of the split.
  """
  answers = [
    answer
    for task_records in records.per_task
    for answer in _answers(
      epath.Path(directory), task_records, vocabulary, vocab_size or vocabulary.size
    )
  ]
  counts = np.array([(0, len(answer)) for answer in answers], np.int64)
  return TokenStore.from_lengths([counts], [np.concatenate([_NO_TOKENS, *answers])])


def _answers(
  directory: epath.Path, records: Records, vocabulary: Vocabulary, vocab_size: int
) -> Iterator[Int[np.ndarray, 'n']]:
  """Answers to the rows of one task, in their order."""
  task, split = records.manifest.task, records.manifest.split
  table = f'LARGE_ANSWERS={str(directory)!r}'
  manifest, rows = shards.read_rows(directory / split, task=task)
  if manifest['vocabulary'] != vocabulary.fingerprint:
    raise ValueError(
      f'{table} has tokens of vocabulary {manifest["vocabulary"][:12]}, and this run has '
      f'vocabulary {vocabulary.fingerprint[:12]}: let a large model of the same vocabulary answer.'
    )
  log.info(
    'answers of the large model to %s: those of %s, step %d, decoded with %s',
    *(records.name, manifest['checkpoint'], manifest['step'], manifest['decoding']),
  )
  by_id = {row.id: row for row in rows}
  missing, other = [], []
  for begin in range(0, len(records), _CHUNK):
    for record in records.read(range(begin, min(begin + _CHUNK, len(records)))):
      row = by_id.get(record.row.id)
      if row is None:
        missing.append(record.row.id)
      elif row.inputs != record.row.inputs or not _are_tokens(row.tokens, vocab_size):
        other.append(record.row.id)
      else:
        yield np.array(row.tokens, np.int32)
  for ids, lack in (
    (missing, 'no answer to'),
    (other, 'answers to other inputs, or other tokens, for'),
  ):
    if ids:
      raise ValueError(
        f'{table} has {lack} {len(ids)} of {len(records)} rows of {records.name}, such as '
        f'{", ".join(map(repr, ids[:3]))}: infer the split again with the task as it is now.'
      )


def _are_tokens(tokens: Sequence[float], vocab_size: int) -> bool:
  """True if all are entries that the models have; a row of JSON may hold any number."""
  return min(tokens, default=0) >= 0 and max(tokens, default=0) < vocab_size
