"""Many requests and connections: memory stays flat, and clients that idle take nobody's room."""

import asyncio
import contextlib
import gc
import pathlib
import resource

import pytest

from cascades.serving.service import Listening
from tests.serving.app_test import CHAT
from tests.serving.running import UNSURE, serving

pytestmark = pytest.mark.slow


def resident_bytes():
  """Memory of this process."""
  gc.collect()
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def test_memory_stays_flat_over_20_000_requests():
  async def run():
    async with serving(UNSURE) as running, running.client() as client:

      async def ask(count):
        for number in range(count):
          body = CHAT | {'stream': number % 2 == 0, 'logprobs': True, 'top_logprobs': 2}
          reply = await client.post('/v1/chat/completions', json=body)
          assert reply.status_code == 200
          running.records.clear()
          running.small.questions.clear()
          running.large.questions.clear()
        return resident_bytes()

      before = await ask(2000)
      after = await ask(18_000)
      assert after - before < 8 << 20  # 466 bytes a request, of client and server
      assert running.service.running == running.small.running == running.large.running == 0

  asyncio.run(run())


def test_10_000_idle_connections_are_refused_sanely():
  asyncio.run(asyncio.wait_for(_hold_connections(), 300))


async def _hold_connections():
  options = Listening(port=0, connections=100, idle_seconds=5.0, drain_seconds=2.0)
  async with serving(connections=options) as running, running.client() as client:
    host, port = running.url.removeprefix('http://').split(':')
    refused = 0
    assert (await client.post('/v1/chat/completions', json=CHAT)).status_code == 200
    for _ in range(50):
      opened = [await asyncio.open_connection(host, int(port)) for _ in range(200)]
      heads = await asyncio.gather(
        *(asyncio.wait_for(reader.read(12), 0.05) for reader, _ in opened), return_exceptions=True
      )
      refused += heads.count(b'HTTP/1.1 503')
      # A client that was there before them is still answered.
      assert (await client.post('/v1/chat/completions', json=CHAT)).status_code == 200
      for _, writer in opened:
        writer.close()
        with contextlib.suppress(ConnectionError):
          await writer.wait_closed()
    assert refused > 4000
