"""Other servers of the same weights beside `serve`: throughput and latency of chats through HTTP.

    python -m benchmarks.serving_peers --run=runs/smollm2 --exported=runs/smollm2_exported
      --transformers=peers/bin/python --llama_cpp=peers/bin/python --gguf=model.gguf

One server at a time, each in a process of its own, and `infer`'s generator with one prompt a batch:
the same chats, greedy, and the same number of connections. Interrupted, it resumes after the rows
in the output that have the same settings and commit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import http.client
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from benchmarks import bars, serving
from benchmarks.bars import Measured
from cascades.inference import trained_model
from cascades.inference.trained_model import Checkpoint
from cascades.runtime.partitioning import Devices
from cascades.serving import local_model
from cascades.serving.exchanges import Message
from cascades.serving.slots import Room

NAMES = ('rain', 'iron', 'a river', 'bread', 'the moon', 'glass', 'salt', 'a clock', 'wool', 'tea')
ASKED = ('What is {} made of?', 'Write one sentence about {}.', 'Where does {} come from?',
         'Name two uses of {}.')  # fmt: skip
START_SECONDS = 300.0
ANSWER_SECONDS = 300.0


class Peer(NamedTuple):
  """A server to start: its command, where `{port}` is the port, and its model's name."""

  command: Sequence[str]
  model: str


class Reply(NamedTuple):
  """An answer through HTTP."""

  text: str
  tokens: int
  seconds: float


