"""Tokens of a request's prompt for each model, counted when a router asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cascades.serving.exchanges import AnyPrompt, Role
from cascades.serving.legs import Member


class PromptCounts(Mapping[Role, Sequence[float]]):
  """Tokens of one prompt by model; nan of models that cannot tell before they answer."""

  def __init__(self, members: Mapping[Role, Member], prompt: AnyPrompt) -> None:
    self._members, self._prompt = members, prompt

  def __getitem__(self, role: Role) -> Sequence[float]:
    return (self._members[role].model.count(self._prompt),)

  def __iter__(self) -> Iterator[Role]:
    return iter(self._members)

  def __len__(self) -> int:
    return len(self._members)
