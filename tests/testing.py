"""Tiny models and batches that tests share."""

from __future__ import annotations

import contextlib
import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cascades.models import decoder, t5
from cascades.types import Batch, LanguageModel, Params, Prompt

VOCAB = 24

TINY_T5 = t5.T5Config(
  vocab_size=VOCAB,
  emb_dim=16,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=2,
  head_dim=6,
  mlp_dim=20,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=12,
)

TINY_DECODER = decoder.DecoderConfig(
  vocab_size=VOCAB,
  emb_dim=16,
  num_heads=4,
  num_kv_heads=2,
  num_layers=2,
  head_dim=6,
  mlp_dim=20,
)

# Every option at once: Gemma 2's soft caps, Gemma 3's mixed layers, Qwen's biases.
TINY_EVERYTHING = decoder.DecoderConfig(
  vocab_size=VOCAB,
  emb_dim=16,
  num_heads=4,
  num_kv_heads=2,
  num_layers=3,
  head_dim=6,
  mlp_dim=20,
  mlp_activations=('gelu', 'linear'),
  logits_via_embedding=False,
  embedding_scale=4.0,
  norm_offset=1.0,
  post_norms=True,
  qk_norm=True,
  qkv_bias=True,
  query_scale=0.3,
  attention_softcap=5.0,
  logit_softcap=3.0,
  window_pattern=(3, 3, None),
  rope_theta_pattern=(100.0, 100.0, 10_000.0),
  rope_factor_pattern=(1.0, 1.0, 8.0),
)

CONFIGS: Mapping[str, t5.T5Config | decoder.DecoderConfig] = {
  't5': TINY_T5,
  'decoder': TINY_DECODER,
  'everything': TINY_EVERYTHING,
}


def weights(
  config: t5.T5Config | decoder.DecoderConfig, *, stddev: float = 0.25
) -> dict[str, np.ndarray]:
  """Random parameters by path, a function of path and shape only: no norm is one, no bias zero.

  RandomState's stream is frozen, a Generator's may change with NumPy; neither compiles anything.
  """
  state = nnx.state(nnx.eval_shape(lambda: config.build(jax.random.key(0))))
  shapes = {'/'.join(path): leaf.shape for path, leaf in nnx.to_flat_state(state)}
  unit = 1.0 - getattr(config, 'norm_offset', 0.0)
  return {
    path: np.float32(
      (unit if path.endswith('scale') else 0.0)
      + stddev * np.random.RandomState(zlib.crc32(path.encode())).standard_normal(shape)
    )
    for path, shape in shapes.items()
  }


@functools.cache
def build(config: t5.T5Config | decoder.DecoderConfig) -> Any:
  """A model with these weights."""
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: config.build(jax.random.key(0))))
  return nnx.merge(graphdef, nnx.traversals.unflatten_mapping(weights(config), sep='/'))


def split(model: LanguageModel) -> tuple[Any, Params]:
  """Split a model into graph definition and nested dict of parameters, as programs do."""
  graphdef, state = nnx.split(model)
  return graphdef, nnx.to_pure_dict(state)


@functools.partial(jax.jit, static_argnums=0)
def logits(graphdef: Any, params: Params, batch: Batch) -> jax.Array:
  """Teacher-forced logits. Parameters are arguments: as constants, XLA would fold them slowly."""
  model = nnx.merge(graphdef, params)
  return model.readout(model.hidden(batch))


def tokens(shape: tuple[int, ...], seed: int = 0, *, vocab: int = VOCAB) -> jax.Array:
  """Random tokens that are neither padding (0), end (1) nor unknown (2)."""
  return jnp.asarray(np.random.RandomState(seed).randint(3, vocab, shape), jnp.int32)


def batch(
  config: t5.T5Config | decoder.DecoderConfig,
  *,
  rows: int = 3,
  source: int = 7,
  target: int = 5,
  seed: int = 0,
) -> Batch:
  """A random batch of full rows; decoder-only targets start behind `source` prompt tokens."""
  prompt = tokens((rows, source), seed)
  targets = tokens((rows, target), seed + 1)
  if config.architecture == 'encoder_decoder':
    inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    return Batch(inputs, targets, jnp.ones(targets.shape), prompt)
  text = jnp.concatenate([prompt, targets], 1)
  weights = jnp.arange(source + target - 1) >= source - 1
  return Batch(text[:, :-1], text[:, 1:], jnp.tile(weights * 1.0, (rows, 1)))


def prompt(*, rows: int = 3, length: int = 7, seed: int = 0) -> Prompt:
  """Random prompts without padding."""
  return Prompt(tokens((rows, length), seed), jnp.full(rows, length, jnp.int32))


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
  """Context manager that gives the compilations in it, and knows that it sees one."""
  compiled: list[str] = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if 'backend_compile' in event else None
  )
  try:
    jax.jit(lambda x: x + 17)(1)
    assert len(compiled) == 1
    compiled.clear()
    yield compiled
  finally:
    jax.monitoring.clear_event_listeners()
