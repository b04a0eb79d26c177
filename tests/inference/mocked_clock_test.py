"""Costs of decoding by a mocked clock: seconds of the calls that the loops make, and the formulas.

Each call of a table reports its width as it runs, so that nothing here trusts the loops' counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from cascades import decoding, speculative
from cascades.inference import speculation, token_cascade
from cascades.inference.answers import DecodingOptions
from cascades.target_distributions import RULES
from cascades.types import Prompt
from tests.inference.speculation_test import Bigrams

C, LARGE, WIDE = 0.2, 1.0, 1.5  # seconds of a small step, of a large one, and of one over a block
NEVER, TOKENS, GAMMA = -1, 3001, 3
F1 = np.tile([[[0.6, 0.3, 0.1]], [[0.2, 0.45, 0.35]]], (1, 3, 1))  # after any token
SAMPLED = DecodingOptions(temperature=1.0)
PROMPT = Prompt(np.zeros((1, 1), np.int32), np.ones(1, np.int32))


class Clocked(Bigrams):
  """Bigrams that report the width of every call behind the prompt as it runs."""

  def __init__(self, probabilities: np.ndarray, widths: list[int]):
    super().__init__(probabilities)
    self.widths = widths

  def extend(self, tokens, cache):
    jax.debug.callback(lambda width=tokens.shape[1]: self.widths.append(width))
    return super().extend(tokens, cache)


class Calls:
  """Widths of the calls of a small and a large model."""

  def __init__(self) -> None:
    self.small: list[int] = []
    self.large: list[int] = []

  @contextlib.contextmanager
  def models(self, tables: np.ndarray) -> Iterator[list[Clocked]]:
    yield [Clocked(table, own) for table, own in zip(tables, (self.small, self.large), strict=True)]
    jax.effects_barrier()

  @property
  def seconds(self) -> float:
    """Seconds by the mocked clock."""
    return len(self.small) * C + sum(LARGE if width == 1 else WIDE for width in self.large)

  @property
  def flops(self) -> float:
    """FLOPs over those of a token of the large model; a small token has C of them."""
    return len(self.small) * C + sum(self.large)


def alone(tables: np.ndarray) -> Calls:
  """Calls of the large model alone."""
  calls = Calls()
  with calls.models(tables) as (_, large):
    jax.block_until_ready(decoding.generate(large, PROMPT, max_len=TOKENS, eos_id=NEVER))
  return calls


@pytest.mark.parametrize(
  ('rule', 'acceptance', 'last_draft'), [('lossless', 0.6, 0), ('token_v3', 0.52, 1)]
)
def test_seconds_and_flops_of_drafts_are_those_of_the_formulas(rule, acceptance, last_draft):
  """F1 after every token, so that each draft passes with the same probability."""
  calls, target = Calls(), RULES[rule].target
  with calls.models(F1) as models:
    pair = speculation.SpeculativePair(*models, target, 0.3, SAMPLED)
    shared = {'max_len': TOKENS, 'eos_id': NEVER, 'gamma': GAMMA}
    counts = jax.jit(lambda: speculation.generate(pair, PROMPT, **shared).counts)()
    counts = [int(count[0]) for count in counts]
  accepted, _, small_calls, large_calls = counts
  blocks = len(calls.large)
  assert set(calls.large) == {GAMMA + 1}
  assert [len(calls.small) + 1, blocks + 1] == [small_calls, large_calls]  # and the prompts
  assert accepted + blocks + 1 == TOKENS  # one token more for each block, and for the prompt
  reference = alone(F1)
  assert reference.seconds == (TOKENS - 1) * LARGE
  relative = calls.seconds / reference.seconds
  assert relative == pytest.approx(
    speculative.relative_seconds(acceptance, GAMMA, C, large=WIDE, last_draft=last_draft), rel=0.03
  )
  assert calls.flops / reference.flops == pytest.approx(
    speculative.relative_flops(acceptance, GAMMA, C, last_draft=last_draft), rel=0.03
  )


def test_seconds_of_a_token_cascade_are_those_of_its_small_steps_and_deferred_tokens():
  """The rate of deferrals follows from the law of the last token."""
  q = np.array([[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.35, 0.35, 0.3]])
  p = np.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.3, 0.3, 0.4]])
  alpha = 0.55  # defers after the tokens 1 and 2
  defers = np.array([False, True, True])
  law = np.linalg.matrix_power(np.where(defers[:, None], p, q), 100)[0]
  rate = float(law @ defers)
  calls = Calls()
  with calls.models(np.stack([q, p])) as models:
    shared = {'max_len': TOKENS, 'eos_id': NEVER, 'options': SAMPLED}
    answers = jax.jit(
      lambda: token_cascade.generate(*models, PROMPT, rule='chow', alpha=alpha, **shared)
    )()
  deferred = int((~answers.drafted).sum())
  assert deferred / TOKENS == pytest.approx(rate, rel=0.03)
  by_width = [calls.large.count(width) for width in (1, token_cascade.WIDTH)]
  assert min(by_width) > 300
  late = len(calls.large) - deferred  # more than WIDTH tokens were skipped, or none is read
  assert abs(late) < 0.01 * deferred
  seconds = len(calls.small) * C + len(calls.large) * LARGE
  assert seconds / alone(F1).seconds == pytest.approx(
    speculative.cascade_seconds(rate, C), rel=0.03
  )
