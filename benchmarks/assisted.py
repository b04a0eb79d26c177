"""Greedy lossless speculation compared with transformers' assisted generation, same weights.

    python -m benchmarks.assisted --pair runs/drafter runs/smollm2
      --folders exported/drafter exported/smollm2 --prompts=questions.jsonl

`--pair` is the run directory of a small and of a large decoder-only model and `--folders` their
exports (`python -m cascades.export`). Requires torch and transformers. Both draft the same number
of tokens a block, decode greedily past the end of sequence to the full length, one prompt at a
time, alternate, and are compiled or warmed up before.
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
from benchmarks.speculative import ANSWER, jitted_alone, jitted_pair, prompts
from cascades.inference import trained_model
from cascades.inference.trained_model import Checkpoint
from cascades.runtime import partitioning
from cascades.types import Prompt

Decode = Callable[[Prompt], np.ndarray]


def ours(paths: Sequence[str], dtype: str, gamma: int) -> dict[str, Decode]:
  """Answers of both models together, and of the large one alone."""
  small, large = (
    trained_model.load(Checkpoint(path, precision=dtype), rules=partitioning.RULES)
    for path in paths
  )
  both, alone = jitted_pair(small, large, ANSWER, gamma), jitted_alone(large, ANSWER)
  return {
    'cascades, assisted': lambda prompt: np.asarray(
      both(small.params, large.params, prompt).answer.tokens
    ),
    'cascades, large alone': lambda prompt: np.asarray(alone(large.params, prompt).tokens),
  }


def theirs(folders: Sequence[str], dtype: str, gamma: int) -> dict[str, Decode]:
  """The same by transformers."""
  import torch
  import transformers

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  small, large = (
    transformers.AutoModelForCausalLM.from_pretrained(f, dtype=getattr(torch, dtype)).eval()
    for f in folders
  )
  large.generation_config.eos_token_id = None
  small.generation_config.num_assistant_tokens = gamma
  small.generation_config.num_assistant_tokens_schedule = 'constant'
  small.generation_config.assistant_confidence_threshold = 0.0

  def decode(prompt: Prompt, **assistance: object) -> np.ndarray:
    tokens = torch.tensor(np.asarray(prompt.tokens)[:, : int(prompt.length[0])], dtype=torch.long)
    with torch.inference_mode():
      sequences = large.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=ANSWER,
        do_sample=False,
        **assistance,
      )
    return sequences[:, tokens.shape[1] :].numpy()

  return {
    'transformers, assisted': lambda prompt: decode(prompt, assistant_model=small),
    'transformers, large alone': decode,
  }


def compare(options: argparse.Namespace, each: Sequence[Prompt], dtype: str) -> Iterator[Measured]:
  """Tokens per second of all four, their ratio, and the tokens that agree."""
  decoders = {
    **ours(options.pair, dtype, options.gamma),
    **theirs(options.folders, dtype, options.gamma),
  }
  answers = {
    name: np.stack([decode(prompt) for prompt in each]) for name, decode in decoders.items()
  }
  seconds = {name: np.zeros(options.turns) for name in decoders}
  for turn in range(options.turns):
    for prompt in each:
      for name, decode in decoders.items():
        start = time.perf_counter()
        decode(prompt)
        seconds[name][turn] += time.perf_counter() - start
  for name, values in seconds.items():
    yield Measured(f'{name}, {dtype}', answers[name].size / float(np.median(values)), 'tokens/s')
  ratio = np.median(seconds['transformers, assisted'] / seconds['cascades, assisted'])
  same = answers['cascades, assisted'] == answers['transformers, assisted']
  yield Measured(
    f'assisted, {dtype}: cascades / transformers', float(ratio), 'x', at_least=1.5,
    note=f'{same.mean():.0%} of the tokens the same',
  )  # fmt: skip
  lossless = answers['cascades, assisted'] == answers['cascades, large alone']
  yield Measured(
    f'cascades, {dtype}: answers of the large model alone',
    float(lossless.all(axis=(1, 2)).mean()), 'share', note=f'{len(each)} answers',
  )  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[Measured]:
  """Measurements of all types."""
  with partitioning.use(partitioning.make_mesh(devices=jax.devices()[:1])):
    large = trained_model.load(Checkpoint(options.pair[1]), rules=partitioning.RULES)
    together = prompts(large, options.rows, options.prompts)
    each = [
      jax.tree.map(lambda x, own=slice(row, row + 1): x[own], together)
      for row in range(options.rows)
    ]
    for dtype in options.dtypes.split(','):
      yield from compare(options, each, dtype)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--pair', nargs=2, required=True, metavar=('SMALL', 'LARGE'))
  parser.add_argument('--folders', nargs=2, required=True, metavar=('SMALL', 'LARGE'))
  parser.add_argument('--prompts', required=True, help='JSON lines with `inputs`')
  parser.add_argument('--dtypes', default='float32,bfloat16')
  parser.add_argument('--gamma', type=int, default=3, help='drafts of a block')
  parser.add_argument('--rows', type=int, default=8)
  parser.add_argument('--turns', type=int, default=3)
  parser.add_argument('--output', default=bars.RESULTS / 'assisted.json')
  options = parser.parse_args()
  bars.report('Assisted generation', rows(options), options.output, vars(options))


if __name__ == '__main__':
  main()
