"""Responses of OpenAI's API and of servers that imitate it, one a line.

Chat completions with `logprobs: true`, text completions with `logprobs: N`, and both in the
wrappers of batch jobs (`vllm run-batch`, OpenAI's Batch API). A token that ends the answer counts
where the server lists it, as vLLM does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cascades.predictions.importers.answers import LEAST, Answer, field, number, probability
from cascades.predictions.rows import Details


def chat(record: Any, *, choice: int | None = None) -> Answer:
  """Answer of a chat completion.

  Args:
    record: The response.
    choice: Index of the choice to take where there are several.
  """
  chosen = _choice(record, choice)
  message = field(chosen, 'message', dict)
  refusal = field(message, 'refusal', str, default=None)
  text = field(message, 'content', str, default=refusal)
  if text is None:
    raise ValueError('message: neither content nor a refusal, such as of a call of a tool')
  listed = field(chosen, 'logprobs', dict, default={})
  return _answer(record, chosen, text, *_by_token(listed))


def completion(record: Any, *, choice: int | None = None) -> Answer:
  """Answer of a text completion; a prompt that is echoed is taken off.

  Args:
    record: The response.
    choice: Index of the choice to take where there are several.
  """
  chosen = _choice(record, choice)
  text = field(chosen, 'text', str)
  listed = field(chosen, 'logprobs', dict, default={})
  values = field(listed, 'token_logprobs', list, default=None)
  if values is None:  # llama.cpp lists tokens as in a chat
    return _answer(record, chosen, text, *_by_token(listed))
  tops = field(listed, 'top_logprobs', list, default=None) or [None] * len(values)
  if len(tops) != len(values):
    raise ValueError(f'top_logprobs: {len(tops)} places, but {len(values)} of token_logprobs')
  start, prompt = 0, None
  if values and values[0] is None:
    tokens = field(listed, 'tokens', list)
    start = int(number(field(_usage(record), 'prompt_tokens', int), 'prompt_tokens'))
    prompt = ''.join(map(str, tokens[:start]))
    if not text.startswith(prompt):
      raise ValueError(f'text: expected the echoed prompt {prompt!r:.80} first, found {text!r:.80}')
    text = text.removeprefix(prompt)
  alternatives = [
    sorted(
      (p for value in _listed(top).values() if (p := number(value, 'top_logprobs')) > LEAST),
      reverse=True,
    )
    for top in tops[start:]
  ]
  logprobs = [
    probability(value, listed) for value, listed in zip(values[start:], alternatives, strict=True)
  ]
  answer = _answer(record, chosen, text, logprobs, alternatives)
  return answer._replace(inputs=prompt)


def batch(record: Any, *, choice: int | None = None) -> Answer:
  """Answer in a line of a batch job's output.

  Args:
    record: The line.
    choice: Index of the choice to take where there are several.
  """
  name = field(record, 'custom_id', str)
  response = field(record, 'response', dict, default={})
  body = response if 'choices' in response else field(response, 'body', dict, default={})
  if not body:
    error = record.get('error')
    while isinstance(error, dict):
      error = error.get('error', error.get('message'))
    raise ValueError(f'request {name!r} failed: {error!r:.200}')
  first = next(iter(field(body, 'choices', list)), None)
  is_chat = isinstance(first, dict) and 'message' in first
  return (chat if is_chat else completion)(body, choice=choice)._replace(id=name)


def _choice(record: Any, index: int | None) -> Mapping[str, Any]:
  choices = field(record, 'choices', list)
  if index is None and len(choices) > 1:
    raise ValueError(
      f'{len(choices)} choices; a table holds one answer a row: request n=1, or take one with '
      '--choice=0'
    )
  if not (index or 0) < len(choices):
    raise ValueError(f'choice {index or 0} of {len(choices)}')
  chosen = choices[index or 0]
  if not isinstance(chosen, dict):
    raise ValueError(f'choices: expected objects, found {chosen!r:.80}')
  return chosen


def _by_token(
  listed: Mapping[str, Any],
) -> tuple[list[float] | None, list[list[float]] | None]:
  """Log-probabilities of the tokens of a chat's answer, and of the alternatives to each."""
  tokens = field(listed, 'content', list, default=None)
  if tokens is None:
    tokens = field(listed, 'refusal', list, default=None)
  if tokens is None:
    return None, None
  alternatives = [_alternatives(token) for token in tokens]
  logprobs = [
    probability(field(token, 'logprob', (int, float)), tops)
    for token, tops in zip(tokens, alternatives, strict=True)
  ]
  return logprobs, alternatives


def _alternatives(token: Any) -> list[float]:
  """Log-probabilities of the tokens listed at one position, the most likely first."""
  tops = field(token, 'top_logprobs', list, default=[])
  values = [number(field(top, 'logprob', (int, float)), 'logprob') for top in tops]
  return sorted((value for value in values if value > LEAST), reverse=True)


def _listed(top: Any) -> Mapping[str, Any]:
  """Log-probabilities by token at one position, of which null has none."""
  return field({'top_logprobs': top}, 'top_logprobs', dict, default={})


def _usage(record: Any) -> Mapping[str, Any]:
  return field(record, 'usage', dict, default={})


def _answer(
  record: Any,
  chosen: Mapping[str, Any],
  text: str,
  logprobs: Sequence[float] | None,
  alternatives: Sequence[Sequence[float]] | None,
) -> Answer:
  usage = _usage(record)
  counts = {'prompt_tokens': 'prompt_tokens', 'generated_tokens': 'completion_tokens'}
  columns = {name: number(usage[key], key) for name, key in counts.items() if usage.get(key)}
  metadata = field(record, 'metadata', dict, default={})
  return Answer(
    field(metadata, 'id', str, default=None),
    text.strip(),
    logprobs=logprobs,
    details=Details(
      columns=columns, alternatives=alternatives if alternatives and all(alternatives) else None
    ),
    model=field(record, 'model', str, default=''),
    is_cut_off=chosen.get('finish_reason') == 'length',
  )
