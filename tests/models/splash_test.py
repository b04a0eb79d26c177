"""The kernel, interpreted, against plain attention; only TPU programs contain it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades.models import attention, decoder, splash
from cascades.runtime import partitioning
from cascades.types import Batch
from tests import testing

B, T, N, K, H = 2, 256, 4, 2, 16
SEGMENTS = jnp.asarray(np.stack([np.repeat([1, 2, 0], [100, 120, 36]), np.repeat([1], [T])]))


def draw():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  return normal(B, T, N, H), attention.KeyValue(normal(B, K, H, T), normal(B, K, T, H))


def plain(query, key_value, *, segments=SEGMENTS, window=None, scale=0.3, cap=None):
  mask = attention.causal(attention.self_attention_mask(jnp.arange(T)[None], segments))
  in_window = mask.relative_positions > -(window or T)
  return attention.attend(query, [key_value], mask.visible & in_window, scale=scale, cap=cap)


OPTIONS = {'window': None, 'scale': 0.3, 'cap': None}


@pytest.mark.parametrize('changes', [{}, {'window': 5}, {'window': 130, 'cap': 4.0}], ids=str)
def test_the_kernel_and_its_gradient_are_those_of_plain_attention(changes):
  weight = jnp.asarray(np.random.default_rng(1).standard_normal((B, T, N, H)), jnp.float32)
  weight *= (SEGMENTS > 0)[:, :, None, None]  # nobody reads what padding attends to
  kernel = functools.partial(splash.attend, segments=SEGMENTS, interpret=True)
  results = []
  for attend in (plain, kernel):
    attend = functools.partial(attend, **OPTIONS | changes)
    loss = lambda query, key_value, attend=attend: jnp.sum(weight * attend(query, key_value))
    results.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(*draw()))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), *results)


def test_every_device_attends_for_its_own_rows_and_heads():
  expected = plain(*draw())
  with partitioning.use(
    partitioning.make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
  ):
    attend = jax.jit(functools.partial(splash.attend, interpret=True, **OPTIONS))
    compiled = attend.lower(*draw(), SEGMENTS).compile()
    np.testing.assert_allclose(
      compiled(*draw(), SEGMENTS) * (SEGMENTS > 0)[:, :, None, None],
      expected * (SEGMENTS > 0)[:, :, None, None],
      atol=2e-4,
    )
  assert 'all-gather' not in compiled.as_text()


WINDOWED = decoder.DecoderConfig(
  **{**vars(testing.TINY_DECODER), 'window_pattern': (3, None, 3), 'num_layers': 3}
)


def hidden(config, length, key=None):
  batch = Batch(jnp.ones((2, length), jnp.int32), jnp.ones((2, length), jnp.int32), None)
  return jax.make_jaxpr(testing.build(config).hidden)(batch, key)


def test_only_rows_and_models_that_the_kernel_supports_contain_it():
  changed = lambda **fields: decoder.DecoderConfig(**{**vars(testing.TINY_DECODER), **fields})
  assert 'pallas_call' in str(hidden(testing.TINY_DECODER, 128))
  assert str(hidden(WINDOWED, 128)).count('name=splash') >= 2
  for jaxpr in (
    hidden(testing.TINY_DECODER, 100),
    hidden(changed(bidirectional_prompt=False, relative_attention_num_buckets=8), 128),
    hidden(changed(dropout_rate=0.1), 128, jax.random.key(1)),
  ):
    assert 'pallas_call' not in str(jaxpr)


def test_on_cpu_attention_is_plain():
  config = WINDOWED
  tokens = jnp.asarray(np.random.default_rng(0).integers(1, testing.VOCAB, (2, 128)))
  model = testing.build(config)
  with_kernel = model.hidden(Batch(tokens, tokens, None))
  without_kernel = model.hidden(Batch(tokens[:, :100], tokens[:, :100], None))
  np.testing.assert_allclose(with_kernel[:, :100], without_kernel, atol=1e-5)
