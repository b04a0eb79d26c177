"""Training on samples of the small model, and from a teacher cache, compared with their parts.

    python -m benchmarks.on_policy
    python -m benchmarks.on_policy --turns 20

Two questions, each answered by steps that alternate within one run, on generated rows of 128 + 32
tokens:

- On-policy distillation of a T5 of 9.8M parameters beside one of 80M: a step on samples over the
  sum of a step on the task's answers and of plain generation, a program of its own that draws as
  many tokens. Random weights do not end an answer early.
- The same step on the task's answers, from a cache of the large model's sixteen first choices over
  beside the large model, which has eight times the parameters.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from statistics import median

import jax
from flax import nnx
from jax import Array

from benchmarks import bars, teacher_cache, training_step
from benchmarks.bars import Measured
from benchmarks.training_step import Step, ours
from cascades import decoding, losses
from cascades.data.answer_sources import AnswerSources
from cascades.data.corpus import Corpus
from cascades.models import configs, t5
from cascades.models.abstract import abstract_model
from cascades.runtime import partitioning
from cascades.training import on_policy, setup
from cascades.training.answer_format import AnswerFormat
from cascades.types import Generation, Params, Prompt

ON_POLICY = AnswerSources(fixed_fraction=0)
SMALL = t5.T5Config(
  training_step.VOCABULARY, emb_dim=128, num_heads=4, head_dim=32, num_encoder_layers=4,
  num_decoder_layers=4, mlp_dim=256,
)  # fmt: skip
LARGE = t5.T5Config(
  training_step.VOCABULARY, emb_dim=512, num_heads=8, head_dim=64, num_encoder_layers=6,
  num_decoder_layers=6, mlp_dim=1536,
)  # fmt: skip
SIXTEEN_CHOICES = AnswerFormat(16)


def on_policy_steps(data: Corpus, rows: int) -> dict[str, Step]:
  """A step on the task's answers, plain generation, and a step on samples."""
  compiled, fixed_state, frozen = training_step.prepared(SMALL, LARGE, losses.dist)
  _, sampled_state, _ = training_step.prepared(SMALL, None, losses.xent)
  optimizer = setup.Step(learning_rate=lambda _: 1e-3).transform
  abstract = setup.abstract_run(setup.SmallModel(SMALL), setup.LargeModel(LARGE), optimizer)
  feed = functools.partial(data.training, 0, batch_size=rows, seed=0)
  fixed, prompts = feed(), feed(sources=ON_POLICY)
  sample = on_policy.sampler(data, ON_POLICY, abstract, None)
  take = on_policy.batches(feed(sources=ON_POLICY), sample, every=1)
  graph, _ = abstract_model(SMALL)
  params = jax.tree.map(lambda x: x.copy(), sampled_state.params)  # states are donated
  number = 0

  @jax.jit
  def generate(params: Params, prompt: Prompt, key: Array) -> Generation:
    return decoding.generate(
      nnx.merge(graph, params),
      prompt,
      max_len=training_step.TARGET,
      eos_id=data.vocabulary.eos_ids,
      sampler=decoding.sample,
      key=key,
    )

  def fixed_step() -> None:
    nonlocal fixed_state
    fixed_state, _ = compiled(fixed_state, frozen, partitioning.place_batch(next(fixed)))
    jax.block_until_ready(fixed_state.step)

  def generation() -> None:
    prompt = partitioning.place_batch(next(prompts).encoder)
    jax.block_until_ready(generate(params, prompt, jax.random.key(0)))

  def sampled_step() -> None:
    nonlocal sampled_state, number
    number += 1
    batch = partitioning.place_batch(take(sampled_state, number))
    sampled_state, _ = compiled(sampled_state, frozen, batch)
    jax.block_until_ready(sampled_state.step)

  return {'fixed step': fixed_step, 'generation': generation, 'on-policy step': sampled_step}


def cached_step(data: Corpus, directory: str, rows: int) -> dict[str, Step]:
  """A step from a cache of the large model's answers."""
  cache = teacher_cache.random_cache(directory, data, SIXTEEN_CHOICES)
  feed = functools.partial(data.training, 0, batch_size=rows, seed=0)
  batches = map(partitioning.place_batch, feed(teacher=lambda _: cache.read))
  return {'fixed step, cache': ours(SMALL, None, losses.dist, batches)}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=int, default=training_step.ROWS)
  parser.add_argument('--turns', type=int, default=10)
  parser.add_argument('--cores', type=int, default=2)
  parser.add_argument('--output', default=bars.RESULTS / 'on_policy.json')
  options = parser.parse_args()
  bars.use_cores(options.cores)
  with (
    tempfile.TemporaryDirectory() as directory,
    partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])),
  ):
    data = teacher_cache.corpus(directory, 2000)
    steps = on_policy_steps(data, options.rows) | cached_step(data, directory, options.rows)
    times = training_step.by_turns(steps, options.turns)
  parts = ('fixed step', 'generation')
  larger = configs.count_parameters(LARGE) / configs.count_parameters(SMALL)
  measured = [
    *(Measured(name, median(ms), 'ms') for name, ms in times.items()),
    Measured('on-policy step over fixed step and generation',
             training_step.ratio(times, 'on-policy step', *parts), 'x', at_most=1.05),
    Measured('fixed step from a cache over beside the large model',
             training_step.ratio(times, 'fixed step, cache', 'fixed step'), 'x', at_most=0.7),
    Measured('parameters of that large model over the small one', larger, 'x'),
  ]  # fmt: skip
  bars.report('training on samples, and from a cache', measured, options.output, vars(options))


if __name__ == '__main__':
  main()
