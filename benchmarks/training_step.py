"""A training step on CPU compared with PyTorch and transformers, for several losses.

    python -m benchmarks.training_step
    python -m benchmarks.training_step --models t5 --turns 20

Same shapes, same batch, float32, AdamW; plain, and distillation (w = 0.5) from a large model. Then
CAT-Xent and CAT-Dist over the sum of the Xent step and the large model's forward pass, which are
timed separately in the same run. Requires the extra `reference`.
"""

from __future__ import annotations

import argparse
import functools
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


ADAMW = functools.partial(optimizers.adamw, clip_norm=None)


def prepared(
  small: ModelConfig,
  large: ModelConfig | None,
  loss: losses.CascadeLoss,
  optimizer: optimizers.Optimizer = ADAMW,
) -> tuple[jax.stages.Wrapped, train_step.TrainState, train_step.Frozen]:
  """Compiled step, and its initial state with random weights."""
  step = setup.Step(learning_rate=optimizers.constant(1e-3), optimizer=optimizer, loss=loss)
  abstract = setup.abstract_run(setup.SmallModel(small), setup.LargeModel(large), step.transform)
  params = init_params(small, 0, abstract.state.params)
  frozen = train_step.Frozen(large and init_params(large, 1, abstract.frozen.large))
  state = train_step.init_state(params, step.transform, 0)
  return setup.compiled_step(abstract, step), state, frozen


def ours(
  small: ModelConfig,
  large: ModelConfig | None,
  loss: losses.CascadeLoss,
  batches: Iterator[Batch] | None = None,
  optimizer: optimizers.Optimizer = ADAMW,
) -> Step:
  """Update on one batch or a stream of batches; the state advances as in a run."""
  compiled, state, frozen = prepared(small, large, loss, optimizer)
  run = setup.on_batches(compiled, frozen, lambda *_: None)
  batches = batches or itertools.repeat(batch(small.architecture))

  def step() -> None:
    nonlocal state
    state, _ = run(state, next(batches))
    jax.block_until_ready(state.step)

  return step


def gradient(small: ModelConfig) -> Step:
  """Gradient alone: an update without passes over the parameters."""
  graph, abstract = abstract_model(small)
  params, rows = init_params(small, 0, abstract), batch(small.architecture)
  model = train_step.ModelDef(graph, small.vocab_size)

  @jax.jit
  @jax.grad
  def run(params: Any) -> jax.Array:
    return train_step.loss_totals(
      model.bind(params), None, rows, None, loss=losses.xent, vocab_size=small.vocab_size
    )['loss']

  return lambda: jax.block_until_ready(run(params))


def forward(large: ModelConfig, rows: Batch | None = None) -> Step:
  """Minimum work of the large model in a step: hidden states, and top-1 of counted tokens."""
  graph, abstract = abstract_model(large)
  params, rows = init_params(large, 1, abstract), rows or batch(large.architecture)
  counted = np.asarray(rows.weights) > 0

  @jax.jit
  def run(params: Any) -> jax.Array:
    model = nnx.merge(graph, params)
    return jnp.argmax(model.readout(model.hidden(rows)[counted]), -1)

  return lambda: jax.block_until_ready(run(params))


def theirs(
  small: ModelConfig,
  large: ModelConfig | None,
  *,
  update: bool = True,
  examples: Batch | None = None,
  optimizer: str = 'AdamW',
) -> Step:
  """The same update, or its gradient alone, in PyTorch and transformers."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model, teacher = twin(small).train(), large and twin(large).eval()
  updater = getattr(torch.optim, optimizer)(model.parameters(), 1e-3, weight_decay=0.0)
  examples = examples or batch(small.architecture)
  rows = jax.tree.map(lambda x: torch.tensor(np.asarray(x)).long(), examples)
  if small.architecture == 'decoder_only':
    arguments = {'input_ids': rows.inputs}
  else:
    arguments = {'input_ids': rows.encoder, 'decoder_input_ids': rows.inputs}
  counted = rows.weights > 0

  def step() -> None:
    updater.zero_grad()
    logits = model(**arguments).logits[counted]
    loss = torch.nn.functional.cross_entropy(logits, rows.targets[counted])
    if teacher is not None:
      with torch.no_grad():
        soft = torch.softmax(teacher(**arguments).logits[counted], -1)
      loss = 0.5 * loss + 0.5 * torch.nn.functional.cross_entropy(logits, soft)
    loss.backward()
    if update:
      updater.step()

  return step


def twin(config: Any) -> Any:
  """Transformers model of the same shape."""
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
  """Milliseconds of each step; all run once per turn, after two warm-up turns."""
  times: dict[str, list[float]] = {name: [] for name in steps}
  for turn in range(-2, turns):
    for name, step in steps.items():
      start = time.perf_counter()
      step()
      if turn >= 0:
        times[name].append(1e3 * (time.perf_counter() - start))
  return times


def ratio(times: Mapping[str, list[float]], over: str, *under: str) -> float:
  """Median over turns of one time divided by the sum of others."""
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
  measured = [Measured(f'{name}: {step}', median(ms), 'ms') for step, ms in times.items()]
  measured += [
    Measured(f'{name}: {cell} / (xent + large forward)',
             ratio(times, cell, 'xent', 'large forward'), 'x', at_most=1.08)
    for cell in ('cat_xent', 'cat_dist')
  ]  # fmt: skip
  if torch:
    for what, steps_of, bar in (
      ('gradient', ('torch, gradient', 'gradient'), None),
      ('plain', ('torch, plain', 'xent'), 1.0),
      ('distillation', ('torch, dist', 'dist'), 1.2),
    ):
      quotient = ratio(times, *steps_of)
      measured.append(Measured(f'{name}: PyTorch / cascades, {what}', quotient, 'x', at_least=bar))
  return measured


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
  parser.add_argument('--turns', type=int, default=15)
  parser.add_argument('--no_torch', action='store_true', help='only our own steps')
  parser.add_argument('--output', default=bars.RESULTS / 'training_step.json')
  options = parser.parse_args()
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    measured = [
      row
      for name in options.models
      for row in measure(name, options.turns, torch=not options.no_torch)
    ]
  bars.report('training step', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
