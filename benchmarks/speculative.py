"""Speed and memory of speculative decoding, side by side with the large model alone.

    python -m benchmarks.speculative --pair runs/demo/xent runs/demo/large
      --pair runs/drafter runs/smollm2 --prompts=questions.jsonl

Each `--pair` is the run directory of a small and of a large model. Prompts of encoder-decoders are
words of the demo's task, those of decoder-only models the `inputs` of `--prompts`, JSON lines, as
the user's turn where the large model has a chat template.
Answers are greedy and end at the end of sequence; a turn answers `--rows` prompts, one at a time or
eight together. Every program is compiled and run once before, turns alternate, and medians of
ratios are reported. Rows are printed and written as they are measured.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax import Array

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.speculative_rules import BLOCK, PROMPT, Call, by_turns, of_rules
from cascades import decoding
from cascades.data.corpus import Data
from cascades.inference import latency, speculation, trained_model
from cascades.inference.answers import Generator
from cascades.inference.draft_planner import RECENT, RETRY, StepCosts
from cascades.inference.speculator import Speculator
from cascades.inference.trained_model import TrainedModel
from cascades.interop import companions
from cascades.runtime import partitioning
from cascades.target_distributions import RULES
from cascades.tasks import catalog, chats, local
from cascades.types import Generation, Params, Prompt

MOST = 8  # drafts that the planner may choose
ANSWER = 64  # tokens of decoder-only models
WORD, PHONEMES = 24, 24  # tokens of the demo's task
SHORT, WARM = 16, 12  # tokens of answers with adaptive drafts, and batches that warm the planner up
HALF = 32  # tokens of answers in bfloat16, which CPUs compute slowly
MEMORY = ('lossless', 'token_v3')  # rules whose programs' memory is measured
LEAST = 10  # seconds of turns, so that answers of under a millisecond are timed often


class Pair(NamedTuple):
  """Two models with batches of prompts of one size."""

  small: TrainedModel
  large: TrainedModel
  batches: list[Prompt]
  length: int  # of the longest answer

  @property
  def ends(self) -> Sequence[int]:
    return self.large.vocabulary.eos_ids


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
  return corpus.prompts(records, bucket, batch_size=rows)


def in_batches(prompt: Prompt, size: int) -> list[Prompt]:
  """Prompts in batches of one size."""
  starts = range(0, len(prompt.length), size)
  return [jax.tree.map(lambda x, start=start: x[start : start + size], prompt) for start in starts]


def alone(model: TrainedModel, pair: Pair, length: int) -> Callable[[], list[Generation]]:
  """Greedy answers of one model to all batches."""
  generate = jitted_alone(model, length, pair.ends)
  return lambda: [jax.block_until_ready(generate(model.params, batch)) for batch in pair.batches]


def jitted_alone(model: TrainedModel, length: int, ends: Sequence[int] = (-1,)) -> Any:
  """Program of one model; by default no answer ends before `length`."""

  @jax.jit
  def generate(params: Params, prompt: Prompt) -> Generation:
    return decoding.generate(nnx.merge(model.graph, params), prompt, max_len=length, eos_id=ends)

  return generate


def together(pair: Pair, length: int, gamma: int) -> Callable[[], list[speculation.Speculation]]:
  """Greedy lossless answers of both models to all batches.

  Each is waited for: else the host would prepare a batch while an earlier one is computed, and
  hide its own time where answers are long but not where they are short.
  """
  generate = jitted_pair(pair.small, pair.large, length, gamma, pair.ends)
  params = pair.small.params, pair.large.params
  return lambda: [jax.block_until_ready(generate(*params, batch)) for batch in pair.batches]


def jitted_pair(
  small: TrainedModel,
  large: TrainedModel,
  length: int,
  most: int,
  ends: Sequence[int] = (-1,),
  rule: str = 'lossless',
) -> Any:
  """Program of both models; it takes another number of drafts, at most `most`, as `gamma`."""

  @jax.jit
  def generate(
    small_params: Params, large_params: Params, prompt: Prompt, gamma: Array | int = most
  ) -> speculation.Speculation:
    models = speculation.SpeculativePair(
      nnx.merge(small.graph, small_params),
      nnx.merge(large.graph, large_params),
      RULES[rule].target,
    )
    plan = speculation.always(gamma)
    return speculation.generate(models, prompt, max_len=length, eos_id=ends, gamma=most, plan=plan)

  return generate


def same(drafted: Sequence[speculation.Speculation], expected: Sequence[Generation]) -> float:
  """Share of answers that are those of the large model."""
  equal = [
    (np.asarray(own.answer.tokens) == np.asarray(other.tokens)).all(1)
    for own, other in zip(drafted, expected, strict=True)
  ]
  return float(np.concatenate(equal).mean())


def identical(pair: Pair, expected: Sequence[Generation]) -> list[float]:
  """Share of answers that are those of the large model, at each number of drafts up to MOST."""
  generate = jitted_pair(pair.small, pair.large, pair.length, MOST, pair.ends)
  params = pair.small.params, pair.large.params
  return [
    same([generate(*params, batch, gamma) for batch in pair.batches], expected)
    for gamma in range(1, MOST + 1)
  ]


def identical_in_bfloat16(name: str, paths: tuple[str, str], pair: Pair) -> Measured:
  """Share of answers that are those of the large model where both compute in bfloat16."""
  small, large = (load(path, 'bfloat16') for path in paths)
  half = Pair(small, large, pair.batches, min(pair.length, HALF))
  share = same(together(half, half.length, BLOCK)(), alone(large, half, half.length)())
  answered = sum(len(batch.length) for batch in pair.batches)
  return Measured(
    f'{name}, bfloat16: share of identical answers', share, '',
    note=f'{answered} answers of at most {half.length} tokens, gamma {BLOCK}',
  )  # fmt: skip


def load(path: str, precision: str = 'float32') -> TrainedModel:
  checkpoint = trained_model.Checkpoint(path, precision=precision)
  return trained_model.load(checkpoint, rules=partitioning.RULES)


def memory(program: Any, *arguments: Any) -> int:
  """Bytes of a device that a compiled program needs, its arguments included."""
  analysis = program.lower(*arguments).compile().memory_analysis()
  return analysis.temp_size_in_bytes + analysis.argument_size_in_bytes


def beside(pair: Pair, gamma: int, rule: str = 'lossless') -> float:
  """Memory beside the large model's program and the small model, in tables of gamma + 1
  distributions a row; the small model is its parameters and its cache.
  """

  def size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

  small, large, (prompt, *_), length = pair

  cache = jax.eval_shape(
    lambda params, asked: nnx.merge(small.graph, params).prefill(asked, length)[1],
    small.params,
    prompt,
  )
  program = jitted_pair(small, large, length, gamma, rule=rule)
  both = memory(program, small.params, large.params, prompt)
  plain = memory(jitted_alone(large, length), large.params, prompt)
  table = (gamma + 1) * large.vocab_size * 4 * len(prompt.length)
  return (both - plain - size(small.params) - size(cache)) / table


def pace(pair: Pair, costs: StepCosts, turns: int, length: int) -> tuple[float, float, int]:
  """Seconds of a `Speculator` whose drafts are planned over those of the large model alone.

  Of RETRY batches one goes the other way, with or without drafts, and the RECENT ones before it may
  be timed by the planner: both kinds are measured apart and count as often.

  Returns:
    The ratio, tokens a second of the Speculator, and the drafts that it has settled for.
  """
  drafting = Speculator(
    pair.small, pair.large, 'lossless', gamma=MOST, max_tokens=length, costs=costs
  )
  planner = drafting.planner
  assert planner
  rows = np.arange(len(pair.batches[0].length))
  large = Generator(pair.large, length)

  def adaptive(number: int = 0) -> list[Generation]:
    answers = []
    for batch in pair.batches:
      planner.batches = number  # of those since the last that went the other way
      answers.append(drafting.generate(batch, rows))
    return answers

  for _ in range(-(-WARM // len(pair.batches))):
    adaptive()
  tokens = sum(int(own.mask.sum()) for own in adaptive(RETRY - 1))
  alone: Call = lambda: [large.generate(batch, rows) for batch in pair.batches]
  calls: dict[str, Call] = {
    'adaptive': adaptive,
    'alone': alone,
    'recent': lambda: adaptive(RETRY - 2),
    'retry': lambda: adaptive(RETRY - 1),
    'settle': alone,  # not counted: what follows drafts finds the caches full of other programs
  }
  seconds = by_turns(calls, turns, least=LEAST)
  mean = {name: float(np.median(own)) for name, own in seconds.items()}
  batches = {'adaptive': RETRY - RECENT - 1, 'recent': RECENT, 'retry': 1}
  own = sum(mean[name] * count for name, count in batches.items()) / RETRY
  return own / mean['alone'], tokens / own, planner.drafts


def of_pair(name: str, paths: tuple[str, str], options: argparse.Namespace) -> Iterator[Measured]:
  """Overhead of a block, and speed at the planner's gamma, at batches of 1 and 8."""
  models = [load(p) for p in paths]
  length = PHONEMES if models[0].architecture == 'encoder_decoder' else ANSWER
  prompt = prompts(models[1], options.rows, options.prompts)
  tokens_per_second: dict[str, list[float]] = {'planned drafts': [], f'{BLOCK} drafts': []}
  for size in (1, 8):
    pair = Pair(models[0], models[1], in_batches(prompt, size), length)
    what, first = f'{name}, batch {size}', pair.batches[0]
    costs = latency.step_costs(*models, first, most=MOST, max_tokens=length)
    block = together(pair, length, BLOCK)
    drafted = jax.tree.map(np.asarray, block())
    accepted, rejected = (
      sum(int(getattr(own.counts, count).sum()) for own in drafted)
      for count in ('accepted', 'rejected')
    )
    programs: dict[str, Call] = {'block': block, 'block start': together(pair, 1, BLOCK)}
    seconds = by_turns(programs, options.turns, least=LEAST)
    blocks = sum(int(own.counts.large_calls.max()) - 1 for own in drafted)
    in_loop = seconds['block'] - seconds['block start']
    passes = blocks * (BLOCK * costs.small + costs.large[BLOCK])
    yield Measured(
      f'{what}: block / its forward passes', float(np.median(in_loop)) / passes, '', at_most=1.1,
      note=f'gamma {BLOCK}, {blocks} blocks, {passes / blocks * 1e3:.2f} ms of passes',
    )  # fmt: skip
    steps = ', '.join(f'{seconds / costs.large[0]:.2f}' for seconds in costs.large)
    slower, planned, drafts = pace(pair, costs, options.turns, length)
    tokens_per_second['planned drafts'].append(planned)
    tokens = sum(int(own.answer.mask.sum()) for own in drafted)
    tokens_per_second[f'{BLOCK} drafts'].append(tokens / float(np.median(seconds['block'])))
    yield Measured(
      f'{what}: large alone / lossless, planner', 1 / slower, '', at_least=1.0,
      note=f'c {costs.small / costs.large[0]:.3f}, {accepted / (accepted + rejected):.3f} of '
      f'{BLOCK} drafts accepted, {drafts} drafts planned; large over 1 to 9: {steps}',
    )  # fmt: skip
    short, _, drafts = pace(pair, costs, options.turns, min(length, SHORT))
    yield Measured(
      f'{what}: adaptive drafts / large alone, seconds', short, '', at_most=1.03,
      note=f'at most {min(length, SHORT)} tokens, {drafts} drafts planned',
    )  # fmt: skip
    shares = identical(pair, alone(models[1], pair, length)())
    yield Measured(
      f'{what}: share of identical answers, gamma 1 to {MOST}', min(shares), '', at_least=1.0,
      note=f'{options.rows} answers',
    )  # fmt: skip
    for rule in MEMORY:
      yield Measured(
        f'{what}: tables of gamma + 1 distributions, {rule}', beside(pair, BLOCK, rule), '',
        at_most=2.0001, note='beside the large model alone and the small model',
      )  # fmt: skip
  yield identical_in_bfloat16(name, paths, pair)
  for drafting, (single, eight) in tokens_per_second.items():
    what = f'{name}: tokens/s of batch 8 / batch 1, {drafting}'
    yield Measured(what, eight / single, '', at_least=3.0)


def rows(options: argparse.Namespace) -> Iterator[Measured]:
  """Measurements of all pairs, then of the rules."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    for small, large in options.pair:
      name = f'{pathlib.Path(small).name} + {pathlib.Path(large).name}'
      yield from of_pair(name, (small, large), options)
    if options.vocab_size:
      yield from of_rules(options.vocab_size, options.turns)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--pair', nargs=2, action='append', default=[], metavar=('SMALL', 'LARGE'))
  parser.add_argument('--prompts', help='JSON lines with `inputs`, for decoder-only models')
  parser.add_argument('--rows', type=int, default=64, help='prompts of a turn; a multiple of 8')
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument(
    '--vocab_size', type=int, default=262_144, help='of the rules; 0 leaves them out'
  )
  parser.add_argument('--output', default=bars.RESULTS / 'speculative.json')
  options = parser.parse_args()
  settings = {'pairs': [' '.join(map(str, p)) for p in options.pair]}
  settings |= {'rows': options.rows, 'turns': options.turns}
  bars.report('Speculative decoding', rows(options), options.output, settings)


if __name__ == '__main__':
  main()
