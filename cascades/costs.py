"""Cost of answers: floating-point operations, bytes, seconds, dollars, calls of the large model.

A forward pass costs about two operations for each parameter and token (a multiplication and an
addition); attention over long contexts comes on top and is not counted. Wang et al. 2024,
https://arxiv.org/abs/2406.00060, equation (6), charges each token alike; `per_row` charges each
query for the tokens that it reads and writes.

A cascade pays for every model that it runs, so for the cheap answer that it discards too
(`added`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from cascades.types import Predictions

Axis: TypeAlias = Literal['flops per token', 'flops', 'bytes', 'seconds', 'dollars', 'large calls']
UNITS: dict[Axis, str] = {
  'flops per token': 'FLOPs per token',
  'flops': 'FLOPs per query',
  'bytes': 'bytes of weights and memory',
  'seconds': 'seconds per query',
  'dollars': 'dollars per query',
  'large calls': 'calls of the large model per query',
}
BYTES = {'float32': 4, 'float16': 2, 'bfloat16': 2, 'int8': 1}  # of a weight by its type


@dataclasses.dataclass(frozen=True)
class Prices:
  """Prices of one model's tokens: in dollars, or in seconds as a measured profile of the model.

  Attributes:
    prompt: Price of a token that is read.
    generated: Price of a token that is written.
    cached_prompt: Price of a token that is read from the cache of prompts; None for `prompt`.
    cached_tokens: Tokens at the beginning of each prompt that are in that cache, such as those of
      an instruction that all prompts share.
    request: Price of a query besides its tokens.
  """

  prompt: float
  generated: float
  cached_prompt: float | None = None
  cached_tokens: int = 0
  request: float = 0.0

  def __post_init__(self) -> None:
    for name, price in dataclasses.asdict(self).items():
      number = isinstance(price, int | float) and not isinstance(price, bool)
      if not (number and math.isfinite(price) and price >= 0) and (name, price) != (
        'cached_prompt',
        None,
      ):
        raise ValueError(f'The price {name}={price!r:.80} must be a finite number of 0 or more.')

  def charge(
    self, prompt_tokens: Float[np.ndarray, 'N'], generated_tokens: Float[np.ndarray, 'N']
  ) -> Float[np.ndarray, 'N']:
    """Price of each query of so many tokens."""
    cached = np.minimum(prompt_tokens, self.cached_tokens)
    cached_price = self.prompt if self.cached_prompt is None else self.cached_prompt
    read = self.prompt * (prompt_tokens - cached) + cached_price * cached
    return self.request + read + self.generated * generated_tokens


def prices(given: Mapping[str, float], name: str) -> Prices:
  """Prices by the names of their fields.

  Args:
    given: Numbers by field.
    name: What gives them, for messages.

  Raises:
    ValueError: They are no prices.
  """
  names = [field.name for field in dataclasses.fields(Prices)]
  reason = f'it takes {", ".join(names)}; prompt and generated are needed.'
  if isinstance(given, Mapping) and {'prompt', 'generated'} <= set(given) <= set(names):
    try:
      return Prices(**given)  # type: ignore[arg-type]
    except ValueError as error:
      reason = str(error)
  raise ValueError(f'{name}={given!r:.80} gives no prices: {reason}')


def flops_per_token(parameters: int) -> float:
  """FLOPs of a forward pass per token, 2 P."""
  return 2.0 * parameters


def memory_lookup(entries: int, width: int, k: int, *, vocab_size: int = 0) -> float:
  """FLOPs of an exact search among N keys of width D, 2 N D, and of k readouts, 2 k D V.

  Args:
    entries: Number of keys N.
    width: Width D of a key.
    k: Number of neighbors.
    vocab_size: Number of logits V that are read out again for each neighbor; 0 where probabilities
      are stored.
  """
  return 2.0 * width * (entries + k * vocab_size)


def cascade(
  deferral_rate: Float[np.ndarray, '*M'], *, small: float, large: float
) -> Float[np.ndarray, '*M']:
  """Cost of a cascade at deferral rate d: C_S + d C_L.

  The small model always runs, so deferring everything costs C_S + C_L.

  Args:
    deferral_rate: Fraction d of the examples that the large model answers.
    small: Cost C_S of the small model, for example in FLOPs per token.
    large: Cost C_L of the large model, in the same unit.

  Returns:
    Costs in the unit of the arguments.
  """
  return small + np.asarray(deferral_rate) * large


def deferral_rate(
  cost: Float[np.ndarray, '*M'], *, small: float, large: float
) -> Float[np.ndarray, '*M']:
  """Deferral rate of a cascade of cost C, (C - C_S) / C_L, not clipped to [0, 1]: see `cascade`."""
  return (np.asarray(cost) - small) / large


def query(
  prompt_tokens: Int[np.ndarray, 'N'],
  generated_tokens: Int[np.ndarray, 'N'],
  *,
  flops_per_token: float,
) -> Float[np.ndarray, 'N']:
  """FLOPs of each query: each token read and each token generated passes the model once.

  Unlike `cascade`, it charges more for long answers. Its mean over a deferral curve is a curve of
  the statistics (C_S(x), 1) for the small model and (C_S(x) + C_L(x), 1) for the large one.

  Args:
    prompt_tokens: Number of tokens of each prompt.
    generated_tokens: Number of tokens of each answer.
    flops_per_token: FLOPs of a forward pass per token.

  Returns:
    FLOPs of each query.
  """
  return flops_per_token * (np.asarray(prompt_tokens) + np.asarray(generated_tokens))


def per_row(
  table: Predictions, axis: Axis, *, prices: Prices | None = None, last: bool = False
) -> Float[np.ndarray, 'N']:
  """Cost of each answer of a table.

  FLOPs are those of every token of prompt and answer, FLOPs per token are equal in all rows, and so
  are bytes, those of the weights and of a memory (`memorize`). Seconds and dollars follow from
  prices per token where there are any, else from the table's column. To seconds per token of a
  model, the measured time of a lookup in its memory is added for each token that is written.

  Args:
    table: Answers of one model.
    axis: Axis of cost.
    prices: Prices of tokens in seconds or dollars; None to read the table's column.
    last: True for the last model of a cascade, whose calls are counted as large ones.

  Returns:
    Costs in `UNITS[axis]`.

  Raises:
    ValueError: The axis is unknown, or the table lacks the tokens, types, seconds or dollars.
  """
  if axis not in UNITS:
    raise ValueError(f'Unknown axis of cost {axis!r:.80}; the axes are {", ".join(UNITS)}.')
  if axis == 'large calls':
    return np.full(len(table.ids), float(last))
  if axis == 'flops per token':
    return np.full(len(table.ids), float(table.manifest['flops_per_token']))
  if axis == 'bytes':
    return np.full(len(table.ids), bytes_of(table.manifest))
  if axis == 'flops':
    return query(*tokens(table), flops_per_token=float(table.manifest['flops_per_token']))
  if prices is None:
    costs = table.column(axis)
  else:
    free = not (prices.prompt or prices.cached_prompt)  # tables of scores do not count prompts
    read = np.zeros(len(table.ids)) if free else table.column('prompt_tokens')
    costs = prices.charge(read, _written(table))
    if axis == 'seconds' and 'memory' in table.manifest:
      milliseconds = float(table.manifest['memory']['milliseconds_per_token'])
      costs = costs + 1e-3 * milliseconds * _written(table)
  if (bad := costs[~(np.isfinite(costs) & (costs >= 0))]).size:
    raise ValueError(
      f'{len(bad)} of {len(costs)} rows of task {table.task!r} cost {bad[0]:g} {axis}; a cost is a '
      'finite number of 0 or more: correct the table.'
    )
  return costs


def bytes_of(manifest: Mapping[str, Any]) -> float:
  """Bytes of a model's weights, and of its memory if it has one.

  The scales of int8 weights are left out. Raises ValueError if the weights have no known type.
  """
  weights = manifest.get('weights')
  if weights not in BYTES:
    raise ValueError(
      f'Task {manifest.get("task")!r}: the weights are of the type {weights!r:.80}, and bytes are '
      f'known of {", ".join(BYTES)}: take tables of `infer`, or another axis of cost.'
    )
  memory = manifest.get('memory', {})
  return float(BYTES[weights] * manifest['parameters'] + memory.get('bytes', 0))


def token_price(table: Predictions, axis: Axis, prices: Prices | None) -> float:
  """Price of a prompt token in the costs of `per_row`; nan where it is not known, or there is none.

  Tokens that are read from a cache of prompts are the same ones in each prompt: the price is that
  of those that follow.
  """
  if axis == 'flops':
    return float(table.manifest['flops_per_token'])
  return math.nan if prices is None or axis not in ('seconds', 'dollars') else prices.prompt


def tokens(table: Predictions) -> tuple[Float[np.ndarray, 'N'], Float[np.ndarray, 'N']]:
  """Tokens read and written for each answer.

  Without a column of generated tokens, those with a log-probability are counted.

  Raises:
    ValueError: The table has rows without such tokens.
  """
  return table.column('prompt_tokens'), _written(table)


def _written(table: Predictions) -> Float[np.ndarray, 'N']:
  if 'generated_tokens' not in table.columns and table.lengths.all():
    return table.lengths.astype(float)
  return table.column('generated_tokens')


def added(
  own: Sequence[Float[np.ndarray, 'N']],
  deciding: Sequence[Float[np.ndarray, 'N'] | float] = (),
  *,
  discarded: bool = True,
) -> Float[np.ndarray, 'K N']:
  """Cost that each model of a cascade adds to a query that reaches it.

      A_j = C_j + D_j,    A_1 + ... + A_j: cost of a query that model j answers

  The last model's answer is final, so that there is no D_K.

  Args:
    own: Cost of each of the K models' answers, in the order of the cascade.
    deciding: Cost D_j of each decision about the answer of a model but the last; none if empty.
    discarded: False to leave out the answers that are thrown away: A_j = C_j - C_(j-1) + D_j.

  Returns:
    Costs by model.
  """
  costs = np.array(own, float) if discarded else np.diff(own, axis=0, prepend=0.0)
  for row, decision in zip(costs[:-1], deciding, strict=False):
    row += decision
  return costs


def training_step(tokens: float, *, parameters: int, teacher: int = 0) -> float:
  """FLOPs of a training step, `(6 P + 2 P_T) tokens`: a backward pass costs two forward passes.

  Args:
    tokens: Number of tokens of a batch.
    parameters: Number of parameters P of the model that is trained.
    teacher: Number of parameters P_T of a frozen model that runs beside it; 0 without one.
  """
  return tokens * (3 * flops_per_token(parameters) + flops_per_token(teacher))


def aided_training(
  steps: Float[np.ndarray, '*M'], *, distill_steps: int, kappa: float
) -> Float[np.ndarray, '*M']:
  """Cost of the first `steps` steps, in steps without a teacher; each with one costs `kappa`.

  Args:
    steps: Numbers of steps.
    distill_steps: Number of first steps in which a teacher runs.
    kappa: Cost of a step with a teacher over that of one without, in FLOPs or seconds; in FLOPs
      `1 + 2 P_T / (6 P)`.
  """
  steps = np.asarray(steps)
  return steps + (kappa - 1) * np.minimum(steps, distill_steps)


def aided_saving(parity: float, total: float, *, distill_steps: int, kappa: float) -> float:
  """Share of the cost of `total` plain steps that is saved if `parity` aided steps are as good."""
  cost = aided_training(np.asarray(parity), distill_steps=distill_steps, kappa=kappa)
  return float(1 - cost / total)
