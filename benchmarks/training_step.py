"""A training step on CPU against PyTorch and transformers, and the cells of the loss by turns.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --models t5 --turns 20

Same shapes, same batch, float32, AdamW; plain, and distillation (w = 0.5) from a large model that
runs beside it. Then CAT-Xent and CAT-Dist over the Xent step plus the large model's forward pass,
each of which is timed by itself in the same run. Needs the extra `reference`.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import losses
from cascades.models import decoder, t5
from cascades.models.abstract import abstract_model, init_params
from cascades.runtime import partitioning
from cascades.training import optimizers, setup, train_step
from cascades.types import Batch, ModelConfig

VOCABULARY = 32128
ROWS, SOURCE, TARGET = 8, 128, 32
Step = Callable[[], None]

# The small ones have 25.9 and 15.6 million parameters.
MODELS: Mapping[str, tuple[ModelConfig, ModelConfig]] = {
  't5': (
    t5.T5Config(VOCABULARY, emb_dim=256, num_heads=4, num_encoder_layers=6, num_decoder_layers=6,
                mlp_dim=512),
    t5.T5Config(VOCABULARY, emb_dim=512, num_heads=8, num_encoder_layers=6, num_decoder_layers=6,
                mlp_dim=1024),
  ),
  'llama': (
    decoder.DecoderConfig(VOCABULARY, emb_dim=256, num_heads=4, num_kv_heads=2, num_layers=8,
                          head_dim=64, mlp_dim=1024),
    decoder.DecoderConfig(VOCABULARY, emb_dim=512, num_heads=8, num_kv_heads=4, num_layers=8,
                          head_dim=64, mlp_dim=2048),
  ),
}  # fmt: skip


def batch(architecture: str) -> Batch:
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.integers(3, VOCABULARY, shape), jnp.int32)
  if architecture == 'decoder_only':
    tokens = draw(ROWS, SOURCE + TARGET)
    weights = jnp.broadcast_to(jnp.arange(SOURCE + TARGET) >= SOURCE, tokens.shape)
    return Batch(jnp.roll(tokens, 1, 1), tokens, weights.astype(jnp.float32))
  targets = draw(ROWS, TARGET)
  inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  return Batch(inputs, targets, jnp.ones(targets.shape), draw(ROWS, SOURCE))


def prepared(
  small: ModelConfig, large: ModelConfig | None, loss: losses.CascadeLoss
) -> tuple[jax.stages.Wrapped, train_step.TrainState, train_step.Frozen]:
  """A step of AdamW, and what it starts with: random weights."""
  optimizer = optimizers.adamw(optimizers.constant(1e-3), clip_norm=None)
  parts = setup.blueprint(small, large, optimizer)
  params = init_params(small, 0, parts.state.params)
  frozen = train_step.Frozen(large and init_params(large, 1, parts.frozen.large))
  state = train_step.init_state(params, optimizer, 0)
  return setup.compiled_step(parts, optimizer, loss=loss), state, frozen


def ours(
  small: ModelConfig,
  large: ModelConfig | None,
  loss: losses.CascadeLoss,
  batches: Iterator[Batch] | None = None,
) -> Step:
  """One update, of one batch or the next; the state goes from step to step as in a run."""
  compiled, state, frozen = prepared(small, large, loss)
  batches = batches or itertools.repeat(batch(small.architecture))

  def step() -> None:
    nonlocal state
    state, _ = compiled(state, frozen, next(batches))
    jax.block_until_ready(state.step)

  return step


def gradient(small: ModelConfig) -> Step:
  """What of an update is not passes over the parameters."""
  graph, abstract = abstract_model(small)
  params, rows = init_params(small, 0, abstract), batch(small.architecture)
  model = train_step.Definition(graph, small.vocab_size)

  @jax.jit
  @jax.grad
  def run(params: Any) -> jax.Array:
    return train_step.loss_totals(
      model.bind(params), None, rows, None, loss=losses.xent, vocab_size=small.vocab_size
    )['loss']

  return lambda: jax.block_until_ready(run(params))


def forward(large: ModelConfig) -> Step:
  """What the large model adds to a step at the least: hidden states, and its first choices of the
  tokens that count."""
  graph, abstract = abstract_model(large)
  params, rows = init_params(large, 1, abstract), batch(large.architecture)
  counted = np.asarray(rows.weights) > 0

  @jax.jit
  def run(params: Any) -> jax.Array:
    model = nnx.merge(graph, params)
    return jnp.argmax(model.readout(model.hidden(rows)[counted]), -1)

  return lambda: jax.block_until_ready(run(params))


def theirs(small: ModelConfig, large: ModelConfig | None, *, update: bool = True) -> Step:
  """The same update, or its gradient alone, by PyTorch and transformers."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model, teacher = twin(small).train(), large and twin(large).eval()
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
  rows = jax.tree.map(lambda x: torch.tensor(np.asarray(x)).long(), batch(small.architecture))
  if small.architecture == 'decoder_only':
    given = {'input_ids': rows.inputs}
  else:
    given = {'input_ids': rows.encoder, 'decoder_input_ids': rows.inputs}
  kept = rows.weights > 0

  def step() -> None:
    optimizer.zero_grad()
    logits = model(**given).logits[kept]
    loss = torch.nn.functional.cross_entropy(logits, rows.targets[kept])
    if teacher is not None:
      with torch.no_grad():
        soft = torch.softmax(teacher(**given).logits[kept], -1)
      loss = 0.5 * loss + 0.5 * torch.nn.functional.cross_entropy(logits, soft)
    loss.backward()
    if update:
      optimizer.step()

  return step


