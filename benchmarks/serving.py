"""Throughput and latency of a served model, against decoding one prompt after another.

    python -m benchmarks.serving --run=runs/demo/large
    python -m benchmarks.serving --run=runs/smollm2 --prompts=prompts.txt --max_tokens=32

First within a process: the generator of `infer` with one prompt a batch, and the engine with 1, 8
and 32 requests at a time, by turns. Then through `python -m cascades.serve` in a process of its own
on this machine: the time of the decision as a share of that of the small answer, and the time that
HTTP adds to both. A decider scores every answer, and none is deferred.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import http.client
import json
import pathlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from cascades.data import converters
from cascades.inference import answers, trained_model
from cascades.inference.trained_model import Checkpoint, TrainedModel
from cascades.runtime import partitioning
from cascades.runtime.partitioning import Devices
from cascades.serving import local_model
from cascades.serving.exchanges import Message, Question
from cascades.serving.local_model import LocalModel
from cascades.serving.slots import Room

START_SECONDS = 600.0  # for a server to load its model and compile
AnyPrompt: TypeAlias = str | tuple[Message, ...]
NEVER = 1e9  # threshold of a score that no answer reaches


class Answer(NamedTuple):
  """An answer: its tokens, and seconds from its request to its end."""

  tokens: tuple[int, ...]
  seconds: float


def spelled_words(count: int) -> list[str]:
  """Random words of 2 to 12 letters with spaces between them, as the demo's task reads them."""
  rng = random.Random(0)
  return [' '.join(rng.choices('abcdefghijklmnop', k=rng.randint(2, 12))) for _ in range(count)]


def one_device() -> jax.sharding.Mesh:
  return partitioning.make_mesh(devices=jax.devices()[:1])


class Sequential:
  """The generator of `infer`, one prompt a batch."""

  def __init__(self, model: TrainedModel, served: LocalModel, max_tokens: int):
    self._generator = answers.Generator(model, max_tokens)
    self._served = served

  def __call__(self, prompts: Sequence[AnyPrompt]) -> list[Answer]:
    return [self._answer(prompt) for prompt in prompts]

  def _answer(self, prompt: AnyPrompt) -> Answer:
    start = time.perf_counter()
    tokens = self._served.tokens(prompt)
    width = min(width for width in self._served.engine.plan.prompt_lengths if width >= len(tokens))
    with partitioning.use(one_device()):
      answer = self._generator.generate(converters.pad([(tokens,)], width), np.array([0]))
    chosen = tuple(answer.tokens[0, answer.mask[0]].tolist())
    return Answer(chosen, time.perf_counter() - start)


def concurrent(model: LocalModel, texts: Sequence[str], count: int) -> list[Answer]:
  """Answers of the engine to `count` requests at a time, in the order of the texts."""

  async def ask_all() -> list[Answer]:
    places = asyncio.Semaphore(count)

    async def ask(text: str) -> Answer:
      async with places:
        start = time.perf_counter()
        pieces = [piece async for piece in model.answer(Question(text))]
        tokens = tuple(token.id for piece in pieces for token in piece.tokens)
        return Answer(tokens, time.perf_counter() - start)

    return await asyncio.gather(*(ask(text) for text in texts))

  return asyncio.run(ask_all())


def in_process(
  run: str, texts: Sequence[str], room: Room, counts: Sequence[int], turns: int
) -> Iterator[Measured]:
  """The engine and the generator by turns."""
  checkpoint = Checkpoint(run)
  devices = Devices(mesh=one_device)
  with devices.use():
    loaded = trained_model.load(checkpoint, rules=devices.rules)
  model = local_model.load(checkpoint, room, devices=devices)
  model.engine.wait_until_ready()
  ways: dict[str, Callable[[Sequence[str]], list[Answer]]] = {
    'sequential': Sequential(loaded, model, room.max_tokens),
    **{f'{count} at a time': functools.partial(concurrent, model, count=count) for count in counts},
  }
  expected = ways['sequential'](texts)  # also compiles
  rates: dict[str, list[float]] = {name: [] for name in ways}
  latencies: dict[str, list[float]] = {name: [] for name in ways}
  differing = 0
  for _ in range(turns):
    for name, way in ways.items():
      start = time.perf_counter()
      given = way(texts)
      seconds = time.perf_counter() - start
      rates[name].append(sum(len(answer.tokens) for answer in given) / seconds)
      latencies[name] += [answer.seconds for answer in given]
      differing += sum(a.tokens != b.tokens for a, b in zip(given, expected, strict=True))
  model.close()
  yield Measured('answers that are not those of infer', differing, 'answers', at_most=1)
  for name in ways:
    yield Measured(f'{name}: throughput', median(rates[name]), 'tokens/s')
    if name != 'sequential':
      ratios = [rate / base for rate, base in zip(rates[name], rates['sequential'], strict=True)]
      yield Measured(f'{name}: throughput over sequential', median(ratios), 'x')
    yield from quantiles(name, latencies[name])


