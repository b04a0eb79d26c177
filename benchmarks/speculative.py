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
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.drafting_speed import measured_steps
from benchmarks.speculative_rules import BLOCK, PROMPT, Call, by_turns, of_rules
from cascades import decoding, speculative
from cascades.data.corpus import Data
from cascades.inference import speculation, speculator, trained_model
from cascades.inference.answers import Generator
from cascades.inference.latency import TimedBatch
from cascades.inference.speculator import RETRY, Speculator, StepCosts
from cascades.inference.trained_model import TrainedModel
from cascades.interop import companions
from cascades.runtime import partitioning
from cascades.target_distributions import RULES
from cascades.tasks import catalog, chats, local
from cascades.types import Params, Prompt

MOST = 8  # drafts that the planner may choose
ANSWER = 64  # tokens of decoder-only models
WORD, PHONEMES = 24, 24  # tokens of the demo's task
SHORT, WARM = 16, 12  # tokens of answers with adaptive drafts, and batches that warm the planner up
HALF = 32  # tokens of answers in bfloat16, which CPUs compute slowly
MORE, MANY = 20, 10_000_000  # times as many turns of short answers, up to MANY parameters


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


def jitted_pair(small: TrainedModel, large: TrainedModel, length: int, most: int) -> Any:
  """Program of both models; it takes another number of drafts, at most `most`, as `gamma`."""

  @jax.jit
  def generate(
    small_params: Params, large_params: Params, prompt: Prompt, gamma: Array | int = most
  ) -> speculation.Speculation:
    models = speculation.SpeculativePair(
      nnx.merge(small.graph, small_params),
      nnx.merge(large.graph, large_params),
      RULES['lossless'].target,
    )
    plan = speculation.always(gamma)
    return speculation.generate(models, prompt, max_len=length, eos_id=-1, gamma=most, plan=plan)

  return generate


def identical(pair: Pair, expected: np.ndarray) -> list[float]:
  """Share of answers that are those of the large model, at each number of drafts up to MOST."""
  generate = jitted_pair(pair.small, pair.large, pair.length, MOST)
  shares = []
  for gamma in range(1, MOST + 1):
    answers = generate(pair.small.params, pair.large.params, pair.prompt, gamma)
    shares.append(float((np.asarray(answers.answer.tokens) == expected).all(1).mean()))
  return shares


def identical_in_bfloat16(paths: tuple[str, str], pair: Pair) -> Measured:
  """Share of answers that are those of the large model where both compute in bfloat16."""
  small, large = (load(path, 'bfloat16') for path in paths)
  half = Pair(small, large, pair.prompt, min(pair.length, HALF))
  tokens = np.asarray(together(half, half.length, BLOCK)().answer.tokens)
  same = (tokens == np.asarray(alone(large, half, half.length)())).all(1)
  name = f'{pathlib.Path(paths[0]).name} + {pathlib.Path(paths[1]).name}'
  return Measured(
    f'{name}, bfloat16: share of identical answers', float(same.mean()), '',
    note=f'{len(same)} answers of {half.length} tokens, gamma {BLOCK}',
  )  # fmt: skip


def load(path: str, precision: str = 'float32') -> TrainedModel:
  checkpoint = trained_model.Checkpoint(path, precision=precision)
  return trained_model.load(checkpoint, rules=partitioning.RULES)


class Beside(NamedTuple):
  """Memory beside the large model's program and the small model, in tables of gamma + 1
  distributions a row; `room` is that of the positions of drafts in the large model's cache.
  """

  tables: float
  room: float


def beside(pair: Pair, gamma: int) -> Beside:
  """Memory of both models' program; the small model is its parameters and its cache."""

  def size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

  def used(program: Any, *arguments: Any) -> int:
    memory = program.lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes

  small, large, prompt, length = pair

  def cache(model: TrainedModel, length: int) -> int:
    prefill = lambda params: nnx.merge(model.graph, params).prefill(prompt, length)[1]
    return size(jax.eval_shape(prefill, model.params))

  both = used(jitted_pair(small, large, length, gamma), small.params, large.params, prompt)
  plain = used(jitted_alone(large, length), large.params, prompt)
  room = length + gamma + 2
  table = (gamma + 1) * large.vocab_size * 4 * len(prompt.length)
  return Beside(
    (both - plain - size(small.params) - cache(small, room)) / table,
    (cache(large, room) - cache(large, length)) / table,
  )


def step_seconds(pair: Pair) -> StepCosts:
  """Seconds of a step of the small model, and of the large one over 1, 2, ... MOST + 1 tokens."""
  batch = TimedBatch(pair.prompt, np.arange(len(pair.prompt.length)), len(pair.prompt.length))
  return measured_steps(pair.small, pair.large, batch, longest=pair.length, most=MOST)


