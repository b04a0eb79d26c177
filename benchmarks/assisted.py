"""Greedy lossless speculation compared with transformers' assisted generation, same weights.

    python -m benchmarks.assisted --pair runs/drafter runs/smollm2
      --folders exported/drafter exported/smollm2 --prompts=questions.jsonl

`--pair` is the run directory of a small and of a large decoder-only model and `--folders` their
exports (`python -m cascades.export`). Requires torch and transformers. Both draft GAMMA tokens a
block and decode greedily to the full length, one prompt at a time, alternate, and are compiled or
warmed up before. A model of ours is loaded in each type; so is theirs.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from benchmarks import bars
from benchmarks.bars import Measured
from benchmarks.speculative import ANSWER, Pair, jitted_alone, jitted_pair, prompts
from cascades.inference import trained_model
from cascades.runtime import partitioning
from cascades.types import Prompt

GAMMA = 3
Decode = Callable[[Prompt], np.ndarray]


def ours(paths: Sequence[str], dtype: str, *, gamma: int) -> Decode:
  """Answers of both models together; of the large one alone if gamma is 0."""
  checkpoints = [trained_model.Checkpoint(p, precision=dtype) for p in paths]
  small, large = (trained_model.load(c, rules=partitioning.RULES) for c in checkpoints)
  pair = Pair(small, large, None, ANSWER)
  if not gamma:
    alone = jitted_alone(large, ANSWER)
    return lambda prompt: np.asarray(alone(large.params, prompt))
  both = jitted_pair(pair, ANSWER, gamma)
  return lambda prompt: np.asarray(both(small.params, large.params, prompt).answer.tokens)


def theirs(folders: Sequence[str], dtype: str, *, gamma: int) -> Decode:
  """The same by transformers."""
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  small, large = (
    transformers.AutoModelForCausalLM.from_pretrained(f, dtype=getattr(torch, dtype)).eval()
    for f in folders
  )
  assistance = {}
  if gamma:
    small.generation_config.num_assistant_tokens = gamma
    small.generation_config.num_assistant_tokens_schedule = 'constant'
    small.generation_config.assistant_confidence_threshold = 0.0
    assistance = {'assistant_model': small}

  def decode(prompt: Prompt) -> np.ndarray:
    tokens = torch.tensor(np.asarray(prompt.tokens)[:, : int(prompt.length[0])], dtype=torch.long)
    with torch.inference_mode():
      sequences = large.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=ANSWER,
        min_new_tokens=ANSWER,
        do_sample=False,
        **assistance,
      )
    return sequences[:, tokens.shape[1] :].numpy()

  return decode


def compare(options: argparse.Namespace, dtype: str) -> Iterator[Measured]:
  decoders = {
    'cascades, assisted': ours(options.pair, dtype, gamma=options.gamma),
    'cascades, large alone': ours(options.pair, dtype, gamma=0),
    'transformers, assisted': theirs(options.folders, dtype, gamma=options.gamma),
    'transformers, large alone': theirs(options.folders, dtype, gamma=0),
  }
  model = trained_model.load(trained_model.Checkpoint(options.pair[1]), rules=partitioning.RULES)
  several = prompts(model, options.rows, options.prompts)
  each = [jax.tree.map(lambda x, row=row: x[row : row + 1], several) for row in range(options.rows)]
  seconds = {name: np.zeros((options.turns, options.rows)) for name in decoders}
  answers = {name: [decode(prompt) for prompt in each] for name, decode in decoders.items()}
  for turn in range(options.turns):
    for row, prompt in enumerate(each):
      for name, decode in decoders.items():
        start = time.perf_counter()
        decode(prompt)
        seconds[name][turn, row] = time.perf_counter() - start
  for name, values in seconds.items():
    rate = ANSWER * options.rows / float(np.median(values.sum(1)))
    yield Measured(f'{name}, {dtype}', rate, 'tokens/s')
  mine, other = (seconds[f'{name}, assisted'].sum(1) for name in ('cascades', 'transformers'))
  same = np.mean(np.stack(answers['cascades, assisted']) == answers['transformers, assisted'])
  yield Measured(
    f'assisted, {dtype}: cascades / transformers', float(np.median(other / mine)), 'x',
    at_least=1.5, note=f'gamma {options.gamma}, {same:.0%} of the tokens the same',
  )  # fmt: skip
  lossless = np.stack(answers['cascades, assisted']) == answers['cascades, large alone']
  yield Measured(
    f'answers of cascades equal to those of the large model alone, {dtype}',
    float(lossless.all(axis=(1, 2)).mean()), 'share', note=f'{options.rows} answers',
  )  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--pair', nargs=2, required=True, metavar=('SMALL', 'LARGE'))
  parser.add_argument('--folders', nargs=2, required=True, metavar=('SMALL', 'LARGE'))
  parser.add_argument('--prompts', required=True, help='JSON lines with `inputs`')
  parser.add_argument('--dtypes', default='float32,bfloat16')
  parser.add_argument('--gamma', type=int, default=GAMMA)
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--output', default=bars.RESULTS / 'assisted.json')
  options = parser.parse_args()
  measured: list[Measured] = []
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    for dtype in options.dtypes.split(','):
      measured += compare(options, dtype)
  settings = {'pair': ' '.join(options.pair), 'gamma': options.gamma, 'turns': options.turns}
  bars.report('Assisted generation', measured, options.output, settings)


if __name__ == '__main__':
  main()
