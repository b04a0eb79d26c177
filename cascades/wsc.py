"""Quality of answers that name the referent of a pronoun: WSC in T5's format.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.4; determiners as in their code.
"""

from __future__ import annotations

# Prefix of the target where the pronoun does not refer to the candidate.
OTHER_THAN = 'other than '

_DETERMINERS = frozenset({
  'a', 'an', 'each', 'every', 'few', 'her', 'his', 'many', 'much', 'my', 'our', 'some', 'that',
  'the', 'their', 'these', 'this', 'those', 'which', 'whose', 'your',
})  # fmt: skip


def quality(target: str, answer: str) -> float:
  """1 if the answer names the target, or another referent for a target of `OTHER_THAN`; else 0.

  An answer of determiners alone names nothing and is wrong. The target itself is always right.

  Args:
    target: The referent, or `OTHER_THAN` and a candidate that is not the referent.
    answer: The model's answer.
  """
  if not _words(answer):
    return 0.0
  if answer.strip() == target:
    return 1.0
  candidate = target.removeprefix(OTHER_THAN)
  return float(same(candidate, answer) == (candidate == target))


def same(first: str, second: str) -> bool:
  """True if the words of one text contain those of the other, without determiners and case.

  'bunny' may be 'the fuzzy bunny', but 'hat' is not "Bob's hat": both have an apostrophe or
  neither has.
  """
  left, right = _words(first), _words(second)
  if any("'" in word for word in left) != any("'" in word for word in right):
    return False
  return bool(left and right) and (left <= right or right <= left)


def _words(text: str) -> set[str]:
  return set(text.lower().split()) - _DETERMINERS
