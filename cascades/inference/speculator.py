"""Answers of a trained pair of models: compiled programs around `speculation.generate`.

A `Speculator` compiles once for each shape of prompts. alpha is an argument of the program, so
that a sweep over it shares one. With a `DraftPlanner` the number of drafts follows the share that
is accepted, down to the large model alone where drafting does not pay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Int

from cascades import speculative, target_distributions
from cascades.inference import points, speculation, token_cascade
from cascades.inference.answers import Answered, DecodingOptions, Generator
from cascades.inference.speculation import CallCounts, DraftPlan, Speculation
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning, ranges
from cascades.types import Params, Prompt

BINS = 100  # estimates of the acceptance that a plan distinguishes, besides 0
PRIOR = 16.0  # drafts that earlier answers weigh in a row's estimate
START = 0.8  # acceptance before the first answer
MEMORY = 0.9  # share of the earlier counts that stays after each batch
SAVING = 0.05  # share of the time that drafts must save, more than the measured steps are off by
RETRY = 64  # batches of the large model alone until one drafts again


class StepCosts(NamedTuple):
  """Measured seconds of the steps of two models, for batches of one size.

  Attributes:
    small: Seconds of the small model over one token.
    large: Seconds of the large model over 1, 2, ... gamma + 1 tokens.
  """

  small: float
  large: Sequence[float]


class DraftPlanner:
  """Numbers of drafts of least expected time, from measured steps and counts of earlier batches."""

  def __init__(self, costs: StepCosts, *, lossless: bool) -> None:
    """Computes the best number of drafts at each acceptance.

    Args:
      costs: Seconds of the steps; as many as the largest number of drafts needs.
      lossless: True if the rule is, so that the large model can do without the small one, and the
        small one need not read its last draft.
    """
    seconds = np.asarray(costs.large) / costs.large[0]
    self.lengths = np.array([
      speculative.best_gamma(
        estimate, costs.small / costs.large[0], most=len(seconds) - 1, large=seconds.tolist(),
        last_draft=float(not lossless), least_saving=SAVING,
      )
      for estimate in np.linspace(0, 1, BINS + 1)
    ])  # fmt: skip
    if not lossless:  # each token needs both models anyway, and drafts keep the estimate alive
      self.lengths = np.maximum(self.lengths, 1)
    self.accepted, self.rejected = START * PRIOR, (1 - START) * PRIOR

  @property
  def acceptance(self) -> float:
    """Estimate of the share of drafts that are accepted."""
    return self.accepted / (self.accepted + self.rejected)

  @property
  def drafts(self) -> int:
    """Number of drafts at this estimate."""
    return int(self.lengths[round(self.acceptance * BINS)])

  def plan(self) -> DraftPlan:
    """Plan of the next batch, in which earlier answers weigh as PRIOR drafts of the row."""
    prior = PRIOR * np.array([self.acceptance, 1 - self.acceptance], np.float32)
    return DraftPlan(jnp.asarray(self.lengths, jnp.int32), *map(jnp.float32, prior))

  def update(self, counts: CallCounts) -> None:
    """Count the drafts of a batch."""
    self.accepted = MEMORY * self.accepted + float(np.sum(counts.accepted))
    self.rejected = MEMORY * self.rejected + float(np.sum(counts.rejected))


class Speculator:
  """Answers prompts with a small model that drafts and a large one that verifies.

  Calls must be inside `partitioning.use`, on the mesh that holds both models.
  """

  def __init__(
    self,
    small: TrainedModel,
    large: TrainedModel,
    rule: str,
    *,
    gamma: int,
    max_tokens: int,
    options: DecodingOptions = DecodingOptions(),
    costs: StepCosts | None = None,
  ) -> None:
    """Prepares the program.

    Args:
      small: Model that drafts.
      large: Model that verifies. Where the tables of the vocabulary are padded to different sizes,
        the entries that only one of them has are cut off.
      rule: Name in `target_distributions.RULES`. All rules can be used with any sampler: untempered
        peaks are read from the logits, which no temperature or cut hides here.
      gamma: Most drafts of a block; 0 leaves the answers of a lossless rule to the large model.
      max_tokens: Longest answer in tokens, end of sequence included.
      options: Temperature, cuts and seed of both models; greedy by default.
      costs: Measured steps, of gamma + 1 tokens at least, by which the number of drafts follows the
        share that is accepted; None drafts gamma tokens in each block. Where tokens are drawn, the
        number of drafts changes which ones, not their law.

    Raises:
      ValueError: The models have different vocabularies or architectures, there is no such rule,
        or gamma is out of range.
    """
    check_pair(small, large)
    ranges.check({'gamma': gamma}, least=0, integer=True)
    self.target = target_distributions.named(rule, 0.0).target
    self.models, self.rule, self.gamma = (small, large), rule, gamma
    lossless = self.target is target_distributions.large
    self.planner = costs and DraftPlanner(
      costs._replace(large=costs.large[: gamma + 1]), lossless=lossless
    )
    self._alone = 0  # batches since the last draft
    self._large = Generator(large, max_tokens, options)
    self._always = functools.cache(speculation.always)  # its arrays

    @functools.partial(jax.jit, static_argnames='gamma')
    def speculate(
      params: tuple[Params, Params],
      prompts: Prompt,
      row_ids: Array,
      alpha: Array,
      plan: DraftPlan,
      *,
      gamma: int,
    ) -> Speculation:
      drafting, verifying = map(nnx.merge, (small.graph, large.graph), params)
      return speculation.generate(
        speculation.SpeculativePair(drafting, verifying, self.target, alpha, options),
        prompts,
        max_len=max_tokens,
        eos_id=large.vocabulary.eos_ids,
        gamma=gamma,
        plan=plan,
        row_ids=row_ids,
      )

    self._speculate = speculate

  def speculate(
    self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float = 0.0
  ) -> Speculation:
    """Decode one answer for each prompt.

    Args:
      prompts: Prompts padded on the right; a prompt of length 0 gets no answer.
      row_ids: Number of each prompt; see `speculation.generate`.
      alpha: Number of the rule.

    Returns:
      Answers and counts as NumPy arrays on every process.

    Raises:
      ValueError: alpha is outside of the range of the rule.
    """
    target_distributions.named(self.rule, alpha)
    gamma, plan = self._next_block()
    if not gamma and self.target is target_distributions.large:
      return speculation.undrafted(self._large.generate(prompts, row_ids), where=np.where)
    program = functools.partial(self._speculate, plan=plan, gamma=gamma)
    answers = _run(program, self.models, prompts, row_ids, alpha)
    if self.planner:
      self.planner.update(answers.counts)
    return answers

  def answer(self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float = 0.0) -> Answered:
    """The same for `answers.predictor`."""
    return answered(self.speculate(prompts, row_ids, alpha))

  def _next_block(self) -> tuple[int, DraftPlan]:
    """Most drafts of the next batch, which the program is compiled for, and its plan."""
    if not self.planner:
      return self.gamma, self._always(self.gamma)
    drafts = self.planner.drafts
    if drafts:
      ladder = [1 << power for power in range(self.gamma.bit_length())]  # few programs
      return min((n for n in ladder if n >= drafts), default=self.gamma), self.planner.plan()
    self._alone = (self._alone + 1) % RETRY
    gamma = 0 if self._alone else min(1, self.gamma)
    return gamma, self._always(gamma)


class TokenCascade:
  """Answers prompts with a small model, and with a large one at the tokens that are deferred.

  Calls must be inside `partitioning.use`, on the mesh that holds both models.
  """

  def __init__(
    self,
    small: TrainedModel,
    large: TrainedModel,
    rule: str,
    *,
    max_tokens: int,
    options: DecodingOptions = DecodingOptions(),
  ) -> None:
    """Prepares the program.

    Args:
      small: Model that decodes.
      large: Model of the deferred tokens.
      rule: Name in `target_distributions.SEQUENTIAL`.
      max_tokens: Longest answer in tokens, end of sequence included.
      options: Temperature, cuts and seed of both models; greedy by default.

    Raises:
      ValueError: The models have different vocabularies or architectures.
    """
    check_pair(small, large)
    self.models, self.rule = (small, large), rule

    @jax.jit
    def decode(
      params: tuple[Params, Params], prompts: Prompt, row_ids: Array, alpha: Array
    ) -> Speculation:
      decoding, deferred = map(nnx.merge, (small.graph, large.graph), params)
      return token_cascade.generate(
        decoding,
        deferred,
        prompts,
        rule=rule,
        alpha=alpha,
        max_len=max_tokens,
        eos_id=large.vocabulary.eos_ids,
        options=options,
        row_ids=row_ids,
      )

    self._decode = decode

  def answer(self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float = 0.0) -> Answered:
    """Decode one answer for each prompt. Raises ValueError for an alpha out of range."""
    target_distributions.named(self.rule, alpha)
    return answered(_run(self._decode, self.models, prompts, row_ids, alpha))


def _run(
  program: Callable[..., Speculation],
  models: tuple[TrainedModel, TrainedModel],
  prompts: Prompt,
  row_ids: Int[np.ndarray, 'B'],
  alpha: float,
) -> Speculation:
  """Run a compiled program on the active mesh."""
  placed = partitioning.place_whole((prompts, np.asarray(row_ids, np.int32)))
  params = tuple(model.params for model in models)
  answers: Speculation = partitioning.fetch(program(params, *placed, jnp.float32(alpha)))
  return answers


def answered(answers: Speculation) -> Answered:
  """Answers of two models as rows store them."""
  by_token = {'small_logprobs': answers.small_logprobs, 'drafted': answers.drafted}
  return Answered(answers.answer, answers.counts._asdict(), jax.tree.map(np.asarray, by_token))


def check_pair(small: TrainedModel, large: TrainedModel) -> None:
  """Raise ValueError unless both models have one vocabulary and one architecture."""
  if small.architecture != large.architecture:
    raise ValueError(
      f'The small model is {small.architecture} and the large one {large.architecture}: models '
      'that decode together must have one architecture, so that both read the same prompt.'
    )
  if small.vocabulary.fingerprint != large.vocabulary.fingerprint:
    raise ValueError(
      f'The small model has the vocabulary {small.vocabulary.fingerprint[:12]} of '
      f'{small.vocabulary.size} tokens and the large one {large.vocabulary.fingerprint[:12]} of '
      f'{large.vocabulary.size}: models that decode together must have the same. Train or convert '
      'both with one vocabulary.'
    )


def answer_alone(
  generator: Generator, model: str, prompts: Prompt, row_ids: Int[np.ndarray, 'B']
) -> Answered:
  """Answers of one model, with its calls."""
  generation = generator.generate(prompts, row_ids)
  calls = np.sum(generation.mask, 1)
  zeros = np.zeros_like(calls)
  numbers = {
    f'{name}_calls': calls if name == model else zeros for name in (points.SMALL, points.LARGE)
  }
  return Answered(generation, numbers)