def twin(config: Any) -> Any:
  """A transformers model of the same shape."""
  import transformers

  if config.architecture == 'decoder_only':
    return transformers.LlamaForCausalLM(
      transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.emb_dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=True,
      )
    )
  return transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=config.vocab_size,
      d_model=config.emb_dim,
      d_kv=config.head_dim,
      d_ff=config.mlp_dim,
      num_layers=config.num_encoder_layers,
      num_decoder_layers=config.num_decoder_layers,
      num_heads=config.num_heads,
      dropout_rate=0.0,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=config.logits_via_embedding,
      use_cache=False,
    )
  )


def by_turns(steps: Mapping[str, Step], turns: int) -> dict[str, list[float]]:
  """Milliseconds of each, one after another in every turn, after two that are not counted."""
  times: dict[str, list[float]] = {name: [] for name in steps}
  for turn in range(-2, turns):
    for name, step in steps.items():
      start = time.perf_counter()
      step()
      if turn >= 0:
        times[name].append(1e3 * (time.perf_counter() - start))
  return times


def ratio(times: Mapping[str, list[float]], over: str, *under: str) -> float:
  """The median, over the turns, of one time over the sum of others."""
  below = [sum(turn) for turn in zip(*(times[name] for name in under), strict=True)]
  return median(a / b for a, b in zip(times[over], below, strict=True))


def measure(name: str, turns: int, *, torch: bool) -> list[Measured]:
  small, large = MODELS[name]
  steps = {
    'xent': ours(small, None, losses.xent),
    'gradient': gradient(small),
    'large forward': forward(large),
    'cat_xent': ours(small, large, losses.cat_xent),
    'cat_dist': ours(small, large, losses.cat_dist),
    'dist': ours(small, large, losses.dist),
  }
  if torch:
    steps |= {
      'torch, plain': theirs(small, None),
      'torch, gradient': theirs(small, None, update=False),
      'torch, dist': theirs(small, large),
    }
  times = by_turns(steps, turns)
  found = [Measured(f'{name}: {step}', median(ms), 'ms') for step, ms in times.items()]
  found += [
    Measured(f'{name}: {cell} over xent + large forward',
             ratio(times, cell, 'xent', 'large forward'), 'x', at_most=1.08)
    for cell in ('cat_xent', 'cat_dist')
  ]  # fmt: skip
  if torch:
    found += [
      Measured(f'{name}: PyTorch over ours, gradient', ratio(times, 'torch, gradient', 'gradient'),
               'x'),
      Measured(f'{name}: PyTorch over ours, plain', ratio(times, 'torch, plain', 'xent'), 'x',
               at_least=1.0),
      Measured(f'{name}: PyTorch over ours, distillation', ratio(times, 'torch, dist', 'dist'), 'x',
               at_least=1.2),
    ]  # fmt: skip
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
  parser.add_argument('--turns', type=int, default=15)
  parser.add_argument('--no_torch', action='store_true', help='only our own steps')
  parser.add_argument('--output', default='runs/benchmarks/training_step.json')
  options = parser.parse_args()
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    measured = [
      one
      for name in options.models
      for one in measure(name, options.turns, torch=not options.no_torch)
    ]
  bars.report('training step', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
