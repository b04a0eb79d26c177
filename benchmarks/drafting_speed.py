"""Speed of lossless answers with drafts over that of the large model alone."""

from __future__ import annotations

import collections
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from benchmarks.bars import Measured
from benchmarks.speculative_rules import Call, by_turns
from cascades.inference import latency, shortlist
from cascades.inference.answers import DecodingOptions, Generator
from cascades.inference.latency import TimedBatch
from cascades.inference.speculation import Speculation
from cascades.inference.speculator import Speculator
from cascades.inference.trained_model import TrainedModel
from cascades.predictions import shards
from cascades.types import Generation, Prompt


def from_shortlist(
  small: TrainedModel, large: TrainedModel, answers: pathlib.Path, tokens: int
) -> TrainedModel:
  """A drafter of the tokens that a table of answers has most often, and of each prompt's own."""
  _, rows = shards.read_rows(answers, task='questions')
  written = (np.array(row.tokens) for row in rows)
  ends = large.vocabulary.eos_ids
  common = shortlist.common_tokens(written, tokens, vocab_size=large.vocab_size, always=ends)
  return shortlist.attach(small, common)


def one_by_one(prompts: Prompt, row_ids: np.ndarray) -> list[TimedBatch]:
  """Batches of one prompt each."""
  tokens, lengths, ids = map(np.asarray, (*prompts, row_ids))
  return [
    TimedBatch(Prompt(tokens[own], lengths[own]), ids[own], 1)
    for own in (slice(number, number + 1) for number in range(len(ids)))
  ]


def speeds(
  what: str,
  small: TrainedModel,
  large: TrainedModel,
  batches: Sequence[TimedBatch],
  *,
  longest: int,
  gammas: Sequence[int],
  most: int,
  turns: int,
  at_least: float,
  temperature: float = 0.0,
) -> Iterator[Measured]:
  """Tokens a second of both models together, without loss, over those of the large one alone.

  Args:
    what: Name of the pair, with which each row begins.
    small: Model that drafts.
    large: Model that verifies.
    batches: Prompts that are answered in a turn.
    longest: Most tokens of an answer.
    gammas: Numbers of drafts.
    most: Drafts that the planner may choose.
    turns: Number of alternating turns, whose median ratio counts.
    at_least: Bar of the planner.
    temperature: Of all answers; samples differ in length from one way to another.
  """
  answered, options = sum(batch.rows for batch in batches), DecodingOptions(temperature)
  costs = latency.step_costs(small, large, batches[0].prompts, most=most, max_tokens=longest)
  relative = ', '.join(f'{seconds / costs.large[0]:.2f}' for seconds in costs.large)
  yield Measured(
    f'{what}: step of the small model / of the large one', costs.small / costs.large[0], '',
    note=f'large step {costs.large[0] * 1e3:.3f} ms; over 1 to {most + 1} tokens {relative}',
  )  # fmt: skip
  generator = Generator(large, longest, options)
  speculator = functools.partial(
    Speculator, small, large, 'lossless', max_tokens=longest, options=options
  )
  speculators = {f'gamma {gamma}': speculator(gamma=gamma) for gamma in gammas}
  speculators['planner'] = speculator(gamma=most, costs=costs)

  written: dict[str, list[int]] = collections.defaultdict(list)  # tokens in each turn

  def alone() -> list[Generation]:
    answers = [generator.generate(b.prompts, b.row_ids) for b in batches]
    written['large'].append(tokens(answers))
    return answers

  def together(name: str) -> list[Speculation]:
    drafted = [speculators[name].speculate(b.prompts, b.row_ids) for b in batches]
    written[name].append(tokens([each.answer for each in drafted]))
    return drafted

  calls: dict[str, Call] = {name: functools.partial(together, name) for name in speculators}
  calls['planner']()  # until it knows the share of accepted drafts
  seconds = by_turns({'large': alone, **calls}, turns)
  speed = {name: np.array(written[name][-turns:]) / seconds[name] for name in seconds}
  answers = alone()
  yield Measured(
    f'{what}: large alone', float(np.median(seconds['large'])) / answered * 1e3, 'ms/answer'
  )
  for name in speculators:
    drafted = together(name)
    same = np.concatenate([
      (a.answer.tokens == b.tokens).all(1) for a, b in zip(drafted, answers, strict=True)
    ])  # fmt: skip
    accepted, rejected, large_calls = (
      sum(int(getattr(a.counts, count).sum()) for a in drafted)
      for count in ('accepted', 'rejected', 'large_calls')
    )
    identical = '' if temperature else f', {same.mean():.1%} of the answers identical'
    yield Measured(
      f'{what}: large alone / lossless, {name}', float(np.median(speed[name] / speed['large'])),
      'x', at_least=at_least if name == 'planner' else None,
      note=f'acceptance {accepted / max(1, accepted + rejected):.3f}, {large_calls / answered:.2f} '
      f'large calls an answer{identical}',
    )  # fmt: skip
  if not temperature:
    yield Measured(f'{what}: share of identical answers', float(same.mean()), '', at_least=1.0)


def tokens(answers: Iterable[Generation]) -> int:
  return sum(int(np.asarray(answer.mask).sum()) for answer in answers)
