"""The file of a policy that changes while the server runs."""

import asyncio
import functools

import pytest

from cascades.evaluation import pooling
from cascades.serving import served_policy
from cascades.serving.live_policy import LivePolicy
from tests.serving.decisions_test import stored


class Watched:
  def __init__(self, tmp_path):
    self.path = stored(tmp_path)
    self.read = functools.partial(served_policy.from_file, str(self.path))
    self.rules, self.notes = [self.read()], {}
    self.live = LivePolicy(str(self.path), self.read, self.rules.append, self.notes)

  def look(self):
    return asyncio.run(self.live.look())

  @property
  def threshold(self):
    return self.rules[-1].rules[0].thresholds[pooling.POOLED]


def test_a_new_policy_takes_effect(tmp_path):
  watched = Watched(tmp_path)
  assert not watched.look()
  stored(tmp_path, thresholds={pooling.POOLED: 0.75})
  assert watched.look()
  assert (watched.threshold, watched.notes) == (0.75, {})
  assert not watched.look()


@pytest.mark.parametrize('content', [b'', b'{', b'{"version": 2}', b'[1]', None])
def test_a_corrupt_policy_changes_nothing_and_is_said_once(tmp_path, content, caplog):
  watched = Watched(tmp_path)
  watched.path.unlink()
  if content is not None:
    watched.path.write_bytes(content)
  assert not watched.look()
  assert not watched.look()
  assert watched.threshold == 0.5
  assert 'The policy before is kept, since' in watched.notes['POLICY']
  assert len(caplog.records) == 1
  stored(tmp_path, thresholds={pooling.POOLED: 0.25})
  assert watched.look()
  assert (watched.threshold, watched.notes) == (0.25, {})


def test_a_policy_of_a_decider_that_cannot_run_is_not_taken(tmp_path):
  watched = Watched(tmp_path)
  entry = {'name': 'confidence', 'reads': ['confidence'], 'flops': 0.0}
  stored(tmp_path, decider=entry)
  assert not watched.look()
  assert 'which a server does not have' in watched.notes['POLICY']


def test_watching_looks_again_and_again(tmp_path):
  watched = Watched(tmp_path)

  async def run():
    task = asyncio.create_task(watched.live.watch(0.01))
    stored(tmp_path, thresholds={pooling.POOLED: 0.75})
    async with asyncio.timeout(3):
      while watched.threshold != 0.75:
        await asyncio.sleep(0.01)
    task.cancel()

  asyncio.run(run())
