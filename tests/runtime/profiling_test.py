"""Which steps are traced."""

import jax
import jax.numpy as jnp
import pytest

from cascades.runtime import profiling


@pytest.fixture
def calls(monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda directory: calls.append('start'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: calls.append('stop'))
  return calls


def run(profiler, steps, calls):
  with profiler:
    for number in steps:
      with profiler.step(number):
        calls.append(number)


def test_the_steps_asked_for_are_traced_and_no_others(calls):
  run(profiling.Profiler('somewhere', '2:3'), range(1, 6), calls)
  assert calls == [1, 'start', 2, 3, 'stop', 4, 5]


def test_a_run_that_ends_early_still_writes_its_trace(calls):
  run(profiling.Profiler('somewhere', '2:9'), range(1, 4), calls)
  assert calls == [1, 'start', 2, 3, 'stop']


def test_nothing_is_traced_unless_asked(calls):
  run(profiling.Profiler('somewhere', None), range(1, 4), calls)
  assert calls == [1, 2, 3]


@pytest.mark.parametrize('steps', ['5', '5:', '0:3', '4:3', 'a:b'])
def test_a_range_that_is_none_is_an_error(steps):
  with pytest.raises(ValueError, match='1 <= a <= b'):
    profiling.Profiler('somewhere', steps)


def test_a_real_trace_lies_in_the_directory(tmp_path):
  with profiling.Profiler(tmp_path, '1:1') as profiler, profiler.step(1):
    jnp.ones(3).block_until_ready()
  assert list(tmp_path.rglob('*.xplane.pb'))
