"""Time of each rule's arithmetic beside the call of the large model that it follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from benchmarks.bars import Measured
from cascades import speculative
from cascades.models import decoder
from cascades.target_distributions import RULES, distribution, target_distribution
from cascades.types import Params, Prompt

BLOCK = 5  # drafts of the block that is taken apart
PROMPT = 128  # tokens of prompts of decoder-only models
NOISE = 0.5  # that the small model's logits differ by

Call = Callable[[], Any]


def by_turns(calls: Mapping[str, Call], turns: int, *, least: float = 0.0) -> dict[str, np.ndarray]:
  """Seconds of each call, after one that compiles; turns alternate.

  Args:
    calls: What is timed.
    turns: Number of turns.
    least: Seconds until which further turns are made, so that short calls have many.
  """
  for call in calls.values():
    call()
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  ends, turn = time.perf_counter() + least, 0
  while turn < turns or time.perf_counter() < ends:
    turn += 1
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - start)
  return {name: np.array(values) for name, values in seconds.items()}


def wide(vocab_size: int) -> tuple[Params, nnx.GraphDef, Any]:
  """A decoder-only model of the shape of Gemma 3 270M, with random weights."""
  config = decoder.DecoderConfig(
    vocab_size=vocab_size,
    emb_dim=640,
    num_heads=4,
    num_kv_heads=1,
    num_layers=18,
    head_dim=256,
    mlp_dim=2048,
  )
  graph, state = nnx.split(config.build(jax.random.key(0)))
  return nnx.to_pure_dict(state), graph, config


def of_rules(vocab_size: int, turns: int) -> Iterator[Measured]:
  """Time of each rule's arithmetic beside the call of the large model that it follows.

  Normalizers are measured apart: a block has them for the log-probabilities of its tokens.
  """
  batch, gamma = 8, BLOCK
  params, graph, _ = wide(vocab_size)
  prompt = Prompt(jnp.ones((batch, PROMPT), jnp.int32), jnp.full(batch, PROMPT, jnp.int32))

  @jax.jit
  def prefill(params: Params) -> Any:
    return nnx.merge(graph, params).prefill(prompt, gamma + 1)[1]

  @jax.jit
  def extend(params: Params, cache: Any, tokens: Array) -> Array:
    return nnx.merge(graph, params).extend(tokens, cache)[0]

  cache = prefill(params)
  tokens = jnp.ones((batch, gamma + 1), jnp.int32)
  p_logits = extend(params, cache, tokens)
  noise_key, draft_key, key = jax.random.split(jax.random.key(0), 3)
  q_logits = p_logits + NOISE * jax.random.normal(noise_key, p_logits.shape)
  drafts = jax.random.categorical(draft_key, q_logits[:, :-1])
  keys = jax.random.split(key, batch)

  def rule(name: str) -> Call:
    @jax.jit
    def verify(models: Sequence[tuple[Array, Array]], alpha: Array) -> tuple[Array, Array]:
      def at(row: Array, position: Array) -> tuple[Array, Array]:
        q, p = (distribution(x[row, position], normalizer=n[row, position]) for x, n in models)
        return q.sampled, target_distribution(q, p, rule=RULES[name].target, alpha=alpha)

      return speculative.verify_by_position(keys, drafts, at)

    return lambda: jax.block_until_ready(verify(by_model, jnp.float32(0.3)))

  read: Call = lambda: jax.block_until_ready(extend(params, cache, tokens))
  normalize = jax.jit(lambda *logits: [jax.nn.logsumexp(own, -1) for own in logits])
  by_model = [*zip((q_logits, p_logits), normalize(q_logits, p_logits), strict=True)]
  calls = {
    'extend': read, 'normalizers': lambda: jax.block_until_ready(normalize(q_logits, p_logits))
  }  # fmt: skip
  seconds = by_turns(calls, turns)
  yield Measured(
    f'normalizers of both models / large extend, V {vocab_size:,}',
    float(np.median(seconds['normalizers'] / seconds['extend'])), '',
    note='of all positions, for the log-probabilities of the tokens and for every rule',
  )  # fmt: skip
  for name in RULES:
    verify = rule(name)
    accepted = float(np.mean(verify()[0]))
    seconds = by_turns({'extend': read, name: verify}, turns)
    share = float(np.median(seconds[name] / seconds['extend']))
    yield Measured(
      f'rule {name} / large extend, V {vocab_size:,}', share, '', at_most=0.05,
      note=f'{accepted:.1f} of {gamma} drafts accepted',
    )  # fmt: skip
