"""Speed and memory of speculative decoding, side by side with the large model alone.

    python -m benchmarks.speculative --pair runs/demo/xent runs/demo/large
      --pair runs/drafter runs/smollm2 --prompts=questions.jsonl

Each `--pair` is the run directory of a small and of a large model. Prompts of encoder-decoders are
words of the demo's task, those of decoder-only models the `inputs` of `--prompts`, JSON lines, as
the user's turn where the large model has a chat template.
Answers are greedy and of full length; every program is compiled and run once before, turns
alternate, and medians of ratios are reported. Rows are printed and written as they are measured.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured
from cascades import decoding, speculative
from cascades.data.corpus import Data
from cascades.inference import speculation, speculator, trained_model
from cascades.inference.answers import Generator
from cascades.inference.speculator import Speculator, StepCosts
from cascades.inference.trained_model import TrainedModel
from cascades.interop import companions
from cascades.models import decoder
from cascades.runtime import partitioning
from cascades.target_distributions import RULES, distribution, target_distribution
from cascades.tasks import catalog, chats, local
from cascades.types import Params, Prompt

MOST, BLOCK = 8, 5  # drafts that the planner may choose, and of the block that is taken apart
PROMPT, ANSWER = 128, 64  # tokens of decoder-only models
WORD, PHONEMES = 24, 24  # tokens of the demo's task
SHORT, BATCHES = 16, 33  # tokens of answers and number of batches with adaptive drafts
STEPS = 16  # calls of a model that are timed together

Call = Callable[[], Any]


class Pair(NamedTuple):
  """Two models with prompts of one batch size."""

  small: TrainedModel
  large: TrainedModel
  prompt: Prompt
  length: int  # of the answers


def prompts(model: TrainedModel, rows: int, path: str | None) -> Prompt:
  """Prompts of the kind that the large model was trained on."""
  if model.architecture == 'encoder_decoder':
    task, lengths = catalog.get('cmudict_g2p'), {'inputs': WORD, 'targets': PHONEMES}
  else:
    if path is None:
      raise SystemExit('a decoder-only model needs prompts: name JSON lines as --prompts.')
    task = local.local_jsonl(name='prompts', splits={'test': path}, targets_key=None)
    folder = epath.Path(model.described['checkpoint']) / companions.FOLDER
    if (folder / 'tokenizer_config.json').exists():
      task = chats.chat(task, folder)
    lengths = {'inputs': PROMPT, 'targets': ANSWER}
  data = Data(task=task, lengths=lengths, batch_size=rows)
  corpus = data.corpus(model.vocabulary, model.architecture)
  (records,) = corpus.open('test').per_task
  if len(records) < rows:
    raise SystemExit(f'{path} has {len(records)} prompts, and {rows} are decoded together.')
  bucket = next(iter(corpus.buckets(records, range(rows), batch_size=rows)))
  return jax.tree.map(jnp.asarray, corpus.prompts(records, bucket, batch_size=rows))


def alone(model: TrainedModel, pair: Pair, length: int) -> Call:
  """Greedy answers of one model."""
  generate = jitted_alone(model, length)
  return lambda: jax.block_until_ready(generate(model.params, pair.prompt))


def jitted_alone(model: TrainedModel, length: int) -> Any:
  @jax.jit
  def generate(params: Params, prompt: Prompt) -> Array:
    return decoding.generate(
      nnx.merge(model.graph, params), prompt, max_len=length, eos_id=-1
    ).tokens

  return generate


def together(pair: Pair, length: int, gamma: int) -> Call:
  """Greedy lossless answers of both models."""
  generate = jitted_pair(pair.small, pair.large, length, gamma)
  return lambda: jax.block_until_ready(generate(pair.small.params, pair.large.params, pair.prompt))


def jitted_pair(small: TrainedModel, large: TrainedModel, length: int, gamma: int) -> Any:
  @jax.jit
  def generate(
    small_params: Params, large_params: Params, prompt: Prompt
  ) -> speculation.Speculation:
    models = speculation.SpeculativePair(
      nnx.merge(small.graph, small_params),
      nnx.merge(large.graph, large_params),
      RULES['lossless'].target,
    )
    return speculation.generate(models, prompt, max_len=length, eos_id=-1, gamma=gamma)

  return generate


def extends(model: TrainedModel, pair: Pair, width: int, steps: int = STEPS) -> Call:
  """Calls of `extend` over `width` tokens, each behind the same cached prompt."""

  @jax.jit
  def run(params: Params, prompt: Prompt) -> Array:
    merged = nnx.merge(model.graph, params)
    _, cache = merged.prefill(prompt, pair.length + MOST + 2)

    def step(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
      tokens, cache = carry
      logits, extended = merged.extend(tokens, cache)
      return jnp.argmax(logits, -1).astype(jnp.int32), extended._replace(length=cache.length)

    start = jnp.ones((len(prompt.length), width), jnp.int32), cache
    return jax.lax.fori_loop(0, steps, step, start)[0]

  return lambda: jax.block_until_ready(run(model.params, pair.prompt))


def by_turns(calls: Mapping[str, Call], turns: int) -> dict[str, np.ndarray]:
  """Seconds of each call, after one that compiles; turns alternate."""
  for call in calls.values():
    call()
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(turns):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - start)
  return {name: np.array(values) for name, values in seconds.items()}


def tables_beside(pair: Pair, gamma: int) -> float:
  """Memory of both models' program beside that of the large one and the small model.

  The small model is its parameters and its cache. In tables of (gamma + 1) x V floats a row.
  """

  def size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

  def used(program: Any, *arguments: Any) -> int:
    memory = program.lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes

  small, large, prompt, length = pair
  both = used(jitted_pair(small, large, length, gamma), small.params, large.params, prompt)
  plain = used(jitted_alone(large, length), large.params, prompt)
  cache = jax.eval_shape(
    lambda params: nnx.merge(small.graph, params).prefill(prompt, length + gamma + 2)[1],
    small.params,
  )
  table = (gamma + 1) * large.vocab_size * 4 * len(prompt.length)
  return (both - plain - size(small.params) - size(cache)) / table


def step_seconds(pair: Pair, turns: int) -> tuple[float, list[float]]:
  """Seconds of a step of the small model, and of the large one over 1, 2, ... MOST + 1 tokens."""
  calls = {'small': extends(pair.small, pair, 1), 'small 0': extends(pair.small, pair, 1, 0)}
  calls['large 0'] = extends(pair.large, pair, 1, 0)
  calls |= {f'large {n}': extends(pair.large, pair, n) for n in range(1, MOST + 2)}
  seconds = by_turns(calls, turns)
  small = np.median(seconds['small'] - seconds['small 0']) / STEPS
  large = [
    float(np.median(seconds[f'large {n}'] - seconds['large 0'])) / STEPS for n in range(1, MOST + 2)
  ]
  return float(small), large


def kept_pace(pair: Pair, costs: StepCosts) -> float:
  """Seconds of answers with adaptive numbers of drafts over those of the large model alone.

  Answers are SHORT and end at the end of sequence. Batches alternate, after as many that warm up.
  """
  length = min(pair.length, SHORT)
  drafting = Speculator(
    pair.small, pair.large, 'lossless', gamma=MOST, max_tokens=length, costs=costs
  )
  rows = np.arange(len(pair.prompt.length))
  large = Generator(pair.large, length)
  calls: dict[str, Call] = {
    'adaptive': lambda: drafting.speculate(pair.prompt, rows),
    'alone': lambda: large.generate(pair.prompt, rows),
  }
  by_turns(calls, BATCHES)
  seconds = by_turns(calls, BATCHES)
  return float(seconds['adaptive'].sum() / seconds['alone'].sum())


def of_pair(name: str, small: str, large: str, path: str | None, turns: int) -> Iterator[Measured]:
  """Overhead of a block, and speed at the planner's gamma, at batches of 1 and 8."""
  models = [
    trained_model.load(trained_model.Checkpoint(p), rules=partitioning.RULES)
    for p in (small, large)
  ]
  length = PHONEMES if models[0].architecture == 'encoder_decoder' else ANSWER
  tokens_per_second = {}
  for batch in (1, 8):
    pair = Pair(*models, prompts(models[1], batch, path), length)
    what = f'{name}, batch {batch}'
    step, widths = step_seconds(pair, turns)
    block = together(pair, length, BLOCK)
    counts = jax.tree.map(np.asarray, block().counts)
    acceptance = counts.accepted.sum() / (counts.accepted.sum() + counts.rejected.sum())
    c, relative = step / widths[0], [seconds / widths[0] for seconds in widths]
    gamma = speculative.best_gamma(
      float(acceptance), c, most=MOST, large=relative, least_saving=speculator.SAVING
    )
    programs = {
      'plain': alone(pair.large, pair, length),
      'plain start': alone(pair.large, pair, 1),
      'block': block,
      'block start': together(pair, 1, BLOCK),
      # Where no draft pays, a Speculator leaves the answer to the large model's own program.
      'planned': together(pair, length, gamma) if gamma else alone(pair.large, pair, length),
    }
    seconds = by_turns(programs, turns)
    blocks = int(counts.large_calls.max()) - 1
    in_loop = seconds['block'] - seconds['block start']
    passes = blocks * (BLOCK * step + widths[BLOCK])
    note = f'c {c:.3f}, acceptance {acceptance:.3f}, gamma {gamma}'
    yield Measured(
      f'{what}: block / its forward passes', float(np.median(in_loop)) / passes, '', at_most=1.1,
      note=f'gamma {BLOCK}, {blocks} blocks, {passes / blocks * 1e3:.2f} ms of passes',
    )  # fmt: skip
    speedup = float(np.median(seconds['plain'] / seconds['planned']))
    yield Measured(f'{what}: large alone / lossless', speedup, '', at_least=1.0, note=note)
    tokens_per_second[batch] = batch * length / float(np.median(seconds['planned']))
    same = np.asarray(block().answer.tokens) == np.asarray(programs['plain']())
    yield Measured(f'{what}: share of equal tokens', float(same.mean()), '', at_least=1.0)
    adaptive = kept_pace(pair, StepCosts(step, widths))
    yield Measured(f'{what}: adaptive drafts / large alone, seconds', adaptive, '', at_most=1.03)
    yield Measured(
      f'{what}: tables of gamma + 1 distributions', tables_beside(pair, BLOCK), '', at_most=2.0001,
      note='memory beside the large model alone and the small model',
    )  # fmt: skip
  gain = tokens_per_second[8] / tokens_per_second[1]
  yield Measured(f'{name}: tokens/s of batch 8 / batch 1', gain, '', at_least=3.0)


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
  """Time of each rule's arithmetic beside the call of the large model that it follows."""
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
  q_logits = p_logits[:, ::-1] * 0.9
  keys = jax.random.split(jax.random.key(0), batch)
  rows = jnp.arange(batch)

  def rule(name: str) -> Call:
    @jax.jit
    def verify(q_logits: Array, p_logits: Array, alpha: Array) -> tuple[Array, Array]:
      def at(position: Array) -> tuple[Array, Array]:
        q, p = (distribution(logits[rows, position]) for logits in (q_logits, p_logits))
        return q.sampled, target_distribution(q, p, rule=RULES[name].target, alpha=alpha)

      return speculative.verify_by_position(keys, tokens[:, 1:], at)

    return lambda: jax.block_until_ready(verify(q_logits, p_logits, jnp.float32(0.3)))

  calls = {'extend': lambda: jax.block_until_ready(extend(params, cache, tokens))}
  seconds = by_turns(calls | {name: rule(name) for name in RULES}, turns)
  for name in RULES:
    share = float(np.median(seconds[name] / seconds['extend']))
    yield Measured(f'rule {name} / large extend, V {vocab_size:,}', share, '', at_most=0.05)


def rows(options: argparse.Namespace) -> Iterator[Measured]:
  """Measurements of all pairs, then of the rules."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    for small, large in options.pair:
      name = f'{pathlib.Path(small).name} + {pathlib.Path(large).name}'
      yield from of_pair(name, small, large, options.prompts, options.turns)
    if options.vocab_size:
      yield from of_rules(options.vocab_size, options.turns)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--pair', nargs=2, action='append', default=[], metavar=('SMALL', 'LARGE'))
  parser.add_argument('--prompts', help='JSON lines with `inputs`, for decoder-only models')
  parser.add_argument('--turns', type=int, default=9)
  parser.add_argument(
    '--vocab_size', type=int, default=262_144, help='of the rules; 0 leaves them out'
  )
  parser.add_argument('--output', default=bars.RESULTS / 'speculative.json')
  options = parser.parse_args()
  settings = {'pairs': [' '.join(map(str, p)) for p in options.pair], 'turns': options.turns}
  bars.report('Speculative decoding', rows(options), options.output, settings)


if __name__ == '__main__':
  main()
