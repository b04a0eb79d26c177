"""Answers of a trained pair of models: compiled programs around `speculation.generate`.

A `Speculator` compiles once for each shape of prompts. alpha is an argument of the program, so
that a sweep over it shares one. With a `DraftPlanner` the number of drafts follows the share that
is accepted, down to the large model alone where drafting does not pay, by measured time.
"""

from __future__ import annotations

import bisect
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Int

from cascades import target_distributions
from cascades.inference import points, speculation, token_cascade
from cascades.inference.answers import Answered, DecodingOptions, Generator
from cascades.inference.draft_planner import DraftPlanner, StepCosts
from cascades.inference.speculation import CallCounts, DraftPlan, Speculation
from cascades.inference.trained_model import TrainedModel
from cascades.runtime import partitioning, ranges
from cascades.types import Generation, Params, Prompt


class Speculator:
  """Answers prompts with a small model that drafts and a large one that verifies.

  Calls must be inside `partitioning.use`, on the mesh that holds both models.

  Attributes:
    models: The small and the large model.
    planner: Plans the number of drafts; None where that is constant.
    blocks: Most drafts of each program that batches run by.
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
    self._check = functools.cache(functools.partial(target_distributions.named, rule))  # of alphas
    self.target = self._check(0.0).target
    self.models, self.gamma = (small, large), gamma
    lossless = self.target is target_distributions.large
    self.planner = costs and DraftPlanner(
      costs._replace(large=costs.large[: gamma + 1]), lossless=lossless
    )
    self.blocks = self.planner.blocks if self.planner else [gamma]
    self._compiled: set[tuple[int, tuple[int, ...]]] = set()  # of blocks, and shapes of prompts
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
    answers = self._decode(prompts, row_ids, alpha)
    return answers if isinstance(answers, Speculation) else _undrafted(answers)

  def generate(
    self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float = 0.0
  ) -> Generation:
    """The same without counts, which take time where the large model answers alone."""
    answers = self._decode(prompts, row_ids, alpha)
    return answers.answer if isinstance(answers, Speculation) else answers

  def compile(self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float = 0.0) -> None:
    """Answer prompts with each of `blocks`: later ones of this shape then compile nothing."""
    for gamma in self.blocks:
      self._in_blocks(gamma, gamma, prompts, row_ids, alpha)
      self._compiled.add((gamma, prompts.tokens.shape))

  def answer(self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float = 0.0) -> Answered:
    """The same for `answers.predictor`."""
    return answered(self.speculate(prompts, row_ids, alpha))

  def _decode(
    self, prompts: Prompt, row_ids: Int[np.ndarray, 'B'], alpha: float
  ) -> Speculation | Generation:
    """Answers with as many drafts as are planned; without any, those of the large model alone."""
    self._check(alpha)
    planner = self.planner
    drafts = planner.next_drafts() if planner else self.gamma
    if not drafts and planner and not planner.times_alone:
      return self._large.generate(prompts, row_ids)  # with little time of the host's own
    gamma = self.blocks[bisect.bisect_left(self.blocks, drafts)]
    start = time.perf_counter()
    answers = self._in_blocks(gamma, drafts, prompts, row_ids, alpha)
    if planner:
      seconds = time.perf_counter() - start
      compiled = gamma, prompts.tokens.shape
      # The first batch may have been compiled, and other processes have other clocks.
      timed = compiled in self._compiled and jax.process_count() == 1
      self._compiled.add(compiled)
      planner.update(answers, seconds if timed else None)
    return answers

  def _in_blocks(
    self,
    gamma: int,
    drafts: int,
    prompts: Prompt,
    row_ids: Int[np.ndarray, 'B'],
    alpha: float,
  ) -> Speculation | Generation:
    """Answers in blocks of at most `gamma` drafts, of which a batch on trial has `drafts`."""
    if not gamma and self.target is target_distributions.large:
      return self._large.generate(prompts, row_ids)
    plan = self.planner.plan(drafts) if self.planner and gamma else self._always(gamma)
    program = functools.partial(self._speculate, plan=plan, gamma=gamma)
    return _run(program, self.models, prompts, row_ids, alpha)


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
  answers: Speculation = partitioning.fetch(program(params, *placed, np.float32(alpha)))
  return answers


def _undrafted(answer: Generation) -> Speculation:
  """`speculation.undrafted` of NumPy arrays, without a program to compile."""
  mask: Any = answer.mask  # of no known type: the fields are annotated as arrays of JAX
  tokens: Any = np.sum(mask, 1, dtype=np.int32)
  none = np.zeros_like(tokens)
  unread: Any = np.where(mask, np.float32(np.nan), np.float32(0))
  return Speculation(answer, unread, np.zeros_like(mask), CallCounts(none, none, none, tokens))


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
      f'{large.vocabulary.size}: models that decode together must have the same, so train or '
      'convert both with one vocabulary.'
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
