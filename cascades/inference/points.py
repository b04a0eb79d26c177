"""Points of a sweep over ways to decode with two models: rules, alphas, drafts, temperatures."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from cascades import target_distributions
from cascades.runtime import ranges

SMALL, LARGE = 'small', 'large'
DRAFTER = 'drafter'  # the small model with a shortlist
SEQUENTIAL = 'token_'  # before the name of a rule: its sequential token cascade

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_SIGNED = (-0.3, -0.1, 0.0, 0.1, 0.3)
_NATS = (0.1, 0.3, 0.7, 1.5, 3.0)
ALPHAS: Mapping[str, Sequence[float]] = MappingProxyType({
  'chow_log': _NATS,
  'diff': _SIGNED,
  'diff_log': (-0.7, -0.3, 0.0, 0.3, 0.7),
  'opt': (-0.5, -0.1, 0.1, 0.3, 0.7),
  'opt_log': (-0.7, -0.3, 0.3, 0.7, 1.5),
  'bild': (0.3, 0.7, 1.5, 3.0, 6.0),
  'token_v1': _SIGNED,
  'token_v2': (0.0, 0.1, 0.3, 0.5, 0.7),
  'typical': (0.01, 0.05, 0.1, 0.3, 0.5),
})  # fmt: skip


class DecodingPoint(NamedTuple):
  """A way to decode with two models.

  Attributes:
    rule: Name in `target_distributions.RULES` for speculative decoding; 'token_' and the name of a
      rule for its sequential token cascade; 'small' or 'large' without a gamma for either alone.
    temperature: Of both models; 0 is greedy.
    alpha: Number of the rule; None if it has none.
    gamma: Drafts of a block; None if nothing is drafted.
  """

  rule: str
  temperature: float
  alpha: float | None = None
  gamma: int | None = None

  @property
  def both(self) -> bool:
    """True if both models decode."""
    return self.gamma is not None or self.rule not in (SMALL, LARGE)

  @property
  def name(self) -> str:
    """Name of folders and reports, such as 'opt-alpha0.1-gamma5-temperature0'."""
    alpha = '' if self.alpha is None else f'-alpha{self.alpha:g}'
    gamma = '' if self.gamma is None else f'-gamma{self.gamma}'
    return f'{self.rule}{alpha}{gamma}-temperature{self.temperature:g}'


def grid(
  rules: Mapping[str, Sequence[float] | None],
  token_cascades: Mapping[str, Sequence[float] | None],
  *,
  gammas: Sequence[int],
  temperatures: Sequence[float],
) -> list[DecodingPoint]:
  """All points of a sweep: either model alone, then token cascades, then rules, by temperature.

  Args:
    rules: Alphas of each rule that runs speculatively; None for ALPHAS, or where the rule has none.
    token_cascades: The same for sequential token cascades.
    gammas: Numbers of drafts.
    temperatures: Temperatures of both models.

  Raises:
    ValueError: A rule is unknown, or a number is out of range or given twice.
  """
  ranges.check({f'GAMMAS[{i}]': gamma for i, gamma in enumerate(gammas)}, least=1, integer=True)
  ranges.check({f'TEMPERATURES[{i}]': t for i, t in enumerate(temperatures)}, least=0)
  if unfit := sorted(set(token_cascades) - set(target_distributions.SEQUENTIAL)):
    raise ValueError(
      f'TOKEN_CASCADES has {unfit[0]!r}, which a sequential token cascade cannot run: it takes '
      f'{" or ".join(target_distributions.SEQUENTIAL)}; give {unfit[0]!r} in RULES.'
    )
  points = []
  for temperature in temperatures:
    points += [DecodingPoint(model, temperature) for model in (SMALL, LARGE)]
    points += [
      DecodingPoint(f'{SEQUENTIAL}{rule}', temperature, alpha)
      for rule, alpha in _pairs(token_cascades, 'TOKEN_CASCADES')
    ]
    points += [
      DecodingPoint(rule, temperature, alpha, int(gamma))
      for (rule, alpha), gamma in itertools.product(_pairs(rules, 'RULES'), gammas)
    ]
  names = [point.name for point in points]
  if repeated := next((name for name in names if names.count(name) > 1), None):
    raise ValueError(f'{repeated} is one point given twice: give each alpha and number once.')
  return points


def usual_alphas(rule: str) -> Sequence[float]:
  """Alphas of a rule that takes one, from ALPHAS or shares of 1."""
  return ALPHAS.get(rule, _SHARES)


def _pairs(
  rules: Mapping[str, Sequence[float] | None], setting: str
) -> Iterator[tuple[str, float | None]]:
  """Each rule with each of its alphas."""
  for rule, given in rules.items():
    if target_distributions.named(rule, 0.0).alphas is None:
      if given:
        raise ValueError(f'{setting} gives {rule!r} alphas, and it has none: give it None.')
      yield rule, None
      continue
    for alpha in usual_alphas(rule) if given is None else given:
      target_distributions.named(rule, alpha)
      yield rule, float(alpha)
