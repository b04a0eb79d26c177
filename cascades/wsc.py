"""Whether an answer names what a pronoun refers to: WSC as T5 asks it.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.4; determiners as in their code.
"""

from __future__ import annotations

# Begins the target of a candidate that the pronoun does not refer to.
OTHER_THAN = 'other than '

_DETERMINERS = frozenset({
  'a', 'an', 'each', 'every', 'few', 'her', 'his', 'many', 'much', 'my', 'our', 'some', 'that',
  'the', 'their', 'these', 'this', 'those', 'which', 'whose', 'your',
})  # fmt: skip


def quality(target: str, answer: str) -> float:
  """1 if the answer names the target, or if it names another where that is asked; else 0.

  Determiners alone name nothing, and are never right. The target itself is, of either kind.
  """
  if not _words(answer):
    return 0.0
  if answer.strip() == target:
    return 1.0
  candidate = target.removeprefix(OTHER_THAN)
  return float(same(candidate, answer) == (candidate == target))


def same(one: str, other: str) -> bool:
  """Whether the words of either are among the words of the other, but for determiners and case.

  'bunny' may be 'the fuzzy bunny', but 'hat' is not "Bob's hat": both have an apostrophe or
  neither has.
  """
  ours, theirs = _words(one), _words(other)
  if any("'" in word for word in ours) != any("'" in word for word in theirs):
    return False
  return bool(ours and theirs) and (ours <= theirs or theirs <= ours)


def _words(text: str) -> set[str]:
  return set(text.lower().split()) - _DETERMINERS