def quantiles(name: str, seconds: Sequence[float]) -> Iterator[Measured]:
  for share in (50, 95):
    value = 1e3 * float(np.percentile(seconds, share))
    yield Measured(f'{name}: latency, {share} %', value, 'ms')


def free_port() -> int:
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return int(free.getsockname()[1])


@contextlib.contextmanager
def server(run: str, room: Room) -> Iterator[int]:
  """Context manager of a server in a process of its own; gives its port."""
  port = free_port()
  settings = {
    'SMALL': run, 'THRESHOLD': NEVER, 'PORT': port, 'SLOTS': room.slots, 'CONCURRENCY': 1024,
    'MAX_PROMPT': room.max_prompt, 'MAX_TOKENS': room.max_tokens, 'MAX_WAITING': room.max_waiting,
  }  # fmt: skip
  command = [sys.executable, '-m', 'cascades.serve', '--gin_file=runs/serve.gin']
  process = subprocess.Popen(command + [f'--gin.{k}={v!r}' for k, v in settings.items()])
  try:
    deadline = time.monotonic() + START_SECONDS
    while not answers_at(port, '/readyz'):
      if process.poll() is not None or time.monotonic() > deadline:
        raise RuntimeError('The server did not start; its messages are above.')
      time.sleep(0.2)
    yield port
  finally:
    process.terminate()
    process.wait(60)


def answers_at(port: int, path: str) -> bool:
  """True once a server answers at a path."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  try:
    connection.request('GET', path)
    return connection.getresponse().status == 200
  except OSError:
    return False
  finally:
    connection.close()


def posted(port: int, texts: Sequence[str]) -> list[tuple[float, dict[str, Any]]]:
  """Seconds and responses of requests on one connection, one after another."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=120)
  results = []
  for text in texts:
    body = json.dumps({'model': 'cascade', 'prompt': text, 'temperature': 0})
    start = time.perf_counter()
    connection.request('POST', '/v1/completions', body, {'Content-Type': 'application/json'})
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
      raise RuntimeError(f'The server answered {response.status}: {content.decode()[:500]}')
    results.append((seconds, json.loads(content)))
  connection.close()
  return results


def through_http(
  run: str, texts: Sequence[str], room: Room, counts: Sequence[int], turns: int
) -> Iterator[Measured]:
  """The same model behind a socket."""
  with server(run, room) as port:
    posted(port, texts[:8])
    alone = [result for _ in range(turns) for result in posted(port, texts)]
    legs = [response['cascade']['models'][0]['seconds'] for _, response in alone]
    decisions = [response['cascade']['decision_seconds'] for _, response in alone]
    added = [
      seconds - leg - decision
      for (seconds, _), leg, decision in zip(alone, legs, decisions, strict=True)
    ]
    yield Measured('decision', 1e3 * median(decisions), 'ms')
    share = median(d / leg for d, leg in zip(decisions, legs, strict=True))
    yield Measured('decision, of the small answer', share, 'of 1', at_most=0.01)
    yield Measured('HTTP adds to a request', 1e3 * median(added), 'ms', at_most=2.0)
    for count in counts:
      yield from _load(port, texts, count, turns)


def _load(port: int, texts: Sequence[str], count: int, turns: int) -> Iterator[Measured]:
  """Throughput and latency of `count` connections."""
  shares = [texts[start::count] for start in range(min(count, len(texts)))]
  rates, latencies = [], []
  with futures.ThreadPoolExecutor(count) as pool:
    for _ in range(turns):
      start = time.perf_counter()
      results = [
        pair for pairs in pool.map(functools.partial(posted, port), shares) for pair in pairs
      ]
      seconds = time.perf_counter() - start
      tokens = sum(response['usage']['completion_tokens'] for _, response in results)
      rates.append(tokens / seconds)
      latencies += [seconds for seconds, _ in results]
  name = f'HTTP, {count} at a time'
  yield Measured(f'{name}: throughput', median(rates), 'tokens/s')
  yield from quantiles(name, latencies)


def measure(
  run: str, texts: Sequence[str], room: Room, counts: Sequence[int], turns: int
) -> Iterator[Measured]:
  yield from in_process(run, texts, room, counts, turns)
  yield from through_http(run, texts, room, counts, turns)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--run', required=True, help='run directory of the model')
  parser.add_argument('--prompts', help='file of prompts, one a line; spelled words by default')
  parser.add_argument('--requests', type=int, default=128)
  parser.add_argument('--concurrent', type=int, nargs='+', default=[1, 8, 32])
  parser.add_argument('--slots', type=int, default=32)
  parser.add_argument('--max_prompt', type=int, default=64)
  parser.add_argument('--max_tokens', type=int, default=32)
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument('--output', default=bars.RESULTS / 'serving.json')
  options = parser.parse_args()
  if options.prompts:
    texts = pathlib.Path(options.prompts).read_text().splitlines()[: options.requests]
  else:
    texts = spelled_words(options.requests)
  room = Room(
    slots=options.slots,
    max_prompt=options.max_prompt,
    max_tokens=options.max_tokens,
    max_waiting=len(texts),
  )
  measured = measure(options.run, texts, room, options.concurrent, options.turns)
  bars.report('a served model', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
