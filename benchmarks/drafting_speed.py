"""Seconds of greedy answers with drafts over those of the large model alone."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.bars import Measured
from benchmarks.speculative_rules import Call, by_turns
from cascades.inference import latency, shortlist
from cascades.inference.answers import Generator
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
) -> Iterator[Measured]:
  """Speed of both models together, without loss, over that of the large one alone.

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
  """
  answered = sum(batch.rows for batch in batches)
  costs = latency.step_costs(small, large, batches[0].prompts, most=most, max_tokens=longest)
  relative = ', '.join(f'{seconds / costs.large[0]:.2f}' for seconds in costs.large)
  yield Measured(
    f'{what}: step of the small model / of the large one', costs.small / costs.large[0], '',
    note=f'large step {costs.large[0] * 1e3:.3f} ms; over 1 to {most + 1} tokens {relative}',
  )  # fmt: skip
  generator = Generator(large, longest)
  speculator = functools.partial(Speculator, small, large, 'lossless', max_tokens=longest)
  speculators = {f'gamma {gamma}': speculator(gamma=gamma) for gamma in gammas}
  speculators['planner'] = speculator(gamma=most, costs=costs)

  def alone() -> list[Generation]:
    return [generator.generate(b.prompts, b.row_ids) for b in batches]

  def together(speculator: Speculator) -> list[Speculation]:
    return [speculator.speculate(b.prompts, b.row_ids) for b in batches]

  calls: dict[str, Call] = {
    name: functools.partial(together, speculator) for name, speculator in speculators.items()
  }
  calls['planner']()  # until it knows the share of accepted drafts
  seconds = by_turns({'large': alone, **calls}, turns)
  answers = alone()
  yield Measured(
    f'{what}: large alone', float(np.median(seconds['large'])) / answered * 1e3, 'ms/answer'
  )
  for name, speculator in speculators.items():
    drafted = together(speculator)
    same = np.concatenate([
      (a.answer.tokens == b.tokens).all(1) for a, b in zip(drafted, answers, strict=True)
    ])  # fmt: skip
    accepted, rejected, large_calls = (
      sum(int(getattr(a.counts, count).sum()) for a in drafted)
      for count in ('accepted', 'rejected', 'large_calls')
    )
    yield Measured(
      f'{what}: large alone / lossless, {name}', float(np.median(seconds['large'] / seconds[name])),
      'x', at_least=at_least if name == 'planner' else None,
      note=f'acceptance {accepted / max(1, accepted + rejected):.3f}, {large_calls / answered:.2f} '
      f'large calls an answer, {same.mean():.1%} of the answers identical',
    )  # fmt: skip
  yield Measured(f'{what}: share of identical answers', float(same.mean()), '', at_least=1.0)