def kept_pace(pair: Pair, costs: StepCosts, turns: int) -> tuple[float, int]:
  """Seconds of answers with adaptive drafts over those of the large model alone, and the drafts.

  Answers are SHORT and end at the end of sequence. The batch in RETRY that goes the other way, with
  or without drafts, is timed apart and counts as often.
  """
  length = min(pair.length, SHORT)
  drafting = Speculator(
    pair.small, pair.large, 'lossless', gamma=MOST, max_tokens=length, costs=costs
  )
  planner = drafting.planner
  assert planner
  rows = np.arange(len(pair.prompt.length))
  large = Generator(pair.large, length)

  def adaptive(batches: int = 0) -> None:
    planner.batches = batches
    drafting.speculate(pair.prompt, rows)

  for _ in range(WARM):
    adaptive()
  adaptive(RETRY - 1)
  calls: dict[str, Call] = {
    'adaptive': adaptive, 'alone': lambda: large.generate(pair.prompt, rows),
    'retry': lambda: adaptive(RETRY - 1),
  }  # fmt: skip
  turns *= MORE if pair.large.described['parameters'] < MANY else 1
  mean = {name: float(np.median(own)) for name, own in by_turns(calls, turns).items()}
  own = mean['adaptive'] + (mean['retry'] - mean['adaptive']) / RETRY
  return own / mean['alone'], planner.drafts


def of_pair(name: str, paths: tuple[str, str], path: str | None, turns: int) -> Iterator[Measured]:
  """Overhead of a block, and speed at the planner's gamma, at batches of 1 and 8."""
  models = [load(p) for p in paths]
  length = PHONEMES if models[0].architecture == 'encoder_decoder' else ANSWER
  tokens_per_second = {}
  for batch in (1, 8):
    pair = Pair(models[0], models[1], prompts(models[1], batch, path), length)
    what = f'{name}, batch {batch}'
    costs = step_seconds(pair)
    step, widths = costs
    block = together(pair, length, BLOCK)
    counts = jax.tree.map(np.asarray, block().counts)
    acceptance = counts.accepted.sum() / (counts.accepted.sum() + counts.rejected.sum())
    c, relative = step / widths[0], [seconds / widths[0] for seconds in widths]
    gamma = speculative.best_gamma(
      float(acceptance), c, most=MOST, large=relative, least_saving=speculator.SAVING
    )
    programs = {
      'plain': alone(pair.large, pair, length),
      'block': block,
      'block start': together(pair, 1, BLOCK),
    } | ({'planned': together(pair, length, gamma)} if gamma else {})
    seconds = by_turns(programs, turns)
    # Where no draft pays, a Speculator leaves the answer to the large model's own program.
    planned = seconds['planned' if gamma else 'plain']
    blocks = int(counts.large_calls.max()) - 1
    in_loop = seconds['block'] - seconds['block start']
    passes = blocks * (BLOCK * step + widths[BLOCK])
    steps = ', '.join(f'{x:.2f}' for x in relative)
    note = f'c {c:.3f}, acceptance {acceptance:.3f}, gamma {gamma}; large over 1 to 9: {steps}'
    yield Measured(
      f'{what}: block / its forward passes', float(np.median(in_loop)) / passes, '', at_most=1.1,
      note=f'gamma {BLOCK}, {blocks} blocks, {passes / blocks * 1e3:.2f} ms of passes',
    )  # fmt: skip
    speedup = float(np.median(seconds['plain'] / planned))
    yield Measured(f'{what}: large alone / lossless', speedup, '', at_least=1.0, note=note)
    tokens_per_second[batch] = batch * length / float(np.median(planned))
    if batch == 1 or models[0].architecture == 'encoder_decoder':
      shares = identical(pair, np.asarray(programs['plain']()))
      yield Measured(
        f'{what}: share of identical answers, gamma 1 to {MOST}', min(shares), '', at_least=1.0
      )
    adaptive, drafts = kept_pace(pair, costs, turns)
    yield Measured(
      f'{what}: adaptive drafts / large alone, seconds', adaptive, '', at_most=1.03,
      note=f'{drafts} drafts after the warm-up',
    )  # fmt: skip
    memory = beside(pair, BLOCK)
    yield Measured(
      f'{what}: tables of gamma + 1 distributions', memory.tables, '', at_most=2.0001,
      note=f'beside the large model alone and the small model; {memory.room:.2f} of them are the '
      'positions of drafts in the large cache',
    )  # fmt: skip
  yield identical_in_bfloat16(paths, pair)
  gain = tokens_per_second[8] / tokens_per_second[1]
  yield Measured(f'{name}: tokens/s of batch 8 / batch 1', gain, '', at_least=3.0)


def rows(options: argparse.Namespace) -> Iterator[Measured]:
  """Measurements of all pairs, then of the rules."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    for small, large in options.pair:
      name = f'{pathlib.Path(small).name} + {pathlib.Path(large).name}'
      yield from of_pair(name, (small, large), options.prompts, options.turns)
    if options.vocab_size:
      yield from of_rules(options.vocab_size, options.turns)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--pair', nargs=2, action='append', default=[], metavar=('SMALL', 'LARGE'))
  parser.add_argument('--prompts', help='JSON lines with `inputs`, for decoder-only models')
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument(
    '--vocab_size', type=int, default=262_144, help='of the rules; 0 leaves them out'
  )
  parser.add_argument('--output', default=bars.RESULTS / 'speculative.json')
  options = parser.parse_args()
  settings = {'pairs': [' '.join(map(str, p)) for p in options.pair], 'turns': options.turns}
  bars.report('Speculative decoding', rows(options), options.output, settings)


if __name__ == '__main__':
  main()