def chats(count: int) -> list[str]:
  """Questions, no two alike up to 40."""
  return [ASKED[i % len(ASKED)].format(NAMES[i // len(ASKED) % len(NAMES)]) for i in range(count)]


def peers(options: argparse.Namespace, room: Room) -> dict[str, Peer]:
  """Servers that the options name."""
  settings = {
    'SMALL': options.run, 'THRESHOLD': serving.NEVER, 'SLOTS': room.slots, 'CONCURRENCY': 1024,
    'MAX_PROMPT': room.max_prompt, 'MAX_TOKENS': room.max_tokens, 'MAX_WAITING': room.max_waiting,
  }  # fmt: skip
  own = [sys.executable, '-m', 'cascades.serve', '--gin_file=runs/serve.gin', '--gin.PORT={port}']
  result = {'serve': Peer([*own, *(f'--gin.{k}={v!r}' for k, v in settings.items())], 'cascade')}
  if options.transformers:
    command = [
      options.transformers, '-m', 'transformers.cli.transformers', 'serve', '--host', '127.0.0.1',
      '--port', '{port}', '--device', 'cpu', '--dtype', 'float32',
    ]  # fmt: skip
    exported = os.path.abspath(options.exported)
    result['transformers'] = Peer(command, exported)
    if options.batching:
      result['transformers, batching'] = Peer([*command, '--continuous-batching'], exported)
  if options.llama_cpp:
    context = str(room.max_prompt + room.max_tokens)
    command = [
      options.llama_cpp, '-m', 'llama_cpp.server', '--model', options.gguf, '--port', '{port}',
      '--n_ctx', context, '--n_threads', str(os.cpu_count()),
    ]  # fmt: skip
    result['llama.cpp, 4 bits'] = Peer(command, 'model')
  return result


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[int]:
  """Context manager of a server; gives its port once it lists its models."""
  port = serving.free_port()
  with subprocess.Popen([word.replace('{port}', str(port)) for word in peer.command]) as process:
    try:
      deadline = time.monotonic() + START_SECONDS
      while not serving.answers_at(port, '/v1/models'):
        if process.poll() is not None or time.monotonic() > deadline:
          raise RuntimeError(f'{peer.command[2]} did not start; its messages are above.')
        time.sleep(0.2)
      yield port
    finally:
      process.terminate()
      try:
        process.wait(30)
      except subprocess.TimeoutExpired:
        process.kill()


def ask(port: int, model: str, most: int, texts: Sequence[str]) -> list[Reply]:
  """Answers to questions on one connection, one after another."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=ANSWER_SECONDS)
  replies = []
  for text in texts:
    body = {'model': model, 'messages': [{'role': 'user', 'content': text}], 'max_tokens': most,
            'temperature': 0, 'stream': False}  # fmt: skip
    start = time.perf_counter()
    connection.request(
      'POST', '/v1/chat/completions', json.dumps(body), {'Content-Type': 'application/json'}
    )
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
      raise RuntimeError(f'{model} answered {response.status}: {content.decode()[:500]}')
    answer = json.loads(content)
    written = answer['choices'][0]['message']['content']
    replies.append(Reply(written, answer['usage']['completion_tokens'], seconds))
  connection.close()
  return replies


def load(
  name: str, peer: Peer, texts: Sequence[str], most: int, counts: Sequence[int]
) -> Iterator[Measured]:
  """Throughput and latency of a server at each number of connections."""
  with running(peer) as port:
    ask(port, peer.model, most, texts[:2])  # loads the model
    for count in counts:
      shares = [texts[start::count] for start in range(min(count, len(texts)))]
      start = time.perf_counter()
      with futures.ThreadPoolExecutor(count) as pool:
        replies = [
          reply
          for own in pool.map(functools.partial(ask, port, peer.model, most), shares)
          for reply in own
        ]
      seconds = time.perf_counter() - start
      rate = sum(reply.tokens for reply in replies) / seconds
      yield Measured(f'{name}: {count} at a time: throughput', rate, 'tokens/s')
      yield from serving.quantiles(f'{name}: {count} at a time', [r.seconds for r in replies])


def sequential(run: str, texts: Sequence[str], room: Room) -> Iterator[Measured]:
  """The generator of `infer`, one chat a batch."""
  checkpoint, devices = Checkpoint(run), Devices(mesh=serving.one_device)
  with devices.use():
    loaded = trained_model.load(checkpoint, rules=devices.rules)
  model = local_model.load(checkpoint, dataclasses.replace(room, slots=1), devices=devices)
  model.engine.wait_until_ready()
  generate = serving.Sequential(loaded, model, room.max_tokens)
  prompts = [(Message('user', text),) for text in texts]
  generate(prompts)  # compiles
  start = time.perf_counter()
  given = generate(prompts)
  seconds = time.perf_counter() - start
  model.close()
  rate = sum(len(answer.tokens) for answer in given) / seconds
  yield Measured('infer: one by one: throughput', rate, 'tokens/s')
  yield from serving.quantiles('infer: one by one', [answer.seconds for answer in given])


def stored_rows(output: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, Measured]:
  """Rows of an output of the same settings and commit, by name."""
  if not output.exists():
    return {}
  content = json.loads(output.read_text())
  commit = bars.machine()['commit']
  if content['settings'] != json.loads(json.dumps(dict(settings))) or content['commit'] != commit:
    return {}
  return {row['what']: Measured(row['what'], row['value'], row['unit']) for row in content['rows']}


def resumed(
  stored: Mapping[str, Measured], parts: Mapping[str, tuple[int, Callable[[], Iterator[Measured]]]]
) -> Iterator[Measured]:
  """Rows of each part: the stored ones if all are there, else measured anew.

  Args:
    stored: Rows by name.
    parts: Number of rows and a function that measures, by the beginning of the names of its rows.
  """
  for name, (count, measure) in parts.items():
    own = [row for what, row in stored.items() if what.startswith(f'{name}: ')]
    yield from own if len(own) == count else measure()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--run', required=True, help='run directory of a model with a chat template')
  parser.add_argument('--exported', help='the same model as `cascades.export` wrote it')
  parser.add_argument('--transformers', help='Python of a venv with transformers[serving]')
  parser.add_argument('--batching', action='store_true', help='also its continuous batching')
  parser.add_argument('--llama_cpp', help='Python of a venv with llama-cpp-python[server]')
  parser.add_argument('--gguf', help='the same model as GGUF')
  parser.add_argument('--requests', type=int, default=32)
  parser.add_argument('--concurrent', type=int, nargs='+', default=[1, 8, 32])
  parser.add_argument('--max_prompt', type=int, default=64)
  parser.add_argument('--max_tokens', type=int, default=32)
  parser.add_argument('--output', type=pathlib.Path, default=bars.RESULTS / 'serving_peers.json')
  options = parser.parse_args()
  if (options.transformers and not options.exported) or (options.llama_cpp and not options.gguf):
    parser.error('--transformers needs --exported, and --llama_cpp needs --gguf')
  texts, counts = chats(options.requests), options.concurrent
  room = Room(
    slots=max(counts), max_prompt=options.max_prompt, max_tokens=options.max_tokens,
    max_waiting=len(texts),
  )  # fmt: skip
  settings = {name: value for name, value in vars(options).items() if name != 'output'}
  parts: dict[str, tuple[int, Callable[[], Iterator[Measured]]]] = {
    'infer': (3, functools.partial(sequential, options.run, texts, room))
  }
  for name, peer in peers(options, room).items():
    measure = functools.partial(load, name, peer, texts, options.max_tokens, counts)
    parts[name] = 3 * len(counts), measure
  rows = resumed(stored_rows(options.output, settings), parts)
  bars.report('servers of the same weights', rows, options.output, settings)


if __name__ == '__main__':
  main()
